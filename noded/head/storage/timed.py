"""A storage that tells how long its writes take; all else is the storage's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from noded.head.storage import Op, Storage
from noded.head.storage.condition import Ending, Health


class TimedStorage:
    """``took(seconds)`` is called after each write that has become durable."""

    def __init__(self, storage: Storage, took: Callable[[float], None]):
        self._storage = storage
        self._took = took

    @property
    def ending(self) -> Ending:
        return self._storage.ending

    @property
    def health(self) -> Health:
        return self._storage.health

    @property
    def confirmed(self) -> float | None:
        return self._storage.confirmed

    @property
    def epoch(self) -> int:
        return self._storage.epoch

    async def open(self) -> int:
        return await self._storage.open()

    async def write(self, ops: Sequence[Op]) -> None:
        begun = time.monotonic()
        await self._storage.write(ops)
        self._took(time.monotonic() - begun)

    async def load(self, table: str) -> dict[str, bytes]:
        return await self._storage.load(table)

    async def close(self) -> None:
        await self._storage.close()
