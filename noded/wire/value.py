"""The layout of a user value: what travels in a payload or lies in the arena.

Daemons read only the ids of refs inside a value, never the pickle. Layout, little endian::

u8 flags | u8 x3 | u32 n_ids | u32 n_buffers | u32 x | u64 pickle_size        (24 bytes, only with EXTENDED)
ids: 16 bytes each | u64 size of each buffer | pickle | zeros to 64 | buffers, each aligned to 64

Without EXTENDED it is one flag byte and the pickle. No bytes at all is the value None. Buffers are aligned
relative to the value's start, which in the arena lies on a multiple of 64.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

EXTENDED = 1
ERROR = 2
ALIGN = 64
ID_SIZE = 16

_HEAD = struct.Struct("<B3xIIxxxxQ")
HEAD_SIZE = _HEAD.size


class Plan(NamedTuple):
    """Where the parts of an extended value go: (offset, piece) in order, and the size of the whole."""

    pieces: list[tuple[int, bytes | memoryview]]
    size: int


class Parts(NamedTuple):
    flags: int
    n_ids: int
    """How many ids ``ids_in`` would give; not read here, because a value may hold thousands that are known already."""
    pickle: memoryview
    buffers: list[tuple[int, int]]
    """(offset from the value's start, size)."""


def align(n: int) -> int:
    return (n + ALIGN - 1) & -ALIGN


def plan(flags: int, pickle: bytes, buffers: Sequence[memoryview], ids: Sequence[bytes]) -> Plan:
    """Lay out an extended value without copying its buffers."""
    head = b"".join(
        (
            _HEAD.pack(flags | EXTENDED, len(ids), len(buffers), len(pickle)),
            *ids,
            struct.pack(f"<{len(buffers)}Q", *(b.nbytes for b in buffers)),
        )
    )
    pieces: list[tuple[int, bytes | memoryview]] = [(0, head), (len(head), pickle)]
    at = len(head) + len(pickle)
    for buffer in buffers:
        at = align(at)
        pieces.append((at, buffer))
        at += buffer.nbytes
    return Plan(pieces, at)


def assemble(plan_: Plan) -> bytes:
    """The value in one piece, for a payload."""
    out = bytearray(plan_.size)
    for at, piece in plan_.pieces:
        out[at : at + len(piece)] = piece
    return bytes(out)


def parse(view: memoryview) -> Parts:
    """Take a value apart; ``view`` must be of bytes and not empty. Raises ValueError when a part is not there."""
    flags = view[0]
    if not flags & EXTENDED:
        return Parts(flags, 0, view[1:], [])
    _, n_ids, n_buffers, size = _head(view)
    at = HEAD_SIZE + n_ids * ID_SIZE
    sizes = struct.unpack_from(f"<{n_buffers}Q", view, at)
    at += 8 * n_buffers
    pickle = view[at : at + size]
    at += size
    buffers = []
    for n in sizes:
        at = align(at)
        buffers.append((at, n))
        at += n
    if at > len(view):
        raise ValueError(f"a value of {len(view)} bytes says that it has {at}: it is truncated or not a value")
    return Parts(flags, n_ids, pickle, buffers)


def _head(view: memoryview) -> tuple[int, int, int, int]:
    """(flags, ids, buffers, size of the pickle) of an extended value, whose ids and sizes of buffers are there."""
    size = len(view)
    if size >= HEAD_SIZE:
        found: tuple[int, int, int, int] = _HEAD.unpack_from(view)
        if HEAD_SIZE + found[1] * ID_SIZE + found[2] * 8 <= size:
            return found
    raise ValueError(f"a value of {size} bytes is truncated, or not a value")


def ids_end(head: bytes) -> int:
    """How many bytes of a value ``ids_in`` reads; ``head``: the first HEAD_SIZE of them, or all."""
    if len(head) < HEAD_SIZE or not head[0] & EXTENDED:
        return len(head)
    _, n_ids, n_buffers, _ = _HEAD.unpack(head)
    return HEAD_SIZE + int(n_ids) * ID_SIZE + int(n_buffers) * 8


def ids_in(view: memoryview) -> list[bytes]:
    """Only the ids of the refs inside: all a daemon ever reads of a value. Raises ValueError where they are missing."""
    if not len(view) or not view[0] & EXTENDED:
        return []
    n_ids = _head(view)[1]
    return [bytes(view[i : i + ID_SIZE]) for i in range(HEAD_SIZE, HEAD_SIZE + n_ids * ID_SIZE, ID_SIZE)]
