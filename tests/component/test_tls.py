"""TLS: the tunnel, the listener behind one, and the side that connects."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import os
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import uvloop
from harness.certs import Authority
from harness.wait import wait_for

from noded.http.gateway import Gateway
from noded.node import listener as module
from noded.node.listener import Listener, bind
from noded.wire.dial import dial, split_address
from noded.wire.handshake import ClientHandshake, HandshakeError, ServerHandshake
from noded.wire.tls import CHUNK, TlsError, TlsFiles, TlsSocket, client_context, server_context, tunnel

TOKEN = b"0123456789abcdef"
SECONDS = 10.0
MB = 1 << 20


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def files(authority: Authority) -> TlsFiles:
    return authority.node()


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    """A node of another cluster."""
    return Authority(tmp_path_factory.mktemp("foreign")).node()


def without_certificate(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(files.ca)
    return context


def tunnels() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "noded-tls"]


@pytest.fixture(autouse=True)
def no_tunnel_left() -> Iterator[None]:
    yield
    wait_for(lambda: not tunnels(), lambda: f"tunnels must end with their sockets: {tunnels()}")


# --- files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [server_context, client_context])
def test_files_that_cannot_be_used(
    make: Callable[[TlsFiles], ssl.SSLContext], authority: Authority, files: TlsFiles, tmp_path: Path
) -> None:
    missing, text = tmp_path / "missing", tmp_path / "text"
    text.write_text("text")
    encrypted = tmp_path / "encrypted"
    os.system(f"openssl ec -aes128 -passout pass:secret -in {files.key} -out {encrypted} 2>/dev/null")
    for wrong, told in (
        (replace(files, cert=missing), f"the TLS certificate {missing} cannot be read: No such file"),
        (replace(files, key=tmp_path), f"the TLS key {tmp_path} cannot be read: Is a directory"),
        (replace(files, ca=missing), f"the TLS CA certificate {missing} cannot be read"),
        (replace(files, cert=text), f"the TLS certificate {text} is no certificate in PEM form"),
        (replace(files, ca=files.key), f"the TLS CA certificate {files.key} is no certificate"),
        (replace(files, key=text), f"the TLS key {text} cannot be used"),
        (replace(files, key=encrypted), f"the TLS key {encrypted} is encrypted"),
        (replace(files, key=authority.node("other").key), "does not belong to the certificate"),
    ):
        with pytest.raises(TlsError) as caught:
            make(wrong)
        assert told in str(caught.value)


# --- the tunnel ------------------------------------------------------------------------------------------


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname(), SECONDS)
        return client, server.accept()[0]


class Pair:
    """Two tunnels that face each other, with sockets that block."""

    def __init__(self, server: ssl.SSLContext, client: ssl.SSLContext) -> None:
        near, far = tcp_pair()
        self.addresses = near.getsockname(), far.getsockname()
        self.near = tunnel(near, client, server_side=False)
        self.far = tunnel(far, server, server_side=True)
        for sock in (self.near, self.far):
            sock.settimeout(SECONDS)

    def close(self) -> None:
        self.near.close()
        self.far.close()


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def pair(request: pytest.FixtureRequest, files: TlsFiles) -> Iterator[Pair]:
    client = client_context(files)
    client.maximum_version = request.param
    made = Pair(server_context(files), client)
    yield made
    made.close()


def exactly(sock: socket.socket, size: int) -> bytes:
    got = bytearray()
    while len(got) < size:
        chunk = sock.recv(size - len(got))
        assert chunk, f"the connection ended after {len(got)} of {size} bytes"
        got += chunk
    return bytes(got)


def to_end(sock: socket.socket) -> bytes:
    got = bytearray()
    try:
        while chunk := sock.recv(MB):
            got += chunk
    except ConnectionResetError:
        pass
    return bytes(got)


def test_bytes_arrive_both_ways_at_once(pair: Pair) -> None:
    data = [os.urandom(MB) * 50, os.urandom(MB) * 50]
    with ThreadPoolExecutor(4) as pool:
        sent = [pool.submit(pair.near.sendall, data[0]), pool.submit(pair.far.sendall, data[1])]
        got = [pool.submit(exactly, pair.far, len(data[0])), pool.submit(exactly, pair.near, len(data[1]))]
        for each in sent:
            each.result()
        for part, whole in zip(got, data, strict=True):
            assert hashlib.sha256(part.result()).digest() == hashlib.sha256(whole).digest()


def test_both_ends_know_who_is_there(pair: Pair) -> None:
    pair.near.sendall(b"x")
    assert pair.far.recv(1) == b"x"
    assert pair.far.tunnel.certified and pair.near.tunnel.certified
    assert (pair.near.getsockname(), pair.near.getpeername()) == pair.addresses
    assert (pair.far.getpeername(), pair.far.getsockname()) == pair.addresses
    assert pair.near.family == socket.AF_UNIX


def test_each_direction_ends_by_itself(pair: Pair) -> None:
    pair.near.sendall(b"question")
    pair.near.shutdown(socket.SHUT_WR)
    assert to_end(pair.far) == b"question"
    answer = os.urandom(8 * MB)
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(lambda: (pair.far.sendall(answer), pair.far.shutdown(socket.SHUT_WR)))
        assert to_end(pair.near) == answer
        sent.result()
    wait_for(lambda: not tunnels(), "both directions have ended, so the tunnels have too")


def test_what_was_written_before_a_close_arrives(pair: Pair) -> None:
    data = os.urandom(3 * MB)
    with ThreadPoolExecutor(1) as pool:
        got = pool.submit(to_end, pair.far)
        pair.near.sendall(data)
        pair.near.close()
        assert got.result() == data


def test_a_close_is_seen_while_data_comes(pair: Pair) -> None:
    pair.near.sendall(b"x")
    assert pair.far.recv(1) == b"x"
    pair.far.close()
    with pytest.raises(OSError):
        while True:
            pair.near.sendall(bytes(MB))
    wait_for(lambda: not tunnels(), "one end is gone")


def test_a_peer_that_vanishes(files: TlsFiles) -> None:
    for reset in (False, True):
        near, far = tcp_pair()
        server = tunnel(far, server_context(files), server_side=True)
        server.settimeout(SECONDS)
        client = client_context(files).wrap_socket(near)
        client.sendall(b"last words")
        assert exactly(server, 10) == b"last words"
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()  # without TLS's notice
        assert to_end(server) == b""
        wait_for(lambda: not tunnels(), "its peer is gone, although its user has not closed it")
        server.close()


def test_a_slow_reader_slows_the_writer(pair: Pair) -> None:
    pair.near.setblocking(False)
    sent = 0

    def full() -> bool:
        nonlocal sent
        before = sent
        for _ in range(64):
            try:
                sent += pair.near.send(bytes(CHUNK))
            except BlockingIOError:
                break
        threading.Event().wait(0.05)
        return sent == before

    wait_for(full, "somebody must refuse more", SECONDS)
    assert CHUNK < sent < 64 * MB
    assert exactly(pair.far, sent) == bytes(sent)
    pair.near.settimeout(SECONDS)
    pair.near.sendall(b"on")
    assert exactly(pair.far, 2) == b"on"


def test_a_reader_that_never_reads_does_not_keep_a_closed_tunnel(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("noded.wire.tls.LINGER_SECONDS", 0.2)
    pair.near.setblocking(False)
    for _ in range(100):
        try:
            pair.near.send(bytes(CHUNK))
        except BlockingIOError:
            threading.Event().wait(0.01)
    thread = pair.near.tunnel.thread
    pair.near.close()
    wait_for(lambda: not thread.is_alive(), "what is closed and stands still ends")


def test_what_was_read_already_counts(files: TlsFiles) -> None:
    near, far = tcp_pair()
    client = tunnel(near, client_context(files), server_side=False)
    far.settimeout(SECONDS)
    first = far.recv(100)
    server = tunnel(far, server_context(files), server_side=True, initial=first)
    for sock in (client, server):
        sock.settimeout(SECONDS)
    client.sendall(b"hello")
    assert exactly(server, 5) == b"hello"
    client.close()
    server.close()


def test_neither_side_trusts_a_foreign_certificate(files: TlsFiles, foreign: TlsFiles) -> None:
    for server, client in ((files, replace(foreign, ca=files.ca)), (replace(foreign, ca=files.ca), files)):
        pair = Pair(server_context(server), client_context(client))
        assert to_end(pair.far) == to_end(pair.near) == b""
        told = pair.far.tunnel.failure + pair.near.tunnel.failure
        assert "certificate verify failed: " in told and "unknown ca" in told
        pair.close()


def test_a_spoiled_record_ends_it(files: TlsFiles) -> None:
    near, far = tcp_pair()
    server = tunnel(far, server_context(files), server_side=True)
    server.settimeout(SECONDS)
    client = client_context(files).wrap_socket(near)
    client.sendall(b"fine")
    assert exactly(server, 4) == b"fine"
    os.write(client.fileno(), b"\x17\x03\x03\x00\x20" + bytes(32))
    assert to_end(server) == b""
    assert "mac" in server.tunnel.failure
    client.close()
    server.close()


def test_a_socket_that_is_gone(files: TlsFiles) -> None:
    sock = socket.socket()
    with pytest.raises(OSError):
        tunnel(sock, client_context(files), server_side=False)
    assert sock.fileno() == -1


# --- the listener ----------------------------------------------------------------------------------------


class View:
    def status(self) -> dict[str, Any]:
        return {"cluster": "default"}

    def nodes(self) -> list[dict[str, Any]]:
        return []

    def request_stop(self) -> None:
        pass


class Node:
    def __init__(self, tls: ssl.SSLContext | None, host: str = "127.0.0.1") -> None:
        self.control: list[tuple[socket.socket, str, bytes]] = []
        self.gateway = Gateway(View(), TOKEN, (), "1.2.3")
        self.listener = Listener(
            bind(host, 0), TOKEN, self.gateway.on_http, lambda *taken: self.control.append(taken), tls=tls
        )
        self.port = self.listener.port
        self.address = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def start(self) -> Node:
        self.listener.start(asyncio.get_running_loop())
        return self

    async def stop(self) -> None:
        self.listener.stop()
        await self.gateway.stop()
        for sock, _, _ in self.control:
            sock.close()

    async def ask(self, path: str, tls: ssl.SSLContext, **headers: str) -> tuple[int, Any]:
        return await asyncio.to_thread(self._ask, path, tls, headers)

    def _ask(self, path: str, tls: ssl.SSLContext, headers: dict[str, str]) -> tuple[int, Any]:
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=SECONDS, context=tls)
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()


BEARER = f"Bearer {TOKEN.decode()}"


@pytest_asyncio.fixture
async def node(files: TlsFiles) -> AsyncIterator[Node]:
    made = Node(server_context(files)).start()
    yield made
    await made.stop()


@pytest_asyncio.fixture
async def plain() -> AsyncIterator[Node]:
    made = Node(None).start()
    yield made
    await made.stop()


async def until(condition: Callable[[], object], reason: str) -> None:
    deadline = asyncio.get_running_loop().time() + SECONDS
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"waited {SECONDS:g} s in vain: {reason}"
        await asyncio.sleep(0.002)


async def test_a_node_with_a_certificate(node: Node, files: TlsFiles) -> None:
    with await asyncio.to_thread(dial, node.address, TOKEN, "peer", tls=client_context(files)) as sock:
        assert not sock.getblocking() and sock.getpeername() == ("127.0.0.1", node.port)
        await until(lambda: node.control, "the connection must arrive")
        taken, target, leftover = node.control[0]
        assert (target, leftover) == ("peer", b"") and isinstance(taken, TlsSocket)
        assert taken.getpeername() == sock.getsockname() and not taken.getblocking()
        loop = asyncio.get_running_loop()
        data = os.urandom(MB)
        sent = asyncio.create_task(loop.sock_sendall(sock, data))
        got = b""
        while len(got) < len(data):
            got += await asyncio.wait_for(loop.sock_recv(taken, MB), SECONDS)
        await sent
        assert got == data


async def test_the_plain_end_can_be_given_to_another_process(node: Node, files: TlsFiles) -> None:
    with await asyncio.to_thread(dial, node.address, TOKEN, "worker/ab", tls=client_context(files)) as sock:
        await until(lambda: node.control, "the connection must arrive")
        one, other = socket.socketpair()
        with one, other:
            socket.send_fds(one, [b"x"], [node.control[0][0].fileno()])
            _, (fd,), _, _ = socket.recv_fds(other, 1, 1)
        node.control.pop()[0].close()
        with socket.socket(fileno=fd) as worker:
            worker.sendall(b"from a worker")
            sock.settimeout(SECONDS)
            assert await asyncio.to_thread(exactly, sock, 13) == b"from a worker"


async def test_http_needs_no_certificate_but_the_token(node: Node, files: TlsFiles) -> None:
    bare = without_certificate(files)
    status, content = await node.ask("/healthz", bare)
    assert status == 200 and content["status"] == "ok"
    assert await node.ask("/api/version", bare, Authorization=BEARER) == (200, {"version": "1.2.3", "api": "v0"})
    assert (await node.ask("/api/version", bare))[0] == 401
    origin = f"https://127.0.0.1:{node.port}"
    assert (await node.ask("/api/version", bare, Authorization=BEARER, Origin=origin))[0] == 200
    assert (await node.ask("/api/version", bare, Authorization=BEARER, Host="192.0.2.7"))[0] == 403


async def test_health_is_answered_while_the_loop_is_busy(node: Node, files: TlsFiles) -> None:
    assert node._ask("/healthz", without_certificate(files), {})[0] == 200  # in the loop's own thread


@pytest.mark.may_leak("libuv keeps one pipe for the life of the process")
@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_bound_to_all_addresses_the_one_reached_is_allowed(
    factory: Callable[[], asyncio.AbstractEventLoop], files: TlsFiles
) -> None:
    bare = without_certificate(files)

    async def session() -> None:
        node = Node(server_context(files), "0.0.0.0").start()
        try:
            with socket.create_connection(("127.0.0.2", node.port), SECONDS) as sock:
                secure = bare.wrap_socket(sock)
                head = (
                    f"GET /api/version HTTP/1.1\r\nHost: {{}}\r\nAuthorization: {BEARER}\r\nConnection: close\r\n\r\n"
                )
                secure.sendall(head.format(f"127.0.0.2:{node.port}").encode())
                assert (await asyncio.to_thread(to_end, secure)).startswith(b"HTTP/1.1 200 ")
                secure.close()
            assert (await node.ask("/api/version", bare, Authorization=BEARER, Host="127.0.0.2"))[0] == 403
        finally:
            await node.stop()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(session())


async def refused(node: Node, caplog: pytest.LogCaptureFixture, words: str) -> None:
    await until(lambda: words in caplog.text, f"the log must say {words!r}, it says: {caplog.text}")
    assert "closed the connection from 127.0.0.1 port " in caplog.text
    assert not node.control and not node.listener._guests


async def test_noded_needs_a_certificate(node: Node, files: TlsFiles, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConnectionResetError, match="ended the connection in the handshake: its log says why"):
        await asyncio.to_thread(dial, node.address, TOKEN, "peer", tls=without_certificate(files))
    await refused(node, caplog, "it gave no certificate that the cluster's CA signed")


async def test_a_foreign_certificate(
    node: Node, files: TlsFiles, foreign: TlsFiles, caplog: pytest.LogCaptureFixture
) -> None:
    """The server's word may come only after the client has sent its own."""
    with pytest.raises(HandshakeError, match=f"no TLS with {node.address}: .*unknown ca") as caught:
        await asyncio.to_thread(dial, node.address, TOKEN, "peer", tls=client_context(replace(foreign, ca=files.ca)))
    assert caught.value.reason == "tls"
    await refused(node, caplog, "TLS failed: certificate verify failed: ")


