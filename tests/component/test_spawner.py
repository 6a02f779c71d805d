"""The spawner and the template with real processes: forks, ends, attaching, sweeping, supervising.

The test process itself is the daemon where that is enough; a daemon that must die is a child running DAEMON.
Workers run `run(args)` of TARGETS, which does what args["do"] says.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.wait import wait_for

from noded.spawner import protocol
from noded.wire.dial import says

ROOT = Path(__file__).resolve().parents[2]
SPAWNER = [sys.executable, "-I", "-S", str(ROOT / "noded/spawner/__main__.py")]

TARGETS = """
import json, os, random, signal, subprocess, sys, time
import numpy.random
loaded = set()

def run(args):
    return globals()["do_" + args["do"]](args)

def do_exit(args):
    return args["code"]

def do_leave(args):
    sys.exit(args["code"])

def do_fail(args):
    raise ValueError("nothing to be done")

def do_signal(args):
    os.kill(os.getpid(), args["signal"])

def do_wait(args):
    while True:
        signal.pause()

def do_report(args):
    at = time.monotonic()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(read_end, 1)
        os._exit(0)
    with open(f"/proc/{child}/environ", "rb") as file:
        environ = file.read()
    print(json.dumps({
        "pid": os.getpid(), "ppid": os.getppid(), "sid": os.getsid(0), "mark": os.environ["NODED_MARK"],
        "mark of a fork": next(v for v in environ.decode().split(chr(0)) if v.startswith("NODED_MARK=")),
        "mark of an exec": subprocess.check_output(["sh", "-c", "echo $NODED_MARK"], text=True).strip(),
        "random": random.random(), "numpy": float(numpy.random.random()), "at": at,
        "imported": sorted(set(sys.modules) - loaded), "threads": os.environ.get("OMP_NUM_THREADS"),
        "files": sorted(int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2),
        "handlers": [int(n) for n in signal.valid_signals() if signal.getsignal(n) != signal.SIG_DFL],
    }))
    print("to stderr", file=sys.stderr)
    os.write(write_end, b"1")
    os.waitpid(child, 0)

def do_descend(args):
    here = args["dir"]
    def loiter(name):
        with open(os.path.join(here, name + ".tmp"), "w") as file:
            file.write(str(os.getpid()))
        os.rename(os.path.join(here, name + ".tmp"), os.path.join(here, name))
        while True:
            time.sleep(1000)
    if os.fork() == 0:
        loiter("plain")
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            loiter("daemonized")
        os._exit(0)
    subprocess.Popen(["sleep", "1000.25"], start_new_session=True)
    subprocess.Popen(["env", "-i", "sleep", "1000.5"])
    if os.fork() == 0:
        os.setpgid(0, 0)
        loiter("group")
    while True:
        time.sleep(1000)
"""

SNAPSHOT = """
import sys, targets
targets.loaded.update(sys.modules, ["snapshot"])
"""

THREADED = """
import threading, time
threading.Thread(target=time.sleep, args=(1000,), name="ticker", daemon=True).start()
"""

# A daemon that must die: it leaves a descriptor, a worker that runs and one whose exit nobody has acked.
DAEMON = """
import json, os, signal, socket, sys
path, fork, wids = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:]
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect(path)
say = lambda **packet: sock.send(json.dumps(packet).encode())
say(t="hello", protocol=2)
assert json.loads(sock.recv(65536))["epoch"] == 1
read_end, write_end = os.pipe()
os.write(write_end, b"kept")
socket.send_fds(sock, [json.dumps({"t": "keep", "name": "pipe"}).encode()], [read_end])
say(**fork["template"])
for wid, args in zip(wids, fork["args"]):
    say(t="fork", key="default", wid=wid, args=args)
ended = forked = 0
while ended < 1 or forked < 2:
    packet = json.loads(sock.recv(65536))
    ended += packet["t"] == "exit"
    forked += packet["t"] == "forked"
