"""One look at the memory of a node and its workers, in a thread: some of what is read waits for other processes.

``Looker.look`` is told what is wanted and answers with what it has seen; what follows from that is decided on the event
loop (``memory.py``). It also keeps the kernel's limits as they are to be (``memory_groups.py``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from pathlib import Path

import msgspec

from noded.node import memory_usage as usage
from noded.node.memory_groups import MemoryGroups

_NAMED = 3
_LARGEST = 5
_FEW, _EXACT_MOST = 16, 0.3
"""Processes, and seconds: beyond these what is shared is not told exactly."""
_EXACT_SECONDS, _EXACT_PART, _EXACT_LONGEST = 0.2, 10.0, 1.2
"""What several processes use together is found out exactly as often as this, or so seldom that it takes a tenth of the
time; but often enough.
"""


OFTEN, SELDOM = 0.1, 1.0
_FASTEST = 1 << 30
"""Bytes a second that are taken to be used up, when it is a question of when to look again."""


def pause(used: int, threshold: int) -> float:
    """Seconds until the node is to be looked at again."""
    return min(max((threshold - used) / _FASTEST, OFTEN), SELDOM)


class Watched(msgspec.Struct, frozen=True):
    """A worker."""

    worker: str
    pid: int
    lease: object = None
    """What it runs, so that nobody is taken for its successor."""
    limit: int = 0
    """Bytes; 0: none."""


class Plan(msgspec.Struct, frozen=True):
    workers: tuple[Watched, ...]
    part: float
    """Of the node's memory that may be in use; from 1 on nobody minds."""
    spawner: int
    wanted: Collection[str] = ()
    """Workers whose use is asked for, in any case."""


class Over(msgspec.Struct, frozen=True):
    """A worker above its limit."""

    watched: Watched
    used: int
    processes: list[tuple[int, int, str]]
    """(bytes, pid, name), the largest first."""


class Seen(msgspec.Struct):
    node: usage.Usage
    threshold: int
    pressed: bool
    over: list[Over] = []
    uses: dict[str, int] = {}
    """Bytes by worker, with its descendants: of all where memory is short, else of those that were asked for."""
    largest: list[tuple[int, int, str]] = []
    """Where memory is short: the largest processes of the machine."""
    entered: list[str] = []
    """Workers that are in a control group of their own now."""
    killed: list[Watched] = []
    """Workers of whose processes the kernel has ended one, at the limit of their group."""
    kernel_limits: str = ""
    """Why there are none; "" where there are, or nobody needs them."""


