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
from noded.node.task_table import MOST_OPEN, TaskTable
from noded.policy.task_pages import Sought
from noded.wire import messages as m


def id_of(client: int, seq: int) -> str:
    return ids.task_id(client.to_bytes(ids.PREFIX_SIZE, "big"), seq).hex()


class Bench:
    """A table of clients that the test plays: ``open[at]`` tasks has each."""

    def __init__(self, open_: list[int]):
        self.open = open_
        self.asked: list[list[m.WhatTasks]] = [[] for _ in open_]
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
        asked = question(1)
        self.asked[client.pid].append(asked)
        some = range(asked.after + 1, self.open[client.pid] + 1)[: asked.limit]
        tasks = [[seq, "f", "PENDING_NODE_ASSIGNMENT", "", "", 0, {"CPU": 10000}] for seq in asked.numbers or some]
        until = tasks[-1][0] if tasks and tasks[-1][0] < self.open[client.pid] else 0
        told = {"tasks": tasks, "failed": {}, "counts": [], "total": self.open[client.pid], "until": until}
        return json.dumps(told).encode()

    def limits(self) -> list[list[int]]:
        return [[asked.limit for asked in each] for each in self.asked]


@pytest.fixture
async def bench() -> AsyncIterator[Callable[[list[int]], Bench]]:
    made: list[Bench] = []

    def make(open_: list[int]) -> Bench:
        made.append(Bench(open_))
        return made[-1]

    yield make
    for each in made:
        each.readers.stop()


async def test_all_processes_share_what_a_node_may_tell_at_once(bench: Callable[[list[int]], Bench]) -> None:
    many = bench([3 * MOST_OPEN] * 4)
    found = await many.table.known(Sought())
    assert many.limits() == [[MOST_OPEN // 4]] * 4 and len(found.rows) == MOST_OPEN
    assert (found.total, found.until) == (12 * MOST_OPEN, id_of(0, MOST_OPEN // 4)) and not found.notes

    crowd = bench([MOST_OPEN] + [3] * 199)
    found = await crowd.table.known(Sought())
    assert crowd.limits() == [[500]] * 200, "each may tell some, however many there are"
    assert (found.total, found.until) == (MOST_OPEN + 3 * 199, id_of(0, 500))


async def test_what_is_left_comes_with_the_next_page(bench: Callable[[list[int]], Bench]) -> None:
    two = bench([1_400, 1_400])
    found = await two.table.known(Sought(after=id_of(0, 1_000)))
    assert [each[0].after for each in two.asked] == [1_000, 0] and found.until == id_of(1, 1_000)
    found = await two.table.known(Sought(after=id_of(1, 1_000)))
    assert two.limits() == [[1_000, 0], [1_000, 1_000]], "what comes before the cursor is only counted"
    assert (len(found.rows), found.total, found.until) == (400, 2_800, "")


async def test_only_those_are_asked_who_may_know_of_it(bench: Callable[[list[int]], Bench]) -> None:
    two = bench([1_400, 1_400])
    found = await two.table.known(Sought(frozenset({id_of(1, 1_399), "no id"})))
    assert [row["task_id"] for row in found.rows] == [id_of(1, 1_399)]
    assert two.asked[0] == [] and two.asked[1][0].numbers == [1_399]
    assert not (await two.table.known(Sought(states=frozenset({"running"})))).rows and two.asked[0] == []
    for few in (Sought(ran=True), Sought(jobs=frozenset({"other"}))):
        assert (await two.table.known(few)).total == 2_800
        assert [each.pop().limit for each in two.asked] == [0, 0], "they are only counted"
    await two.table.known(Sought(states=frozenset({"failed"}), names=frozenset({"f"})))
    assert [(each.states, each.names) for each in two.asked[0]] == [(["failed"], ["f"])]


async def test_rows_are_made_in_another_thread(
    bench: Callable[[list[int]], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()

    def loads(data: bytes) -> Any:
        seen.add(threading.current_thread().name)
        return json.loads(data)

    monkeypatch.setattr(task_table, "json", SimpleNamespace(loads=loads))
    assert len((await bench([100]).table.known(Sought())).rows) == 100
    assert seen == {"noded-readers"}
