"""ray.util.multiprocessing.Pool: the standard library's pool over actors, and the joblib backend on it."""

from __future__ import annotations

import multiprocessing as standard
import os
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.util.multiprocessing import Pool, TimeoutError

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture
def pool(cluster: None) -> Iterator[Pool]:
    pool = Pool(2)
    yield pool
    pool.terminate()
    pool.join()


def end(pool: Pool) -> None:
    pool.terminate()
    pool.join()


# ---------------------------------------------------------------- calls


def test_apply(pool: Pool) -> None:
    assert pool.apply(lambda a, b=0: a + b, (1,), {"b": 2}) == 3
    assert pool.apply(os.getpid) != os.getpid()


def test_map_keeps_the_order(pool: Pool) -> None:
    assert pool.map(lambda x: x * x, range(20)) == [x * x for x in range(20)]


def test_map_of_nothing_and_of_an_iterator(pool: Pool) -> None:
    assert pool.map(str, []) == []
    assert pool.map(lambda x: x + 1, iter([1, 2, 3])) == [2, 3, 4]


@pytest.mark.parametrize("chunksize", [1, 3, 100])
def test_chunks_do_not_change_the_result(pool: Pool, chunksize: int) -> None:
    assert pool.map(lambda x: -x, range(10), chunksize=chunksize) == [-x for x in range(10)]
    assert list(pool.imap(lambda x: -x, range(10), chunksize=chunksize)) == [-x for x in range(10)]


def test_a_chunk_runs_in_one_process(pool: Pool) -> None:
    pids = pool.map(lambda _: os.getpid(), range(8), chunksize=4)
    assert len(set(pids[:4])) == 1 and len(set(pids[4:])) == 1


def test_starmap(pool: Pool) -> None:
    assert pool.starmap(lambda a, b: a * b, [(1, 2), (3, 4)]) == [2, 12]


def test_imap_is_lazy_and_in_order(pool: Pool) -> None:
    results = pool.imap(lambda x: x + 1, range(5))
    assert next(results) == 1
    assert list(results) == [2, 3, 4, 5]
    with pytest.raises(StopIteration):
        next(results)


def test_imap_of_slow_items_is_in_order(pool: Pool, gates: Any) -> None:
    slow, fast = gates("slow"), gates("fast")
    fast.open()

    def wait(gate: Any) -> str:
        gate.wait()
        return str(gate.path.name)

    results = pool.imap(wait, [slow, fast])
    with pytest.raises(TimeoutError):
        results.next(timeout=0.1)
    slow.open()
    assert list(results) == ["slow", "fast"]


def test_imap_unordered_gives_the_fast_ones_first(pool: Pool, gates: Any) -> None:
    slow, fast = gates("slow"), gates("fast")
    fast.open()

    def wait(gate: Any) -> str:
        gate.wait()
        return str(gate.path.name)

    results = pool.imap_unordered(wait, [slow, fast])
    assert next(results) == "fast"
    slow.open()
    assert list(results) == ["slow"]


def test_both_processes_work_at_once(pool: Pool, notes: Any) -> None:
    def meet(notes: Any) -> int:
        notes.add()
        notes.wait(2)
        return os.getpid()

    assert len(set(pool.map(meet, [notes] * 2, chunksize=1))) == 2


# ---------------------------------------------------------------- asynchronous results


def test_apply_async_and_its_result(pool: Pool, gate: Any) -> None:
    def wait(gate: Any, *, value: str) -> str:
        gate.wait()
        return value

    result = pool.apply_async(wait, (gate,), {"value": "done"})
    assert result.ready() is False
    with pytest.raises(ValueError):
        result.successful()
    with pytest.raises(TimeoutError):
        result.get(timeout=0.1)
    gate.open()
    result.wait(30)
    assert result.ready() is True and result.successful() is True
    assert result.get(timeout=30) == "done"


def test_result_of_a_failed_call(pool: Pool) -> None:
    result = pool.apply_async(lambda: 1 / 0)
    result.wait(30)
    assert result.ready() and not result.successful()
    with pytest.raises(ZeroDivisionError):
        result.get()


def test_map_async_and_starmap_async(pool: Pool) -> None:
    first = pool.map_async(lambda x: x + 1, range(5))
    second = pool.starmap_async(lambda a, b: a + b, [(1, 2)])
    assert first.get(30) == [1, 2, 3, 4, 5]
    assert second.get(30) == [3]


def test_callbacks_get_the_result(pool: Pool) -> None:
    seen: list[Any] = []
    pool.apply_async(lambda: 7, callback=seen.append).get(30)
    pool.map_async(lambda x: x, [1, 2], callback=seen.append).get(30)
    end(pool)
    assert seen == [7, [1, 2]]


def test_error_callbacks_are_called_instead(pool: Pool) -> None:
    results: list[Any] = []
    errors: list[Any] = []
    failing = pool.apply_async(lambda: 1 / 0, callback=results.append, error_callback=errors.append)
    with pytest.raises(ZeroDivisionError):
        failing.get(30)
    end(pool)
    assert results == []
    assert len(errors) == 1 and isinstance(errors[0], Exception)


