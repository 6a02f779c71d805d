"""Lines that several workers write alike are shown once, with a count of the rest.

The first one is never held back. What a worker writes again itself is no repetition: only the same line of another
worker within the window is. Nothing here knows the clock or prints.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import msgspec

WINDOW = 5.0
"""Seconds in which others count as repeating a line."""
_KNOWN = 10_000
_LONGEST = 4096
"""Characters; longer lines are not compared."""

Source = tuple[str, int]
"""Address of the node and pid of a worker."""


class Line(NamedTuple):
    name: str
    source: Source
    is_error: bool
    text: str


class _Seen(msgspec.Struct, eq=False):
    since: float
    sources: set[Source] = set()
    last: Line | None = None
    count: int = 0
    """Of repetitions that are not shown yet."""


class Repeats:
    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[bool, str], _Seen] = OrderedDict()

    def is_repeated(self, name: str, source: Source, is_error: bool, text: str, *, now: float) -> bool:
        """True for one that is counted, and comes back from ``over``. The arguments are those of a Line."""
        if not text or len(text) > _LONGEST:
            return False
        key = is_error, text
        seen = self._seen.get(key)
        if seen is None:
            self._seen[key] = _Seen(now, {source})
            return False
        if seen.sources == {source}:
            return False
        seen.sources.add(source)
        seen.last = Line(name, source, is_error, text)
        seen.count += 1
        return True

    def over(self, now: float) -> list[tuple[Line, int]]:
        """Repetitions whose window has passed (all, with an infinite ``now``), oldest first: the last of each line, and
        how many there were.
        """
        found: list[tuple[Line, int]] = []
        while self._seen:
            key, seen = next(iter(self._seen.items()))
            if now - seen.since < WINDOW and len(self._seen) <= _KNOWN:
                break
            del self._seen[key]
            if seen.count and seen.last is not None:
                found.append((seen.last, seen.count))
        return found

    def next_end(self) -> float | None:
        """When there will be something ``over``."""
        ends = (seen.since + WINDOW for seen in self._seen.values() if seen.count)
        return next(ends, None)
