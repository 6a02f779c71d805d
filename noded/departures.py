"""Workers and drivers that have ended: who is told, in which order. What they ran is in their telemetry pages."""

from __future__ import annotations

import os
from typing import Any

from noded.node.running import running_in
from noded.node.session import Client
from noded.node.workers import Worker
from noded.parts import Parts
from noded.telemetry import Record, driver_page, worker_page
from noded.wire import messages as m


class Departures:
    def __init__(self, parts: Parts):
        self._parts = parts

    def worker_exited(self, worker: Worker, death: m.Death) -> None:
        parts = self._parts
        parts.records.workers.ended(worker, death)
        client = parts.clients.get(worker.prefix)
        if client is not None:
            parts.control.client_died(client)
        parts.metrics.on_worker_exit(worker, death)
        parts.book.worker_died(worker, death)
        parts.leases.worker_exited(worker, death)
        parts.host.worker_exited(worker, death)

    def output_ended(self, worker: Worker) -> None:
        self._parts.logs.ended(worker)
        self._parts.pages.ended(worker_page(worker.id))
        self._parts.stacks.worker_ended(worker.id)

    def driver_gone(self, client: Client) -> None:
        parts = self._parts
        parts.metrics.on_driver_gone(client)
        parts.book.driver_ended(client)
        parts.pages.ended(driver_page(client.prefix))
        parts.records.workers.driver_left(client)
        parts.head_side.job_gone(client.job, "" if client.detached else f"its process (pid {client.pid}) has ended")

    async def driver_detaches(self, client: Client) -> None:
        await self._parts.logs.last_words(client.job)

    def running(self, wid: str) -> list[dict[str, Any]]:
        """What this worker runs, or ran when it died; from any thread."""
        return running_in(os.path.join(self._parts.pages.directory, worker_page(wid)))

    def live_pages(self) -> set[str]:
        """From any thread."""
        drivers = [c for c in list(self._parts.clients.values()) if c.kind == "driver" and not c.detached]
        return {*map(worker_page, list(self._parts.pool.workers)), *(driver_page(c.prefix) for c in drivers)}

    def buried(self, page: str, records: list[Record]) -> None:
        """From any thread."""
        self._parts.loop.call_soon_threadsafe(self._parts.records.died_running, page, records)
