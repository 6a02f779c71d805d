"""A node's rows of tasks that have not ended: how many its processes may tell, and that they are made in a thread."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from noded import ids
from noded.node import task_table
from noded.node.readers import Readers
from noded.node.task_table import MOST, TaskTable
from noded.wire import messages as m


class Bench:
    """A table of clients that the test plays: ``open[at]`` tasks has each."""

    def __init__(self, open_: list[int]):
        self.open = open_
        self.asked: list[list[int]] = [[] for _ in open_]
        """The limits that each was asked with."""
        self.clients: dict[bytes, Any] = {}
        for at in range(len(open_)):
            prefix = at.to_bytes(ids.PREFIX_SIZE, "big")
            self.clients[prefix] = SimpleNamespace(
                session=True, told=True, version=m.TASKS_SINCE, prefix=prefix, job="j", kind="driver", pid=at
            )
        self.readers = Readers()
        pages: Any = SimpleNamespace(read=list)
        self.table = TaskTable(pages, self.clients, "node", self.ask, self.readers)

    async def ask(self, client: Any, question: Callable[[int], Any], seconds: float) -> bytes:
        limit = question(1).limit
        self.asked[client.pid].append(limit)
        count = min(limit, self.open[client.pid])
        tasks = [[seq, "f", "PENDING_NODE_ASSIGNMENT", "", "", 0, {"CPU": 10000}] for seq in range(1, count + 1)]
        return json.dumps({"tasks": tasks, "failed": {}, "counts": []}).encode()


@pytest.fixture
async def bench() -> AsyncIterator[Callable[[list[int]], Bench]]:
    made: list[Bench] = []

    def make(open_: list[int]) -> Bench:
        made.append(Bench(open_))
        return made[-1]

    yield make
    for each in made:
        each.readers.stop()


async def test_all_processes_share_what_a_node_may_tell(bench: Callable[[list[int]], Bench]) -> None:
    many = bench([3 * MOST] * 4)
    found = await many.table.rows()
    assert many.asked == [[MOST // 4]] * 4 and len(found["rows"]) == MOST
    assert len(found["problems"]) == 4
    assert "pid 0 (job j) has 2500 open or failed tasks or more: not all of them" in found["problems"][0]

    crowd = bench([MOST] + [3] * 199)
    found = await crowd.table.rows()
    assert crowd.asked[1:] == [[500]] * 199, "each may tell some, however many there are"
    assert len(found["rows"]) == MOST and len(found["problems"]) == 1, "the others have left the rest to the first"

    few = bench([7_000, 5, 0])
    found = await few.table.rows()
    assert len(found["rows"]) == 7_005 and not found["problems"]


async def test_rows_are_made_in_another_thread(
    bench: Callable[[list[int]], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()

    def loads(data: bytes) -> Any:
        seen.add(threading.current_thread().name)
        return json.loads(data)

    monkeypatch.setattr(task_table, "json", SimpleNamespace(loads=loads))
    assert len((await bench([100]).table.rows())["rows"]) == 100
    assert seen == {"noded-readers"}
