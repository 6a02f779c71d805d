"""Generators as methods of actors, plain and async."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
import ray
from harness.gates import Gate, GateMaker, Notes

pytestmark = pytest.mark.usefixtures("cluster")
TIMEOUT = 60


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=TIMEOUT)


def values(generator: Any) -> list[Any]:
    return [get(ref) for ref in generator]


# ---------------------------------------------------------------- actors


def test_actor_methods_may_be_generators() -> None:
    @ray.remote
    class Source:
        def __init__(self) -> None:
            self.calls = 0

        def numbers(self, n: int) -> Any:
            self.calls += 1
            for i in range(n):
                yield i

        def count(self) -> int:
            return self.calls

    source = Source.remote()

    assert values(source.numbers.remote(3)) == [0, 1, 2]
    assert values(source.numbers.options(num_returns="streaming").remote(2)) == [0, 1]
    assert get(source.count.remote()) == 2


def test_async_actors_may_have_async_generators(gate: Gate) -> None:
    @ray.remote
    class Source:
        async def numbers(self, gate: Any) -> Any:
            yield 1
            while not gate.is_open():
                await asyncio.sleep(0.01)
            yield 2

        async def ping(self) -> str:
            return "pong"

    source = Source.remote()
    generator = source.numbers.remote(gate)

    assert get(next(generator)) == 1
    assert get(source.ping.remote()) == "pong"  # while the generator waits
    gate.open()
    assert values(generator) == [2]


def test_two_async_generators_of_one_actor_run_at_once(gates: GateMaker) -> None:
    @ray.remote
    class Source:
        async def meet(self, mine: Any, other: Any) -> Any:
            mine.open()
            while not other.is_open():
                await asyncio.sleep(0.01)
            yield "met"

    source, a, b = Source.remote(), gates("a"), gates("b")
    first, second = source.meet.remote(a, b), source.meet.remote(b, a)

    assert values(first) == ["met"] and values(second) == ["met"]


def test_an_actors_error_in_the_middle() -> None:
    @ray.remote
    class Source:
        def fail(self) -> Any:
            yield 1
            raise KeyError("middle")

        async def fail_async(self) -> Any:
            yield 1
            raise KeyError("middle")

    source = Source.remote()
    for method in (source.fail, source.fail_async):
        first, second = list(method.remote())
        assert get(first) == 1
        with pytest.raises(KeyError):
            get(second)


def test_a_stream_of_an_actor_that_dies_ends_with_the_error() -> None:
    @ray.remote
    class Source:
        def crash(self) -> Any:
            yield 1
            os._exit(1)

    source = Source.remote()
    generator = source.crash.remote()

    with pytest.raises(ray.exceptions.RayActorError):
        values(generator)


def test_calls_after_a_stream_wait_for_its_end(notes: Notes) -> None:
    @ray.remote
    class Source:
        def numbers(self, notes: Any) -> Any:
            for n in range(3):
                notes.add(n)
                yield n

        def last(self, notes: Any) -> None:
            notes.add("last")

    source = Source.remote()
    generator, last = source.numbers.remote(notes), source.last.remote(notes)
    get(last)

    assert notes.all() == ["0", "1", "2", "last"]
    assert values(generator) == [0, 1, 2]


def test_a_stream_is_complete_when_its_task_is(gate: Gate) -> None:
    @ray.remote
    def slow(gate: Any) -> Any:
        yield 1
        gate.wait()

    generator = slow.remote(gate)
    done = generator.completed()

    assert ray.wait([done], timeout=0.1)[0] == []
    gate.open()
    assert get(done) is None
    assert values(generator) == [1]
