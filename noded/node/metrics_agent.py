"""The node's metrics: what a scrape of ``/metrics`` gets, as plain data (``noded/metrics/family.py``).

A scrape reads the daemon's components on the loop, and what blocks through collectors, each with its deadline: where
one is late or fails its last values are shown, with their age, for a while. Rendering is the HTTP side's.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable

from noded.metrics.family import Family
from noded.metrics.page import DIRECTORY, page_path
from noded.node.collectors import Collectors
from noded.node.counts import CPU_WAIT, LOOP_LAG, Counts
from noded.node.session import Client
from noded.node.user_metrics import UserMetrics

PATIENCE = 1.0
"""A scrape waits so many seconds for collectors at most."""
_SHOWN = 300.0
"""Values that are older, in seconds, are not shown any more."""
_USER = "user-metrics"

Collect = Callable[[], list[Family]]


class MetricsAgent:
    """Needs ``sources`` set before a scrape: what reads components on the loop."""

    def __init__(self, collectors: Collectors, counts: Counts, run_dir: str, clients: dict[bytes, Client]):
        self._collectors = collectors
        self._counts = counts
        self._run_dir = run_dir
        self._clients = clients
        self._names: dict[str, float] = {}
        self.sources: list[Collect] = []

    def start(self) -> None:
        os.makedirs(os.path.join(self._run_dir, DIRECTORY), mode=0o700, exist_ok=True)
        self._counts.open(os.path.join(self._run_dir, "counts.page"))
        self.add(_USER, UserMetrics(self._run_dir, self._pages).collect, deadline=5.0)

    def add(self, name: str, collect: Collect, *, deadline: float, max_age: float = 0.0) -> None:
        """``collect`` blocks, in a collector of its own. Values that are younger than ``max_age`` do for a scrape."""
        self._collectors.add(name, collect, deadline=deadline)
        self._names[name] = max_age

    async def scrape(self) -> list[Family]:
        asked = [asyncio.ensure_future(self._collectors.ask(name, age)) for name, age in self._names.items()]
        try:
            await asyncio.wait(asked, timeout=PATIENCE)
        finally:
            for task in asked:
                task.cancel()
        found = [family for source in self.sources for family in source()]
        for name in self._names:
            reading = self._collectors.last(name)
            if reading.age <= _SHOWN:
                found += reading.value
        return [family for family in found if family.samples]

    def client_ended(self, prefix: bytes) -> None:
        """What it has counted is kept."""
        if os.path.exists(page_path(self._run_dir, prefix)):
            self._collectors.wake(_USER)

    def on_loop(self, late: float, waited: float) -> None:
        """From the loop's probe; in seconds."""
        self._counts.observe(LOOP_LAG, late)
        self._counts.observe(CPU_WAIT, waited)

    def _pages(self) -> dict[str, str]:
        """Of processes that may be alive; in the collector's thread, so of a copy."""
        named: Iterable[tuple[bytes, Client]] = self._clients.copy().items()
        return {
            os.path.basename(page_path("", prefix)): client.worker or f"driver-{prefix.hex()}"
            for prefix, client in named
            if not client.detached
        }
