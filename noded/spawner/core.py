"""The spawner's loop: polls, hands packets to their handlers, keeps the timers, and ends everything.

Everything ends (a full stop) when the daemon says stop, at SIGTERM, when no daemon was attached for the
grace, and when the owner process ends. Packets are documented in `protocol`; workers are `children`,
attaching is `daemons`.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time

from noded.spawner import groups, kernel, options, protocol, sweep
from noded.spawner.absence import Absence
from noded.spawner.children import Children
from noded.spawner.daemons import Daemons
from noded.spawner.guard import Guard
from noded.spawner.rundir import RunDir, RunDirError
from noded.spawner.signals import Signals
from noded.spawner.supervise import Supervised

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from noded.spawner.daemons import Watch
    from noded.spawner.link import Link
    from noded.spawner.protocol import Packet, Received

OPTIONS = frozenset({"dir", "tag", "grace", "owner-pid", "listen-fd", "ready-fd", "supervise"})
STOP_LIMIT = 5.0
LONGEST_POLL = 3600.0
OUT_OF_ORDER = 2  # exit code for options, the run directory and the kernel


class Settings:
    def __init__(self, argv: list[str]) -> None:
        found = options.parse(argv, OPTIONS)
        self.directory = options.required(found, "dir")
        self.tag = options.required(found, "tag")
        self.owner_pid = options.number(found, "owner-pid")
        self.listen_fd = options.number(found, "listen-fd")
        self.ready_fd = options.number(found, "ready-fd")
        try:
            self.grace = float(found.get("grace", "60"))
            self.supervise = json.loads(found.get("supervise", "[]"))
        except ValueError as error:
            raise options.OptionError(f"--grace needs seconds, --supervise a JSON list: {error}") from None
        if not options.is_hex16(self.tag):
            raise options.OptionError(f"--tag must be 16 lower-case hexadecimal digits, not {self.tag!r}")
        if not self.grace >= 0:
            raise options.OptionError(f"--grace must be zero or more seconds, not {self.grace}")
        if not isinstance(self.supervise, list) or not all(isinstance(word, str) for word in self.supervise):
            raise options.OptionError("--supervise must be a JSON list of texts: the daemon's command line")


class Spawner:
    def __init__(self, settings: Settings, run_dir: RunDir, signals: Signals, oom_score: str | None) -> None:
        self._grace = settings.grace
        self._tag = settings.tag
        self._run_dir = run_dir
        self._signals = signals
        self._owner = -1 if settings.owner_pid is None else _watch_owner(settings.owner_pid)
        self._owner_pid = settings.owner_pid
        self._owner_ended = settings.owner_pid is not None and self._owner < 0
        self._kept: dict[str, int] = {}
        self._children = Children(settings.directory, settings.tag, oom_score, self._tell)
        self._daemons = Daemons(run_dir.listen(settings.listen_fd), self._welcome, self._received)
        self._supervised = Supervised(settings.supervise, oom_score) if settings.supervise else None
        self._guard = Guard(self._children.signal_group)
        self._absence = Absence()
        self._alone_since: float | None = None
        self._stop_asked = False
        self._ended = False
        self._code = 0
        self._handlers: dict[str, Callable[[Packet], None]] = {
            "forget": self._on_forget,
            "template": self._on_template,
            "retire": self._on_retire,
            "fork": self._on_fork,
            "kill": self._on_kill,
            "ack": self._on_ack,
            "grace": self._on_grace,
            "guard": self._on_guard,
            "absence": self._on_absence,
            "stop": self._on_stop,
        }

    # -- the loop

    def serve(self) -> int:
        """Work until everything has ended; the exit code."""
        self._look_around()
        while not self._ended or (self._supervised and self._supervised.pid is not None):
            poll = select.poll()
            handlers: dict[int, Callable[[], None]] = {}
            for fd, mask, handler in self._watches():
                poll.register(fd, mask)
                handlers[fd] = handler
            for fd, _ in poll.poll(self._patience()):
                handlers[fd]()
            self._look_around()
        return self._code or (self._supervised.code if self._supervised else 0)

    def _watches(self) -> list[Watch]:
        watches: list[Watch] = [(self._signals.fd, select.POLLIN, self._signals.drain)]
        if self._ended:
            return watches
        watches += self._daemons.watches()
        if (watch := self._absence.watch(self._kept, self._alone_since, time.monotonic())) is not None:
            watches.append(watch)
        if self._owner >= 0:
            watches.append((self._owner, select.POLLIN, self._on_owner_ended))
        for template in self._children.templates.values():
            watches.append((template.stderr, select.POLLIN if template.stderr_open else 0, template.read_stderr))
            if template.link.open:
                watches.append((template.link.sock.fileno(), template.link.mask(), template.link.flush))
        return [watch for watch in watches if watch[1]]

    def _patience(self) -> int:
        """Milliseconds until the next timer."""
        deadlines = [] if self._alone_since is None else [self._alone_since + self._grace]
        if (due := self._guard.deadline()) is not None:
            deadlines.append(due)
        if (due := self._absence.deadline(self._alone_since, time.monotonic())) is not None:
            deadlines.append(due)
        if self._supervised:
            deadlines += [at for at in (self._supervised.due, self._supervised.killed_at) if at is not None]
        seconds = min([LONGEST_POLL, *(at - time.monotonic() for at in deadlines)])
        return max(0, int(seconds * 1000) + 1)

    def _look_around(self) -> None:
        """What has to be looked at after every turn."""
        if self._supervised:
            self._supervised.reap(came=self._daemons.epoch > 0)
        if not self._ended:
            for template in list(self._children.templates.values()):
                self._children.read_template(template)
            self._children.reap(leave=self._supervised.pid if self._supervised else None)
            self._daemons.tidy()
            self._guard.check()
            self._check_grace()
            if self._owner_ended:
                self._end("the owner has ended")
            elif self._stop_asked:
                self._end("the daemon asked for it")
            elif self._signals.terminations and self._supervised is None:
                self._end("SIGTERM")
        if self._supervised:
            self._look_after(self._supervised)

    def _look_after(self, supervised: Supervised) -> None:
        if self._signals.terminations > 1:
            supervised.kill()
        elif self._stop_asked:
            supervised.terminate(None)
        elif self._signals.terminations:
            supervised.terminate()
        elif self._ended:
            supervised.kill()
        elif supervised.given_up:
            self._end("the daemon cannot run")
        now = time.monotonic()
        if supervised.killed_at is not None and (supervised.pid is None or now >= supervised.killed_at):
            supervised.kill()
            self._end("the daemon was asked to end")
        if supervised.due is not None and now >= supervised.due:
            if self._daemons.expected:
                supervised.postpone()  # somebody started a daemon by hand: it is as good
            else:
                supervised.start()

    def _check_grace(self) -> None:
        now = time.monotonic()
        # One that has not come yet, and runs, may be waiting for its head; there is nothing yet that waits for it.
        if self._daemons.expected or (self._supervised and self._supervised.pid and not self._daemons.epoch):
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = now
        if self._alone_since is not None and now >= self._alone_since + self._grace:
            # Under supervision this is a failure: whoever runs the container should see it.
            self._code = 1 if self._supervised else 0
            self._end(f"there was no daemon for {self._grace:g} s")

    def _on_owner_ended(self) -> None:
        self._owner_ended = True

    # -- the daemon

    def _tell(self, packet: Packet) -> None:
        if link := self._daemons.link:
            link.send(packet)

    def _welcome(self, epoch: int, link: Link) -> None:
        children = self._children
        workers = [{"wid": each.wid, "pid": each.pid, "key": each.key} for each in children.workers.values()]
        lists: dict[str, list[Any]] = {
            "names": list(self._kept),
            "workers": workers,
            "exits": list(children.exits.values()),
            "templates": list(children.templates),
        }
        last: Packet = {"t": "welcome", "protocol": self._daemons.protocol, "epoch": epoch}
        last["spawner_pid"] = os.getpid()
        last["guard"] = self._guard.until
        for packet, fds in protocol.split_welcome(last, lists, list(self._kept.values())):
            link.send(packet, fds)

    def _received(self, received: Received, link: Link) -> bool:
        """Handle one packet; False when it was refused and the connection ended."""
        packet, fds = received
        try:
            if packet["t"] == "keep":
                fds = self._keep(protocol.text(packet, "name"), fds)
            elif packet["t"] in self._handlers:
                self._handlers[packet["t"]](packet)
            else:
                raise protocol.ProtocolError(f"there is no packet {packet['t']!r}")
        except protocol.ProtocolError as error:
            kernel.say(f"refused a packet of the daemon: {error}")
            link.refuse(str(error))
            return False
        finally:
            protocol.close_all(fds)
        return True

    def _keep(self, name: str, fds: list[int]) -> list[int]:
        if len(fds) != 1:
            raise protocol.ProtocolError(f"keep {name!r} must come with 1 descriptor, not {len(fds)}")
        self._drop(name)
        self._kept[name] = fds[0]
        return []

    def _drop(self, name: str) -> None:
        if name in self._kept:
            os.close(self._kept.pop(name))

    def _on_forget(self, packet: Packet) -> None:
        self._drop(protocol.text(packet, "name"))

    def _on_template(self, packet: Packet) -> None:
        argv, env = packet.get("argv"), packet.get("env")
        if not isinstance(argv, list) or not argv or not all(isinstance(word, str) for word in argv):
            raise protocol.ProtocolError("template: 'argv' must be a list of texts that names a program")
        if not isinstance(env, dict) or not all(isinstance(value, str) for value in env.values()):
            raise protocol.ProtocolError("template: 'env' must be an object of texts")
        self._children.start_template(protocol.text(packet, "key"), argv, env)

    def _on_retire(self, packet: Packet) -> None:
        self._children.retire(protocol.text(packet, "key"))

    def _on_fork(self, packet: Packet) -> None:
        args = packet.get("args")
        if not isinstance(args, dict):
            raise protocol.ProtocolError("fork: 'args' must be an object")
        self._children.fork(protocol.text(packet, "key"), protocol.text(packet, "wid"), args)

    def _on_kill(self, packet: Packet) -> None:
        number = int(protocol.number(packet, "signal"))
        if not 0 < number < 65:
            raise protocol.ProtocolError(f"kill: there is no signal {number}")
        self._children.kill(protocol.text(packet, "wid"), number)

    def _on_ack(self, packet: Packet) -> None:
        self._children.exits.pop(protocol.text(packet, "wid"), None)

    def _on_grace(self, packet: Packet) -> None:
        self._grace = protocol.number(packet, "seconds")

    def _on_guard(self, packet: Packet) -> None:
        wids = packet.get("wids")
        if not isinstance(wids, list) or not all(isinstance(wid, str) for wid in wids):
            raise protocol.ProtocolError("guard: 'wids' must be a list of texts")
        self._guard.set(protocol.number(packet, "until"), wids)

    def _on_absence(self, packet: Packet) -> None:
        self._absence.set(protocol.text(packet, "name"), protocol.number(packet, "after"))

    def _on_stop(self, _: Packet) -> None:
        self._stop_asked = True

    # -- the end

    def _end(self, reason: str) -> None:
        """The full stop: nothing of this node is left, except a supervised daemon that is leaving."""
        if self._ended:
            return
        self._ended = True
        kernel.say(f"ending everything: {reason}")
        self._alone_since = None
        self._daemons.stop_listening()
        ours = self._run_dir.close_entrance()
        wids = {*self._children.workers, *self._children.exits}
        self._kill_everything()
        groups.remove(self._tag)
        self._children.close()
        for name in list(self._kept):
            self._drop(name)
        if ours:
            self._run_dir.remove_worker_sockets(wids)
            if not self._daemons.living():  # else it removes its directory itself, and may still write there
                self._run_dir.remove_rest(everything=self._owner_pid is not None)
        self._daemons.close()  # last: it tells the daemon that all is done

    def _kill_everything(self) -> None:
        me = os.getpid()
        spared = self._supervised.pid if self._supervised else None
        deadline = time.monotonic() + STOP_LIMIT
        while True:
            while (pid := kernel.first_zombie()) is not None and pid != spared:
                os.waitpid(pid, 0)
            found = sweep.kill_all(
                lambda pid: pid != spared and (sweep.parent(pid) == me or sweep.wid_of(pid, self._tag) is not None)
            )
            if not found:
                return
            if time.monotonic() > deadline:
                kernel.say(f"{found} processes did not end within {STOP_LIMIT:g} s of SIGKILL; leaving them")
                return
            self._signals.wait(0.02)


def _watch_owner(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1


def _open_standard_files() -> None:
    """Without them a socket would get number 0, 1 or 2 and be handed to children as such."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)


