"""A program: the head's real tables over a real storage, killed at every one of their writes.

    python -m component.kill_points DIRECTORY [REDIS_URL]

For each write, and each of `PHASES`, a child is forked that is killed there by SIGKILL. Before it dies it leaves, in
DIRECTORY/<write>-<phase>/expected, what the tables held before that write and what they are to hold after it. The
number of writes is printed at the end. What became of them is looked at by test_head_kills.py.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import platform
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from component.fake_nodes import OWN, World, cpus

from noded import ids
from noded.config import redis_url
from noded.head.head import Head
from noded.head.jobs import JobTable
from noded.head.placement_groups import GroupTable
from noded.head.storage import Op, Put, Storage
from noded.head.storage.redis import RedisStorage
from noded.head.storage.redis_link import Access
from noded.head.storage.sqlite import SqliteStorage
from noded.wire import messages as m

TABLES = ("cluster", "nodes", "jobs", "actors", "actor_deaths", "placement_groups")
PHASES = ("before", "during", "after")
Tables = dict[str, dict[str, bytes]]


def storage_at(place: Path, url: str) -> Storage:
    if url:
        return RedisStorage(Access(redis_url.parse(url)), f"kill-{place.name}", place / "journal")
    return SqliteStorage(place / "head.db")


def make_head(storage: Any) -> Head:
    async def read(uri: str) -> bytes:
        raise AssertionError(f"nobody has a package {uri}")

    return Head(
        asyncio.get_running_loop(),
        storage,
        cluster="c",
        head_grace=1,
        python=platform.python_version(),
        may_create=lambda prefix: False,
        local_clients=lambda prefix: False,
        store_package=lambda uri, data: None,
        read_package=read,
        emit=lambda *args, **fields: None,
        on_write=lambda seconds: None,
    )


class Killer:
    """A storage that passes everything on, one write after the other, and kills this process at one of them."""

    def __init__(self, inner: Storage, at: int, phase: str, place: Path) -> None:
        self._inner = inner
        self._at, self._phase, self._place = at, phase, place
        self._one = asyncio.Lock()
        self._tables: Tables = {name: {} for name in TABLES}
        self.writes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def open(self) -> int:
        """Of the tables' lives in this process the first opens it."""
        return self._inner.epoch or await self._inner.open()

    async def write(self, ops: Sequence[Op]) -> None:
        async with self._one:
            before = {name: dict(records) for name, records in self._tables.items()}
            for op in ops:
                if isinstance(op, Put):
                    self._tables[op.table][op.key] = op.value
                else:
                    self._tables[op.table].pop(op.key, None)
            self.writes += 1
            here = self.writes == self._at
            if here:
                (self._place / "expected").write_bytes(pickle.dumps((before, self._tables)))
                if self._phase == "before":
                    self._die()
            writing = asyncio.ensure_future(self._inner.write(ops))
            if here and self._phase == "during":
                await asyncio.wait([writing], timeout=0.0002)
                self._die()
            await writing
            if here:
                self._die()

    def _die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


async def life(storage: Any) -> None:
    """Something of everything that is ever written."""
    await storage.open()
    await make_head(storage).restore(0, "the cluster")
    jobs = JobTable(storage)
    for _ in range(2):
        job = await jobs.admit("", m.JobConfig())
    jobs.over(job)
    await jobs.stop()
    world = World()
    world.node(OWN, cpus(0, memory=1))
    await world.head(storage)
    for number in (2, 3):
        await world.node(number, cpus(4)).connect()
    maker = ids.new_prefix(OWN)
    groups = GroupTable(
        storage, world.groups, lambda prefix, at: None, may_create=lambda prefix: False, outlives=lambda actor: False
    )
    for seq in range(1, 4):
        groups.create(maker, m.GroupSpec(ids.group_id(maker, seq), [cpus(1)] * 2, "SPREAD", job="j", name=f"g{seq}"))
        spec = m.ActorSpec(ids.actor_id(maker, seq), "A", b"", 0, {}, cpus(1), cpus(1), job="j", name=f"a{seq}")
        spec.max_restarts = 2
        world.actors.create(maker, spec, b"arguments")
        await world.settle()
    world.actors.kill(ids.actor_id(maker, 1), True, "it was killed")
    await world.settle()
    groups.remove(maker, ids.group_id(maker, 1))
    await world.fakes[3].lost()
    await world.settle()
    await world.actors.stop(end_detached=True)
    await groups.stop(end=True)
    await world.nodes.stop()
    world.stop_head()


def run_child(directory: Path, url: str, at: int, phase: str) -> int:
    """How many writes there were; 0 when it was killed, as it should be."""
    place = directory / f"{at}-{phase}"
    place.mkdir(parents=True)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        code = 1
        try:
            os.write(writer, b"%d" % asyncio.run(_live(place, url, at, phase)))
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as told:
        text = told.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise SystemExit(f"write {at}, {phase}: the child ended with {status}")
    return int(text) if status == 0 else 0


async def _live(place: Path, url: str, at: int, phase: str) -> int:
    storage = Killer(storage_at(place, url), at, phase, place)
    await life(storage)
    await storage.close()
    return storage.writes


def main(directory: Path, url: str) -> None:
    at = 1
    while True:
        for phase in PHASES:
            if run_child(directory, url, at, phase):
                print(at - 1)
                return
        at += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
