"""Streams under odd use: what is dropped at once, dropped before it began, taken by several at a time.

What streams promise is in tests/compat/test_generators.py; daemons and workers that die meanwhile are in
test_daemon_restart_api.py and test_worker_kills_api.py.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.gates import Gate
from harness.wait import wait_for

import noded
from noded.client import generators

pytestmark = pytest.mark.usefixtures("cluster")


@noded.remote
def arrays(count: int, pause: float) -> Iterator[Any]:
    for i in range(count):
        yield np.full(150_000, i % 251, dtype=np.uint8)
        time.sleep(pause)


@noded.remote
class Plain:
    def wait(self, gate: Gate) -> None:
        gate.wait()

    def count(self, count: int) -> Iterator[int]:
        yield from range(count)


@noded.remote
class Async:
    async def wait(self, gate: Gate) -> None:
        gate.wait()  # also holds up the loop: what comes after it is read later

    async def count(self, count: int) -> AsyncIterator[int]:
        for i in range(count):
            yield i


@pytest.mark.parametrize("pause", [0, 0.001, 0.006])
def test_stored_items_that_are_dropped_at_once_leave_nothing(
    node_status: Callable[[], dict[str, Any]], pause: float
) -> None:
    """The caller may have dropped one before the daemon has heard of it."""
    for i, ref in enumerate(arrays.remote(60, pause)):
        assert noded.get(ref)[0] == i % 251
        del ref
    wait_for(lambda: not node_status()["store"]["ids"], lambda: f"items are left: {node_status()['store']}")


def test_items_that_nobody_took_go_with_the_generator(node_status: Callable[[], dict[str, Any]]) -> None:
    stream = arrays.remote(10, 0)
    noded.get(stream.completed())
    assert node_status()["store"]["ids"] == 10
    gc.disable()
    try:
        del stream
        wait_for(lambda: not node_status()["store"]["ids"], "the items wait for the garbage collector")
    finally:
        gc.enable()


@pytest.mark.parametrize("actor_class", [Plain, Async])
def test_a_stream_that_is_dropped_before_it_began_does_not_wait_for_its_caller(
    actor_class: Any, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    actor = actor_class.remote()
    noded.get(actor.__ray_ready__.remote())
    first = actor.wait.remote(gate)
    stream = actor.count.options(_generator_backpressure_num_objects=2).remote(100)
    end = stream.completed()
    del stream
    wait_for(lambda: not generators.dropped, "the helper does not say that the stream was dropped")
    mark = actor.wait.remote(gate)
    noded.cancel(mark)
    with pytest.raises(noded.exceptions.TaskCancelledError):  # so the actor has read what was sent before it
        noded.get(mark, timeout=20)
    later = actor.count.remote(3)
    gate.open()
    noded.get([first, end], timeout=20)
    assert noded.get(list(later), timeout=20) == [0, 1, 2]


def test_several_threads_take_from_one_stream() -> None:
    stream = arrays.remote(40, 0.001)
    taken: list[int] = []

    def take() -> None:
        for ref in stream:
            taken.append(int(noded.get(ref)[0]))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(taken) == list(range(40))


def test_several_coroutines_take_from_one_stream() -> None:
    async def take(stream: Any) -> list[int]:
        return [int((await ref)[0]) async for ref in stream]

    async def main() -> list[int]:
        stream = arrays.remote(40, 0.001)
        return [x for taken in await asyncio.gather(*(take(stream) for _ in range(4))) for x in taken]

    assert sorted(asyncio.run(main())) == list(range(40))
