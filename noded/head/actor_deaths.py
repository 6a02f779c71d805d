"""How actors have ended, kept for callers that ask later, also after the head has restarted.

In memory that is the actor table's business (``actors.py``); this is the durable part: the last few of them, written
when they die. Those that nobody can ask for any more are left out.
"""

from __future__ import annotations

from collections import deque

import msgspec

from noded.head.storage import Delete, Op, Put, Storage
from noded.policy import deaths
from noded.wire import messages as m

TABLE = "actor_deaths"
_KEPT = 1000
_LARGEST_ERROR = 64 << 10
"""Bytes of a constructor's error; of a larger one the reason alone is kept."""


class Dead(msgspec.Struct, array_like=True):
    """The record of one, version 1."""

    version: int
    number: int
    """They are counted, so that the oldest can be forgotten."""
    id: bytes
    class_name: str
    death: m.Death | None
    reason: str
    kind: str
    error: bytes
    restarts: int = 0


class ActorDeaths:
    def __init__(self, storage: Storage):
        self._storage = storage
        self._number = 0
        self._kept: deque[str] = deque()
        """Keys, the oldest first."""

    async def load(self) -> list[Dead]:
        """Those of before, the oldest first."""
        stored = (await self._storage.load(TABLE)).values()
        found = sorted((msgspec.msgpack.decode(value, type=Dead) for value in stored), key=lambda dead: dead.number)
        self._kept.extend(dead.id.hex() for dead in found)
        self._number = found[-1].number if found else 0
        return found

    def add(self, dead: Dead) -> list[Op]:
        """What is to be written."""
        if dead.kind in deaths.FORGETTABLE:
            return []
        self._number += 1
        dead.number = self._number
        if len(dead.error) > _LARGEST_ERROR:
            dead.error = b""
        key = dead.id.hex()
        self._kept.append(key)
        forgotten: list[Op] = [Delete(TABLE, self._kept.popleft())] if len(self._kept) > _KEPT else []
        return [Put(TABLE, key, msgspec.msgpack.encode(dead)), *forgotten]

    def forget_all(self) -> list[Op]:
        """The cluster ends."""
        return [Delete(TABLE, key) for key in self._kept]
