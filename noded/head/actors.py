"""The actor table: who exists under which id and name, in which state, and who wants to know.

Records that must survive the head (named, detached or restartable actors) are written before they are acted
on; the others are re-told by their nodes and creators. Where an actor runs is the host's business
(``ActorHost``, see ``actor_placement.py``).

States: pending -> starting -> alive -> dead, and restarting between a death and the next starting.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Container
from typing import Protocol

import msgspec

from noded import ids
from noded.head.actor_deaths import ActorDeaths, Dead
from noded.head.storage import Delete, Op, Put, Storage
from noded.policy import deaths
from noded.wire import messages as m
from noded.wire.cluster_messages import HostedActor

log = logging.getLogger("noded.actors")

TABLE = "actors"
_TOMBSTONES = 10_000


class Stored(msgspec.Struct, array_like=True):
    """An actor's durable record, version 1."""

    version: int
    spec: m.ActorSpec
    payload: bytes
    restarts: int
    worker: str
    ending: str = ""
    """Why it ends for good; written before its worker is told to, so that nobody takes that for a crash."""
    node: int = 0
    instance: int = 0
    kind: str = ""
    """Of ``ending``."""


class ActorRecord(msgspec.Struct, eq=False):
    spec: m.ActorSpec
    payload: bytes = b""
    state: str = "pending"
    node: int = 0
    """The number of its node; 0: it has none."""
    instance: int = 0
    """Which start of it this is."""
    address: str = ""
    worker: str = ""
    pid: int = 0
    restarts: int = 0
    death: m.Death | None = None
    reason: str = ""
    kind: str = ""
    """Of the reason, see ``ActorAt``."""
    error: bytes = b""
    kill_reason: str = ""
    kill_kind: str = ""
    """Of that, see ``policy/deaths.py``."""
    no_restart: bool = False
    written: asyncio.Task[None] | None = None
    watchers: set[bytes] = set()

    @property
    def durable(self) -> bool:
        return bool(self.spec.name or self.spec.detached or self.spec.max_restarts)

    def at(self) -> m.ActorAt:
        return m.ActorAt(
            id=self.spec.id,
            state=self.state,
            worker=self.worker,
            pid=self.pid,
            death=self.death,
            reason=self.reason,
            kind=self.kind,
            unordered=self.spec.unordered,
            address=self.address if self.worker else "",
        )


class ActorHost(Protocol):
    """What the table needs of the nodes."""

    def place(self, record: ActorRecord) -> None:
        """Find a worker; answers with ``started`` or ``never``."""

    def stop(self, record: ActorRecord, reason: str, *, graceful: bool) -> None:
        """End its worker, or stop looking for one; answers with ``exited``."""

    def place_unless_hosted(self, record: ActorRecord) -> None:
        """As ``place``, but a node may have had it since before the head's start."""

    def reserved(self, id_: bytes) -> bool:
        """After a restart: True while a node has this actor, or may have it, of which nobody has told yet."""


