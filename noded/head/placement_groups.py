"""The placement group table: which groups there are, in which state, and who wants to know.

A group's record is written before anybody is told of it. Resources are taken before the write, as nobody sees that
and a daemon that dies forgets it; they are given back after it. All records that have changed in a turn of the loop
are one batch, and a record that is back where it was before anything was written costs nothing. Where the resources
are is the host's business (``GroupHost``, implemented by the node).

States: pending -> created -> removed, or pending -> removed. A pending group that no node could ever hold has a reason,
and is told as infeasible once that has been so for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import msgspec

from noded import ids
from noded.head.group_records import GroupRecord, Stored, describe, malformed
from noded.head.storage import Delete, Op, Put, Storage
from noded.wire import messages as m

log = logging.getLogger("noded.groups")

TABLE = "placement_groups"
INFEASIBLE_AFTER = 3.0
_REMOVAL_SECONDS = 5.0
_SHOWN_REMOVED = 1_000
"""So many removed groups stay in the table, for people to look at."""
_REMEMBERED = 20_000
"""Of so many more it is known that they were removed."""


class GroupHost(Protocol):
    """What the table needs of the nodes."""

    def reserve_group(
        self,
        spec: m.GroupSpec,
        on_created: Callable[[list[int]], None],
        on_infeasible: Callable[[str], None],
        on_lost: Callable[[], None],
    ) -> None:
        """Wait for the resources; ``on_infeasible(reason)`` may be followed by ``on_created(nodes)`` later, and that by
        ``on_lost()`` and ``on_created`` again.
        """

    def release_group(self, id: bytes, on_released: Callable[[], None]) -> None:
        """End what runs in it, or stop waiting; then give the resources back."""

    def restore_group(
        self,
        spec: m.GroupSpec,
        nodes: list[int],
        on_created: Callable[[list[int]], None],
        on_infeasible: Callable[[str], None],
        on_lost: Callable[[], None],
    ) -> None:
        """After a restart: it is on these nodes, whatever is free."""


class GroupTable:
    """``notify(prefix, message)`` sends to a client if it is connected. ``may_create(prefix)``: this client lives and
    has not told yet what it made before the restart. ``outlives(actor)``: the actor is detached and lives.
    ``node_labels()``: the labels of each node.
    """

    def __init__(
        self,
        storage: Storage,
        host: GroupHost,
        notify: Callable[[bytes, m.GroupAt], None],
        *,
        may_create: Callable[[bytes], bool],
        outlives: Callable[[bytes], bool],
        infeasible_after: float = INFEASIBLE_AFTER,
    ):
        self.records: dict[bytes, GroupRecord] = {}
        self.names: dict[tuple[str, str], bytes] = {}
        self.rejected: dict[bytes, str] = {}
        self.on_change: Callable[[GroupRecord], None] = lambda record: None
        """Its state has."""
        self._storage = storage
        self._host = host
        self._notify = notify
        self._may_create = may_create
        self._outlives = outlives
        self._infeasible_after = infeasible_after
        self._dirty: dict[bytes, GroupRecord] = {}
        self._writer: asyncio.Task[None] | None = None
        self._watchers: dict[bytes, set[bytes]] = {}
        """Of groups that are not known (yet)."""
        self._doubtful: set[bytes] = set()
        """Those of them that nobody was about to create at the last sweep."""
        self._shown: dict[bytes, None] = {}
        self._removed: dict[bytes, None] = {}
        """Removed groups: with a record, and by their id alone."""

    # ------------------------------------------------------------ creation

    def create(self, prefix: bytes, spec: m.GroupSpec) -> None:
        """From a client; repeating it is harmless."""
        known = self.records.get(spec.id)
        if known is not None:
            known.watchers.add(prefix)
            self._tell(known, [prefix])
            return
        if spec.id in self._removed:
            self._notify(prefix, m.GroupAt(spec.id, "removed"))
            return
        reason = malformed(spec) or (spec.name and self._take_name(spec))
        if reason:
            self.rejected[spec.id] = reason
            if len(self.rejected) > _SHOWN_REMOVED:
                del self.rejected[next(iter(self.rejected))]
            self._notify(prefix, m.GroupAt(spec.id, "removed", reason))
            return
        record = self.records[spec.id] = GroupRecord(spec)
        record.watchers = self._watchers.pop(spec.id, set()) | {prefix}
        self._write(record)
        self._reserve(record)

    def _take_name(self, spec: m.GroupSpec) -> str:
        """Why it cannot have it."""
        key = spec.namespace, spec.name
        if key in self.names:
            return (
                f"the name {spec.name!r} is taken in namespace {spec.namespace!r} by another placement group: "
                "use get_placement_group(), or choose another name"
            )
        self.names[key] = spec.id
        return ""

    def _reserve(self, record: GroupRecord) -> None:
        self._host.reserve_group(record.spec, *self._answers(record))

    def _answers(
        self, record: GroupRecord
    ) -> tuple[Callable[[list[int]], None], Callable[[str], None], Callable[[], None]]:
        return (
            lambda nodes: self._on_created(record, nodes),
            lambda reason: self._on_infeasible(record, reason),
            lambda: self._on_lost(record),
        )

    def _on_created(self, record: GroupRecord, nodes: list[int]) -> None:
        if record.state == "pending":
            record.nodes = nodes
            record.state, record.reason, record.infeasible = "created", "", False
            if not record.waited:
                record.waited = time.monotonic() - record.since
            self._write(record)

    def _on_lost(self, record: GroupRecord) -> None:
        """A node that had bundles of it is dead: they are placed anew."""
        if record.state == "created":
            record.state, record.lost, record.since = "pending", True, time.monotonic()
            record.stored = "lost"  # the nodes that the storage has are not those that will be told
            self._write(record)
            self._tell(record)

    def _on_infeasible(self, record: GroupRecord, reason: str) -> None:
        if record.state != "pending":
            return
        if not record.reason:
            delay = max(0.0, record.since + self._infeasible_after - time.monotonic())
            asyncio.get_running_loop().call_later(delay, self._tell_infeasible, record)
        record.reason = reason

    def _tell_infeasible(self, record: GroupRecord) -> None:
        if record.state == "pending" and record.reason and not record.infeasible:
            record.infeasible = True
            self.on_change(record)
            self._tell(record)

    # ------------------------------------------------------------ questions

    def watch(self, prefix: bytes, id_: bytes) -> None:
        record = self.records.get(id_)
        if record is not None:
            record.watchers.add(prefix)
            self._tell(record, [prefix])
        elif id_ in self._removed:
            self._notify(prefix, m.GroupAt(id_, "removed"))
        else:
            self._watchers.setdefault(id_, set()).add(prefix)  # ``sweep`` ends what waits in vain

    def by_name(self, name: str, namespace: str) -> GroupRecord | None:
        return self.records.get(self.names.get((namespace, name), b""))

    def gone(self, id_: bytes) -> bool:
        """It was removed, or whoever was to create it never will."""
        record = self.records.get(id_)
        if record is not None:
            return record.state == "removed"
        return id_ in self._removed or not self._may_create(ids.prefix_of(id_))

    async def settled(self, id_: bytes) -> str:
        """Wait until the group's record is durable; the reason when it was rejected."""
        record = self.records.get(id_)
        if record is not None:
            await record.written.wait()
        return self.rejected.get(id_, "")

    async def removed(self, id_: bytes) -> None:
        """When it is about to be removed, wait a moment for that."""
        record = self.records.get(id_)
        if record is not None and record.state == "removed":
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(record.released.wait(), _REMOVAL_SECONDS)

    def table(self, id_: bytes = b"") -> dict[str, dict[str, Any]]:
        """All groups, or one, as people look at them: by their ids in hex."""
        found = self.records.values() if not id_ else filter(None, [self.records.get(id_)])
        return {record.spec.id.hex(): describe(record) for record in found}

    # ------------------------------------------------------------ removal

    def remove(self, prefix: bytes, id_: bytes, reason: str = "it was removed with remove_placement_group()") -> None:
        """From a client; repeating it is harmless."""
        record = self.records.get(id_)
        if record is None:
            self._remember(id_)
            self._notify(prefix, m.GroupAt(id_, "removed"))
        elif record.state != "removed":
            record.watchers.add(prefix)
            self._remove(record, reason)
        else:
            record.watchers.add(prefix)
            self._tell(record, [prefix])

    def _remove(self, record: GroupRecord, reason: str) -> None:
        record.state, record.reason = "removed", reason
        self.names.pop((record.spec.namespace, record.spec.name), None) if record.spec.name else None
        self._write(record)

    def _release(self, record: GroupRecord) -> None:
        def on_released() -> None:
            record.released.set()
            self._tell(record)
            self._shown[record.spec.id] = None
            if len(self._shown) > _SHOWN_REMOVED:
                oldest = next(iter(self._shown))
                del self._shown[oldest], self.records[oldest]
                self._remember(oldest)

        self._host.release_group(record.spec.id, on_released)

    def _remember(self, id_: bytes) -> None:
        self._removed[id_] = None
        if len(self._removed) > _REMEMBERED:
            del self._removed[next(iter(self._removed))]

    def job_ended(self, job: str) -> None:
        for record in [r for r in self.records.values() if r.spec.job == job]:
            self._remove_orphan(record)

    def _remove_orphan(self, record: GroupRecord) -> None:
        spec = record.spec
        if record.state != "removed" and not spec.detached and not (spec.actor and self._outlives(spec.actor)):
            self._remove(record, "its job has ended")

    def sweep(self, jobs: Collection[str]) -> None:
        """Now and then, when everybody has told: remove the groups of jobs that are not among these, and end waits for
        groups that nobody is about to create.
        """
        for record in [r for r in self.records.values() if r.spec.job not in jobs]:
            self._remove_orphan(record)
        doubtful = {id_ for id_ in self._watchers if self.gone(id_)}
        # Seen twice: the request of a living creator may be on its way for a moment.
        for id_ in doubtful & self._doubtful:
            for watcher in self._watchers.pop(id_):
                self._notify(watcher, m.GroupAt(id_, "removed", "nothing is known of it"))
        self._doubtful = doubtful

    # ------------------------------------------------------------ telling, writing

    def _tell(self, record: GroupRecord, only: list[bytes] | None = None) -> None:
        """What is not durable yet is not told yet."""
        if record.state == "created" and record.stored != "created":
            return
        if record.state == "removed" and not record.released.is_set():
            return
        at = record.at()
        for prefix in record.watchers if only is None else only:
            self._notify(prefix, at)

    def _write(self, record: GroupRecord) -> None:
        self.on_change(record)
        self._dirty[record.spec.id] = record
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._keep_writing(), name="placement groups")

    async def _keep_writing(self) -> None:
        try:
            while self._dirty:
                await asyncio.sleep(0)  # what has room is created in this very turn: one write instead of two
                batch, self._dirty = self._dirty, {}
                await self._write_batch([(record, record.state, record.nodes) for record in batch.values()])
        except Exception as error:
            self._storage.ending.set(error)
        finally:
            self._writer = None

    async def _write_batch(self, batch: list[tuple[GroupRecord, str, list[int]]]) -> None:
        ops: list[Op] = []
        for record, state, nodes in batch:
            if state != "removed":
                stored = Stored(2, record.spec, state == "created", nodes)
                ops.append(Put(TABLE, record.spec.id.hex(), msgspec.msgpack.encode(stored)))
            elif record.stored:
                ops.append(Delete(TABLE, record.spec.id.hex()))
        if ops:
            await self._storage.write(ops)
        for record, state, nodes in batch:
            outdated = state == "created" and (record.state != "created" or record.nodes != nodes)
            record.stored = "lost" if outdated else "" if state == "removed" else state
            record.written.set()
            if state == "removed":
                self._release(record)
            elif state == record.state == "created":
                self._tell(record)

    # ------------------------------------------------------------ restart of the head

    def restore(self, found: Mapping[str, bytes], own: int) -> None:
        """From the durable records: those that were created have their resources from here on. ``own``: the head's
        node, where groups of the time before there were others are.
        """
        for value in found.values():
            stored = msgspec.msgpack.decode(value, type=Stored)
            spec = stored.spec
            state = "created" if stored.created else "pending"
            record = self.records[spec.id] = GroupRecord(spec, state, stored=state)
            record.written.set()
            if spec.name:
                self.names[spec.namespace, spec.name] = spec.id
            record.nodes = stored.nodes or [own] * len(spec.bundles)
            if stored.created:
                self._host.restore_group(spec, record.nodes, *self._answers(record))

    def adopt(self, spec: m.GroupSpec) -> None:
        """A node keeps bundles of a group that is in no storage: a head that was lost, with what it had written last,
        had told it. It is placed as it was, as far as nodes keep it.
        """
        if spec.id in self.records or spec.id in self._removed:
            return
        if spec.name:
            self.names.setdefault((spec.namespace, spec.name), spec.id)
        record = self.records[spec.id] = GroupRecord(spec)
        record.watchers = self._watchers.pop(spec.id, set())
        record.nodes = [0] * len(spec.bundles)
        log.warning("the placement group %s is adopted: nodes keep it, and nothing was written of it", spec.id.hex())
        self._write(record)
        self._host.restore_group(spec, record.nodes, *self._answers(record))

    def resume(self) -> None:
        """Everything else that is in use has its resources as well: those that were pending wait again."""
        for record in [r for r in self.records.values() if r.state == "pending"]:
            self._reserve(record)

    async def stop(self, *, end: bool) -> None:
        """Let writes finish; a clean end of the head ends all groups."""
        if self._writer is not None:
            await asyncio.wait([self._writer], timeout=5)
        if end:
            ops: list[Op] = [Delete(TABLE, r.spec.id.hex()) for r in self.records.values() if r.stored]
            if ops:
                await self._storage.write(ops)
