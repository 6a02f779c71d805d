"""Leases: which client may push tasks to which worker.

Clients declare demand per scheduling class; here it is matched with what is free (``capacity.py``), workers are taken
from the pool, and grants are written to the ledger before they are sent. Actors and placement groups take their
resources here too. Who is served next is decided in ``policy/fairness.py``.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from noded.node.capacity import Bundles, Capacity, Share, bundle_of, memory_of
from noded.node.session import Client
from noded.node.workers import Worker, WorkerPool
from noded.policy import deaths, fairness, reasons
from noded.policy.memory_room import MemoryRoom
from noded.policy.where import refuse
from noded.resources import UNIT
from noded.wire import messages as m

log = logging.getLogger("noded.leases")

_SLICE = 0.05
"""A lease others wait for ends at a task boundary after this many seconds."""
_STARTS_PER_TURN = 16
_ACTORS_LOOKED_AT = 128
"""A thousand actors that wait must not make each decision cost a thousand looks; they are served in order anyway."""
_LOOKED_AT_ONCE = 32
_GROUPS_REMEMBERED = 100_000
_BUNDLE_SIZE = 40
_NAMES_SIZE = 1400
"""Bytes of names of resources, with those of their bundles, that have room in a worker's record."""
_PATIENCE = 0.02
"""Another node's demand that cannot be served in so many seconds goes back there."""
_GIVE_UP = 1.0
"""What can never fit is refused after this many seconds."""

_NOTHING = Share({})


class Demand(msgspec.Struct, eq=False):
    client: Client
    cls: int
    definition: m.ClassDef
    count: int = 0
    since: float = 0.0
    until: float = math.inf
    """Of another node's client: what cannot be served by then goes back."""
    permits: int = 0
    """Of one for which the router chooses the node: so many may be served here."""
    why: tuple[str, str] = ("", "")
    """The policy's last word on why it waits."""

    @property
    def resources(self) -> dict[str, int]:
        return self.definition.resources

    @property
    def where(self) -> m.Place:
        return self.definition.where

    @property
    def job(self) -> str:
        return self.client.job


class Lease(msgspec.Struct, eq=False):
    id: int
    client: Client
    cls: int
    where: m.Place = m.ANYWHERE
    share: Share = _NOTHING
    worker: Worker | None = None
    since: float = 0.0
    """When it was asked for, or the one before it was granted."""
    granted: float = 0.0
    wanted: bool = False
    recalled: bool = False
    blocked: bool = False
    ended: bool = False
    """Its client is done with it; what it has is free when its worker has ended."""
    retriable: bool = True
    over: bool = False

    @property
    def gpus(self) -> list[int]:
        return sorted(self.share.devices)

    @property
    def memory(self) -> int:
        return memory_of(self.share.resources)


class ActorLease(msgspec.Struct, eq=False):
    """An actor's claim: ``placement`` must be free to start it, ``wants`` is taken while it lives. ``on_never`` gets a
    reason and its kind (see ``ActorAt``).
    """

    id: bytes
    job: str
    wants: dict[str, int]
    placement: dict[str, int]
    class_name: str
    on_worker: Callable[[Worker], None]
    on_never: Callable[[str, str], None]
    where: m.Place = m.ANYWHERE
    env: str = ""
    until: float = math.inf
    """When it goes back to the head, if it has not been placed by then."""
    share: Share = _NOTHING
    worker: Worker | None = None
    blocked: bool = False
    retriable: bool = False
    """It is started again when it has ended."""
    over: bool = False
    since: float = msgspec.field(default_factory=time.monotonic)
    granted: float = 0.0

    @property
    def resources(self) -> dict[str, int]:
        return self.placement

    @property
    def gpus(self) -> list[int]:
        return sorted(self.share.devices)

    @property
    def memory(self) -> int:
        return memory_of(self.share.resources)


class GroupLease(msgspec.Struct, eq=False):
    """Bundles of a placement group that wait for their resources."""

    id: bytes
    bundles: Bundles
    strategy: str
    job: str
    on_created: Callable[[], None]
    on_infeasible: Callable[[str], None]
    resources: dict[str, int] = {}
    where: m.Place = m.ANYWHERE
    infeasible: bool = False
    attempt: int = 0
    since: float = msgspec.field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        for bundle in self.bundles.values():
            for name, amount in bundle.items():
                self.resources[name] = self.resources.get(name, 0) + amount


Waiting = Demand | ActorLease | GroupLease


