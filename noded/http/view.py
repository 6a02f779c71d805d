"""What the HTTP side may know of the node and ask of it. Implemented by the daemon.

All methods run on the loop and return at once, but for `metrics`. What they return is sent as JSON. `status` has these
keys, which `noded status` shows; one that does not apply is left out:

    cluster, node, node_id, version, address (texts), pid, epoch, uptime_s (numbers)
    state ("READY", "RECOVERING"), resources {"total": {name: amount}, "used": {name: amount}}
    nodes, workers, actors, objects (counts), store {"used_bytes", "total_bytes"}
    storage {"kind", "state"}
    collectors [{"name", "state", "since", "problem", …}], see node/collectors.py
"""

from __future__ import annotations

from typing import Any, Protocol

from noded.metrics.family import Family


class NodeView(Protocol):
    def status(self) -> dict[str, Any]:
        """The node at a glance."""

    def nodes(self) -> list[dict[str, Any]]:
        """One entry per node of the cluster."""

    async def metrics(self) -> list[Family]:
        """For `/metrics`: waits for what blocks, for a second at most."""

    def targets(self) -> list[dict[str, Any]]:
        """For `/sd`: where Prometheus finds the nodes that are there, as its HTTP service discovery wants it."""

    def request_stop(self) -> None:
        """Begin the full stop; the answer to the request is still sent."""