@pytest.mark.improves("error callbacks get the error itself, as in the standard library")
def test_error_callbacks_get_the_error_itself(pool: Pool) -> None:
    errors: list[Any] = []
    pool.apply_async(lambda: 1 / 0, error_callback=errors.append).wait(30)
    end(pool)
    assert isinstance(errors[0], ZeroDivisionError)


def test_results_in_any_order(pool: Pool, gate: Any) -> None:
    def wait(gate: Any) -> str:
        gate.wait()
        return "slow"

    slow = pool.apply_async(wait, (gate,))
    assert pool.apply(lambda: "fast") == "fast"
    gate.open()
    assert slow.get(30) == "slow"


# ---------------------------------------------------------------- errors


def test_errors_of_calls_are_raised_as_they_are(pool: Pool) -> None:
    def fail(x: int) -> int:
        if x == 3:
            raise KeyError("three")
        return x

    with pytest.raises(KeyError):
        pool.apply(fail, (3,))
    with pytest.raises(KeyError):
        pool.map(fail, range(5))
    assert pool.map(fail, range(3)) == [0, 1, 2]


@pytest.mark.improves("imap raises errors, as in the standard library; on Ray it returns them")
def test_an_error_in_imap_comes_at_its_place(pool: Pool) -> None:
    def fail(x: int) -> int:
        if x == 1:
            raise KeyError("one")
        return x

    results = pool.imap(fail, range(3))
    assert next(results) == 0
    with pytest.raises(KeyError):
        next(results)
    assert next(results) == 2


# ---------------------------------------------------------------- the pool's own life


def test_initializer_runs_in_every_process(notes: Any) -> None:
    def prepare(notes: Any, text: str) -> None:
        notes.add(text)

    pool = Pool(2, initializer=prepare, initargs=(notes, "prepared"))
    pool.map(lambda x: x, range(4))
    assert notes.wait(2) == ["prepared"] * 2
    end(pool)


def test_maxtasksperchild_replaces_processes() -> None:
    pool = Pool(1, maxtasksperchild=2)
    pids = [pool.apply(os.getpid) for _ in range(4)]
    assert pids[0] == pids[1] and pids[2] == pids[3] and pids[0] != pids[2]
    end(pool)


def test_close_finishes_what_was_submitted_and_refuses_more(gate: Any) -> None:
    def wait(gate: Any) -> str:
        gate.wait()
        return "done"

    pool = Pool(1)
    result = pool.apply_async(wait, (gate,))
    pool.close()
    with pytest.raises(ValueError):
        pool.apply(os.getpid)
    with pytest.raises(ValueError):
        pool.map(str, [1])
    gate.open()
    pool.join()
    assert result.get(30) == "done"


def test_join_of_an_open_pool_is_a_value_error(pool: Pool) -> None:
    with pytest.raises(ValueError):
        pool.join()


def test_context_manager_ends_the_pool() -> None:
    with Pool(1) as pool:
        assert pool.map(lambda x: x + 1, [1]) == [2]
    with pytest.raises(ValueError):
        pool.map(str, [1])
    pool.join()


def test_number_of_processes_is_checked() -> None:
    for number in (0, -1):
        with pytest.raises(ValueError):
            Pool(number)
    with pytest.raises((TypeError, ValueError)):
        Pool("two")


def test_ray_remote_args_are_options_of_the_processes() -> None:
    pool = Pool(1, ray_remote_args={"num_cpus": 0.5})
    assert pool.apply(lambda: ray.get_runtime_context().get_assigned_resources()) == {"CPU": 0.5}
    end(pool)


def test_processes_can_use_ray(pool: Pool) -> None:
    @ray.remote(num_cpus=0)
    def square(x: int) -> int:
        return x * x

    assert pool.map(lambda x: ray.get(square.remote(x)), range(3)) == [0, 1, 4]


def test_pools_can_be_used_in_tasks() -> None:
    @ray.remote(num_cpus=0)
    def run() -> list[int]:
        from ray.util.multiprocessing import Pool

        pool = Pool(1)
        try:
            return pool.map(lambda x: x + 1, range(3))
        finally:
            pool.terminate()
            pool.join()

    assert ray.get(run.remote(), timeout=60) == [1, 2, 3]


def test_timeout_error_is_that_of_the_standard_library() -> None:
    assert TimeoutError is standard.TimeoutError


# ---------------------------------------------------------------- joblib


def test_joblib_backend(pool: Pool) -> None:
    joblib = pytest.importorskip("joblib")
    from ray.util.joblib import register_ray

    register_ray()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with joblib.parallel_backend("ray", n_jobs=2):
            results = joblib.Parallel()(joblib.delayed(lambda x: (x * x, os.getpid()))(x) for x in range(10))
    assert [value for value, _ in results] == [x * x for x in range(10)]
    assert os.getpid() not in {pid for _, pid in results}


def test_joblib_errors_are_raised() -> None:
    joblib = pytest.importorskip("joblib")
    from ray.util.joblib import register_ray

    def fail(x: int) -> int:
        raise KeyError(x)

    register_ray()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with joblib.parallel_backend("ray", n_jobs=2), pytest.raises(KeyError):
            joblib.Parallel()(joblib.delayed(fail)(x) for x in range(2))
