"""The marks in the output files of workers: which call wrote the bytes that follow.

A mark is a line of its own, ``\\x1e`` and then fields with ``\\x1f`` between, those at the end left out when empty::

    label  task  actor  span  job  pid

``label`` is what drivers print before the lines. Without a task the mark is the end of a call, and what follows is
nobody's (of an actor it stays the actor's). ``span``: ``start,end`` are the bytes before this mark that code without
marks (C, a child process) has written for this task; ``cut``: only the newline before this mark is ours. With a span
that newline is ours too. ``job`` and ``pid`` are in the first mark of a file. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

MARK = b"\x1e"
_FIELD = "\x1f"
CUT = "cut"
_CONTROLS = dict.fromkeys(range(32), "?")


class Mark(NamedTuple):
    label: str = ""
    task: str = ""
    actor: str = ""
    span: str = ""
    job: str = ""
    pid: str = ""

    def line(self) -> str:
        """As it stands in the file, with its newline."""
        label = self.label if self.label.isprintable() else self.label.translate(_CONTROLS)
        return f"\x1e{_FIELD.join((label, *self[1:])).rstrip(_FIELD)}\n"

    @property
    def bytes_before(self) -> tuple[int, int] | None:
        """Where what was written without a mark begins and ends."""
        start, comma, end = self.span.partition(",")
        return (int(start), int(end)) if comma and start.isdecimal() and end.isdecimal() else None


def parse(line: bytes) -> Mark:
    """A mark's line, without its first byte and its newline. Those of older versions have a label alone."""
    return Mark(*line.decode(errors="replace").split(_FIELD)[: len(Mark._fields)])


def ends_task(line: str) -> bool:
    """Whether this line of a file is the mark at the end of a task; those of an actor's calls are not."""
    if not line.startswith("\x1e"):
        return False
    mark = parse(line[1:].encode())
    return not (mark.label or mark.task or mark.actor)


class Piece(NamedTuple):
    mark: Mark | None
    """The one before the text; None for what is before the first."""
    text: bytes
    """Up to the next mark."""
    cut: bool = False
    """The newline at its end is ours."""

    @property
    def exact(self) -> bytes:
        """What was written, and nothing else."""
        return self.text[:-1] if self.cut else self.text

    @property
    def shown(self) -> bytes:
        """Whole lines: our newline stays where it ends one."""
        return self.text[:-1] if self.cut and (self.text == b"\n" or self.text.endswith(b"\n\n")) else self.text


def pieces(data: bytes) -> Iterator[Piece]:
    """Lines, the first of which begins one in the file, cut at the marks."""
    parts = (b"\n" + data).split(b"\n" + MARK)
    mark: Mark | None = None
    text, ended = parts[0][1:], bool(parts[0])
    for part in parts[1:]:
        head, newline, after = part.partition(b"\n")
        following = parse(head)
        # The newline before a mark went with the cut; where two marks follow each other it is the first one's own.
        before = text + b"\n" if ended else b""
        yield Piece(mark, before, bool(following.span and before))
        mark, text, ended = following, after, bool(newline)
    yield Piece(mark, text)
