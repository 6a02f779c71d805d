"""What lists show of the head's records, with Ray's names (``policy/state_records.py``), and the events of their
changes.
"""

from __future__ import annotations

from typing import Any

import msgspec

from noded.head.actors import ActorRecord
from noded.head.group_records import GroupRecord, describe
from noded.head.jobs import JobRecord
from noded.head.nodes import NodeRecord, NodeTable
from noded.resources import UNIT

_ACTOR_STATES = {
    "pending": "PENDING_CREATION",
    "starting": "PENDING_CREATION",
    "alive": "ALIVE",
    "restarting": "RESTARTING",
    "restoring": "RESTARTING",
    "dead": "DEAD",
}
Row = dict[str, Any]


def milliseconds(seconds: float) -> int | None:
    return int(seconds * 1000) if seconds else None


def actor_row(record: ActorRecord, nodes: NodeTable) -> Row:
    spec = record.spec
    node = nodes.records.get(record.node)
    dead = record.state == "dead"
    return {
        "actor_id": spec.id.hex(),
        "class_name": spec.class_name,
        "state": _ACTOR_STATES[record.state],
        "job_id": spec.job,
        "name": spec.name,
        "node_id": node.id if node is not None else None,
        "pid": record.pid or None,
        "ray_namespace": spec.namespace,
        "serialized_runtime_env": spec.env or "{}",
        "required_resources": {name: amount / UNIT for name, amount in spec.resources.items()},
        "death_cause": _death_cause(record) if dead else None,
        "is_detached": spec.detached,
        "placement_group_id": spec.where.group.hex() or None,
        "repr_name": "",
        "num_restarts": record.restarts,
        "num_restarts_due_to_lineage_reconstruction": 0,
        "num_restarts_due_to_node_preemption": 0,
        "call_site": None,
        "label_selector": {"labels": spec.where.labels} if spec.where.labels else {},
        "fallback_strategy": None,
        "worker_id": record.worker or None,
        "reason": record.reason or (record.death.reason if record.death is not None else None),
        "death_kind": record.kind if dead else record.death.kind if record.death is not None else None,
    }


def _death_cause(record: ActorRecord) -> Row:
    death = record.death
    told: Row = {"error_message": record.reason, "kind": record.kind, "pid": record.pid}
    if death is not None:
        told["death"] = msgspec.structs.asdict(death)
    return {"actor_died_error_context": told}


def node_row(record: NodeRecord) -> Row:
    entry = record.entry()
    return {
        "node_id": record.id,
        "node_ip": record.ip,
        "is_head_node": record.local,
        "state": entry.state,
        "state_message": record.reason or None,
        "node_name": record.name,
        "resources_total": {name: amount / UNIT for name, amount in record.total.items()},
        "labels": dict(record.labels),
        "start_time_ms": milliseconds(record.started),
        "end_time_ms": milliseconds(record.since) if record.state == "DEAD" else None,
        "address": record.address,
        "pid": record.pid or None,
    }


def group_row(record: GroupRecord, nodes: NodeTable) -> Row:
    told, spec = describe(record), record.spec
    placed = record.nodes if record.state == "created" else []
    there = [nodes.records.get(number) for number in placed] or [None] * len(spec.bundles)
    return {
        "placement_group_id": told["placement_group_id"],
        "name": spec.name,
        "creator_job_id": spec.job,
        "state": told["state"],
        "bundles": [
            {
                "bundle_id": {"placement_group_id": told["placement_group_id"], "bundle_index": index},
                "unit_resources": told["bundles"][index],
                "node_id": node.id if node is not None else None,
                "label_selector": {"labels": spec.labels[index]} if spec.labels and spec.labels[index] else {},
            }
            for index, node in enumerate(there)
        ],
        "is_detached": spec.detached,
        "stats": told["stats"],
        "topology_strategy": {},
        "topology_assignments": {},
        "strategy": spec.strategy,
        "reason": record.reason or None,
    }


def job_row(job: str, record: JobRecord, nodes: NodeTable, driver: Row | None) -> Row:
    """``driver``: what its node says of it, if that has answered."""
    node = nodes.records.get(record.config.node)
    return {
        "job_id": job,
        "submission_id": None,
        "type": "DRIVER",
        "status": record.status,
        "entrypoint": record.config.entrypoint,
        "message": record.message or None,
        "error_type": None,
        "driver_info": {
            "id": job,
            "node_ip_address": node.ip if node is not None else None,
            "pid": str(driver["pid"]) if driver is not None else None,
        },
        "start_time": milliseconds(record.started),
        "end_time": milliseconds(record.ended),
        "metadata": {},
        "runtime_env": {"env_vars": record.config.env} if record.config.env else {},
        "driver_agent_http_address": None,
        "driver_node_id": node.id if node is not None else None,
        "driver_exit_code": None,
        "ray_namespace": record.config.namespace,
    }
