"""What the daemon counts of its own work: counters and histograms that go on where the daemon before it has stopped.

They lie in a metrics page in the node's directory (``noded/metrics/page.py``), so a daemon that is killed loses none.
What a component counts for itself is taken over when somebody looks (``follow``): what a killed daemon had counted
since then is missing, but nobody has seen it.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Mapping

from noded.metrics.family import Family, Histogram
from noded.metrics.page import MetricsPage, Series

log = logging.getLogger("noded.metrics")

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
DEATHS = "noded_worker_deaths_total"
REFUSED = "noded_scheduler_refused_total"
GRANT = "noded_scheduler_grant_seconds"
STORAGE_WRITE = "noded_storage_write_seconds"
LOOP_LAG = "noded_loop_lag_seconds"
CPU_WAIT = "noded_loop_cpu_wait_seconds"
_HISTOGRAMS = {
    GRANT: "Time from a demand for a worker, or the last grant to it, to the grant; kind: task or actor",
    STORAGE_WRITE: "Time until a write of the head's state was durable",
    LOOP_LAG: "How late the daemon's event loop served a timer, without the time for which it had no CPU",
    CPU_WAIT: "How long the daemon's event loop was ready and had no CPU, per quarter of a second",
}
_COUNTERS = {
    "noded_store_spilled_bytes_total": "Bytes of objects that were written to disk to make room",
    "noded_store_spilled_objects_total": "Objects that were written to disk to make room",
    "noded_store_restored_bytes_total": "Bytes of objects that were read back from disk",
    "noded_store_restored_objects_total": "Objects that were read back from disk",
    "noded_store_evicted_bytes_total": "Bytes of copies of other nodes' objects that were given up to make room",
    "noded_store_evicted_objects_total": "Copies of other nodes' objects that were given up to make room",
    "noded_store_received_bytes_total": "Bytes of objects that were brought here from other nodes",
    "noded_store_received_objects_total": "Objects that were brought here from other nodes",
    "noded_store_sent_bytes_total": "Bytes of objects that were sent to other nodes and to drivers without a node",
    REFUSED: "Demands for workers that were refused, by kind",
    "noded_workers_started_total": "Worker processes that were started",
    DEATHS: "Worker processes that have ended, by kind (docs/why.md)",
    "noded_memory_kills_total": "Workers that were ended because the node had too little memory",
    "noded_jobs_started_total": "Drivers that were admitted",
    "noded_jobs_finished_total": "Drivers whose job has ended",
}


class Counts:
    """In memory until ``open``; all methods are for the loop's thread."""

    def __init__(self) -> None:
        self._page = MetricsPage()
        self._places: dict[tuple[str, str], int] = {}
        self._followed: dict[tuple[str, str], float] = {}

    def open(self, path: str) -> None:
        """Go on with what is there. A page that cannot be used costs only that."""
        try:
            self._page.open(path)
        except OSError as error:
            log.error("counters begin anew with each daemon: %s", error)
        self._places.clear()

    def add(self, name: str, amount: float, label: str = "") -> None:
        """``label``: as "kind=task"."""
        at = self._places.get((name, label))
        if at is None:
            at = self._place(name, label)
        if at >= 0:
            self._page.values[at] += amount

    def observe(self, name: str, seconds: float, label: str = "") -> None:
        at = self._places.get((name, label))
        if at is None:
            at = self._place(name, label)
        if at >= 0:
            self._page.values[at + bisect.bisect_left(_SECONDS, seconds)] += 1
            self._page.values[at + len(_SECONDS) + 1] += seconds

    def follow(self, name: str, value: float, label: str = "") -> None:
        """``value``: what a component of this daemon has counted so far."""
        before = self._followed.get((name, label), 0.0)
        self._followed[name, label] = value
        self.add(name, max(0.0, value - before), label)

    def families(self) -> list[Family]:
        found: dict[str, Family] = {}
        for series, values in self._page.series():
            if series != self._series(series.name, series.kind, series.tags):
                continue  # of another version
            family = found.setdefault(series.name, Family(series.name, series.kind, series.description))  # type: ignore[arg-type]
            value = values[0] if series.kind == "counter" else Histogram(_SECONDS, values[:-1], values[-1])
            family.samples.append((dict(series.tags), value))
        return list(found.values())

    def _place(self, name: str, label: str) -> int:
        key, _, value = label.partition("=")
        kind = "histogram" if name in _HISTOGRAMS else "counter"
        series = self._series(name, kind, ((key, value),) if label else ())
        found = self._places[name, label] = self._page.place(series)
        return found

    @staticmethod
    def _series(name: str, kind: str, tags: tuple[tuple[str, str], ...]) -> Series:
        texts: Mapping[str, str] = _HISTOGRAMS if kind == "histogram" else _COUNTERS
        return Series(kind, name, texts.get(name, ""), tags, _SECONDS if kind == "histogram" else ())
