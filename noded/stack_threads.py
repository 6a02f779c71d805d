"""The threads of another process, as the kernel shows them, and when their Python frames stand still.

``faulthandler`` walks the frames of all threads without Python's lock. If one of them runs Python code meanwhile, its
frames change under the walk, and the process dies of it. So a process is interrupted only where that cannot be:

- no thread runs: whoever holds Python's lock, if anybody does, waits in C code;
- one runs, and is itself interrupted: the others wait, for it or for something else;
- several run, and none has waited for anything in so much time of the CPU that it would have handed Python's lock on to
  another many times: they are in C code.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque

import msgspec

SIGNAL = signal.SIGRTMIN + 12
BIT = 1 << (SIGNAL - 1)
HELPER = "noded-helper"
"""The name of a thread that may be interrupted, for the kernel."""
WATCHED = 0.25
"""Seconds for which threads are watched before it is known which of them run."""
_RUNS = 0.05
"""Of that time: a thread that uses more of the CPU runs. Who waits for Python's lock wakes up every 5 ms."""
_TOGETHER = 0.25
"""Those that do not run use less than this, in all: else they are many, and take turns."""
_STEADY = 0.05
"""Seconds of the CPU, ten times what Python lets a thread run while another wants its lock."""
_TICK = 1 / os.sysconf("SC_CLK_TCK")


class Thread(msgspec.Struct, frozen=True):
    state: str
    name: str
    blocks: bool
    """That signal."""
    pending: bool
    cpu: float
    """Seconds that it has used."""
    waits: int
    """How often it has waited for something."""


def fields_of(path: str) -> dict[str, str]:
    """Of a process or thread, its ``status``; empty when it is gone."""
    try:
        with open(path) as file:
            lines = file.read().splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def threads_of(pid: int) -> dict[int, Thread]:
    found: dict[int, Thread] = {}
    try:
        tids = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for tid in tids:
        fields = fields_of(f"/proc/{pid}/task/{tid}/status")
        cpu = _cpu_of(f"/proc/{pid}/task/{tid}/stat")
        if fields:
            blocks, pending = (bool(int(fields.get(name, "0"), 16) & BIT) for name in ("SigBlk", "SigPnd"))
            waits = int(fields.get("voluntary_ctxt_switches", "0"))
            found[int(tid)] = Thread(fields["State"][0], fields["Name"], blocks, pending, cpu, waits)
    return found


def _cpu_of(path: str) -> float:
    try:
        with open(path) as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * _TICK
    except (OSError, IndexError):
        return 0.0


class Watch:
    """What the threads of one process do. ``look`` now and then."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, dict[int, Thread]]] = deque()
        self._first: dict[int, Thread] | None = None
        self._last = -1

    def look(self, threads: dict[int, Thread]) -> int:
        """The thread to interrupt, where all stand still, seen twice one after the other; else -1."""
        now = time.monotonic()
        if self._first is None:
            self._first = threads
        self._seen.append((now, threads))
        while len(self._seen) > 1 and now - self._seen[1][0] >= WATCHED:
            self._seen.popleft()
        began, before = self._seen[0]
        target = whom(before, threads, now - began) if now - began >= WATCHED else -1
        last, self._last = self._last, target
        return target if target == last else -1

    def used(self) -> float:
        """Seconds of the CPU that all threads have used since they were first looked at."""
        first, now = self._first or {}, self._seen[-1][1] if self._seen else {}
        return sum(thread.cpu - first[tid].cpu if tid in first else thread.cpu for tid, thread in now.items())


def whom(before: dict[int, Thread], now: dict[int, Thread], seconds: float) -> int:
    """The thread to interrupt after so many seconds between two looks; -1: frames may move."""
    if before.keys() != now.keys():
        return -1
    used = {tid: thread.cpu - before[tid].cpu for tid, thread in now.items()}
    running = [tid for tid in now if used[tid] > _RUNS * seconds]
    others = [tid for tid in now if tid not in running]
    if sum(used[tid] for tid in others) > _TOGETHER * seconds or any(_may_run(before[tid], now[tid]) for tid in others):
        return -1
    may = [tid for tid in now if not now[tid].blocks]
    if len(running) == 1 and running[0] in may:
        return running[0]
    if any(used[tid] < _STEADY or now[tid].waits != before[tid].waits for tid in running):
        return -1
    # A thread of noded's own, if there is one: no system call of the user's code is cut short.
    wanted = [tid for tid in running if tid in may] or [tid for tid in may if now[tid].name == HELPER] or may
    return wanted[0] if wanted else -1


def _may_run(before: Thread, now: Thread) -> bool:
    """A thread that uses no CPU, but would if it got some, or had what it waits for from the disk."""
    return now.state == "R" or (now.state == "D" and (before.state, before.waits) != (now.state, now.waits))
