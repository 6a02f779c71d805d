"""Identifiers: 16 bytes made by clients, so that every request can be repeated.

Layout: ``prefix(7) | seq(5) | index(4)``, big endian. The prefix is random per client process and says who
made the id; seq counts that client's submissions and puts; index numbers the return values of one submission.
Four index values are set apart: a task itself, an actor, a placement group, and the end of a stream. Nothing here does
I/O.
"""

from __future__ import annotations

import os

PREFIX_SIZE = 7
ID_SIZE = 16
TASK_INDEX = 0xFFFFFFFF
ACTOR_INDEX = 0xFFFFFFFE
GROUP_INDEX = 0xFFFFFFFD
STREAM_END = 0xFFFFFFFC
"""The ref that is ready when a streaming task is over."""
MAX_RETURNS = 0xFFFFFF00

_TASK_SUFFIX = TASK_INDEX.to_bytes(4, "big")
_ACTOR_SUFFIX = ACTOR_INDEX.to_bytes(4, "big")
_GROUP_SUFFIX = GROUP_INDEX.to_bytes(4, "big")


class HexId(str):
    """An id as text, which also does what an id object of Ray's does."""

    __slots__ = ()

    def hex(self) -> str:
        return str(self)

    def binary(self) -> bytes:
        return bytes.fromhex(self)

    def is_nil(self) -> bool:
        return not self


def new_prefix() -> bytes:
    """A client's random prefix: 56 bits, so that a million clients collide with a chance of about 1e-5."""
    return os.urandom(PREFIX_SIZE)


def new_worker_id() -> str:
    return os.urandom(8).hex()


def object_id(prefix: bytes, seq: int, index: int) -> bytes:
    return prefix + seq.to_bytes(5, "big") + index.to_bytes(4, "big")


def task_id(prefix: bytes, seq: int) -> bytes:
    return prefix + seq.to_bytes(5, "big") + _TASK_SUFFIX


def actor_id(prefix: bytes, seq: int) -> bytes:
    return prefix + seq.to_bytes(5, "big") + _ACTOR_SUFFIX


def group_id(prefix: bytes, seq: int) -> bytes:
    return prefix + seq.to_bytes(5, "big") + _GROUP_SUFFIX


def prefix_of(id_: bytes) -> bytes:
    return id_[:PREFIX_SIZE]


def seq_of(id_: bytes) -> int:
    return int.from_bytes(id_[PREFIX_SIZE : PREFIX_SIZE + 5], "big")


def index_of(id_: bytes) -> int:
    return int.from_bytes(id_[PREFIX_SIZE + 5 :], "big")


def is_actor_id(id_: bytes) -> bool:
    return id_.endswith(_ACTOR_SUFFIX)
