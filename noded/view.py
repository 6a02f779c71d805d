"""What may be asked of a node: the status page, the node list, and the questions that are its own business.

Reads the components, changes nothing. Implements ``http.view.NodeView``. What is the head's business is in
``head/head.py``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from noded.lifecycle import LoopProbe
from noded.metrics.family import Family
from noded.node.control import Question
from noded.node.lease_router import LeaseRouter
from noded.node.leases import Leases
from noded.node.object_store import ObjectStore
from noded.node.session import Client
from noded.node.spawner_link import SpawnerLink
from noded.node.workers import WorkerPool
from noded.node_metrics import NodeMetrics
from noded.resources import UNIT
from noded.version import __version__


class Identity(msgspec.Struct, frozen=True):
    """Who this node is; fixed once it listens."""

    cluster: str
    node: str
    number: int
    node_id: str
    address: str
    node_ip: str
    run_dir: str
    epoch: int
    head: bool
    labels: Mapping[str, str]


class View:
    """``cluster()``: what only the head, or the link to it, can say; ``nodes()``: the nodes of the cluster."""

    def __init__(
        self,
        identity: Identity,
        store: ObjectStore,
        leases: Leases,
        router: LeaseRouter,
        pool: WorkerPool,
        clients: dict[bytes, Client],
        spawner: SpawnerLink,
        probe: LoopProbe,
        *,
        cluster: Callable[[], dict[str, Any]],
        nodes: Callable[[], list[dict[str, Any]]],
        request_stop: Callable[[], None],
        memory: Callable[[], dict[str, Any]],
        collectors: Callable[[], list[dict[str, Any]]],
        records: Callable[[], dict[str, Any]],
        metrics: NodeMetrics,
    ):
        self._identity = identity
        self._store = store
        self._leases = leases
        self._router = router
        self._pool = pool
        self._clients = clients
        self._spawner = spawner
        self._probe = probe
        self._cluster = cluster
        self._nodes = nodes
        self._request_stop = request_stop
        self._memory = memory
        self._collectors = collectors
        self._records = records
        self._metrics = metrics
        self._started = time.time()

    def questions(self) -> dict[str, Question]:
        """What clients may ask, by name."""
        return {"status": self._ask_status, "stop": self._ask_stop}

    def request_stop(self) -> None:
        self._request_stop()

    def nodes(self) -> list[dict[str, Any]]:
        return self._nodes()

    async def metrics(self) -> list[Family]:
        return await self._metrics.scrape()

    def targets(self) -> list[dict[str, Any]]:
        return self._metrics.targets()

    def status(self) -> dict[str, Any]:
        figures = self._store.figures()
        own, free = self._leases.capacity.own()
        total = {name: amount / UNIT for name, amount in own.items() if not name.startswith("node:")}
        used = {name: (own[name] - free[name]) / UNIT for name in total}
        return {
            "cluster": self._identity.cluster,
            "node": self._identity.node,
            "number": self._identity.number,
            "node_id": self._identity.node_id,
            "head": self._identity.head,
            "version": __version__,
            "address": self._identity.address,
            "pid": os.getpid(),
            "epoch": self._identity.epoch,
            "uptime_s": time.time() - self._started,
            "state": "RECOVERING" if figures["recovering"] else "DRAINING" if self._leases.draining else "READY",
            "resources": {"total": total, "used": used},
            "gpus": {"ids": self._leases.capacity.ids, "unknown": self._leases.gpus_unknown},
            "workers": len(self._pool.workers),
            "objects": figures["objects"],
            "leases": len(self._leases.leases),
            "demands": self.waiting(),
            "drivers": sum(1 for c in self._clients.values() if c.kind == "driver" and not c.detached),
            "groups": len(self._leases.capacity.groups),
            "spawner_pid": self._spawner.spawner_pid,
            "store": {"used_bytes": figures["used"], "total_bytes": figures["size"], **figures},
            "memory": self._memory(),
            "collectors": self._collectors(),
            "loop": {
                "longest_callback_ms": self._probe.longest_ms,
                "longest_wait_for_cpu_ms": self._probe.longest_wait_ms,
            },
            **self._records(),
            **self._router.figures(),
            **self._cluster(),
        }

    def waiting(self) -> int:
        """Leases, actors and groups that wait here."""
        leases = self._leases
        return sum(d.count for d in leases.demands.values()) + len(leases.actors) + len(leases.groups)

    async def _ask_status(self, client: Client | None, args: dict[str, Any]) -> Any:
        return self.status()

    async def _ask_stop(self, client: Client | None, args: dict[str, Any]) -> Any:
        self._request_stop()
        return True
