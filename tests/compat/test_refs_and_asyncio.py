"""Refs in coroutines and as futures of concurrent.futures."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from typing import Any

import pytest
import ray
from harness.gates import Gate

pytestmark = pytest.mark.usefixtures("cluster")
TIMEOUT = 60


def identity_task() -> Any:
    @ray.remote
    def identity(x: Any) -> Any:
        return x

    return identity


def failing_task() -> Any:
    @ray.remote
    def fail() -> None:
        raise KeyError("failed")

    return fail


def holding_task() -> Any:
    @ray.remote
    def hold(gate: Any, value: Any = None) -> Any:
        gate.wait()
        return value

    return hold


# ---------------------------------------------------------------- await


def test_refs_can_be_awaited() -> None:
    async def read() -> Any:
        return await identity_task().remote(1), await ray.put(2)

    assert asyncio.run(read()) == (1, 2)


def test_a_ref_can_be_awaited_again() -> None:
    ref = identity_task().remote([1])

    async def read() -> Any:
        return await ref, await ref

    assert asyncio.run(read()) == ([1], [1])
    assert ray.get(ref) == [1]


def test_awaiting_raises_the_tasks_error() -> None:
    async def read() -> None:
        await failing_task().remote()

    with pytest.raises(KeyError, match="failed"):
        asyncio.run(read())


def test_refs_can_be_gathered() -> None:
    identity = identity_task()

    async def read() -> Any:
        return await asyncio.gather(*[identity.remote(n) for n in range(20)])

    assert asyncio.run(read()) == list(range(20))


def test_gathering_errors_as_values() -> None:
    async def read() -> Any:
        return await asyncio.gather(identity_task().remote(1), failing_task().remote(), return_exceptions=True)

    one, error = asyncio.run(read())

    assert one == 1 and isinstance(error, KeyError)


def test_others_run_while_a_ref_is_awaited(gate: Gate) -> None:
    async def open_it() -> None:
        await asyncio.sleep(0)
        gate.open()

    async def read() -> Any:
        value, _ = await asyncio.gather(holding_task().remote(gate, "late"), open_it())
        return value

    assert asyncio.run(read()) == "late"


def test_a_wait_for_a_ref_can_time_out(gate: Gate) -> None:
    ref = holding_task().remote(gate, "late")

    async def read() -> Any:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(ref, 0.1)
        gate.open()
        return await ref  # the task was not cancelled

    assert asyncio.run(read()) == "late"


def test_asyncio_wait_takes_wrapped_refs(gate: Gate) -> None:
    hold, identity = holding_task(), identity_task()

    async def read() -> Any:
        late = asyncio.ensure_future(hold.remote(gate, "late"))
        soon = asyncio.ensure_future(identity.remote("soon"))
        done, waiting = await asyncio.wait([late, soon], return_when=asyncio.FIRST_COMPLETED, timeout=TIMEOUT)
        gate.open()
        return [task.result() for task in done], await next(iter(waiting))

    assert asyncio.run(read()) == (["soon"], "late")


def test_as_completed_over_refs() -> None:
    identity = identity_task()

    async def read() -> list[int]:
        return [await ref for ref in asyncio.as_completed([identity.remote(n) for n in range(5)])]

    assert sorted(asyncio.run(read())) == [0, 1, 2, 3, 4]


# ---------------------------------------------------------------- futures


def test_a_ref_as_a_future() -> None:
    future = identity_task().remote(5).future()

    assert isinstance(future, concurrent.futures.Future)
    assert future.result(TIMEOUT) == 5
    assert future.done() and future.exception() is None


def test_a_failed_ref_as_a_future() -> None:
    future = failing_task().remote().future()

    with pytest.raises(KeyError):
        future.result(TIMEOUT)
    assert isinstance(future.exception(), KeyError)


def test_a_future_waits(gate: Gate) -> None:
    future = holding_task().remote(gate, "late").future()

    with pytest.raises(concurrent.futures.TimeoutError):
        future.result(0.1)
    assert not future.done()
    gate.open()
    assert future.result(TIMEOUT) == "late"


def test_callbacks_of_futures() -> None:
    called = threading.Event()
    seen: list[Any] = []

    def note(future: Any) -> None:
        seen.append(future.result())
        called.set()

    identity_task().remote(7).future().add_done_callback(note)

    assert called.wait(TIMEOUT)
    assert seen == [7]


def test_the_functions_of_concurrent_futures() -> None:
    identity = identity_task()
    futures = [identity.remote(n).future() for n in range(8)]

    done, waiting = concurrent.futures.wait(futures, timeout=TIMEOUT)
    assert len(done) == 8 and not waiting
    assert sorted(f.result() for f in concurrent.futures.as_completed(futures, timeout=TIMEOUT)) == list(range(8))


def test_futures_of_objects_that_were_put() -> None:
    assert ray.put("here").future().result(TIMEOUT) == "here"


def test_refs_are_read_by_several_threads(gate: Gate) -> None:
    ref = holding_task().remote(gate, "late")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        reads = [pool.submit(ray.get, ref, timeout=TIMEOUT) for _ in range(4)]
        gate.open()
        assert [read.result(TIMEOUT) for read in reads] == ["late"] * 4


def test_tasks_are_submitted_by_several_threads() -> None:
    identity = identity_task()

    def work(start: int) -> list[int]:
        return ray.get([identity.remote(start + n) for n in range(10)], timeout=TIMEOUT)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, [0, 100, 200, 300]))

    assert found == [[start + n for n in range(10)] for start in (0, 100, 200, 300)]
