"""What a process tells of its open tasks: which of them, and that the runtime's lock is not held meanwhile."""

from __future__ import annotations

import json
import threading
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from harness.wait import wait_for

from noded.client import open_tasks
from noded.client.submission import Task, TaskQueue
from noded.wire import messages as m


class Bench:
    """A runtime with queued tasks of one class and calls of one actor."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.told: list[dict[str, Any]] = []
        queue = TaskQueue(1, {"CPU": 10_000}, "f")
        queue.ready = deque(task(seq, "F" if seq % 2 else "g", queue) for seq in (3, 4, 5, 1, 2))
        actor = SimpleNamespace(id=b"a" * 16, queue=deque([task(7, "call")]), parked={task(6, "call")})
        failures = {9: {"name": "F", "cause": "oom", "reason": "r"}, 8: {"name": "g", "cause": "", "reason": ""}}
        self.tasks = SimpleNamespace(links={}, waiting={}, queues={1: queue}, failures=failures)
        self.actors = SimpleNamespace(actors={1: actor})
        self.page = SimpleNamespace(path="page")
        self.control = SimpleNamespace(send=lambda _, payload: self.told.append(json.loads(payload)), flush=int)

    def ask(self, limit: int, **wanted: Any) -> tuple[list[int], list[int], int]:
        """Numbers of open tasks, of failed ones, and behind which there are more."""
        runtime: Any = self
        open_tasks.answer(runtime, m.WhatTasks(1, limit, **wanted))
        wait_for(lambda: self.told, "it has not answered")
        told = self.told.pop()
        assert told["total"] == 9 and all(
            name == ("call" if seq in (6, 7) else name) for seq, name, *_ in told["tasks"]
        )
        return [each[0] for each in told["tasks"]], [int(seq) for seq in told["failed"]], told["until"]


def task(seq: int, name: str, queue: TaskQueue | None = None) -> Task:
    return Task(seq, name, b"", [], 1, queue=queue)


def test_only_those_are_told_that_are_asked_for() -> None:
    bench = Bench()
    assert bench.ask(100) == ([1, 2, 3, 4, 5, 6, 7], [8, 9], 0)
    assert bench.ask(0) == ([], [], 0)
    assert bench.ask(100, names=["f"]) == ([1, 3, 5], [9], 0)
    assert bench.ask(100, not_names=["f"]) == ([2, 4, 6, 7], [8], 0)
    assert bench.ask(100, states=["failed"]) == ([], [8, 9], 0)
    assert bench.ask(100, states=["pending_node_assignment"], names=["call", "g"]) == ([2, 4, 6, 7], [], 0)
    assert bench.ask(100, states=["pending_args_avail"]) == ([], [], 0)
    assert bench.ask(1, numbers=[5]) == ([5], [], 0)
    assert bench.ask(100, numbers=[8, 77]) == ([], [8], 0)


def test_the_first_are_told_and_where_the_others_begin() -> None:
    bench = Bench()
    assert bench.ask(3) == ([1, 2, 3], [], 3)
    assert bench.ask(5, after=3) == ([4, 5, 6, 7], [8], 8)
    assert bench.ask(5, after=8) == ([], [9], 0)


def test_nobody_waits_for_the_lock_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, looked = Bench(), threading.Event()
    runtime: Any = bench
    tell = open_tasks.tell

    def spy(*args: Any) -> Any:
        try:
            return tell(*args)
        finally:
            looked.set()

    monkeypatch.setattr(open_tasks, "tell", spy)
    with bench.lock:
        open_tasks.answer(runtime, m.WhatTasks(1, 10))
        assert looked.wait(10), "it waits for the lock before it has looked"
        assert not bench.told
    wait_for(lambda: bench.told, "it has not answered")
