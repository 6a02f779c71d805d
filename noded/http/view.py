"""What the HTTP side may know of the node and ask of it. Implemented by the daemon.

All methods run on the loop and return at once. What they return is sent as JSON. `status` has these keys,
which `noded status` shows; one that does not apply is left out:

    cluster, node, node_id, version, address (texts), pid, epoch, uptime_s (numbers)
    state ("READY", "RECOVERING"), resources {"total": {name: amount}, "used": {name: amount}}
    nodes, workers, actors, objects (counts), store {"used_bytes", "total_bytes"}
    storage {"kind", "state"}
"""

from __future__ import annotations

from typing import Any, Protocol


class NodeView(Protocol):
    def status(self) -> dict[str, Any]:
        """The node at a glance."""

    def nodes(self) -> list[dict[str, Any]]:
        """One entry per node of the cluster."""

    def request_stop(self) -> None:
        """Begin the full stop; the answer to the request is still sent."""
