"""What a test has left behind: processes, descriptors of this process, segments in /dev/shm.

Several pytest processes run at once, so all is attributed: a process counts when it descends from this one
or was started with one of this session's directories (they are unique to it); a segment counts unless a
process of somebody else holds it. Threads are not checked.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from harness.processes import Process, all_processes, ancestors, descendants, kill, mentioning

# Started once by multiprocessing, serves the whole process until it ends.
_LIFELONG = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
_SHM = "/dev/shm"


@dataclass(frozen=True)
class Snapshot:
    processes: frozenset[tuple[int, int]]
    descriptors: frozenset[tuple[int, str]]
    segments: frozenset[str]


class LeakCheck:
    def __init__(self, directories: Sequence[str], patience: float = 3.0) -> None:
        self._directories = list(directories)
        self._patience = patience

    def take(self) -> Snapshot:
        return Snapshot(
            frozenset(process.identity for process in self.processes()),
            frozenset(_descriptors()),
            frozenset(_segments()),
        )

    def processes(self) -> list[Process]:
        """All of this session's processes that run now, without this one."""
        everything = all_processes()
        ours = mentioning(everything.values(), self._directories) + descendants(everything, os.getpid())
        not_ours = ancestors(everything, os.getpid())
        distinct = {process.identity: process for process in ours if process.pid not in not_ours}
        return [p for p in distinct.values() if not any(word in p.command for word in _LIFELONG)]

    def end_all(self, before: Snapshot) -> None:
        """SIGKILL what was started since `before`, so that the next test starts clean."""
        kill(process for process in self.processes() if process.identity not in before.processes)

    def left_since(self, before: Snapshot) -> list[str]:
        """What is new since `before` and does not go away by itself within a moment."""
        deadline = time.monotonic() + self._patience
        collected = False
        while True:
            left = self._left(before)
            if not left or (collected and time.monotonic() >= deadline):
                return left
            if not collected:
                gc.collect()  # what only a reference cycle holds is no leak
                collected = True
            else:
                time.sleep(0.02)

    def _left(self, before: Snapshot) -> list[str]:
        left = [f"process {p}" for p in self.processes() if p.identity not in before.processes]
        left += [f"descriptor {n} -> {to}" for n, to in sorted(_descriptors() - before.descriptors)]
        segments = _segments() - before.segments
        if segments:
            segments -= _held_by_others({process.pid for process in self.processes()} | {os.getpid()})
        return left + [f"segment {_SHM}/{name}" for name in sorted(segments)]


def _descriptors() -> set[tuple[int, str]]:
    found = set()
    for entry in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one that listed the directory is closed by now
            found.add((int(entry), os.readlink(f"/proc/self/fd/{entry}")))
    return found


def _segments() -> set[str]:
    with suppress(FileNotFoundError):
        return {name for name in os.listdir(_SHM) if name.startswith("noded")}
    return set()


def _held_by_others(ours: set[int]) -> set[str]:
    """Segments that a process of another session has open or mapped."""
    held: set[str] = set()
    for pid in all_processes().keys() - ours:
        with suppress(OSError), open(f"/proc/{pid}/maps", errors="replace") as maps:
            held |= {line.split(_SHM + "/", 1)[1].strip() for line in maps if _SHM + "/" in line}
        with suppress(OSError):
            for entry in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    target = os.readlink(f"/proc/{pid}/fd/{entry}")
                    if target.startswith(_SHM + "/"):
                        held.add(os.path.basename(target))
    return held
