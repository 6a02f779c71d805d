"""Which workers the kernel has ended for want of memory: read from the counts of their control groups.

Both versions of control groups count kills (``oom_kill`` of memory.events, or of memory.oom_control), whether a limit
or the machine's end of memory was the cause; where there is no such file, as in the root group, the machine's count
(/proc/vmstat) stands in. A count is compared with the one before, and each kill explains one death.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from noded.config.machine import control_groups, read
from noded.spawner.protocol import memory_tree

log = logging.getLogger("noded.oom")

_UNLIMITED = 1 << 60
"""Version 1 says "no limit" with about 2 ** 63."""
_NEARLY = 1 << 20


_DAEMON_SCORE = -900
"""As the spawner's (``spawner/kernel.py``)."""


def protect_daemon(root: Path = Path("/")) -> None:
    """Make the kernel's OOM killer prefer others, where that is allowed. What the daemon starts inherits it, and the
    spawner takes it from its children again.
    """
    try:
        (root / "proc/self/oom_score_adj").write_text(str(_DAEMON_SCORE))
    except OSError as problem:
        log.debug("the daemon cannot protect itself from the OOM killer: %s", problem)


class _Count(msgspec.Struct):
    older: int
    """At the last look but one: a kill is counted before its death is reported, and a look may come between."""
    newer: int


class Kills(msgspec.Struct, frozen=True):
    """The counts before and after a death, None where they cannot be read, and the limit in bytes."""

    before: int | None = None
    after: int | None = None
    limit: int | None = None
    own_limit: bool = False
    """The group is one that noded has made for this worker alone (``memory_groups.py``), and it was full."""


class OomWatch:
    """``root`` is where /proc and /sys are, for tests. ``look()`` is to be called every few seconds."""

    def __init__(self, root: Path = Path("/")):
        self._root = root
        self._counts: dict[Path, _Count] = {}
        self._groups: dict[str, Path] = {}
        """Control groups of a process, as the kernel tells them -> the file that counts."""

    def of(self, pid: int | str) -> Path:
        """The file that counts for this process; that of our own when it has ended already. Kills count from now on."""
        told = read(self._root / "proc" / str(pid) / "cgroup")
        if not told and pid != "self":
            return self.of("self")
        file = self._groups.get(told)
        if file is None:
            file = self._groups[told] = self._find(pid)
        if file not in self._counts:
            count = _count(file) or 0
            self._counts[file] = _Count(count, count)
        return file

    def _find(self, pid: int | str) -> Path:
        """The innermost file that counts kills; the machine's where no group has one."""
        for group in reversed(list(control_groups(self._root, "memory", str(pid)))):
            for name in ("memory.events", "memory.oom_control"):
                if _count(group / name) is not None:
                    return group / name
        return self._root / "proc/vmstat"

    def look(self) -> None:
        """Kills that nobody has died of since the last look but one were others'."""
        for file, count in list(self._counts.items()):
            now = _count(file)
            if now is None:  # the group is gone
                del self._counts[file]
                self._groups = {told: path for told, path in self._groups.items() if path != file}
                continue
            count.older, count.newer = count.newer, max(count.newer, now)

    def died(self, file: Path | None) -> Kills:
        """Of a process whose file this is, or None where nothing is known from before; call once for each SIGKILL."""
        if file is None:
            return Kills()
        known, after = self._counts.get(file), _count(file)
        if known is None or after is None:
            return Kills()
        before = known.older
        if after > before:
            known.older += 1
            known.newer = max(known.newer, known.older)
        return Kills(before, after, _limit(file), _full(file.parent))


def _count(file: Path) -> int | None:
    for line in read(file).splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill" and value.isdecimal():
            return int(value)
    return None


def _full(group: Path) -> bool:
    """One worker's, that has been at its own limit, and not only below one that was."""
    if not group.parent.name.startswith(memory_tree("")):
        return False
    limit, most = read(group / "memory.limit_in_bytes"), read(group / "memory.max_usage_in_bytes")
    if limit.isdecimal() and most.isdecimal():
        return int(most) >= int(limit) - _NEARLY
    return any(line.startswith("oom ") and line != "oom 0" for line in read(group / "memory.events").splitlines())


def _limit(file: Path) -> int | None:
    """The least limit of the file's group and those above it."""
    if file.name == "vmstat":
        return None
    limits = []
    for group in file.parents:
        text = read(group / "memory.max") or read(group / "memory.limit_in_bytes")
        if text.isdecimal() and int(text) < _UNLIMITED:
            limits.append(int(text))
    return min(limits, default=None)
