"""Values between nodes, with real sockets and real arenas, in one process."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from harness.wait import wait_for

from noded.node import transfer_pull, transfer_server
from noded.node.transfer import CHUNK, IDLE_LIMIT, Incoming, NotYet, Source, Target
from noded.node.transfer_pull import PullCancelled, Puller, PullFailed
from noded.node.transfer_server import TransferServer
from noded.shm import arena as shm
from noded.wire import chunks

ONE = b"object-number-01"
TWO = b"object-number-02"
MB = 1 << 20
_NOISE = random.Random(5).randbytes(3 * MB + 17)


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that differ from chunk to chunk."""
    return (_NOISE[seed:] * (size // (len(_NOISE) - seed) + 1))[:size]


async def none() -> list[str]:
    return []


async def eventually(what: str, condition: Callable[[], Any], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what} did not come true in {seconds:g} s"
        await asyncio.sleep(0.005)


class Node:
    """An arena, what is in it, and both ends of transfers."""

    def __init__(self, world: World, name: str, size: int, patience: float, threads: int = 64) -> None:
        self.name = name
        self.world = world
        self.arena = shm.Arena(shm.create(size), size)
        self.objects: dict[bytes, tuple[int, int]] = {}
        self.partial: dict[bytes, tuple[int, int]] = {}
        self.at = 0
        self.open = 0
        self.stored: dict[bytes, int] = {}
        self.given_up: list[int] = []
        self.room: Callable[[bytes, int], Awaitable[Target]] = self.allocate
        self.server = TransferServer(
            self.arena.fd,
            self.open_source,
            lambda id_, n: self.room(id_, n),
            threads=threads,
            patience=patience,
        )
        self.puller = Puller(self.arena.fd, world.connect, patience=patience)
        self.dials = 0

    def place(self, size: int) -> int:
        at, self.at = self.at, self.at + shm.footprint(size)
        assert self.at <= self.arena.size
        return at

    def put(self, id_: bytes, value: bytes) -> None:
        offset = self.place(len(value))
        self.arena.copy_in(offset, value)
        self.objects[id_] = (offset, len(value))

    def open_source(self, id_: bytes) -> Source | None:
        assert threading.current_thread() is threading.main_thread()
        progress = self.puller.incoming(id_)
        found = self.objects.get(id_) or (self.partial.get(id_) if progress is not None else None)
        if found is None:
            return None
        self.open += 1
        return Source(*found, self.close_source, progress)

    def close_source(self) -> None:
        assert threading.current_thread() is threading.main_thread()
        self.open -= 1

    async def allocate(self, id_: bytes, size: int) -> Target:
        offset = self.place(size)
        return Target(self.arena.fd, offset, lambda: self.on_stored(id_, offset), lambda: self.given_up.append(offset))

    def on_stored(self, id_: bytes, offset: int) -> None:
        self.stored[id_] = offset

    async def pull(
        self, id_: bytes, size: int, *sources: str, more: Callable[[], Awaitable[list[str]]] = none
    ) -> bytes:
        offset = self.place(size)
        self.partial[id_] = (offset, size)
        await self.puller.pull(id_, size, offset, list(sources), more)
        self.objects[id_] = (offset, size)
        return bytes(self.arena.view(offset, size))

    async def stop(self) -> None:
        await self.puller.stop()
        await self.server.stop()
        await asyncio.sleep(0)
        assert self.open == 0, f"{self.name}: {self.open} sources were not closed"
        self.arena.close(unmap=True)


Peer = Callable[[socket.socket], None]


class World:
    """Nodes that reach each other by name, over loopback TCP unless ``family`` says otherwise. ``peers`` are
    functions that play a node of their own kind, in a thread per connection.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.nodes: dict[str, Node] = {}
        self.peers: dict[str, Peer] = {}
        self.dials: dict[str, int] = {}
        self.threads: list[threading.Thread] = []
        self.family = socket.AF_INET

    def node(self, name: str, size: int = 32 * MB, patience: float = 5.0, threads: int = 64) -> Node:
        self.nodes[name] = Node(self, name, size, patience, threads)
        return self.nodes[name]

    def pair(self) -> tuple[socket.socket, socket.socket]:
        if self.family == socket.AF_UNIX:
            return socket.socketpair()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            near = socket.create_connection(listener.getsockname())
            return near, listener.accept()[0]

    def connect(self, address: str) -> socket.socket:
        self.dials[address] = self.dials.get(address, 0) + 1
        if address not in self.nodes and address not in self.peers:
            raise ConnectionRefusedError("nobody listens")
        near, far = self.pair()
        if address in self.peers:
            thread = threading.Thread(target=self._play, args=(self.peers[address], far))
            self.threads.append(thread)
            thread.start()
        else:
            self.loop.call_soon_threadsafe(self.nodes[address].server.serve, far)
        return near

    @staticmethod
    def _play(peer: Peer, sock: socket.socket) -> None:
        with sock:
            try:
                peer(sock)
            except OSError:
                pass

    async def stop(self) -> None:
        for node in self.nodes.values():
            await node.stop()
        for thread in self.threads:
            await asyncio.to_thread(thread.join, 10)


def transfer_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("transfer-")]


def sockets() -> int:
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
        except OSError:
            pass
    return count


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    gc.collect()
    before = sockets()
    made = World()
    yield made
    await made.stop()
    assert not transfer_threads()
    assert sockets() == before


def request(sock: socket.socket) -> tuple[bytes, int, int] | None:
    """The next GET, for a peer."""
    while True:
        op = sock.recv(1)
        if op == bytes([chunks.GET]):
            return chunks.GET_REST.unpack(sock.recv(chunks.GET_REST.size, socket.MSG_WAITALL))
        if not op:
            return None


def dies_after(value: bytes, count: int, taken: Callable[[], object] = lambda: True) -> Peer:
    """Sends so many bytes of what it is asked for, and ends once they have been ``taken``."""

    def play(sock: socket.socket) -> None:
        left = count
        while left and (asked := request(sock)) is not None:
            _, offset, length = asked
            part = value[offset : offset + length][:left]
            sock.sendall(chunks.GET_REPLY.pack(chunks.OK, length) + part)
            left -= len(part)
        wait_for(taken, "the bytes that were sent have been read")

    return play


def answers(status: int) -> Peer:
    def play(sock: socket.socket) -> None:
        while request(sock) is not None:
            sock.sendall(chunks.GET_REPLY.pack(status, 0))

    return play


# ------------------------------------------------------------ whole values


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
@pytest.mark.parametrize("size", [0, 1, 65537, CHUNK - 1, CHUNK, CHUNK + 1])
async def test_the_bytes_are_the_same(world: World, size: int, family: socket.AddressFamily) -> None:
    world.family = family
    a, b = world.node("a"), world.node("b")
    a.put(TWO, b"x" * 100)  # so that the value does not lie at 0
    a.put(ONE, noise(size))
    b.place(64)

    assert await b.pull(ONE, size, "a") == noise(size)
    await eventually("closing the source", lambda: a.open == 0)
    assert a.server.sent_bytes == size


@pytest.mark.parametrize("sources", [1, 3])
async def test_a_large_value(world: World, sources: int) -> None:
    size = 100 * MB + 3
    names = [f"s{i}" for i in range(sources)]
    value = noise(size)
    for name in names:
        world.node(name, 128 * MB).put(ONE, value)
    b = world.node("b", 128 * MB)

    assert await b.pull(ONE, size, *names) == value
    await eventually("closing the sources", lambda: not any(world.nodes[name].open for name in names))
    sent = [world.nodes[name].server.sent_bytes for name in names]
    assert sum(sent) == size
    assert all(sent), sent
    assert max(world.dials.values()) == 1


async def test_small_values_use_the_same_connections_again(world: World) -> None:
    a, b = world.node("a"), world.node("b")
    ids = [struct.pack("<16s", b"small%d" % i) for i in range(200)]
    for i, id_ in enumerate(ids):
        a.put(id_, noise(1000 + i, i))

    for i, id_ in enumerate(ids[:50]):
        assert await b.pull(id_, 1000 + i, "a") == noise(1000 + i, i)
    assert world.dials == {"a": 1}
    got = await asyncio.gather(*[b.pull(id_, 1000 + i, "a") for i, id_ in enumerate(ids) if i >= 50])
    assert got == [noise(1000 + i, i) for i in range(50, 200)]
    assert world.dials["a"] <= transfer_pull.THREADS
    assert len(b.puller.idle) <= IDLE_LIMIT


async def test_small_values_pass_large_ones(world: World) -> None:
    """The large values come from a source that does not go on before the small ones are there."""
    go_on = threading.Event()
    value = noise(2 * CHUNK)

    def slow(sock: socket.socket) -> None:
        while (asked := request(sock)) is not None:
            go_on.wait(10)
            _, offset, length = asked
            sock.sendall(chunks.GET_REPLY.pack(chunks.OK, length) + value[offset : offset + length])

    world.peers["slow"] = slow
    a, b = world.node("a"), world.node("b", 256 * MB, patience=15)
    large = [
        asyncio.create_task(b.pull(struct.pack("<16s", b"large%d" % i), len(value), "slow"))
        for i in range(transfer_pull.THREADS + 2)
    ]
    ids = [struct.pack("<16s", b"small%d" % i) for i in range(200)]
    for i, id_ in enumerate(ids):
        a.put(id_, noise(1000 + i, i))
    got = await asyncio.gather(*[b.pull(id_, 1000 + i, "a") for i, id_ in enumerate(ids)])
    assert got == [noise(1000 + i, i) for i in range(200)]
    assert not any(task.done() for task in large)
    go_on.set()
    assert all(got == value for got in await asyncio.gather(*large))


async def test_a_pull_makes_room_for_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a thread for one, a middling value is there before a large one that began first."""
    size = 80 * MB
    a = world.node("a", 128 * MB)
    a.put(ONE, noise(size))
    a.put(TWO, noise(2 * MB, 3))
    b = world.node("b", 128 * MB)
    b.puller._large._max_workers = 1
    order: list[bytes] = []
    connect, began = world.connect, threading.Event()

    def slow_start(address: str) -> socket.socket:
        began.wait(10)
        return connect(address)

    b.puller.connect = slow_start

    async def pull(id_: bytes, n: int, value: bytes) -> None:
        assert await b.pull(id_, n, "a") == value
        order.append(id_)

    first = asyncio.create_task(pull(ONE, size, noise(size)))
    await asyncio.sleep(0)
    second = asyncio.create_task(pull(TWO, 2 * MB, noise(2 * MB, 3)))
    await asyncio.sleep(0)
    began.set()
    await asyncio.gather(first, second)
    assert order == [TWO, ONE]


# ------------------------------------------------------------ sources that fail


@pytest.mark.parametrize("count", [0, 1, CHUNK // 2, CHUNK, 3 * CHUNK + 100])
async def test_another_source_takes_over(world: World, count: int) -> None:
    value = noise(5 * CHUNK - 9)
    a, b = world.node("a", 64 * MB), world.node("b", 64 * MB)

    def taken() -> bool:
        incoming = b.puller.incoming(ONE)
        return incoming is not None and incoming._missing == len(value) - count

    world.peers["dies"] = dies_after(value, count, taken)
    a.put(ONE, value)

    assert await b.pull(ONE, len(value), "dies", "a") == value
    # What had come of the chunk is kept.
    await eventually("the count", lambda: a.server.sent_bytes == len(value) - count)


async def test_one_of_several_dies(world: World) -> None:
    value = noise(80 * MB + 1)
    world.peers["dies"] = dies_after(value, CHUNK + CHUNK // 2)
    for name in ("a", "c"):
        world.node(name, 96 * MB).put(ONE, value)
    b = world.node("b", 96 * MB)

    assert await b.pull(ONE, len(value), "a", "dies", "c") == value


async def test_gone_busy_nobody_malformed(world: World) -> None:
    value = noise(3 * CHUNK)
    world.peers["gone"] = answers(chunks.GONE)
    world.peers["odd"] = answers(7)
    world.node("empty")
    a, b = world.node("a"), world.node("b")
    a.put(ONE, value)

    assert await b.pull(ONE, len(value), "gone", "nobody", "odd", "empty", "a") == value


async def test_a_busy_source_is_asked_again(world: World) -> None:
    value = noise(100)
    times: list[float] = []

    def busy_once(sock: socket.socket) -> None:
        while request(sock) is not None:
            times.append(time.monotonic())
            reply = chunks.GET_REPLY.pack(chunks.OK, 100) + value if len(times) > 2 else chunks.GET_REPLY.pack(2, 0)
            sock.sendall(reply)

    world.peers["busy"] = busy_once
    b = world.node("b")
    assert await b.pull(ONE, 100, "busy") == value
    assert len(times) == 3


async def test_a_silent_source_is_given_up(world: World) -> None:
    value = noise(1000)
    end = threading.Event()
    world.peers["silent"] = lambda sock: end.wait(10) and None
    a, b = world.node("a"), world.node("b", patience=0.3)
    a.put(ONE, value)
    assert await b.pull(ONE, 1000, "silent", "a") == value
    end.set()


async def test_all_fail(world: World) -> None:
    value = noise(2 * CHUNK)
    world.peers["dies"] = dies_after(value, CHUNK // 2)
    world.peers["gone"] = answers(chunks.GONE)
    b = world.node("b")
    asked = 0

    async def more() -> list[str]:
        nonlocal asked
        asked += 1
        return ["gone"]

    with pytest.raises(PullFailed) as failed:
        await b.pull(ONE, len(value), "dies", "nobody", "gone", more=more)
    assert asked == transfer_pull.ROUNDS
    assert len(failed.value.reasons) == 3 + asked
    assert "nobody: cannot connect" in str(failed.value)
    assert b.puller.incoming(ONE) is None
    with pytest.raises(PullFailed, match="there is no source"):
        await b.pull(TWO, 10)


async def test_more_sources_help(world: World) -> None:
    value = noise(2 * CHUNK)
    world.peers["dies"] = dies_after(value, CHUNK // 2)
    a, b = world.node("a"), world.node("b")
    a.put(ONE, value)
    rounds = iter([["dies"], ["dies"], ["a"]])

    async def more() -> list[str]:
        return next(rounds)

    assert await b.pull(ONE, len(value), more=more) == value


async def test_no_room_in_the_arena_is_not_the_sources_fault(world: World) -> None:
    a, b = world.node("a"), world.node("b", 1 << 16)
    a.put(ONE, noise(2 * MB))
    with pytest.raises(PullFailed, match="object store"):
        await b.puller.pull(ONE, 2 * MB, 0, ["a", "a2"], none)
    assert "a2" not in world.dials


# ------------------------------------------------------------ parts


def test_incoming_waits_for_ranges() -> None:
    incoming = Incoming(2 * CHUNK + 10)
    assert not incoming.wait(0, 1, 0)
    incoming.add(1, CHUNK)
    assert incoming.wait(CHUNK, 2 * CHUNK, 0)
    assert not incoming.wait(CHUNK - 1, CHUNK + 1, 0)
    incoming.add(0, 5)
    assert incoming.wait(0, 5, 0)
    assert not incoming.wait(0, 6, 0)
    assert incoming.rest_of(0) == (5, CHUNK - 5)
    assert incoming.rest_of(2) == (2 * CHUNK, 10)
    threading.Timer(0.05, incoming.add, (2, 10)).start()
    assert incoming.wait(2 * CHUNK, 2 * CHUNK + 10, 5)
    threading.Timer(0.05, incoming.fail).start()
    assert not incoming.wait(0, CHUNK, 5)
    assert incoming.failed


async def test_a_chain_of_parts(world: World) -> None:
    """B is still being pulled when C, D begin with B, C."""
    value = noise(60 * MB)
    hold = threading.Event()

    def first(sock: socket.socket) -> None:
        begun = 0
        while (asked := request(sock)) is not None:
            _, offset, length = asked
            if begun == 3:
                hold.wait(10)
            begun += 1
            sock.sendall(chunks.GET_REPLY.pack(chunks.OK, length) + value[offset : offset + length])
            sent.append(length)

    sent: list[int] = []
    world.peers["a"] = first
    b, c, d = (world.node(name, 64 * MB) for name in "bcd")
    pulls = [asyncio.create_task(b.pull(ONE, len(value), "a"))]
    await eventually("the pull of B", lambda: b.puller.incoming(ONE))
    pulls.append(asyncio.create_task(c.pull(ONE, len(value), "b")))
    await eventually("the pull of C", lambda: c.puller.incoming(ONE))
    pulls.append(asyncio.create_task(d.pull(ONE, len(value), "c")))

    def has(node: Node) -> bool:
        incoming = node.puller.incoming(ONE)
        return incoming is not None and incoming.wait(0, 3 * CHUNK, 0)

    await eventually("three chunks at the end of the chain", lambda: has(d))
    assert len(sent) == 3
    hold.set()
    assert all(got == value for got in await asyncio.gather(*pulls))
    assert sum(sent) == len(value)
    await eventually("closing the sources", lambda: not b.open and not c.open)
    assert b.server.sent_bytes == c.server.sent_bytes == len(value)


async def test_a_part_whose_pull_fails(world: World) -> None:
    value = noise(4 * CHUNK)
    end = threading.Event()

    def play(sock: socket.socket) -> None:
        request(sock)
        sock.sendall(chunks.GET_REPLY.pack(chunks.OK, CHUNK) + value[: CHUNK + CHUNK // 2][:CHUNK])
        request(sock)
        end.wait(10)

    world.peers["x"] = play
    a, b, c = world.node("a", 64 * MB), world.node("b", 64 * MB), world.node("c", 64 * MB)
    a.put(ONE, value)
    broken = asyncio.create_task(b.pull(ONE, len(value), "x"))
    await eventually("the pull of B", lambda: b.puller.incoming(ONE))
    pull = asyncio.create_task(c.pull(ONE, len(value), "b", "a"))
    await eventually("what B has", lambda: b.server.sent_bytes >= CHUNK)
    end.set()
    with pytest.raises(PullFailed):
        await broken
    assert await pull == value
    await eventually("the count", lambda: a.server.sent_bytes == 3 * CHUNK)


async def test_a_part_that_makes_no_progress_is_busy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer_server, "BUSY_SECONDS", 0.3)
    value = noise(1000)
    end = threading.Event()

    def play(sock: socket.socket) -> None:
        request(sock)
        end.wait(10)
        sock.sendall(chunks.GET_REPLY.pack(chunks.OK, 1000) + value)
        request(sock)

    world.peers["x"] = play
    a, b, c = world.node("a"), world.node("b"), world.node("c")
    a.put(ONE, value)
    late = asyncio.create_task(b.pull(ONE, 1000, "x"))
    await eventually("the pull of B", lambda: b.puller.incoming(ONE))
    assert await c.pull(ONE, 1000, "b", "a") == value
    end.set()
    assert await late == value


@pytest.mark.parametrize("comes", [True, False])
async def test_a_source_that_has_no_place_for_it_yet(
    world: World, monkeypatch: pytest.MonkeyPatch, comes: bool
) -> None:
    """Whoever was sent there waits: it is about to come, and others have it to send to many."""
    monkeypatch.setattr(transfer_server, "BUSY_SECONDS", 10.0 if comes else 0.1)
    value = noise(1000)
    a, b, c = world.node("a"), world.node("b"), world.node("c")
    asked = 0

    def not_yet(id_: bytes) -> Source | None:
        nonlocal asked
        asked += 1
        if comes and asked > 3:
            return b.open_source(id_)
        raise NotYet

    b.server.open_source = not_yet
    b.put(ONE, value)
    a.put(ONE, value)
    assert await c.pull(ONE, 1000, "b", *([] if comes else ["a"])) == value
    assert asked == 4 if comes else asked > 1


# ------------------------------------------------------------ ends


@pytest.mark.parametrize("how", ["cancel", "task", "stop puller", "stop server"])
async def test_an_end_in_the_middle(world: World, how: str) -> None:
    value = noise(CHUNK)
    end = threading.Event()

    def endless(sock: socket.socket) -> None:
        while request(sock) is not None and not end.is_set():
            sock.sendall(chunks.GET_REPLY.pack(chunks.OK, CHUNK) + value)
            time.sleep(0.05)

    world.peers["x"] = endless
    a, b = world.node("a", 4 * MB), world.node("b", 512 * MB)
    c = world.node("c", 512 * MB)
    pull = asyncio.create_task(b.pull(ONE, 500 * MB, "x"))
    await eventually("the pull of B", lambda: b.puller.incoming(ONE))
    part = asyncio.create_task(c.pull(ONE, 500 * MB, "b"))
    await eventually("what B passes on", lambda: b.server.sent_bytes > CHUNK)
    incoming = b.puller.incoming(ONE)
    assert incoming is not None
    began = time.monotonic()
    if how == "stop server":
        await b.server.stop()
        with pytest.raises(PullFailed):
            await part
        b.puller.cancel(ONE)
    elif how == "stop puller":
        await b.puller.stop()
    elif how == "cancel":
        b.puller.cancel(ONE)
    else:
        pull.cancel()
    with pytest.raises(asyncio.CancelledError if how == "task" else PullCancelled):
        await pull
    assert incoming.failed
    missing = incoming._missing
    if how != "stop server":
        with pytest.raises(PullFailed):
            await part
    assert time.monotonic() - began < 4
    end.set()
    await asyncio.sleep(0.1)
    assert incoming._missing == missing  # nobody has written since
    assert a.open == 0


async def test_an_end_while_connecting(world: World) -> None:
    """The pull ends at once; the thread finds out when it has its connection, and writes nothing."""
    a, b = world.node("a"), world.node("b")
    a.put(ONE, noise(1000))
    go_on, connect = threading.Event(), world.connect

    def slow(address: str) -> socket.socket:
        go_on.wait(10)
        return connect(address)

    b.puller.connect = slow
    pull = asyncio.create_task(b.pull(ONE, 1000, "a"))
    await eventually("the thread", lambda: any("pull" in name for name in transfer_threads()))
    b.puller.cancel(ONE)
    with pytest.raises(PullCancelled):
        await asyncio.wait_for(pull, 3)
    go_on.set()
    await eventually("the connection", lambda: world.dials == {"a": 1})
    await b.puller.stop()
    assert bytes(b.arena.view(0, 1000)) == bytes(1000)
    with pytest.raises(PullCancelled):
        await b.pull(ONE, 1000, "a")


async def test_stop_while_sending(world: World) -> None:
    """The reader has stopped to read; the server ends all the same, and the source is closed."""
    a = world.node("a", 64 * MB)
    a.put(ONE, noise(60 * MB))
    sock = await asyncio.to_thread(world.connect, "a")
    sock.sendall(chunks.GET_REQUEST.pack(chunks.GET, ONE, 0, 60 * MB))
    await eventually("the start", lambda: a.open == 1)
    await a.server.stop()
    await asyncio.sleep(0)
    assert a.open == 0
    sock.close()


async def test_a_reader_that_stops_holds_nothing_for_ever(world: World) -> None:
    a = world.node("a", 64 * MB, patience=0.3)
    a.put(ONE, noise(60 * MB))
    sock = await asyncio.to_thread(world.connect, "a")
    sock.sendall(chunks.GET_REQUEST.pack(chunks.GET, ONE, 0, 60 * MB))
    await eventually("the start", lambda: a.open == 1)
    await eventually("the end", lambda: a.open == 0 and not transfer_threads())
    sock.close()


async def test_a_slow_reader_is_served(world: World) -> None:
    a = world.node("a", 64 * MB, patience=1)
    value = noise(24 * MB)
    a.put(ONE, value)
    sock = await asyncio.to_thread(world.connect, "a")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
    sock.sendall(chunks.GET_REQUEST.pack(chunks.GET, ONE, 0, len(value)))

    def read() -> bytes:
        got = bytearray()
        while len(got) < len(value) + chunks.GET_REPLY.size:
            got += sock.recv(1 << 20)
            if time.monotonic() < began + 2:  # far longer than the server is patient
                time.sleep(0.02)
        return bytes(got[chunks.GET_REPLY.size :])

    began = time.monotonic()
    assert await asyncio.to_thread(read) == value
    assert time.monotonic() > began + 1.5
    assert a.open == 1
    sock.sendall(chunks.READ_REQUEST)
    await eventually("closing the source", lambda: a.open == 0)
    sock.close()


async def test_a_source_stays_until_what_was_sent_is_read(world: World) -> None:
    """Pages are sent by reference: what is written to them now would arrive. And a reader that comes too late must find
    the connection reset instead of other bytes.
    """
    a = world.node("a", patience=0.5)
    a.put(ONE, bytes(4096))
    sock = await asyncio.to_thread(world.connect, "a")
    channel = chunks.Channel(sock)
    channel.send(chunks.GET_REQUEST.pack(chunks.GET, ONE, 0, 4096))
    assert await asyncio.to_thread(channel.expect, chunks.GET_REPLY.size)
    await eventually("the bytes", lambda: a.server.sent_bytes == 4096)
    assert a.open == 1
    await eventually("the end of its patience", lambda: a.open == 0)
    a.arena.copy_in(0, b"x" * 4096)
    with pytest.raises(ConnectionResetError):
        channel.receive(memoryview(bytearray(4096)))
    sock.close()


async def test_idle_connections_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer_pull, "IDLE_SECONDS", 0.2)
    a, b = world.node("a"), world.node("b")
    a.put(ONE, noise(10))
    await b.pull(ONE, 10, "a")
    assert len(b.puller.idle) == 1
    await eventually("the sweep", lambda: not len(b.puller.idle) and not a.server._threads)


async def test_a_connection_that_ended_while_idle(world: World) -> None:
    a, b = world.node("a"), world.node("b")
    a.put(ONE, noise(10))
    a.put(TWO, noise(11))
    await b.pull(ONE, 10, "a")
    for connection in list(a.server._connections):
        connection.channel.shutdown()
    assert await b.pull(TWO, 11, "a") == noise(11)
    assert world.dials["a"] == 2


async def test_more_connections_than_threads(world: World) -> None:
    """Who waits for a thread gets that of one that is idle."""
    a = world.node("a", threads=2)
    pullers = [world.node(f"b{i}") for i in range(6)]
    a.put(ONE, noise(100))
    for _ in range(3):
        for b in pullers:
            b.puller.idle.close(older_than=100)
        got = await asyncio.gather(*[b.pull(ONE, 100, "a") for b in pullers])
        assert got == [noise(100)] * 6


# ------------------------------------------------------------ requests that are wrong


@pytest.mark.parametrize(
    "data",
    [
        b"\x09",
        bytes([chunks.READ]),
        chunks.GET_REQUEST.pack(chunks.GET, ONE, 0, 101),
        chunks.GET_REQUEST.pack(chunks.GET, ONE, 1 << 63, 1 << 63),
        chunks.GET_REQUEST.pack(chunks.GET, ONE, 0, 1) * 3,
    ],
    ids=["op", "read", "length", "offset", "too many"],
)
async def test_malformed_requests(world: World, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    a = world.node("a")
    a.put(ONE, noise(100))
    sock = await asyncio.to_thread(world.connect, "a")
    with caplog.at_level(logging.WARNING, "noded.transfer"):
        sock.sendall(data)
        await eventually("the end", lambda: not transfer_threads() and caplog.records)
    assert len(caplog.records) == 1
    assert "closing a transfer connection" in caplog.text
    await eventually("closing the source", lambda: a.open == 0)
    sock.close()


async def test_half_a_request(world: World) -> None:
    world.node("a")
    sock = await asyncio.to_thread(world.connect, "a")
    sock.sendall(chunks.GET_REQUEST.pack(chunks.GET, ONE, 0, 1)[:9])
    sock.close()
    await asyncio.sleep(0.05)
    await eventually("the end", lambda: not transfer_threads())


# ------------------------------------------------------------ who has no arena


@pytest.mark.parametrize("size", [0, 1, 100, CHUNK + 1])
async def test_store_and_fetch(world: World, size: int) -> None:
    a = world.node("a")
    value = noise(size)
    sock = await asyncio.to_thread(world.connect, "a")
    half = size // 2
    pieces: list[tuple[int, bytes | memoryview]] = [(half, memoryview(value)[half:]), (0, value[:half])]
    await asyncio.to_thread(chunks.store, sock, ONE, pieces, size)
    a.objects[ONE] = (a.stored[ONE], size)
    got = await asyncio.to_thread(chunks.fetch, sock, ONE, size)
    assert bytes(got) == value
    with pytest.raises(chunks.Gone):
        await asyncio.to_thread(chunks.fetch, sock, TWO, 5)
    assert bytes(await asyncio.to_thread(chunks.fetch, sock, ONE, size)) == value
    sock.close()
    assert not a.given_up


async def test_store_fills_gaps_with_zeros(world: World) -> None:
    a = world.node("a")
    a.arena.copy_in(0, b"x" * 1000)
    sock = await asyncio.to_thread(world.connect, "a")
    await asyncio.to_thread(chunks.store, sock, ONE, [(10, b"abc"), (64, b"de")], 100)
    assert bytes(a.arena.view(a.stored[ONE], 100)) == bytes(10) + b"abc" + bytes(51) + b"de" + bytes(34)
    sock.close()
    near, far = socket.socketpair()
    with near, far, pytest.raises(ValueError, match="overlaps"):
        chunks.store(near, ONE, [(0, b"abc"), (2, b"de")], 100)


@pytest.mark.parametrize("size", [10, 60 * MB])
async def test_a_refusal(world: World, size: int) -> None:
    a = world.node("a")

    async def refuse(id_: bytes, n: int) -> int:
        await asyncio.sleep(0.05)
        raise chunks.Refused(f"no room for {n} bytes")

    a.room = refuse
    sock = await asyncio.to_thread(world.connect, "a")
    with pytest.raises(chunks.Refused, match=f"no room for {size} bytes"):
        await asyncio.to_thread(chunks.store, sock, ONE, [(0, bytes(size))], size)
    sock.close()
    assert not a.stored


async def test_a_store_that_breaks_off(world: World) -> None:
    a = world.node("a")
    sock = await asyncio.to_thread(world.connect, "a")
    sock.sendall(chunks.PUT_REQUEST.pack(chunks.PUT, ONE, 1000) + bytes(500))
    await eventually("the room", lambda: a.at)
    sock.close()
    await eventually("giving up", lambda: a.given_up == [0])
    assert not a.stored


async def test_stop_while_a_store_waits_for_room(world: World) -> None:
    a = world.node("a")

    async def never(id_: bytes, n: int) -> int:
        waiting.set()
        await asyncio.sleep(60)
        raise AssertionError

    waiting = asyncio.Event()
    a.room = never
    sock = await asyncio.to_thread(world.connect, "a")
    sock.sendall(chunks.PUT_REQUEST.pack(chunks.PUT, ONE, 1000))
    await waiting.wait()
    await asyncio.wait_for(a.server.stop(), 3)
    sock.close()


def test_fetch_from_a_peer_that_goes() -> None:
    near, far = socket.socketpair()
    far.close()
    with near, pytest.raises(OSError):
        chunks.fetch(near, ONE, 10)
