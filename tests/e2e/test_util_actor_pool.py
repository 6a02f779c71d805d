"""ActorPool: work handed to whichever actor is free, and taken back in either order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.gates import Gate

import noded
from noded.exceptions import TaskError
from noded.util import ActorPool

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.slow]


@noded.remote
class Worker:
    def double(self, value: Any) -> Any:
        return value * 2

    def fail(self, value: Any) -> None:
        raise KeyError(value)

    def behind(self, gate: Gate, value: Any) -> Any:
        gate.wait()
        return value


def double(actor: Any, value: Any) -> Any:
    return actor.double.remote(value)


@pytest.fixture
def pool() -> Iterator[ActorPool]:
    made = ActorPool([Worker.remote() for _ in range(2)])
    yield made
    vars(made).clear()  # pytest keeps it for longer than the actors are to live


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


def test_map_keeps_the_order(pool: ActorPool) -> None:
    assert list(pool.map(double, range(7))) == [2 * i for i in range(7)]


def test_map_unordered_gives_each_once(pool: ActorPool) -> None:
    assert sorted(pool.map_unordered(double, range(7))) == [2 * i for i in range(7)]


def test_unordered_answers_come_as_they_are_ready(pool: ActorPool, gate: Gate) -> None:
    pool.submit(lambda actor, value: actor.behind.remote(gate, value), "first")
    pool.submit(double, "x")
    assert pool.get_next_unordered(timeout=30) == "xx"
    gate.open()
    assert pool.get_next_unordered(timeout=30) == "first"


def test_what_no_actor_is_free_for_waits_its_turn(pool: ActorPool, gate: Gate) -> None:
    for value in range(5):
        pool.submit(double, value)
    assert not pool.has_free()
    assert [pool.get_next() for _ in range(5)] == [0, 2, 4, 6, 8]
    assert pool.has_free() and not pool.has_next()


def test_a_timeout_leaves_the_answer_or_gives_it_up(pool: ActorPool, gate: Gate) -> None:
    pool.submit(lambda actor, value: actor.behind.remote(gate, value), 1)
    with pytest.raises(TimeoutError):
        pool.get_next(timeout=0.01)
    assert pool.has_next()
    with pytest.raises(TimeoutError, match="has been ignored"):
        pool.get_next(timeout=0.01, ignore_if_timedout=True)
    assert not pool.has_next()
    gate.open()


def test_map_drops_the_answers_of_before(pool: ActorPool, gate: Gate) -> None:
    pool.submit(double, 100)
    assert list(pool.map(double, [1, 2])) == [2, 4]


def test_nothing_outstanding_is_the_end(pool: ActorPool) -> None:
    with pytest.raises(StopIteration):
        pool.get_next()
    with pytest.raises(StopIteration):
        pool.get_next_unordered()


def test_ordered_after_a_later_unordered_one_is_refused(pool: ActorPool, gate: Gate) -> None:
    pool.submit(lambda actor, value: actor.behind.remote(gate, value), 1)
    pool.submit(double, 2)
    assert pool.get_next_unordered() == 4
    with pytest.raises(ValueError, match="get_next_unordered"):
        pool.get_next()
    gate.open()
    assert pool.get_next_unordered() == 1


def test_an_error_is_raised_and_its_actor_is_free_again(pool: ActorPool) -> None:
    pool.submit(lambda actor, value: actor.fail.remote(value), "oh")
    with pytest.raises(KeyError) as caught:
        pool.get_next()
    assert isinstance(caught.value, TaskError)
    assert pool.has_free()
    assert list(pool.map(double, [1, 2, 3])) == [2, 4, 6]


def test_actors_can_be_added_and_taken_out(pool: ActorPool) -> None:
    first = pool.pop_idle()
    with pytest.raises(ValueError, match="already belongs"):
        pool.push(pool._idle[0])
    assert pool.pop_idle() is not None and pool.pop_idle() is None
    pool.submit(double, 4)
    assert not pool.has_next()
    pool.push(first)
    assert pool.get_next() == 8


def test_a_function_that_returns_no_ref_is_refused(pool: ActorPool) -> None:
    with pytest.raises(TypeError, match="ObjectRef"):
        pool.submit(lambda actor, value: value, 1)
    assert pool.has_free()
