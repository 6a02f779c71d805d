"""What workers run now, or ran, by their telemetry pages: for who asks why, and for stacks.

It reads files, so it is not for the event loop.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from noded import telemetry
from noded.node.pages import Pages, worker_of
from noded.policy import last_run
from noded.telemetry import Record

_OUTCOMES = {
    telemetry.RETURNED: last_run.RETURNED,
    telemetry.RAISED_ERROR: last_run.RAISED,
    telemetry.CANCELLED: last_run.CANCELLED,
    telemetry.DIED: last_run.DIED,
}


def running_in(path: str) -> list[dict[str, Any]]:
    """For each call ``task`` (its id in hex), ``name``, and ``since`` when (seconds since the epoch); the oldest first.
    Of a worker that has died those that it ran then. Empty where there is no page: then it has run nothing, or
    telemetry is off.
    """
    reading = telemetry.read(path)
    if reading is None:
        return []
    return [_told(record) for record in reading.records if not record.end or record.outcome == telemetry.DIED]


class Runs:
    """Of one node."""

    def __init__(self, pages: Pages):
        self._pages = pages

    def of(self, worker: str) -> list[dict[str, Any]]:
        """What it runs now, as ``running_in``."""
        path = os.path.join(self._pages.directory, telemetry.worker_page(worker))
        return [_told(record) for record in telemetry.running(path)]

    def of_each(self, workers: Sequence[str], task: str, seconds: float) -> dict[str, list[dict[str, Any]]]:
        """Likewise of these, up to the one that runs this task, and as far as the time allows."""
        found: dict[str, list[dict[str, Any]]] = {}
        until = time.monotonic() + seconds
        for worker in workers:
            runs = found[worker] = self.of(worker)
            if any(one["task"] == task for one in runs) or time.monotonic() > until:
                break
        return found

    def last(self, id_: bytes) -> dict[str, Any]:
        """The last run of this task here, for ``policy/last_run.py``; empty when none is known."""
        found = [(record, snapshot) for snapshot in self._pages.runs_of(id_) for record in snapshot.reading.records]
        if not found:
            return {}
        record, snapshot = max(found, key=lambda each: each[0].start)
        outcome = _OUTCOMES.get(record.outcome, last_run.DIED)
        if not record.end:
            outcome = last_run.RUNNING if snapshot.alive else last_run.DIED
        told = {"name": record.name, "start": record.start, "outcome": outcome, "error": record.error}
        return {**told, "worker": worker_of(snapshot.name), "pid": snapshot.reading.pid}


def _told(record: Record) -> dict[str, Any]:
    return {"task": record.id.hex(), "name": record.name, "since": record.start}
