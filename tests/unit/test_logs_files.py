"""Marks in output files, and reading the files: exact to the byte, in chunks, from the end, with holes."""

from __future__ import annotations

import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noded.logs import files as log_files
from noded.logs import query
from noded.logs.answers import LogDirectory
from noded.logs.files import Cursor
from noded.logs.marks import CUT, Mark, ends_task, parse, pieces
from noded.logs.query import last_lines

T, U, A = "aa" * 16, "bb" * 16, "cc" * 16
END = Mark().line().encode()
NAME = "worker-00000000000000aa.out"


def mark(label: str = "", task: str = "", actor: str = "", span: str = "", job: str = "", pid: str = "") -> bytes:
    return Mark(label, task, actor, span, job, pid).line().encode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / NAME


def test_a_mark_is_read_as_it_was_written() -> None:
    for made in (Mark(), Mark("f"), Mark("f", T, A, "3,9", "job", "77"), Mark(actor=A)):
        line = made.line()
        assert line.endswith("\n") and line.count("\n") == 1
        assert parse(line[1:-1].encode()) == made
    assert "\n" not in Mark("two\nlines\x1f").line()[:-1], "a name cannot break its mark"
    assert parse(b"name of an older version") == Mark("name of an older version")


def test_which_marks_end_a_task() -> None:
    assert ends_task("\x1e") and ends_task(Mark(span=CUT).line()[:-1])
    assert not any(ends_task(line) for line in ("", "text", Mark("f", T).line()[:-1], Mark(actor=A).line()[:-1]))


@given(st.lists(st.tuples(st.sampled_from([b"", b"a\n", b"\n", b"b\nc\n", b"\n\n"]), st.sampled_from([T, U, ""]))))
def test_pieces_are_what_was_written_between_marks(parts: list[tuple[bytes, str]]) -> None:
    data = b"".join(mark("f" if task else "", task) + text for text, task in parts)

    found = list(pieces(data))

    assert [(each.mark.task, each.text) for each in found if each.mark] == [(task, text) for text, task in parts]
    assert found[0].mark is None and found[0].text == b""


def test_a_task_s_bytes_are_exact(path: Path) -> None:
    before = mark("f", T, job="job1", pid="77") + b"one\nno end" + b"\n" + mark(span=CUT)
    start = len(before)
    by_c = b"from C\nhalf"
    closing = b"\n" + mark("g", U, span=f"{start},{start + len(by_c)}") + END
    path.write_bytes(before + by_c + closing + mark("f", T) + b"again\n" + END + b"nobody's\n")

    assert log_files.read(str(path), Cursor(), T, exact=True).data == b"one\nno endagain\n"
    assert log_files.read(str(path), Cursor(), U, exact=True).data == by_c
    assert log_files.read(str(path), Cursor()).data == b"one\nno end\nfrom C\nhalf\nagain\nnobody's\n"
    assert log_files.whose(str(path)) == Mark("f", T, "", "", "job1", "77")
    assert log_files.mentions(str(path), U) and not log_files.mentions(str(path), A)


def test_an_actor_s_lines_are_those_of_all_its_calls(path: Path) -> None:
    path.write_bytes(
        mark("f", U) + b"a task before\n" + END + mark("A", "", A) + b"made\n" + mark("", "", A) + b"from C\n"
        + mark("A", T, A) + b"called\n" + mark("", "", A)
    )  # fmt: skip

    assert log_files.read(str(path), Cursor(), A).data == b"made\nfrom C\ncalled\n"
    assert log_files.read(str(path), Cursor(), T).data == b"called\n"


def test_chunks_joined_are_the_whole(path: Path) -> None:
    rng = random.Random(5)
    texts = {T: b"", U: b"", "": b""}
    data = b""
    for number in range(4000):
        task = rng.choice([T, U])
        text = b"".join(b"%d %s\n" % (number, b"x" * rng.randrange(400)) for _ in range(rng.randrange(3)))
        data += mark("f", task) + text
        texts[task] += text
        texts[""] += text
    path.write_bytes(data)

    for wanted, text in texts.items():
        got, cursor, rounds = b"", Cursor(), 0
        while True:
            chunk = log_files.read(str(path), cursor, wanted)
            got, cursor, rounds = got + chunk.data, chunk.cursor, rounds + 1
            if chunk.at_end:
                break
        assert got == text
        assert wanted or rounds > 1, "the file is to be longer than a chunk"


