"""Frames over a socket: whatever the chunks, the messages that were sent, or an error; never a hang, never
nonsense, and no memory for bytes that were only announced.
"""

from __future__ import annotations

import os
import random
import resource
import socket
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noded.wire import link as link_module
from noded.wire import messages as m
from noded.wire.link import FDS_LIMIT, FrameError, Link, LinkClosed

Frame = tuple[Any, bytes]

_SIZES = st.one_of(st.integers(0, 40), st.sampled_from([65535, 65536, 65537, 262_140, 262_144, 300_000, 1_200_000]))
_MESSAGES: st.SearchStrategy[Any] = st.one_of(
    st.builds(m.Done, st.integers(0, 2**40), st.integers(0, 2**31)),
    st.builds(m.Returned, st.lists(st.integers(0, 2**63), max_size=30), st.integers(0, 9)),
    st.builds(m.DoneMany, st.just(1), st.just(2), st.just(3), st.just([(1, 2, b"x" * 16)] * 9000)),
)
_FRAMES: st.SearchStrategy[list[Frame]] = st.lists(
    st.tuples(_MESSAGES, _SIZES.map(lambda n: b"ab%d" % n * n)), max_size=8
)


class Pair:
    """A link that reads, and the raw socket of its peer."""

    def __init__(self, decode: Callable[..., Any] = m.decode_from_worker, **options: Any) -> None:
        self.peer, sock = socket.socketpair()
        self.peer.setblocking(False)
        self.link = Link(sock, decode, **options)
        self.got: list[Frame] = []

    def take(self, message: Any, payload: Any) -> None:
        self.got.append((message, bytes(payload)))

    def feed(self, data: bytes, chunk: Callable[[], int], receive: Callable[..., None]) -> None:
        """Write all of data in pieces, reading in between."""
        at = 0
        while at < len(data):
            size = chunk()
            try:
                at += self.peer.send(data[at : at + size])
            except BlockingIOError:
                pass
            receive(self.take)
        for _ in range(2 + len(data) // 65536):
            receive(self.take)

    def close(self) -> None:
        self.peer.close()
        self.link.close()

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def pump(step: Callable[[], bool], reason: str | Callable[[], str], seconds: float = 30) -> None:
    """Both ends are this thread's, so there is nothing to sleep for."""
    deadline = time.monotonic() + seconds
    while not step():
        assert time.monotonic() < deadline, (
            f"not after {seconds:g} s: {reason if isinstance(reason, str) else reason()}"
        )


def wire(frames: list[Frame]) -> bytes:
    out = b""
    for message, payload in frames:
        header = m.encode(message)
        out += struct.pack("<II", len(header), len(payload)) + header + payload
    return out


@settings(max_examples=60)
@given(frames=_FRAMES, seed=st.integers(0, 2**32), scale=st.sampled_from([7, 5000, 1 << 20]), fds=st.booleans())
def test_any_chunking_delivers_what_was_sent(frames: list[Frame], seed: int, scale: int, fds: bool) -> None:
    data, dice = wire(frames), random.Random(seed)
    if len(data) > 20_000:
        scale = max(scale, 5000)
    with Pair() as pair:
        receive = pair.link.receive_with_fds if fds else pair.link.receive
        pair.feed(data, lambda: dice.randint(1, scale), receive)
        assert pair.got == frames
        pair.peer.close()
        with pytest.raises(LinkClosed):
            for _ in range(3):
                receive(pair.take)


@given(frames=_FRAMES, garbage=st.binary(min_size=1, max_size=400), seed=st.integers(0, 2**32))
def test_garbage_is_refused_or_waits(frames: list[Frame], garbage: bytes, seed: int) -> None:
    dice = random.Random(seed)
    with Pair() as pair:
        try:
            pair.feed(wire(frames[:2]) + garbage, lambda: dice.randint(1, 1 << 18), pair.link.receive)
        except FrameError:
            pass
        assert pair.got[:2] == frames[:2], "what came before the garbage is as it was sent"
        for message, _ in pair.got[2:]:  # garbage that reads as a message is one: of this protocol, and no other
            assert isinstance(message, (m.Done, m.DoneMany, m.Failed, m.Returned, m.Stale))


@given(data=st.binary(max_size=300))
@pytest.mark.parametrize("decode", [m.decode_to_daemon, m.decode_to_client, m.decode_to_worker, m.decode_from_worker])
def test_no_header_raises_anything_else(decode: Callable[..., Any], data: bytes) -> None:
    frame = struct.pack("<II", len(data), 0) + data
    with Pair(decode) as pair:
        try:
            pair.feed(frame, lambda: 1 << 18, pair.link.receive)
        except FrameError:
            return
        assert len(pair.got) == 1


@pytest.mark.parametrize(
    "header",
    [
        b"\x91" * 60_000,
        b"\x92\x5a\xd9\xff" + b"\xff" * 255,
        b"\xc1",
        b"\x93\x5a\xa1a\x01",
        b"\x93\x01\x01\x01",
        b"\x5a",
    ],
    ids=["nested", "no utf-8", "never used", "of another type", "of another protocol", "no array"],
)
def test_bad_headers(header: bytes) -> None:
    with Pair() as pair, pytest.raises(FrameError, match="none"):
        pair.feed(struct.pack("<II", len(header), 0) + header, lambda: 1 << 18, pair.link.receive)


@pytest.mark.parametrize("sizes", [(0, 0), (0, 5), ((64 << 20) + 1, 0), (5, 1001), (2**32 - 1, 2**32 - 1)])
def test_lengths_over_the_limit_are_refused_at_once(sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    # A small limit is looked at only for what is over 64 KB, which small messages need not pay for.
    limit = 1000 if sizes[1] != 1001 else 65536
    payload = 65537 if sizes[1] == 1001 else sizes[1]
    with Pair(payload_limit=limit) as pair, pytest.raises(FrameError, match=r"over the limit of 67108864 \+"):
        pair.feed(struct.pack("<II", sizes[0], payload), lambda: 8, pair.link.receive)


def test_what_is_only_announced_takes_no_memory() -> None:
    tracemalloc.start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with Pair() as pair:
            head = struct.pack("<II", 10, 2**32 - 1) + b"x" * 100_000
            pair.feed(head, lambda: 1 << 18, pair.link.receive)
            assert not pair.got
            _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 << 20, f"a header that announces 4 GB took {peak >> 20} MB"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_a_big_message_grows_as_it_comes() -> None:
    """40 MB: over the step in which room is made."""
    payload = random.Random(1).randbytes(1 << 20) * 40
    frames: list[Frame] = [(m.Done(1, 2), payload), (m.Done(2, 2), b"next")]
    with Pair() as pair:
        sender = Link(pair.peer, m.decode_from_worker)
        for frame in frames:
            sender.send(*frame)

        def step() -> bool:
            sender.flush()
            pair.link.receive(pair.take)
            return len(pair.got) == 2

        pump(step, "both messages must arrive", 60)
        assert pair.got == frames
        assert sender.unsent == sender.unsent_bytes == 0


@pytest.fixture
def narrow() -> Iterator[tuple[Link, Link]]:
    """Two links over sockets with hardly any buffer."""
    one, two = socket.socketpair()
    for sock in (one, two):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
    ends = Link(one, m.decode_from_worker), Link(two, m.decode_from_worker)
    yield ends
    for end in ends:
        end.close()


def test_partial_writes_both_ways_at_once(narrow: tuple[Link, Link]) -> None:
    dice = random.Random(7)
    sizes = [0, 1, 8, 100, 4096, 5000, 66_000, 300_000]
    sent = [[(m.Done(i, i % 7), dice.randbytes(dice.choice(sizes))) for i in range(60)] for _ in narrow]
    got: list[list[Frame]] = [[], []]
    partial = 0
    for link, frames in zip(narrow, sent, strict=True):
        for at, frame in enumerate(frames):
            link.send(*frame)
            if at % 7 == 0:
                link.flush()

    def step() -> bool:
        nonlocal partial
        for at, link in enumerate(narrow):
            partial += not link.flush()
            link.receive(lambda message, payload, at=at: got[at].append((message, bytes(payload))))  # type: ignore[misc]
        return len(got[0]) == len(got[1]) == 60

    pump(step, lambda: f"{len(got[0])} and {len(got[1])} of 60 messages arrived", 60)
    assert partial > 10, "the sockets must have been full now and then"
    assert got == [sent[1], sent[0]]
    for link in narrow:
        assert link.flush() and link.unsent == link.unsent_bytes == 0 and not link.out


def test_descriptors_arrive_with_their_message_or_earlier(narrow: tuple[Link, Link]) -> None:
    """Also behind, in front of and between messages that take many reads."""
    giver, taker = narrow
    names: list[str] = []
    seen: list[tuple[int, str]] = []

    def take(message: Any, payload: Any) -> None:
        if message.us:  # one that comes with a descriptor: the oldest that waits is its
            with os.fdopen(taker.fds.pop(0), "rb") as file:
                seen.append((message.seq, file.read().decode()))

    for number in range(20):
        giver.send(m.Done(number, 0), b"z" * (400_000 if number % 5 == 1 else number))
        read_end, write_end = os.pipe()
        os.write(write_end, f"pipe {number}".encode())
        os.close(write_end)
        giver.send_with_fds(m.Done(number, 1), [read_end])
        os.close(read_end)
        names.append(f"pipe {number}")

    def step() -> bool:
        giver.flush()
        taker.receive_with_fds(take)
        return len(seen) == 20

    pump(step, lambda: f"{len(seen)} of 20 descriptors arrived", 30)
    assert seen == list(enumerate(names)) and not taker.fds


def test_descriptors_nobody_asked_for_are_bounded() -> None:
    with Pair() as pair:
        null = os.open(os.devnull, os.O_RDONLY)
        try:
            with pytest.raises(FrameError, match="descriptors"):
                for _ in range(FDS_LIMIT + 1):
                    socket.send_fds(pair.peer, [wire([(m.Done(1, 1), b"")])], [null] * 8)
                    pair.link.receive_with_fds(pair.take)
        finally:
            os.close(null)
        # The leak check of this test sees that close() closes them.


def test_unsent_descriptors_are_closed_with_the_link() -> None:
    with Pair() as pair:
        read_end, write_end = os.pipe()
        pair.link.send_with_fds(m.Done(1, 1), [read_end])
        os.close(read_end)
        with pytest.raises(BlockingIOError):
            pair.peer.recv(1)
        pair.link.close()
        with pytest.raises(BrokenPipeError):
            os.write(write_end, b"x")
        os.close(write_end)


def test_nothing_is_delivered_after_close() -> None:
    """A handler that closes the link (a bad first message) sees no more of what came with it."""
    with Pair() as pair:
        pair.peer.sendall(wire([(m.Done(i, 0), b"") for i in range(100)]))
        seen: list[int] = []

        def close(message: Any, payload: Any) -> None:
            seen.append(message.seq)
            pair.link.close()

        pair.link.receive(close)
        assert seen == [0]


@pytest.mark.parametrize("count", [3, 40_000], ids=["few", "more than the buffer takes"])
def test_a_handler_that_raises_loses_only_its_message(count: int) -> None:
    """An interrupt may strike in a handler: the messages behind it are delivered by the next receive."""
    frames: list[Frame] = [(m.Done(i, 0), b"") for i in range(count)]
    data = wire(frames)
    with Pair() as pair:

        def take(message: Any, payload: Any) -> None:
            pair.take(message, payload)
            if len(pair.got) == 2:
                raise KeyboardInterrupt

        at = 0
        interrupted = 0

        def step() -> bool:
            nonlocal at, interrupted
            try:
                at += pair.peer.send(data[at:])
            except BlockingIOError:
                pass
            try:
                pair.link.receive(take)
            except KeyboardInterrupt:
                interrupted += 1
            return at == len(data) and len(pair.got) == count

        pump(step, lambda: f"{len(pair.got)} of {count} arrived")
        assert interrupted == 1
        assert pair.got == frames


def test_the_end_of_the_peer_is_told_by_both_directions() -> None:
    with Pair() as pair:
        pair.link.send(m.Done(1, 1), b"x" * (1 << 20))
        assert not pair.link.flush()
        pair.peer.close()
        with pytest.raises(LinkClosed):
            pair.link.flush()
        with pytest.raises(LinkClosed):
            pair.link.receive(pair.take)


def test_small_messages_go_out_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of queued messages take few system calls, and keep their order."""
    with Pair() as pair:
        for i in range(5000):
            pair.link.send(m.Done(i, 0), b"p" if i % 3 else b"")
        reader = Link(pair.peer, m.decode_from_worker)
        seen: list[int] = []
        flushes = 0

        def step() -> bool:
            nonlocal flushes
            flushes += 1
            pair.link.flush()
            reader.receive(lambda message, payload: seen.append(message.seq))
            return len(seen) == 5000

        pump(step, lambda: f"{len(seen)} of 5000 arrived")
        assert seen == list(range(5000)) and flushes < 50


def test_limits_are_what_the_protocol_says() -> None:
    assert link_module.PAYLOAD_LIMIT == 2**32 - 1
    assert issubclass(msgspec.ValidationError, link_module._UNREADABLE)
