"""The worker's stdout and stderr: plain O_APPEND files, with marks (``log_marks.py``) that say which call wrote what.

A mark goes out with the first thing that a call writes, and another one at the end of a call that has written; calls
that write nothing cost one attribute. What a worker said last, before it died, is then not taken for the words of an
earlier task.

C code and child processes write to the descriptors themselves. That they did shows in the size of the file, which is
looked at when a call has taken long and when the worker rests, and once it has happened after each call.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from noded.log_marks import CUT, Mark

LOOK_AFTER = 0.001
"""Seconds. At the end of calls that take longer it is looked what C code has written in them."""


class Author(NamedTuple):
    """Who writes outside of calls; in one it is an Execution, which has the same attributes."""

    label: str
    task_hex: str = ""
    actor_hex: str = ""


class NamedStream(io.TextIOWrapper):
    """Line-buffered text over a descriptor; knows who writes. What is shared by both streams is in the class."""

    now: Any = Author("")
    """Set by the executor before each call: a plain attribute write."""
    ask: Callable[[], Any] | None = None
    """Of actors that run several calls at once: tells which of them asks, None for none."""
    job = ""
    said = False
    """A call's end must be looked at: something was written since the last one, or C code has ever written."""
    watch = False
    """C code has written."""

    def __init__(self, fd: int):
        super().__init__(
            open(fd, "wb", buffering=0, closefd=False), encoding="utf-8", errors="backslashreplace", write_through=True
        )
        self._fd = fd
        self._open: Any = None
        """Whose mark was the last; None: nobody's, a call has ended."""
        self._job_told: str | None = None
        self._part: list[str] = []
        self._midline = False
        """The last thing that went out was the first part of a line."""
        self._known = self._size()
        """While nobody's mark is open: up to here it is known who has written."""
        self._lock = threading.RLock()
        os.register_at_fork(after_in_child=self._renew_lock)

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()

    # ------------------------------------------------------------ writing

    def write(self, text: str) -> int:
        """Whole lines go out in one write, so that lines of several processes or threads do not mix."""
        if NamedStream.ask is None:
            author = NamedStream.now
            if author is not self._open and text:
                self._begin(author)
            return self._put(text)
        with self._lock:  # else the mark of one thread could come before the line of another
            author = NamedStream.ask() or NamedStream.now
            if author is not self._open and text:
                self._begin(author)
            return self._put(text)

    def _put(self, text: str) -> int:
        head, newline, tail = text.rpartition("\n")
        if newline:
            super().write("".join(self._part) + head + newline)
            self._part.clear()
            self._midline = False
        if tail:
            self._part.append(tail)
        NamedStream.said = True
        return len(text)

    def _begin(self, author: Any) -> None:
        """The mark goes out with what it is for."""
        cut = self._finish_line()
        unmarked = self._unmarked(author) if self._open is None else ""
        self._open = author
        self._part.append(cut + unmarked + self._mark(author, CUT if cut else "").line())

    def _finish_line(self) -> str:
        """What ends the line of the one before; empty where it has ended."""
        if not self._part and not self._midline:
            return ""
        text = "".join(self._part) + "\n"
        self._part.clear()
        self._midline = False
        return text

    def _mark(self, author: Any, span: str = "") -> Mark:
        job = pid = ""
        if self._job_told != NamedStream.job:
            self._job_told = job = NamedStream.job
            pid = str(os.getpid())
        return Mark(author.label, author.task_hex, author.actor_hex, span, job, pid)

    def flush(self) -> None:
        part = self.__dict__.get("_part")
        if part:
            super().write("".join(part))
            part.clear()
            self._midline = True
        super().flush()

    def isatty(self) -> bool:
        return False

    # ------------------------------------------------------------ what is written without us

    def _size(self) -> int:
        try:
            return os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:  # the user has closed it, or made it something else
            return 0

    def _unmarked(self, author: Any) -> str:
        """The mark for what C code has written since the last call's end; empty when it has not."""
        start, self._known = self._known, self._size()
        if self._known <= start:
            return ""
        NamedStream.watch = NamedStream.said = True
        return "\n" + self._mark(author, f"{start},{self._known}").line()

    def over(self, author: Any) -> None:
        """This call has ended, or may have written by other ways."""
        with self._lock:
            if self._open is None:
                text = self._unmarked(author)
                span = ""
            elif NamedStream.ask is None or self._open is author:
                text = self._finish_line()
                span = CUT if text else ""
            else:
                return  # another one's mark is open
            if text or self._open is not None:
                self._open = None
                super().write(text + Mark(actor=author.actor_hex, span=span).line())
                self._known = self._size()


_installed: list[NamedStream] = []


def install() -> None:
    _installed[:] = NamedStream(1), NamedStream(2)
    sys.stdout, sys.stderr = _installed


def call_over(author: Any) -> None:
    """A call has ended that has written, or may have."""
    try:
        for stream in _installed:
            stream.over(author)
    except (OSError, ValueError):
        pass  # its disk is full, or the user has closed it
    NamedStream.said = NamedStream.watch or any(stream._open is not None for stream in _installed)


def rest() -> None:
    """Unfinished lines go out with the answer of what wrote them: its caller may end the program next. And it is time
    to look what C code has written.
    """
    for stream in _installed:
        if stream._part:
            stream.flush()
        elif stream._open is None and stream._size() != stream._known:
            call_over(NamedStream.now)
