"""A control group for each worker whose lease has a ``memory=``, where the daemon may make one.

The monitor (``memory.py``) looks ten times a second and ends what is above its limit. These groups are for what is
faster than that: what has gone some way beyond the limit before the monitor has seen it, the kernel ends, and nobody
else's memory is touched. The way beyond is for what a group counts and a limit does not mean: page tables, stacks, page
cache that is in use at the moment. Page cache that is not goes first: who reads large files is not ended.

They lie in the memory group of the node's spawner, whose children the workers are, under ``noded-<tag>/<worker id>``.
In version 2 a group with processes of its own can have no such groups: then the node's processes move into a
neighbouring one first, if nobody else is in theirs (as in a delegated unit of systemd). Where nothing of this may be
written there are no groups, and the monitor has to do. The spawner removes what is left at its end
(``spawner/groups.py``), whatever has become of the daemon.

Writing here takes the kernel some milliseconds: not for the event loop. ``root`` is where /proc and /sys are, for
tests.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection
from pathlib import Path

from noded.config.machine import control_groups, read
from noded.spawner.protocol import REST, memory_tree

log = logging.getLogger("noded.memory")

_BEYOND = 64 << 20
_BEYOND_PART = 8
_UNKNOWN = -1


def kernel_limit(limit: int) -> int:
    """What the kernel is told where the monitor holds to ``limit``."""
    return limit + max(_BEYOND, limit // _BEYOND_PART)


class MemoryGroups:
    def __init__(self, root: Path, tag: str):
        self._root = root
        self._tag = tag
        self._top: Path | None = None
        """Where the groups of the workers are."""
        self._second = False
        """They are of version 2."""
        self._limits: dict[str, int] = {}
        """What each worker's group has now, 0: none."""
        self.why_not = "nobody has looked yet"
        """Why there are none; "" where there are."""

    @property
    def usable(self) -> bool:
        return self._top is not None

    def open(self, spawner: int, ours: Callable[[int], bool]) -> None:
        """Find or make the place for them. ``ours(pid)``: it is this node's, and may be moved."""
        self._top, self._limits = None, {}
        base = self._base(spawner)
        if base is None:
            self.why_not = "there is no control group for memory here"
            return
        self._second = not (base / "memory.limit_in_bytes").exists()
        top = base / memory_tree(self._tag)
        try:
            if self._second:
                self._hand_down(base, ours)
            top.mkdir(exist_ok=True)
            if self._second:
                _write(top / "cgroup.subtree_control", "+memory")
        except OSError as problem:
            self.why_not = f"control groups cannot be made in {base}: {problem.strerror or problem}"
            return
        self._top, self.why_not = top, ""
        # Of the daemon before us: what they have is not known.
        self._limits = {path.name: _UNKNOWN for path in top.iterdir() if path.is_dir()}

    def left_behind(self, spawner: int) -> bool:
        """There are some already, of the daemon before us."""
        base = self._base(spawner)
        return base is not None and (base / memory_tree(self._tag)).is_dir()

    def _base(self, spawner: int) -> Path | None:
        """The innermost group of the spawner that counts memory."""
        for path in reversed(list(control_groups(self._root, "memory", str(spawner)))):
            if (path / "memory.limit_in_bytes").exists() or "memory" in read(path / "cgroup.controllers").split():
                return path.parent if path.name == REST else path
        return None

    @staticmethod
    def _hand_down(base: Path, ours: Callable[[int], bool]) -> None:
        """Let groups below this one limit memory, which none may that has processes. The root of all may."""
        if "memory" in read(base / "cgroup.subtree_control").split():
            return
        if read(base / "cgroup.type"):  # not the root
            inside = {int(pid) for pid in read(base / "cgroup.procs").split()}
            if strangers := [pid for pid in inside if not ours(pid)]:
                raise OSError(0, f"processes of others are in it, as {min(strangers)}")
            rest = base / REST
            rest.mkdir(exist_ok=True)
            for pid in inside:
                _write(rest / "cgroup.procs", str(pid))
        _write(base / "cgroup.subtree_control", "+memory")

    def limit(self, wid: str, pid: int, limit: int) -> bool:
        """Put a worker under this limit, 0: none; True when it has come into a group of its own by that. What cannot
        be is left to the monitor.
        """
        if self._top is None or (wid not in self._limits and not limit) or self._limits.get(wid) == limit:
            return False
        group, new = self._top / wid, wid not in self._limits
        try:
            if new:
                group.mkdir(exist_ok=True)
            self._set(group, limit)
            if new:
                _write(group / "cgroup.procs", str(pid))
        except OSError as problem:
            log.debug("worker %s is not put under a limit of the kernel: %s", wid, problem)
            if new:
                _remove(group)
            else:
                self._limits[wid] = limit  # or it would be tried for ever
            return False
        self._limits[wid] = limit
        return new

    def _set(self, group: Path, limit: int) -> None:
        amount = kernel_limit(limit) if limit else -1
        if self._second:
            if limit and int(read(group / "memory.current") or 0) > amount:
                return  # the kernel would end it for what others have kept there
            _write(group / "memory.oom.group", "1")
            _write(group / "memory.max", str(amount) if limit else "max")
            return
        # With swap, if the kernel counts that: never less than without, at no moment.
        names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        if not limit or self._limits.get(group.name):
            _write(group / names[1], "-1", optional=True)
        _write(group / names[0], str(amount))
        if limit:
            _write(group / names[1], str(amount), optional=True)

    def kills(self, wid: str) -> int:
        """How many processes the kernel has ended in a worker's group for want of memory."""
        if self._top is None or not self._limits.get(wid):
            return 0
        name = "memory.events" if self._second else "memory.oom_control"
        for line in read(self._top / wid / name).splitlines():
            key, _, value = line.partition(" ")
            if key == "oom_kill" and value.isdecimal():
                return int(value)
        return 0

    def keep_only(self, living: Collection[str]) -> None:
        """Remove the groups of workers that have ended."""
        if self._top is None:
            return
        for wid in [wid for wid in self._limits if wid not in living]:
            if _remove(self._top / wid):
                del self._limits[wid]


def _write(path: Path, text: str, *, optional: bool = False) -> None:
    try:
        # Not to be made where it is not: the kernel makes these files.
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    except FileNotFoundError:
        if optional:
            return
        raise
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _remove(group: Path) -> bool:
    """With groups in it; False while something runs in it."""
    try:
        for inner in [path for path in group.iterdir() if path.is_dir()]:
            _remove(inner)
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