def _too_long(resources: dict[str, int]) -> str:
    """Why the ledger could not hold a lease of these."""
    size = sum(len(name.encode()) + _BUNDLE_SIZE for name in resources)
    if size <= _NAMES_SIZE:
        return ""
    return f"the names of the {len(resources)} resources that it asks for are too long together: use fewer"


class Router(Protocol):
    """Other nodes, for demands that find no room here (``lease_router.py``)."""

    @property
    def alone(self) -> bool:
        """There are no others."""

    def chooses(self, where: m.Place) -> bool:
        """This node is not simply the first choice."""

    def route(self, demands: Iterable[Demand], now: float) -> None: ...

    def demand_changed(self, client: Client, cls: int, count: int) -> None: ...

    def group_nodes(self, id_: bytes) -> list[int]:
        """Where a placement group is; empty while that is not known."""

    def send_back(self, demand: Demand) -> None: ...


class Leases:
    """Needs ``pool`` and ``router`` set before use. ``refuse_place(place)`` says why nothing may run there on this
    node, or "".
    """

    give_up = _GIVE_UP

    def __init__(
        self,
        capacity: Capacity,
        epoch: int,
        worker_path: Callable[[str], str],
        refuse_place: Callable[[m.Place], str],
    ):
        self.capacity = capacity
        self.pool: WorkerPool
        self.router: Router
        self.draining = False
        """Nothing new is taken."""
        self.leases: dict[int, Lease] = {}
        self.demands: dict[tuple[bytes, int], Demand] = {}
        self.actors: list[ActorLease] = []
        """Actors that wait for resources."""
        self.groups: list[GroupLease] = []
        """Placement groups that wait for resources."""
        self.not_known_yet: tuple[str, ...] = ()
        """Resources whose names begin so may still be found: what asks for them is not refused yet."""
        self.gpus_unknown = ""
        """Why it is not known which GPUs there are."""
        self._placed: set[ActorLease] = set()
        self.group_gone: Callable[[bytes], bool] = lambda id_: False
        """Asked of placement groups that are not here: nobody will create it any more."""
        self._closing: dict[bytes, Callable[[], None]] = {}
        """Placement groups that are removed, until what runs in them has ended."""
        self._gone_groups: dict[bytes, None] = {}
        """The last ones that were removed."""
        self.room = MemoryRoom()
        """Whether there is memory to begin something."""
        self.on_limited: Callable[[], None] = lambda: None
        """Something with a limit on its memory has begun."""
        self.death_of: Callable[[str], m.Death | None] = lambda wid: None
        """How a worker has ended that is not here any more, where that is known."""
        self.on_granted: Callable[[float, str], None] = lambda seconds, kind: None
        """A ``task`` or ``actor`` has got a worker after so long."""
        self.on_refused: Callable[[str], None] = lambda kind: None
        self._classes: dict[tuple[bytes, int], m.ClassDef] = {}
        self._next = epoch << 32
        self._worker_path = worker_path
        self._refuse_place = refuse_place
        self._turns: dict[str, int] = {}
        self._turn = 0
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------ demand

    def on_class(self, client: Client, message: m.ClassDef) -> None:
        self._classes[client.prefix, message.cls] = message

    def class_of(self, client: Client, cls: int) -> m.ClassDef | None:
        return self._classes.get((client.prefix, cls))

    def on_demand(self, client: Client, message: m.Demand) -> None:
        key = client.prefix, message.cls
        self.router.demand_changed(client, message.cls, message.count)
        demand = self.demands.get(key)
        if demand is None:
            if not message.count:
                return
            known = self._classes.get(key)
            if known is None:
                log.error(
                    "client %s demands leases of class %s, which it has not defined", client.prefix.hex(), message.cls
                )
                return
            if reason := _too_long(known.resources):
                client.send(m.Unschedulable(message.cls, reason))
                return
            demand = self.demands[key] = Demand(client, message.cls, known)
        if message.count and not demand.count:
            demand.since = time.monotonic()
        demand.count = message.count
        demand.until = math.inf if message.wait else time.monotonic() + _PATIENCE
        if not demand.count:
            del self.demands[key]
        self.kick()

    def granted_elsewhere(self, client: Client, cls: int) -> None:
        """Another node has served one of these."""
        demand = self.demands.get((client.prefix, cls))
        if demand is not None:
            demand.count -= 1
            demand.since = time.monotonic()
            if demand.count <= 0:
                del self.demands[client.prefix, cls]
            self.router.demand_changed(client, cls, max(0, demand.count))
            self.kick()

    def forget_demand(self, client: Client, cls: int) -> None:
        self.demands.pop((client.prefix, cls), None)

    def forget_demands(self, client: Client) -> None:
        for key in [key for key in self.demands if key[0] == client.prefix]:
            del self.demands[key]

    def refuse_demand(self, demand: Demand, reason: str, kind: str = "never") -> None:
        self._refuse(demand, reason, kind)

    def request_actor(self, actor: ActorLease) -> None:
        if reason := _too_long(actor.wants):
            actor.over = True
            actor.on_never(reason, "never")
            return
        self.actors.append(actor)
        self.kick()

    def kick(self) -> None:
        """Look for what can be granted, once, at the end of this turn of the loop."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._schedule)

    def _schedule(self) -> None:
        self._scheduled = False
        if self.pool.stopping:
            return
        now = time.monotonic()
        for _ in range(_STARTS_PER_TURN):
            waiting: list[Waiting] = [
                *(g for g in self.groups[:_ACTORS_LOOKED_AT] if not g.infeasible),
                *self.actors[:_ACTORS_LOOKED_AT],
                *(d for d in self.demands.values() if self._may_grow(d)),
            ]
            if not waiting:
                return
            everybody = waiting
            if not self.router.alone or self.draining:
                waiting = [w for w in waiting if self._may_start(w)]
            if self.room.tight:  # nor is anybody to make way for them
                waiting = [w for w in waiting if not self._no_memory(w)]
            shares = [self.capacity.fit(w.resources, w.where) for w in waiting]
            requests = [
                fairness.Request(share.resources, self._turns.get(w.job, 0), w.since, tuple(self._lacking(w, share)))
                for w, share in zip(waiting, shares, strict=True)
            ]
            index = fairness.pick(requests, now)
            if index is None:
                self._serve_the_rest(everybody, waiting, shares, now)
                return
            self._start(waiting[index], shares[index], now)
        self.kick()  # there may be more: after the loop has done what else is due

    def could_run(self, waiting: Waiting) -> bool:
        """Here, if less were in use."""
        where = waiting.where
        if where.group:
            return where.group in self.capacity.groups
        if isinstance(waiting, GroupLease):
            return not self.capacity.never_for_group(waiting.bundles, waiting.resources)
        return not self._refuse_place(where) and not self.capacity.never(waiting.resources, where)

    def _may_start(self, waiting: Waiting) -> bool:
        """Beside other nodes: what this one never could serve must not keep anything from those that it can."""
        if self.draining and not waiting.where.group:
            return False
        if isinstance(waiting, Demand) and waiting.client.kind != "guest" and self.router.chooses(waiting.where):
            return waiting.permits > 0
        return self.could_run(waiting)

    def _no_memory(self, waiting: Waiting) -> str:
        """Why the node has not the memory to begin it now."""
        if isinstance(waiting, GroupLease):
            return ""
        # What waits itself makes no room; nor do actors, which do not end, but a task must not wait for them for ever.
        running = any(not lease.blocked and not lease.ended for lease in self.leases.values())
        if isinstance(waiting, ActorLease):
            return self.room.refuse((waiting.id, 0), running or bool(self._placed), time.monotonic())
        return self.room.refuse((waiting.client.prefix, waiting.cls), running, time.monotonic())

    def running(self) -> list[Lease | ActorLease]:
        """What has a worker."""
        everybody: list[Lease | ActorLease] = [*self.leases.values(), *self._placed]
        return [held for held in everybody if held.worker is not None and not held.over]

    def refuse_elsewhere(self, where: m.Place, node_id: str, labels: Mapping[str, str]) -> str:
        """Why it may not run on that other node."""
        return refuse(where, node_id, labels)

    def _lacking(self, waiting: Waiting, share: Share) -> list[str]:
        where = waiting.where
        if where.group and (where.group not in self.capacity.groups or where.group in self._closing):
            return ["placement group"]
        if self._refuse_place(where):
            return ["another node"]
        if isinstance(waiting, GroupLease):
            return self.capacity.lacking_for_group(waiting.bundles, waiting.resources)
        return self.capacity.lacking(share)

    def _may_grow(self, demand: Demand) -> bool:
        """Tasks that need no CPU are not bounded by resources; they are by this."""
        if demand.client.session is None:
            return False
        if demand.resources.get("CPU"):
            return True
        return (
            sum(1 for x in self.leases.values() if x.client is demand.client and x.cls == demand.cls and not x.blocked)
            < self._limit()
        )

    def _limit(self) -> int:
        return max(16, 4 * self.capacity.total.get("CPU", 0) // UNIT)

    def _start(self, waiting: Waiting, share: Share, now: float) -> None:
        self._turn += 1
        self._turns[waiting.job] = self._turn
        if isinstance(waiting, GroupLease):
            self.groups.remove(waiting)
            self.capacity.open_group(waiting.id, waiting.bundles, waiting.attempt)
            waiting.on_created()
            return
        if isinstance(waiting, ActorLease):
            self.actors.remove(waiting)
            waiting.share = self.capacity.take(self._share_of(waiting, share))
            self._placed.add(waiting)
            self.pool.assign(waiting, waiting.job, waiting.env)
            return
        waiting.count -= 1
        since, waiting.since = waiting.since, now
        waiting.permits = max(0, waiting.permits - 1)
        if not waiting.count:
            self.demands.pop((waiting.client.prefix, waiting.cls), None)
        if not self.router.alone:
            self.router.demand_changed(waiting.client, waiting.cls, waiting.count)
        self._next += 1
        lease = Lease(self._next, waiting.client, waiting.cls, waiting.where)
        lease.retriable, lease.since = waiting.definition.retriable, since
        self.leases[lease.id] = lease
        lease.share = self.capacity.take(share)
        self.pool.assign(lease, waiting.job, waiting.definition.env)

    def _share_of(self, actor: ActorLease, placed: Share) -> Share:
        """What the actor takes, which may be less than what had to be free: in the bundle that had it free."""
        if actor.wants == actor.placement:
            return placed
        where = m.Place(group=actor.where.group, bundle=placed.bundle) if placed.bundle >= 0 else actor.where
        return self.capacity.fit(actor.wants, where)

    def _serve_the_rest(
        self, everybody: list[Waiting], waiting: list[Waiting], shares: list[Share], now: float
    ) -> None:
        """Nothing fits now: refuse what never will, send away what others can serve, ask for leases back, look again
        soon.
        """
        if self.router.alone:
            for one in everybody:
                if now - one.since > _GIVE_UP or one.where.group in self._gone_groups:
                    self._refuse_hopeless(one)
        else:
            for one in everybody:
                if one.where.group in self._gone_groups:
                    self._refuse(one, "its placement group was removed", "removed")
                elif isinstance(one, (Demand, ActorLease)) and one.until <= now:
                    self._send_back(one)
            self.router.route([d for d in everybody if isinstance(d, Demand)], now)
        self._recall(waiting, shares, now)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SLICE, self._look_again)

    def _send_back(self, one: Demand | ActorLease) -> None:
        if isinstance(one, Demand):
            self.demands.pop((one.client.prefix, one.cls), None)
            self.router.send_back(one)
        else:
            self._refuse(one, "there is no room for it now", "full")

    def _look_again(self) -> None:
        self._timer = None
        self.kick()

    def _recall(self, waiting: list[Waiting], shares: list[Share], now: float) -> None:
        """Idle leases are asked for at once; busy ones, the oldest first, when they have had their time."""
        oldest: Lease | None = None
        for lease in self.leases.values():
            if not lease.granted or lease.recalled or not self._others_wait(waiting, shares, lease):
                continue
            if lease.worker is None or lease.client.session is None or not lease.client.told:
                continue
            if not lease.wanted:
                lease.wanted = True
                lease.client.send(m.Recall(lease.id, lease.worker.id, False))
            if oldest is None or lease.granted < oldest.granted:
                oldest = lease
        if oldest is not None and oldest.worker is not None and now - oldest.granted >= _SLICE:
            oldest.recalled = True
            oldest.client.send(m.Recall(oldest.id, oldest.worker.id, True))

    @staticmethod
    def _others_wait(waiting: list[Waiting], shares: list[Share], lease: Lease) -> bool:
        """Somebody else waits for something that it has."""
        mine, group = lease.share.resources.keys(), lease.where.group
        return any(
            not mine.isdisjoint(share.resources) or not mine or (group == w.where.group != b"" and w.where.bundle < 0)
            for w, share in zip(waiting, shares, strict=True)
            if not isinstance(w, Demand) or w.client is not lease.client or w.cls != lease.cls
        )

    def explain(self, prefix: bytes, cls: int) -> dict[str, Any]:
        """Why leases of this class are not granted, with numbers; empty when none is waited for."""
        demand = self.demands.get((prefix, cls))
        if demand is None:
            return self._explain_start(
                [x for x in self.leases.values() if x.client.prefix == prefix and x.cls == cls and x.worker is None]
            )
        told: dict[str, Any] = {
            "asks": {name: amount / UNIT for name, amount in demand.resources.items()},
            "leases_wanted": demand.count,
            "waits_s": round(time.monotonic() - demand.since, 3),
        }
        if demand.client.session is None:
            if demand.client.kind == "guest":
                reason = "the node of the process that submitted it is not connected with this one now"
                return {**told, "kind": reasons.NODE_AWAY, "reason": reason}
            reason = f"the process that submitted it (pid {demand.client.pid}) is not connected now: it gets nothing"
            return {**told, "kind": reasons.OWNER_AWAY, "reason": reason}
        if not self._may_grow(demand):
            reason = f"{self._limit()} tasks of its kind, which need no CPU, run on this node: as many as may at once"
            return {**told, "kind": reasons.LIMIT_REACHED, "reason": reason}
        kind, reason = self._why(demand)
        if kind == reasons.WORKER_STARTING and demand.why[0]:
            kind, reason = demand.why
        return {**told, "kind": kind, "reason": reason}

    def explain_actor(self, id_: bytes) -> dict[str, Any]:
        """Likewise of an actor that has no worker yet; empty when it is not here, or has one."""
        for actor in self.actors:
            if actor.id == id_:
                kind, reason = self._why(actor)
                waits = {"waits_s": round(time.monotonic() - actor.since, 3)}
                asks = {name: amount / UNIT for name, amount in actor.placement.items()}
                return {"kind": kind, "reason": reason, "asks": asks, **waits}
        return self._explain_start([a for a in self._placed if a.id == id_ and a.worker is None])

    def explain_group(self, id_: bytes) -> dict[str, Any]:
        """Likewise of bundles that are to be reserved here."""
        for group in self.groups:
            if group.id == id_:
                kind, reason = self._why(group)
                return {"kind": kind, "reason": reason, "waits_s": round(time.monotonic() - group.since, 3)}
        return {}

    def _explain_start(self, without_worker: Sequence[Lease | ActorLease]) -> dict[str, Any]:
        if not without_worker:
            return {}
        kind, reason = self.pool.explain(without_worker[0])
        return {"kind": kind, "reason": reason}

    def _why(self, waiting: Waiting) -> tuple[str, str]:
        """Why it is not served, as this node sees it."""
        where = waiting.where
        if where.group and where.group not in self.capacity.groups:
            if self.router.alone or not self.router.group_nodes(where.group):
                return reasons.GROUP_PENDING, f"its placement group {where.group.hex()} is not created yet"
            return reasons.RESOURCES_BUSY, "its bundles are on other nodes, which were asked, and are full"
        if self.draining and not where.group and (self.router.alone or not isinstance(waiting, Demand)):
            return reasons.NODE_DRAINING, "this node takes nothing new: it is draining"
        if reason := self._no_memory(waiting):
            return reasons.MEMORY_PRESSURE, reason
        if isinstance(waiting, Demand) and waiting.why[0]:
            return waiting.why
        if reason := self._hopeless(waiting):
            return reasons.NEVER, reason
        share = self.capacity.fit(waiting.resources, where)
        if isinstance(waiting, GroupLease):
            lacking = self.capacity.lacking_for_group(waiting.bundles, waiting.resources)
        else:
            lacking = self.capacity.lacking(share)
        if not lacking:
            return reasons.WORKER_STARTING, "there is room for it: it gets a worker in a moment"
        parts = ", ".join(
            f"{name.partition('@')[0]}: asks {share.resources.get(name, 0) / UNIT:g}, free are "
            f"{max(0, self.capacity.available.get(name, 0)) / UNIT:g}"
            for name in lacking
        )
        if where.node and not where.soft:
            return reasons.NODE_BUSY, f"the node that it is for, {where.node[:8]}…, is full: {parts}"
        if where.labels:
            return (
                reasons.LABELS_BUSY,
                f"not enough is free on this node, which has the labels that it asks for: {parts}",
            )
        return reasons.RESOURCES_BUSY, f"not enough is free: {parts}"

    # ------------------------------------------------------------ refusals

    def _refuse_hopeless(self, waiting: Waiting) -> None:
        """What can never run here is told so."""
        group = waiting.where.group
        if group and group not in self.capacity.groups:
            if group in self._gone_groups or self.group_gone(group):
                self._refuse(waiting, "its placement group was removed", "removed")
            return  # it waits with its group
        if reason := self._hopeless(waiting):
            self._refuse(waiting, reason, "never")

    def _hopeless(self, waiting: Waiting) -> str:
        """Why it can never run on this node, whatever is free; "" when it can, or it is not known yet."""
        where = waiting.where
        if reason := self._refuse_place(where):
            return reason
        if isinstance(waiting, GroupLease):
            never = self.capacity.never_for_group(waiting.bundles, waiting.resources)
        else:
            never = self.capacity.never(waiting.resources, where)
        if not never or any(name.startswith(self.not_known_yet) for name in never):
            return ""
        parts = ", ".join(
            f"{name}: asks {asked / UNIT:g}, {'its group' if where.group else 'the node'} has {there / UNIT:g}"
            for name, (asked, there) in never.items()
        )
        if self.gpus_unknown and any(name.startswith(("GPU", "accelerator_type:")) for name in never):
            parts += f"; its GPUs are unknown, as {self.gpus_unknown}: say how many it has with --num-gpus"
        whom = "no bundle of its placement group" if where.group else "no node"
        return f"{whom} can ever satisfy it ({parts}); ask for less, or start a node that has it"

    def _refuse(self, waiting: Waiting, reason: str, kind: str) -> None:
        self.on_refused(kind)
        if isinstance(waiting, GroupLease):
            waiting.infeasible = True
            waiting.on_infeasible(reason)
        elif isinstance(waiting, ActorLease):
            self.actors.remove(waiting)
            waiting.over = True
            waiting.on_never(reason, kind)
        else:
            self.demands.pop((waiting.client.prefix, waiting.cls), None)
            waiting.client.send(m.Unschedulable(waiting.cls, reason, kind if kind != "never" else ""))

    def no_worker(self, assignee: Lease | ActorLease, reason: str, kind: str) -> None:
        """What waits for a worker gets none: ``env``, its runtime environment cannot be made, or ``start``."""
        if assignee.over:
            return
        if isinstance(assignee, ActorLease):
            self.actor_over(assignee)
            assignee.on_never(reason, kind)
        else:
            self._drop(assignee)
            assignee.client.send(m.Unschedulable(assignee.cls, reason, kind))

    # ------------------------------------------------------------ grants

    def on_ready(self, worker: Worker) -> None:
        """The worker has entered the job: hand it over."""
        assigned = worker.assigned
        if isinstance(assigned, ActorLease):
            if assigned.over:
                self.pool.release(worker)
                return
            assigned.worker, assigned.granted = worker, time.monotonic()
            self.on_granted(assigned.granted - assigned.since, "actor")
            worker.record.actor = assigned.id
            self._record(worker, assigned)
            assigned.on_worker(worker)
            return
        lease: Lease = assigned
        if lease.over or lease.client.session is None or not lease.client.told:
            # The client is dead, or away, or is about to say what it has: then it asks anew.
            self._drop(lease)
            self.pool.release(worker)
            return
        lease.worker = worker
        lease.granted = time.monotonic()
        self.on_granted(lease.granted - lease.since, "task")
        record = worker.record
        record.lease, record.client, record.cls = lease.id, lease.client.prefix, lease.cls
        self._record(worker, lease)
        lease.client.send(
            m.Grant(
                lease.cls,
                lease.id,
                worker.id,
                self._worker_path(worker.id),
                record.pid,
                self.capacity.names_of(lease.share.devices),
                self._where(lease),
            )
        )

    def _record(self, worker: Worker, held: Lease | ActorLease) -> None:
        """Into the ledger, before anybody is told."""
        record = worker.record
        record.resources, record.devices, record.group = held.share.resources, held.share.devices, held.where.group
        record.retriable = held.retriable
        self.pool.save(worker)
        if memory_of(record.resources):
            self.on_limited()

    @staticmethod
    def _where(held: Lease | ActorLease) -> m.Place:
        where = held.where
        return (
            m.Place(group=where.group, bundle=held.share.bundle, capture=where.capture) if where.group else m.ANYWHERE
        )

    def brought(self, actor: ActorLease) -> tuple[list[str], m.Place]:
        """The GPUs of an actor, and the bundle it is in."""
        return self.capacity.names_of(actor.share.devices), self._where(actor)

    def _drop(self, lease: Lease) -> None:
        """The lease ends; its resources are free."""
        if self.leases.pop(lease.id, None) is not None:
            lease.over = True
            self._give_back(lease)

    def _give_back(self, held: Lease | ActorLease) -> None:
        if held.blocked:
            self.capacity.lend(held.share, False)
        self.capacity.give(held.share)
        if held.where.group in self._closing:
            self._close_if_empty(held.where.group)
        self.kick()

    def on_lease_done(self, client: Client, lease_id: int, retiring: bool = False) -> None:
        """``retiring``: its worker takes no more tasks, as the client was told."""
        lease = self.leases.get(lease_id)
        if lease is None or lease.client is not client:
            return
        if lease.worker is not None and lease.share.devices and (retiring or lease.worker.record.kind):
            # As long as the process lives, so does what it has in the memory of its GPUs.
            lease.ended = lease.recalled = True
            self.pool.end(lease.worker, deaths.RETIRED, "it takes no more tasks, and it had GPUs")
            return
        self._drop(lease)
        if lease.worker is not None:
            lease.worker.blocked = False
            self.pool.release(lease.worker)

    def on_blocked(self, worker: Worker, blocked: bool) -> None:
        """A worker that waits lends its CPUs; it takes them back even if that over-commits."""
        held = worker.assigned
        if worker.blocked == blocked or held is None:
            return
        worker.blocked = held.blocked = blocked
        self.capacity.lend(held.share, blocked)
        self.kick()

    def kill_task(self, client: Client, message: m.KillTask) -> None:
        lease = self.leases.get(message.lease)
        if (
            lease is not None
            and lease.client is client
            and lease.worker is not None
            and lease.worker.id == message.worker
        ):
            self.pool.kill(lease.worker, deaths.CANCELLED, "its task was cancelled with force")

    # ------------------------------------------------------------ placement groups

    def reserve_group(
        self,
        id: bytes,
        bundles: Bundles,
        strategy: str,
        job: str,
        on_created: Callable[[], None],
        on_infeasible: Callable[[str], None],
        *,
        attempt: int = 0,
        wait: bool = True,
    ) -> None:
        """Wait for a group's resources; ``on_infeasible(reason)`` while this node could never have them, or, without
        ``wait``, when they are not free now.
        """
        group = GroupLease(id, bundles, strategy, job, on_created, on_infeasible, attempt=attempt)
        self.groups = [g for g in self.groups if g.id != id]  # an earlier attempt that still waits
        self._gone_groups.pop(id, None)  # a head that has restarted may first not have wanted it
        self.groups.append(group)
        if not wait or not self._contended(group):
            share = self.capacity.fit(group.resources, group.where)
            lacking = self._lacking(group, share)
            if not lacking:  # no need to go through the queue
                self._start(group, share, time.monotonic())
                return
            if not wait:
                self.groups.remove(group)
                on_infeasible(f"not free now: {', '.join(lacking)}")
                return
        self.kick()

    def _contended(self, group: GroupLease) -> bool:
        """Others wait for something that it wants, or too many wait to look at them all."""
        if len(self.groups) + len(self.actors) + len(self.demands) > _LOOKED_AT_ONCE:
            return True
        others: list[Waiting] = [*self.groups, *self.actors, *self.demands.values()]
        return any(not group.resources.keys().isdisjoint(w.resources) for w in others if w is not group)

    def is_closing(self, id: bytes) -> bool:
        """It is being released, and something of it runs yet."""
        return id in self._closing

    def release_group(self, id: bytes, on_released: Callable[[], None], *, removed: bool = True) -> None:
        """End what runs in the group; ``on_released()`` when its resources are the node's again. Unless it is
        ``removed`` it lives on, on other nodes.
        """
        for group in [g for g in self.groups if g.id == id]:
            self.groups.remove(group)
        if removed:
            self._gone_groups[id] = None
            if len(self._gone_groups) > _GROUPS_REMEMBERED:
                del self._gone_groups[next(iter(self._gone_groups))]
        everybody: list[Waiting] = [*self.actors, *self.demands.values()]
        for waiting in everybody:
            if removed and waiting.where.group == id:
                self._refuse(waiting, "its placement group was removed", "removed")
        if id not in self.capacity.groups:
            on_released()
            return
        self._closing[id] = on_released
        for held in self._in_group(id):
            if held.worker is not None:
                self.pool.kill(held.worker, deaths.REMOVED, "its placement group was removed")
            elif isinstance(held, ActorLease):
                self.actor_over(held)
                if removed:
                    held.on_never("its placement group was removed", "removed")
                else:
                    held.on_never("its bundle goes to another node", "full")
            else:
                self.pool.unassign(held)
                self._drop(held)
                if removed:
                    held.client.send(m.Unschedulable(held.cls, "its placement group was removed", "removed"))
                else:
                    self._ask_again(held)
        self._close_if_empty(id)

    def _in_group(self, id_: bytes) -> list[Lease | ActorLease]:
        everybody: list[Lease | ActorLease] = [*self.leases.values(), *self._placed]
        return [held for held in everybody if held.where.group == id_]

    def _close_if_empty(self, id_: bytes) -> None:
        if id_ in self._closing and not self._in_group(id_):
            self.capacity.close_group(id_)
            self._closing.pop(id_)()
            self.kick()

    # ------------------------------------------------------------ ends

    def actor_over(self, actor: ActorLease) -> None:
        """The actor's worker has ended, or will never be: give back what it had."""
        if actor.over:
            return
        if actor in self.actors:
            self.actors.remove(actor)
            actor.over = True
            return
        self.pool.unassign(actor)
        actor.over = True
        self._placed.discard(actor)
        self._give_back(actor)

    def adopt_actor(self, actor: ActorLease) -> None:
        """After a daemon restart: a worker has this actor, and what it needs."""
        actor.share = self.capacity.take(actor.share)
        self._placed.add(actor)

    def worker_exited(self, worker: Worker, death: m.Death) -> None:
        held = worker.assigned
        if isinstance(held, Lease) and not held.over:
            self._drop(held)
            if held.ended:
                return
            if held.granted:
                held.client.send(m.WorkerDied(held.id, death))
            else:
                self._ask_again(held)

    def _ask_again(self, lease: Lease) -> None:
        """Its worker died before it was handed over: the demand stands."""
        key = lease.client.prefix, lease.cls
        demand = self.demands.get(key)
        if demand is None:
            known = self._classes.get(key)
            if known is None:
                return
            demand = self.demands[key] = Demand(lease.client, lease.cls, known, 0, time.monotonic())
        demand.count += 1
        self.kick()

    def client_died(self, client: Client) -> None:
        self.room.forget(client.prefix)
        for key in [key for key in self.demands if key[0] == client.prefix]:
            del self.demands[key]
        for key in [key for key in self._classes if key[0] == client.prefix]:
            del self._classes[key]
        for lease in [x for x in self.leases.values() if x.client is client]:
            if lease.worker is None:
                self.pool.unassign(lease)
                self._drop(lease)
            else:
                # It may be in the middle of a task nobody waits for.
                self.pool.kill(lease.worker, deaths.OWNER_ENDED, "the process that submitted its task has ended")
        self.kick()

    # ------------------------------------------------------------ daemon restart

    def restore(self, worker: Worker, client: Client | None) -> None:
        """A lease of the ledger counts as used until its client has told."""
        record = worker.record
        if not record.lease:
            return
        ended = client is None
        if client is None:
            self.pool.kill(worker, deaths.OWNER_ENDED, "the process that submitted its task has ended")
            client = Client(record.client, "worker", 0, 0, record.job, detached=True)
        where = m.Place(group=record.group) if record.group else m.ANYWHERE
        share = self.capacity.take(Share(record.resources, record.devices, bundle_of(record.resources)))
        lease = Lease(record.lease, client, record.cls, where, share, worker, granted=time.monotonic())
        lease.ended = lease.recalled = ended
        lease.retriable = record.retriable
        self.leases[lease.id] = lease
        worker.assigned = lease
        self.end_if_homeless(worker)

    def end_if_homeless(self, worker: Worker) -> None:
        """After a daemon restart: the group it runs in was removed, and the daemon before us did not get to it."""
        if worker.record.group and worker.record.group not in self.capacity.groups:
            self.pool.kill(worker, deaths.REMOVED, "its placement group was removed")

    def client_told(self, client: Client, claimed: list[tuple[int, str]]) -> None:
        """End the leases it does not claim; tell it of those that have died."""
        told = {lease for lease, _ in claimed}
        for lease in [
            x for x in self.leases.values() if x.client is client and x.id not in told and x.worker is not None
        ]:
            self.on_lease_done(client, lease.id, retiring=True)
        for lease_id, wid in claimed:
            known = self.leases.get(lease_id)
            if known is not None:
                if not known.ended:
                    known.wanted = known.recalled = False  # it may not have heard of that
            else:
                ended = m.Death(wid, reason="it ended while the daemon was away", kind=deaths.UNSEEN)
                client.send(m.WorkerDied(lease_id, self.death_of(wid) or ended))
        for key in [key for key in self.demands if key[0] == client.prefix]:
            del self.demands[key]
