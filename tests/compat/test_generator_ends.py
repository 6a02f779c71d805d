"""Generators: errors in the middle, back-pressure, early ends, and lists of refs (dynamic returns)."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import numpy as np
import pytest
import ray
from harness.gates import Notes

pytestmark = pytest.mark.usefixtures("cluster")
TIMEOUT = 60


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=TIMEOUT)


def values(generator: Any) -> list[Any]:
    return [get(ref) for ref in generator]


# ---------------------------------------------------------------- errors


def test_an_error_in_the_middle_is_the_last_value() -> None:
    @ray.remote
    def fail() -> Any:
        yield 1
        yield 2
        raise KeyError("middle")

    generator = fail.remote()

    assert [get(next(generator)), get(next(generator))] == [1, 2]
    failed = next(generator)
    with pytest.raises(KeyError, match="middle"):
        get(failed)
    with pytest.raises(StopIteration):
        next(generator)


def test_an_error_before_the_first_value() -> None:
    @ray.remote
    def fail(now: bool) -> Any:
        if now:
            raise ValueError("at once")
        yield 1

    refs = list(fail.remote(True))

    assert len(refs) == 1
    with pytest.raises(ValueError):
        get(refs[0])


def test_a_failed_stream_is_completed_too() -> None:
    @ray.remote
    def fail() -> Any:
        yield 1
        raise KeyError("middle")

    generator = fail.remote()

    assert get(generator.completed()) is None  # the error is the stream's last value
    assert get(next(generator)) == 1
    with pytest.raises(KeyError):
        get(next(generator))


def test_a_failed_argument_is_the_streams_error() -> None:
    @ray.remote
    def fail() -> None:
        raise KeyError("argument")

    @ray.remote
    def numbers(x: Any) -> Any:
        yield x

    refs = list(numbers.remote(fail.remote()))

    with pytest.raises(KeyError):
        get(refs)


def test_async_iteration_over_an_error() -> None:
    @ray.remote
    def fail() -> Any:
        yield 1
        raise KeyError("middle")

    async def read() -> list[Any]:
        seen: list[Any] = []
        async for ref in fail.remote():
            try:
                seen.append(await ref)
            except KeyError:
                seen.append("error")
        return seen

    assert asyncio.run(read()) == [1, "error"]


def test_a_value_that_cannot_be_pickled_is_an_error() -> None:
    @ray.remote
    def bad() -> Any:
        import threading

        yield 1
        yield threading.Lock()

    refs = list(bad.remote())

    assert get(refs[0]) == 1
    with pytest.raises(TypeError):
        get(refs[1])


def test_a_stream_whose_worker_dies_starts_again(notes: Notes) -> None:
    @ray.remote(max_retries=1)
    def numbers(notes: Any) -> Any:
        attempt = notes.add("attempt")
        for n in range(4):
            if n == 2 and attempt == 1:
                os._exit(1)
            yield n

    assert values(numbers.remote(notes)) == [0, 1, 2, 3]
    assert len(notes.all()) == 2


def test_a_stream_whose_worker_dies_for_good_ends_with_the_error() -> None:
    @ray.remote(max_retries=0)
    def crash() -> Any:
        yield 1
        os._exit(1)

    generator = crash.remote()
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        values(generator)
    with pytest.raises(StopIteration):
        next(generator)


def test_retry_exceptions_starts_a_stream_again(notes: Notes) -> None:
    @ray.remote(max_retries=2, retry_exceptions=True)
    def numbers(notes: Any) -> Any:
        yield 1
        if notes.add("attempt") < 3:
            raise ValueError("again")
        yield 2

    assert values(numbers.remote(notes)) == [1, 2]
    assert len(notes.all()) == 3


# ---------------------------------------------------------------- flow


def test_backpressure_holds_the_task(notes: Notes) -> None:
    @ray.remote(_generator_backpressure_num_objects=2)
    def numbers(notes: Any) -> Any:
        for n in range(8):
            notes.add(n)
            yield n

    generator = numbers.remote(notes)
    notes.wait(2)
    seen = []
    for ref in generator:
        seen.append(get(ref))
        made = len(notes.all())
        assert made <= len(seen) + 3, f"{made} were made when {len(seen)} were read"
    assert seen == list(range(8))


def test_without_backpressure_the_task_runs_ahead(notes: Notes) -> None:
    @ray.remote
    def numbers(notes: Any) -> Any:
        for n in range(50):
            notes.add(n)
            yield n

    generator = numbers.remote(notes)

    assert len(notes.wait(50)) == 50  # nothing was read
    assert values(generator) == list(range(50))


def test_a_dropped_stream_frees_what_it_made(notes: Notes) -> None:
    @ray.remote
    def arrays(notes: Any) -> Any:
        for n in range(4):
            yield np.full(1_000_000, n)
            notes.add(n)

    for _ in range(20):  # 640 MB through a store of 256 MB
        generator = arrays.remote(notes)
        get(next(generator))
        del generator


def test_the_task_of_a_dropped_stream_runs_to_its_end(notes: Notes) -> None:
    @ray.remote(_generator_backpressure_num_objects=4)
    def numbers(notes: Any) -> Any:
        for i in range(4):
            yield i
        notes.add("the end")

    generator = numbers.remote(notes)
    get(next(generator))
    del generator

    assert notes.wait(1) == ["the end"]


# ---------------------------------------------------------------- "dynamic": Ray warns that it is deprecated


def test_dynamic_results_are_a_ref_of_refs() -> None:
    @ray.remote(num_returns="dynamic")
    def numbers(n: int) -> Any:
        for i in range(n):
            yield np.full(10, i)

    ref = numbers.remote(3)
    assert isinstance(ref, ray.ObjectRef)
    made = get(ref)

    assert len(made) == 3
    assert [int(get(inner)[0]) for inner in made] == [0, 1, 2]


def test_dynamic_results_may_be_none_at_all() -> None:
    @ray.remote(num_returns="dynamic")
    def nothing() -> Any:
        return
        yield

    assert list(get(nothing.remote())) == []


def test_dynamic_results_travel_to_tasks() -> None:
    @ray.remote(num_returns="dynamic")
    def numbers() -> Any:
        for i in range(4):
            yield i

    @ray.remote
    def total(made: Any) -> int:
        return sum(ray.get(ref) for ref in made)

    assert get(total.remote(numbers.remote())) == 6


def test_an_error_in_dynamic_results() -> None:
    @ray.remote(num_returns="dynamic")
    def fail() -> Any:
        yield 1
        raise KeyError("middle")

    first, last = get(fail.remote())

    assert get(first) == 1
    with pytest.raises(KeyError, match="middle"):
        get(last)
