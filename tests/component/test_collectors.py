"""Collectors: what raises, hangs or floods is said, hurts nobody, and comes back by itself."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness.cluster import REPOSITORY

from noded.node.collectors import Collectors

PAUSES = (0.05, 0.2)


class Switch:
    """A collector that does as told: returns how often it was called, raises, or waits until it is let go."""

    def __init__(self) -> None:
        self.calls = 0
        self.raises: BaseException | None = None
        self.hangs = False
        self.go = threading.Event()

    def __call__(self) -> int:
        self.calls += 1
        if self.raises is not None:
            raise self.raises
        if self.hangs:
            self.go.wait(60)
        return self.calls


@pytest.fixture
def switch() -> Iterator[Switch]:
    switch = Switch()
    yield switch
    switch.go.set()


@pytest.fixture
async def collectors() -> Any:
    made = Collectors(PAUSES)
    yield made
    made.stop()


async def until(condition: Callable[[], object], reason: str, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain: {reason}"
        await asyncio.sleep(0.005)


def figures(collectors: Collectors) -> dict[str, Any]:
    (found,) = collectors.figures()
    return found


async def test_what_is_asked_for_is_collected_once_for_all_who_ask(collectors: Collectors, switch: Switch) -> None:
    switch.hangs = True
    collectors.add("one", switch, deadline=10)
    asking = [asyncio.ensure_future(collectors.ask("one")) for _ in range(5)]
    await until(lambda: switch.calls, "the round has not begun")
    switch.go.set()

    assert [reading.value for reading in await asyncio.gather(*asking)] == [1] * 5
    assert (await collectors.ask("one", max_age=60)).value == 1
    assert (await collectors.ask("one")).value == 2
    assert collectors.last("one").value == 2
    assert figures(collectors)["state"] == "OK" and figures(collectors)["rounds"] == 2


async def test_rounds_come_by_themselves(collectors: Collectors, switch: Switch) -> None:
    collectors.add("often", switch, deadline=10, every=0)
    await until(lambda: switch.calls > 100, "rounds do not follow each other")
    now_and_then = Switch()
    collectors.add("seldom", now_and_then, deadline=10, every=0.01)
    await until(lambda: now_and_then.calls > 3, "rounds do not come")
    asked_only = Switch()
    collectors.add("never", asked_only, deadline=10)
    calls = switch.calls
    await until(lambda: switch.calls > calls + 10, "rounds have ended")

    assert asked_only.calls == 0
    assert collectors.last("never").age == math.inf


async def test_one_that_raises_is_said_and_recovers(collectors: Collectors, switch: Switch) -> None:
    collectors.add("bad", switch, deadline=10)
    assert (await collectors.ask("bad")).value == 1
    for error in (ValueError("no such thing"), MemoryError(), SystemExit(3)):
        await until(lambda: not collectors.last("bad").problem, "it has not recovered from the last one")
        switch.raises = error
        reading = await collectors.ask("bad")

        assert reading.value is not None and type(error).__name__ in reading.problem
        assert figures(collectors)["state"] == "FAILED"
        begun = time.monotonic()
        assert (await collectors.ask("bad")).problem == reading.problem
        assert time.monotonic() - begun < 5, "it was waited for while it pauses"
        switch.raises = None
    await until(lambda: figures(collectors)["state"] == "OK", "it has not recovered, though nobody asked")

    assert (await collectors.ask("bad", max_age=60)).problem == ""
    assert figures(collectors)["failures"] >= 3


async def test_one_that_hangs_is_left_alone_and_begun_anew(collectors: Collectors, switch: Switch) -> None:
    collectors.add("stuck", switch, deadline=0.1)
    assert (await collectors.ask("stuck")).value == 1
    switch.hangs = True
    begun = time.monotonic()
    reading = await collectors.ask("stuck")

    assert reading.value == 1 and reading.age >= 0.1 and "longer than 0.1 s" in reading.problem
    assert time.monotonic() - begun < 5
    assert figures(collectors)["state"] == "LATE" and figures(collectors)["lost_threads"] == 1
    switch.hangs = False
    await until(lambda: figures(collectors)["state"] == "OK", "it has not recovered")
    late = collectors.last("stuck").value
    switch.go.set()
    await until(lambda: not figures(collectors)["lost_threads"], "the late thread's end was not seen")

    assert collectors.last("stuck").value >= late, "a late thread's value counts"


async def test_no_more_than_three_threads_are_lost(collectors: Collectors, switch: Switch) -> None:
    switch.hangs = True
    before = threading.active_count()
    collectors.add("stuck", switch, deadline=0.02, every=0)
    await until(lambda: figures(collectors)["lost_threads"] == 3, "the threads are not counted")
    other = Switch()
    collectors.add("other", other, deadline=10, every=0.05)
    await until(lambda: other.calls > 10, "another collector is kept from its rounds")

    assert switch.calls == 3 and threading.active_count() - before <= 4
    assert collectors.figures()[0]["state"] == "LATE"
    switch.hangs = False
    switch.go.set()
    await until(lambda: collectors.figures()[0]["state"] == "OK", "it does not go on when a lost thread has ended")


async def test_a_loop_that_was_late_does_not_make_a_round_late(collectors: Collectors, switch: Switch) -> None:
    collectors.add("quick", switch, deadline=0.05)
    asking = asyncio.ensure_future(collectors.ask("quick"))
    await asyncio.sleep(0)
    time.sleep(0.2)  # the round is over long before the loop looks at its clock again

    assert (await asking).problem == ""


async def test_figures_count_the_cpu(collectors: Collectors) -> None:
    def burn() -> None:
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass

    collectors.add("hot", burn, deadline=30)
    await collectors.ask("hot")

    assert figures(collectors)["cpu_s"] >= 0.05


async def test_a_name_is_one_collectors(collectors: Collectors, switch: Switch) -> None:
    collectors.add("one", switch, deadline=1)
    with pytest.raises(ValueError, match="already"):
        collectors.add("one", switch, deadline=1)


def test_the_end_waits_for_nobody() -> None:
    """Neither stop() nor the end of the process, with a thread that hangs."""
    code = """
import asyncio, threading, time
from noded.node.collectors import Collectors
async def main():
    collectors = Collectors()
    begun = threading.Event()
    collectors.add("stuck", lambda: (begun.set(), time.sleep(600)), deadline=0.1)
    asking = asyncio.ensure_future(collectors.ask("stuck"))
    await asyncio.to_thread(begun.wait)
    collectors.stop()
    print((await asking).age)
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "inf\n" and not done.stderr