def _tell_service_manager() -> None:
    """A service manager may be waiting until a daemon can connect. Not with --supervise: then that is our business."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path or "--supervise" in sys.argv:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect("\0" + path[1:] if path.startswith("@") else path)
            sock.send(b"READY=1")
    except OSError as error:
        kernel.say(f"the service manager cannot be told: {error}")


def _sweep_leftovers(tag: str) -> None:
    spared = sweep.ancestors()
    found = sweep.kill_all(lambda pid: pid not in spared and sweep.wid_of(pid, tag) is not None)
    if found:
        kernel.say(f"killed {found} processes that an earlier spawner of this node left")
    groups.remove(tag)


def run(argv: list[str]) -> int:
    """The whole life of the process; its exit code."""
    _open_standard_files()
    try:
        settings = Settings(argv)
        signals = Signals(interrupts=bool(settings.supervise))
        try:
            os.setsid()
        except PermissionError:
            pass  # it leads a process group or session already
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        oom_score = kernel.protect_from_oom()
        _sweep_leftovers(settings.tag)
        spawner = Spawner(settings, RunDir(settings.directory), signals, oom_score)
        if settings.ready_fd is not None:
            os.write(settings.ready_fd, b"1")
            os.close(settings.ready_fd)
        _tell_service_manager()
    except (options.OptionError, RunDirError, OSError) as error:
        print(f"noded spawner: {error}", file=sys.stderr)
        return OUT_OF_ORDER
    return spawner.serve()
