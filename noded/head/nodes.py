"""The nodes of the cluster: their numbers, what they have, and whether they are alive.

A number and a death are written before anybody is told. States: ALIVE -> AWAY (silent, or its connection was reset) ->
ALIVE again, or DEAD; DRAINING is ALIVE without new work. DEAD is final for that start of the node (its ``id``): it may
come back under its number as another one. What is judged when is in ``policy/liveness.py``; here are the table and who
is told. The head's own node is in the table as well, and is never judged.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from noded.head.storage import Delete, Op, Put, Storage
from noded.policy.given import Given
from noded.policy.liveness import Attention, Liveness, State
from noded.policy.nodes import NodeView
from noded.policy.scheduling import Cluster
from noded.wire import cluster_messages as c
from noded.wire.link import frame_of

log = logging.getLogger("noded.nodes")

TABLE = "nodes"
JUDGE_SECONDS = 0.25
_REMEMBER_DEAD = 10_000
_SHOW_DEAD = 200
"""So many dead nodes are still shown."""
_SILENT = "it is silent"
_FLUSH_SECONDS = 0.05
_FLUSH_SECONDS_MOST = 0.5


class StoredNode(msgspec.Struct, array_like=True):
    """A node's durable record, version 1. ``id``: the start that was last alive, ``dead``: it is not any more."""

    version: int
    number: int
    name: str
    id: str
    dead: bool = False
    reason: str = ""


def _key(number: int) -> str:
    return f"{number:08d}"


class NodeApi(Protocol):
    """What the head can have a node do; of its own node in the same process, of others over their connection."""

    def host_actor(self, message: c.HostActor, payload: bytes) -> None: ...

    def stop_actor(self, message: c.StopActor) -> None: ...

    def reserve_group(self, message: c.ReserveGroup) -> None: ...

    def release_group(self, message: c.ReleaseGroup) -> None: ...

    def to_client(self, prefix: bytes, message: Any, payload: bytes) -> None: ...

    def end_job(self, message: c.EndJob) -> None: ...

    def claim_actors(self, ids: list[bytes]) -> None: ...

    def drain(self, on: bool) -> None: ...

    def stop(self, reason: str) -> None: ...

    def nodes(self, frame: bytes, message: c.Nodes, entries: list[c.NodeEntry]) -> None: ...

    async def ask(self, what: str, arguments: dict[str, Any]) -> Any: ...


class NodeRecord(msgspec.Struct, eq=False):
    number: int
    name: str
    id: str = ""
    address: str = ""
    ip: str = ""
    hostname: str = ""
    run_dir: str = ""
    pid: int = 0
    state: str = "AWAY"
    reason: str = ""
    total: dict[str, int] = {}
    available: dict[str, int] = {}
    labels: dict[str, str] = {}
    waiting: int = 0
    draining: bool = False
    joining: bool = False
    """It is registering: what it has is not known yet."""
    local: bool = False
    api: NodeApi | None = None
    """None while it is not connected."""
    started: float = 0.0
    """When this start of it first registered, seconds since the epoch; 0: before the head's start."""
    liveness: Liveness | None = None
    since: float = msgspec.field(default_factory=time.time)
    """Of its state."""
    python: str = ""
    noded: str = ""

    def entry(self) -> c.NodeEntry:
        state = "DRAINING" if self.draining and self.state == "ALIVE" else self.state
        if self.state == "DEAD":
            return c.NodeEntry(self.number, self.id, self.name, self.address, state, {}, {}, {}, self.ip, self.reason)
        return c.NodeEntry(
            self.number, self.id, self.name, self.address, state, self.total, self.available, self.labels, self.ip,
            self.reason,
        )  # fmt: skip


