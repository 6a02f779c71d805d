"""The job table: one job per driver, with what its workers need to know of it.

Written before the driver is welcomed, so that a restarted head can give a job's workers their configuration while the
driver itself is stopped or slow, and again when the driver has ended and detached actors of it live. Those of which
nothing lives are remembered for a while, for people to look at; what a head that restarts has forgotten of them, the
log of events has.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator

import msgspec

from noded.head.storage import Delete, Op, Put, Storage
from noded.wire import messages as m

log = logging.getLogger("noded.jobs")

TABLE = "jobs"
_ENDED_KEPT = 1000


class Stored(msgspec.Struct, array_like=True):
    """A job's durable record, version 2 (1 was the configuration alone). The rest: see `JobRecord`."""

    version: int
    config: m.JobConfig
    status: str
    message: str
    started: float
    ended: float


class JobRecord(msgspec.Struct, eq=False):
    config: m.JobConfig
    status: str = "RUNNING"
    """RUNNING, SUCCEEDED or FAILED: of its driver; a job that has ended may still have detached actors."""
    message: str = ""
    """Why it has failed."""
    started: float = 0.0
    """Seconds since the epoch, when a head first knew of it; 0: a record of version 1. Likewise ``ended``."""
    ended: float = 0.0

    def put(self, job: str) -> Put:
        stored = Stored(2, self.config, self.status, self.message, self.started, self.ended)
        return Put(TABLE, job, msgspec.msgpack.encode(stored))


class JobTable:
    """``on_change(job, record)``: its driver has come, or has ended."""

    def __init__(self, storage: Storage):
        self._storage = storage
        self._next = 0
        self._jobs: dict[str, JobRecord] = {}
        self._ended: dict[str, JobRecord] = {}
        self.started = 0
        self.finished = 0
        self._writes: set[asyncio.Task[None]] = set()
        self.on_change: Callable[[str, JobRecord], None] = lambda job, record: None

    def get(self, job: str) -> m.JobConfig | None:
        record = self._jobs.get(job)
        return record.config if record is not None else None

    def configs(self) -> dict[str, m.JobConfig]:
        return {job: record.config for job, record in self._jobs.items()}

    def known(self) -> set[str]:
        return set(self._jobs)

    def records(self) -> Iterator[tuple[str, JobRecord]]:
        """Also those that have ended, as far as they are remembered."""
        yield from self._jobs.items()
        yield from ((job, record) for job, record in self._ended.items() if job not in self._jobs)

    async def admit(self, job: str, config: m.JobConfig) -> str:
        """Register a driver's job; a new id unless it has one. Returns when the record is durable."""
        if not job:
            self._next += 1
            self.started += 1
            job = f"{self._storage.epoch & 0xFFFF:04x}{self._next & 0xFFFF:04x}"
        known = self._jobs.get(job)
        if known is None:
            record = self._jobs[job] = JobRecord(config, started=time.time())
            self.on_change(job, record)
        elif known.config != config:
            known.config = config
        else:
            return job
        await self._storage.write([self._jobs[job].put(job)])
        return job

    def ended(self, job: str, message: str) -> None:
        """The driver has left in order, or, with a message, has not."""
        record = self._jobs.get(job)
        if record is not None and record.status == "RUNNING":
            record.status, record.message = "FAILED" if message else "SUCCEEDED", message
            record.ended = time.time()
            self._remember(job, record)
            self.on_change(job, record)

    def _remember(self, job: str, record: JobRecord) -> None:
        self._ended[job] = record
        if len(self._ended) > _ENDED_KEPT:
            del self._ended[next(iter(self._ended))]

    def lives_on(self, job: str) -> None:
        """It has ended, and something of it is left: how it has ended is to be known to the next head too."""
        record = self._jobs.get(job)
        if record is not None:
            self._write(record.put(job))

    def over(self, job: str) -> None:
        """Nothing of it is left."""
        if self._jobs.pop(job, None) is not None:
            self.finished += 1
            self._write(Delete(TABLE, job))

    def _write(self, op: Op) -> None:
        task = asyncio.get_running_loop().create_task(self._storage.write([op]), name="end of a job")
        self._writes.add(task)
        task.add_done_callback(self._written)

    def _written(self, task: asyncio.Task[None]) -> None:
        self._writes.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # A record too many, or too old, does no harm: its driver does not come back.
            log.error("the end of a job could not be written", exc_info=task.exception())

    async def restore(self) -> None:
        for job, value in (await self._storage.load(TABLE)).items():
            record = _record(value)
            self._jobs.setdefault(job, record)
            if record.status != "RUNNING":
                self._remember(job, record)

    async def stop(self) -> None:
        """Let writes finish."""
        if self._writes:
            await asyncio.wait(list(self._writes), timeout=5)


def _record(value: bytes) -> JobRecord:
    try:
        stored = msgspec.msgpack.decode(value, type=Stored)
    except msgspec.ValidationError:  # version 1, which begins with no number
        return JobRecord(msgspec.msgpack.decode(value, type=m.JobConfig))
    return JobRecord(stored.config, stored.status, stored.message, stored.started, stored.ended)
