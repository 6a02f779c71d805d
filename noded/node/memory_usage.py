"""How much memory is in use: of the node, and of workers with all that descends from them.

Of the node: what could not be had back at once, so without page cache, of the machine and of each control group with a
limit that the node is in; the one nearest to its end counts. Of a process: its own pages (anonymous ones, and what of
them is swapped out). Pages of the arena and of files are shared and belong to nobody here.

Only reading, of files of the kernel that are asked for off the event loop: some of them wait for the process that they
are about. ``root`` is where /proc and /sys are, for tests. Who decides what about it: ``memory.py``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from noded.config.machine import control_groups, read
from noded.spawner.protocol import MARK

_PAGE = os.sysconf("SC_PAGE_SIZE")
_STRANGERS_KEPT = 10.0
"""Seconds until a pid that was somebody else's is looked at again: numbers are given anew."""
_LONG_AGO = 2.0
"""After so many seconds without a look, any number may be another process's."""
_ENVIRONMENT = 1 << 17


class Usage(msgspec.Struct, frozen=True):
    used: int
    limit: int
    where: str = "the machine"

    @property
    def part(self) -> float:
        return self.used / self.limit if self.limit else 0.0


def node_usage(root: Path, pids: Iterable[str]) -> Usage:
    """Of the machine, or of the control groups of these processes, whichever has the least left in proportion."""
    return max(_usages(root, pids), key=lambda usage: usage.part)


def room_left(root: Path, pids: Iterable[str], most: Callable[[int], int]) -> int:
    """Bytes until as much is in use as ``most(limit)``, of the machine or of a control group of these processes."""
    return max(0, min(most(usage.limit) - usage.used for usage in _usages(root, pids)))


def _usages(root: Path, pids: Iterable[str]) -> list[Usage]:
    machine = _machine(root)
    found = [machine]
    for path in dict.fromkeys(group for pid in pids for group in control_groups(root, "memory", pid)):
        usage = _group(path, machine.limit, str(path.relative_to(root)))
        if usage is not None:
            found.append(usage)
    return found


def _machine(root: Path) -> Usage:
    known = _numbers(read(root / "proc/meminfo").replace(":", ""))
    total = known.get("MemTotal", 0) << 10
    free = known.get("MemAvailable", known.get("MemFree", 0)) << 10
    return Usage(max(0, total - free), total)


def _group(path: Path, most: int, name: str) -> Usage | None:
    """None where there is no limit, or none that the machine could exceed."""
    text = read(path / "memory.max")
    stat: tuple[str, ...]
    if text:
        used, stat = "memory.current", ("inactive_file", "active_file", "slab_reclaimable")
    else:
        text = read(path / "memory.limit_in_bytes")
        used, stat = "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
    if not text.isdecimal() or not 0 < int(text) < (most or 1 << 60):
        return None
    known = _numbers(read(path / "memory.stat"))
    in_use = _number(read(path / used)) - sum(known.get(key, 0) for key in stat)
    return Usage(max(0, in_use), int(text), f"the control group {name}")


def has_swap(root: Path) -> bool:
    return _numbers(read(root / "proc/meminfo").replace(":", "")).get("SwapTotal", 0) > 0


def own_pages(root: Path, pid: int, *, swap: bool) -> int:
    """Bytes of a process alone; 0 when it has ended. Pages that it shares with one it was forked from count in both."""
    if swap:
        known = _numbers(read(root / f"proc/{pid}/status").replace(":", ""))
        return (known.get("RssAnon", 0) + known.get("VmSwap", 0)) << 10
    words = read(root / f"proc/{pid}/statm").split()
    return max(0, int(words[1]) - int(words[2])) * _PAGE if len(words) > 2 else 0


def own_part(root: Path, pid: int) -> int | None:
    """The same with its part of what it shares with others; None where that cannot be read. This takes the kernel a
    while, and the process cannot change its maps meanwhile.
    """
    known = _numbers(read(root / f"proc/{pid}/smaps_rollup").replace(":", ""))
    return (known["Pss_Anon"] + known.get("SwapPss", 0)) << 10 if "Pss_Anon" in known else None


