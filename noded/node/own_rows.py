"""What this node alone knows of what the head has: shown while the head is away, and of runtime environments always."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from noded.node.actor_host import NodeActorHost
from noded.node.capacity import Capacity
from noded.node.cluster_view import ClusterView
from noded.node.worker_rows import WorkerRows
from noded.node.workers import WorkerPool
from noded.resources import UNIT
from noded.runtime_env.prepared import parse
from noded.wire import messages as m

Row = dict[str, Any]


class OwnRows:
    """``job_configs``: of jobs that have something here."""

    def __init__(
        self,
        host: NodeActorHost,
        view: ClusterView,
        capacity: Capacity,
        pool: WorkerPool,
        workers: WorkerRows,
        job_configs: dict[str, m.JobConfig],
        *,
        node_id: str,
        head: bool,
    ):
        self._host = host
        self._view = view
        self._capacity = capacity
        self._pool = pool
        self._workers = workers
        self._job_configs = job_configs
        self._node_id = node_id
        self._head = head

    def actors(self) -> Iterator[Row]:
        for hosted in list(self._host.hosted.values()):
            spec, worker = hosted.spec, hosted.lease.worker
            yield {
                "actor_id": hosted.id.hex(),
                "class_name": spec.class_name if spec is not None else "",
                "state": "ALIVE" if hosted.alive else "PENDING_CREATION",
                "job_id": hosted.lease.job,
                "name": spec.name if spec is not None else "",
                "node_id": self._node_id,
                "pid": worker.record.pid if worker is not None else None,
                "ray_namespace": spec.namespace if spec is not None else "",
                "is_detached": spec.detached if spec is not None else None,
                "worker_id": worker.id if worker is not None else None,
            }

    def nodes(self) -> Iterator[Row]:
        for entry in list(self._view.entries.values()):
            yield {
                "node_id": entry.id,
                "node_ip": entry.ip,
                "is_head_node": self._head and entry.number == self._view.number,
                "state": entry.state,
                "state_message": entry.reason or None,
                "node_name": entry.name,
                "resources_total": {name: amount / UNIT for name, amount in entry.total.items()},
                "labels": dict(entry.labels),
                "address": entry.address,
            }

    def placement_groups(self) -> Iterator[Row]:
        for id_, group in list(self._capacity.groups.items()):
            bundles = [
                {
                    "bundle_id": {"placement_group_id": id_.hex(), "bundle_index": index},
                    "unit_resources": {name: amount / UNIT for name, amount in amounts.items()},
                    "node_id": self._node_id,
                    "label_selector": {},
                }
                for index, amounts in sorted(group.bundles.items())
            ]
            yield {
                "placement_group_id": id_.hex(),
                "name": "",
                "creator_job_id": "",
                "state": "CREATED",
                "bundles": bundles,
            }

    def jobs(self) -> Iterator[Row]:
        for driver in self._workers.drivers():
            config = self._job_configs.get(driver["job_id"], m.JobConfig())
            yield {
                "job_id": driver["job_id"],
                "submission_id": None,
                "type": "DRIVER",
                "status": "RUNNING",
                "entrypoint": config.entrypoint,
                "driver_info": {
                    "id": driver["job_id"],
                    "node_ip_address": driver["ip"],
                    "pid": str(driver["pid"]),
                },
                "driver_node_id": self._node_id,
                "ray_namespace": config.namespace,
            }

    def runtime_envs(self) -> Iterator[Row]:
        uses = Counter(worker.record.env for worker in self._pool.workers.values())
        for id_, made in list(self._pool.envs.items()):
            yield {
                "runtime_env": parse(made.text),
                "success": not made.failed,
                "creation_time_ms": round(made.seconds * 1000, 3),
                "node_id": self._node_id,
                "ref_cnt": uses[id_],
                "error": made.failed or None,
                "_key": f"{self._node_id}.{id_}",
            }
