"""The job table: one job per driver, with what its workers need to know of it.

Written before the driver is welcomed, so that a restarted head can give a job's workers their configuration while the
driver itself is stopped or slow.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec

from noded.head.storage import Delete, Op, Put, Storage
from noded.wire import messages as m

log = logging.getLogger("noded.jobs")

TABLE = "jobs"


class JobTable:
    def __init__(self, storage: Storage):
        self._storage = storage
        self._next = 0
        self._jobs: dict[str, m.JobConfig] = {}
        self.started = 0
        self.finished = 0
        self._writes: set[asyncio.Task[None]] = set()

    def get(self, job: str) -> m.JobConfig | None:
        return self._jobs.get(job)

    def configs(self) -> dict[str, m.JobConfig]:
        return dict(self._jobs)

    def known(self) -> set[str]:
        return set(self._jobs)

    async def admit(self, job: str, config: m.JobConfig) -> str:
        """Register a driver's job; a new id unless it has one. Returns when the record is durable."""
        if not job:
            self._next += 1
            self.started += 1
            job = f"{self._storage.epoch & 0xFFFF:04x}{self._next & 0xFFFF:04x}"
        if self._jobs.get(job) != config:
            self._jobs[job] = config
            await self._storage.write([Put(TABLE, job, msgspec.msgpack.encode(config))])
        return job

    def over(self, job: str) -> None:
        """The driver has left or died."""
        if self._jobs.pop(job, None) is not None:
            self.finished += 1
            self._write(Delete(TABLE, job))

    def _write(self, op: Op) -> None:
        task = asyncio.get_running_loop().create_task(self._storage.write([op]), name="job over")
        self._writes.add(task)
        task.add_done_callback(self._written)

    def _written(self, task: asyncio.Task[None]) -> None:
        self._writes.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # A record too many does no harm: its driver does not come back.
            log.error("the end of a job could not be written", exc_info=task.exception())

    async def restore(self) -> None:
        for job, value in (await self._storage.load(TABLE)).items():
            self._jobs.setdefault(job, msgspec.msgpack.decode(value, type=m.JobConfig))

    async def stop(self) -> None:
        """Let writes finish."""
        if self._writes:
            await asyncio.wait(list(self._writes), timeout=5)
