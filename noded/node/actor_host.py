"""Runs actors on this node: takes resources and a worker for each, and tells the table what became of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from noded.node.capacity import Share, bundle_of
from noded.node.leases import ActorLease, Leases
from noded.node.workers import Worker, WorkerPool
from noded.wire import messages as m


class Record(Protocol):
    """What is used of an actor's record in the head's table."""

    spec: m.ActorSpec
    payload: bytes
    worker: str
    restarts: int


class NodeActorHost:
    """``on_started(record, worker id, path, pid)``, ``on_never(record, reason, kind)``, ``on_exited(record, death
    or None)``, ``on_gone(actor's id, death)`` of one whose record is not known (yet).
    """

    def __init__(
        self,
        leases: Leases,
        pool: WorkerPool,
        worker_path: Callable[[str], str],
        on_started: Callable[[Any, str, str, int], None],
        on_never: Callable[[Any, str, str], None],
        on_exited: Callable[[Any, m.Death | None], None],
        on_claim: Callable[[Worker, m.ActorSpec], None],
        on_gone: Callable[[bytes, m.Death], None],
    ):
        self._leases = leases
        self._pool = pool
        self._worker_path = worker_path
        self._on_started = on_started
        self._on_never = on_never
        self._on_exited = on_exited
        self._on_claim = on_claim
        self._on_gone = on_gone
        self.hosted: dict[bytes, tuple[Record, ActorLease]] = {}
        self._reserved: dict[bytes, Worker] = {}

    def place(self, record: Record) -> None:
        spec = record.spec
        lease = ActorLease(
            spec.id,
            spec.job,
            spec.resources,
            spec.placement,
            spec.class_name,
            lambda worker: self._started(record, worker),
            lambda reason, kind: self._never(record, reason, kind),
            spec.where,
            spec.env,
        )
        self.hosted[spec.id] = record, lease
        self._leases.request_actor(lease)

    def _started(self, record: Record, worker: Worker) -> None:
        self._instantiate(record, worker)
        self._on_started(record, worker.id, self._worker_path(worker.id), worker.record.pid)

    def _instantiate(self, record: Record, worker: Worker) -> None:
        assert worker.client is not None
        gpus, where = self._leases.brought(worker.assigned)
        spec = msgspec.structs.replace(record.spec, where=where)
        worker.client.send(m.Instantiate(spec, gpus, record.restarts > 0), record.payload)

    def _never(self, record: Record, reason: str, kind: str) -> None:
        self.hosted.pop(record.spec.id, None)
        self._on_never(record, reason, kind)

    def stop(self, record: Record, reason: str, *, graceful: bool) -> None:
        found = self.hosted.get(record.spec.id)
        if found is None:
            self._on_exited(record, None)
            return
        lease = found[1]
        if lease.worker is None:
            del self.hosted[record.spec.id]
            self._leases.actor_over(lease)
            self._on_exited(record, None)
        elif graceful:
            self._pool.end(lease.worker, reason)
        else:
            self._pool.kill(lease.worker, reason)

    def worker_exited(self, worker: Worker, death: m.Death) -> None:
        lease = worker.assigned
        if not isinstance(lease, ActorLease):
            return
        if self._reserved.get(lease.id) is worker:
            del self._reserved[lease.id]
            self._leases.actor_over(lease)
            self._on_gone(lease.id, death)
            return
        found = self.hosted.get(lease.id)
        if found is None or found[1] is not lease:
            return
        if lease.worker is None and not lease.over:
            # It died before the actor was given to it: another one.
            self._pool.assign(lease, lease.job, lease.env)
            return
        del self.hosted[lease.id]
        self._leases.actor_over(lease)
        self._on_exited(found[0], death)

    # ------------------------------------------------------------ daemon restart

    def reserve(self, worker: Worker) -> None:
        """The ledger says that this worker was given this actor: its resources are taken from now on, and nobody else
        gets the actor, whether or not it has begun to build it.
        """
        record = worker.record
        where = m.Place(group=record.group) if record.group else m.ANYWHERE
        lease = worker.assigned = ActorLease(record.actor, record.job, {}, {}, "", _nothing, _nothing, where)
        lease.share, lease.worker = Share(record.resources, record.devices, bundle_of(record.resources)), worker
        self._leases.adopt_actor(lease)
        self._reserved[record.actor] = worker

    def reserved(self, id_: bytes) -> bool:
        """A worker was given this actor before the restart, and nobody has told of it yet."""
        return id_ in self._reserved

    def claim(self, spec: m.ActorSpec) -> bool:
        """True when a worker was given this actor before the restart: it is adopted, and told again if need be."""
        worker = self._reserved.get(spec.id)
        if worker is None:
            return False
        self._on_claim(worker, spec)
        if worker.client is not None:
            self.attached(worker, has_actor=False)
        return True

    def adopt(self, record: Record, worker: Worker) -> None:
        """Somebody told of the actor of a reserved worker (or the worker itself of one that nobody knew)."""
        id_ = record.spec.id
        if id_ in self.hosted:
            return
        if self._reserved.pop(id_, None) is None:
            self.reserve(worker)
            del self._reserved[id_]
        self.hosted[id_] = record, worker.assigned

    def attached(self, worker: Worker, *, has_actor: bool) -> None:
        """The daemon before us may have died between choosing the worker and telling it."""
        found = self.hosted.get(worker.record.actor)
        if found is not None and found[1].worker is worker and not has_actor and found[0].payload:
            self._instantiate(found[0], worker)

    def end_unclaimed(self) -> None:
        """Everybody has told, and nobody of these actors: they were never built and never will be."""
        for worker in self._reserved.values():
            self._pool.kill(worker, "the actor it was chosen for is not wanted any more")


def _nothing(*_: object) -> None:
    return None
