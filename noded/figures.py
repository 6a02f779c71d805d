"""What a node says of its cluster and of what goes wrong, for its status page, its node list and its problem events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from noded.head.storage import Health
from noded.node.cluster_view import ClusterView
from noded.node.records import Problem
from noded.parts import Parts
from noded.resources import UNIT


def nodes(view: ClusterView) -> list[dict[str, Any]]:
    return [
        {
            "NodeID": entry.id,
            "Alive": entry.state != "DEAD",
            "NodeManagerAddress": entry.ip,
            "NodeManagerPort": int(entry.address.rpartition(":")[2] or 0),
            "NodeName": entry.name,
            "Resources": {name: amount / UNIT for name, amount in entry.total.items()},
            "Labels": dict(entry.labels),
            "State": entry.state,
        }
        for entry in view.entries.values()
    ]


def cluster(parts: Parts) -> dict[str, Any]:
    count = sum(1 for entry in parts.cluster_view.entries.values() if entry.state != "DEAD")
    found: dict[str, Any] = {"nodes": count}
    if parts.head is not None:
        found["actors"] = sum(1 for r in parts.head.actors.records.values() if r.state != "dead")
        found["demands"] = (
            parts.view.waiting() + len(parts.head.actor_places.pending) + len(parts.head.group_places.waiting)
        )
        found["storage"] = _storage(parts.head.storage.health)
    elif parts.link is not None:
        found["actors"] = len(parts.host.hosted)
        found["head_link"] = {
            "address": parts.head_address,
            "connected": parts.link.registered,
            "problem": parts.link.problem,
            "frozen": parts.link.frozen,
        }
    return found


def _storage(health: Health) -> dict[str, Any]:
    """`state`: ok or degraded; `journalled`: writes that are durable on this host alone, `waiting`: nowhere yet."""
    found: dict[str, Any] = {"kind": health.kind, "state": "ok"}
    if health.degraded_since is not None:
        found |= {"state": "degraded", "since": health.degraded_since, "why": health.why}
        found |= {"journalled": health.journalled, "waiting": health.waiting}
    return found


def problems(parts: Parts) -> Iterator[Problem]:
    """What may go wrong for a while, and how it is now."""
    for directory in parts.spilling.files.directories:
        yield "SPILLING", f"spilling to {directory.path}", directory.failed
    for each in parts.collectors.figures():
        yield "COLLECTOR", f"the collector {each['name']}", "" if each["state"] == "OK" else each["problem"]
    if parts.head is not None:
        health = parts.head.storage.health
        yield "HEAD", f"the head's storage ({health.kind})", health.why if health.degraded_since is not None else ""
    elif parts.link is not None:
        yield "NODE", "the connection with the head", "" if parts.link.registered else parts.link.problem or "away"
