"""What `/metrics` shows, as plain data: families of samples, made by the components and rendered by the HTTP side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import msgspec


class Histogram(NamedTuple):
    """``buckets``: counts up to each of the boundaries, and above the last; not summed up."""

    boundaries: tuple[float, ...]
    buckets: tuple[float, ...]
    sum: float


Value = float | Histogram


class Family(msgspec.Struct):
    """``samples``: pairs of labels and value. A counter's name ends with ``_total``."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    samples: list[tuple[Mapping[str, str], Value]] = []


def gauge(name: str, help: str, value: float | None = None, **labels: str) -> Family:
    """Without a value an empty one, to be filled."""
    return Family(name, "gauge", help, [] if value is None else [(labels, value)])


def counter(name: str, help: str, value: float | None = None, **labels: str) -> Family:
    return Family(name, "counter", help, [] if value is None else [(labels, value)])


def by_label(family: Family, label: str, values: Mapping[str, float] | Iterable[tuple[str, float]]) -> Family:
    """The family with one sample for each."""
    pairs = values.items() if isinstance(values, Mapping) else values
    family.samples += [({label: name}, value) for name, value in pairs]
    return family
