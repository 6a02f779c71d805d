"""A placement group as the head's table keeps it: in memory, in the storage, and as people look at it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from noded.policy.bundles import STRATEGIES
from noded.resources import UNIT
from noded.wire import messages as m


class Stored(msgspec.Struct, array_like=True):
    """A group's durable record, version 2 (1 had no nodes)."""

    version: int
    spec: m.GroupSpec
    created: bool
    nodes: list[int] = []
    """Of each bundle."""


class GroupRecord(msgspec.Struct, eq=False):
    spec: m.GroupSpec
    state: str = "pending"
    reason: str = ""
    """Why no node can hold it, or why it was removed."""
    infeasible: bool = False
    """Told so."""
    stored: str = ""
    """The state that the storage has; empty: nothing."""
    released: asyncio.Event = msgspec.field(default_factory=asyncio.Event)
    """It was removed, and the resources it had are free."""
    watchers: set[bytes] = set()
    written: asyncio.Event = msgspec.field(default_factory=asyncio.Event)
    since: float = msgspec.field(default_factory=time.monotonic)
    waited: float = 0.0
    """Seconds until it was created."""
    nodes: list[int] = []
    lost: bool = False
    """It was created, and a node of it is dead."""

    def at(self) -> m.GroupAt:
        state = "infeasible" if self.infeasible and self.state == "pending" else self.state
        return m.GroupAt(self.spec.id, state, self.reason, self.nodes if self.state == "created" else [])


def malformed(spec: m.GroupSpec) -> str:
    """What noded's own clients never send."""
    whole = all(bundle and min(bundle.values()) > 0 for bundle in spec.bundles)
    if (
        not whole
        or not spec.bundles
        or spec.strategy not in STRATEGIES
        or len(spec.labels) not in (0, len(spec.bundles))
    ):
        return f"this is no placement group: {spec!r:.300}"
    return ""


def describe(record: GroupRecord) -> dict[str, Any]:
    """In Ray's words."""
    spec = record.spec
    waited = record.waited * 1000
    finished = {"created": "FINISHED", "removed": "REMOVED"}
    state = record.state.upper()
    if record.lost and record.state == "pending":
        state = "RESCHEDULING"
    elif record.state == "removed" and not record.released.is_set():
        state = "REMOVING"  # what runs in it may not have ended yet, and more may begin until its nodes have heard
    return {
        "placement_group_id": spec.id.hex(),
        "name": spec.name,
        "bundles": {index: _floats(bundle) for index, bundle in enumerate(spec.bundles)},
        "strategy": spec.strategy,
        "state": state,
        "stats": {
            "end_to_end_creation_latency_ms": waited,
            "scheduling_latency_ms": waited,
            "scheduling_attempt": 1,
            "highest_retry_delay_ms": 0.0,
            "scheduling_state": finished.get(record.state, "INFEASIBLE" if record.reason else "QUEUED"),
        },
    }


def _floats(bundle: Mapping[str, int]) -> dict[str, float]:
    return {name: amount / UNIT for name, amount in bundle.items()}
