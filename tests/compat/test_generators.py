"""Generators: streams of refs, read while the task runs; errors in the middle, back-pressure, early ends."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import numpy as np
import pytest
import ray
from harness.gates import Gate, GateMaker, Notes

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
        gate.wait()
        yield 2

    generator = slow.remote(gate)

    assert get(next(generator)) == 1  # the task now waits for what follows
    gate.open()
    assert get(next(generator)) == 2


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
