"""The pages of a node: nothing counts twice, whenever its daemon is killed, and old files go."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from noded import ids, telemetry
from noded.node import pages as module
from noded.node.pages import Pages, worker_of
from noded.node.running import Runs
from noded.telemetry import CREATION, DONE, SUBMITTED, TASK, Counts, Page, Record, worker_page

MAKER = b"process"


class Node:
    """Processes that live and die, and the daemons after each other that keep their pages."""

    def __init__(self, logs: Path):
        self.logs = str(logs)
        self.alive: dict[str, Page] = {}
        self.buried: list[tuple[str, list[Record]]] = []
        self.pages = self.daemon()

    def daemon(self, incarnation: str = "abc") -> Pages:
        self.pages = Pages(self.logs, incarnation, lambda: set(self.alive), lambda *each: self.buried.append(each))
        self.pages.start()
        return self.pages

    def begin(self, worker: str) -> Page:
        name = worker_page(worker)
        self.alive[name] = page = Page(os.path.join(self.pages.directory, name))
        return page

    def end(self, worker: str) -> str:
        name = worker_page(worker)
        del self.alive[name]
        return name


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.alive.clear()  # their maps go


def test_nothing_counts_twice_and_nothing_is_forgotten(node: Node) -> None:
    random.seed(5)
    total, number = 0, 0
    for _ in range(200):
        what = random.choice(("begin", "work", "work", "end", "end unseen", "fold", "daemon"))
        if what == "begin":
            number += 1
            node.begin(f"{number:016x}")
        elif what == "daemon":
            node.daemon()
        elif what == "fold":
            node.pages.fold()
        elif node.alive:
            name = random.choice(sorted(node.alive))
            if what == "work":
                page = node.alive[name]
                page.counters[page.base(TASK, "f") + SUBMITTED] += 1
                page.counters[page.base(TASK, "f") + DONE] += 1
                total += 1
            else:
                del node.alive[name]
                if what == "end":
                    node.pages.ended(name)
                else:
                    node.daemon()  # the one before has not noticed
        assert node.pages.counts().get((TASK, "f"), Counts()).done == total
    assert total and len(node.buried) == len({name for name, _ in node.buried}) > 3


def test_a_daemon_that_is_killed_between_the_writes(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    page = node.begin("01")
    page.counters[page.base(TASK, "f") + DONE] += 7
    node.end("01")
    with monkeypatch.context() as patch:
        patch.setattr(Pages, "_save", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        node.pages.ended(worker_page("01"))
        with pytest.raises(KeyboardInterrupt):
            node.pages.fold()
    assert node.daemon().counts()[TASK, "f"].done == 7
    assert node.daemon().counts()[TASK, "f"].done == 7


def test_totals_that_cannot_be_saved(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT_PAGES", 2)
    with monkeypatch.context() as patch:
        patch.setattr(Pages, "_save", lambda self: False)
        for number in range(5):
            page = node.begin(f"{number:02}")
            page.counters[page.base(TASK, "f") + DONE] += 1
            node.pages.ended(node.end(f"{number:02}"))
            node.pages.fold()
    assert node.daemon().counts()[TASK, "f"].done == 5


def test_one_page_that_cannot_be_written(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        page = node.begin(f"{number:02}")
        page.begin(MAKER, 1, page.number(TASK, "f"), 1.0)
        node.pages.ended(node.end(f"{number:02}"))
    bury = telemetry.bury

    def full(path: str, now: float) -> list[Record]:
        if "worker-01" in path:
            raise OSError(errno.ENOSPC, "No space left on device")
        return bury(path, now)

    with monkeypatch.context() as patch:
        patch.setattr(telemetry, "bury", full)
        with pytest.raises(OSError, match="No space left"):
            node.pages.fold()
    assert [worker_of(name) for name, _ in node.buried] == ["00", "02"]
    node.pages.fold()
    assert len(node.buried) == 3 and node.pages.counts()[TASK, "f"] == Counts(raised=3)


def test_what_it_ran_is_told_once(node: Node) -> None:
    page = node.begin("02")
    page.begin(MAKER, 1, page.number(TASK, "f"), 1.0)
    node.pages.ended(node.end("02"))
    node.pages.fold()
    ((name, (record,)),) = node.buried
    assert worker_of(name) == "02" and record.name == "f" and record.end
    (snapshot,) = node.pages.read()
    assert not snapshot.alive and snapshot.reading.records == [record]
    assert len(node.buried) == 1


def test_old_pages_and_old_runs_go_but_their_counts_stay(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT_PAGES", 3)
    monkeypatch.setattr(module, "_KEPT_RUNS", 2)
    for number in range(6):
        page = node.begin(f"{number:02}")
        named = page.number(CREATION, "A.__init__")
        page.end(page.begin(MAKER, 1, named, 1.0), named, 2.0)
        node.pages.ended(node.end(f"{number:02}"))
        node.pages.fold()
    assert [worker_of(s.name) for s in node.pages.read()] == ["03", "04", "05"]
    assert node.pages.counts() == {(CREATION, "A.__init__"): Counts(finished=6)}
    for incarnation in ("second", "third"):
        node.daemon(incarnation)
    assert node.pages.counts() == {}
    assert len(module.runs(node.logs)) == 2


def test_what_workers_run_is_looked_for_up_to_the_task_that_is_wanted(node: Node) -> None:
    wanted = ids.task_id(MAKER, 99)
    for number in range(30):
        page = node.begin(f"{number:016x}")
        page.begin(MAKER, 99 if number == 25 else number, page.number(TASK, "f"), 5.0)
    runs = Runs(node.pages)
    workers = [f"{number:016x}" for number in range(30)]

    found = runs.of_each(workers, wanted.hex(), 30)
    assert list(found) == workers[:26] and found[workers[25]] == [{"task": wanted.hex(), "name": "f", "since": 5.0}]
    assert len(runs.of_each(workers, wanted.hex(), 0)) == 1, "it goes on when its time is over"


def test_the_last_run_of_a_task_is_known(node: Node) -> None:
    id_ = ids.task_id(MAKER, 9)
    runs = Runs(node.pages)
    assert runs.last(id_) == {}
    first = node.begin("a" * 16)
    first.begin(MAKER, 9, first.number(TASK, "f"), 5.0)
    assert runs.last(id_)["outcome"] == "running"
    node.pages.ended(node.end("a" * 16))
    assert runs.last(id_)["outcome"] == "died" and runs.last(id_)["worker"] == "a" * 16
    second = node.begin("b" * 16)
    second.end(second.begin(MAKER, 9, second.number(TASK, "f"), 6.0), second.number(TASK, "f"), 7.0)
    assert runs.last(id_)["outcome"] == "returned" and runs.last(id_)["worker"] == "b" * 16
