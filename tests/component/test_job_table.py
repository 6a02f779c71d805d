"""Jobs over lives of the head: how they ended is known to the next one, as long as something of them lives."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from component.fake_nodes import OWN, FakeNode, World
from component.kill_points import make_head

from noded.head.head import Head
from noded.head.jobs import TABLE, JobRecord, JobTable
from noded.head.storage import Put
from noded.head.storage.memory import MemoryData, MemoryStorage
from noded.wire import messages as m

CONFIG = m.JobConfig(["a"], "/", entrypoint="x.py")


async def table(data: MemoryData) -> tuple[JobTable, list[str]]:
    storage = MemoryStorage(data=data)
    await storage.open()
    jobs, events = JobTable(storage), list[str]()
    jobs.on_change = lambda job, record: events.append(record.status)
    await jobs.restore()
    return jobs, events


@pytest.mark.parametrize(("message", "status"), [("", "SUCCEEDED"), ("its process has ended", "FAILED")])
def test_how_a_job_ended_is_known_to_the_next_head(message: str, status: str) -> None:
    async def test() -> None:
        data = MemoryData()
        jobs, events = await table(data)
        job = await jobs.admit("", CONFIG)
        jobs.ended(job, message)
        jobs.lives_on(job)
        await jobs.stop()
        ((_, before),) = jobs.records()
        assert events == ["RUNNING", status] and before.started and before.ended
        jobs, events = await table(data)
        jobs.ended(job, "its driver ended while the head was away")
        assert list(jobs.records()) == [(job, SameRecord(before))] and not events
        jobs.over(job)
        await jobs.stop()
        assert [found.status for _, found in jobs.records()] == [status]
        jobs, _ = await table(data)
        assert not list(jobs.records())

    asyncio.run(test())


class SameRecord:
    def __init__(self, record: JobRecord) -> None:
        self._fields = msgspec.structs.asdict(record)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JobRecord) and msgspec.structs.asdict(other) == self._fields


def test_records_of_version_1_are_read() -> None:
    async def test() -> None:
        data = MemoryData()
        storage = MemoryStorage(data=data)
        await storage.open()
        await storage.write([Put(TABLE, "00010001", msgspec.msgpack.encode(CONFIG))])
        jobs, _ = await table(data)
        assert jobs.get("00010001") == CONFIG
        ((_, record),) = jobs.records()
        assert (record.status, record.started, record.ended) == ("RUNNING", 0.0, 0.0)

    asyncio.run(test())


def test_a_driver_that_left_while_the_head_was_away_has_not_failed() -> None:
    """Its node tells when it is back: to a head that has stayed, or to the next one."""

    async def test() -> None:
        data = MemoryData()
        head = await life(data)
        left, ended, later, lost = [await head.admit_job("", CONFIG, 2) for _ in range(4)]
        head.jobs_of(2, [later, lost], [left])
        assert statuses(head) == {left: "SUCCEEDED", ended: "FAILED", later: "RUNNING", lost: "RUNNING"}
        await head.jobs.stop()
        head = await life(data)
        head.jobs_of(2, [], [left, later])
        head.sweep(settled=True)
        assert statuses(head) == {later: "SUCCEEDED", lost: "FAILED"}
        await head.jobs.stop()

    asyncio.run(test())


async def life(data: MemoryData) -> Head:
    storage = MemoryStorage(data=data)
    await storage.open()
    head = make_head(storage)
    await head.restore(OWN, "the cluster")
    head.own = head.nodes.register_own(FakeNode(World(), OWN, {})._register(), None)
    return head


def statuses(head: Head) -> dict[str, str]:
    return {job: record.status for job, record in head.jobs.records()}
