"""multiprocessing.Pool: the standard library's API, checked against the standard library's own behaviour."""

from __future__ import annotations

import operator
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.gates import Gate, Notes
from harness.wait import wait_for

import noded
from noded.exceptions import ActorDiedError, TaskError
from noded.util.multiprocessing import Pool, TimeoutError

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.slow]


def square(x: int) -> int:
    return x * x


def fail_at_three(x: int) -> int:
    if x == 3:
        raise KeyError("three")
    return x


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool(2) as made:
        yield made
    made.join()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    made = Gate(tmp_path / "gate")
    yield made
    made.open()


def test_apply(pool: Pool) -> None:
    assert pool.apply(divmod, (7, 2)) == (3, 1)
    assert pool.apply(int, ("11",), {"base": 2}) == 3
    assert pool.apply(dict) == {}


@pytest.mark.parametrize("chunksize", [None, 1, 3, 100])
def test_map_and_starmap(pool: Pool, chunksize: int | None) -> None:
    assert pool.map(square, range(10), chunksize) == [x * x for x in range(10)]
    assert pool.starmap(operator.add, [(1, 2), (3, 4)], chunksize) == [3, 7]
    assert pool.map(square, (x for x in range(3))) == [0, 1, 4]
    assert pool.map(square, []) == []


@pytest.mark.parametrize("chunksize", [1, 3])
def test_imap(pool: Pool, chunksize: int) -> None:
    assert list(pool.imap(square, iter(range(10)), chunksize)) == [x * x for x in range(10)]
    assert sorted(pool.imap_unordered(square, range(10), chunksize)) == [x * x for x in range(10)]
    assert list(pool.imap(square, [])) == []


def test_imap_reads_its_arguments_as_results_are_taken(pool: Pool) -> None:
    read: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            read.append(len(read))
            yield read[-1]

    results = pool.imap(square, endless())
    assert [next(results) for _ in range(10)] == [x * x for x in range(10)]
    assert len(read) < 20


def test_the_users_own_exception_is_raised(pool: Pool) -> None:
    for call in (lambda: pool.apply(fail_at_three, (3,)), lambda: pool.map(fail_at_three, range(5))):
        with pytest.raises(KeyError) as caught:
            call()
        assert type(caught.value) is KeyError and caught.value.args == ("three",)
        assert isinstance(caught.value.__cause__, TaskError)
        assert "fail_at_three" in caught.value.__cause__.traceback_text


def test_an_error_in_imap_is_one_of_its_results(pool: Pool) -> None:
    results = pool.imap(fail_at_three, range(5), chunksize=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError):
        next(results)
    assert list(results) == [4]


def test_an_error_of_the_arguments_comes_behind_what_was_before_it(pool: Pool) -> None:
    def arguments() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("no more")

    results = pool.imap(square, arguments())
    assert [next(results), next(results)] == [1, 4]
    with pytest.raises(OSError, match="no more"):
        next(results)
    assert list(results) == []


def test_what_cannot_be_pickled_is_an_error_and_no_more(pool: Pool) -> None:
    class Locked(Exception):
        def __init__(self) -> None:
            super().__init__("locked")
            self.lock = threading.Lock()

    def fail() -> None:
        raise Locked

    with pytest.raises(TypeError, match="lock"):
        pool.map(square, [threading.Lock()])
    with pytest.raises(TypeError, match="lock"):
        pool.apply(threading.Lock)
    with pytest.raises(TaskError, match="locked"):
        pool.apply(fail)
    assert pool.map(square, [1, 2]) == [1, 4]


def test_async_result(pool: Pool, gate: Gate) -> None:
    result = pool.apply_async(gate.wait)
    assert not result.ready()
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    with pytest.raises(TimeoutError):
        result.get(timeout=0.01)
    result.wait(0.01)
    assert not result.ready()
    gate.open()
    result.wait()
    assert result.ready() and result.successful() and result.get(0) is None

    failed = pool.map_async(fail_at_three, range(5))
    failed.wait()
    assert not failed.successful()
    for _ in range(2):
        with pytest.raises(KeyError):
            failed.get()


def test_imap_with_a_timeout(pool: Pool, gate: Gate) -> None:
    results = pool.imap(lambda _: gate.wait(), [1])
    with pytest.raises(TimeoutError):
        results.next(timeout=0.01)
    gate.open()
    assert results.next(timeout=30) is None
    with pytest.raises(StopIteration):
        results.next()


