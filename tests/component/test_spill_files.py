"""Directories that take turns, are full, fail while they are written to, or belong to a node that has ended."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from noded import ids
from noded.node.ledger import Ledger
from noded.node.object_store import ObjectStore
from noded.node.spill_files import NoRoom, SpillFiles, Value, sweep
from noded.node.spilling import Spilling
from noded.shm import arena as shm
from noded.shm import record

ID = ids.object_id(bytes([0, 0, 7, 1, 2, 3, 4]), 1, 0)
VALUE = os.urandom(100_000)


@pytest.fixture
def spilling(tmp_path: Path) -> Iterator[Spilling]:
    ledger = Ledger.create(incarnation=bytes(16))
    arena = shm.Arena(shm.create(1 << 20), 1 << 20)
    store = ObjectStore(arena, ledger, {}, lambda id_: None, 7)
    arena.copy_in(shm.HEADER_SIZE, VALUE)
    files = SpillFiles([tmp_path / "a", tmp_path / "b"], "node", 1 << 20)
    spilling = Spilling(store, store.space, files, {}, lambda name, fd: None)
    yield spilling
    files.close(delete=True)
    arena.close(unmap=True)
    ledger.close()


def write(spilling: Spilling, count: int = 1) -> list[Any]:
    return [spilling._write([Value(ID, shm.HEADER_SIZE, len(VALUE))])[0] for _ in range(count)]


def where(places: list[Any]) -> list[str]:
    return [Path(place.file.path).parent.parent.name for place in places]


def test_directories_take_turns_and_what_is_written_is_there(spilling: Spilling) -> None:
    places = write(spilling, 4)
    assert where(places) == ["a", "b", "a", "b"]
    for place in places:
        assert bytes(record.read_value(place.file.path, place.value_at, place.size)) == VALUE
        ((found, nested),) = place.file.contents()
        assert (found.id, found.size, found.state, nested) == (ID, len(VALUE), record.SEALED, [])


def test_a_directory_that_fails_is_left_out(spilling: Spilling, monkeypatch: pytest.MonkeyPatch) -> None:
    write_all = record.write_all

    def broken(fd: int, data: bytes | memoryview, at: int) -> None:
        if "/a/" in os.readlink(f"/proc/self/fd/{fd}") and len(data) == len(VALUE):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        write_all(fd, data, at)

    monkeypatch.setattr(record, "write_all", broken)
    assert where(write(spilling, 3)) == ["b", "b", "b"]
    a, b = spilling.files.directories
    assert "Input/output error" in a.refusal(1) and not b.refusal(1)
    assert not a.files and not list(a.path.glob("*.spill")), "what was begun there is removed"
    a.retry_at = 0.0
    monkeypatch.setattr(record, "write_all", write_all)
    assert "a" in where(write(spilling, 2)) and not a.failed


def test_a_limit_says_what_is_there(spilling: Spilling) -> None:
    with pytest.raises(NoRoom, match=r"/a: .* above its limit of 1048576; .*/b: .* above its limit of 1048576"):
        write(spilling, 100)
    assert all(each.used <= 1 << 20 for each in spilling.files.directories)


def test_only_what_nobody_holds_the_lock_of_is_swept(spilling: Spilling, tmp_path: Path) -> None:
    (place, _) = write(spilling, 2)
    sweep(tmp_path / "a")
    assert Path(place.file.path).exists()
    spilling.files.close(delete=False)
    sweep(tmp_path / "a")
    assert not Path(place.file.path).parent.exists() and (tmp_path / "b" / "node").exists()
