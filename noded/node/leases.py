"""Leases: which client may push tasks to which worker, and the node's resources.

Clients declare demand per scheduling class; here it is matched with what is free, workers are taken from the
pool, and grants are written to the ledger before they are sent. Actors take their resources here too. Who is
served next is decided in ``policy/fairness.py``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from noded.node.session import Client
from noded.node.workers import Worker, WorkerPool
from noded.policy import fairness
from noded.resources import UNIT
from noded.wire import messages as m

log = logging.getLogger("noded.leases")

_SLICE = 0.05
"""A lease others wait for ends at a task boundary after this many seconds."""
_STARTS_PER_TURN = 16
_ACTORS_LOOKED_AT = 128
"""A thousand actors that wait must not make each decision cost a thousand looks; they are served in order anyway."""
_GIVE_UP = 1.0
"""What can never fit is refused after this many seconds."""


@dataclass(eq=False)
class Demand:
    client: Client
    cls: int
    resources: dict[str, int]
    name: str
    count: int = 0
    since: float = 0.0


@dataclass(eq=False)
class Lease:
    id: int
    client: Client
    cls: int
    resources: dict[str, int]
    worker: Worker | None = None
    granted: float = 0.0
    wanted: bool = False
    recalled: bool = False
    blocked: bool = False
    over: bool = False


@dataclass(eq=False)
class ActorLease:
    """An actor's claim: ``placement`` must be free to start it, ``resources`` are taken while it lives."""

    id: bytes
    job: str
    resources: dict[str, int]
    placement: dict[str, int]
    class_name: str
    on_worker: Callable[[Worker], None]
    on_never: Callable[[str], None]
    worker: Worker | None = None
    blocked: bool = False
    over: bool = False
    since: float = field(default_factory=time.monotonic)