print("ready", flush=True)
signal.pause()
"""


def alive(pid: int) -> bool:
    """True while the process runs (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def marked(tag: str) -> list[int]:
    """All running processes with the mark of this node."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and alive(int(entry)):
            try:
                environ = Path(f"/proc/{entry}/environ").read_bytes()
            except OSError:
                continue
            if f"NODED_MARK={tag}:".encode() in environ:
                found.append(int(entry))
    return found


def new_wid() -> str:
    return secrets.token_hex(8)


class Daemon:
    """This process as the daemon of a spawner."""

    def __init__(self, node: Node, hello: bool = True) -> None:
        self.node = node
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(20)
        self.sock.connect(str(node.dir / "spawner.sock"))
        self._unread: list[protocol.Packet] = []
        self.welcome = protocol.Welcome()
        if hello:
            self.send(t="hello", protocol=protocol.PROTOCOL)
            while not self.welcome.add(*protocol.recv(self.sock)):
                pass

    def send(self, *fds: int, **packet: Any) -> None:
        protocol.send(self.sock, packet, fds)

    def expect(self, t: str, **fields: Any) -> protocol.Packet:
        """The first packet like this; others are kept for later."""
        wanted = {"t": t, **fields}
        while True:
            for packet in self._unread:
                if wanted.items() <= packet.items():
                    self._unread.remove(packet)
                    return packet
            self._unread.append(protocol.recv(self.sock)[0])

    def template(self, key: str = "default", **more: Any) -> None:
        self.send(**{**self.node.template(key), **more})

    def fork(self, do: str, key: str = "default", **args: Any) -> str:
        wid = new_wid()
        self.send(t="fork", key=key, wid=wid, args=self.node.args(wid, do, **args))
        return wid

    def forked(self, do: str, **args: Any) -> tuple[str, int]:
        wid = self.fork(do, **args)
        return wid, self.expect("forked", wid=wid)["pid"]

    def wait_for_end(self) -> None:
        """Until the spawner has ended this connection."""
        with pytest.raises(EOFError):
            while True:
                self._unread.append(protocol.recv(self.sock)[0])


class Node:
    """A run directory and the processes started for it."""

    def __init__(self, directory: Path) -> None:
        self.dir = directory
        self.tag = secrets.token_hex(8)
        self.processes: list[subprocess.Popen[str]] = []
        self.daemons: list[Daemon] = []
        (directory / "w").mkdir()
        for name, text in (("targets", TARGETS), ("snapshot", SNAPSHOT), ("threaded", THREADED)):
            (directory / f"{name}.py").write_text(text)

    def start(self, *options: str) -> subprocess.Popen[str]:
        """A spawner that listens."""
        read_end, write_end = os.pipe()
        command = [
            *SPAWNER,
            "--dir",
            str(self.dir),
            "--tag",
            self.tag,
            "--ready-fd",
            str(write_end),
            *options,
        ]
        process = self.popen(command, pass_fds=(write_end,), start_new_session=True)
        os.close(write_end)
        with os.fdopen(read_end, "rb") as ready:
            assert ready.read() == b"1", "the spawner did not get ready"
        return process

    def popen(self, command: list[str], **how: Any) -> subprocess.Popen[str]:
        env = {**os.environ, "PYTHONPATH": f"{ROOT}:{self.dir}"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, **how)
        self.processes.append(process)
        return process

    def daemon(self, hello: bool = True) -> Daemon:
        self.daemons.append(Daemon(self, hello))
        return self.daemons[-1]

    def template(self, key: str = "default") -> dict[str, Any]:
        command = [sys.executable, "-m", "noded.template", "--target", "targets:run", "--preload", "snapshot"]
        env = {**os.environ, "PYTHONPATH": f"{ROOT}:{self.dir}"}
        env.pop("OMP_NUM_THREADS", None)
        return {"t": "template", "key": key, "argv": command, "env": env}

    def args(self, wid: str, do: str, **more: Any) -> dict[str, Any]:
        files = {"stdout": str(self.dir / f"{wid}.out"), "stderr": str(self.dir / f"{wid}.err")}
        return {**files, "do": do, "dir": str(self.dir), **more}

    def close(self) -> None:
        for daemon in self.daemons:
            daemon.sock.close()
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
        for pid in marked(self.tag):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.close()


def ended(process: subprocess.Popen[str], reason: str) -> int:
    wait_for(lambda: process.poll() is not None, reason)
    return process.returncode


def test_worker_is_set_up_and_reported(node: Node) -> None:
    spawner = node.start()
    daemon = node.daemon()
    assert (daemon.welcome.epoch, daemon.welcome.spawner_pid) == (1, spawner.pid)
    daemon.template()
    first, first_pid = daemon.forked("report")
    assert daemon.expect("exit", wid=first)["code"] == 0
    second, _ = daemon.forked("report")
    packet = daemon.expect("exit", wid=second)
    assert (packet["code"], packet["signal"], packet["asked"]) == (0, None, False)
    assert 1_000 < packet["max_rss_kb"] < 1_000_000

    said = [json.loads((node.dir / f"{wid}.out").read_text()) for wid in (first, second)]
    report, mark = said[0], f"{node.tag}:{first}"
    assert (report["pid"], report["ppid"], report["sid"]) == (first_pid, spawner.pid, first_pid)
    assert report["mark"] == mark
    assert report["mark of a fork"] == f"NODED_MARK={mark}"
    assert report["mark of an exec"] == mark
    assert report["imported"] == []
    assert report["threads"] is None
    assert report["handlers"] == [signal.SIGPIPE]
    assert len(report["files"]) == 3, "its pipe and the directory being listed, nothing inherited"
    assert said[0]["random"] != said[1]["random"]
    assert said[0]["numpy"] != said[1]["numpy"]
    assert (node.dir / f"{first}.err").read_text() == "to stderr\n"
    assert (node.dir / f"{first}.err").stat().st_mode & 0o777 == 0o600


def test_ways_to_end(node: Node) -> None:
    node.start()
    daemon = node.daemon()
    daemon.template()
    cases: list[tuple[str, dict[str, int], tuple[int | None, int | None]]] = [
        ("exit", {"code": 7}, (7, None)),
        ("leave", {"code": 8}, (8, None)),
        ("fail", {}, (1, None)),
        ("signal", {"signal": 11}, (None, 11)),
    ]
    wids = [daemon.fork(do, **args) for do, args, _ in cases]
    for wid, (_, _, expected) in zip(wids, cases, strict=True):
        packet = daemon.expect("exit", wid=wid)
        assert (packet["code"], packet["signal"], packet["asked"]) == (*expected, False)
    assert "ValueError: nothing to be done" in (node.dir / f"{wids[2]}.err").read_text()

    running, _ = daemon.forked("wait")
    daemon.send(t="kill", wid=running, signal=9)
    packet = daemon.expect("exit", wid=running)
    assert (packet["code"], packet["signal"], packet["asked"]) == (None, 9, True)
    unborn = daemon.fork("wait")
    daemon.send(t="kill", wid=unborn, signal=9)
    assert daemon.expect("exit", wid=unborn)["asked"]

    daemon.send(t="fork", key="default", wid=unborn, args=node.args(unborn, "exit"))
    assert "in use" in daemon.expect("fork_failed", wid=unborn)["error"]
    assert "no template 'other'" in daemon.expect("fork_failed", wid=daemon.fork("exit", key="other"))["error"]


def test_attaching_again(node: Node) -> None:
    spawner = node.start()
    runs, done = new_wid(), new_wid()
    plan = {"template": node.template(), "args": [node.args(runs, "wait"), node.args(done, "exit", code=3)]}
    command = [sys.executable, "-c", DAEMON, str(node.dir / "spawner.sock"), json.dumps(plan), runs, done]
    older = node.popen(command)
    assert older.stdout and older.stdout.readline() == "ready\n"
    os.kill(older.pid, signal.SIGSTOP)

    daemon = node.daemon()
    assert ended(older, "the superseded, stopped daemon was not killed") == -signal.SIGKILL
    welcome = daemon.welcome
    assert (welcome.epoch, welcome.spawner_pid, welcome.templates) == (2, spawner.pid, ["default"])
    assert [(each["wid"], each["key"]) for each in welcome.workers] == [(runs, "default")]
    assert [(each["wid"], each["code"]) for each in welcome.exits] == [(done, 3)]
    assert os.read(welcome.fds["pipe"], 10) == b"kept"
    assert not os.get_inheritable(welcome.fds["pipe"])
    os.close(welcome.fds["pipe"])

    daemon.send(t="ack", wid=done)
    daemon.send(t="forget", name="pipe")
    again = node.daemon()  # of the same process: nobody is killed
    daemon.wait_for_end()
    assert (again.welcome.epoch, again.welcome.exits, again.welcome.fds) == (3, [], {})
    assert alive(again.welcome.workers[0]["pid"])
    again.send(t="kill", wid=runs, signal=15)
    assert again.expect("exit", wid=runs)["signal"] == 15


def test_who_comes_to_a_daemon_that_is_away_is_told_so(node: Node) -> None:
    node.start()
    daemon = node.daemon()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        daemon.send(listener.fileno(), t="keep", name="tcp")
        daemon.send(t="absence", name="tcp", after=0.2)
        assert not says(address, protocol.AWAY, timeout=0.5), "the daemon is there"
        daemon.sock.close()
        wait_for(lambda: says(address, protocol.AWAY), "nobody says that the daemon is away")
        again = node.daemon()
        protocol.close_all(again.welcome.fds.values())
        assert not says(address, protocol.AWAY, timeout=0.5), "the daemon is there again"


def test_many_descriptors_and_unread_answers(node: Node) -> None:
    node.start()
    daemon = node.daemon()
    for at in range(250):
        with open(os.devnull) as file:
            daemon.send(file.fileno(), t="keep", name=f"fd {at}")
    # A daemon that does not read must not stall the spawner, so these sends come through.
    wids = [daemon.fork("exit", key="none") for _ in range(3000)]
    for wid in wids:
        assert daemon.expect("fork_failed")["wid"] == wid
    again = node.daemon()
    assert list(again.welcome.fds) == [f"fd {at}" for at in range(250)]
    protocol.close_all(again.welcome.fds.values())


def test_strangers_are_refused(node: Node) -> None:
    node.start("--grace", "0.2")
    daemon = node.daemon()
    for packet, reason in (
        ({"t": "hello", "protocol": 99}, "speaks protocol 2 to 3, the daemon 99"),
        ({"t": "stop"}, "first packet must be hello"),
    ):
        stranger = node.daemon(hello=False)
        stranger.send(**packet)
        assert reason in stranger.expect("refused")["reason"]
        stranger.wait_for_end()
    daemon.send(t="grace", seconds=60)
    daemon.send(t="fork", key="x", wid="y", args={})
    assert "16 lower-case" in daemon.expect("fork_failed")["error"], "the daemon was disturbed by strangers"
    daemon.send(t="fork", key="x")
    assert "'args' must be an object" in daemon.expect("refused")["reason"]
    assert node.daemon().welcome.epoch == 2


@pytest.mark.parametrize("how", ["grace", "stop", "SIGTERM", "owner"])
def test_full_stop(node: Node, how: str) -> None:
    owner = node.popen(["sleep", "1000"])
    spawner = node.start("--owner-pid", str(owner.pid))
    daemon = node.daemon()
    daemon.template()
    _, pid = daemon.forked("wait")
    daemon.forked("descend")
    wait_for((node.dir / "daemonized").exists, "the descendants did not start")
    for name in ("w/0123.sock", "control.sock", "node.json"):
        (node.dir / name).touch()
    if how == "grace":
        daemon.send(t="grace", seconds=0.05)
        daemon.sock.shutdown(socket.SHUT_RDWR)
    elif how == "stop":
        daemon.send(t="stop")
        daemon.wait_for_end()
        assert marked(node.tag) == [], "the connection ended before everything had"
    elif how == "SIGTERM":
        spawner.terminate()
    else:
        owner.kill()
        owner.wait()
    assert ended(spawner, f"no full stop after {how}") == 0
    assert not alive(pid)
    assert marked(node.tag) == []
    left = {str(path.relative_to(node.dir)) for path in node.dir.rglob("*")}
    assert not left & {"w/0123.sock", "control.sock", "node.json", "spawner.sock"}


def test_descendants_end_with_their_worker(node: Node) -> None:
    node.start()
    daemon = node.daemon()
    daemon.template()
    bystander, bystander_pid = daemon.forked("wait")
    wid, pid = daemon.forked("descend")
    for name in ("plain", "daemonized", "group"):
        wait_for((node.dir / name).exists, f"the descendant {name} did not start")
    everything = wait_for(
        lambda: found if len(found := marked_or_in_session(node.tag, wid, pid)) >= 6 else None,
        "not all descendants run",
    )
    os.kill(pid, signal.SIGKILL)
    packet = daemon.expect("exit", wid=wid)
    assert (packet["signal"], packet["asked"]) == (9, False)
    wait_for(lambda: not any(map(alive, everything)), lambda: f"alive: {list(filter(alive, everything))}")
    assert alive(bystander_pid)
    daemon.send(t="kill", wid=bystander, signal=9)
    daemon.expect("exit", wid=bystander)


def marked_or_in_session(tag: str, wid: str, session: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        try:
            environ = Path(f"/proc/{entry}/environ").read_bytes() if entry.isdecimal() else b""
            if f"{tag}:{wid}".encode() in environ or (entry.isdecimal() and os.getsid(int(entry)) == session):
                found.append(int(entry))
        except OSError:
            continue
    return found


def test_sweep_at_start(node: Node) -> None:
    env = {**os.environ, "NODED_MARK": f"{node.tag}:{new_wid()}"}
    other = {**os.environ, "NODED_MARK": f"{secrets.token_hex(8)}:{new_wid()}"}
    leftover, stranger = (subprocess.Popen(["sleep", "1000"], env=each) for each in (env, other))
    try:
        node.start()
        assert leftover.wait(timeout=10) == -signal.SIGKILL
        assert stranger.poll() is None
    finally:
        for process in (leftover, stranger):
            process.kill()
            process.wait()


def test_spawner_killed_takes_its_workers(node: Node) -> None:
    spawner = node.start()
    daemon = node.daemon()
    daemon.template()
    daemon.forked("wait")
    family = marked(node.tag)
    assert len(family) == 2
    spawner.kill()
    wait_for(lambda: not marked(node.tag), "template or worker outlived the spawner")
    daemon.sock.close()
    assert node.start("--grace", "60").poll() is None, "the dead spawner's socket was in the way"
    second = subprocess.run(
        [*SPAWNER, "--dir", str(node.dir), "--tag", secrets.token_hex(8)], capture_output=True, text=True
    )
    assert (second.returncode, "another spawner answers" in second.stderr) == (2, True)


def template_pid(node: Node) -> int:
    return next(pid for pid in marked(node.tag) if b"noded.template" in Path(f"/proc/{pid}/cmdline").read_bytes())


def test_template_killed(node: Node) -> None:
    node.start()
    daemon = node.daemon()
    daemon.template()
    survivor, survivor_pid = daemon.forked("wait")
    pid = template_pid(node)
    os.kill(pid, signal.SIGSTOP)
    lost = daemon.fork("wait")
    daemon.expect("fork_failed", wid=daemon.fork("wait", key="none"))  # so the one before is on its way
    os.kill(pid, signal.SIGKILL)
    assert "ended with signal 9" in daemon.expect("fork_failed", wid=lost)["error"]
    assert daemon.expect("template_exit", key="default")["signal"] == 9
    assert alive(survivor_pid)
    daemon.template()
    assert daemon.expect("exit", wid=daemon.fork("exit", code=0))["code"] == 0
    assert alive(survivor_pid)
    daemon.send(t="kill", wid=survivor, signal=9)
    daemon.expect("exit", wid=survivor)


def test_template_that_takes_nothing(node: Node) -> None:
    node.start()
    daemon = node.daemon()
    daemon.template()
    daemon.expect("exit", wid=daemon.fork("exit", code=0))
    os.kill(template_pid(node), signal.SIGSTOP)
    wids = [daemon.fork("exit", padding="x" * 60_000) for _ in range(100)]
    for wid in wids:
        daemon.expect("fork_failed", wid=wid)
    assert daemon.expect("template_exit", key="default")["signal"] == signal.SIGKILL


def test_unfit_templates(node: Node) -> None:
    node.start()
    daemon = node.daemon()
    daemon.template("threaded", argv=[*node.template()["argv"], "threaded"])
    daemon.template("missing", argv=[*node.template()["argv"], "no_such_module"])
    daemon.template("nothing", argv=["/no/such/program"])
    lost = daemon.fork("exit", key="threaded")
    packet = daemon.expect("template_exit", key="threaded")
    assert packet["code"] == 3 and "2 threads run after the preload (MainThread, ticker)" in packet["error"]
    assert "exit code 3" in daemon.expect("fork_failed", wid=lost)["error"]
    packet = daemon.expect("template_exit", key="missing")
    assert packet["code"] == 1 and "No module named 'no_such_module'" in packet["error"]
    packet = daemon.expect("template_exit", key="nothing")
    assert packet["code"] == 127 and "/no/such/program" in packet["error"]


# Says hello, notes its pid, and ends as the file `order` says; SIGTERM is noted.
SUPERVISED = """
import json, os, signal, socket, sys, time
here = sys.argv[1]
def note(what):
    with open(os.path.join(here, "notes"), "a") as file:
        file.write(f"{what} {os.getpid()}\\n")
def on_term(*_):
    note("term")
    os._exit(0)
signal.signal(signal.SIGTERM, on_term)
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect(os.path.join(here, "spawner.sock"))
sock.send(b'{"t":"hello","protocol":2}')
sock.recv(65536)
note("up")
signal.signal(signal.SIGUSR1, lambda *_: sock.send(b'{"t":"stop"}'))
while sock.recv(65536):
    pass
note("stopped")
"""


@pytest.mark.parametrize("end", ["SIGTERM", "stop"])
def test_supervise(node: Node, end: str) -> None:
    command = [sys.executable, "-I", "-S", "-c", SUPERVISED, str(node.dir)]
    spawner = node.start("--supervise", json.dumps(command))

    def notes() -> list[list[str]]:
        path = node.dir / "notes"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    first = int(wait_for(notes, "the daemon was not started")[0][1])
    assert os.getsid(first) == first
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: len(notes()) == 2, "the daemon was not started again")
    second = int(notes()[1][1])
    assert second != first
    if end == "SIGTERM":
        spawner.terminate()
    else:
        os.kill(second, signal.SIGUSR1)
    assert ended(spawner, f"no full stop after {end}") == 0
    assert notes()[2:] == [["term" if end == "SIGTERM" else "stopped", str(second)]]
    assert not alive(second)


def test_supervised_daemon_that_never_comes(node: Node) -> None:
    spawner = node.start("--supervise", '["false"]', "--grace", "0.3")
    assert ended(spawner, "the grace did not end a spawner without a daemon") == 1


@pytest.mark.parametrize(("code", "expected"), [(3, 3), (4, 4), (0, 1)])
def test_supervised_daemon_that_ends_before_it_has_come(node: Node, code: int, expected: int) -> None:
    """A failure is final; an end in order is not, until the grace is over."""
    spawner = node.start("--supervise", json.dumps(["sh", "-c", f"exit {code}"]), "--grace", "0.5")
    assert ended(spawner, "it goes on") == expected


def test_superseded_daemon_is_not_started_again(node: Node) -> None:
    superseded = SUPERVISED.replace("os._exit(0)", "os._exit(3)")
    assert superseded != SUPERVISED
    command = [sys.executable, "-I", "-S", "-c", superseded, str(node.dir)]
    spawner = node.start("--supervise", json.dumps(command))
    notes = node.dir / "notes"
    wait_for(lambda: notes.exists() and notes.read_text(), "the daemon was not started")
    os.kill(int(notes.read_text().split()[1]), signal.SIGTERM)
    assert ended(spawner, "it goes on") == 3
    assert notes.read_text().count("up") == 1


def test_packets(node: Node) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        faults: list[Callable[[], object]] = [
            lambda: protocol.send(ours, {"t": "x", "long": "x" * protocol.MAX_PACKET}),
            lambda: (ours.send(b"no json"), protocol.recv(theirs)),
            lambda: (ours.send(b'{"no":"t"}'), protocol.recv(theirs)),
            lambda: (ours.send(b"x" * (protocol.MAX_PACKET + 1)), protocol.recv(theirs)),
        ]
        for fault in faults:
            with pytest.raises(protocol.ProtocolError):
                fault()
        protocol.send(ours, {"t": "x"}, [ours.fileno(), theirs.fileno()])
        packet, fds = protocol.recv(theirs)
        assert (packet, len(fds)) == ({"t": "x"}, 2)
        protocol.close_all(fds)


def test_fork_is_fast(node: Node) -> None:
    node.start()
    daemon = node.daemon()
    daemon.template()
    taken = []
    for _ in range(10):
        before = time.monotonic()
        wid = daemon.fork("report")
        daemon.expect("exit", wid=wid)
        taken.append(json.loads((node.dir / f"{wid}.out").read_text())["at"] - before)
    # It is a few milliseconds; the bound only catches an import or a sleep in the path.
    assert sorted(taken)[len(taken) // 2] < 0.05
