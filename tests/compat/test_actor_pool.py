"""ray.util.ActorPool: work handed to whichever actor is free."""

from __future__ import annotations

from typing import Any

import pytest
import ray
from ray.util import ActorPool

pytestmark = pytest.mark.usefixtures("cluster")


def worker_class() -> Any:
    @ray.remote(num_cpus=0)
    class Worker:
        def double(self, x: int) -> int:
            return 2 * x

        def wait(self, gate: Any, value: Any) -> Any:
            gate.wait()
            return value

        def fail(self, x: Any) -> None:
            raise ValueError(f"cannot do {x}")

    return Worker


def two_workers() -> ActorPool:
    Worker = worker_class()
    return ActorPool([Worker.remote(), Worker.remote()])


def double(actor: Any, value: int) -> Any:
    return actor.double.remote(value)


def test_map_keeps_the_order() -> None:
    pool = two_workers()
    assert list(pool.map(double, [1, 2, 3, 4, 5])) == [2, 4, 6, 8, 10]


def test_map_of_nothing() -> None:
    pool = two_workers()
    assert list(pool.map(double, [])) == []
    assert list(pool.map_unordered(double, [])) == []


def test_map_unordered_gives_all() -> None:
    pool = two_workers()
    assert sorted(pool.map_unordered(double, range(6))) == [0, 2, 4, 6, 8, 10]


def test_map_keeps_the_order_of_slow_ones(gates: Any) -> None:
    pool = two_workers()
    slow, fast = gates("slow"), gates("fast")
    fast.open()
    results = pool.map(lambda actor, pair: actor.wait.remote(*pair), [(slow, "slow"), (fast, "fast")])
    slow.open()
    assert list(results) == ["slow", "fast"]


def test_map_unordered_gives_the_fast_ones_first(gates: Any) -> None:
    pool = two_workers()
    slow, fast = gates("slow"), gates("fast")
    fast.open()
    results = pool.map_unordered(lambda actor, pair: actor.wait.remote(*pair), [(slow, "slow"), (fast, "fast")])
    assert next(iter(results)) == "fast"
    slow.open()
    assert list(results) == ["slow"]


def test_submit_and_get_next_in_order() -> None:
    pool = two_workers()
    for value in range(4):  # more than there are actors
        pool.submit(double, value)
    assert [pool.get_next() for _ in range(4)] == [0, 2, 4, 6]


def test_get_next_unordered(gates: Any) -> None:
    pool = two_workers()
    slow, fast = gates("slow"), gates("fast")
    fast.open()
    pool.submit(lambda actor, value: actor.wait.remote(slow, value), "slow")
    pool.submit(lambda actor, value: actor.wait.remote(fast, value), "fast")
    assert pool.get_next_unordered() == "fast"
    slow.open()
    assert pool.get_next_unordered() == "slow"


def test_has_next_and_has_free() -> None:
    pool = two_workers()
    assert not pool.has_next() and pool.has_free()
    pool.submit(double, 1)
    assert pool.has_next() and pool.has_free()
    pool.submit(double, 2)
    assert pool.has_next() and not pool.has_free()
    assert [pool.get_next(), pool.get_next()] == [2, 4]
    assert not pool.has_next() and pool.has_free()


def test_get_next_of_nothing_stops_the_iteration() -> None:
    pool = two_workers()
    with pytest.raises(StopIteration):
        pool.get_next()
    with pytest.raises(StopIteration):
        pool.get_next_unordered()


def test_timeout_of_get_next(gate: Any) -> None:
    pool = two_workers()
    pool.submit(lambda actor, value: actor.wait.remote(gate, value), "late")
    with pytest.raises(TimeoutError):
        pool.get_next(timeout=0.1)
    with pytest.raises(TimeoutError):
        pool.get_next_unordered(timeout=0.1)
    gate.open()
    assert pool.get_next(timeout=30) == "late"


def test_timed_out_work_can_be_ignored(gate: Any) -> None:
    pool = two_workers()
    pool.submit(lambda actor, value: actor.wait.remote(gate, value), "late")
    pool.submit(double, 5)
    with pytest.raises(TimeoutError):
        pool.get_next(timeout=0.2, ignore_if_timedout=True)
    assert pool.get_next(timeout=30) == 10
    gate.open()


def test_errors_of_the_work_are_raised_and_the_pool_goes_on() -> None:
    pool = two_workers()
    pool.submit(lambda actor, value: actor.fail.remote(value), 1)
    with pytest.raises(ValueError, match="cannot do 1"):
        pool.get_next()
    pool.submit(double, 4)
    assert pool.get_next() == 8


def test_push_and_pop_idle() -> None:
    pool = two_workers()
    first = pool.pop_idle()
    second = pool.pop_idle()
    assert first is not None and second is not None and first != second
    assert pool.pop_idle() is None
    assert not pool.has_free()
    pool.push(first)
    assert pool.has_free()
    assert list(pool.map(double, [1, 2])) == [2, 4]


def test_push_of_an_actor_that_is_in_the_pool_is_a_value_error() -> None:
    pool = two_workers()
    actor = pool.pop_idle()
    pool.push(actor)
    with pytest.raises(ValueError):
        pool.push(actor)


def test_push_starts_waiting_work(gate: Any) -> None:
    Worker = worker_class()
    pool = ActorPool([Worker.remote()])
    pool.submit(lambda actor, value: actor.wait.remote(gate, value), "first")
    pool.submit(double, 3)
    pool.push(Worker.remote())
    assert pool.get_next_unordered(timeout=30) == 6
    gate.open()
    assert pool.get_next_unordered(timeout=30) == "first"
