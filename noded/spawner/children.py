"""Templates and workers: starting, signalling, reaping, and reporting how they ended.

A worker that ended takes its process group, its session and everything with its mark along before its exit
is reported. Children that ended are looked at without reaping (WNOWAIT) until that is done: until then the
kernel cannot give their pids away. An ended child that is not known stays unreaped while a fork is under
way, because it may be a worker whose template has not reported its pid yet; otherwise it is somebody's
orphan and is reaped. Not here: who the daemon is and what it is told on attach (`daemons`, `core`).
"""

from __future__ import annotations

import os
import signal
import socket
import time

from noded.spawner import kernel, options, protocol, sweep
from noded.spawner.link import Link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from noded.spawner.protocol import Packet

# An orphan that ends so soon after a worker may have been that worker's, and may have left a child unseen.
ORPHANS_ARE_SUSPECT = 2.0
STDERR_KEPT = 4096
ASKING = (signal.SIGKILL, signal.SIGTERM)


class Template:
    def __init__(self, key: str, pid: int, link: Link, stderr: int) -> None:
        self.key = key
        self.pid = pid
        self.link = link
        self.stderr = stderr
        self.said = b""
        self.stderr_open = True
        self.forks: dict[str, list[int]] = {}  # wid -> signals to send once it exists

    def read_stderr(self) -> None:
        """Keep the last of what it wrote."""
        try:
            while self.stderr_open:
                piece = os.read(self.stderr, STDERR_KEPT)
                self.said = (self.said + piece)[-STDERR_KEPT:]
                self.stderr_open = bool(piece)
        except BlockingIOError:
            return

    def close(self) -> None:
        self.link.close()
        os.close(self.stderr)


class Worker:
    def __init__(self, wid: str, pid: int, key: str) -> None:
        self.wid = wid
        self.pid = pid
        self.key = key
        self.asked = False

    def signal_group(self, number: int) -> None:
        """It leads a session, and a group in that."""
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            self.signal(number)

    def signal(self, number: int) -> None:
        self.asked = self.asked or number in ASKING
        try:
            os.kill(self.pid, number)
        except PermissionError:
            kernel.say(f"worker {self.wid} (pid {self.pid}) runs as another user now: cannot signal it")


