"""What is looked at once a second, and the signs of life for the service manager while it is."""

from __future__ import annotations

import asyncio
import logging

from noded.head.head import Head
from noded.membership import Membership
from noded.parts import Parts
from noded.resources import UNIT
from noded.service import notify_systemd, watchdog_pause
from noded.startup import sweep_spill

log = logging.getLogger("noded.daemon")

_PAUSE = 1.0
_SWEEP_SECONDS = 30.0
_IDLE_WORKER_SECONDS = 2.0
_BACK_BY = 10.0
"""Seconds in which a process that lives has attached again."""


class Housekeeper:
    def __init__(self, parts: Parts, membership: Membership):
        self._parts = parts
        self._membership = membership
        self._started = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        loop = self._parts.loop
        self._started = loop.time()
        keeping = loop.create_task(self._keep_house(), name="housekeeper")
        self._tasks.append(keeping)
        if (pause := watchdog_pause()) is not None:
            self._tasks.append(loop.create_task(self._show_life(pause, keeping), name="watchdog"))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _keep_house(self) -> None:
        swept = -_SWEEP_SECONDS
        loop = self._parts.loop
        while True:
            await asyncio.sleep(_PAUSE)
            try:
                self._tidy()
                await self._parts.store.space.trim()
                if loop.time() - swept > _SWEEP_SECONDS:
                    swept = loop.time()
                    await sweep_spill(self._parts.config)
            except Exception:
                log.exception("a round of housekeeping has failed; the next one is in %g s", _PAUSE)

    async def _show_life(self, pause: float, keeping: asyncio.Task[None]) -> None:
        """For as long as the loop turns and the house is kept."""
        while not keeping.done():
            notify_systemd("WATCHDOG=1")
            await asyncio.sleep(pause)

    def _tidy(self) -> None:
        parts = self._parts
        parts.records.look()
        parts.pool.oom.look()
        parts.pool.trim(max(1, parts.leases.capacity.total.get("CPU", 0) // UNIT), _IDLE_WORKER_SECONDS)
        if parts.head is not None:
            self._membership.refresh_own()
            parts.head.nodes.flush()
            self._membership.guard_own(parts.head)
        parts.router.forget_guests()
        if not parts.store.recovering:
            if parts.head is not None:
                parts.host.end_unclaimed(0.0)
                self._sweep_head(parts.head)
            elif parts.link is not None and parts.link.registered:
                parts.host.end_unclaimed()
            parts.jobs.forget()

    def _sweep_head(self, head: Head) -> None:
        parts = self._parts
        if any(client.kind == "driver" and not client.job for client in parts.clients.values()):
            return  # one is being admitted: its record is there before its client knows
        head.sweep(settled=True)
        # A driver that lives is back by then, also when the node has started over.
        if parts.recovered or parts.loop.time() - self._started > _BACK_BY:
            head.sweep_groups()
