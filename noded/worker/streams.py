"""The worker's stdout and stderr: plain O_APPEND files, with marks (``logs/marks.py``) that say which call wrote what.

A mark goes out with the first thing that a call writes, and another one at the end of a call that has written; calls
that write nothing cost one attribute. What a worker said last, before it died, is then not taken for the words of an
earlier task.

C code and child processes write to the descriptors themselves. That they did shows in the size of the file, which is
looked at when a call has taken long and when the worker rests, and once it has happened after each call. While the user
has put another file in the place of ours (pytest's capfd does) it gets what is written and nothing else: no marks.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from noded.logs.marks import CUT, Mark

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
    """A call's end must be looked at: something was written that no end has come to yet, or C code has ever written."""
    watch = False
    """C code has written."""
    lock = threading.RLock()
    """For ``said`` to be right it is one for both."""

    def __init__(self, fd: int):
        super().__init__(
            open(fd, "wb", buffering=0, closefd=False), encoding="utf-8", errors="backslashreplace", write_through=True
        )
        self._fd = fd
        ours = os.fstat(fd)
        self._ours = ours.st_dev, ours.st_ino
        self._open: Any = None
        """Whose mark was the last; None: nobody's, a call has ended."""
        self._job_told: str | None = None
        self._parts: dict[Any, list[str]] = {}
        """By author: the beginning of a line, until its end comes. Lines of several threads do not mix."""
        self._midline = False
        """The last thing that went out was the first part of a line."""
        self._known = ours.st_size
        """While nobody's mark is open: up to here it is known who has written."""

    # ------------------------------------------------------------ writing

    def write(self, text: str) -> int:
        """Whole lines go out in one write, so that lines of several processes do not mix."""
        with NamedStream.lock:  # else the mark of one thread could come before the line of another
            author = _author()
            head, newline, tail = text.rpartition("\n")
            if newline:
                before = self._parts.pop(author, None)
                self._out(author, ("".join(before) if before else "") + head + newline)
            if tail:
                self._parts.setdefault(author, []).append(tail)
            NamedStream.said = True
        return len(text)

    def _out(self, author: Any, text: str) -> None:
        if (size := self._size()) >= 0:
            if author is not self._open:
                cut = "\n" if self._midline else ""
                unmarked = self._unmarked(author, size) if self._open is None else ""
                self._open = author
                text = cut + unmarked + self._mark(author, CUT if cut else "").line() + text
            self._midline = not text.endswith("\n")
        super().write(text)

    def _mark(self, author: Any, span: str = "") -> Mark:
        job = pid = ""
        if self._job_told != NamedStream.job:
            self._job_told = job = NamedStream.job
            pid = str(os.getpid())
        return Mark(author.label, author.task_hex, author.actor_hex, span, job, pid)

    def flush(self) -> None:
        parts = self.__dict__.get("_parts")  # it may be called before there are any
        if parts:
            with NamedStream.lock:
                for author in [_author()] if NamedStream.ask is not None else list(parts):
                    if part := parts.pop(author, None):
                        self._out(author, "".join(part))
        super().flush()

    def isatty(self) -> bool:
        return False

    # ------------------------------------------------------------ what is written without us

    def _size(self) -> int:
        """Of our file; -1 while the user has closed the descriptor, or made it another file. Never by a seek, which
        would move the user's place in that one.
        """
        try:
            now = os.fstat(self._fd)
        except OSError:
            return -1
        return now.st_size if (now.st_dev, now.st_ino) == self._ours else -1

    def _unmarked(self, author: Any, size: int) -> str:
        """The mark for what C code has written since the last call's end; empty when it has not."""
        start, self._known = self._known, size
        if self._known <= start:
            return ""
        NamedStream.watch = NamedStream.said = True
        return "\n" + self._mark(author, f"{start},{self._known}").line()

    def over(self, author: Any) -> None:
        """This call has ended, or may have written by other ways."""
        with NamedStream.lock:
            if part := self._parts.pop(author, None):
                self._out(author, "".join(part))
            span = ""
            if self._open is None:
                self.look(author)
                return
            if NamedStream.ask is None or self._open is author:
                text = "\n" if self._midline else ""
                span = CUT if text else ""
            else:
                return  # another one's mark is open
            if self._size() >= 0:  # else a later end closes the mark
                self._open, self._midline = None, False
                self._end(text, author, span)

    def _end(self, text: str, author: Any, span: str = "") -> None:
        super().write(text + Mark(actor=author.actor_hex, span=span).line())
        if (size := self._size()) >= 0:
            self._known = size

    def unsettled(self) -> bool:
        """A mark is open, or the beginning of a line waits: what ends next may have to see to it."""
        return self._open is not None or bool(self._parts)

    def look(self, author: Any) -> None:
        """What C code has written is this one's, unless somebody's mark is open."""
        with NamedStream.lock:
            if self._open is None and (size := self._size()) >= 0 and (text := self._unmarked(author, size)):
                self._end(text, author)


def _author() -> Any:
    ask = NamedStream.ask
    return NamedStream.now if ask is None else ask() or NamedStream.now


_installed: list[NamedStream] = []


def _renew_lock() -> None:
    NamedStream.lock = threading.RLock()


def install() -> None:
    os.register_at_fork(after_in_child=_renew_lock)
    _installed[:] = NamedStream(1), NamedStream(2)
    sys.stdout, sys.stderr = _installed


def call_over(author: Any) -> None:
    """A call has ended that has written, or may have."""
    for stream in _installed:
        try:
            stream.over(author)
        except (OSError, ValueError):
            pass  # its disk is full, or the user has closed it
    with NamedStream.lock:  # else what another call writes meanwhile would be missed at its end
        NamedStream.said = NamedStream.watch or any(stream.unsettled() for stream in _installed)


def flush_parts() -> None:
    """Unfinished lines go out with the answer of what wrote them: its caller may end the program next."""
    if NamedStream.ask is None:  # else calls that run see to themselves
        try:
            for stream in _installed:
                if stream._parts:
                    stream.flush()
        except (OSError, ValueError):
            pass  # as above


def look(*, rests: bool) -> None:
    """By the steward, now and then: whether C code has written. Whose it is can be said when the worker ``rests``;
    else from now on each call is looked at when it ends.
    """
    if NamedStream.ask is not None:
        return
    author = NamedStream.now
    try:
        for stream in _installed:
            if stream._open is None and stream._size() > stream._known:
                if rests:
                    stream.look(author)
                else:
                    NamedStream.watch = NamedStream.said = True
    except (OSError, ValueError):
        pass  # as above