class ActorTable:
    """``notify(prefix, message, payload)`` sends to a client if it is connected."""

    def __init__(self, storage: Storage, notify: Callable[[bytes, m.ActorAt, bytes], None]):
        self.host: ActorHost
        self.records: dict[bytes, ActorRecord] = {}
        self._made: dict[int, dict[bytes, ActorRecord]] = {}
        """The same, by the number of the node where they were made."""
        self.names: dict[tuple[str, str], bytes] = {}
        self.rejected: dict[bytes, str] = {}
        self.on_change: Callable[[ActorRecord], None] = lambda record: None
        """Its state has."""
        self._storage = storage
        self._deaths = ActorDeaths(storage)
        self._notify = notify
        self._dead: deque[bytes] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._watchers: dict[bytes, set[bytes]] = {}
        """Of actors that are not known (yet)."""
        self._existed: set[bytes] = set()
        """Those of them that existed before we started: a node that is awaited may have them."""
        self._doubtful: set[bytes] = set()

    # ------------------------------------------------------------ creation

    def create(self, prefix: bytes, spec: m.ActorSpec, payload: bytes, again: bool = False) -> None:
        """From a client; repeating it is harmless."""
        known = self.records.get(spec.id)
        if known is not None:
            known.watchers.add(prefix)
            known.payload = known.payload or payload
            self._tell(known, [prefix])
            return
        if spec.name:
            key = spec.namespace, spec.name
            holder = self.records.get(self.names.get(key, b""))
            if holder is not None and holder.state != "dead":
                self.rejected[spec.id] = (
                    f"the name {spec.name!r} is taken in namespace {spec.namespace!r} by a living "
                    "actor: use get_actor() or get_if_exists=True"
                )
                self._notify(prefix, m.ActorAt(spec.id, "dead", reason=self.rejected[spec.id]), b"")
                return
            self.names[key] = spec.id
        record = ActorRecord(spec, payload)
        record.watchers = self._watchers.pop(spec.id, set()) | {prefix}
        self._add(record)
        self.on_change(record)
        place = self.host.place_unless_hosted if again else self.host.place
        if record.durable:
            record.written = self._spawn(self._write_then_place(record, place))
        else:
            place(record)

    async def _write_then_place(self, record: ActorRecord, place: Callable[[ActorRecord], None]) -> None:
        await self._storage.write([self._put(record)])
        if record.state == "pending":
            place(record)

    def _put(self, record: ActorRecord) -> Put:
        ending = record.kill_reason if record.no_restart else ""
        stored = Stored(1, record.spec, record.payload, record.restarts, record.worker, ending)
        stored.node, stored.instance = record.node, record.instance
        stored.kind = record.kill_kind if record.no_restart else ""
        return Put(TABLE, record.spec.id.hex(), msgspec.msgpack.encode(stored))

    def save(self, record: ActorRecord) -> None:
        if record.durable:
            self._spawn(self._storage.write([self._put(record)]))

    def _spawn(self, coroutine: object) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._written)
        return task

    def _written(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._storage.ending.set(error)

    async def settled(self, id_: bytes) -> str:
        """Wait until the actor's record is durable; the reason when it was rejected."""
        record = self.records.get(id_)
        if record is not None and record.written is not None:
            await asyncio.wait([record.written])
        return self.rejected.pop(id_, "")

    def _add(self, record: ActorRecord) -> ActorRecord:
        id_ = record.spec.id
        self.records[id_] = self._made.setdefault(ids.node_of(id_), {})[id_] = record
        return record

    def _forget(self, id_: bytes) -> None:
        self.records.pop(id_, None)
        made = self._made.get(ids.node_of(id_), {})
        made.pop(id_, None)
        if not made:
            self._made.pop(ids.node_of(id_), None)

    # ------------------------------------------------------------ questions

    def made_on(self, number: int) -> list[ActorRecord]:
        """Those that clients of this node have made."""
        return list(self._made.get(number, {}).values())

    def watch(self, prefix: bytes, id_: bytes, *, was: bool, may_come: bool) -> None:
        """``was``: it existed; then it is there, or in a worker that has not told yet, or it has ended."""
        record = self.records.get(id_)
        if record is not None:
            record.watchers.add(prefix)
            self._tell(record, [prefix])
        elif self.host.reserved(id_) if was else may_come:
            self._watchers.setdefault(id_, set()).add(prefix)
            if was:
                self._existed.add(id_)
        else:
            self._tell_unknown(id_, prefix)

    def _tell_unknown(self, id_: bytes, watcher: bytes) -> None:
        reason = "nothing is known of it: it ended, or its creator did, some time ago"
        self._notify(watcher, m.ActorAt(id_, "dead", reason=reason), b"")

    def by_name(self, name: str, namespace: str) -> ActorRecord | None:
        record = self.records.get(self.names.get((namespace, name), b""))
        return None if record is None or record.state == "dead" else record

    def named(self) -> list[dict[str, str]]:
        """The living named actors."""
        return [
            {"name": name, "namespace": namespace}
            for namespace, name in self.names
            if self.by_name(name, namespace) is not None
        ]

    # ------------------------------------------------------------ the host's answers

    def started(self, record: ActorRecord, worker: str, pid: int) -> None:
        record.worker, record.pid = worker, pid
        record.state, record.death, record.reason = "starting", None, ""
        self.on_change(record)
        self.save(record)
        self._tell(record)

    def up(self, id_: bytes) -> None:
        record = self.records.get(id_)
        if record is not None and record.state == "starting":
            record.state = "alive"
            if not record.spec.max_restarts and not record.durable:
                record.payload = b""
            self.on_change(record)
            self._tell(record)

    def constructor_failed(self, id_: bytes, error: bytes) -> None:
        record = self.records.get(id_)
        if record is not None and record.state in ("starting", "alive"):
            record.error = error
            record.no_restart = True
            record.kill_reason, record.kill_kind = "its constructor raised an error", deaths.CONSTRUCTOR
            self.host.stop(record, record.kill_reason, graceful=True)

    def gone(self, id_: bytes, death: m.Death) -> None:
        """After a restart: the worker of an actor has ended before anybody told of it. It is not made again."""
        if id_ not in self.records:
            record = self._add(ActorRecord(m.ActorSpec(id_, "", b"", 0, {}, {}, {})))
            record.watchers = self._watchers.pop(id_, set())
            self._die(record, death)

    def never(self, record: ActorRecord, reason: str, kind: str) -> None:
        record.kind, record.kill_reason = kind, reason
        self._die(record, None)

    def leaves(self, id_: bytes, reason: str) -> None:
        """From its own worker, which waits for its end: the actor ends by its own wish."""
        self.kill(id_, True, reason, deaths.LEFT, graceful=True)

    def exited(self, record: ActorRecord, death: m.Death | None) -> None:
        """Its worker has ended, by whatever cause."""
        if record.state == "dead":
            return
        left = record.spec.max_restarts
        if not record.no_restart and record.payload and (left < 0 or record.restarts < left):
            record.restarts += 1
            record.state, record.death, record.reason = "restarting", death, ""
            record.kill_reason = record.kill_kind = (
                ""  # of a kill that lets it restart: the next end has a cause of its own
            )
            self.on_change(record)
            record.worker, record.node = "", 0
            self._tell(record)
            if record.durable:
                # The next instance is written before it is anywhere: a head that restarts knows the old one from it.
                self._spawn(self._write_then_restart(record, record.restarts))
            else:
                self.host.place(record)
            return
        self._die(record, death)

    async def _write_then_restart(self, record: ActorRecord, restarts: int) -> None:
        await self._storage.write([self._put(record)])
        if record.state == "restarting" and record.restarts == restarts:  # not killed once more meanwhile
            self.host.place(record)

    def _die(self, record: ActorRecord, death: m.Death | None) -> None:
        """What its node says of its process is the cause; where that saw nothing, what it was told to do is."""
        unseen = death is None or death.kind in ("", deaths.UNSEEN)
        if unseen and record.kill_reason:
            record.reason, record.kind = record.kill_reason, record.kind or record.kill_kind
        elif death is not None:
            record.reason, record.kind = death.reason, death.kind
        record.state, record.death = "dead", death
        self.on_change(record)
        key = record.spec.namespace, record.spec.name
        if record.spec.name and self.names.get(key) == record.spec.id:
            del self.names[key]
        record.payload = b""
        dead = Dead(1, 0, record.spec.id, record.spec.class_name, death, record.reason, record.kind, record.error)
        dead.restarts = record.restarts
        kept = self._deaths.add(dead)
        operations: list[Op] = [*kept, *([Delete(TABLE, record.spec.id.hex())] if record.durable else [])]
        if kept:  # first: a head that restarts would not know what somebody has been told, and wait for the actor
            self._spawn(self._write_then_tell(record, operations))
        else:
            if operations:
                self._spawn(self._storage.write(operations))
            self._tell(record)
        self._dead.append(record.spec.id)
        while len(self._dead) > _TOMBSTONES:
            self._forget(self._dead.popleft())

    async def _write_then_tell(self, record: ActorRecord, operations: list[Op]) -> None:
        await self._storage.write(operations)
        self._tell(record)

    def _tell(self, record: ActorRecord, only: list[bytes] | None = None) -> None:
        at = record.at()
        for prefix in record.watchers if only is None else only:
            self._notify(prefix, at, record.error if record.state == "dead" else b"")

    # ------------------------------------------------------------ ends

    def kill(
        self, id_: bytes, no_restart: bool, reason: str, kind: str = deaths.KILLED, *, graceful: bool = False
    ) -> None:
        """``kind`` of ``policy/deaths.py``."""
        record = self.records.get(id_)
        if record is None or record.state == "dead":
            return
        if not record.kill_reason:
            record.kill_reason, record.kill_kind = reason, kind
        if no_restart and not record.no_restart:
            record.no_restart = True
            if record.durable and record.spec.max_restarts:
                self._spawn(self._write_then_stop(record, reason, graceful))
                return
        self.host.stop(record, reason, graceful=graceful)

    async def _write_then_stop(self, record: ActorRecord, reason: str, graceful: bool) -> None:
        await self._storage.write([self._put(record)])
        if record.state != "dead":
            self.host.stop(record, reason, graceful=graceful)

    def released(self, id_: bytes) -> None:
        """Nobody holds a handle any more."""
        record = self.records.get(id_)
        if record is not None and not record.spec.detached:
            self.kill(id_, True, "all handles to it went out of scope", deaths.OUT_OF_SCOPE, graceful=True)

    def job_ended(self, job: str) -> None:
        for record in list(self.records.values()):
            if record.spec.job == job and not record.spec.detached and record.state != "dead":
                self.kill(record.spec.id, True, "its job has ended", deaths.JOB_ENDED)

    def has_detached(self, job: str) -> bool:
        """A detached actor of this job lives."""
        return any(r.spec.detached and r.spec.job == job and r.state != "dead" for r in self.records.values())

    def creator_died(self, prefix: bytes) -> None:
        """What it had not created before it ended will never be."""
        for id_ in [i for i in self._watchers if i.startswith(prefix)]:
            for watcher in self._watchers.pop(id_):
                self._notify(watcher, m.ActorAt(id_, "dead", reason="its creator ended before it was created"), b"")

    def forget_uncreated(self, clients: Container[bytes]) -> None:
        """After a restart, now and then, when no node is awaited: whoever was to create them has ended while the head
        was away, or they were in a worker that has ended with its node.
        """
        for prefix in {id_[: ids.PREFIX_SIZE] for id_ in self._watchers}:
            if prefix not in clients:
                self.creator_died(prefix)
        self._existed &= self._watchers.keys()
        doubtful = {id_ for id_ in self._existed if not self.host.reserved(id_)}
        # Seen twice: a creator that lives may be about to ask for it again.
        for id_ in doubtful & self._doubtful:
            for watcher in self._watchers.pop(id_):
                self._tell_unknown(id_, watcher)
        self._doubtful = doubtful

    # ------------------------------------------------------------ restart of the head

    async def restore(self) -> None:
        """Read the durable records; which of them have a worker the nodes tell when they register."""
        for value in (await self._storage.load(TABLE)).values():
            stored = msgspec.msgpack.decode(value, type=Stored)
            record = ActorRecord(stored.spec, stored.payload, "restoring", restarts=stored.restarts)
            record.worker, record.node, record.instance = stored.worker, stored.node, stored.instance
            record.kill_reason, record.no_restart = stored.ending, bool(stored.ending)
            record.kill_kind = stored.kind
            self._add(record)
            if stored.spec.name:
                self.names[stored.spec.namespace, stored.spec.name] = stored.spec.id
        for dead in await self._deaths.load():
            spec = m.ActorSpec(dead.id, dead.class_name, b"", 0, {}, {}, {})
            record = ActorRecord(spec, state="dead", death=dead.death, reason=dead.reason, kind=dead.kind)
            record.error, record.restarts = dead.error, dead.restarts
            self._add(record)
            self._dead.append(dead.id)

    def adopt(self, actor: HostedActor, node: int, address: str) -> ActorRecord:
        """A node hosts this actor, whatever we knew of it."""
        spec = actor.spec
        assert spec is not None
        record = self.records.get(spec.id)
        new = record is None
        if record is None:
            record = self._add(ActorRecord(spec))
            record.watchers = self._watchers.pop(spec.id, set())
            if spec.name:
                self.names.setdefault((spec.namespace, spec.name), spec.id)
        before = record.state, record.worker
        record.node, record.address, record.instance = node, address, actor.instance
        record.worker, record.pid = actor.worker, actor.pid
        record.state = "alive" if actor.alive or record.state == "alive" else "starting"
        if new:
            self.save(record)
        if before != (record.state, record.worker):
            self.on_change(record)
            self._tell(record)
        return record

    def forget_unhosted(self) -> None:
        """After a restart, when every node of before has told or is dead: durable actors that none has are placed, or
        have died.
        """
        for record in [r for r in self.records.values() if r.state == "restoring" and not r.node]:
            if not record.worker and not record.no_restart:
                record.state = "pending"
                self.host.place(record)
            else:
                self.exited(
                    record,
                    m.Death(record.worker, reason="its worker ended while the head was away", kind=deaths.UNSEEN),
                )

    async def stop(self, *, end_detached: bool) -> None:
        """Let writes finish; a clean end of the head ends detached state too."""
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=5)
        if end_detached:
            ends: list[Op] = [
                Delete(TABLE, record.spec.id.hex())
                for record in self.records.values()
                if record.durable and record.state != "dead"
            ]
            ends += self._deaths.forget_all()
            if ends:
                await self._storage.write(ends)
