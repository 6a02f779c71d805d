"""The last runs of this node's workers as a Chrome trace, from their telemetry pages."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from noded import telemetry
from noded.node.pages import Snapshot, worker_of


def events(snapshots: Iterable[Snapshot], node_ip: str) -> list[dict[str, Any]]:
    """In the trace event format; times in microseconds. What runs is shown up to now."""
    now = time.time()
    return [
        {
            "cat": "task",
            "name": record.name,
            "ph": "X",
            "ts": record.start * 1e6,
            "dur": ((record.end or now) - record.start) * 1e6,
            "pid": node_ip,
            "tid": f"worker:{worker_of(snapshot.name)}" + (f":{record.thread}" if record.thread else ""),
            "args": {
                "task_id": record.id.hex(),
                "name": record.name,
                "failed": record.outcome != telemetry.RETURNED,
                "error": record.error,
            },
        }
        for snapshot in snapshots
        for record in snapshot.reading.records
    ]
