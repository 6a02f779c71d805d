"""The worker's stdout and stderr: plain O_APPEND files, with marks that say whose lines follow.

A mark is a line ``\\x1e<name>`` written before the first output after the name changed. C code that writes to
the descriptors itself is counted to the last name. On stderr the end of a task that has written is marked too, without
a name: what a worker said last, before it died, is then not taken for the words of an earlier task. The log monitor
takes the marks out again.
"""

from __future__ import annotations

import io
import sys
from typing import Any

MARK = "\x1e"


class NamedStream(io.TextIOWrapper):
    """Line-buffered text over a descriptor; knows the name of what runs."""

    name_now = ""
    """Shared by both streams: set by the executor, a plain attribute write."""
    said_error = False
    """Something has gone to stderr since the last task ended: looked at after each task, so it must cost nothing."""

    def __init__(self, fd: int):
        super().__init__(
            open(fd, "wb", buffering=0, closefd=False), encoding="utf-8", errors="backslashreplace", write_through=True
        )
        self._said = ""
        self._is_error = fd == 2
        self._part: list[str] = []
        self._midline = False
        """The last thing that went out was the first part of a line."""

    def write(self, text: str) -> int:
        """Whole lines go out in one write, so that lines of several processes or threads do not mix."""
        if NamedStream.name_now != self._said and text:
            self.mark(NamedStream.name_now)
        head, newline, tail = text.rpartition("\n")
        if newline:
            super().write("".join(self._part) + head + newline)
            self._part.clear()
            self._midline = False
        if tail:
            self._part.append(tail)
        if self._is_error:
            NamedStream.said_error = True
        return len(text)

    def mark(self, name: str) -> None:
        """Other lines follow than those before."""
        if self._part or self._midline:
            super().write("".join(self._part) + "\n")
            self._part.clear()
            self._midline = False
        self._said = name
        super().write(f"{MARK}{name}\n")

    def flush(self) -> None:
        part = self.__dict__.get("_part")
        if part:
            super().write("".join(part))
            part.clear()
            self._midline = True
        super().flush()

    def isatty(self) -> bool:
        return False


_installed: list[Any] = []


def install() -> None:
    _installed[:] = NamedStream(1), NamedStream(2)
    sys.stdout, sys.stderr = _installed


def mark_end() -> None:
    """A task that has written to stderr is over."""
    NamedStream.said_error = False
    try:
        _installed[1].mark("")
    except (OSError, ValueError):
        pass  # its disk is full, or the user has closed it


def flush_parts() -> None:
    """Unfinished lines go out with the answer of what wrote them: its caller may end the program next."""
    for stream in _installed:
        if stream._part:
            stream.flush()
