"""The last tasks of this node's workers as a Chrome trace, read from their rings (``task_ring.py``) when asked for."""

from __future__ import annotations

import os
from collections import deque
from typing import Any

from noded import task_ring

_ENDED_KEPT = 64
"""Rings of so many ended workers are kept."""
_SUFFIX = ".tasks"


class Timeline:
    """``directory`` holds the rings, beside the workers' output."""

    def __init__(self, directory: str, node_ip: str):
        self._directory = directory
        self._node_ip = node_ip
        self._ended: deque[str] = deque()

    def sweep(self, alive: set[str]) -> None:
        """At the daemon's start: those of workers that ended while nobody looked."""
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:  # who has started us has removed it
            return
        for name in names:
            if name.endswith(_SUFFIX) and self._worker(name) not in alive:
                self._unlink(self._worker(name))

    def ended(self, worker: str) -> None:
        self._ended.append(worker)
        while len(self._ended) > _ENDED_KEPT:
            self._unlink(self._ended.popleft())

    def stop(self) -> None:
        self.sweep(set())

    @staticmethod
    def _worker(name: str) -> str:
        return name.removeprefix("worker-").removesuffix(_SUFFIX)

    def _path(self, worker: str) -> str:
        return os.path.join(self._directory, f"worker-{worker}{_SUFFIX}")

    def _unlink(self, worker: str) -> None:
        try:
            os.unlink(self._path(worker))
        except OSError:
            pass

    def events(self) -> list[dict[str, Any]]:
        """In the trace event format; times in microseconds. Reads files: not for the event loop."""
        found: list[dict[str, Any]] = []
        for name in sorted(os.listdir(self._directory)):
            if not name.endswith(_SUFFIX):
                continue
            worker = self._worker(name)
            for record in task_ring.read(os.path.join(self._directory, name)):
                found.append(
                    {
                        "cat": "task",
                        "name": record.name,
                        "ph": "X",
                        "ts": record.start * 1e6,
                        "dur": (record.end - record.start) * 1e6,
                        "pid": self._node_ip,
                        "tid": f"worker:{worker}" + (f":{record.thread}" if record.thread else ""),
                        "args": {"task_id": record.id.hex(), "name": record.name, "failed": record.failed},
                    }
                )
        return found
