"""A worker's output streams, of calls that run at once, and while the user has put another file in their place."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from noded.logs.marks import pieces
from noded.worker import streams
from noded.worker.streams import Author, NamedStream


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NamedStream]:
    """A worker's only stream, to the file ``out``."""
    fd = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    for name in ("now", "ask", "said", "watch"):
        monkeypatch.setattr(NamedStream, name, getattr(NamedStream, name))
    stream = NamedStream(fd)
    monkeypatch.setattr(streams, "_installed", [stream])
    yield stream
    stream.detach().close()
    os.close(fd)


def by_author(path: Path) -> dict[str, bytes]:
    """What each one has written, to the byte."""
    found: dict[str, bytes] = {}
    for piece in pieces(path.read_bytes()):
        if piece.mark is not None and piece.text:
            found[piece.mark.label] = found.get(piece.mark.label, b"") + piece.exact
    return found


def end(author: Author) -> None:
    """As the executor does for a call that took no time."""
    if NamedStream.said:
        streams.call_over(author)


def test_the_end_of_another_call_does_not_lose_a_line_that_has_none(out: NamedStream, tmp_path: Path) -> None:
    first, other = Author("first", "aa"), Author("other", "bb")
    running = [first]
    NamedStream.ask = lambda: running[0]
    out.write("no end")
    running[0] = other
    end(other)
    end(first)
    assert by_author(tmp_path / "out") == {"first": b"no end"}
    assert not NamedStream.said, "calls that write nothing cost nothing again"


def test_no_call_of_many_threads_is_lost(out: NamedStream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, current = 300, threading.local()
    NamedStream.ask = lambda: current.call

    def work(thread: int) -> None:
        for number in range(calls):
            current.call = Author(f"{thread}.{number}", "aa")
            if number % 2:
                out.write("no end")
            time.sleep(0)  # others run
            end(current.call)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    found = by_author(tmp_path / "out")
    assert found == {f"{thread}.{number}": b"no end" for thread in range(4) for number in range(1, calls, 2)}


def test_another_file_in_its_place_gets_what_is_written_and_no_marks(out: NamedStream, tmp_path: Path) -> None:
    first, second = Author("first", "aa"), Author("second", "bb")
    fd, kept = out.fileno(), os.dup(out.fileno())
    NamedStream.now = first
    out.write("before\n")
    with open(tmp_path / "captured", "w+b", buffering=0) as captured:
        os.dup2(captured.fileno(), fd)
        os.write(fd, b"by C\n")
        captured.seek(0)
        streams.look(rests=False)
        streams.look(rests=True)
        streams.call_over(first)
        assert captured.tell() == 0, "where its user reads has not moved"
        NamedStream.now = second
        out.write("by Python, no end")
        streams.call_over(second)
        os.dup2(kept, fd)
        os.close(kept)
    assert (tmp_path / "captured").read_bytes() == b"by Python, no end", "it was written over what C wrote"
    out.write("after\n")
    streams.call_over(second)
    assert by_author(tmp_path / "out") == {"first": b"before\n", "second": b"after\n"}
    assert not NamedStream.watch and not NamedStream.said