async def test_a_server_of_another_cluster(node: Node, foreign: TlsFiles, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(HandshakeError, match="certificate verify failed: ") as caught:
        await asyncio.to_thread(dial, node.address, TOKEN, "peer", tls=client_context(foreign))
    assert caught.value.reason == "tls"
    await refused(node, caplog, "TLS failed: ")
    assert "unknown ca" in caplog.text


async def test_plain_against_tls(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConnectionResetError, match="it may require TLS"):
        await asyncio.to_thread(dial, node.address, TOKEN, "peer")
    await refused(node, caplog, "it does not speak TLS, which this node requires: use https://, or give --tls-cert")
    with socket.create_connection(("127.0.0.1", node.port), SECONDS) as sock:
        sock.sendall(b"G")  # one byte is enough to tell
        assert await asyncio.to_thread(to_end, sock) == b""


async def test_tls_against_plain(plain: Node, files: TlsFiles, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConnectionResetError, match="in the TLS handshake: does it speak TLS"):
        await asyncio.to_thread(dial, plain.address, TOKEN, "peer", tls=client_context(files))
    await refused(plain, caplog, "it speaks TLS, which is not configured here")


async def test_a_wrong_token_inside_tls(node: Node, files: TlsFiles, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(HandshakeError, match="does not have our cluster token") as caught:
        await asyncio.to_thread(dial, node.address, b"another token", "peer", tls=client_context(files))
    assert caught.value.reason == "bad_token"

    def insist() -> bytes:
        with socket.create_connection(("127.0.0.1", node.port), SECONDS) as sock:
            secure = client_context(files).wrap_socket(sock)
            secure.sendall(ClientHandshake(b"another token", "peer").start())
            exactly(secure, 64)
            secure.sendall(bytes(32))
            got = to_end(secure)
            secure.close()
            return got

    assert await asyncio.to_thread(insist) == b""
    await refused(node, caplog, "handshake failed (bad_token)")


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x00", b"noded/9 peer\n", b"SSH-2.0-x\r\n", b"GET / HTTP/1.1\r\n\0"])
async def test_strangers_inside_tls(
    node: Node,
    files: TlsFiles,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    data: bytes,
) -> None:
    monkeypatch.setattr(module, "GUEST_SECONDS", 0.5)

    def come() -> bytes:
        with socket.create_connection(("127.0.0.1", node.port), SECONDS) as sock:
            secure = client_context(files).wrap_socket(sock)
            secure.sendall(data)
            got = to_end(secure)
            secure.close()
            return got

    assert await asyncio.to_thread(come) == b""
    words = {b"\x16": "neither HTTP nor noded", b"n": "(version)", b"S": "neither HTTP", b"G": "did not say within"}
    await refused(node, caplog, words[data[:1]])


async def test_a_replay_inside_tls(node: Node, files: TlsFiles, caplog: pytest.LogCaptureFixture) -> None:
    """What a peer has sent once is worth nothing again, even to who could read it."""
    context = client_context(files)
    said: list[bytes] = []

    def talk(replayed: list[bytes] | None) -> bytes:
        with socket.create_connection(("127.0.0.1", node.port), SECONDS) as sock:
            secure = context.wrap_socket(sock)
            handshake = ClientHandshake(TOKEN, "head")
            secure.sendall(replayed[0] if replayed else handshake.start())
            hello = exactly(secure, 64)
            proof = replayed[1] if replayed else handshake.feed(hello)
            said.extend((handshake.start(), proof))
            secure.sendall(proof)
            end = secure.recv(1)
            secure.close()
            return end

    assert await asyncio.to_thread(talk, None) == b"\x01"
    await until(lambda: node.control, "the first must arrive")
    node.control.pop()[0].close()
    assert await asyncio.to_thread(talk, said[:2]) == b""
    await refused(node, caplog, "handshake failed (bad_token)")


async def test_who_does_not_finish_is_shown_out(
    node: Node, files: TlsFiles, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GUEST_SECONDS", 0.3)

    def begin(secured: bool, data: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", node.port), SECONDS) as sock:
            if not secured:
                sock.sendall(data)
                return to_end(sock)
            secure = client_context(files).wrap_socket(sock)
            secure.sendall(data)
            got = to_end(secure)
            secure.close()
            return got

    for secured, data in ((False, b"\x16"), (False, b""), (True, b""), (True, b"noded/1 peer\n")):
        assert await asyncio.to_thread(begin, secured, data) == b""
    await refused(node, caplog, "it did not say within 0.3 s who it is")


async def test_deadlines_are_kept_in_order_of_arrival(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that gets its tunnel late does not fall behind those that came after it."""
    clients = [socket.create_connection(("127.0.0.1", node.port), SECONDS) for _ in range(3)]
    wait_for(lambda: len(node.listener._guests) == 3, "all must be there")
    clients[0].sendall(b"\x16")
    wait_for(lambda: any(guest.tunnel for guest in node.listener._guests.values()), "it gets a tunnel")
    guests = list(node.listener._guests.values())
    assert guests[0].tunnel and [g.deadline for g in guests] == sorted(g.deadline for g in guests)
    assert all(guest.sock.fileno() == fd for fd, guest in node.listener._guests.items())
    for client in clients:
        client.close()


async def test_tunnels_are_bounded_as_guests_are(node: Node, files: TlsFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_GUESTS", 3)
    clients = [socket.create_connection(("127.0.0.1", node.port), SECONDS) for _ in range(5)]
    for client in clients:
        client.sendall(b"\x16")
    wait_for(lambda: len(tunnels()) == 3, "there is room for three")
    assert len(node.listener._guests) == 3
    for client in clients:
        client.close()
    assert (await node.ask("/healthz", without_certificate(files)))[0] == 200


async def test_stop_ends_what_nobody_has_taken(files: TlsFiles) -> None:
    node = Node(server_context(files)).start()
    with socket.create_connection(("127.0.0.1", node.port), SECONDS) as client:
        client.sendall(b"\x16")
        wait_for(tunnels, "it must have a tunnel")
        await node.stop()
        assert to_end(client) == b""
    wait_for(lambda: not tunnels(), "the tunnel ends with its guest")


# --- the side that connects ------------------------------------------------------------------------------


async def test_dial_without_tls(plain: Node) -> None:
    for target in ("peer", "head", "transfer", "node", "node/ab", "worker/cd"):
        with await asyncio.to_thread(dial, plain.address, TOKEN, target) as sock:
            await until(lambda: plain.control, "the connection must arrive")
            taken, got, _ = plain.control.pop()
            with taken:
                assert got == target and not sock.getblocking()
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                for each in (sock, taken):
                    assert each.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


async def test_dial_ipv6(files: TlsFiles) -> None:
    for server, client in ((server_context(files), client_context(files)), (None, None)):
        node = Node(server, "::1").start()
        try:
            (await asyncio.to_thread(dial, node.address, TOKEN, "peer", tls=client)).close()
            await until(lambda: node.control, "it must arrive")  # noqa: B023
            assert node.address.startswith("[::1]:") and node.control[0][0].getsockname()[:2] == ("::1", node.port)
        finally:
            await node.stop()


async def test_dial_takes_the_first_address_that_answers_and_looks_again_each_time(
    plain: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    (await asyncio.to_thread(dial, f"localhost:{plain.port}", TOKEN, "peer")).close()
    found = [
        (socket.AF_INET6, socket.SOCK_STREAM, 0, "", ("::1", plain.port, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", plain.port)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    (await asyncio.to_thread(dial, "node.example:1", TOKEN, "peer")).close()
    del found[1]
    with pytest.raises(ConnectionRefusedError, match=r"node\.example:1"):
        await asyncio.to_thread(dial, "node.example:1", TOKEN, "peer")


async def test_dial_a_wrong_token(plain: Node) -> None:
    with pytest.raises(HandshakeError, match="does not have our cluster token"):
        await asyncio.to_thread(dial, plain.address, b"another token", "peer")
    with pytest.raises(ValueError, match="bad handshake target"):
        await asyncio.to_thread(dial, plain.address, TOKEN, "daemon")


@pytest.mark.parametrize("secured", [False, True])
def test_dial_where_nobody_listens(files: TlsFiles, secured: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    tls = client_context(files) if secured else None
    for host in ("127.0.0.1", "localhost"):  # all addresses of a name refuse
        with pytest.raises(ConnectionRefusedError, match=f"cannot connect to {host}:{port}: Connection refused"):
            dial(f"{host}:{port}", TOKEN, "peer", tls=tls)


@pytest.mark.parametrize("secured", [False, True])
def test_dial_who_never_answers(files: TlsFiles, secured: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(TimeoutError, match=f"{address} did not answer in time"):
            dial(address, TOKEN, "peer", tls=client_context(files) if secured else None, timeout=0.2)


def test_dial_names_that_are_none() -> None:
    with pytest.raises(OSError, match=r"no-such-host\.invalid cannot be resolved"):
        dial("no-such-host.invalid:1", TOKEN, "peer")
    assert split_address("[::1]:8265") == ("::1", 8265)
    assert split_address("a.example:1") == ("a.example", 1)
    for bad in ("", "a", "a:", ":1", "a:0", "a:65536", "a:x", "a:-1", "a:\u0661"):
        with pytest.raises(ValueError, match="is no address"):
            split_address(bad)
    with pytest.raises(ValueError, match="in brackets"):
        split_address("::1:8265")


def serve_once(answer: Callable[[socket.socket], None]) -> tuple[str, threading.Thread]:
    """The address of a server that takes one connection."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with server, server.accept()[0] as sock:
            answer(sock)

    thread = threading.Thread(target=serve)
    thread.start()
    return f"127.0.0.1:{server.getsockname()[1]}", thread


def test_dial_a_server_that_speaks_before_it_is_asked() -> None:
    def answer(sock: socket.socket) -> None:
        handshake = ServerHandshake(TOKEN)
        while not handshake.done:
            reply = handshake.feed(sock.recv(4096))
            sock.sendall(reply + (b"more" if handshake.done else b""))

    address, thread = serve_once(answer)
    with pytest.raises(HandshakeError, match="more than the handshake") as caught:
        dial(address, TOKEN, "peer")
    assert caught.value.reason == "leftover"
    thread.join()
