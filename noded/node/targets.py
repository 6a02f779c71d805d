"""Where Prometheus finds the cluster's nodes: for ``/sd``, and in a file that is written anew when they change.

All nodes are named that are not dead: of one that is away Prometheus is to say that it cannot be reached.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import orjson

from noded.node.cluster_view import ClusterView
from noded.node.collectors import Collectors

_NAME = "sd-file"
_DEADLINE = 10.0
_QUIET = 1.0


class Targets:
    """``path``: of the file, None for none; it is written in a thread, as a collector. ``tls``: nodes answer to https
    only. ``quiet``: so many seconds after the first of several reports it is looked whether the file is still right.
    """

    def __init__(
        self,
        view: ClusterView,
        collectors: Collectors,
        *,
        cluster: str,
        tls: bool,
        path: Path | None,
        quiet: float = _QUIET,
    ):
        self._view = view
        self._collectors = collectors
        self._cluster = cluster
        self._tls = tls
        self._path = path
        self._quiet = quiet
        self._written: list[dict[str, Any]] | None = None
        self._timer: asyncio.TimerHandle | None = None
        if path is not None:
            collectors.add(_NAME, self._write, deadline=_DEADLINE)
            self.on_change()

    def targets(self) -> list[dict[str, Any]]:
        """As Prometheus's HTTP service discovery and its files want them."""
        scheme = {"__scheme__": "https"} if self._tls else {}
        return [
            {
                "targets": [entry.address],
                "labels": {"cluster": self._cluster, "node": entry.name, "node_id": entry.id, **scheme},
            }
            for entry in self._view.entries.values()
            if entry.state != "DEAD" and entry.address
        ]

    def on_change(self) -> None:
        """Something about nodes has changed."""
        if self._path is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._quiet, self._look)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        targets = self.targets()
        if targets != self._written:
            self._written = targets
            self._collectors.wake(_NAME)

    def _write(self) -> None:
        assert self._path is not None
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            draft.write_bytes(orjson.dumps(self._written, option=orjson.OPT_INDENT_2))
            draft.chmod(0o644)  # Prometheus runs as another user
            draft.replace(self._path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
