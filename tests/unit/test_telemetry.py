"""A telemetry page: what was counted is read, runs that go on are kept, the newest win, damage is no crash."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from noded import ids, telemetry
from noded.telemetry import (
    CALL,
    DIED,
    DONE,
    ERROR,
    NAMES,
    OTHER,
    RAISED_ERROR,
    RECORDS,
    RETURNED,
    SUBMITTED,
    TASK,
    UNRECORDED,
    Counts,
    Page,
    Reading,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "worker-1.page")


MAKER = b"process"


def id_of(number: int) -> bytes:
    return ids.task_id(MAKER, number)


def begin(page: Page, number: int, name: str, start: float, kind: str = TASK, thread: int = 0) -> tuple[int, int]:
    named = page.number(kind, name) | thread << 32
    return page.begin(MAKER, number, named, start), named


def read(path: str) -> Reading:
    found = telemetry.read(path)
    assert found is not None
    return found


def test_what_was_counted_is_read(path: str) -> None:
    page = Page(path)
    page.owner("00010002", id_of(9))
    base = page.base(TASK, "f")
    for _ in range(3):
        page.counters[base + SUBMITTED] += 1
    page.counters[base + DONE] += 2
    page.end(*begin(page, 1, "f", 1.0), 2.5)
    page.end_badly(*begin(page, 2, "A.g", 3.0, CALL, 77), 4.0, RAISED_ERROR, "ValueError")
    begin(page, 3, "f", 5.0)

    found = read(path)
    assert (found.job, found.actor) == ("00010002", id_of(9))
    assert found.counts == {
        (TASK, "f"): Counts(3, 2, 0, 1, 0, 1),
        (CALL, "A.g"): Counts(0, 0, 0, 0, 1, 0),
    }
    assert found.records == [
        (id_of(1), TASK, "f", 1.0, 2.5, 0, RETURNED, ""),
        (id_of(2), CALL, "A.g", 3.0, 4.0, 77, RAISED_ERROR, "ValueError"),
        (id_of(3), TASK, "f", 5.0, 0.0, 0, RETURNED, ""),
    ]
    assert telemetry.read_own(page).records == found.records


def test_the_newest_win_but_what_runs_stays(path: str) -> None:
    page = Page(path)
    long = [begin(page, number, "long", 0.5 + number) for number in (0, 1)]
    for number in range(2, 3 * RECORDS):
        page.end(*begin(page, number, "f", 10.0 + number), 11.0 + number)

    numbers = [ids.seq_of(record.id) for record in read(path).records]
    assert numbers[:2] == [0, 1]
    # One fewer than there is room for: the oldest may be the one that is written over right now.
    assert numbers[2:] == list(range(3 * RECORDS - (RECORDS - 3), 3 * RECORDS))
    assert read(path).counts[TASK, "long"].running == 2
    for run in long:
        page.end(*run, 9.0)
    assert read(path).counts[TASK, "long"] == Counts(finished=2)


def test_more_names_than_there_is_room_for(path: str) -> None:
    page = Page(path)
    for number in range(NAMES + 5):
        page.counters[page.base(TASK, f"f{number}") + SUBMITTED] += 1
    page.counters[page.base(CALL, "é" * 500) + SUBMITTED] += 1
    page.end_badly(*begin(page, 1, "late", 1.0), 2.0, RAISED_ERROR, "E" * 300)

    counts = read(path).counts
    assert sum(each.submitted for each in counts.values()) == NAMES + 6
    assert counts[TASK, OTHER].submitted > 5 and counts[CALL, OTHER].submitted == 1
    assert counts[TASK, OTHER].raised == 1
    (record,) = read(path).records
    assert record.name == OTHER and not record.error


def test_what_runs_is_seen_wherever_it_is(path: str) -> None:
    page = Page(path)
    begin(page, 1, "long", 0.5)
    for number in range(2, RECORDS + 1):
        page.end(*begin(page, number, "f", 10.0), 11.0)

    found = read(path)  # the next one would be written over it
    assert found.counts[TASK, "long"].running == 1 and found.records[0].id == id_of(1)


def test_more_at_once_than_there_are_records(path: str) -> None:
    page = Page(path)
    runs = [begin(page, number, "f", 1.0) for number in range(RECORDS + 200)]
    assert sum(1 for at, _ in runs if at == UNRECORDED) == 200
    assert read(path).counts[TASK, "f"].running == RECORDS + 200
    for run in runs[: RECORDS + 100]:
        page.end(*run, 2.0)
    page.end_badly(*runs[-1], 2.0, RAISED_ERROR, "ValueError")
    assert read(path).counts[TASK, "f"] == Counts(finished=RECORDS + 100, raised=1, running=99)
    telemetry.bury(path, 3.0)
    assert read(path).counts[TASK, "f"] == Counts(finished=RECORDS + 100, raised=100)


def test_names_that_begin_alike(path: str) -> None:
    page = Page(path)
    for end in ("a", "b", "b"):
        page.counters[page.base(TASK, "n" * 300 + end) + SUBMITTED] += 1
    assert read(path).counts == {(TASK, "n" * 200): Counts(submitted=3)}


def test_a_page_moves_with_all_it_has(path: str, tmp_path: Path) -> None:
    page = Page()
    base = page.base(TASK, "f")
    page.counters[base + SUBMITTED] += 2
    page.move(path)
    page.counters[base + DONE] += 1
    other = str(tmp_path / "other.page")
    page.move(other)
    page.counters[base + DONE] += 1
    page.move("")
    page.counters[base + DONE] += 1
    assert read(path).counts[TASK, "f"] == Counts(submitted=2, done=1)
    assert read(other).counts[TASK, "f"] == Counts(submitted=2, done=2)


def test_a_burial_may_be_repeated(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page(path)
    page.counters[page.base(TASK, "f") + SUBMITTED] += 1
    for number in (1, 2):
        begin(page, number, "f", 3.0)
    write = os.pwrite
    for killed_at in range(1, 5):
        left = [killed_at]

        def dying(fd: int, data: bytes, at: int, left: list[int] = left) -> int:
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
            return write(fd, data, at)

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", dying)
            with contextlib.suppress(KeyboardInterrupt):
                telemetry.bury(path, 7.0)
    telemetry.bury(path, 8.0)
    assert read(path).counts[TASK, "f"] == Counts(submitted=1, failed=1, raised=2)


def test_a_full_disk_is_an_error_not_the_end(tmp_path: Path) -> None:
    """In a file system of its own: a map over a hole that cannot be filled would be a SIGBUS."""
    if os.getuid():
        pytest.skip("only root may mount")
    program = """
