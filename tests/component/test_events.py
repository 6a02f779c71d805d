"""The log of events: what is emitted is read back in order, files are bounded, and a disk that fails hurts nobody."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from harness.wait import wait_for

from noded.node import event_files, events
from noded.node.events import EventLog
from noded.node.records import NodeRecords
from noded.policy.query import query_of


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    log = EventLog(str(tmp_path), node=7, node_id="abc", files=3, file_size=2000)
    yield log
    asyncio.run(log.stop())
    assert not [thread for thread in threading.enumerate() if thread.name == "noded-events"]


def page(log: EventLog, **args: Any) -> dict[str, Any]:
    return log.page(query_of({"kind": "cluster_events", **args})).answer()


def messages(log: EventLog, **args: Any) -> list[str]:
    return [row["message"] for row in page(log, **args)["rows"]]


def test_events_are_read_newest_first_with_what_is_known(log: EventLog) -> None:
    log.emit("NODE", "one", row={"node_id": "n"}, left_out=None)
    log.emit("WORKER", "two", "ERROR", pid=5)
    told = page(log, detail=True)
    assert [row["message"] for row in told["rows"]] == ["two", "one"] and told["total"] == 2
    assert told["rows"][0]["custom_fields"] == {"node_id": "abc", "pid": 5}
    assert told["rows"][1]["custom_fields"] == {"node_id": "abc", "row": {"node_id": "n"}}
    assert messages(log, filters=[("source_type", "=", "worker")]) == ["two"]
    told = page(log, filters=[("severity", "=", "error")], limit=1)
    assert (told["total"], told["matched"], told["cursor"]) == (2, 1, "")


def test_pages_go_on_where_the_last_one_ended(log: EventLog) -> None:
    for number in range(7):
        log.emit("NODE", str(number))
    first = page(log, limit=3)
    log.emit("NODE", "newer")
    second = page(log, limit=3, cursor=first["cursor"])
    assert [row["message"] for row in first["rows"] + second["rows"]] == ["6", "5", "4", "3", "2", "1"]


def test_the_files_are_bounded_and_the_newest_stay(log: EventLog, tmp_path: Path) -> None:
    for number in range(300):
        log.emit("NODE", f"event {number}")
        if not number % 10:
            messages(log, limit=0)  # until it is written: a batch is never split over two files
    assert messages(log, limit=1) == ["event 299"]
    files = list(tmp_path.iterdir())
    assert 2 <= len(files) <= 3 and sum(file.stat().st_size for file in files) < 3 * 2000 + 4000
    numbers = [int(text.split()[1]) for text in messages(log, limit=1000)]
    assert numbers == list(range(299, 299 - len(numbers), -1)), "a gap"


def test_another_daemon_goes_on_behind_a_line_that_was_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = EventLog(str(tmp_path), node=7, node_id="abc")
    first.emit("WORKER", "one")
    asyncio.run(first.stop())
    path = Path(event_files.path_of(str(tmp_path), 1))
    with path.open("ab") as file:
        file.write(b'{"id":"0123')
    (before,) = event_files.read(tmp_path)
    monkeypatch.setattr(events.time, "time", lambda: before.time - 3600)  # the clock was set back
    second = EventLog(str(tmp_path), node=7, node_id="abc")
    second.emit("WORKER", "two")
    assert messages(second) == ["two", "one"]
    found = list(event_files.read(tmp_path))
    assert [event.message for event in found] == ["one", "two"] and found[0].id < found[1].id
    asyncio.run(second.stop())


def test_a_full_disk_is_a_state_and_what_was_dropped_is_counted(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_PAUSE", 0.0)
    log.emit("NODE", "before")
    assert messages(log) == ["before"]
    write = os.write
    halves: list[int] = []

    def full(fd: int, data: bytes) -> int:
        if not halves:  # at first there is room for a part of a line
            halves.append(fd)
            return write(fd, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(events.os, "write", full)
    for number in range(3):
        log.emit("NODE", f"lost {number}")
        wait_for(lambda number=number: log.dropped == number + 1, "it was not dropped")
    assert "full" in log.figures()["problem"] or "space" in log.figures()["problem"]
    monkeypatch.setattr(events.os, "write", write)
    log.emit("NODE", "after")
    found = messages(log)
    assert found[0].startswith("3 events were dropped") and found[1:] == ["after", "before"]
    assert log.figures() == {"problem": "", "dropped": 3, "waiting": 0}


def test_more_than_can_be_written_is_dropped(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_QUEUE", 10)
    holding, goes_on = threading.Event(), threading.Event()
    write = os.write

    def slow(fd: int, data: bytes) -> int:
        holding.set()
        assert goes_on.wait(10)
        return write(fd, data)

    monkeypatch.setattr(events.os, "write", slow)
    log.emit("NODE", "first")
    assert holding.wait(10)
    for number in range(25):
        log.emit("NODE", str(number))
    assert log.dropped == 15
    goes_on.set()
    assert len(messages(log)) == 12, "the first, ten that had room, and one that tells of the others"


def test_a_log_that_was_never_used_has_no_thread_and_no_file(tmp_path: Path) -> None:
    log = EventLog(str(tmp_path / "none"), node=1, node_id="a")
    assert messages(log) == [] and log._thread is None
    asyncio.run(log.stop())
    log.emit("NODE", "too late")
    assert log.dropped == 1 and not (tmp_path / "none").exists()


def test_what_begins_and_ceases_to_be_wrong_is_an_event_each() -> None:
    """Whatever is looked at; `SimpleNamespace` stands for a node that has nothing else."""
    said: list[tuple[str, str, str]] = []
    states = {"the disk": "", "the head": "away"}

    def emit(source: str, message: str, severity: str = "INFO", **fields: Any) -> None:
        said.append((source, message, severity))

    node: Any = SimpleNamespace(
        events=SimpleNamespace(emit=emit),
        _known={},
        _problems=lambda: (("SPILLING", about, problem) for about, problem in states.items()),
    )
    NodeRecords.look(node)
    states.update({"the disk": "it is full", "the head": "away, still"})
    NodeRecords.look(node)
    NodeRecords.look(node)
    states.update({"the disk": ""})
    NodeRecords.look(node)
    assert said == [
        ("SPILLING", "the head: away", "WARNING"),
        ("SPILLING", "the disk: it is full", "WARNING"),
        ("SPILLING", "the disk is well again", "INFO"),
    ]
