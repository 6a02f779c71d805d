"""The ring of a worker's last tasks: what was added is read, the newest win, damage is no crash."""

from __future__ import annotations

from pathlib import Path

from noded import task_ring
from noded.task_ring import RECORDS, TaskRing

ID = bytes(range(16))


def test_what_was_added_is_read_in_order(tmp_path: Path) -> None:
    path = str(tmp_path / "ring")
    ring = TaskRing(path)
    ring.add(ID, "f", 1.0, 2.5, 0, False)
    ring.add(ID, "g", 3.0, 4.0, 77, True)

    assert task_ring.read(path) == [(ID, "f", 1.0, 2.5, 0, False), (ID, "g", 3.0, 4.0, 77, True)]


def test_the_newest_win(tmp_path: Path) -> None:
    path = str(tmp_path / "ring")
    ring = TaskRing(path)
    for number in range(3 * RECORDS):
        ring.add(number.to_bytes(16, "big"), "f", number, number, 0, False)

    found = [int.from_bytes(record.id, "big") for record in task_ring.read(path)]
    # One fewer than there is room for: the oldest may be the one that is written over right now.
    assert found == list(range(2 * RECORDS + 1, 3 * RECORDS))


def test_more_names_than_there_is_room_for(tmp_path: Path) -> None:
    path = str(tmp_path / "ring")
    ring = TaskRing(path)
    for number in range(500):
        ring.add(ID, f"{number:03}" + "é" * 200, 0, 0, 0, False)

    names = [record.name for record in task_ring.read(path)]
    assert names[0].startswith("000é") and names[-1] == "(other)"


def test_no_ring_has_no_records(tmp_path: Path) -> None:
    assert task_ring.read(str(tmp_path / "missing")) == []
    other = tmp_path / "other"
    other.write_bytes(b"x" * task_ring.SIZE)
    assert task_ring.read(str(other)) == []
    other.write_bytes(b"")
    assert task_ring.read(str(other)) == []
