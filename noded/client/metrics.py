"""The values of the user's metrics in this process: what ``noded.util.metrics`` records.

Nothing leaves the process yet: ``snapshot()`` is what a node's metrics agent will read. Metrics of the same
kind and name share their values, whichever object recorded them.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Mapping, Sequence
from typing import Any

Tags = tuple[tuple[str, str], ...]
"""Sorted pairs of key and value."""


class Series:
    """The values of one metric, by tags."""

    def __init__(self, kind: str, name: str, description: str, boundaries: Sequence[float] = ()):
        self.kind = kind
        self.name = name
        self.description = description
        self.boundaries = sorted(boundaries)
        self.values: dict[Tags, Any] = {}
        """A number; for a histogram the counts per bucket (one more than boundaries) and, last, the sum."""


_lock = threading.Lock()
_series: dict[tuple[str, str], Series] = {}


def series(kind: str, name: str, description: str, boundaries: Sequence[float] = ()) -> Series:
    """The one of this kind and name, made at first need."""
    with _lock:
        found = _series.get((kind, name))
        if found is None or (boundaries and found.boundaries != sorted(boundaries)):
            found = _series[kind, name] = Series(kind, name, description, boundaries)
        return found


def tags_of(tags: Mapping[str, str]) -> Tags:
    return tuple(sorted(tags.items()))


def add(into: Series, tags: Tags, amount: float) -> None:
    with _lock:
        into.values[tags] = into.values.get(tags, 0.0) + amount


def put(into: Series, tags: Tags, value: float) -> None:
    with _lock:
        into.values[tags] = float(value)


def observe(into: Series, tags: Tags, value: float) -> None:
    """A bucket counts what is at most its boundary and above the one before; the last one all that is above."""
    with _lock:
        found = into.values.get(tags)
        if found is None:
            found = into.values[tags] = [0] * (len(into.boundaries) + 1) + [0.0]
        found[bisect.bisect_left(into.boundaries, value)] += 1
        found[-1] += value


def snapshot() -> list[dict[str, Any]]:
    """Every metric with its values so far, as plain data."""
    with _lock:
        return [
            {
                "kind": one.kind,
                "name": one.name,
                "description": one.description,
                "boundaries": list(one.boundaries),
                "values": [(dict(tags), _plain(one, value)) for tags, value in one.values.items()],
            }
            for one in _series.values()
        ]


def _plain(one: Series, value: Any) -> Any:
    if one.kind != "histogram":
        return value
    return {"buckets": list(value[:-1]), "count": sum(value[:-1]), "sum": value[-1]}
