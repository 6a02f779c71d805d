"""A link that survives its connections: whatever breaks when, each frame arrives once and in order."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from noded.wire.link import LinkClosed
from noded.wire.messages import _Message
from noded.wire.session_link import _ACK_BYTES, _ACK_FRAMES, SessionLink


class Number(_Message, tag=1):
    value: int


class Got(_Message, tag=2):
    count: int


class Hello(_Message, tag=3):
    count: int


decode = msgspec.msgpack.Decoder(Number | Got | Hello).decode


class Side:
    """``known``: it still has the session."""

    def __init__(self, sock: socket.socket, rng: random.Random):
        self.rng = rng
        self.link = SessionLink(sock, decode, Got, lambda m: type(m) is Got, lambda m: type(m) is Hello)
        self.sent: list[tuple[int, bytes]] = []
        self.arrived: list[tuple[int, bytes]] = []
        self.hellos: list[int] = []

    def send(self, size: int) -> None:
        payload = self.rng.randbytes(size)
        self.sent.append((len(self.sent), payload))
        self.link.send(Number(len(self.sent) - 1), payload)

    def handle(self, message: Any, payload: bytes | memoryview) -> None:
        if type(message) is Hello:
            self.hellos.append(message.count)
        else:
            self.arrived.append((message.value, bytes(payload)))

    def flush(self) -> bool:
        return self.link.flush()

    def receive(self, rounds: int = 8) -> None:
        self.link.receive(self.handle, rounds=rounds)


_made: list[socket.socket] = []


@pytest.fixture(autouse=True)
def no_socket_stays() -> Iterator[None]:
    yield
    while _made:
        _made.pop().close()


class Pair:
    """``left`` has dialed; ``right`` answers its hello with how much it has."""

    def __init__(self, seed: int = 0):
        self.rng = random.Random(seed)
        one, two = self._sockets()
        self.left, self.right = Side(one, self.rng), Side(two, self.rng)
        self.sides = (self.left, self.right)

    def _sockets(self) -> tuple[socket.socket, socket.socket]:
        pair = socket.socketpair()
        for each in pair:
            _made.append(each)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return pair

    def broken(self) -> None:
        for side in self.sides:
            side.link.suspend()

    def again(self) -> None:
        one, two = self._sockets()
        self.left.link.resume(one, Hello(self.left.link.received))
        self.right.link.resume(two, Got(self.right.link.received))
        self.right.hellos.clear()

    def do(self, side: Side, what: str) -> None:
        """A connection may turn out to be broken; then both ends know sooner or later."""
        try:
            side.flush() if what == "flush" else side.receive(self.rng.randint(1, 3))
        except LinkClosed:
            assert not side.link.lost
            side.link.suspend()
        self._take_hello()

    def _take_hello(self) -> None:
        """The first word of who dialed is how much has arrived there; the answerer takes it as an ack."""
        while self.right.hellos:
            self.right.link.on_ack(self.right.hellos.pop(0))

    def finish(self) -> None:
        for _ in range(10_000):
            if any(side.link.suspended for side in self.sides):
                self.broken()
                self.again()
            for side in self.sides:
                self.do(side, "flush")
                self.do(side, "receive")
            if self.left.arrived == self.right.sent and self.right.arrived == self.left.sent:
                return
        raise AssertionError("not all arrives")

    def check(self) -> None:
        for side, other in ((self.left, self.right), (self.right, self.left)):
            assert side.arrived == other.sent[: len(side.arrived)], "not once, or not in order"
            assert side.link.received == len(side.arrived)


_ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 1), st.sampled_from([0, 1, 100, 3000, 20_000, 300_000])),
        st.tuples(st.sampled_from(["flush", "receive"]), st.integers(0, 1), st.just(0)),
        st.tuples(st.sampled_from(["break", "cut", "again", "ack"]), st.integers(0, 1), st.just(0)),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(actions=_ACTIONS, seed=st.integers(0, 1000))
def test_each_frame_arrives_once_and_in_order(actions: list[tuple[str, int, int]], seed: int) -> None:
    while _made:
        _made.pop().close()
    pair = Pair(seed)
    for what, which, size in actions:
        side = pair.sides[which]
        if what == "send":
            side.send(size)
        elif what in ("flush", "receive"):
            pair.do(side, what)
        elif what == "break":
            pair.broken()
        elif what == "cut":  # one end is gone with what it has not read; the other finds out
            side.link.suspend()
        elif what == "ack":
            side.link.acknowledge()
        elif any(each.link.suspended for each in pair.sides):
            pair.broken()
            pair.again()
        pair.check()
    pair.finish()
    pair.check()
    for side in pair.sides:
        side.link.acknowledge()
    pair.finish()
    for _ in range(10):
        for side in pair.sides:
            pair.do(side, "flush")
            pair.do(side, "receive")
    for side in pair.sides:
        assert not side.link._kept, "what has arrived is kept"


@pytest.mark.parametrize("at", range(0, 400, 7))
def test_a_connection_that_breaks_at_any_byte(at: int) -> None:
    """So many bytes of what one side writes get through."""
    pair = Pair(at)
    for size in (0, 50, 0, 100, 30, 60):
        pair.left.send(size)
        pair.right.send(size + 1)
    stream = bytearray()
    pair.left.flush()
    pair.right.link.sock.setblocking(True)
    stream += pair.right.link.sock.recv(1 << 20)
    assert len(stream) > 250
    pair.broken()
    one, two = pair._sockets()
    one.sendall(bytes(stream[:at]))
    one.close()
    pair.left.link.suspended = pair.right.link.suspended = False
    pair.right.link.sock = two
    two.setblocking(False)
    with pytest.raises(LinkClosed):
        while True:
            pair.right.receive()
    pair.right.link.suspend()
    pair.left.link.suspended = True
    pair.again()
    pair.finish()
    pair.check()


def test_what_has_arrived_is_kept_no_longer_and_that_is_told_by_frames_or_bytes() -> None:
    for count, size in ((_ACK_FRAMES, 0), (3, _ACK_BYTES // 2)):
        pair = Pair()
        for _ in range(count):
            pair.left.send(size)
        assert len(pair.left.link._kept) == count
        for _ in range(3000):
            for side in pair.sides:
                pair.do(side, "flush")
                pair.do(side, "receive")
        assert pair.right.arrived == pair.left.sent and len(pair.left.link._kept) == 0
        assert not pair.left.arrived and pair.left.link.received == 0, "acks are no frames"


def test_an_ack_twice_or_an_old_one_is_harmless() -> None:
    pair = Pair()
    for _ in range(5):
        pair.left.send(1)
    for count in (2, 2, 1, 0):
        pair.left.link.on_ack(count)
    assert len(pair.left.link._kept) == 3 and not pair.left.link.lost


def test_it_is_lost_when_the_other_side_does_not_know_the_session() -> None:
    pair = Pair()
    pair.left.send(1)
    pair.left.flush()
    pair.broken()
    one, two = pair._sockets()
    pair.left.link.resume(one, Hello(0))
    stranger = SessionLink(two, decode, Got, lambda m: type(m) is Got)
    stranger.send_uncounted(Got(-1))
    stranger.flush()
    with pytest.raises(LinkClosed, match="does not know this session"):
        pair.left.receive()
    assert pair.left.link.lost


def test_it_is_lost_when_the_other_side_has_forgotten_what_it_had() -> None:
    """It has said before that more had arrived, and that is not kept any more."""
    pair = Pair()
    for _ in range(3):
        pair.left.send(1)
    pair.left.flush()
    pair.left.link.on_ack(2)
    pair.broken()
    pair.left.link.resume(pair._sockets()[0], Hello(0))
    pair.left.link.on_ack(1)
    assert pair.left.link.lost


def test_without_a_connection_it_keeps_and_waits() -> None:
    pair = Pair()
    pair.broken()
    link = pair.left.link
    assert link.fileno() == -1
    pair.left.send(1000)
    assert link.flush() and link.unsent == 1 and link.unsent_bytes > 1000
    pair.left.receive()
    assert not pair.left.arrived
    pair.again()
    assert link.unsent_bytes > 1000, "what waits for the other side's word counts as unsent"
    pair.finish()
    assert link.unsent_bytes == 0


def test_closing_ends_it_in_either_state() -> None:
    pair = Pair()
    pair.left.send(1)
    pair.left.link.suspend()
    pair.left.link.close()
    pair.right.link.close()
    assert pair.left.link.closed and not pair.left.link._kept and pair.right.link.closed
    pair.right.link.suspend()
    assert not pair.right.link.suspended
