"""Identifiers: 16 bytes made by clients, so that every request can be repeated.

Layout: ``prefix(7) | seq(5) | index(4)``, big endian. The prefix names the client process that made the id: three
bytes are the number of its node, which the head gives out, four are random. So everybody who sees an id knows which
node to ask about it (its *home*). seq counts that client's submissions and puts; index numbers the return values of
one submission. Four index values are set apart: a task itself, an actor, a placement group, and the end of a stream.
Nothing here does I/O.
"""

from __future__ import annotations

import os

PREFIX_SIZE = 7
NODE_SIZE = 3
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


def new_prefix(node: int) -> bytes:
    """For a client of this node. It is random enough: who has the same one must be of the same node, and alive."""
    return node.to_bytes(NODE_SIZE, "big") + _random(PREFIX_SIZE - NODE_SIZE)


def new_worker_id(node: int) -> str:
    return (node.to_bytes(NODE_SIZE, "big") + _random(8 - NODE_SIZE)).hex()


def node_prefix(node: int) -> bytes:
    """What stands for a whole node where clients stand elsewhere."""
    return node.to_bytes(NODE_SIZE, "big") + bytes(PREFIX_SIZE - NODE_SIZE)


def _random(size: int) -> bytes:
    """Never all zeros, in its first four bytes: that is the node's own."""
    while True:
        found = os.urandom(size)
        if any(found[: PREFIX_SIZE - NODE_SIZE]):
            return found


def node_of(id_: bytes) -> int:
    """The number of the node where an id, or a prefix, was made: its home."""
    return int.from_bytes(id_[:NODE_SIZE], "big")


def node_of_worker(worker: str) -> int:
    return int(worker[: 2 * NODE_SIZE], 16)


def is_node_prefix(prefix: bytes) -> bool:
    return not any(prefix[NODE_SIZE:])


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


def is_group_id(id_: bytes) -> bool:
    return id_.endswith(_GROUP_SUFFIX)


def parse(text: str) -> bytes | None:
    """The id of a task, object, actor or placement group as it is printed; None: that is none."""
    try:
        id_ = bytes.fromhex(text)
    except ValueError:
        return None
    return id_ if len(id_) == ID_SIZE and len(text) == 2 * ID_SIZE else None


def is_worker_or_job(text: str) -> bool:
    """It has the form of a worker's id, of what a worker or driver calls itself (its prefix), or of a job's id."""
    return len(text) in (2 * PREFIX_SIZE, 8, 16) and all(digit in "0123456789abcdef" for digit in text)
