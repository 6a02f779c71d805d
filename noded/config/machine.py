"""What this process may use of the machine: CPUs and memory, with the limits of its control groups.

Both versions of control groups count, and every group on the way up, as the kernel enforces them all. `root`
is where /proc and /sys are, for tests. GPUs are not counted here.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

_QUOTA = re.compile(r"(\d+) ([1-9]\d*)")


def cpu_count(root: Path = Path("/")) -> int:
    """CPUs this process may run on, at most its quota rounded up."""
    limit: float = len(os.sched_getaffinity(0))
    for group in control_groups(root, "cpu"):
        quota = read(group / "cpu.max")
        if not quota:
            quota = f"{read(group / 'cpu.cfs_quota_us')} {read(group / 'cpu.cfs_period_us')}"
        if found := _QUOTA.fullmatch(quota):  # "max" and -1 mean no quota
            limit = min(limit, int(found[1]) / int(found[2]))
    return max(1, math.ceil(limit))


def total_memory(root: Path = Path("/")) -> int:
    """Bytes: what the machine has, at most the least limit."""
    limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for group in control_groups(root, "memory"):
        text = read(group / "memory.max") or read(group / "memory.limit_in_bytes")
        if text.isdecimal():
            limit = min(limit, int(text))
    return limit


def control_groups(root: Path, controller: str, pid: str = "self") -> Iterator[Path]:
    """Directories of the groups a process is in and of those above them, the outermost first."""
    mounts = root / "sys/fs/cgroup"
    for line in read(root / "proc" / pid / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            tops = [mounts / controller]
        elif not controllers:
            tops = [mounts, mounts / "unified"]
        else:
            continue
        # In a container the path may be the host's: then only the top exists, and it is our own group.
        inner = () if ".." in path else Path(path.lstrip("/")).parts
        for top in tops:
            yield from (top.joinpath(*inner[:depth]) for depth in range(len(inner) + 1))


def read(path: Path) -> str:
    """The text of a file, "" when it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
