"""What waits on this node, for what, and how much: for ``noded status``. One row for all that ask for the same and
wait for the same reason.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from noded.node.leases import Leases
from noded.resources import UNIT

_LOOKED_AT = 100
"""Of each kind of what waits: a status must not become slow when very much does."""
_SHOWN = 20


class DemandFigures:
    """``at_head()``: (name, asks, kind, reason) of the actors and groups that wait at the head, on its node."""

    def __init__(
        self,
        leases: Leases,
        at_head: Callable[[], Iterator[tuple[str, Mapping[str, int], str, str]]] = lambda: iter(()),
    ):
        self._leases = leases
        self._at_head = at_head

    def figures(self) -> list[dict[str, Any]]:
        """Most of it first: ``waits_s`` is of the one that has waited longest, as far as that is known."""
        found: dict[tuple[str, ...], dict[str, Any]] = {}
        for name, asks, count, kind, reason, waits in self._all():
            amounts = {key: amount / UNIT for key, amount in sorted(asks.items())}
            key = (name, str(amounts), kind)
            row = found.setdefault(
                key, {"name": name, "asks": amounts, "count": 0, "kind": kind, "reason": reason, "waits_s": 0.0}
            )
            row["count"] += count
            row["waits_s"] = max(row["waits_s"], round(waits, 3))
        return heapq.nlargest(_SHOWN, found.values(), key=lambda row: row["count"])

    def _all(self) -> Iterator[tuple[str, Mapping[str, int], int, str, str, float]]:
        leases, now = self._leases, time.monotonic()
        for (prefix, cls), demand in list(islice(leases.demands.items(), _LOOKED_AT)):
            if demand.count:
                told = leases.explain(prefix, cls)
                name = demand.definition.name or "tasks"
                kind = told.get("kind") or "starting"
                yield name, demand.resources, demand.count, kind, told.get("reason", ""), now - demand.since
        for actor in list(islice(leases.actors, _LOOKED_AT)):
            reason = "it waits for resources or a worker on this node"
            yield f"actor {actor.class_name}", actor.placement, 1, "starting", reason, 0.0
        for name, asks, kind, reason in islice(self._at_head(), _LOOKED_AT):
            yield name, asks, 1, kind or "pending", reason, 0.0