class Leases:
    """``total`` and ``available`` are in fixed-point units. Needs ``pool`` set before use."""

    def __init__(self, total: dict[str, int], epoch: int, worker_path: Callable[[str], str]):
        self.total = total
        self.available = dict(total)
        self.pool: WorkerPool
        self.leases: dict[int, Lease] = {}
        self.demands: dict[tuple[bytes, int], Demand] = {}
        self.actors: list[ActorLease] = []
        """Actors that wait for resources."""
        self._classes: dict[tuple[bytes, int], m.ClassDef] = {}
        self._next = epoch << 32
        self._worker_path = worker_path
        self._turns: dict[str, int] = {}
        self._turn = 0
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------ resources

    def take(self, resources: dict[str, int]) -> None:
        for name, amount in resources.items():
            self.available[name] = self.available.get(name, 0) - amount

    def _give(self, resources: dict[str, int]) -> None:
        for name, amount in resources.items():
            self.available[name] = self.available.get(name, 0) + amount
        self.kick()

    # ------------------------------------------------------------ demand

    def on_class(self, client: Client, message: m.ClassDef) -> None:
        self._classes[client.prefix, message.cls] = message

    def on_demand(self, client: Client, message: m.Demand) -> None:
        key = client.prefix, message.cls
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
            demand = self.demands[key] = Demand(client, message.cls, known.resources, known.name)
        if message.count and not demand.count:
            demand.since = time.monotonic()
        demand.count = message.count
        if not demand.count:
            del self.demands[key]
        self.kick()

    def request_actor(self, actor: ActorLease) -> None:
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
            waiting: list[Demand | ActorLease] = [
                *self.actors[:_ACTORS_LOOKED_AT],
                *(d for d in self.demands.values() if self._may_grow(d)),
            ]
            if not waiting:
                return
            requests = [
                fairness.Request(
                    w.placement if isinstance(w, ActorLease) else w.resources,
                    self._turns.get(self._job_of(w), 0),
                    w.since,
                )
                for w in waiting
            ]
            index = fairness.pick(requests, self.available, now)
            if index is None:
                self._serve_the_rest(waiting, now)
                return
            self._start(waiting[index], now)
        self.kick()  # there may be more: after the loop has done what else is due

    def _job_of(self, waiting: Demand | ActorLease) -> str:
        return waiting.job if isinstance(waiting, ActorLease) else waiting.client.job

    def _may_grow(self, demand: Demand) -> bool:
        """Tasks that need no CPU are not bounded by resources; they are by this."""
        if demand.client.session is None:
            return False
        if demand.resources.get("CPU"):
            return True
        limit = max(16, 4 * self.total.get("CPU", 0) // UNIT)
        return (
            sum(1 for x in self.leases.values() if x.client is demand.client and x.cls == demand.cls and not x.blocked)
            < limit
        )

    def _start(self, waiting: Demand | ActorLease, now: float) -> None:
        self._turn += 1
        self._turns[self._job_of(waiting)] = self._turn
        if isinstance(waiting, ActorLease):
            self.actors.remove(waiting)
            self.take(waiting.resources)
            self.pool.assign(waiting, waiting.job)
            return
        waiting.count -= 1
        waiting.since = now
        if not waiting.count:
            self.demands.pop((waiting.client.prefix, waiting.cls), None)
        self._next += 1
        lease = Lease(self._next, waiting.client, waiting.cls, waiting.resources)
        self.leases[lease.id] = lease
        self.take(lease.resources)
        self.pool.assign(lease, waiting.client.job)

    def _serve_the_rest(self, waiting: list[Demand | ActorLease], now: float) -> None:
        """Nothing fits now: refuse what never will, ask for leases back, look again soon."""
        for one in waiting:
            never = fairness.never_fits(one.placement if isinstance(one, ActorLease) else one.resources, self.total)
            if never and now - one.since > _GIVE_UP:
                self._refuse(one, never)
        self._recall(waiting, now)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SLICE, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        self.kick()

    def _recall(self, waiting: list[Demand | ActorLease], now: float) -> None:
        """Idle leases are asked for at once; busy ones, the oldest first, when they have had their time."""
        oldest: Lease | None = None
        for lease in self.leases.values():
            if not lease.granted or lease.recalled or not self._others_wait(waiting, lease):
                continue
            if not lease.wanted:
                lease.wanted = True
                lease.client.send(m.Recall(lease.id, False))
            if oldest is None or lease.granted < oldest.granted:
                oldest = lease
        if oldest is not None and now - oldest.granted >= _SLICE:
            oldest.recalled = True
            oldest.client.send(m.Recall(oldest.id, True))

    @staticmethod
    def _others_wait(waiting: list[Demand | ActorLease], lease: Lease) -> bool:
        return any(isinstance(w, ActorLease) or w.client is not lease.client or w.cls != lease.cls for w in waiting)

    def _refuse(self, waiting: Demand | ActorLease, never: dict[str, tuple[int, int]]) -> None:
        parts = ", ".join(
            f"{name}: asks {asked / UNIT:g}, the node has {there / UNIT:g}" for name, (asked, there) in never.items()
        )
        reason = f"no node can ever satisfy it ({parts}); ask for less, or start a node that has it"
        if isinstance(waiting, ActorLease):
            self.actors.remove(waiting)
            waiting.over = True
            waiting.on_never(reason)
        else:
            self.demands.pop((waiting.client.prefix, waiting.cls), None)
            waiting.client.send(m.Unschedulable(waiting.cls, reason))

    # ------------------------------------------------------------ grants

    def on_ready(self, worker: Worker) -> None:
        """The worker has entered the job: hand it over."""
        assigned = worker.assigned
        if isinstance(assigned, ActorLease):
            if assigned.over:
                self.pool.release(worker)
                return
            assigned.worker = worker
            worker.record.actor, worker.record.resources = assigned.id, assigned.resources
            self.pool.save(worker)
            assigned.on_worker(worker)
            return
        lease: Lease = assigned
        if lease.over or lease.client.session is None:
            # The client is dead, or away: when it comes back it asks anew.
            self._drop(lease)
            self.pool.release(worker)
            return
        lease.worker = worker
        lease.granted = time.monotonic()
        record = worker.record
        record.lease, record.client, record.cls, record.resources = (
            lease.id,
            lease.client.prefix,
            lease.cls,
            lease.resources,
        )
        self.pool.save(worker)
        lease.client.send(m.Grant(lease.cls, lease.id, worker.id, self._worker_path(worker.id), record.pid))

    def _drop(self, lease: Lease) -> None:
        """The lease ends; its resources are free."""
        if self.leases.pop(lease.id, None) is not None:
            lease.over = True
            self._give(self._held(lease))

    @staticmethod
    def _held(lease: Lease | ActorLease) -> dict[str, int]:
        if not lease.blocked:
            return lease.resources
        return {name: amount for name, amount in lease.resources.items() if name != "CPU"}

    def on_lease_done(self, client: Client, lease_id: int) -> None:
        lease = self.leases.get(lease_id)
        if lease is not None and lease.client is client:
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
        cpus = {"CPU": held.resources.get("CPU", 0)}
        if blocked:
            self._give(cpus)
        else:
            self.take(cpus)

    def kill_task(self, client: Client, message: m.KillTask) -> None:
        lease = self.leases.get(message.lease)
        if (
            lease is not None
            and lease.client is client
            and lease.worker is not None
            and lease.worker.id == message.worker
        ):
            self.pool.kill(lease.worker, "its task was cancelled with force")

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
        self._give(self._held(actor))

    def worker_exited(self, worker: Worker, death: m.Death) -> None:
        held = worker.assigned
        if isinstance(held, Lease) and not held.over:
            self._drop(held)
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
            demand = self.demands[key] = Demand(
                lease.client, lease.cls, known.resources, known.name, 0, time.monotonic()
            )
        demand.count += 1
        self.kick()

    def client_died(self, client: Client) -> None:
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
                self.pool.kill(lease.worker, "the process that submitted its task has ended")
        self.kick()

    # ------------------------------------------------------------ daemon restart

    def restore(self, worker: Worker, client: Client | None) -> None:
        """A lease of the ledger counts as used until its client has told."""
        record = worker.record
        if not record.lease:
            return
        if client is None:
            self.pool.kill(worker, "the process that submitted its task has ended")
            return
        lease = Lease(record.lease, client, record.cls, record.resources, worker, time.monotonic())
        self.leases[lease.id] = lease
        worker.assigned = lease
        self.take(lease.resources)

    def client_told(self, client: Client, claimed: list[tuple[int, str]]) -> None:
        """End the leases it does not claim; tell it of those that have died."""
        told = {lease for lease, _ in claimed}
        for lease in [
            x for x in self.leases.values() if x.client is client and x.id not in told and x.worker is not None
        ]:
            self.on_lease_done(client, lease.id)
        for lease_id, wid in claimed:
            if lease_id not in self.leases:
                client.send(m.WorkerDied(lease_id, m.Death(wid, reason="it ended while the daemon was away")))
        for key in [key for key in self.demands if key[0] == client.prefix]:
            del self.demands[key]