def test_what_has_no_end_yet_waits_unless_it_is_asked_for(path: Path) -> None:
    path.write_bytes(b"whole\nhalf")
    first = log_files.read(str(path), Cursor())
    assert (first.data, first.at_end) == (b"whole\n", True)

    with path.open("ab") as file:
        file.write(b" and half\n")
    assert log_files.read(str(path), first.cursor).data == b"half and half\n"
    path.write_bytes(b"whole\nhalf")
    assert log_files.read(str(path), Cursor(), unfinished=True).data == b"whole\nhalf"


def test_another_file_or_an_emptied_one_is_read_from_its_start(path: Path) -> None:
    path.write_bytes(b"old\n" * 10)
    cursor = log_files.read(str(path), Cursor()).cursor
    path.write_bytes(b"less\n")
    assert log_files.read(str(path), cursor).data == b"less\n"
    cursor = log_files.read(str(path), Cursor()).cursor
    other = path.with_suffix(".new")
    other.write_bytes(b"another file\n")
    other.rename(path)
    assert log_files.read(str(path), cursor).data == b"another file\n"


@pytest.mark.parametrize("count", [0, 1, 2, 1000, 5000])
def test_the_last_lines(path: Path, count: int) -> None:
    lines = [b"line %d %s\n" % (number, b"x" * (number % 97)) for number in range(3000)]
    path.write_bytes(b"".join(END + line if number % 10 == 0 else line for number, line in enumerate(lines)))

    cursor = log_files.tail(str(path), count)

    assert log_files.read(str(path), cursor).data == b"".join(lines[len(lines) - min(count, len(lines)) :])
    assert last_lines(b"".join(lines), count) == b"".join(lines[len(lines) - min(count, len(lines)) :])


def test_a_directory_answers_with_words_for_what_is_not_there(tmp_path: Path, path: Path) -> None:
    path.write_bytes(mark("f", T, job="job1", pid="77") + b"one\n")
    place = LogDirectory(str(tmp_path), str(tmp_path), {"number": 1, "name": "n1"}, alive=lambda worker: False)
    (tmp_path / "secret").write_text("no")

    (node,) = place.list({"id": T})["nodes"]
    (file,) = node["files"]
    assert (file["name"], file["job"], file["pid"], file["label"], file["alive"]) == (NAME, "job1", 77, "f", False)
    assert place.list({"job": "job2"})["nodes"][0]["files"] == []
    for name in ("secret", "../" + NAME, "worker-00000000000000ab.out"):
        with pytest.raises(ValueError, match="there is no log file"):
            place.read({"name": name})
    os.chmod(path, 0)
    if os.geteuid():
        with pytest.raises(ValueError, match="cannot be read"):
            place.read({"name": NAME})


def test_following_lists_again_in_proportion_to_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now, sleep=lambda seconds: advance(seconds))
    lists: list[float] = []

    def advance(seconds: float) -> None:
        clock.now += seconds
        if clock.now > 100:
            raise KeyboardInterrupt

    def ask(args: dict[str, Any]) -> dict[str, Any]:
        advance(cost)
        lists.append(clock.now)
        return {"nodes": []}

    monkeypatch.setattr(query, "time", clock)
    for cost, expected in ((0.01, range(40, 51)), (1.0, range(8, 10)), (20.0, range(1, 3))):
        clock.now = 0.0
        lists.clear()
        with pytest.raises(KeyboardInterrupt):
            list(query.read(ask, query.Wanted(task="aa", follow=True), []))
        assert len(lists) in expected, f"a listing that takes {cost} s was made {len(lists)} times in 100 s"
