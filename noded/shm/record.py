"""A value on disk, as daemon and clients read and write it: a record.

A 64-byte header and the value, padded to 64 bytes. The header's state is written last, and again when the value is not
needed any more, so a restarted daemon finds in a file what is there. All here blocks, and raises OSError.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

HEADER_SIZE = 64
UNSEALED, SEALED, FREED = 1, 2, 3
_MAGIC = 0x4C50534E
_HEADER = struct.Struct("<IIQ16s7s")
"""Magic, state, size of the value, id, the client that is to write it."""
_STATE = struct.Struct("<I")
_STATE_AT = 4
_CHUNK = 64 << 20


class Record(NamedTuple):
    """``offset`` is its header's, ``size`` its value's."""

    offset: int
    state: int
    id: bytes
    size: int
    writer: bytes


def footprint(size: int) -> int:
    """Bytes that a record takes."""
    return HEADER_SIZE + ((size + 63) & -64)


def write(
    fd: int,
    at: int,
    id_: bytes,
    pieces: Sequence[tuple[int, bytes | memoryview]],
    size: int,
    writer: bytes = b"",
) -> None:
    """All but the state; ``seal`` comes next. ``pieces``: (where in the value, bytes)."""
    begin(fd, at, id_, size, writer)
    for offset, piece in pieces:
        write_all(fd, piece, at + HEADER_SIZE + offset)


def begin(fd: int, at: int, id_: bytes, size: int, writer: bytes = b"") -> None:
    """``writer``: the client that is to write it."""
    write_all(fd, _HEADER.pack(_MAGIC, UNSEALED, size, id_, writer).ljust(HEADER_SIZE, b"\0"), at)


def seal(fd: int, at: int) -> None:
    _set_state(fd, at, SEALED)


def free(fd: int, at: int) -> None:
    _set_state(fd, at, FREED)


def records(fd: int) -> Iterator[Record]:
    """In order, up to the first place where none was begun."""
    at = 0
    while (found := _read_header(fd, at)) is not None:
        yield found
        at += footprint(found.size)


def read_value(path: str, value_at: int, size: int) -> bytearray:
    """A value into memory of this process."""
    data = bytearray(size)
    view = memoryview(data)
    with open(path, "rb", buffering=0) as file:
        at = 0
        while at < size:
            count = os.preadv(file.fileno(), [view[at : at + _CHUNK]], value_at + at)
            if not count:
                raise OSError(errno.EIO, f"{path} ends before the value does")
            at += count
    return data


def _read_header(fd: int, at: int) -> Record | None:
    data = os.pread(fd, _HEADER.size, at)
    if len(data) < _HEADER.size:
        return None
    magic, state, size, id_, writer = _HEADER.unpack(data)
    return Record(at, state, id_, size, writer) if magic == _MAGIC else None


def _set_state(fd: int, at: int, state: int) -> None:
    write_all(fd, _STATE.pack(state), at + _STATE_AT)


def write_all(fd: int, data: bytes | memoryview, at: int) -> None:
    left = memoryview(data).cast("B")
    while left:
        count = os.pwrite(fd, left[:_CHUNK], at)
        left, at = left[count:], at + count
