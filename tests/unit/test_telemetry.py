"""A telemetry page: what was counted is read, runs that go on are kept, the newest win, damage is no crash."""

from __future__ import annotations

from pathlib import Path

import pytest

from noded import telemetry
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
    Counts,
    Page,
    Reading,
)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "worker-1.page")


def id_of(number: int) -> bytes:
    return number.to_bytes(16, "big")


def begin(page: Page, number: int, name: str, start: float, kind: str = TASK, thread: int = 0) -> tuple[int, int]:
    named = page.number(kind, name) | thread << 32
    return page.begin(id_of(number), named, start), named


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

    numbers = [int.from_bytes(record.id, "big") for record in read(path).records]
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
