"""Metrics of tasks by name, as a collector: the exact counts of the telemetry pages, which it reads (``pages.py``).

How many wait is a matter of the whole cluster, as a task may have been submitted on one node and run on another: it is
what all nodes have submitted, less what has ended and what runs.
"""

from __future__ import annotations

from collections.abc import Callable

from noded import telemetry
from noded.metrics.family import Family, counter, gauge
from noded.node.pages import Key
from noded.node.task_table import TYPES
from noded.telemetry import OTHER, Counts

NAMES = 100
"""So many get series of their own; it is those that came first, so that no count goes to another name later."""


class TaskFigures:
    """``counts()`` blocks."""

    def __init__(self, counts: Callable[[], dict[Key, Counts]]):
        self._counts = counts
        self._names: dict[Key, None] = {}

    def collect(self) -> list[Family]:
        found: dict[Key, Counts] = {}
        for key, each in sorted(self._counts().items(), key=lambda pair: -pair[1].submitted - pair[1].finished):
            kept = self._named(key)
            found[kept] = found.get(kept, Counts()) + each
        submitted = counter("noded_tasks_submitted_total", "Tasks and calls that programs on this node have submitted")
        finished = counter("noded_tasks_finished_total", "Of those submitted here, those that ended with a value")
        failed = counter(
            "noded_tasks_failed_total", "Of those submitted here, those that ended with an error, for good"
        )
        runs = counter("noded_task_runs_total", "Runs by workers of this node that have ended; a task may have several")
        running = gauge("noded_tasks_running", "Tasks and calls that workers of this node run now")
        for (kind, name), each in sorted(found.items()):
            labels = {"name": name, "type": TYPES.get(kind, kind)}
            if kind == telemetry.CREATION:  # has no submitter
                finished.samples.append((labels, each.finished))
                failed.samples.append((labels, each.raised))
            else:
                submitted.samples.append((labels, each.submitted))
                finished.samples.append((labels, each.done))
                failed.samples.append((labels, each.failed))
            running.samples.append((labels, each.running))
        for kind in {kind: None for kind, _ in found}:
            of_kind = [each for key, each in found.items() if key[0] == kind]
            labels = {"type": TYPES.get(kind, kind)}
            runs.samples.append(({**labels, "outcome": "returned"}, sum(each.finished for each in of_kind)))
            runs.samples.append(({**labels, "outcome": "raised"}, sum(each.raised for each in of_kind)))
        return [submitted, finished, failed, runs, running]

    def _named(self, key: Key) -> Key:
        if key not in self._names:
            if len(self._names) >= NAMES:
                return key[0], OTHER
            self._names[key] = None
        return key
