"""NodedExecutor: the promises of concurrent.futures, kept by tasks."""

from __future__ import annotations

import asyncio
import concurrent.futures
import operator
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.gates import Gate, Notes
from harness.wait import wait_for

import noded
from noded.exceptions import TaskError, WorkerCrashedError
from noded.util.executor import NodedExecutor

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.slow]


def square(x: int) -> int:
    return x * x


def fail(x: int) -> None:
    raise KeyError(x)


@pytest.fixture
def executor() -> Iterator[NodedExecutor]:
    with NodedExecutor() as made:
        yield made


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    made = Gate(tmp_path / "gate")
    yield made
    made.open()


def test_results(executor: NodedExecutor) -> None:
    future = executor.submit(int, "11", base=2)
    assert future.result(timeout=30) == 3
    assert future.done() and not future.running() and not future.cancelled() and future.exception() is None
    assert executor.submit(square, noded.put(4)).result() == 16


def test_any_kind_of_callable(executor: NodedExecutor) -> None:
    box = [1, 2]
    count = box.__len__
    assert executor.submit(count).result() == 2
    box.append(3)
    assert executor.submit(count).result() == 3
    factor = 5
    assert executor.submit(lambda x: x * factor, 2).result() == 10


def test_the_users_own_exception_is_raised(executor: NodedExecutor) -> None:
    future = executor.submit(fail, 7)
    with pytest.raises(KeyError) as caught:
        future.result()
    assert type(caught.value) is KeyError and caught.value.args == (7,)
    assert isinstance(caught.value.__cause__, TaskError)
    assert future.exception() is caught.value


def test_what_cannot_be_pickled_is_the_futures_error(executor: NodedExecutor) -> None:
    assert isinstance(executor.submit(square, threading.Lock()).exception(), TypeError)
    assert isinstance(executor.submit(threading.Lock).exception(), TypeError)
    with pytest.raises(TypeError, match="function"):
        executor.submit(3)  # type: ignore[arg-type]


def test_a_dead_worker_is_an_error_of_its_call_only() -> None:
    with NodedExecutor(task_options={"max_retries": 0}) as executor:
        with pytest.raises(WorkerCrashedError):
            executor.submit(os._exit, 1).result()
        assert executor.submit(square, 3).result() == 9


@pytest.mark.parametrize("chunksize", [1, 3])
def test_map(executor: NodedExecutor, chunksize: int) -> None:
    assert list(executor.map(square, range(10), chunksize=chunksize)) == [x * x for x in range(10)]
    assert list(executor.map(operator.add, [1, 2, 3], [10, 20], chunksize=chunksize)) == [11, 22]
    results = executor.map(fail, [1, 2], chunksize=chunksize)
    with pytest.raises(KeyError):
        next(results)
    with pytest.raises(ValueError, match="chunksize"):
        executor.map(square, [1], chunksize=0)


def test_timeouts(executor: NodedExecutor, gate: Gate) -> None:
    future = executor.submit(gate.wait)
    for wait in (future.result, future.exception):
        with pytest.raises(concurrent.futures.TimeoutError):
            wait(timeout=0.01)
    with pytest.raises(concurrent.futures.TimeoutError):
        list(executor.map(Gate.wait, [gate], timeout=0.01))
    gate.open()
    assert future.result(timeout=30) is None


def test_wait_as_completed_and_callbacks(executor: NodedExecutor, gate: Gate) -> None:
    slow = executor.submit(gate.wait)
    quick = executor.submit(square, 2)
    done, left = concurrent.futures.wait([slow, quick], return_when=concurrent.futures.FIRST_COMPLETED, timeout=30)
    assert (done, left) == ({quick}, {slow})

    seen: list[Any] = []
    slow.add_done_callback(lambda future: seen.append(future.result()))
    gate.open()
    assert {future.result() for future in concurrent.futures.as_completed([slow, quick], timeout=30)} == {None, 4}
    wait_for(lambda: seen == [None], "the callback never ran")


def test_in_an_event_loop(executor: NodedExecutor) -> None:
    async def calls() -> list[Any]:
        loop = asyncio.get_running_loop()
        first = [loop.run_in_executor(executor, square, x) for x in range(3)]
        return [*await asyncio.gather(*first), await asyncio.wrap_future(executor.submit(square, 9))]

    assert asyncio.run(calls()) == [0, 1, 4, 81]


def test_cancel_before_a_worker_has_it_and_not_after(executor: NodedExecutor, gate: Gate, tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes")

    def occupy() -> None:
        notes.add()
        gate.wait()

    running = [executor.submit(occupy) for _ in range(2)]
    notes.wait(2)
    waiting = executor.submit(notes.add, "never")
    assert not waiting.running() and not waiting.done()
    assert waiting.cancel() and waiting.cancelled() and waiting.done()
    with pytest.raises(concurrent.futures.CancelledError):
        waiting.result()
    assert running[0].running() and not running[0].cancel()
    gate.open()
    assert [future.result(timeout=30) for future in running] == [None, None]
    assert not running[0].cancel()
    assert "never" not in notes.all()


def test_max_workers_bounds_what_runs_at_once(gate: Gate, tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes")

    def occupy() -> None:
        notes.add()
        gate.wait()

    with NodedExecutor(max_workers=1) as executor:
        futures = [executor.submit(occupy) for _ in range(4)]
        notes.wait(1)
        assert [future.running() for future in futures] == [True, False, False, False]
        assert futures[1].cancel()
        executor.shutdown(wait=False, cancel_futures=True)
        assert [future.cancelled() for future in futures] == [False, True, True, True]
        gate.open()
        assert futures[0].result(timeout=30) is None
    assert len(notes.all()) == 1

    with NodedExecutor(max_workers=2) as executor:
        assert list(executor.map(square, range(20))) == [x * x for x in range(20)]


def test_shutdown_waits_and_takes_no_more(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes")
    executor = NodedExecutor()
    futures = [executor.submit(notes.add, number) for number in range(5)]
    executor.shutdown()
    assert all(future.done() for future in futures) and len(notes.all()) == 5
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(square, 1)
    executor.shutdown()


def test_a_program_ends_after_its_futures(run_program: Any) -> None:
    source = """
        import time
        from noded.util.executor import NodedExecutor
        NodedExecutor().submit(time.sleep, 0.2).add_done_callback(lambda future: print("done", future.result()))
        print("the end of the program")
    """
    assert run_program(source).splitlines() == ["the end of the program", "done None"]


def test_after_the_cluster_is_gone_futures_fail(run_program: Any) -> None:
    source = """
        import time
        import noded
        from noded.util.executor import NodedExecutor
        noded.init(num_cpus=1)
        with NodedExecutor(max_workers=1) as executor:
            futures = [executor.submit(time.sleep, 99) for _ in range(3)]
            noded.shutdown()
            print({type(future.exception(timeout=30)).__name__ for future in futures}, noded.is_initialized())
    """
    assert run_program(source).strip() == "{'LocalDaemonDiedError'} False"


def test_wrong_arguments_are_refused() -> None:
    for error, arguments in (
        (ValueError, {"max_workers": 0}),
        (TypeError, {"max_workers": 1.5}),
        (ValueError, {"task_options": {"num_returns": 2}}),
        (ValueError, {"task_options": {"bogus": 1}}),
    ):
        with pytest.raises(error):
            NodedExecutor(**arguments)  # type: ignore[arg-type]
