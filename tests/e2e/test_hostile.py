"""Peers that lie, babble, or say nothing: each is told what is wrong, and the daemon lives on and works.

Everything is done to a real `noded --head` and its workers; after each attack the node runs a task.
"""

from __future__ import annotations

import http.client
import os
import random
import re
import select
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.cluster import REPOSITORY, Node, noded_command
from harness.wait import wait_for

import noded
from noded.wire import messages as m
from noded.wire.handshake import ClientHandshake, HandshakeError
from noded.wire.link import Link, LinkClosed

SECONDS = 20.0
MB = 1 << 20
_LENGTHS = struct.Struct("<II")


@pytest.fixture
def node() -> Iterator[Node]:
    with Node("--object-store-memory", str(96 * MB)) as node:
        yield node


def runs_a_task(node: Node) -> None:
    assert node.running, f"the daemon has ended; {node.output()}"
    noded.init(address=node.address, log_to_driver=False)
    try:

        @noded.remote
        def add(a: int, b: int) -> int:
            return a + b

        assert noded.get(add.remote(20, 22), timeout=SECONDS) == 42
    finally:
        noded.shutdown()


def anonymous_mb(pid: int) -> int:
    """Memory of its own, without the arena."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) >> 10


def control(node: Node) -> socket.socket:
    return _connect(os.path.join(node.dir, "control.sock"))


def _connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(SECONDS)
    sock.connect(path)
    return sock


def tcp(node: Node) -> socket.socket:
    host, _, port = node.address.rpartition(":")
    return socket.create_connection((host, int(port)), SECONDS)


def frame(message: Any, payload: bytes = b"") -> bytes:
    header = m.encode(message)
    return _LENGTHS.pack(len(header), len(payload)) + header + payload


def attach(**changed: Any) -> m.Attach:
    given: dict[str, Any] = {"version": m.PROTOCOL_VERSION, "kind": "driver", "prefix": os.urandom(7), "pid": 1}
    return m.Attach(**{**given, **changed})


def until_closed(sock: socket.socket) -> bytes:
    """All that comes until the other side closes; it must."""
    got = b""
    try:
        while chunk := sock.recv(65536):
            got += chunk
    except ConnectionResetError:
        pass
    return got


def refusal(answer: bytes) -> str:
    """The text of the Refused that these bytes are."""
    header, payload = _LENGTHS.unpack_from(answer)
    assert len(answer) == 8 + header + payload
    message = m.decode_to_client(answer[8 : 8 + header])
    assert isinstance(message, m.Refused)
    return message.reason


BABBLE: dict[str, bytes] = {
    "random bytes": random.Random(5).randbytes(3000),
    "text": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3,
    "an empty header": b"\0" * 64,
    "a header over the limit": _LENGTHS.pack((64 << 20) + 1, 0) + b"x" * 1000,
    "4 GB announced": _LENGTHS.pack(2**32 - 1, 2**32 - 1) + b"x" * 1000,
    "no message": _LENGTHS.pack(5, 0) + b"\xc1\xc1\xc1\xc1\xc1",
    "an unknown message": _LENGTHS.pack(3, 0) + b"\x92\x7f\x01",
    "a message of the other direction": frame(m.Bye()),
    "a field too many": _LENGTHS.pack(4, 0) + b"\x93\x05\x01\x01",
    "a wrong type": _LENGTHS.pack(6, 0) + b"\x93\x04\xa1a\xa1b",
    "deeply nested": _LENGTHS.pack(60_000, 0) + b"\x91" * 60_000,
}


def test_babble_on_the_control_socket(node: Node) -> None:
    before = anonymous_mb(node.pid)
    for name, data in BABBLE.items():
        for start in (b"", frame(attach(kind="tool")), frame(attach())):
            with control(node) as sock:
                sock.sendall(start + data)
                answer = until_closed(sock)
                # A driver may have been welcomed before its babble was read; nobody else is answered at all.
                assert answer == b"" or len(start) > 30, (name, answer)
    assert "closing the connection of pid" in node.output()
    assert anonymous_mb(node.pid) < before + 40
    runs_a_task(node)


def test_who_does_not_say_who_it_is(node: Node) -> None:
    """Every message before Attach, and attaches that are none."""
    for message in (m.Demand(1, 1), m.Told(1, [], [], []), m.KillActor(b"x" * 16, True), m.Detach(), m.Sealed(1, [])):
        with control(node) as sock:
            sock.sendall(frame(message) * 50)
            assert until_closed(sock) == b""
    assert node.output().count("speaks before it has attached") <= 5, "one line each, not one for each message"
    for told, text in (
        (
            attach(version=99),
            f"speaks protocol 99, this daemon {m.PROTOCOL_VERSION}: the daemon is the older one: upgrade noded",
        ),
        (attach(kind="worker"), "this worker is not known here"),
        (attach(kind="emperor"), "attaches as 'emperor'"),
        (attach(prefix=b"short"), "with the prefix '73686f7274'"),
    ):
        with control(node) as sock:
            sock.sendall(frame(told))
            assert text in refusal(until_closed(sock))
    with control(node) as sock:
        sock.sendall(frame(attach()) + frame(attach()))
        assert b"attached already" in until_closed(sock)
    runs_a_task(node)


def test_messages_that_make_no_sense(node: Node) -> None:
    """Well-formed, from a client that has attached, about things that are not there."""
    unknown = b"\x07" * 16
    senseless: list[Any] = [
        m.Demand(77, 5),
        m.LeaseDone(2**62),
        m.Refs(1, [], [(unknown, 3)], [(unknown, 1, b"nobody!", 9)]),
        m.Refs(2, [(b"", 1), (b"x" * 5000, 1)]),
        m.Sealed(3, [(unknown, 0), (unknown, 64)]),
        m.Sealed(4, [(unknown, 2**62)]),
        m.Sealed(5, [(unknown, -64)]),
        m.Subscribe([unknown, b""]),
        m.RegionWant(1, 2**62, True),
        m.RegionWant(2, -5, False),
        m.RegionWant(3, 0, True),
        m.RegionDone(2**40),
        m.RegionDone(-1),
        m.WatchActor(unknown),
        m.KillActor(unknown, True),
        m.ActorUp(unknown),
        m.ActorFailed(unknown),
        m.JobReady("none"),
        m.KillTask(12, "none"),
        m.ForkHold(1, [unknown]),
        m.WorkerIdle(""),
        m.Blocked(),
        m.Unblocked(),
        m.ClassDef(1, {"CPU": -10_000_000}),
        m.Demand(1, 2**40),
        m.Demand(1, -1),
        m.ClassDef(2, {"CPU": 2**63 - 1}),
        m.Demand(2, 1),
        m.Told(1, [(5, "none")], [1], [2**40, -1]),
        m.CreateActor(m.ActorSpec(b"", "", b"", 2**40, {}, {"CPU": -5}, {"CPU": -5}), 1),
    ]
    before = anonymous_mb(node.pid)
    for message in senseless:
        with control(node) as sock:
            sock.sendall(frame(attach()) + frame(message) + frame(m.Ask(9, "no such question"), b"{}"))
            # Either it is passed over, and the question behind it is answered, or the connection ends.
            reader = Link(sock, m.decode_to_client)
            answers = read_all(reader, lambda got: any(isinstance(a, m.Answer) for a in got))
            assert not any(a.ok for a in answers if isinstance(a, m.Answer))
            for fd in reader.fds:
                os.close(fd)
            reader.fds.clear()
    for payload in (b"", b"not json", b"[]", b'{"id": 5}', b'{"id": "zz"}', b"\xff" * 100):
        for what in ("get_actor", "await_actor", "actor_info", ""):
            with control(node) as sock:
                sock.sendall(frame(attach(kind="tool")) + frame(m.Ask(1, what), payload))
                reader = Link(sock, m.decode_to_client)
                got = read_all(reader, lambda got: bool(got))
                assert len(got) == 1 and not got[0].ok, (what, payload, got)
    assert anonymous_mb(node.pid) < before + 40
    runs_a_task(node)


def read_all(reader: Link, enough: Callable[[list[Any]], bool]) -> list[Any]:
    """Messages until there are enough or the connection ends."""
    got: list[Any] = []
    deadline = time.monotonic() + SECONDS
    while not enough(got):
        assert time.monotonic() < deadline, f"neither an answer nor an end came, only {got}"
        select.select([reader], [], [], 1)
        try:
            reader.receive_with_fds(lambda message, payload: got.append(message))
        except LinkClosed:
            break
    return got


def test_frames_that_are_announced_and_never_come(node: Node) -> None:
    """100 connections of a quarter gigabyte each: announced, not sent."""
    before = anonymous_mb(node.pid)
    head = frame(attach(kind="tool")) + _LENGTHS.pack(10, 256 * MB) + b"x" * 50_000
    waiting = [control(node) for _ in range(100)]
    try:
        for sock in waiting:
            sock.sendall(head)
        runs_a_task(node)
        assert anonymous_mb(node.pid) < before + 150
    finally:
        for sock in waiting:
            sock.close()


@pytest.mark.slow
def test_who_asks_and_never_reads_the_answers(node: Node) -> None:
    before = anonymous_mb(node.pid)
    question = frame(m.Ask(1, "status"), b"{}") * 1000
    with control(node) as sock:
        sock.sendall(frame(attach(kind="tool")))
        sock.setblocking(False)
        sent = 0
        deadline = time.monotonic() + SECONDS
        while sent < 300_000 * len(question) // 1000 and time.monotonic() < deadline:
            if not select.select([], [sock], [], 1.0)[1]:
                break  # the daemon does not listen any more: as it should be
            sent += sock.send(question)
        assert time.monotonic() < deadline, "the daemon takes all questions of one who takes no answers"
        runs_a_task(node)
        assert anonymous_mb(node.pid) < before + 120
        # When it reads at last, all is answered.
        reader = Link(sock, m.decode_to_client)
        count = sent // (len(question) // 1000)
        got = 0

        def answered() -> bool:
            nonlocal got

            def take(message: Any, payload: Any) -> None:
                nonlocal got
                got += 1

            reader.receive(take)
            return got >= count

        wait_for(answered, lambda: f"{got} of {count} questions were answered", 60)


def test_many_who_connect_and_say_nothing(node: Node) -> None:
    idle = [control(node) for _ in range(300)]
    try:
        runs_a_task(node)
    finally:
        for sock in idle:
            sock.close()


@pytest.mark.slow
def test_slow_loris_on_the_port(node: Node) -> None:
    """300 connections that say a little: more than there is room for. /healthz is answered all the same."""
    slow = []
    try:
        for i in range(300):
            sock = tcp(node)
            sock.sendall((b"", b"G", b"GET /healthz HTTP/1.1\r\nHost: a", b"noded/1 no")[i % 4])
            slow.append(sock)
        assert healthz(node) == 200
        runs_a_task(node)
        assert until_closed(slow[1]) == b"", "who is too slow is shown out"
    finally:
        for sock in slow:
            sock.close()
    assert healthz(node) == 200


def healthz(node: Node) -> int:
    return request(node, "/healthz", {})[0]


def request(node: Node, path: str, headers: dict[str, str]) -> tuple[int, str]:
    host, _, port = node.address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=SECONDS)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def test_bad_tokens(node: Node) -> None:
    token = (Path(os.environ["NODED_HOME"]) / "token").read_text().strip()
    for given in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {token}"},
        {"Authorization": "Bearer "},
    ):
        for path in ("/", "/api/v0/nodes", "/metrics", "/no/such/path"):
            status, text = request(node, path, given)
            assert status == 401 and "send the cluster's token" in text, (path, given)
    assert request(node, "/", {"Authorization": f"Bearer {token}", "Host": "evil.example"})[0] == 403
    assert request(node, "/no/such/path", {"Authorization": f"Bearer {token}"})[0] == 404
    with tcp(node) as sock:  # the server proves itself first, so a client with another token sees it
        handshake = ClientHandshake(b"another token", "node")
        sock.sendall(handshake.start())
        with pytest.raises(HandshakeError, match="does not have our cluster token"):
            while True:
                handshake.feed(sock.recv(4096))
    with tcp(node) as sock:  # one that goes on anyway
        sock.sendall(ClientHandshake(b"another token", "node").start())
        assert len(sock.recv(64, socket.MSG_WAITALL)) == 64
        sock.sendall(b"\0" * 32)
        assert until_closed(sock) == b""
    wait_for(lambda: "handshake failed (bad_token)" in node.output(), "the log must say why")
    runs_a_task(node)


def test_babble_on_the_port(node: Node) -> None:
    before = anonymous_mb(node.pid)
    for data in (*BABBLE.values(), b"noded/9 node\n" + b"\0" * 32, b"noded/1 " + b"a" * 4000, b"\x16\x03\x01" * 50):
        with tcp(node) as sock:
            try:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
            except OSError:  # it closes as soon as it has seen enough
                pass
            assert until_closed(sock)[:9] in (b"", b"HTTP/1.1 ")
    with tcp(node) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n")
        assert sock.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 401"
    assert anonymous_mb(node.pid) < before + 60  # the HTTP library is imported at the first request
    runs_a_task(node)


def test_babble_on_a_workers_socket(node: Node) -> None:
    """The worker goes on with the actor that it hosts, and its daemon notices nothing."""
    noded.init(address=node.address, log_to_driver=False)
    try:

        @noded.remote
        class Counter:
            def __init__(self) -> None:
                self.value = 0

            def add(self) -> tuple[int, int]:
                self.value += 1
                return self.value, os.getpid()

        counter = Counter.remote()
        _, pid = noded.get(counter.add.remote(), timeout=SECONDS)
        before = anonymous_mb(pid)
        paths = list(Path(node.dir, "w").glob("*.sock"))
        assert paths
        hello = frame(m.Hello(m.PROTOCOL_VERSION, os.urandom(7), os.getpid()))
        for path in paths:
            for data in BABBLE.values():
                for start in (b"", hello):
                    with _connect(str(path)) as sock:
                        sock.sendall(start + data)
                        if data[:4] == b"\xff" * 4:  # there 4 GB of payload are allowed, if the header is
                            continue
                        assert until_closed(sock) == b""
            with _connect(str(path)) as sock:
                sock.sendall(frame(m.Hello(99, os.urandom(7), os.getpid())))
                assert until_closed(sock) == b""
            with _connect(str(path)) as sock:  # well-formed nonsense, answered with errors
                sock.sendall(hello + frame(m.Call(1, "no_such_method")) + frame(m.Call(2, "add", 2, 5000), b"garbage"))
            with _connect(str(path)) as sock:  # a frame that never ends
                sock.sendall(hello + _LENGTHS.pack(10, 2**32 - 1) + b"x" * 1000)
        assert noded.get(counter.add.remote(), timeout=SECONDS)[1] == pid
        assert anonymous_mb(pid) < before + 40
    finally:
        noded.shutdown()
    runs_a_task(node)


@pytest.mark.slow
def test_an_object_over_the_store() -> None:
    """Without a disk: see test_spilling.py for those that have one."""
    with Node("--object-store-memory", "64MB", "--object-spilling-directory", "none", num_cpus=1) as node:
        noded.init(address=node.address, log_to_driver=False)
        try:

            @noded.remote
            def much() -> Any:
                return np.zeros(200 * MB, np.uint8)

            big = np.zeros(200 * MB, np.uint8)
            text = r"fits neither into the object store of \d+ bytes nor on disk: spilling is off"
            for attempt in (lambda: noded.put(big), lambda: noded.get(much.remote(), timeout=SECONDS)):
                with pytest.raises(noded.exceptions.ObjectStoreFullError, match=text):
                    attempt()
            kept = [noded.put(np.zeros(15 * MB, np.uint8)) for _ in range(4)]
            with pytest.raises(noded.exceptions.ObjectStoreFullError, match=r"still referenced.*--object-store-memory"):
                noded.put(np.zeros(15 * MB, np.uint8))
            del kept
            assert noded.get(noded.put(np.arange(1000))).sum() == 499500
        finally:
            noded.shutdown()
        runs_a_task(node)


def head(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*noded_command(), "--head", *flags],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=60,
    )


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = head("--port", str(port), "--cluster", f"in-use-{os.getpid()}")
    assert done.returncode == 1
    assert f"port {port} of 127.0.0.1 is in use by pid {os.getpid()} (" in done.stderr
    assert "take another port" in done.stderr and "Traceback" not in done.stderr


def test_a_second_head(node: Node) -> None:
    done = head("--port", "0", "--cluster", node.cluster)
    assert done.returncode == 1
    assert f"runs already (pid {node.pid})" in done.stderr and "noded stop" in done.stderr
    assert "Traceback" not in done.stderr
    port = node.address.rpartition(":")[2]
    other = head("--port", port, "--cluster", f"{node.cluster}-b")
    assert other.returncode == 1
    assert f"port {port} of 127.0.0.1 is in use by pid {node.pid}" in other.stderr
    runs_a_task(node)
