"""The journal's file: what was appended is read, whatever tore its end, and nothing that was not."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noded.head.storage import Delete, Op, Put
from noded.head.storage import journal as files
from noded.head.storage.journal import Entry, Journal, Owner, read, set_aside

OWNER = Owner("namespace", 7, "nonce")
_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
_ops = st.lists(
    st.one_of(st.builds(Put, _text, _text, st.binary(max_size=40)), st.builds(Delete, _text, _text)), max_size=4
)
_groups = st.lists(st.lists(_ops, min_size=1, max_size=4), max_size=5)


def write(path: Path, groups: list[list[list[Op]]]) -> list[Entry]:
    journal, entries = Journal(path, OWNER), []
    for group in groups:
        appended = [Entry.of(len(entries) + n, ops) for n, ops in enumerate(group, 1)]
        journal.append(appended)
        entries += appended
    journal.close()
    return entries


@given(_groups)
def test_what_was_appended_is_read(groups: list[list[list[Op]]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "journal"
        entries = write(path, groups)
        found = read(path)
        if not groups:
            assert found is None and not path.exists()
        else:
            assert found is not None and (found.owner, found.entries, found.torn) == (OWNER, entries, 0)
            assert [list(entry.operations()) for entry in found.entries] == [ops for group in groups for ops in group]


@given(_groups.filter(bool), st.data())
def test_a_torn_end_is_left_away(groups: list[list[list[Op]]], data: st.DataObject) -> None:
    """Cut anywhere, with or without rubbish in place of what is cut off: a beginning of the entries is read."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "journal"
        entries = write(path, groups)
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:cut] + data.draw(st.binary(max_size=30)))
        found = read(path)
        if found is not None:
            assert found.owner == OWNER
            assert found.entries == entries[: len(found.entries)]
        kept = [end for _, end in files._frames(whole, len(files.MAGIC)) if end <= cut]
        assert len(found.entries if found is not None else []) >= len(kept) - 1, "what was whole is lost"


@given(_groups.filter(bool), st.data())
def test_a_changed_byte_is_noticed(groups: list[list[list[Op]]], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "journal"
        entries = write(path, groups)
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        found = read(path)
        assert found is None or (found.owner == OWNER and found.entries == entries[: len(found.entries)])
        assert found is None or len(found.entries) < len(entries)


def test_a_failed_append_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal"
    journal = Journal(path, OWNER)
    journal.append([Entry.of(1, [Put("t", "k", b"1")])])

    def fail(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space"):
            journal.append([Entry.of(2, [Put("t", "k", b"2" * 1000)])])
    found = read(path)
    assert found is not None and [entry.seq for entry in found.entries] == [1] and found.torn == 0
    journal.append([Entry.of(2, [Put("t", "k", b"2")])])
    journal.close()
    found = read(path)
    assert found is not None and [entry.seq for entry in found.entries] == [1, 2] and found.torn == 0


def test_no_room_for_its_beginning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    journal = Journal(tmp_path / "file" / "journal", OWNER)
    with pytest.raises(OSError, match="file"):
        journal.append([Entry.of(1, ())])


def test_after_clear_it_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path, OWNER)
    journal.append([Entry.of(1, ())])
    journal.clear()
    journal.clear()
    assert not path.exists()
    journal.append([Entry.of(5, ())])
    journal.close()
    found = read(path)
    assert found is not None and [entry.seq for entry in found.entries] == [5]


def test_each_that_is_set_aside_has_a_name_of_its_own(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        write(tmp_path / "journal", [[[]]])
        names.append(set_aside(tmp_path / "journal", 7).name)
    assert names == ["journal.stale-epoch-7", "journal.stale-epoch-7.2", "journal.stale-epoch-7.3"]
    assert read(tmp_path / "journal") is None
