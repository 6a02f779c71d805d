"""The hosts of the tests themselves: what is done to one is what happens to it, and nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import pytest
from harness import delay, netns
from harness.members import Member, Members
from harness.netns import Host, Lan
from harness.wait import wait_for

from noded.config import process_state

# One thread per connection sends back what it gets; the port is the first line.
ECHO = """
import socket, threading
server = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
print(server.getsockname()[1], flush=True)
def echo(peer):
    try:
        while data := peer.recv(65536):
            peer.sendall(data)
    except OSError as error:
        print(type(error).__name__, flush=True)
while True:
    threading.Thread(target=echo, args=[server.accept()[0]], daemon=True).start()
"""

# Commands on stdin, an answer to each: "echo TEXT" and "connect" say what came back, or the error.
CLIENT = """
import socket, sys
host, port = sys.argv[1], int(sys.argv[2])
def connect():
    global peer
    peer = socket.create_connection((host, port), 0.3)
    return "connected"
def echo(text):
    peer.settimeout(0.3)
    peer.sendall(text.encode())
    return hear()
def hear():
    return peer.recv(1000).decode()
def patient():
    peer.settimeout(10)
    return hear()
for line in sys.stdin:
    name, *arguments = line.split()
    try:
        print(globals()[name](*arguments), flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
"""


class Program:
    """A program on a host that is told lines and says lines."""

    def __init__(self, host: Host, source: str, *arguments: str) -> None:
        argv = [sys.executable, "-c", source, *arguments]
        self.process = host.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def hear(self) -> str:
        assert self.process.stdout is not None
        return str(self.process.stdout.readline()).strip()

    def ask(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.hear()

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.kill()
        self.process.wait(10)
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def lan() -> Iterator[Lan]:
    if reason := netns.available():
        pytest.skip(reason)
    with Lan() as lan:
        yield lan


@pytest.fixture
def hosts(lan: Lan) -> Iterator[tuple[Host, Host]]:
    a, b = lan.host("a"), lan.host("b")
    yield a, b
    for host in lan.hosts.values():
        host.join()
        host.unblock()
        host.lose(0)
        host.rate(None)
        host.delay(None)
        assert host.reachable


@pytest.fixture
def server(hosts: tuple[Host, Host]) -> Iterator[tuple[Program, str]]:
    with Program(hosts[0], ECHO) as server:
        yield server, server.hear()


@pytest.fixture
def client(hosts: tuple[Host, Host], server: tuple[Program, str]) -> Iterator[Program]:
    """On host b, connected to the echo server of host a."""
    with Program(hosts[1], CLIENT, hosts[0].ip, server[1]) as client:
        assert client.ask("connect") == "connected"
        assert client.ask("echo one") == "one"
        yield client


def test_hosts_have_addresses_ports_and_directories_of_their_own(
    hosts: tuple[Host, Host], server: tuple[Program, str]
) -> None:
    a, b = hosts
    assert a.listening_ports() == {int(server[1])} and b.listening_ports() == set()
    with Program(b, CLIENT, a.ip6, server[1]) as client:
        assert client.ask("connect") == "connected"
        assert client.ask("echo six") == "six"
    assert {a.ip, a.ip6, a.mac}.isdisjoint({b.ip, b.ip6, b.mac})
    tokens = [Path(host.env["NODED_HOME"], "token") for host in hosts]
    assert tokens[0] != tokens[1] and tokens[0].read_text() == tokens[1].read_text()
    assert [path.stat().st_mode & 0o777 for path in tokens] == [0o600, 0o600]
    assert a.run(["printenv", "NODED_RUN_DIR"]).stdout.strip() == a.env["NODED_RUN_DIR"]
    assert len(a.env["NODED_RUN_DIR"]) < 60  # leaves room for the path of a socket


def test_after_a_cut_nobody_is_told_and_the_data_come_when_joined_again(
    hosts: tuple[Host, Host], client: Program
) -> None:
    hosts[0].cut()
    assert not hosts[0].reachable
    assert client.ask("echo two") == "TimeoutError"
    assert client.ask("connect") in ("TimeoutError", "OSError")  # or no route, once nobody answers to ARP
    with Program(hosts[1], CLIENT, hosts[0].ip, "1") as other:
        assert other.ask("connect") != "ConnectionRefusedError"
    hosts[0].join()
    assert hosts[0].reachable


def test_a_connection_survives_a_cut(hosts: tuple[Host, Host], client: Program) -> None:
    hosts[1].cut()
    assert client.ask("echo two") == "TimeoutError"
    hosts[1].join()
    assert client.ask("patient") == "two"
    assert client.ask("echo three") == "three"


@pytest.mark.parametrize("direction", ["in", "out"])
def test_blocked_one_way(hosts: tuple[Host, Host], client: Program, direction: netns.Direction) -> None:
    a, b = hosts
    listen = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 9)); s.settimeout(0.3)\n"
    listen += "print('bound', flush=True)\ntry: print(s.recv(99).decode())\nexcept TimeoutError: print('nothing')"
    say = "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'word', ({!r}, 9))"
    a.block(direction, b)
    assert client.ask("echo two") == "TimeoutError"
    heard = {}
    for receiver, sender in ((a, b), (b, a)):
        with Program(receiver, listen) as program:
            assert program.hear() == "bound"
            sender.python(say.format(receiver.ip))
            heard[receiver.name] = program.hear()
    assert heard == ({"a": "nothing", "b": "word"} if direction == "in" else {"a": "word", "b": "nothing"})
    a.unblock()
    assert client.ask("patient") == "two"


def test_a_block_of_one_peer_leaves_the_others(lan: Lan, hosts: tuple[Host, Host], server: tuple[Program, str]) -> None:
    a, b = hosts
    a.block("in", b)
    with Program(lan.host("c"), CLIENT, a.ip, server[1]) as c:
        assert c.ask("connect") == "connected"
        assert c.ask("echo c") == "c"
        a.block("out")
        assert c.ask("echo d") == "TimeoutError"
        a.unblock()
        assert c.ask("patient") == "d"


def test_a_reject_is_a_reset_for_both_sides(
    hosts: tuple[Host, Host], server: tuple[Program, str], client: Program
) -> None:
    hosts[0].reject(hosts[1])
    assert client.ask("echo two") == "ConnectionResetError"
    assert client.ask("connect") == "ConnectionRefusedError"
    hosts[0].unblock()
    assert client.ask("connect") == "connected"
    assert client.ask("echo three") == "three"
    # The other way around, the one that rejects speaks first.
    hosts[1].reject()
    assert client.ask("echo four") == "ConnectionResetError"


def test_rate(hosts: tuple[Host, Host], server: tuple[Program, str]) -> None:
    a, b = hosts
    copy = """
        import socket, sys, threading, time
        peer = socket.create_connection((sys.argv[1], int(sys.argv[2])))
        started = time.monotonic()
        threading.Thread(target=peer.sendall, args=[bytes(5_000_000)]).start()
        left = 5_000_000
        while left:
            left -= len(peer.recv(1 << 20))
        print(time.monotonic() - started)
    """
    seconds = {}
    for mbit in (100.0, None):
        a.rate(mbit)
        seconds[mbit] = float(b.python(copy, a.ip, server[1]))
    assert seconds[100.0] >= 0.3
    assert seconds[None] < seconds[100.0]


def test_loss(hosts: tuple[Host, Host]) -> None:
    a, b = hosts
    listen = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 9))\n"
    listen += "print('bound', flush=True)\ncount = 0\nwhile s.recv(9) != b'end': count += 1\nprint(count, flush=True)"
    say = "import socket; s = socket.socket(type=socket.SOCK_DGRAM)\nfor _ in range({}): s.sendto({!r}, ({!r}, 9))"
    a.lose(0.5)
    with Program(a, listen) as program:
        assert program.hear() == "bound"
        b.python(say.format(400, b"word", a.ip))
        a.lose(0)
        b.python(say.format(1, b"end", a.ip))
        assert 100 < int(program.hear()) < 300


@pytest.mark.skipif(not os.path.exists(delay.DEVICE), reason=f"no {delay.DEVICE}")
def test_delay_goes_with_the_other_faults(hosts: tuple[Host, Host], client: Program) -> None:
    def round_trip(text: str) -> float:
        started = time.monotonic()
        assert client.ask(f"echo {text}") == text
        return time.monotonic() - started

    hosts[0].delay(40)
    wait_for(lambda: client.ask("echo x") == "x", "the delayed host never answered")
    assert 0.08 <= min(round_trip(text) for text in "abc")
    hosts[0].block("out", hosts[1])
    assert client.ask("echo two") == "TimeoutError"
    hosts[0].unblock()
    assert client.ask("patient") == "two"
    hosts[0].delay(None)
    assert min(round_trip(text) for text in "def") < 0.08


def test_nothing_is_left_of_a_lan(lan: Lan) -> None:
    def names() -> set[str]:
        prefix = f"ndt-{os.getpid()}-"
        return {name for name in os.listdir(netns.NAMESPACES) if name.startswith(prefix)}

    before = names()
    devices = os.listdir("/sys/class/net")
    with Lan() as other:
        host = other.host("x")
        other.host("y").cut()
        if os.path.exists(delay.DEVICE):
            host.delay(1)
        # It has left its parent and its session.
        orphan = "setsid sleep 1000 >/dev/null 2>&1 & echo $!"
        pid = int(host.run(["sh", "-c", orphan]).stdout)
        child = host.popen(["sleep", "1000"])
        assert len(names() - before) == 3 and other.dir.is_dir()
    assert names() == before
    assert not other.dir.exists()
    assert child.returncode == -signal.SIGKILL
    assert process_state(pid) is None
    assert os.listdir("/sys/class/net") == devices


def test_what_a_killed_test_process_leaves_is_swept(lan: Lan) -> None:
    source = """if True:
        import os, signal, subprocess, sys
        sys.path[:0] = sys.argv[1:]
        from harness.netns import Lan
        lan = Lan().__enter__()
        sleeper = lan.host("x").popen(["sleep", "1000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        print(lan.namespace, sleeper.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    tests = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", source, str(tests), str(tests.parent)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    name, pid = done.stdout.split()
    netns.sweep()
    assert not [each for each in os.listdir(netns.NAMESPACES) if each.startswith(name)]
    assert process_state(int(pid)) is None


def test_a_head_on_a_host_and_one_without(lan: Lan, hosts: tuple[Host, Host]) -> None:
    a, _ = hosts
    with Members("--object-store-memory", "80MB", host=a, num_cpus=1) as cluster:
        head = cluster.head
        assert head.address.startswith(a.ip + ":")
        assert int(head.address.rpartition(":")[2]) in a.listening_ports()
        with a.driver("say('got', noded.get(noded.remote(os.getpid).remote(), timeout=20)); hear()") as driver:
            pid = int(driver.expect("got"))
            assert os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat(netns.NAMESPACES / a.namespace).st_ino
            assert pid in {process.pid for process in cluster.processes()}
            head.restart()
            driver.tell("end")
            driver.end()
        assert cluster.settle()["head"]["state"] == "READY"
        # Members of one machine: each can be stopped alone.
        with Member(head=True, cluster=head.cluster + "b", num_cpus=1) as other:
            other.signal(signal.SIGSTOP)
            other.stop()
            assert not other.processes() and head.processes()
        cluster.stop()
        assert not cluster.processes()
