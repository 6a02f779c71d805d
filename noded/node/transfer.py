"""What both ends of a transfer between nodes share: a value that is arriving, and how its bytes get into the arena.

The serving end is ``transfer_server.py``, the pulling end ``transfer_pull.py``, the format ``wire/chunks.py``. None of
them knows who holds an object or where a copy is: that comes in as callables.

Bytes are received into a small buffer and written with ``pwrite``. That is faster than receiving into the mapping:
each page of it would fault once in this process, which costs more than the second copy out of the cache.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import msgspec

from noded.wire.chunks import Channel

CHUNK = 8 << 20
BUFFER = 1 << 20
IDLE_LIMIT = 8
"""Per address: as many as there are threads for small values, else each burst of them dials anew."""
IDLE_SECONDS = 10.0
_own = threading.local()


class WriteFailed(Exception):
    """The arena takes no more bytes: no memory is left."""


class Incoming:
    """Which parts of a value have arrived. Each chunk fills from its start. Any thread may wait."""

    def __init__(self, size: int):
        self.size = size
        self.failed = False
        self.changed_at = time.monotonic()
        self._arrived = [0] * -(-size // CHUNK)
        self._missing = size
        self._waiting = 0
        self._condition = threading.Condition()

    @property
    def complete(self) -> bool:
        return self._missing == 0

    def wait(self, start: int, end: int, timeout: float) -> bool:
        """Whether these bytes are there, now or within so many seconds; False at once when it has failed."""
        with self._condition:
            self._waiting += 1
            try:
                self._condition.wait_for(lambda: self.failed or self._has(start, end), timeout)
            finally:
                self._waiting -= 1
            return self._has(start, end) and not self.failed

    def _has(self, start: int, end: int) -> bool:
        if not self._missing:
            return end <= self.size
        while start < end:
            index = start // CHUNK
            upto = min(end, (index + 1) * CHUNK)
            if self._arrived[index] < upto - index * CHUNK:
                return False
            start = upto
        return True

    def fail(self) -> None:
        with self._condition:
            self.failed = True
            self._condition.notify_all()

    def add(self, index: int, count: int) -> None:
        """So many bytes more of this chunk are in the arena."""
        with self._condition:
            self._arrived[index] += count
            self._missing -= count
            self.changed_at = time.monotonic()
            if self._waiting:
                self._condition.notify_all()

    def rest_of(self, index: int) -> tuple[int, int]:
        """Where the first byte of this chunk lies that is missing, and how many there are."""
        at = index * CHUNK + self._arrived[index]
        return at, min((index + 1) * CHUNK, self.size) - at


class NotYet(Exception):
    """The value is on its way here, and its place is yet to be found."""


class Target(msgspec.Struct):
    """Where a value that comes is written, and what is to be called, on the loop, when it is there or will not be."""

    fd: int
    offset: int
    done: Callable[[], None]
    """May raise chunks.Refused."""
    give_up: Callable[[], None]


class Source(msgspec.Struct):
    """A value that stays where it is until ``close``, which is called on the loop."""

    offset: int
    size: int
    close: Callable[[], None]
    progress: Incoming | None = None
    """Of a value that is itself still arriving. Its place is kept until ``close`` also when it fails."""
    fd: int = -1
    """Of the file that it is in; -1: in the arena."""


class IdleChannels:
    """Connections that may be used again, a few per address. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[str, list[tuple[Channel, float]]] = {}
        self._closed = False

    def __len__(self) -> int:
        return sum(len(idle) for idle in self._idle.values())

    def take(self, address: str) -> Channel | None:
        with self._lock:
            while idle := self._idle.get(address):
                channel, _ = idle.pop()
                if channel.is_quiet():
                    return channel
                channel.close()
            self._idle.pop(address, None)
            return None

    def give(self, address: str, channel: Channel) -> None:
        with self._lock:
            idle = self._idle.setdefault(address, [])
            if self._closed or len(idle) >= IDLE_LIMIT:
                channel.close()
            else:
                idle.append((channel, time.monotonic()))

    def close(self, older_than: float = -1.0) -> None:
        """Those that have been idle for so long; by default all, for good."""
        with self._lock:
            self._closed = self._closed or older_than < 0
            now = time.monotonic()
            for address, idle in list(self._idle.items()):
                for channel, since in idle:
                    if now - since > older_than:
                        channel.close()
                self._idle[address] = [(c, since) for c, since in idle if now - since <= older_than]
                if not self._idle[address]:
                    del self._idle[address]


def receive_into(channel: Channel, fd: int, offset: int, size: int, arrived: Callable[[int], None]) -> None:
    """Exactly ``size`` bytes to ``offset`` of the file. Raises OSError for the connection, WriteFailed for the file."""
    buffer: memoryview | None = getattr(_own, "buffer", None)
    if buffer is None:
        buffer = _own.buffer = memoryview(bytearray(BUFFER))
    end = offset + size
    while offset < end:
        count = channel.receive(buffer[: min(BUFFER, end - offset)])
        write_all(fd, buffer[:count], offset)
        offset += count
        arrived(count)


def write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        try:
            count = os.pwrite(fd, data, offset)
        except OSError as error:
            raise WriteFailed(f"cannot write {len(data)} bytes to the object store: {error}") from error
        data, offset = data[count:], offset + count
