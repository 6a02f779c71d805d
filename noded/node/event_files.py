"""The files of what happened on a node: JSON lines in ``events-<number>.jsonl``, the oldest in the lowest number.

One process appends (``events.py``), anybody reads, also when the node is gone. A line that is not whole (its writer was
killed, or the disk was full) is left out. An event's id grows with time, so it is the order of events too, over the
nodes of a cluster and over restarts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

_NAME = re.compile(r"events-(\d{6,})\.jsonl")


class Event(msgspec.Struct, omit_defaults=True):
    id: str
    time: float
    """Seconds since the epoch."""
    severity: str
    source: str
    """What it is about: see ``ClusterEventState``."""
    message: str
    node: str = ""
    """The id of the node that has written it."""
    fields: msgspec.Raw = msgspec.Raw(b"{}")
    """What else is known; ``row`` is what a list shows of the thing from then on."""
    again: bool = False
    """It stands in a file before, which may be gone, and what it tells of lives (``living_events.py``)."""

    def row(self) -> dict[str, Any]:
        """As a list shows it, but for the fields, which cost more."""
        return {
            "event_id": self.id,
            "time": datetime.fromtimestamp(self.time, UTC).isoformat(timespec="milliseconds"),
            "severity": self.severity,
            "source_type": self.source,
            "message": self.message,
        }

    def known(self) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.json.decode(self.fields)
        return found


encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Event).decode


def id_of(microseconds: int, node: int) -> str:
    """``microseconds`` since the epoch; no two events of a node have the same."""
    return f"{microseconds:014x}{node:06x}"


def microseconds_of(event_id: str) -> int:
    return int(event_id[:14], 16)


def path_of(directory: str, number: int) -> str:
    return os.path.join(directory, f"events-{number:06d}.jsonl")


def numbers(directory: str | Path) -> list[int]:
    """Of the files that there are, ascending."""
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    return sorted(int(found[1]) for name in names if (found := _NAME.fullmatch(name)))


def read(directory: str | Path) -> Iterator[Event]:
    """All events, oldest first; those that begin a file are there ``again``. Files that go meanwhile are left out."""
    for number in numbers(directory):
        yield from read_file(directory, number)


def read_file(directory: str | Path, number: int) -> list[Event]:
    """Empty when it is gone."""
    try:
        with open(path_of(str(directory), number), "rb") as file:
            return list(_events(file))
    except OSError:
        return []


def _events(lines: Iterator[bytes]) -> Iterator[Event]:
    for line in lines:
        try:
            yield _decode(line)
        except (msgspec.ValidationError, msgspec.DecodeError):
            continue


def last(directory: str, number: int) -> Event | None:
    """The last event of a file."""
    try:
        with open(path_of(directory, number), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - (1 << 16)))
            events = list(_events(iter(file.read().splitlines(keepends=True))))
    except OSError:
        return None
    return events[-1] if events else None