def test_callbacks_have_run_when_the_result_is_ready(pool: Pool) -> None:
    called: list[Any] = []
    pool.map_async(square, range(3), callback=called.append, error_callback=called.append).wait()
    pool.starmap_async(square, [(4,)], callback=called.append).wait()
    pool.map_async(square, [], callback=called.append).wait()
    assert called == [[0, 1, 4], [16], []]

    pool.apply_async(fail_at_three, (3,), callback=called.append, error_callback=called.append).wait()
    assert type(called[-1]) is KeyError


def test_a_callback_that_raises_costs_only_itself(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    assert pool.apply_async(square, (3,), callback=lambda _: 1 / 0).get(30) == 9
    assert "ZeroDivisionError" in caplog.text
    assert pool.apply(square, (4,)) == 16


def test_a_long_call_holds_up_no_other(pool: Pool, gate: Gate) -> None:
    long = pool.apply_async(gate.wait)
    assert pool.map(square, range(50), chunksize=1) == [x * x for x in range(50)]
    assert not long.ready()


def test_the_initializer_runs_first_in_each_process() -> None:
    def remember(value: str) -> None:
        os.environ["TEST_INITIALIZED"] = value

    with Pool(2, initializer=remember, initargs=("yes",)) as pool:
        assert set(pool.map(lambda _: os.environ.get("TEST_INITIALIZED"), range(10), chunksize=1)) == {"yes"}
    with pytest.raises(ActorDiedError, match="not today"):
        Pool(1, initializer=exec, initargs=("raise ValueError('not today')",))


def test_a_process_is_replaced_after_its_share() -> None:
    with Pool(1, maxtasksperchild=2) as pool:
        pids = [pool.apply(os.getpid) for _ in range(6)]
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4] == pids[5] != pids[0]


def test_a_process_that_dies_is_replaced(pool: Pool) -> None:
    with pytest.raises(ActorDiedError):
        pool.apply(os._exit, (3,))
    assert pool.map(square, range(10), chunksize=1) == [x * x for x in range(10)]


def test_close_lets_what_there_is_be_done(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes")
    pool = Pool(2)
    with pytest.raises(ValueError, match="still running"):
        pool.join()
    result = pool.map_async(notes.add, range(8), chunksize=1)
    pool.close()
    for refused in (lambda: pool.map(square, [1]), lambda: pool.imap(square, [1]), lambda: pool.apply(square, (1,))):
        with pytest.raises(ValueError, match="not running"):
            refused()
    pool.join()
    assert len(notes.all()) == 8 and result.ready()


def test_terminate_ends_what_runs(gate: Gate) -> None:
    pool = Pool(2)
    result = pool.map_async(lambda _: gate.wait(), range(5), chunksize=1)
    pool.terminate()
    pool.join()
    with pytest.raises(ActorDiedError):
        result.get(timeout=30)
    pool.terminate()


def test_a_dropped_pool_finishes_its_work() -> None:
    result = Pool(2).map_async(square, range(5))
    assert result.get(30) == [0, 1, 4, 9, 16]


def test_ray_remote_args_are_the_actors_options() -> None:
    with Pool(1, ray_remote_args={"num_cpus": 1}) as pool:
        pool.apply(square, (1,))
        assert noded.available_resources()["CPU"] == 1
    wait_for(lambda: noded.available_resources().get("CPU") == 2, "the pool's actor kept its CPU")
    with pytest.raises(ValueError, match="bogus"):
        Pool(1, ray_remote_args={"bogus": 1})


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (ValueError, {"processes": 0}),
        (ValueError, {"processes": 3}),
        (TypeError, {"processes": "2"}),
        (TypeError, {"processes": 1.5}),
        (TypeError, {"initializer": 5}),
        (ValueError, {"maxtasksperchild": 0}),
    ],
)
def test_wrong_pools_are_refused(error: type[Exception], arguments: dict[str, Any]) -> None:
    with pytest.raises(error):
        Pool(**arguments)


def test_wrong_calls_are_refused(pool: Pool) -> None:
    with pytest.raises(ValueError, match="chunksize"):
        pool.map(square, [1], chunksize=0)
    with pytest.raises(TypeError):
        pool.map(square, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="callable"):
        pool.apply(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="callable"):
        pool.apply_async(square, (1,), callback=3)  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError):
        pickle.dumps(pool)


def test_without_a_cluster_it_starts_one(run_program: Any) -> None:
    source = """
        import os
        import noded
        from noded.util.multiprocessing import Pool
        with Pool(2) as pool:
            print(pool.map(abs, [-1, 2]), noded.cluster_resources()["CPU"])
            left = pool.map_async(abs, [1])
            noded.shutdown()
            try:
                pool.map(abs, [1])
            except noded.exceptions.NodedError as error:
                print(type(error).__name__)
        print(noded.is_initialized())
    """
    assert run_program(source).splitlines() == ["[1, 2] 2.0", "LocalDaemonDiedError", "False"]