class Children:
    def __init__(self, directory: str, tag: str, oom_score: str | None, tell: Callable[[Packet], None]) -> None:
        self._directory = directory
        self._tag = tag
        self._oom_score = oom_score
        self._tell = tell
        self.templates: dict[str, Template] = {}
        self.workers: dict[str, Worker] = {}
        self.exits: dict[str, Packet] = {}
        self._suspect_until = 0.0

    # -- requests of the daemon

    def start_template(self, key: str, argv: list[str], env: dict[str, str]) -> None:
        """Start a template; a template of that key that lives stays."""
        if key in self.templates:
            return
        env = {**env, protocol.MARK: f"{self._tag}:{protocol.TEMPLATE_WID}"}
        try:
            self.templates[key] = self._started_template(key, argv, env)
        except (OSError, ValueError) as error:
            reason = f"cannot start template {key!r} with {argv[0]!r}: {error}"
            self._tell({"t": "template_exit", "key": key, "code": 127, "signal": None, "error": reason})

    def _started_template(self, key: str, argv: list[str], env: dict[str, str]) -> Template:
        read_end, write_end = os.pipe()
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                theirs.set_inheritable(True)
                argv = [*argv, "--fd", str(theirs.fileno()), "--dir", self._directory, "--tag", self._tag]
                pid = spawn(argv, env, self._oom_score, output=write_end)
            except (OSError, ValueError):
                ours.close()
                raise
            finally:
                theirs.close()
        except (OSError, ValueError):
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        os.set_blocking(read_end, False)
        return Template(key, pid, Link(ours), read_end)

    def retire(self, key: str) -> None:
        """End a template, which nobody will fork from any more. How it ended is reported as always."""
        if key in self.templates:
            os.kill(self.templates[key].pid, signal.SIGKILL)

    def fork(self, key: str, wid: str, args: Packet) -> None:
        """Ask the template for a worker."""
        template = self.templates.get(key)
        if not options.is_hex16(wid):
            self._fork_failed(wid, f"a worker id has 16 lower-case hexadecimal digits, {wid!r} has not")
        elif self._knows(wid):
            self._fork_failed(wid, f"worker id {wid} is in use; take a new one for each fork")
        elif template is None or not template.link.open:
            self._fork_failed(wid, f"there is no template {key!r}; send a template packet, then fork again")
        else:
            template.link.send({"t": "fork", "wid": wid, "args": args})
            template.forks[wid] = []

    def kill(self, wid: str, number: int) -> None:
        """Signal a worker, now or as soon as it exists. One that has ended is past it."""
        if wid in self.workers:
            if number == signal.SIGKILL:  # its group at once, and not when its end is seen: it may be forking
                self.workers[wid].asked = True
                self.workers[wid].signal_group(number)
            else:
                self.workers[wid].signal(number)
            return
        for template in self.templates.values():
            if wid in template.forks:
                template.forks[wid].append(number)

    def signal_group(self, wid: str, number: int) -> bool:
        """False when there is no such worker."""
        if wid in self.workers:
            self.workers[wid].signal_group(number)
        return wid in self.workers

    def _knows(self, wid: str) -> bool:
        pending = any(wid in template.forks for template in self.templates.values())
        return pending or wid in self.workers or wid in self.exits

    # -- answers of templates

    def read_template(self, template: Template) -> None:
        """Take what the template has answered; one that cannot be talked to any more is killed."""
        for packet, fds in template.link.read():
            protocol.close_all(fds)
            wid = packet.get("wid", "")
            if wid not in template.forks:
                template.link.refuse(f"template {template.key!r} answered for unknown worker id {wid!r}")
                break
            signals = template.forks.pop(wid)
            if packet["t"] == "forked":
                worker = self.workers[wid] = Worker(wid, packet["pid"], template.key)
                self._tell({"t": "forked", "wid": wid, "pid": worker.pid})
                for number in signals:
                    worker.signal(number)
            else:
                self._kill_strays()  # only the report of its pid may have failed
                self._fork_failed(wid, str(packet.get("error")))
        if template.link.dropped:
            os.kill(template.pid, signal.SIGKILL)

    def _fork_failed(self, wid: str, error: str) -> None:
        self._tell({"t": "fork_failed", "wid": wid, "error": error})

    # -- ends

    def reap(self, leave: int | None) -> None:
        """Deal with every child that has ended, but not `leave`: its owner waits for it itself."""
        orphans = 0
        while kernel.first_zombie() is not None:
            for template in list(self.templates.values()):
                self.read_template(template)
            templates = [each for each in self.templates.values() if kernel.is_zombie(each.pid)]
            workers = [each for each in self.workers.values() if kernel.is_zombie(each.pid)]
            if templates or workers:
                self._end(templates, workers)
                continue
            pid = kernel.first_zombie()
            if pid is None or pid == leave or any(each.forks for each in self.templates.values()):
                break
            if pid not in self._pids():  # else it has ended only now: the next round sees it
                os.waitpid(pid, 0)
                orphans += 1
        if orphans and time.monotonic() < self._suspect_until:
            self._kill_strays()

    def _kill_strays(self) -> None:
        known = self._pids()
        sweep.kill_all(lambda pid: pid not in known and self._is_stray(pid))

    def _pids(self) -> set[int]:
        return {each.pid for each in self.templates.values()} | {each.pid for each in self.workers.values()}

    def _end(self, templates: list[Template], workers: list[Worker]) -> None:
        for template in templates:
            self._forget(template)
        for worker in workers:
            del self.workers[worker.wid]
            try:
                # Its own group or none: the zombie still holds the number.
                os.killpg(worker.pid, signal.SIGKILL)
            except OSError:
                pass  # nobody is left in it, or nobody of this user
        if workers:
            self._suspect_until = time.monotonic() + ORPHANS_ARE_SUSPECT
        sessions = {each.pid for each in templates} | {each.pid for each in workers}
        known = sessions | self._pids()
        # A worker of an ended template is in the template's session until it has made its own: it is known.
        sweep.kill_all(lambda pid: pid not in known and (sweep.session(pid) in sessions or self._is_stray(pid)))
        for template in templates:
            self._report_template(template)
        for worker in workers:
            self._report_worker(worker)

    def _forget(self, template: Template) -> None:
        while template.link.open and template.forks:
            waiting = len(template.forks)
            self.read_template(template)
            if len(template.forks) == waiting:
                break
        template.read_stderr()
        template.close()
        del self.templates[template.key]

    def _is_stray(self, pid: int) -> bool:
        """True for a process with the mark of a worker or template that is not there (any more)."""
        wid = sweep.wid_of(pid, self._tag)
        if wid is None or wid in self.workers:
            return False
        if wid == protocol.TEMPLATE_WID:
            return not self.templates
        return not any(wid in template.forks for template in self.templates.values())

    def _report_template(self, template: Template) -> None:
        code, number = kernel.code_and_signal(os.waitpid(template.pid, 0)[1])
        for wid in template.forks:
            how = f"signal {number}" if code is None else f"exit code {code}"
            self._fork_failed(wid, f"template {template.key!r} ended with {how} before it had forked; fork again")
        said = template.said.decode("utf-8", "replace")
        self._tell({"t": "template_exit", "key": template.key, "code": code, "signal": number, "error": said})

    def _report_worker(self, worker: Worker) -> None:
        _, status, usage = os.wait4(worker.pid, 0)
        code, number = kernel.code_and_signal(status)
        self.exits[worker.wid] = packet = {
            "t": "exit",
            "wid": worker.wid,
            "pid": worker.pid,
            "code": code,
            "signal": number,
            "max_rss_kb": usage.ru_maxrss,
            "asked": worker.asked,
        }
        self._tell(packet)

    def close(self) -> None:
        """Let go of the templates' connections; their processes are ended by the caller."""
        for template in self.templates.values():
            template.close()
        self.templates.clear()


def spawn(argv: list[str], env: dict[str, str], oom_score: str | None, output: int | None = None) -> int:
    """Start a program in a session of its own, with default signals; `output` is for stdout and stderr."""
    actions: list[tuple[int, int, int] | tuple[int, int, str, int, int]] = []
    if output is not None:
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, output, 1),
            (os.POSIX_SPAWN_DUP2, output, 2),
        ]
    pid = os.posix_spawnp(
        argv[0], argv, env, file_actions=actions, setsid=True, setsigmask=(), setsigdef=kernel.IGNORED
    )
    if oom_score is not None:
        kernel.set_oom_score(pid, oom_score)
    return pid