class NodeTable:
    """``on_alive(record)``: it can take work (again); ``on_dead(record)``: what ran there has ended, after that was
    written; ``on_room()``: somewhere more is free.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        on_alive: Callable[[NodeRecord], None],
        on_dead: Callable[[NodeRecord], None],
        on_room: Callable[[], None],
    ):
        self._storage = storage
        self._on_alive = on_alive
        self._on_dead = on_dead
        self._on_room = on_room
        self.records: dict[int, NodeRecord] = {}
        self.cluster = Cluster()
        """For decisions: with what was given away since the nodes reported."""
        self._given = Given()
        self._by_id: dict[str, int] = {}
        self._next = 1
        self._attention = Attention(time.monotonic(), JUDGE_SECONDS)
        self._dirty: set[int] = set()
        self._entries: dict[int, tuple[c.NodeEntry, msgspec.Raw]] = {}
        """What is told of the nodes, as it was told last, and encoded."""
        self._flush_timer: asyncio.TimerHandle | None = None
        self._flushed = 0.0
        self._alive: list[NodeRecord] | None = None
        self._others: set[int] = set()
        self._away: set[int] = set()
        """Nodes that are not the head's own and not dead, and those of them (all of them) that are awaited."""
        self.settled = asyncio.Event()
        """No node is awaited."""
        self.settled.set()
        self._judge_task: asyncio.Task[None] | None = None
        self._writes: set[asyncio.Task[None]] = set()
        self._dying: set[int] = set()
        self._dead_starts: dict[str, str] = {}
        """Starts of nodes that were declared dead, and why."""
        self.on_change: Callable[[NodeRecord], None] = lambda record: None
        """Its state has."""
        self.refresh: Callable[[], None] = lambda: None
        """Called before a decision: the head's own node is seen as it is now."""

    # ------------------------------------------------------------ start

    async def restore(self, own: int) -> None:
        """All that were alive are awaited; the own one registers by itself."""
        for value in (await self._storage.load(TABLE)).values():
            stored = msgspec.msgpack.decode(value, type=StoredNode)
            self._next = max(self._next, stored.number + 1)
            record = NodeRecord(stored.number, stored.name, stored.id, reason=stored.reason)
            if stored.dead:
                record.state = "DEAD"
                self._dead_starts[stored.id] = stored.reason or "it was silent for too long"
            elif stored.number != own and stored.id:
                record.liveness = Liveness(self.now())
                record.liveness.reset(self.now())
                record.reason = "it has not registered since the head started"
                self._by_id[stored.id] = stored.number
            self.records[stored.number] = record
            self._count(record)
        self._next = max(self._next, own + 1)

    def start(self) -> None:
        self._judge_task = asyncio.get_running_loop().create_task(self._judge(), name="judge nodes")

    async def stop(self) -> None:
        if self._judge_task is not None:
            self._judge_task.cancel()
            await asyncio.wait([self._judge_task])
        if self._writes:
            await asyncio.wait(list(self._writes), timeout=5)

    def now(self) -> float:
        """The judge's own clock: what it has slept or been busy does not count."""
        return self._attention.tick(time.monotonic())

    # ------------------------------------------------------------ numbers

    async def new_number(self, name: str) -> int:
        number, self._next = self._next, self._next + 1
        await self._storage.write([self._put(StoredNode(1, number, name, ""))])
        self.records[number] = NodeRecord(number, name)
        return number

    def knows(self, number: int) -> bool:
        return number in self.records

    @staticmethod
    def _put(stored: StoredNode) -> Put:
        return Put(TABLE, _key(stored.number), msgspec.msgpack.encode(stored))

    # ------------------------------------------------------------ membership

    def refuse(self, message: c.Register) -> str:
        """Why this start of a node was declared dead; empty when it was not."""
        record = self.records.get(message.number)
        if record is not None and record.id == message.node_id and record.number in self._dying:
            return record.reason
        return self._dead_starts.get(message.node_id, "")

    def why_dead(self, id_: str) -> str:
        """Why the start of a node with this id was declared dead; empty when it was not."""
        return self._dead_starts.get(id_, "")

    def is_dying(self, record: NodeRecord) -> bool:
        """Its death is being written: nothing of it counts any more."""
        return record.number in self._dying

    async def register(self, message: c.Register, api: NodeApi) -> NodeRecord:
        """It is there (again). A start of it that we knew before is dead."""
        record = self.records.get(message.number)
        if record is None:
            record = self.records[message.number] = NodeRecord(message.number, message.name)
            self._next = max(self._next, message.number + 1)
        if record.id and record.id != message.node_id and record.state != "DEAD":
            await self._declare_dead(record, "it started over: its workers had ended")
        if record.id != message.node_id:
            record.id, record.draining, record.started = message.node_id, False, time.time()
            self._count(record)
            await self._storage.write([self._put(StoredNode(1, record.number, message.name, record.id))])
            self.records[record.number] = record  # it may have been forgotten as one dead long ago meanwhile
        record.name, record.address, record.ip = message.name, message.address, message.node_ip
        record.hostname, record.run_dir, record.pid = message.hostname, message.run_dir, message.pid
        record.total, record.available, record.labels = message.total, message.available, message.labels
        record.python, record.noded = message.python, message.noded
        record.api = api
        if record.liveness is None:
            record.liveness = Liveness(self.now())
        record.liveness.connected(self.now())
        self._by_id[record.id] = record.number
        record.joining = True
        self._set_state(record, "ALIVE", "")
        return record

    def joined(self, record: NodeRecord) -> None:
        """What it has is known: it takes work."""
        record.joining = False
        self._changed(record)
        self._on_alive(record)

    def register_own(self, message: c.Register, api: NodeApi) -> NodeRecord:
        """The head's own node, in this process."""
        record = self.records.get(message.number)
        if record is None or record.id != message.node_id:
            record = self.records[message.number] = NodeRecord(message.number, message.name)
            record.started = time.time()
        record.local, record.api, record.id, record.name = True, api, message.node_id, message.name
        record.address, record.ip, record.hostname = message.address, message.node_ip, message.hostname
        record.run_dir, record.pid = message.run_dir, message.pid
        record.total, record.available, record.labels = message.total, message.available, message.labels
        record.python, record.noded = message.python, message.noded
        record.liveness = None
        self._next = max(self._next, record.number + 1)
        self._by_id[record.id] = record.number
        record.state = "ALIVE"
        self._count(record)
        self.cluster.update(self._view(record))
        self._touch(record)
        self._write([self._put(StoredNode(1, record.number, record.name, record.id))])
        self._flush_soon()
        self.on_change(record)
        return record

    def heard(self, record: NodeRecord, message: c.Report) -> None:
        if record.liveness is not None:
            record.liveness.heard(self.now())
        changed = message.total is not None or message.available is not None
        if message.total is not None:
            record.total = {n: a for n, a in {**record.total, **message.total}.items() if a}
        if message.available is not None:
            record.available = {**record.available, **message.available}
            for name in [n for n in record.available if n not in record.total]:
                del record.available[name]
        record.waiting = message.waiting
        if record.state == "AWAY":
            self._set_state(record, "ALIVE", "")
        elif changed:
            self._changed(record)
            self._on_room()

    def own_amounts(self, record: NodeRecord, total: dict[str, int], available: dict[str, int], waiting: int) -> None:
        """Of the head's own node, as it is now."""
        record.waiting = waiting
        if record.total != total or record.available != available:
            record.total, record.available = total, available
            self._changed(record)

    def disconnected(self, record: NodeRecord, api: NodeApi, *, silent: bool = False) -> None:
        """``silent``: it has not closed the connection, but nothing came any more."""
        if record.api is not api:
            return
        record.api = None
        if record.state in ("ALIVE", "AWAY") and record.liveness is not None:
            if silent:
                self._set_state(record, "AWAY", _SILENT)
            else:
                record.liveness.reset(self.now())
                self._set_state(record, "AWAY", "its connection was closed")

    async def left(self, record: NodeRecord, reason: str) -> None:
        """It ends in order: all that ran there has ended, or will in a moment."""
        await self._declare_dead(record, reason)

    def drain(self, record: NodeRecord, on: bool) -> None:
        record.draining = on
        if record.api is not None:
            record.api.drain(on)
        self._changed(record)
        self.on_change(record)

    def _set_state(self, record: NodeRecord, state: str, reason: str) -> None:
        before, record.state, record.reason = record.state, state, reason
        self._count(record)
        if before != state:
            record.since = time.time()
            self.on_change(record)
            if not record.local:
                log.info("node %s (%s, %s) is %s%s", record.name, record.number, record.address, state,
                         f": {reason}" if reason else "")  # fmt: skip
        self._changed(record)
        if state == "ALIVE" and not record.joining:
            self._on_alive(record)

    def _changed(self, record: NodeRecord) -> None:
        self._given.forget(record.id)
        if record.state == "DEAD":
            self.cluster.remove(record.id)
        else:
            self.cluster.update(self._view(record))
        self._touch(record)
        self._flush_soon()

    @staticmethod
    def _view(record: NodeRecord) -> NodeView:
        may = record.state == "ALIVE" and not (record.draining or record.joining) and record.api is not None
        draining = record.draining and record.state == "ALIVE"
        return NodeView(record.id, dict(record.available), dict(record.total), record.labels, may, draining)

    def take(self, record: NodeRecord, amounts: dict[str, int]) -> None:
        """Something was sent there: until it reports, count that as taken."""
        if amounts:
            self._given.add(record.id, amounts, time.monotonic())
            self._look_at(record)

    def expire(self) -> None:
        """Before a decision."""
        for id_ in self._given.expire(time.monotonic()):
            record = self.by_id(id_)
            if record is not None:
                self._look_at(record)

    def _look_at(self, record: NodeRecord) -> None:
        if record.state != "DEAD":
            view = self._view(record)
            left = self._given.off(record.id, view.available)
            self.cluster.update(msgspec.structs.replace(view, available=left))

    # ------------------------------------------------------------ the judge

    async def _judge(self) -> None:
        while True:
            await asyncio.sleep(JUDGE_SECONDS)
            # What has arrived while we slept, or were stopped, is read before anybody is judged.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            now = self.now()
            for record in list(self.records.values()):
                if record.liveness is None or record.state == "DEAD" or record.number in self._dying:
                    continue
                state = record.liveness.judge(now)
                if state is State.AWAY and record.state == "ALIVE":
                    self._set_state(record, "AWAY", _SILENT)
                elif state is State.DEAD:
                    reason = (
                        "it did not come back after its connection was closed"
                        if record.api is None and record.reason != _SILENT
                        else "it was silent for too long"
                    )
                    self._spawn(self._declare_dead(record, reason))

    async def _declare_dead(self, record: NodeRecord, reason: str) -> None:
        """Written before anything is started elsewhere."""
        if record.state == "DEAD" or record.number in self._dying:
            return
        self._dying.add(record.number)
        try:
            record.reason = reason
            id_ = record.id
            self._dead_starts[id_] = reason
            if len(self._dead_starts) > _REMEMBER_DEAD:
                del self._dead_starts[next(iter(self._dead_starts))]
            await self._storage.write([self._put(StoredNode(1, record.number, record.name, id_, True, reason))])
            self.cluster.remove(id_)
            self._by_id.pop(id_, None)
            record.liveness, record.draining = None, False
            self._set_state(record, "DEAD", reason)
            self._on_dead(record)
            self._forget_old()
            self._on_room()
        finally:
            self._dying.discard(record.number)

    def _forget_old(self) -> None:
        dead = sorted((r for r in self.records.values() if r.state == "DEAD"), key=lambda r: r.since)
        ops: list[Op] = []
        for record in dead[:-_SHOW_DEAD] if len(dead) > _SHOW_DEAD else ():
            del self.records[record.number]
            self._entries.pop(record.number, None)
            if record.number != self._next - 1:  # by which the next head knows which numbers were given
                ops.append(Delete(TABLE, _key(record.number)))
        if ops:
            self._write(ops)

    def _count(self, record: NodeRecord) -> None:
        """Its id, its state, or whose it is has changed."""
        self._alive = None
        for among, there in (
            (self._others, not record.local and record.state != "DEAD" and bool(record.id)),
            (self._away, record.state == "AWAY" and bool(record.id)),
        ):
            (among.add if there else among.discard)(record.number)
        if self._away:
            self.settled.clear()
        else:
            self.settled.set()

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._writes.add(task)
        task.add_done_callback(self._written)

    def _write(self, ops: list[Op]) -> None:
        self._spawn(self._storage.write(ops))

    def _written(self, task: asyncio.Task[None]) -> None:
        self._writes.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._storage.ending.set(error)

    # ------------------------------------------------------------ the view

    def _pause(self) -> float:
        """A view costs its bytes times the nodes it goes to: the more there are, the rarer it is sent."""
        return min(_FLUSH_SECONDS_MOST, max(_FLUSH_SECONDS, len(self.records) / 4000))

    def _flush_soon(self) -> None:
        if self._flush_timer is None:
            self._flush_timer = asyncio.get_running_loop().call_later(self._pause(), self.flush)

    def flush_early(self) -> None:
        """Now, unless that was done a moment ago: many nodes may come at once."""
        if time.monotonic() - self._flushed >= self._pause():
            self.flush()
        else:
            self._flush_soon()

    def flush(self) -> None:
        """Tell all nodes what has changed: encoded once."""
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        self._flushed = time.monotonic()
        dirty, self._dirty = self._dirty, set()
        self._send(
            c.Nodes(),
            [self.records[n] for n in dirty if n in self.records],
            [r.api for r in self.records.values() if r.api is not None],
        )

    def tell_all(self, api: NodeApi) -> None:
        """Everything, to one that has just come."""
        self._send(c.Nodes(True), [r for r in self.records.values() if r.id], [api])

    def _send(self, message: c.Nodes, records: list[NodeRecord], receivers: list[NodeApi]) -> None:
        if not receivers or not (records or message.all):
            return
        told = [self._entries.get(r.number) or self._encoded(r) for r in records]
        entries = [entry for entry, _ in told]
        frame = frame_of(message, c.encode_entries([encoded for _, encoded in told]))
        for api in receivers:
            api.nodes(frame, message, entries)

    def _touch(self, record: NodeRecord) -> None:
        """What is told of it has changed."""
        self._dirty.add(record.number)
        self._entries.pop(record.number, None)

    def _encoded(self, record: NodeRecord) -> tuple[c.NodeEntry, msgspec.Raw]:
        entry = record.entry()
        found = self._entries[record.number] = entry, msgspec.Raw(c.encode_entries(entry))
        return found

    # ------------------------------------------------------------ questions

    def by_id(self, id_: str) -> NodeRecord | None:
        return self.records.get(self._by_id.get(id_, 0))

    def find(self, word: str) -> NodeRecord | None:
        """By its id, the beginning of it, its name, its number or its address."""
        for record in self.records.values():
            if record.state != "DEAD" and word in (record.id, record.name, str(record.number), record.address):
                return record
        found = [r for r in self.records.values() if r.state != "DEAD" and len(word) >= 4 and r.id.startswith(word)]
        return found[0] if len(found) == 1 else None

    def known(self, word: str) -> NodeRecord | None:
        """As ``find``, and where no such node lives, the last one of the dead that had this id, name or number."""
        dead = [r for r in self.records.values() if r.state == "DEAD" and word in (r.id, r.name, str(r.number))]
        return self.find(word) or max(dead, key=lambda r: r.since, default=None)

    def alive(self) -> Sequence[NodeRecord]:
        if self._alive is None:
            self._alive = [r for r in self.records.values() if r.state != "DEAD" and r.id]
        return self._alive

    @property
    def alone(self) -> bool:
        """There is no node but the head's own, dead ones aside."""
        return not self._others

    def connected(self) -> bool:
        """A node is connected that is not the head's own."""
        return any(record.api is not None and not record.local for record in self.records.values())

    @property
    def waiting_for_nodes(self) -> bool:
        """Some may come back: nothing is hopeless yet."""
        return bool(self._away)

    def to_client(self, prefix: bytes, number: int, message: Any, payload: bytes = b"") -> None:
        record = self.records.get(number)
        if record is not None and record.api is not None:
            record.api.to_client(prefix, message, payload)
