"""Whose process ends when a node runs out of memory, before the kernel picks one by itself.

As Ray's policy: what can be run again goes first, by groups of what one process has submitted, of the largest group the
newest. Two things differ. The largest group is the one that *uses* most, and what uses next to nothing beside the
others is left alone, because its end would help nobody. And an end costs no retry only where another task runs on: so
a task that is too large for the node is an error after a while, and no loop.

Who uses how much, and who acts on this: ``node/memory.py``. When the next run may begin: ``memory_room.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class Candidate(msgspec.Struct, frozen=True):
    """A worker with what it runs."""

    worker: str
    group: bytes
    """Who has submitted it."""
    retriable: bool
    since: float
    """When the worker was given to it."""
    used: int
    """Bytes, with its descendants."""
    actor: bool = False


class Victim(msgspec.Struct, frozen=True):
    worker: str
    free: bool
    """Its next run costs no retry."""
    group: int
    """How many of its group use memory, and how much."""
    group_used: int


def pick(candidates: Sequence[Candidate], least: int) -> Victim | None:
    """The one to end; None where nobody uses ``least`` bytes: then others than noded's workers have the memory."""
    large = [each for each in candidates if each.used >= least]
    if not large:
        return None
    groups: dict[bytes, list[Candidate]] = {}
    for each in [x for x in large if x.retriable] or large:
        groups.setdefault(each.group, []).append(each)
    group = max(groups.values(), key=lambda g: (_sum(g), max(x.since for x in g), max(x.worker for x in g)))
    total = _sum(group)
    newest = max(
        (each for each in group if 2 * len(group) * each.used >= total), key=lambda each: (each.since, each.worker)
    )
    others = any(not each.actor for each in large if each is not newest)
    return Victim(newest.worker, newest.retriable and others, len(group), total)


def _sum(group: Sequence[Candidate]) -> int:
    return sum(each.used for each in group)
