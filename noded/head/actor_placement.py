"""Where actors run: the head's choice of a node for each, and what the nodes answer.

The table (``actors.py``) says which actors there are to be; this decides on which node, and repeats what a node that
was away has missed. Each start is an instance with a number, written before the actor is told to anybody; an instance
that a node tells of and that is not the present one is stopped.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from noded import ids
from noded.head.nodes import NodeRecord, NodeTable
from noded.policy import deaths, labels, reasons, scheduling
from noded.wire import cluster_messages as c
from noded.wire import messages as m

if TYPE_CHECKING:
    from noded.head.actors import ActorRecord, ActorTable

log = logging.getLogger("noded.actor_placement")

_GIVE_UP = 1.0
"""What can never fit is refused after this many seconds."""
_QUEUE_AFTER = 0.25
"""What has found no room for so long waits at a node, where it counts among those that wait."""
_LOOKED_AT = 256
_LOOK_SECONDS = 0.1
_LOOK_PART = 0.1
"""At most this part of the time is spent looking whether there is room now."""
_CHEAP = 0.002
_SAMPLE = 32
_NODE_UNKNOWN = "its node is lost: it is not known any more"


class _Pending(msgspec.Struct, eq=False):
    record: ActorRecord
    since: float = msgspec.field(default_factory=time.monotonic)
    shunned: dict[str, float] = {}
    why: tuple[str, str] = ("", "")


class ActorPlacement:
    """``group_nodes(id)``: the nodes of a created group's bundles, None while it is not created, empty when it is gone.
    ``job_config(job)`` may be None for a job that has ended. ``recovering()``: nodes of before are still awaited.
    """

    def __init__(
        self,
        nodes: NodeTable,
        *,
        group_nodes: Callable[[bytes], list[int] | None],
        job_config: Callable[[str], m.JobConfig | None],
    ):
        self.table: ActorTable
        self.on_adopted: Callable[[ActorRecord], None] = lambda record: None
        """A node has an actor that was not known here."""
        self._nodes = nodes
        self._group_nodes = group_nodes
        self._job_config = job_config
        self.pending: dict[bytes, _Pending] = {}
        self._unclaimed: dict[bytes, tuple[int, c.HostedActor]] = {}
        """Actors that nodes have, and of which nothing is known yet."""
        self._parked: dict[bytes, ActorRecord] = {}
        """To be placed, unless a node that is awaited has it."""
        self._tried: dict[bytes, _Pending] = {}
        """On their way to a node that seems to have room."""
        self._queued: dict[bytes, ActorRecord] = {}
        """Those that wait at a node for room."""
        self._stops: dict[int, list[c.StopActor]] = {}
        """For nodes that are away."""
        self._rng = random.Random()
        self._next_look = 0.0
        self._timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------ the table's wishes

    def place(self, record: ActorRecord) -> None:
        record.instance += 1
        pending = _Pending(record)
        if not self._try(pending):
            self.pending[record.spec.id] = pending
            self._look_later()

    def place_unless_hosted(self, record: ActorRecord) -> None:
        """Asked for before the head's start: a node may have it. But one that is written before it is anywhere was in
        the storage then.
        """
        known = self._unclaimed.pop(record.spec.id, None)
        if known is not None:
            number, actor = known
            record.instance = actor.instance
            self._host(self._nodes.records[number], record, wait=True)
        elif self._nodes.waiting_for_nodes and not record.durable:
            self._parked[record.spec.id] = record
        else:
            self.place(record)

    def reserved(self, id_: bytes) -> bool:
        """True while a node has this actor, or may have it, of which nobody has told yet."""
        return id_ in self._unclaimed or self._nodes.waiting_for_nodes

    def stop(self, record: ActorRecord, reason: str, *, graceful: bool) -> None:
        id_ = record.spec.id
        if self.pending.pop(id_, None) is not None or self._parked.pop(id_, None) is not None or not record.node:
            self.table.exited(record, None)
            return
        node = self._nodes.records.get(record.node)
        if node is None or node.state == "DEAD":
            self.table.exited(record, None)
            return
        message = c.StopActor(id_, record.instance, reason, graceful, kind=record.kill_kind)
        if node.api is None:
            self._stops.setdefault(node.number, []).append(message)
        else:
            node.api.stop_actor(message)

    # ------------------------------------------------------------ choosing

    def _try(self, pending: _Pending) -> bool:
        """False: it waits."""
        record = pending.record
        spec = record.spec
        now = time.monotonic()
        if spec.where.group:
            return self._try_group(pending)
        if self._nodes.alone and record.state == "pending":  # one that has lived waits for a node like its last one
            own = next((r for r in self._nodes.records.values() if r.local), None)
            if own is not None and own.api is not None and not own.draining:
                self._queued[spec.id] = record
                self._host(own, record, wait=True)
                return True
        self._nodes.refresh()
        self._nodes.expire()
        shunned = [id_ for id_, until in pending.shunned.items() if until > now]
        maker = self._nodes.records.get(ids.node_of(spec.id))
        answer = self._nodes.cluster.pick(
            spec.placement, spec.where, local=maker.id if maker is not None else "", visited=shunned, rng=self._rng
        )
        if isinstance(answer, scheduling.Go):
            node = self._nodes.by_id(answer.node)
            if node is not None and node.api is not None:
                self._nodes.take(node, spec.placement)
                self._tried[spec.id] = pending
                self._host(node, record, wait=False)
                return True
            return False
        pending.why = (
            (answer.kind, answer.reason) if isinstance(answer, scheduling.Wait) else (reasons.NEVER, answer.reason)
        )
        if isinstance(answer, scheduling.Never):
            # One that has lived waits for a node like the one that it had.
            first = record.state == "pending"
            if first and now - pending.since > _GIVE_UP and not self._nodes.waiting_for_nodes:
                self.table.never(record, answer.reason, "never")
                return True
            return False
        if now - pending.since > _QUEUE_AFTER:
            node = self._able(spec)
            if node is not None:
                self._queued[spec.id] = record
                self._host(node, record, wait=True)
                return True
        return False

    def _move_queued(self) -> None:
        """What waits at one node may have room on another by now."""
        for id_, record in list(self._queued.items())[:_LOOKED_AT]:
            if self._of(record.node, id_, record.instance) is None or record.worker:
                del self._queued[id_]
                continue
            spec = record.spec
            self._nodes.refresh()
            answer = self._nodes.cluster.pick(spec.placement, spec.where, local="", rng=self._rng)
            node = self._nodes.records.get(record.node)
            if (
                isinstance(answer, scheduling.Go)
                and node is not None
                and node.api is not None
                and answer.node != node.id
            ):
                del self._queued[id_]
                node.api.stop_actor(
                    c.StopActor(id_, record.instance, "there is room elsewhere", False, True, deaths.MOVED)
                )

    def _able(self, spec: m.ActorSpec) -> NodeRecord | None:
        """The node that it could run on if less were in use, with the fewest that wait already; of many, of some."""
        alive = self._nodes.alive()
        some = self._rng.sample(alive, _SAMPLE) if len(alive) > 2 * _SAMPLE else []
        able = self._able_of(some, spec) or self._able_of(alive, spec)
        return min(able, key=lambda n: (n.waiting, self._rng.random()), default=None)

    @staticmethod
    def _able_of(nodes: Sequence[NodeRecord], spec: m.ActorSpec) -> list[NodeRecord]:
        return [
            n
            for n in nodes
            if n.state == "ALIVE"
            and not n.draining
            and n.api is not None
            and all(n.total.get(name, 0) >= amount for name, amount in spec.placement.items())
            and not labels.refuse(spec.where.labels, n.labels)
            and spec.where.node in ("", n.id)
        ]

    def _try_group(self, pending: _Pending) -> bool:
        record = pending.record
        where = record.spec.where
        nodes = self._group_nodes(where.group)
        pending.why = (reasons.GROUP_PENDING, f"its placement group {where.group.hex()} is not created yet")
        if nodes is None:
            return False
        if not nodes:
            self.table.never(record, "its placement group was removed", "removed")
            return True
        if where.bundle >= len(nodes):
            self.table.never(
                record, f"there is no bundle {where.bundle}: its placement group has {len(nodes)} of them", "never"
            )
            return True
        numbers = nodes if where.bundle < 0 else [nodes[where.bundle]]
        there = [n for number in dict.fromkeys(numbers) if (n := self._nodes.records.get(number)) and n.api is not None]
        now = time.monotonic()
        free = [n for n in there if pending.shunned.get(n.id, 0.0) <= now]
        if not there:
            pending.why = (reasons.NODE_AWAY, "the nodes of its placement group's bundles are away")
            return False
        pending.shunned = {id_: until for id_, until in pending.shunned.items() if until > now}
        self._host((free or there)[0], record, wait=len(there) == 1 or not free)
        return True

    def _host(self, node: NodeRecord, record: ActorRecord, *, wait: bool) -> None:
        record.node, record.address = node.number, node.address
        config = self._job_config(record.spec.job) or m.JobConfig()
        assert node.api is not None
        message = c.HostActor(record.spec, record.instance, record.restarts > 0, config, wait)
        node.api.host_actor(message, record.payload)

    def kick(self) -> None:
        """There may be room now. Looked at at once, or soon where a look costs much."""
        began = time.monotonic()
        if self._queued and not self._nodes.alone and began >= self._next_look:
            self._move_queued()
        if self.pending and began >= self._next_look:
            for id_ in list(self.pending)[:_LOOKED_AT]:
                pending = self.pending.get(id_)
                if pending is not None:
                    del self.pending[id_]
                    if not self._try(pending):
                        self.pending[id_] = pending
            ended = time.monotonic()
            cost = ended - began
            self._next_look = ended + (cost / _LOOK_PART if cost > _CHEAP else 0.0)
        self._look_later()

    def _look_later(self) -> None:
        if (self.pending or (self._queued and not self._nodes.alone)) and self._timer is None:
            pause = max(_LOOK_SECONDS, self._next_look - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(pause, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        self.kick()

    # ------------------------------------------------------------ the nodes' answers

    def _of(self, number: int, id_: bytes, instance: int) -> ActorRecord | None:
        record = self.table.records.get(id_)
        if record is None or record.node != number or record.instance != instance or record.state == "dead":
            return None
        return record

    def started(self, node: NodeRecord, id_: bytes, instance: int, worker: str, pid: int) -> None:
        record = self._of(node.number, id_, instance)
        self._tried.pop(id_, None)
        self._queued.pop(id_, None)
        if record is None:
            self._stop_stale(node, id_, instance)
            return
        self.table.started(record, worker, pid)
        if record.no_restart:  # it was killed, and its node has not heard of it
            self.stop(record, record.kill_reason, graceful=True)

    def _stop_stale(self, node: NodeRecord, id_: bytes, instance: int) -> None:
        if node.api is not None:
            node.api.stop_actor(c.StopActor(id_, instance, "it is not wanted any more", False, kind=deaths.MOVED))

    def never(self, node: NodeRecord, id_: bytes, instance: int, reason: str, kind: str) -> None:
        record = self._of(node.number, id_, instance)
        if record is None:
            return
        if kind != "full":
            self.table.never(record, reason, kind)
            return
        record.node = 0
        pending = self._tried.pop(id_, None) or _Pending(record)
        if record.no_restart:  # it was killed meanwhile
            self.table.exited(record, None)
            return
        self.pending[id_] = pending
        pending.shunned[node.id] = time.monotonic() + 2 * _LOOK_SECONDS
        pending.why = (reasons.RESOURCES_BUSY, reason)
        self.kick()

    def exited(self, node: NodeRecord, id_: bytes, instance: int, death: m.Death | None) -> None:
        unclaimed = self._unclaimed.get(id_)
        if unclaimed is not None and unclaimed[0] == node.number:
            del self._unclaimed[id_]
            self.table.gone(id_, death or m.Death(unclaimed[1].worker, kind=deaths.UNSEEN))
            return
        record = self._of(node.number, id_, instance)
        if record is not None:
            record.node = 0
            self.table.exited(record, death)

    def hosted(self, node: NodeRecord, actor: c.HostedActor) -> None:
        """A node has this actor, whatever we knew of it."""
        record = self.table.records.get(actor.id)
        if record is not None:
            moved = actor.instance == record.instance and record.node not in (0, node.number)
            if record.state == "dead" or actor.instance < record.instance or moved:
                self._stop_stale(node, actor.id, actor.instance)
                return
            if record.no_restart:
                record.node, record.instance, record.worker = node.number, actor.instance, actor.worker
                self.stop(record, record.kill_reason, graceful=True)
                return
        elif actor.spec is None:
            self._unclaimed[actor.id] = node.number, actor
            return
        self._unclaimed.pop(actor.id, None)
        parked = self._parked.pop(actor.id, None)
        self.pending.pop(actor.id, None)
        if actor.spec is None:
            assert record is not None
            record.node, record.instance, record.address = node.number, actor.instance, node.address
            if record.payload:
                self._host(node, record, wait=True)
            return
        adopted = self.table.adopt(actor, node.number, node.address)
        if record is None or (adopted.spec.max_restarts and not adopted.payload):
            self.on_adopted(adopted)
        maker = self._nodes.records.get(ids.node_of(actor.id))
        if record is None and not adopted.spec.detached and maker is not None and maker.api is not None:
            maker.api.claim_actors([actor.id])  # when it told what it holds we did not know of this one
        if parked is not None and not adopted.payload:
            adopted.payload = parked.payload

    def registered(self, node: NodeRecord, actors: list[c.HostedActor], ended: Sequence[c.DeadActor] = ()) -> None:
        """A node is there (again), and has these; those have ended there lately."""
        causes = {dead.death.worker: dead.death for dead in ended}
        stops = self._stops.pop(node.number, [])
        for stop in stops:
            assert node.api is not None
            node.api.stop_actor(stop)
        for actor in actors:
            self.hosted(node, actor)
        there = {actor.id for actor in actors}
        killed = {(stop.id, stop.instance) for stop in stops}
        for record in [r for r in self.table.records.values() if r.node == node.number and r.spec.id not in there]:
            if record.state == "dead":
                continue
            if record.worker:
                reason = "its worker ended while its node or the head was away"
                unseen = m.Death(record.worker, reason=reason, kind=deaths.UNSEEN)
                self._lose(record, causes.get(record.worker, unseen))
            elif record.no_restart or (record.spec.id, record.instance) in killed:
                self._lose(record, None)
            elif record.spec.id not in self.pending:
                # It was on its way there.
                self._host(node, record, wait=True)
        for dead in ended:
            if dead.id not in there and dead.death.kind not in deaths.FORGETTABLE:
                self.table.gone(dead.id, dead.death)  # one that nobody has told of since the head's start
        self.settle()

    def settle(self) -> None:
        """When no node of before is awaited any more: what none of them has is started."""
        if self._nodes.waiting_for_nodes:
            return
        parked, self._parked = self._parked, {}
        for record in parked.values():
            if record.state == "pending":
                self.place(record)
        self.table.forget_unhosted()
        self.kick()

    def restored(self) -> None:
        """After a restart of the head: what was on nodes that are dead, or not known, has ended."""
        for record in [r for r in self.table.records.values() if r.node and r.state != "dead"]:
            node = self._nodes.records.get(record.node)
            if node is None or node.state == "DEAD":
                why = f"its node {node.name} ({node.id}) is lost: {node.reason}" if node is not None else _NODE_UNKNOWN
                death = m.Death(record.worker, reason=why, node=node.id if node is not None else "")
                death.kind = deaths.NODE_LOST
                self._lose(record, death)

    def node_died(self, node: NodeRecord) -> None:
        self._stops.pop(node.number, None)
        for id_ in [i for i, (number, _) in self._unclaimed.items() if number == node.number]:
            del self._unclaimed[id_]
        why = f"its node {node.name} ({node.id}) is lost: {node.reason}"
        for record in [r for r in self.table.records.values() if r.node == node.number and r.state != "dead"]:
            self._lose(record, m.Death(record.worker, reason=why, node=node.id, kind=deaths.NODE_LOST))
        for record in self.table.made_on(node.number):
            if not record.spec.detached and record.state != "dead":
                reason = f"the node of its creator, {node.name} ({node.id}), is lost: {node.reason}"
                self.table.kill(record.spec.id, True, reason, deaths.OWNER_ENDED)
        self.settle()

    def _lose(self, record: ActorRecord, death: m.Death | None) -> None:
        record.node = 0
        self.table.exited(record, death)

    # ------------------------------------------------------------ questions

    def why(self, id_: bytes) -> tuple[str, str] | None:
        """None: it is at a node, which knows."""
        pending = self.pending.get(id_)
        if pending is not None:
            return pending.why if pending.why[0] else (reasons.STARTING, "a node is being chosen for it")
        if id_ in self._parked:
            return reasons.NODE_AWAY, "a node of before the head's start may have it, and has not come back yet"
        return None
