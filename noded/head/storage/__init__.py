"""The head's durable storage: one interface, its operations and its errors; the backends lie beside.

`memory`, `sqlite` and `redis` are the backends; `redis_link`, `redis_scripts` and `journal` are what the last is made
of. `condition` has what they tell of themselves.

Records are opaque bytes in tables of string keys, inside a namespace (one per cluster). A batch is atomic,
and durable when `write` returns.

**The fence.** `open` takes the namespace's next epoch and every write is conditional on it, so a head that
was replaced cannot change anything any more: its next write raises `Superseded` and it must exit. The
comparison and the batch are one step of the backend, so that no newer epoch can come between them: one
transaction in SQLite, one critical section in memory, one script in Redis. Comparing first and writing
afterwards is not a fence.

**Trouble is a state.** A full disk or a server that is away ends nothing: `write` returns later, or when its batch is
durable elsewhere, and `health` says so. What a storage cannot get over (it is superseded, its file is damaged) ends
the head in one way: `ending` is told, and the daemon waits for that.

What the records mean, and their versions, is not known here: see `head/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from noded.head.storage.condition import Ending, Health


class StorageError(Exception):
    """The storage refused, or failed in a way that trying again does not help."""


class Superseded(StorageError):
    """A newer head took the namespace; this one must not act any more.

    `current` is the newer epoch, or ours where another head has taken the same one: it began from an older copy.
    """

    def __init__(self, epoch: int, current: int) -> None:
        super().__init__(
            f"storage epoch {epoch} is superseded by epoch {current}: "
            "another head has taken over this cluster, this one must exit"
        )
        self.epoch = epoch
        self.current = current

    def __reduce__(self) -> tuple[type[Superseded], tuple[int, int]]:
        return Superseded, (self.epoch, self.current)


class Put(msgspec.Struct, frozen=True):
    """Insert or replace one record."""

    table: str
    key: str
    value: bytes


class Delete(msgspec.Struct, frozen=True):
    """Remove one record; removing none is no error."""

    table: str
    key: str


Op = Put | Delete


class Storage(Protocol):
    """What every backend does; all calls come from one event loop."""

    @property
    def ending(self) -> Ending:
        """Set when the head cannot go on with this storage; whose write has failed sets it, too."""

    @property
    def health(self) -> Health:
        """As it is now."""

    @property
    def confirmed(self) -> float | None:
        """When (time.monotonic()) it was last certain that no other head had taken over; None where none can elsewhere,
        as the storage is this host's own.
        """

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


__all__ = [
    "Delete",
    "Ending",
    "Health",
    "Op",
    "Put",
    "Storage",
    "StorageError",
    "Superseded",
    "check_ops",
]
