"""The metrics of one process, in a file of fixed size that it maps: no message per value, and nothing is lost when it
is killed.

One process writes, anybody reads. A series (a metric with its tags) is appended once, and the page's length is changed
last, so that a reader never sees half of one; its values are numbers that change in place. The daemon keeps its own
counts in such a page too, which the daemon after it opens again: so they only grow.

Layout, in the machine's byte order: magic 8 | bytes used u32 | lines u32 | series that found no room u64 | 40 bytes |
then per series: its size u32 | size of its description u32 | the description (``Series`` as msgpack), filled up to 8 |
its values f64: one; of a histogram one per bucket (one more than boundaries), and the sum.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import Any

import msgspec

SIZE = 1 << 20
LINES = 1000
"""So many lines of a page's series are kept: a histogram is one per bucket and two more, all else is one."""
DIRECTORY = "metrics"
"""In a node's directory, which ends with the node."""
SUFFIX = ".page"
_MAGIC = b"NODEDMP1"
_HEAD = struct.Struct("=8sIIQ")
_COUNTS = struct.Struct("=IIQ")
_COUNTS_AT = 8
_FIRST = 64
_SIZES = struct.Struct("=II")
_STEP = 64 << 10
_LONGEST = 4096
_REFUSED_MOST = 1 << 16


class Series(msgspec.Struct, frozen=True, array_like=True):
    """``kind``: counter, gauge or histogram; ``tags``: sorted pairs."""

    kind: str
    name: str
    description: str
    tags: tuple[tuple[str, str], ...] = ()
    boundaries: tuple[float, ...] = ()

    @property
    def numbers(self) -> int:
        """How many values it has."""
        return len(self.boundaries) + 2 if self.kind == "histogram" else 1

    @property
    def lines(self) -> int:
        """Of what Prometheus reads."""
        return len(self.boundaries) + 3 if self.kind == "histogram" else 1


class MetricsPage:
    """The writer's side. ``values`` are all its numbers; ``place`` says where those of a series begin. In memory until
    ``keep`` gives it a file. Not for several threads at once.
    """

    def __init__(self) -> None:
        self._bytes: bytearray | mmap.mmap = bytearray(SIZE)
        self.values = memoryview(self._bytes).cast("d")
        self._used = _FIRST
        self._lines = 0
        self._reserved = SIZE
        self._path = ""
        self._places: dict[Series, int] = {}
        self._refused: set[int] = set()
        self._bytes[: _HEAD.size] = _HEAD.pack(_MAGIC, _FIRST, 0, 0)

    @property
    def empty(self) -> bool:
        return self._used == _FIRST

    def place(self, series: Series) -> int:
        """The index in ``values`` of its first number; -1 when there is no room for one more series."""
        found = self._places.get(series)
        return found if found is not None else self._add(series)

    def keep(self, path: str) -> None:
        """From now on in this new file, with all it has so far; places stay what they are. Raises OSError."""
        data = bytes(memoryview(self._bytes)[: self._used])
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, SIZE)
            reserved = _reserve(fd, 0, len(data))
            memory = mmap.mmap(fd, SIZE)
        finally:
            os.close(fd)
        memory[: len(data)] = data
        self._use(memory, reserved, path)

    def open(self, path: str) -> None:
        """Go on with what an earlier process has written there; begin it where there is nothing. Raises OSError."""
        before = PageReader(path)
        if not before.read():
            self.keep(path)
            return
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            _, self._used, self._lines, _ = _HEAD.unpack(os.pread(fd, _HEAD.size, 0))
            memory = mmap.mmap(fd, SIZE)
            reserved = _reserve(fd, 0, self._used)
        finally:
            os.close(fd)
        self._places = dict(before.places)
        self._use(memory, reserved, path)

    def series(self) -> list[tuple[Series, tuple[float, ...]]]:
        """With their values of now."""
        return [(series, tuple(self.values[at : at + series.numbers])) for series, at in self._places.items()]

    def clear_counts(self) -> None:
        """To 0, but for gauges: what was counted so far counts elsewhere."""
        for series, at in self._places.items():
            if series.kind != "gauge":
                for index in range(at, at + series.numbers):
                    self.values[index] = 0.0

    def forget_file(self) -> None:
        """In memory again, with all it has so far."""
        copy = bytearray(SIZE)
        copy[: self._used] = memoryview(self._bytes)[: self._used]
        self._bytes, self.values = copy, memoryview(copy).cast("d")
        self._reserved, self._path = SIZE, ""

    def _use(self, memory: mmap.mmap, reserved: int, path: str) -> None:
        self._bytes, self.values = memory, memoryview(memory).cast("d")
        self._reserved, self._path = reserved, path

    def _add(self, series: Series) -> int:
        text = msgspec.msgpack.encode(series)
        start = _SIZES.size + (len(text) + 7) // 8 * 8
        size = start + 8 * series.numbers
        end = self._used + size
        if len(text) > _LONGEST or end > SIZE or self._lines + series.lines > LINES or not self._has_room(end):
            return self._refuse(series)
        at = self._used
        self._bytes[at : at + size] = _SIZES.pack(size, len(text)) + text.ljust(size - _SIZES.size, b"\0")
        self._used, self._lines = end, self._lines + series.lines
        _COUNTS.pack_into(self._bytes, _COUNTS_AT, self._used, self._lines, len(self._refused))
        found = self._places[series] = (at + start) // 8
        return found

    def _refuse(self, series: Series) -> int:
        if len(self._refused) < _REFUSED_MOST:
            self._refused.add(hash(series))
            _COUNTS.pack_into(self._bytes, _COUNTS_AT, self._used, self._lines, len(self._refused))
        return -1

    def _has_room(self, end: int) -> bool:
        """The disk's blocks are there before they are written through the map: a full disk would end the process."""
        if end <= self._reserved:
            return True
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            try:
                self._reserved = _reserve(fd, self._reserved, end)
            finally:
                os.close(fd)
        except OSError:
            return False
        return True


