"""One pull, and the turns of threads at it. ``transfer_pull.py`` decides who has a turn, and with which source."""

from __future__ import annotations

import asyncio
import heapq
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import Any, Protocol

from noded.node.transfer import CHUNK, IdleChannels, Incoming, WriteFailed, receive_into
from noded.wire import chunks
from noded.wire.chunks import Busy, Channel, TransferError

SEVERAL_FROM = 64 << 20
STREAMS = 4
"""A value of at least SEVERAL_FROM bytes comes from so many sources at once."""
_TURN = 4
"""Chunks until a stream makes room for another pull that waits for a thread."""


class End(Enum):
    DONE = auto()  # nothing left to begin
    YIELDED = auto()
    BUSY = auto()
    FAILED = auto()
    NO_ROOM = auto()
    OVER = auto()  # the pull has ended meanwhile


class Turns(Protocol):
    """What streams share: the one who gives them threads."""

    connect: Callable[[str], socket.socket]
    patience: float
    idle: IdleChannels
    waiting: set[Stream]


class Pull:
    """One value on its way: what is to be done, and who is at it."""

    def __init__(self, id_: bytes, size: int, fd: int, offset: int):
        self.id = id_
        self.fd = fd
        self.offset = offset
        self.incoming = Incoming(size)
        self.streams = STREAMS if size >= SEVERAL_FROM else 1
        """How many sources at most at once."""
        self.over = False
        self.ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        """Wakes the loop's side when somebody else ends it."""
        self.began = False
        self._lock = threading.Lock()
        self._next = 0
        self._count = -(-size // CHUNK)
        self._returned: list[int] = []
        self._channels: dict[Stream, Channel] = {}

    def has_work(self) -> bool:
        return not self.over and (self._next < self._count or bool(self._returned))

    def take(self) -> int | None:
        """The first chunk that nobody is at."""
        with self._lock:
            if not self.has_work():
                return None
            if self._returned:
                return heapq.heappop(self._returned)
            self._next += 1
            return self._next - 1

    def give_back(self, index: int) -> None:
        with self._lock:
            heapq.heappush(self._returned, index)

    def attach(self, stream: Stream, channel: Channel) -> bool:
        """Before a stream writes; False when the pull is over, and its place in the arena may be another's."""
        with self._lock:
            if not self.over:
                self._channels[stream] = channel
            return not self.over

    def detach(self, stream: Stream) -> None:
        with self._lock:
            self._channels.pop(stream, None)

    def begin(self) -> None:
        """A thread has turned to it."""
        if not self.began:
            self.began = True
            self.incoming.changed_at = time.monotonic()

    def end(self) -> list[Stream]:
        """On the loop. No stream begins to write any more. Returns those that are at it, which will soon find out."""
        with self._lock:
            self.over = True
            if not self.incoming.complete:
                for channel in self._channels.values():
                    channel.shutdown()
            if not self.ended.done():
                self.ended.set_result(None)
            return list(self._channels)


class Stream:
    """A turn on a connection to one source."""

    def __init__(self, turns: Turns, pull: Pull, address: str):
        self.address = address
        self.reason = ""
        self._turns = turns
        self._pull = pull
        self._asked: deque[int] = deque()
        self._heard = False
        self._lost = False

    def run(self) -> End:
        self._turns.waiting.discard(self)
        if self._pull.over:
            return End.OVER
        self._pull.begin()
        channel = self._turns.idle.take(self.address)
        if channel is not None:
            end = self._run_on(channel)
            if not self._lost or self._heard:
                return end
            # The peer closed it just when it was to be used again.
        try:
            channel = Channel(self._turns.connect(self.address), self._turns.patience)
        except Exception as error:
            self.reason = f"{self.address}: cannot connect: {error}"
            return End.FAILED
        return self._run_on(channel)

    def _run_on(self, channel: Channel) -> End:
        if not self._pull.attach(self, channel):
            channel.close()
            return End.OVER
        end = End.FAILED
        try:
            end = self._transfer(channel)
        except WriteFailed as error:
            self.reason, end = str(error), End.NO_ROOM
        except Busy as error:
            self.reason, end = f"{self.address}: {error}", End.BUSY
        except (OSError, TransferError) as error:
            self.reason, self._lost = f"{self.address}: {error}", isinstance(error, ConnectionError)
        finally:
            self._pull.detach(self)
            while self._asked:
                self._pull.give_back(self._asked.popleft())
            if end in (End.DONE, End.YIELDED):
                self._turns.idle.give(self.address, channel)
            else:
                channel.close()
        return end

    def _transfer(self, channel: Channel) -> End:
        pull, incoming = self._pull, self._pull.incoming
        request, yielding, done = b"", False, 0
        while True:
            yielding = yielding or (done >= _TURN and bool(self._turns.waiting))
            while not yielding and len(self._asked) < chunks.OUTSTANDING and (index := pull.take()) is not None:
                self._asked.append(index)
                request += chunks.GET_REQUEST.pack(chunks.GET, pull.id, *incoming.rest_of(index))
            if request:
                channel.send(request)
                request = b""
            if not self._asked:
                return End.YIELDED if yielding else End.DONE
            index = self._asked[0]
            at, count = incoming.rest_of(index)
            reply = channel.expect(chunks.GET_REPLY.size)
            self._heard = True
            chunks.check_get_reply(reply, count)
            receive_into(channel, pull.fd, pull.offset + at, count, lambda n: incoming.add(index, n))  # noqa: B023
            self._asked.popleft()
            request, done = chunks.READ_REQUEST, done + 1
