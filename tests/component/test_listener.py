"""The acceptor on real sockets: who is answered, who is handed over, who is shown out."""

from __future__ import annotations

import asyncio
import errno
import http.client
import json
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from harness.wait import wait_for

from noded.node import listener as module
from noded.node.listener import Listener, ListenError, PortInUse, bind, kind_of
from noded.wire.handshake import ClientHandshake

TOKEN = b"0123456789abcdef"
REQUEST = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
SECONDS = 5.0


class Node:
    """A listener whose callbacks keep what they get."""

    def __init__(self, sock: socket.socket | None = None) -> None:
        self.http: list[tuple[socket.socket, bytes]] = []
        self.control: list[tuple[socket.socket, str, bytes]] = []
        self.listener = Listener(
            sock or bind("127.0.0.1", 0),
            TOKEN,
            lambda *taken: self.http.append(taken),
            lambda *taken: self.control.append(taken),
        )
        self.port = self.listener.port
        self.clients: list[socket.socket] = []

    def start(self) -> Node:
        self.listener.start(asyncio.get_running_loop())
        return self

    def connect(self, data: bytes = b"") -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port), SECONDS)
        self.clients.append(client)
        client.sendall(data)
        return client

    def health(self, method: str = "GET", path: str = "/healthz") -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"{}")
        finally:
            connection.close()

    def close(self) -> None:
        self.listener.stop()
        for sock in self.clients + [taken[0] for taken in self.http + self.control]:
            sock.close()


@pytest_asyncio.fixture
async def node() -> AsyncIterator[Node]:
    made = Node().start()
    yield made
    made.close()


async def until(condition: Callable[[], object], reason: str) -> None:
    """Let the loop turn until the condition holds."""
    deadline = asyncio.get_running_loop().time() + SECONDS
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"waited {SECONDS:g} s in vain: {reason}"
        await asyncio.sleep(0.002)


def ended(client: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    received = b""
    try:
        while chunk := client.recv(65536):
            received += chunk
    except ConnectionResetError:
        pass
    return received


# These call the blocking client in the loop's own thread: the loop stands still while the acceptor answers.


async def test_health_is_answered_while_the_loop_is_busy(node: Node) -> None:
    status, content = node.health()
    assert status == 200 and content["status"] == "ok" and 0 <= content["loop_age_ms"] < 5000
    assert node.health("HEAD") == (200, {})
    assert node.health(path="/healthz?verbose=1")[0] == 200
    assert not node.http


async def test_health_tells_a_stalled_loop(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STALLED_SECONDS", 0.02)
    wait_for(lambda: node.health()[0] == 503, "the loop does not beat, so its age must grow")
    assert node.health()[1]["status"] == "stalled"
    node.listener.beat()
    monkeypatch.setattr(module, "STALLED_SECONDS", 10.0)
    assert node.health()[0] == 200


async def test_http_is_handed_over_with_what_was_read(node: Node) -> None:
    node.connect(REQUEST + b"body")
    await until(lambda: node.http, "the request must arrive")
    sock, data = node.http[0]
    assert data == REQUEST + b"body"
    assert not sock.getblocking()
    assert node.health()[0] == 200, "the acceptor goes on"


async def test_http_is_held_until_its_head_is_complete(node: Node) -> None:
    client = node.connect()
    for at in range(len(REQUEST)):
        assert not node.http
        client.sendall(REQUEST[at : at + 1])
    await until(lambda: node.http, "the request must arrive")
    assert node.http[0][1] == REQUEST


async def test_only_the_health_path_itself_is_answered_here(node: Node) -> None:
    for line in (b"GET /healthzz HTTP/1.1", b"POST /healthz HTTP/1.1", b"GET / HTTP/1.1"):
        node.connect(line + b"\r\n\r\n")
    await until(lambda: len(node.http) == 3, "all three are for the HTTP server")


async def test_a_head_that_is_too_long_is_refused(node: Node) -> None:
    client = node.connect(b"GET / HTTP/1.1\r\nCookie: " + b"x" * module.GUEST_BYTES)
    assert ended(client).startswith(b"HTTP/1.1 431 ")
    assert not node.http


async def test_noded_is_handed_over_after_the_handshake(node: Node) -> None:
    client = node.connect()
    handshake = ClientHandshake(TOKEN, "worker/ab12")
    client.sendall(handshake.start())
    while not handshake.done:
        client.sendall(handshake.feed(client.recv(4096)))
    client.sendall(b"later")
    await until(lambda: node.control, "the connection must arrive")
    sock, target, leftover = node.control[0]
    assert target == "worker/ab12"
    got = leftover
    while got != b"later":
        got += await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 100), SECONDS)
    assert not node.http


async def test_bytes_behind_the_proof_are_left_over(node: Node) -> None:
    client = node.connect()
    handshake = ClientHandshake(TOKEN, "node")
    client.sendall(handshake.start())
    client.sendall(handshake.feed(_exactly(client, 64)) + b"at once")
    await until(lambda: node.control, "the connection must arrive")
    sock, target, leftover = node.control[0]
    assert target == "node"
    sock.setblocking(True)
    sock.settimeout(SECONDS)
    assert leftover + _exactly(sock, len(b"at once") - len(leftover)) == b"at once"