def page_path(run_dir: str, prefix: bytes) -> str:
    """Where a node with this directory looks for the page of its client with this prefix."""
    return os.path.join(run_dir, DIRECTORY, prefix.hex() + SUFFIX)


def _reserve(fd: int, start: int, end: int) -> int:
    """Up to where there are blocks now."""
    upto = min(SIZE, (end + _STEP - 1) // _STEP * _STEP)
    os.posix_fallocate(fd, start, upto - start)
    return upto


class PageReader:
    """Of one file, read again and again: what it has learnt about the series it keeps."""

    def __init__(self, path: str):
        self.path = path
        self.places: dict[Series, int] = {}
        self.refused = 0
        """Series that found no room."""
        self._at = _FIRST
        self._values: tuple[float, ...] = ()

    def read(self) -> bool:
        """Whether there is a page (by now), and one that can be read."""
        try:
            with open(self.path, "rb") as file:
                head = file.read(_FIRST)
                if len(head) < _FIRST or not head.startswith(_MAGIC):
                    return False
                _, used, _, self.refused = _HEAD.unpack_from(head)
                data = head + file.read(used - _FIRST)
        except OSError:
            return False
        try:
            self._take_in(data, min(used, len(data)))
        except (msgspec.DecodeError, struct.error):  # not of ours, or damaged
            return False
        return True

    def _take_in(self, data: bytes, end: int) -> None:
        while self._at < end:
            size, length = _SIZES.unpack_from(data, self._at)
            text = data[self._at + _SIZES.size : self._at + _SIZES.size + length]
            series = msgspec.msgpack.decode(text, type=Series)
            self.places[series] = (self._at + _SIZES.size + (length + 7) // 8 * 8) // 8
            self._at += size
        self._values = struct.unpack_from(f"={len(data) // 8}d", data)

    def series(self) -> list[tuple[Series, tuple[float, ...]]]:
        """As of the last ``read``."""
        return [(series, self._values[at : at + series.numbers]) for series, at in self.places.items()]


def as_plain(series: Series, values: tuple[float, ...]) -> Any:
    """A number; of a histogram a dict of its buckets, count and sum."""
    if series.kind != "histogram":
        return values[0]
    return {"buckets": list(values[:-1]), "count": sum(values[:-1]), "sum": values[-1]}
