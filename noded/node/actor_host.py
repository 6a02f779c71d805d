"""Runs actors on this node, as the head wants it: takes resources and a worker for each, and tells the head what became
of it. Each start of an actor is an *instance* with a number; what is said of an instance that is not there any more is
ignored on either side.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from noded.node.capacity import Share, bundle_of
from noded.node.leases import ActorLease, Leases
from noded.node.workers import Worker, WorkerPool
from noded.policy import deaths
from noded.wire import cluster_messages as c
from noded.wire import messages as m

_PATIENCE = 0.03
_UNCLAIMED_SECONDS = 10.0


class HeadSide(Protocol):
    """What the head is told."""

    def actor_started(self, id_: bytes, instance: int, worker: str, pid: int) -> None: ...

    def actor_never(self, id_: bytes, instance: int, reason: str, kind: str) -> None: ...

    def actor_exited(self, id_: bytes, instance: int, death: m.Death | None) -> None: ...

    def actor_hosted(self, actor: c.HostedActor) -> None:
        """After a restart: it is here."""


class Hosted(msgspec.Struct, eq=False):
    """One instance of an actor on this node."""

    id: bytes
    instance: int
    lease: ActorLease
    spec: m.ActorSpec | None = None
    """Unknown after a restart, until its worker or the head has told."""
    payload: bytes = b""
    restarted: bool = False
    alive: bool = False
    since: float = 0.0


class NodeActorHost:
    def __init__(
        self,
        leases: Leases,
        pool: WorkerPool,
        head: HeadSide,
        take_job: Callable[[str, m.JobConfig], None],
    ):
        self._leases = leases
        self._pool = pool
        self._head = head
        self._take_job = take_job
        self.hosted: dict[bytes, Hosted] = {}

    # ------------------------------------------------------------ the head's wishes

    def host(self, message: c.HostActor, payload: bytes) -> None:
        """Start this instance, unless it is here already."""
        spec = message.spec
        self._take_job(spec.job, message.job_config)
        known = self.hosted.get(spec.id)
        if known is not None and known.instance == message.instance:
            known.spec, known.payload = known.spec or spec, payload
            if known.lease.worker is not None and known.lease.worker.client is not None:
                self.attached(known.lease.worker, None)
            return
        if known is not None:
            self.stop(c.StopActor(spec.id, known.instance, "it is started anew", False, kind=deaths.MOVED))
        lease = ActorLease(
            spec.id,
            spec.job,
            spec.resources,
            spec.placement,
            spec.class_name,
            lambda worker: self._started(hosted, worker),
            lambda reason, kind: self._never(hosted, reason, kind),
            spec.where,
            spec.env,
            retriable=bool(spec.max_restarts),
        )
        if not message.wait:
            lease.until = time.monotonic() + _PATIENCE
        hosted = self.hosted[spec.id] = Hosted(spec.id, message.instance, lease, spec, payload, message.restarted)
        self._leases.request_actor(lease)

    def stop(self, message: c.StopActor) -> None:
        """End that instance, or stop looking for a worker; answered with ``actor_exited``."""
        hosted = self.hosted.get(message.id)
        if hosted is None or hosted.instance != message.instance:
            if message.move:
                return
            self._head.actor_exited(message.id, message.instance, None)
            return
        lease = hosted.lease
        if lease.worker is None:
            del self.hosted[message.id]
            self._leases.actor_over(lease)
            if message.move:
                self._head.actor_never(message.id, message.instance, message.reason, "full")
            else:
                self._head.actor_exited(message.id, message.instance, None)
        elif message.move:
            return
        elif message.graceful:
            self._pool.end(lease.worker, message.kind, message.reason)
        else:
            self._pool.kill(lease.worker, message.kind, message.reason)

    # ------------------------------------------------------------ what becomes of it

    def _started(self, hosted: Hosted, worker: Worker) -> None:
        worker.record.instance = hosted.instance
        self._pool.save(worker)
        self._instantiate(hosted, worker)
        self._head.actor_started(hosted.id, hosted.instance, worker.id, worker.record.pid)

    def _instantiate(self, hosted: Hosted, worker: Worker) -> None:
        assert worker.client is not None and hosted.spec is not None
        gpus, where = self._leases.brought(worker.assigned)
        spec = msgspec.structs.replace(hosted.spec, where=where)
        worker.client.send(m.Instantiate(spec, gpus, hosted.restarted), hosted.payload)

    def _never(self, hosted: Hosted, reason: str, kind: str) -> None:
        if self.hosted.get(hosted.id) is hosted:
            del self.hosted[hosted.id]
        self._head.actor_never(hosted.id, hosted.instance, reason, kind)

    def worker_exited(self, worker: Worker, death: m.Death) -> None:
        lease = worker.assigned
        if not isinstance(lease, ActorLease):
            return
        hosted = self.hosted.get(lease.id)
        if hosted is None or hosted.lease is not lease:
            self._leases.actor_over(lease)
            return
        if lease.worker is None and not lease.over:
            # It died before the actor was given to it: another one.
            self._pool.assign(lease, lease.job, lease.env)
            return
        del self.hosted[lease.id]
        self._leases.actor_over(lease)
        self._head.actor_exited(lease.id, hosted.instance, death)

    # ------------------------------------------------------------ daemon restart

    def restore(self, worker: Worker) -> None:
        """The ledger says that this worker was given this actor: its resources are taken from now on, and nobody else
        gets the actor, whether or not it has begun to build it.
        """
        record = worker.record
        where = m.Place(group=record.group) if record.group else m.ANYWHERE
        lease = worker.assigned = ActorLease(record.actor, record.job, {}, {}, "", _nothing, _nothing, where)
        lease.share, lease.worker = Share(record.resources, record.devices, bundle_of(record.resources)), worker
        lease.retriable = record.retriable
        self._leases.adopt_actor(lease)
        self.hosted[record.actor] = Hosted(record.actor, record.instance, lease, since=time.monotonic())

    def attached(self, worker: Worker, spec: m.ActorSpec | None, alive: bool = False) -> None:
        """A worker that was given an actor is connected (again), with what it has of it."""
        hosted = self.hosted.get(worker.record.actor)
        if hosted is None or hosted.lease.worker is not worker:
            return
        if spec is not None:
            hosted.spec, hosted.alive = spec, hosted.alive or alive
            self._head.actor_hosted(self._told(hosted))
        elif hosted.spec is not None and hosted.payload and not hosted.alive:
            # The daemon before us may have died between choosing the worker and telling it; twice does no harm.
            self._instantiate(hosted, worker)

    def up(self, id_: bytes) -> None:
        """Its constructor has returned. What it was made of is needed no more, unless by a head that has lost it."""
        hosted = self.hosted.get(id_)
        if hosted is not None:
            hosted.alive = True
            if hosted.spec is None or not hosted.spec.max_restarts:
                hosted.payload = b""

    def forget_waiting(self) -> None:
        """Those that have no worker yet: the head, which may be another one, has them started anew."""
        for id_, hosted in list(self.hosted.items()):
            if hosted.lease.worker is None:
                del self.hosted[id_]
                self._leases.actor_over(hosted.lease)

    def told(self) -> list[c.HostedActor]:
        """All that are here, for a head that does not know."""
        return [self._told(hosted) for hosted in self.hosted.values() if hosted.lease.worker is not None]

    @staticmethod
    def _told(hosted: Hosted) -> c.HostedActor:
        worker = hosted.lease.worker
        assert worker is not None
        return c.HostedActor(hosted.id, hosted.instance, worker.id, worker.record.pid, hosted.spec, hosted.alive)

    def end_unclaimed(self, patience: float = _UNCLAIMED_SECONDS) -> None:
        """After a restart: everybody has told, and nobody of these actors: they were never built and never will be."""
        now = time.monotonic()
        for hosted in self.hosted.values():
            if hosted.spec is None and hosted.lease.worker is not None and now - hosted.since > patience:
                self._pool.kill(hosted.lease.worker, deaths.MOVED, "the actor it was chosen for is not wanted any more")

    def restartable(self) -> list[str]:
        """The workers of actors that the head would start elsewhere if it believed this node dead."""
        return [
            h.lease.worker.id
            for h in self.hosted.values()
            if h.lease.worker is not None and (h.spec is None or h.spec.max_restarts)
        ]


def _nothing(*_: object) -> None:
    return None