def _exactly(sock: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        chunk = sock.recv(size - len(got))
        assert chunk, f"the connection ended after {got!r}"
        got += chunk
    return got


async def test_a_wrong_token_is_shown_out(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    client = node.connect()
    handshake = ClientHandshake(b"another token, sadly", "node")
    client.sendall(handshake.start())
    assert len(_exactly(client, 64)) == 64
    client.sendall(b"\0" * 32)
    assert ended(client) == b""
    wait_for(lambda: "handshake failed (bad_token)" in caplog.text, "the log must say why")
    assert not node.control


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x16\x03\x01\x02\x00\x01", "it speaks TLS, which is not configured here"),
        (b"SSH-2.0-x\r\n", "neither HTTP nor noded"),
        (b"PRI * HTTP/2.0\r\n\r\n", "neither HTTP nor noded"),
        (b"noded/9 node\n" + b"\0" * 32, "handshake failed (version)"),
        (b"noded/1 " + b"\0" * 200, "handshake failed"),
    ],
)
async def test_strangers_are_shown_out(node: Node, caplog: pytest.LogCaptureFixture, data: bytes, reason: str) -> None:
    assert ended(node.connect(data)) == b""
    wait_for(lambda: reason in caplog.text, "the log must say why")
    assert not node.http and not node.control


async def test_strangers_do_not_fill_the_log(
    node: Node, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(20):
        assert ended(node.connect(b"?")) == b""
    assert len(caplog.records) == 1
    node.listener._refusals._next = 0.0  # as after a while
    ended(node.connect(b"?"))
    wait_for(lambda: len(caplog.records) == 2, "after a while there is another line")
    assert "and 19 more such lines" in caplog.text


async def test_who_says_nothing_is_shown_out(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GUEST_SECONDS", 0.1)
    clients = [node.connect(data) for data in (b"", b"GE", REQUEST[:-1], b"noded/1 node\n")]
    assert [ended(client) for client in clients] == [b""] * 4
    assert not node.http


async def test_guests_are_bounded_and_others_wait(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_GUESTS", 3)
    idle = [node.connect(b"G") for _ in range(3)]
    wait_for(lambda: len(node.listener._guests) == 3, "all three are guests")
    late = node.connect(b"GET /healthz HTTP/1.1\r\n\r\n")
    late.settimeout(0.25)
    with pytest.raises(TimeoutError):
        late.recv(1)
    idle[0].close()
    late.settimeout(SECONDS)
    assert ended(late).startswith(b"HTTP/1.1 200 OK")


async def test_connections_a_busy_loop_has_not_taken_count(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_GUESTS", 2)
    for _ in range(3):
        node.connect(REQUEST)
    wait_for(lambda: len(node.listener._waiting) == 2, "two are read, the third waits in the backlog")
    await until(lambda: len(node.http) == 3, "as the loop takes them, there is room")


class ShortOfDescriptors(socket.socket):
    failures = 2

    def accept(self) -> tuple[socket.socket, Any]:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


async def test_a_lack_of_descriptors_passes(caplog: pytest.LogCaptureFixture) -> None:
    node = Node(ShortOfDescriptors(fileno=bind("127.0.0.1", 0).detach())).start()
    try:
        assert node.health()[0] == 200
        assert "raise the limit of open files" in caplog.text
    finally:
        node.close()


async def test_a_failing_callback_ends_that_connection_only(node: Node) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    told: list[Any] = []

    def fail(sock: socket.socket, data: bytes) -> None:
        raise RuntimeError("handler")

    node.listener._on_http = fail
    client = node.connect(REQUEST)
    await until(lambda: told, "the loop must be told of the error")
    assert ended(client) == b"" and str(told[0]) == "handler"
    assert node.health()[0] == 200


async def test_stop_leaves_no_thread_and_no_socket() -> None:
    node = Node().start()
    guest, waiting = node.connect(b"G"), node.connect(REQUEST)
    wait_for(lambda: node.listener._guests and node.listener._waiting, "one of each must be there")
    node.listener.stop()
    node.listener.stop()
    assert ended(guest) == b"" and ended(waiting) == b""
    await asyncio.sleep(0)
    assert not node.http, "what came too late for the loop is closed, not delivered"
    assert not [thread for thread in threading.enumerate() if thread.name == "noded-acceptor"]
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", node.port), 1)
    node.close()


def test_stop_without_start() -> None:
    Node().listener.stop()


def test_a_port_in_use_names_its_holder() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(PortInUse, match=rf"port {port} of 127.0.0.1 is in use by pid {os.getpid()} \("):
            bind("127.0.0.1", port)


def test_addresses_that_cannot_be_bound() -> None:
    with pytest.raises(ListenError, match=r"cannot listen on port 0 of 192\.0\.2\.1"):
        bind("192.0.2.1", 0)
    with pytest.raises(ListenError, match=r"cannot listen on .*give an address of this machine"):
        bind("no such host", 0)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "unsure"),
        (b"n", "unsure"),
        (b"noded", "unsure"),
        (b"noded/", "noded"),
        (b"noded/1 node\n", "noded"),
        (b"G", "unsure"),
        (b"GET", "unsure"),
        (b"GET /", "http"),
        (b"P", "unsure"),
        (b"PATCH /", "http"),
        (b"GETT", "unknown"),
        (b"get /", "unknown"),
        (b"\x16", "tls"),
        (b"\x00", "unknown"),
    ],
)
def test_first_bytes(data: bytes, kind: str) -> None:
    assert kind_of(data) == kind
