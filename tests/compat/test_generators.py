"""Generators: streams of refs, read while the task runs, also by coroutines."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import ray
from harness.gates import Gate, GateMaker

pytestmark = pytest.mark.usefixtures("cluster")
TIMEOUT = 60


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=TIMEOUT)


def values(generator: Any) -> list[Any]:
    return [get(ref) for ref in generator]


# ---------------------------------------------------------------- streams


@pytest.mark.parametrize("options", [{}, {"num_returns": "streaming"}], ids=["default", "streaming"])
@pytest.mark.parametrize("count", [0, 1, 20])
def test_a_generator_function_gives_its_values_in_order(options: Any, count: int) -> None:
    def numbers(n: int) -> Any:
        for i in range(n):
            yield i

    remote = ray.remote(**options)(numbers) if options else ray.remote(numbers)
    generator = remote.remote(count)

    assert isinstance(generator, ray.ObjectRefGenerator)
    assert values(generator) == list(range(count))


@pytest.mark.improves("a generator may `yield from` what is no generator; on Ray that fails")
def test_yield_from_works_with_any_iterable() -> None:
    @ray.remote
    def numbers() -> Any:
        yield from range(3)
        yield from [3, 4]

    assert values(numbers.remote()) == [0, 1, 2, 3, 4]


def test_next_gives_refs_and_then_stops() -> None:
    @ray.remote
    def one() -> Any:
        yield "only"

    generator = one.remote()
    first = next(generator)

    assert isinstance(first, ray.ObjectRef) and get(first) == "only"
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(generator)


def test_values_come_while_the_task_runs(gate: Gate) -> None:
    @ray.remote
    def slow(gate: Any) -> Any:
        yield 1
        yield 2
        gate.wait()
        yield 3

    generator = slow.remote(gate)

    assert [get(next(generator)), get(next(generator))] == [1, 2]  # the task now waits for what follows
    gate.open()
    assert get(next(generator)) == 3


def test_what_comes_next_may_not_be_ready(gate: Gate) -> None:
    @ray.remote
    def slow(gate: Any) -> Any:
        yield 1
        gate.wait()
        yield 2

    generator = slow.remote(gate)
    get(next(generator))

    assert ray.wait([generator], timeout=0.1) == ([], [generator])
    assert not generator.next_ready()
    gate.open()
    ready, _ = ray.wait([generator], timeout=TIMEOUT)
    assert ready == [generator]
    assert generator.next_ready()
    assert values(generator) == [2]


def test_wait_takes_generators_and_refs_together(gate: Gate) -> None:
    @ray.remote
    def blocked(gate: Any) -> Any:
        gate.wait()
        yield 1

    generator, ref = blocked.remote(gate), ray.put(1)

    assert ray.wait([generator, ref], timeout=TIMEOUT) == ([ref], [generator])
    gate.open()
    ready, _ = ray.wait([generator, ref], num_returns=2, timeout=TIMEOUT)
    assert set(ready) == {generator, ref}
    assert values(generator) == [1]


def test_a_generator_says_when_it_is_finished() -> None:
    @ray.remote
    def numbers() -> Any:
        for i in range(3):
            yield i

    generator = numbers.remote()

    assert get(generator.completed()) is None
    assert not generator.is_finished()  # there are values to read
    assert values(generator) == [0, 1, 2]
    assert generator.is_finished()


def test_values_can_be_read_after_the_task_has_ended() -> None:
    @ray.remote
    def numbers() -> Any:
        for i in range(3):
            yield i

    generator = numbers.remote()
    get(generator.completed())

    assert values(generator) == [0, 1, 2]


def test_refs_of_a_stream_are_arguments() -> None:
    @ray.remote
    def numbers() -> Any:
        for i in range(4):
            yield i

    @ray.remote
    def square(n: int) -> int:
        return n * n

    assert get([square.remote(ref) for ref in numbers.remote()]) == [0, 1, 4, 9]


def test_refs_of_a_stream_outlive_it() -> None:
    @ray.remote
    def arrays() -> Any:
        for n in range(3):
            yield np.full(100_000, n)

    generator = arrays.remote()
    refs = list(generator)
    del generator

    assert [int(array[-1]) for array in get(refs)] == [0, 1, 2]


def test_a_stream_may_yield_refs() -> None:
    @ray.remote
    def refs() -> Any:
        for n in range(3):
            yield ray.put(n)

    assert [get(get(ref)) for ref in refs.remote()] == [0, 1, 2]


def test_tasks_read_streams_of_tasks() -> None:
    @ray.remote
    def numbers() -> Any:
        for i in range(5):
            yield i

    @ray.remote
    def total() -> int:
        return sum(ray.get(ref) for ref in numbers.remote())

    @ray.remote
    def doubled() -> Any:
        for ref in numbers.remote():
            yield 2 * ray.get(ref)

    assert get(total.remote()) == 10
    assert values(doubled.remote()) == [0, 2, 4, 6, 8]


def test_generators_stay_with_the_process_that_called() -> None:
    @ray.remote
    def numbers() -> Any:
        yield 1

    @ray.remote
    def take(x: Any) -> None: ...

    generator = numbers.remote()
    for use in (take.remote, ray.put):
        with pytest.raises(TypeError):
            use(generator)
    assert values(generator) == [1]


def test_options_choose_the_kind_of_result() -> None:
    @ray.remote
    def numbers() -> Any:
        for i in range(3):
            yield i

    assert get(numbers.options(num_returns=3).remote()) == [0, 1, 2]
    assert values(numbers.options(num_returns="streaming").remote()) == [0, 1, 2]


# ---------------------------------------------------------------- async


def test_async_iteration() -> None:
    @ray.remote
    def numbers() -> Any:
        for i in range(5):
            yield i

    async def read() -> list[int]:
        return [await ref async for ref in numbers.remote()]

    assert asyncio.run(read()) == [0, 1, 2, 3, 4]


def test_several_streams_are_read_at_once(gates: GateMaker) -> None:
    @ray.remote
    def numbers(start: int, mine: Any, other: Any) -> Any:
        yield start
        mine.open()
        other.wait()
        yield start + 1

    async def read(generator: Any) -> list[int]:
        return [await ref async for ref in generator]

    async def both() -> list[list[int]]:
        a, b = gates("a"), gates("b")
        return await asyncio.gather(read(numbers.remote(0, a, b)), read(numbers.remote(10, b, a)))

    assert asyncio.run(both()) == [[0, 1], [10, 11]]


def test_anext_ends_with_stop_async_iteration() -> None:
    @ray.remote
    def one() -> Any:
        yield 1

    async def read() -> int:
        generator = one.remote()
        value = await (await generator.__anext__())
        with pytest.raises(StopAsyncIteration):
            await generator.__anext__()
        return value

    assert asyncio.run(read()) == 1
