"""Ray's classes of ids, for programs that make or compare them. noded's functions take and give hex strings.

An id of noded has 16 bytes, a worker's 7 and a job's 4; Ray's have other sizes, so programs that count bytes see a
difference.
"""

from __future__ import annotations

import os
from typing import Self


class BaseID:
    """Some bytes that name something."""

    __slots__ = ("_bytes",)
    _SIZE = 16

    def __init__(self, id: bytes):
        if not isinstance(id, bytes) or len(id) != self._SIZE:
            raise ValueError(f"a {type(self).__name__} is made of {self._SIZE} bytes, not of {id!r}")
        self._bytes = id

    @classmethod
    def from_hex(cls, hex_id: str) -> Self:
        return cls(bytes.fromhex(hex_id))

    @classmethod
    def from_binary(cls, id_bytes: bytes) -> Self:
        return cls(id_bytes)

    @classmethod
    def from_random(cls) -> Self:
        return cls(os.urandom(cls._SIZE))

    @classmethod
    def nil(cls) -> Self:
        return cls(b"\xff" * cls._SIZE)

    @classmethod
    def size(cls) -> int:
        return cls._SIZE

    def binary(self) -> bytes:
        return self._bytes

    def hex(self) -> str:
        return self._bytes.hex()

    def is_nil(self) -> bool:
        return self._bytes == b"\xff" * self._SIZE

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._bytes == self._bytes

    def __hash__(self) -> int:
        return hash((type(self), self._bytes))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.hex()})"

    def __reduce__(self) -> tuple[type, tuple[bytes]]:
        return type(self), (self._bytes,)


class UniqueID(BaseID):
    __slots__ = ()


class ActorClassID(UniqueID):
    __slots__ = ()


class FunctionID(UniqueID):
    __slots__ = ()


class NodeID(UniqueID):
    __slots__ = ()


class WorkerID(UniqueID):
    __slots__ = ()
    _SIZE = 7


class ActorID(BaseID):
    __slots__ = ()


class TaskID(BaseID):
    __slots__ = ()


class JobID(BaseID):
    __slots__ = ()
    _SIZE = 4

    @classmethod
    def from_int(cls, value: int) -> Self:
        return cls(value.to_bytes(cls._SIZE, "big"))

    def int(self) -> int:
        return int.from_bytes(self._bytes, "big")