import os, sys
from noded import ids, telemetry
place = sys.argv[1]
page = telemetry.Page(place + "/worker-1.page")
page.begin(bytes(7), 0, page.number(telemetry.TASK, "f"), 1.0)
with open(place + "/filler", "wb", buffering=0) as file:
    try:
        while file.write(bytes(4096)):
            pass
    except OSError:
        pass
try:
    telemetry.Page(place + "/worker-2.page")
except OSError as error:
    print("refused")
for number in range(telemetry.RECORDS):
    page.begin(bytes(7), 0, page.number(telemetry.TASK, f"f{number % 400}"), 1.0)
print(len(telemetry.bury(place + "/worker-1.page", 2.0)))
"""
    script = 'mount -t tmpfs -o size=600k none "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "-rm", "sh", "-c", script, "sh", str(tmp_path), sys.executable, program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout.split()) == (0, ["refused", str(RECORDS)]), done.stderr


def test_the_dead_are_buried(path: str) -> None:
    page = Page(path)
    base = page.base(TASK, "f")
    page.counters[base + SUBMITTED] += 5
    page.counters[base + DONE] += 2
    page.end(*begin(page, 1, "f", 1.0), 2.0)
    begin(page, 2, "f", 3.0)

    died = telemetry.bury(path, 7.0)
    assert died == [(id_of(2), TASK, "f", 3.0, 7.0, 0, DIED, "")]
    assert read(path).counts[TASK, "f"] == Counts(5, 2, 3, 1, 1, 0)
    assert read(path).records[1] == died[0]
    assert telemetry.bury(path, 8.0) == [] and read(path).records[1].end == 7.0


def test_no_page_has_no_records(tmp_path: Path) -> None:
    assert telemetry.read(str(tmp_path / "missing")) is None and telemetry.bury(str(tmp_path / "missing"), 1.0) == []
    other = tmp_path / "other"
    for data in (b"x" * telemetry.SIZE, b"", b"NODEDTP1"):
        other.write_bytes(data)
        assert telemetry.read(str(other)) is None and telemetry.bury(str(other), 1.0) == []
    # A crash of the machine may leave anything.
    Page(str(other))
    data = bytearray(other.read_bytes())
    data[8:20] = b"\xff" * 12
    data[telemetry.SIZE // 2 :] = b"\xff" * len(data[telemetry.SIZE // 2 :])
    other.write_bytes(data)
    found = telemetry.read(str(other))
    assert found is not None and all(record.name == OTHER for record in found.records)
    assert ERROR not in {record.kind for record in found.records}


def test_what_runs_is_read_alone(path: str) -> None:
    page = Page(path)
    for number in range(3 * RECORDS):
        at, named = begin(page, number, f"f{number % 7}", number + 1.0)
        if number % 500 and number < 3 * RECORDS - 3:
            page.end(at, named, number + 2.0)
    runs = [record for record in read(path).records if not record.end]
    assert len(runs) > 20 and telemetry.running(path) == runs
    assert telemetry.running(path + ".none") == []

    def quickest(what: Callable[[str], object]) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            what(path)
            times.append(time.perf_counter() - began)
        return min(times)

    assert quickest(telemetry.running) < quickest(telemetry.read) / 4


def test_the_runs_of_one_task_are_read_alone(path: str) -> None:
    page = Page(path)
    for number in (1, 2, 1):
        at, named = begin(page, number, "f", number + 1.0)
        page.end(at, named, number + 2.0)
    found = telemetry.read_runs(path, id_of(1))
    assert found is not None and [record.id for record in found.records] == [id_of(1), id_of(1)]
    assert telemetry.read_runs(path, bytes([77]) * 16) is None
