"""Runs actors on this node: takes resources and a worker for each, and tells the table what became of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from noded.node.leases import ActorLease, Leases
from noded.node.workers import Worker, WorkerPool
from noded.wire import messages as m


class Record(Protocol):
    """What is used of an actor's record in the head's table."""

    spec: m.ActorSpec
    payload: bytes
    worker: str


class NodeActorHost:
    """``on_started(record, worker id, path, pid)``, ``on_never(record, reason)``, ``on_exited(record, death
    or None)``.
    """

    def __init__(
        self,
        leases: Leases,
        pool: WorkerPool,
        worker_path: Callable[[str], str],
        on_started: Callable[[Record, str, str, int], None],
        on_never: Callable[[Record, str], None],
        on_exited: Callable[[Record, m.Death | None], None],
    ):
        self._leases = leases
        self._pool = pool
        self._worker_path = worker_path
        self._on_started = on_started
        self._on_never = on_never
        self._on_exited = on_exited
        self.hosted: dict[bytes, tuple[Record, ActorLease]] = {}

    def place(self, record: Record) -> None:
        spec = record.spec
        lease = ActorLease(
            spec.id,
            spec.job,
            spec.resources,
            spec.placement,
            spec.class_name,
            lambda worker: self._started(record, worker),
            lambda reason: self._never(record, reason),
        )
        self.hosted[spec.id] = record, lease
        self._leases.request_actor(lease)

    def _started(self, record: Record, worker: Worker) -> None:
        assert worker.client is not None
        worker.client.send(m.Instantiate(record.spec), record.payload)
        self._on_started(record, worker.id, self._worker_path(worker.id), worker.record.pid)

    def _never(self, record: Record, reason: str) -> None:
        self.hosted.pop(record.spec.id, None)
        self._on_never(record, reason)

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
        found = self.hosted.get(lease.id)
        if found is None or found[1] is not lease:
            return
        if lease.worker is None and not lease.over:
            # It died before the actor was given to it: another one.
            self._pool.assign(lease, lease.job)
            return
        del self.hosted[lease.id]
        self._leases.actor_over(lease)
        self._on_exited(found[0], death)

    def adopt(self, record: Record, worker: Worker) -> None:
        """After a daemon restart: the ledger says that this worker hosts this actor."""
        spec = record.spec
        if spec.id in self.hosted:
            return
        lease = ActorLease(
            spec.id,
            spec.job,
            worker.record.resources,
            spec.placement,
            spec.class_name,
            lambda _: None,
            lambda _: None,
            worker,
        )
        self.hosted[spec.id] = record, lease
        old, worker.assigned = worker.assigned, lease
        if not isinstance(old, ActorLease):
            self._leases._take(lease.resources)
        else:
            lease.blocked = old.blocked

    def reserve(self, worker: Worker) -> None:
        """Its resources are taken from the first moment on, before the worker has told what it hosts."""
        lease = ActorLease(
            worker.record.actor,
            worker.record.job,
            worker.record.resources,
            {},
            "",
            lambda _: None,
            lambda _: None,
            worker,
        )
        worker.assigned = lease
        self._leases._take(lease.resources)