class Looker:
    def __init__(self, root: Path, tag: str, avoid: set[int] | None = None):
        self._root = root
        self._tag = tag
        self.waits = usage.Waits(avoid=set(avoid or ()))
        self._swap = usage.has_swap(root)
        self._families = usage.Families(root, tag, self.waits)
        self._groups = MemoryGroups(root, tag)
        self._known: usage.Usage | None = None
        self._due = 0.0
        self._spawner = 0
        """Whose groups are open."""
        self._kills: dict[str, int] = {}
        self._asked = 0
        """Who was asked whether there are any."""
        self._exact: dict[str, tuple[float, int]] = {}
        """Worker -> what it uses without what would be counted twice, and when that is to be found out again."""

    def look(self, plan: Plan) -> Seen:
        node = self._node(plan)
        threshold = int(node.limit * plan.part)
        seen = Seen(node, threshold, plan.part < 1 and node.used > threshold)
        limited = [each for each in plan.workers if each.limit]
        self._keep_limits(plan, seen, bool(limited))
        if not (limited or plan.wanted or seen.pressed):
            return seen
        families = self._families.look({each.pid: each.worker for each in plan.workers})
        sizes = {}
        for each in plan.workers:
            if each.limit or seen.pressed or each.worker in plan.wanted:
                pids = families.get(each.worker, ())
                sizes[each.worker] = {pid: usage.own_pages(self._root, pid, swap=self._swap) for pid in pids}
                seen.uses[each.worker] = sum(sizes[each.worker].values())
        for each in limited:
            used = self._used(each, sizes[each.worker])
            if used > each.limit:
                seen.over.append(Over(each, used, self._named(sizes[each.worker])))
        self._exact = {wid: known for wid, known in self._exact.items() if wid in families}
        if seen.pressed:
            for wid, used in seen.uses.items():
                if len(sizes[wid]) > 1:
                    seen.uses[wid] = min(used, self._exactly(sizes[wid]))
            seen.largest = usage.largest(self._root, _LARGEST)
        return seen

    def _node(self, plan: Plan) -> usage.Usage:
        """Looks that are for the sake of workers with limits come too often for this."""
        node, now = self._known, time.monotonic()
        if node is None or now >= self._due:
            node = self._known = usage.node_usage(self._root, ("self", str(plan.spawner)))
            self._due = now + pause(node.used, int(node.limit * plan.part)) / 2
        return node

    def _used(self, watched: Watched, sizes: dict[int, int]) -> int:
        """The sum at first, which is cheap, and only where that is too much the truth: forks share pages."""
        total = sum(sizes.values())
        if total <= watched.limit or len(sizes) < 2:
            return total
        began = time.monotonic()
        due, exact = self._exact.get(watched.worker, (0.0, 0))
        if began >= due:
            exact = self._exactly(sizes, watched.limit)
            if exact > watched.limit:  # one that ends meanwhile leaves its part to others, who may be counted after it
                exact = min(exact, self._exactly(sizes, watched.limit))
            now = time.monotonic()
            pause = min(max(_EXACT_SECONDS, _EXACT_PART * (now - began)), _EXACT_LONGEST)
            self._exact[watched.worker] = now + pause, exact
        return exact

    def _exactly(self, sizes: dict[int, int], enough: int = 0) -> int:
        """Of many processes only until it is more than ``enough``, and not for ever: those that fork all the time are
        hard to look at.
        """
        total = counted = 0
        until = time.monotonic() + _EXACT_MOST
        for number, (pid, size) in enumerate(sorted(sizes.items(), key=lambda each: -each[1])):
            if number > _FEW and enough and total > enough:
                break
            if number > _FEW and time.monotonic() > until:  # the others as the first ones
                return total + (sum(sizes.values()) - counted) * total // max(1, counted)
            part = self._part(pid) if size else 0
            if part is None:  # it has ended, or this kernel does not tell
                part = usage.own_pages(self._root, pid, swap=self._swap)
            total += min(part, size)
            counted += size
        return total

    def _part(self, pid: int) -> int | None:
        if pid in self.waits.avoid:
            return None
        self.waits.pid = pid
        part = usage.own_part(self._root, pid)
        self.waits.pid = 0
        return part

    def _named(self, sizes: dict[int, int]) -> list[tuple[int, int, str]]:
        largest = sorted(((size, pid) for pid, size in sizes.items()), reverse=True)[:_NAMED]
        return [(size, pid, usage.name_of(self._root, pid)) for size, pid in largest if size]

    def _keep_limits(self, plan: Plan, seen: Seen, limited: bool) -> None:
        groups = self._groups
        asked, self._asked = self._asked == plan.spawner, plan.spawner
        if self._spawner != plan.spawner and (limited or (not asked and groups.left_behind(plan.spawner))):
            self._spawner = plan.spawner
            groups.open(
                plan.spawner,
                lambda pid: pid == os.getpid() or usage.belongs(self._root, pid, self._tag, plan.spawner),
            )
        if not self._spawner:
            return
        seen.kernel_limits = groups.why_not
        if not groups.usable:
            return
        groups.keep_only({each.worker for each in plan.workers})
        for each in plan.workers:
            if groups.limit(each.worker, each.pid, each.limit):
                seen.entered.append(each.worker)
                self._kills[each.worker] = 0
            if each.limit:
                kills = groups.kills(each.worker)
                if kills > self._kills.setdefault(each.worker, kills):
                    seen.killed.append(each)
                self._kills[each.worker] = kills
        if len(self._kills) > 2 * len(plan.workers) + 16:
            self._kills = {each.worker: self._kills.get(each.worker, 0) for each in plan.workers}
