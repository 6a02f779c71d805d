"""Storage that ends with its process: for tests and for clusters that need nothing to survive the head.

The fence works between openers that share one `MemoryData`; without a shared one nothing can supersede.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from noded.head.storage import Ending, Health, Op, Put, StorageError, Superseded, check_ops


@dataclass
class MemoryData:
    """What a server or a file would be for the other backends: epochs and tables, by namespace."""

    epochs: dict[str, int] = field(default_factory=dict)
    tables: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)


class MemoryStorage:
    """A `Storage` in dictionaries. Nothing here awaits, so every batch is one step of the loop."""

    def __init__(self, namespace: str = "default", data: MemoryData | None = None) -> None:
        self._namespace = namespace
        self._data = data if data is not None else MemoryData()
        self._epoch = 0
        self._open = False
        self.ending = Ending()

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def confirmed(self) -> float | None:
        return None

    @property
    def health(self) -> Health:
        return Health("memory")

    async def open(self) -> int:
        if self._epoch:
            raise StorageError(f"the storage of namespace {self._namespace!r} was opened before; make a new one")
        self._epoch = self._data.epochs.get(self._namespace, 0) + 1
        self._data.epochs[self._namespace] = self._epoch
        self._open = True
        return self._epoch

    async def write(self, ops: Sequence[Op]) -> None:
        check_ops(ops)
        self._check_open()
        current = self._data.epochs[self._namespace]
        if current != self._epoch:
            superseded = Superseded(self._epoch, current)
            self.ending.set(superseded)
            raise superseded
        for op in ops:
            records = self._data.tables.setdefault((self._namespace, op.table), {})
            if isinstance(op, Put):
                records[op.key] = op.value
            else:
                records.pop(op.key, None)

    async def load(self, table: str) -> dict[str, bytes]:
        self._check_open()
        return dict(self._data.tables.get((self._namespace, table), {}))

    async def close(self) -> None:
        self._open = False

    def _check_open(self) -> None:
        if not self._open:
            raise StorageError(f"the storage of namespace {self._namespace!r} is not open: call open() first")