def belongs(root: Path, pid: int, tag: str, spawner: int) -> bool:
    """It is of this node: its spawner, a child of that, or marked."""
    words = read(root / f"proc/{pid}/stat").rpartition(")")[2].split()
    parent = int(words[1]) if len(words) > 1 else 0
    return spawner in (pid, parent) or bool(_marked(root / f"proc/{pid}/environ", f"{MARK}={tag}:".encode()))


def name_of(root: Path, pid: int) -> str:
    return read(root / f"proc/{pid}/comm") or "?"


def largest(root: Path, count: int) -> list[tuple[int, int, str]]:
    """(bytes, pid, name) of the processes of this machine that have most pages of their own."""
    found = sorted(((own_pages(root, pid, swap=False), pid) for pid in pids(root)), reverse=True)[:count]
    return [(used, pid, name_of(root, pid)) for used, pid in found if used]


def pids(root: Path) -> list[int]:
    try:
        return [int(name) for name in os.listdir(root / "proc") if name.isdecimal()]
    except OSError:
        return []


class Waits(msgspec.Struct):
    """Some of what is read waits for the process that it is about, and that may be for ever."""

    pid: int = 0
    """Whom we wait for."""
    avoid: set[int] = set()
    """Who has kept us waiting too long."""


class Families(msgspec.Struct):
    """Who descends from which worker: by session, by parent, or by the mark in its environment."""

    root: Path
    tag: str
    """Of the node, as in the mark."""
    waits: Waits = msgspec.field(default_factory=Waits)
    _owners: dict[int, str] = {}
    _strangers: set[int] = set()
    _forgotten: float = 0.0
    _looked: float = 0.0

    def look(self, workers: Mapping[int, str]) -> dict[str, list[int]]:
        """Worker -> the pids of it and its descendants, itself first. ``workers``: by pid."""
        running = set(pids(self.root))
        now = time.monotonic()
        if now - self._looked > _LONG_AGO:
            self._owners.clear()
        if now - self._forgotten > _STRANGERS_KEPT or now - self._looked > _LONG_AGO:
            self._forgotten = now
            self._strangers.clear()
        self._looked = now
        self._strangers &= running
        known = set(workers.values())
        self._owners = {p: w for p, w in self._owners.items() if p in running and w in known and p not in workers}
        found = {wid: [pid] for pid, wid in workers.items() if pid in running}
        for pid in sorted(running - self._strangers - self._owners.keys() - workers.keys()):
            owner = self._owner(pid, workers)
            if owner in known:
                self._owners[pid] = owner
            else:
                self._strangers.add(pid)
        for pid, wid in self._owners.items():
            found.setdefault(wid, []).append(pid)
        return found

    def _owner(self, pid: int, workers: Mapping[int, str]) -> str:
        words = read(self.root / f"proc/{pid}/stat").rpartition(")")[2].split()
        if len(words) > 3:
            parent, session = int(words[1]), int(words[3])
            owner = workers.get(session) or workers.get(parent) or self._owners.get(parent)
            if owner:
                return owner
        if pid in self.waits.avoid:
            return ""
        self.waits.pid = pid
        marked = _marked(self.root / f"proc/{pid}/environ", f"{MARK}={self.tag}:".encode())
        self.waits.pid = 0
        return marked


def _marked(path: Path, wanted: bytes) -> str:
    """The worker in the mark of an environment; "" where there is none, or it may not be read."""
    try:
        with open(path, "rb") as file:
            content = b"\0" + file.read(_ENVIRONMENT)
    except OSError:
        return ""
    at = content.find(b"\0" + wanted)
    if at < 0:
        return ""
    return content[at + 1 + len(wanted) :].partition(b"\0")[0].decode("ascii", "replace")


def _numbers(text: str) -> dict[str, int]:
    """Lines of a name and a number."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[1].isdecimal():
            found[words[0]] = int(words[1])
    return found


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0
