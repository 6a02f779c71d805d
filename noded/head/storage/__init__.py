"""The head's durable storage: one interface, its operations and its errors; the backends lie beside.

Records are opaque bytes in tables of string keys, inside a namespace (one per cluster). A batch is atomic,
and durable when `write` returns.

**The fence.** `open` takes the namespace's next epoch and every write is conditional on it, so a head that
was replaced cannot change anything any more: its next write raises `Superseded` and it must exit. The
comparison and the batch are one step of the backend, so that no newer epoch can come between them: one
transaction in SQLite, one critical section in memory. For a backend with a server it must be one script there
(`if epoch == mine then apply`, with the epoch under a key of the namespace); comparing first and writing
afterwards is not a fence.

What the records mean, and their versions, is not known here: see `head/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class StorageError(Exception):
    """The storage refused or failed; after an I/O error the batch may yet be there on restart."""


class Superseded(StorageError):
    """A newer head took the namespace; this one must not act any more."""

    def __init__(self, epoch: int, current: int) -> None:
        super().__init__(
            f"storage epoch {epoch} is superseded by epoch {current}: "
            "another head has taken over this cluster, this one must exit"
        )
        self.epoch = epoch
        self.current = current

    def __reduce__(self) -> tuple[type[Superseded], tuple[int, int]]:
        return Superseded, (self.epoch, self.current)


@dataclass(frozen=True, slots=True)
class Put:
    """Insert or replace one record."""

    table: str
    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove one record; removing none is no error."""

    table: str
    key: str


Op = Put | Delete


class Storage(Protocol):
    """What every backend does; all calls come from one event loop."""

    @property
    def epoch(self) -> int:
        """The epoch taken at `open`, 0 before."""

    async def open(self) -> int:
        """Take and return the next epoch of the namespace, which fences all older ones; once per object."""

    async def write(self, ops: Sequence[Op]) -> None:
        """Apply a batch, all or nothing; returns when it is durable.

        Batches are applied in the order of the calls. A cancelled call says nothing about its batch.
        """

    async def load(self, table: str) -> dict[str, bytes]:
        """Every record of a table, with all writes that were called before."""

    async def close(self) -> None:
        """Finish the writes under way and let go; safe to call twice, or without `open`."""


def check_ops(ops: Sequence[Op]) -> None:
    """Refuse a malformed batch before anything of it is applied."""
    for op in ops:
        if not isinstance(op, (Put, Delete)):
            raise TypeError(f"a storage batch takes Put and Delete, not {op!r}")
        if not isinstance(op.table, str) or not isinstance(op.key, str):
            raise TypeError(f"storage table and key must be strings, not {op.table!r} and {op.key!r}")
        if isinstance(op, Put) and not isinstance(op.value, bytes):
            raise TypeError(f"the value of {op.table}/{op.key} must be bytes, not {type(op.value).__name__}")
