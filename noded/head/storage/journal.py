"""A file on this host for writes that the backend cannot take now: durable here until they are there.

Append-only: frames of length, checksum and content. The first says whose writes these are (namespace, epoch, owner),
the others are batches with their numbers. A crash may tear the last frame, whose writer was not told that it is
durable; reading ends there. A failed append leaves nothing behind that a later one would follow. Everything here
blocks, and is called in threads, one call at a time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from noded.head.storage import Delete, Op, Put

MAGIC = b"noded journal 1\n"
_FRAME = struct.Struct("<II")
# Far above any batch; a length beyond it is no length.
_LARGEST = 1 << 30


class Owner(msgspec.Struct, array_like=True, frozen=True):
    """Whose writes these are: one opener of one namespace."""

    namespace: str
    epoch: int
    owner: str


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """One batch: table, key and value (None: deleted) of each operation."""

    seq: int
    ops: list[tuple[str, str, bytes | None]]

    @classmethod
    def of(cls, seq: int, ops: Sequence[Op]) -> Entry:
        return cls(seq, [(op.table, op.key, op.value if isinstance(op, Put) else None) for op in ops])

    def operations(self) -> tuple[Op, ...]:
        return tuple(Delete(table, key) if value is None else Put(table, key, value) for table, key, value in self.ops)


class Found(msgspec.Struct, frozen=True):
    """What a journal holds. `torn`: bytes at its end that are no whole frame."""

    owner: Owner
    entries: list[Entry]
    torn: int


def read(path: Path) -> Found | None:
    """None where there is no journal, or one that was torn before anything was durable in it. Raises OSError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if not data.startswith(MAGIC):
        return None
    frames = _frames(data, len(MAGIC))
    try:
        content, at = next(frames)
        owner = msgspec.msgpack.decode(content, type=Owner)
    except (StopIteration, msgspec.DecodeError):
        return None
    entries: list[Entry] = []
    for content, end in frames:
        try:
            entry = msgspec.msgpack.decode(content, type=Entry)
        except msgspec.DecodeError:
            break
        if entries and entry.seq <= entries[-1].seq:
            break
        entries.append(entry)
        at = end
    return Found(owner, entries, len(data) - at)


def set_aside(path: Path, epoch: int) -> Path:
    """Rename it, so that nobody takes it for a living one; where it is now."""
    target = path.with_name(f"{path.name}.stale-epoch-{epoch}")
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.stale-epoch-{epoch}.{number}")
    path.rename(target)
    _sync_directory(path.parent)
    return target


class Journal:
    """The one that is written: it is there from the first append to `clear`."""

    def __init__(self, path: Path, owner: Owner) -> None:
        self.path = path
        self._owner = owner
        self._fd = -1
        self._size = 0
        """Up to here everything is durable."""

    def append(self, entries: Sequence[Entry]) -> None:
        """Durable when it returns; after an OSError it is as it was before."""
        frames = [_frame(msgspec.msgpack.encode(entry)) for entry in entries]
        if self._fd < 0:
            self._create()
        try:
            data = memoryview(b"".join(frames))
            at = self._size
            while data:
                written = os.pwrite(self._fd, data, at)
                at, data = at + written, data[written:]
            os.fsync(self._fd)
        except OSError:
            # After a failed sync the kernel may hold its pages for clean: what is tried again is written again.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise
        self._size = at

    def clear(self) -> None:
        """The backend has it all."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def close(self) -> None:
        """Leave the file for the next head."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def set_aside(self) -> Path | None:
        """Where it is now; None when there is none."""
        self.close()
        return set_aside(self.path, self._owner.epoch) if self.path.exists() else None

    def _create(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            head = MAGIC + _frame(msgspec.msgpack.encode(self._owner))
            if os.write(fd, head) != len(head):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(fd)
            _sync_directory(self.path.parent)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._size = fd, len(head)


def _frame(content: bytes) -> bytes:
    return _FRAME.pack(len(content), zlib.crc32(content)) + content


def _frames(data: bytes, at: int) -> Iterator[tuple[bytes, int]]:
    """Each whole frame's content, and where it ends."""
    while len(data) - at >= _FRAME.size:
        length, checksum = _FRAME.unpack_from(data, at)
        start, at = at + _FRAME.size, at + _FRAME.size + length
        if length > _LARGEST or at > len(data):
            return
        content = data[start:at]
        if zlib.crc32(content) != checksum:
            return
        yield content, at


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
