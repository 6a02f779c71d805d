"""Refs and streams in async actors."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError

pytestmark = pytest.mark.usefixtures("cluster")


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=60)


# ---------------------------------------------------------------- refs in the loop


def test_await_of_refs_and_gather_inside_an_actor() -> None:
    @ray.remote
    def square(x: int) -> int:
        return x * x

    @ray.remote
    class Summer:
        async def one(self) -> int:
            return await square.remote(3)

        async def many(self) -> int:
            return sum(await asyncio.gather(*[square.remote(i) for i in range(5)]))

    summer = Summer.remote()
    assert get(summer.one.remote()) == 9
    assert get(summer.many.remote()) == 30


def test_await_of_a_call_to_another_async_actor() -> None:
    @ray.remote
    class Callee:
        async def double(self, x: int) -> int:
            await asyncio.sleep(0.001)
            return 2 * x

    @ray.remote
    class Caller:
        async def call(self, callee: Any) -> list[int]:
            return await asyncio.gather(*[callee.double.remote(x) for x in range(3)])

    assert get(Caller.remote().call.remote(Callee.remote())) == [0, 2, 4]


def test_await_of_a_failed_ref_raises_its_error() -> None:
    @ray.remote
    def fail() -> None:
        raise KeyError("inner")

    @ray.remote
    class Careful:
        async def attempt(self) -> str:
            try:
                await fail.remote()
            except KeyError as error:
                return type(error).__mro__[1].__name__ if isinstance(error, RayTaskError) else "plain"
            return "no error"

    assert get(Careful.remote().attempt.remote()) in ("RayTaskError", "TaskError")


def test_wait_for_with_a_timeout_on_a_ref(gate: Any) -> None:
    @ray.remote
    def late(gate: Any) -> str:
        gate.wait()
        return "late"

    @ray.remote
    class Impatient:
        async def attempt(self, refs: list[Any]) -> str:
            try:
                return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(refs[0].future())), 0.05)
            except TimeoutError:
                return "timed out"

    ref = late.remote(gate)
    assert get(Impatient.remote().attempt.remote([ref])) == "timed out"
    gate.open()
    assert get(ref) == "late"


def test_asyncio_wait_takes_refs_as_futures() -> None:
    @ray.remote
    def value(x: int) -> int:
        return x

    @ray.remote
    class Waiter:
        async def all(self) -> list[int]:
            async def one(ref: Any) -> int:
                return await ref

            done, pending = await asyncio.wait([asyncio.create_task(one(value.remote(i))) for i in range(4)])
            assert not pending
            return sorted(task.result() for task in done)

    assert get(Waiter.remote().all.remote()) == [0, 1, 2, 3]


def test_driver_awaits_calls_of_actors() -> None:
    @ray.remote
    class Meeting:
        def __init__(self) -> None:
            self.here = 0
            self.all_here = asyncio.Event()

        async def meet(self, count: int) -> int:
            self.here += 1
            if self.here == count:
                self.all_here.set()
            await self.all_here.wait()
            return self.here

    meeting = Meeting.remote()

    async def main() -> list[int]:
        return await asyncio.gather(*[meeting.meet.remote(3) for _ in range(3)])

    assert asyncio.run(main()) == [3, 3, 3]


def test_arguments_by_ref_are_resolved_before_the_method_runs(gate: Any) -> None:
    @ray.remote
    def late(gate: Any) -> str:
        gate.wait()
        return "late"

    @ray.remote
    class Echo:
        async def echo(self, value: Any) -> Any:
            return value

    ref = Echo.remote().echo.remote(late.remote(gate))
    assert ray.wait([ref], timeout=0.2) == ([], [ref])
    gate.open()
    assert get(ref) == "late"


def test_a_call_that_waits_for_its_argument_lets_later_calls_go_ahead(gate: Any) -> None:
    @ray.remote
    def late(gate: Any) -> str:
        gate.wait()
        return "late"

    @ray.remote
    class Echo:
        async def echo(self, value: Any) -> Any:
            return value

    echo = Echo.remote()
    first = echo.echo.remote(late.remote(gate))
    assert get(echo.echo.remote("early")) == "early"
    gate.open()
    assert get(first) == "late"


# ---------------------------------------------------------------- generators


def test_async_generator_streams() -> None:
    @ray.remote
    class Streamer:
        async def count(self, upto: int) -> Any:
            for number in range(upto):
                await asyncio.sleep(0)
                yield number

    stream = Streamer.remote().count.remote(4)
    assert isinstance(stream, ray.ObjectRefGenerator)
    assert [get(ref) for ref in stream] == [0, 1, 2, 3]


def test_async_generators_overlap(gate: Any) -> None:
    @ray.remote
    class Streamer:
        def __init__(self) -> None:
            self.go = asyncio.Event()

        async def waits(self) -> Any:
            yield "before"
            await self.go.wait()
            yield "after"

        async def releases(self) -> Any:
            yield "here"
            self.go.set()

    streamer = Streamer.remote()
    first, second = streamer.waits.remote(), streamer.releases.remote()
    assert get(next(first)) == "before"
    assert [get(ref) for ref in second] == ["here"]
    assert get(next(first)) == "after"


def test_error_in_an_async_generator_is_its_last_item() -> None:
    @ray.remote
    class Streamer:
        async def broken(self) -> Any:
            yield 1
            raise ValueError("in the middle")

    refs = list(Streamer.remote().broken.remote())
    assert get(refs[0]) == 1 and len(refs) == 2
    with pytest.raises(ValueError, match="in the middle"):
        get(refs[1])


def test_async_iteration_over_a_stream_in_an_actor() -> None:
    @ray.remote
    def count(upto: int) -> Any:
        for number in range(upto):
            yield number

    @ray.remote
    class Reader:
        async def read(self) -> list[int]:
            return [await ref async for ref in count.remote(4)]

    assert get(Reader.remote().read.remote()) == [0, 1, 2, 3]


def test_async_iteration_over_a_stream_in_the_driver() -> None:
    @ray.remote
    class Streamer:
        async def count(self, upto: int) -> Any:
            for number in range(upto):
                yield number

    async def main() -> list[int]:
        return [await ref async for ref in Streamer.remote().count.remote(3)]

    assert asyncio.run(main()) == [0, 1, 2]
