"""When the frames of a process stand still, by what the kernel shows of its threads."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from noded.stack_threads import HELPER, Thread, whom

WAITS = Thread("S", "python", False, False, 1.0, 10)
RUNS = replace(WAITS, state="R")
SECONDS = 0.25


def after(thread: Thread, cpu: float = 0.0, waits: int = 0, state: str = "") -> Thread:
    return replace(thread, cpu=thread.cpu + cpu, waits=thread.waits + waits, state=state or thread.state)


@pytest.mark.parametrize(
    ("now", "target"),
    [
        ([after(WAITS), after(WAITS)], 2),  # the second is noded's own
        ([after(WAITS, state="D"), after(WAITS)], -1),  # has just begun to wait for a disk
        ([after(WAITS, state="R"), after(WAITS)], -1),  # gets no CPU
        ([after(RUNS, 0.24, state="R"), after(WAITS, 0.01, 50)], 1),  # alone: in C code, or in Python
        ([after(RUNS, 0.12, 20), after(RUNS, 0.12, 20)], -1),  # take turns
        ([after(RUNS, 0.24, state="R"), after(RUNS, 0.24, state="R")], 1),  # in C code, both
        ([after(RUNS, 0.03, state="R"), after(RUNS, 0.03, state="R")], -1),  # got too little to know
        ([replace(after(RUNS, 0.24, state="R"), blocks=True), after(WAITS)], 2),
        ([replace(after(RUNS, 0.24, 9, state="R"), blocks=True), after(WAITS)], -1),
        ([after(WAITS)], -1),  # a thread has ended meanwhile
    ],
)
def test_whom(now: list[Thread], target: int) -> None:
    before = {1: WAITS, 2: replace(WAITS, name=HELPER)}
    threads = {tid: replace(thread, name=before[tid].name) for tid, thread in enumerate(now, 1)}
    assert whom(before, threads, SECONDS) == target


def test_many_that_take_turns_are_seen_by_what_they_use_together() -> None:
    before = dict.fromkeys(range(1, 41), WAITS)
    assert whom(before, {tid: after(WAITS, 0.006) for tid in before}, SECONDS) == -1
    assert whom(before, {tid: after(WAITS, 0.001) for tid in before}, SECONDS) == 1
