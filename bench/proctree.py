"""Processes under this one: find them, weigh them, end them. Linux only, from /proc.

A process that called `adopt_orphans` becomes the parent of everything its descendants leave behind, so the
tree of parents is complete even for daemons that detach. The marks in the environment are a second net. See
proc(5), prctl(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_ARENA_BYTES = 16 << 20  # a shared mapping at least this big holds objects, not bookkeeping


def adopt_orphans() -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed: cannot find detached daemons")


def descendants() -> set[int]:
    """Live processes below this one, and those that carry the same noded mark as one of them."""
    parents = _parents()
    found: set[int] = set()
    frontier = {os.getpid()}
    while frontier:
        frontier = {pid for pid, parent in parents.items() if parent in frontier} - found
        found |= frontier
    tags = {_node_tag(pid) for pid in found} - {b"", _node_tag(os.getpid())}
    if tags:
        found |= {pid for pid in parents if _node_tag(pid) in tags}
    return found - {os.getpid()}


def end_descendants(grace: float) -> int:
    """Wait `grace` seconds for the tree to end by itself, then kill what is left; the number killed."""
    deadline = time.monotonic() + grace
    while (left := _reap_and_list()) and time.monotonic() < deadline:
        time.sleep(0.05)
    killed = len(left)
    deadline = time.monotonic() + 10
    while left and time.monotonic() < deadline:
        for pid in left:
            _signal(pid, signal.SIGKILL)
        time.sleep(0.05)
        left = _reap_and_list()
    if left:
        raise RuntimeError(
            f"processes {sorted(left)} survived SIGKILL for 10 s: look at them with ps -o pid,stat,wchan"
        )
    return killed


def terminate(pids: set[int]) -> None:
    for pid in pids:
        _signal(pid, signal.SIGTERM)


def memory(pids: set[int]) -> dict[str, float]:
    """Megabytes of PSS, the part of it in object arenas, and what the arenas have allocated in all."""
    pss = arena = 0
    arenas: dict[int, int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            pss += _rollup_pss(pid)
            arena += _arena_pss(pid)
            arenas.update(_arena_files(pid))
    mb = 1 << 20
    return {
        "processes": float(len(pids)),
        "pss_mb": (pss - arena) / mb,
        "arena_pss_mb": arena / mb,
        "arena_allocated_mb": sum(arenas.values()) / mb,
    }


def cpu_seconds(pids: set[int]) -> dict[int, float]:
    """User and system time of each process, with that of the children it has waited for."""
    tick = os.sysconf("SC_CLK_TCK")
    used: dict[int, float] = {}
    for pid in pids:
        if fields := _stat(pid):
            used[pid] = sum(int(field) for field in fields[11:15]) / tick
    return used


def resident_bytes() -> int:
    """RSS of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _reap_and_list() -> set[int]:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return descendants()


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from `state` on; empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, UnicodeDecodeError):
        return []


def _parents() -> dict[int, int]:
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := _stat(int(name))) and fields[0] != "Z":
            parents[int(name)] = int(fields[1])
    return parents


def _node_tag(pid: int) -> bytes:
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
    for entry in environ.split(b"\0"):
        if entry.startswith(b"NODED_MARK="):
            return entry.partition(b"=")[2].partition(b":")[0]
    return b""


def _rollup_pss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _arena_pss(pid: int) -> int:
    total = 0
    in_arena = False
    for line in Path(f"/proc/{pid}/smaps").read_text(errors="replace").splitlines():
        key, _, rest = line.partition(":")
        if "-" in key and " " in key:  # the first line of a mapping: range, permissions, offset, device, inode, path
            start, _, end = line.partition(" ")[0].partition("-")
            shared = "/memfd:" in line or "/dev/shm/" in line
            in_arena = shared and int(end, 16) - int(start, 16) >= _ARENA_BYTES
        elif in_arena and key == "Pss":
            total += int(rest.split()[0]) * 1024
    return total


def _arena_files(pid: int) -> dict[int, int]:
    files: dict[int, int] = {}
    folder = Path(f"/proc/{pid}/fd")
    for entry in folder.iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(entry).startswith(("/memfd:", "/dev/shm/")):
                info = entry.stat()
                if info.st_size >= _ARENA_BYTES:
                    files[info.st_ino] = info.st_blocks * 512
    return files
