"""What is tried again: after crashes of workers, and after exceptions if asked for."""

from __future__ import annotations

import os
from typing import Any

import pytest
import ray
from harness.gates import Notes

pytestmark = pytest.mark.usefixtures("cluster")
TIMEOUT = 60


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=TIMEOUT)


# ---------------------------------------------------------------- retries


@pytest.mark.parametrize(("retries", "runs"), [(0, 1), (1, 2), (3, 4)])
def test_crashes_are_tried_again_up_to_max_retries(retries: int, runs: int, notes: Notes) -> None:
    @ray.remote(max_retries=retries)
    def die(notes: Any) -> None:
        notes.add()
        os._exit(1)

    with pytest.raises(ray.exceptions.WorkerCrashedError):
        get(die.remote(notes))
    assert len(notes.all()) == runs


def test_crashes_are_tried_again_three_times_by_default(notes: Notes) -> None:
    @ray.remote
    def die_thrice(notes: Any) -> str:
        if notes.add() <= 3:
            os._exit(1)
        return "fourth"

    assert get(die_thrice.remote(notes)) == "fourth"


def test_crashes_are_tried_again_for_ever(notes: Notes) -> None:
    @ray.remote(max_retries=-1)
    def die_often(notes: Any) -> int:
        count = notes.add()
        if count <= 6:
            os._exit(1)
        return count

    assert get(die_often.remote(notes)) == 7


def test_exceptions_are_not_tried_again_by_default(notes: Notes) -> None:
    @ray.remote
    def fail(notes: Any) -> None:
        notes.add()
        raise ValueError

    with pytest.raises(ValueError):
        get(fail.remote(notes))
    assert len(notes.all()) == 1


@pytest.mark.parametrize("which", [True, [ValueError], [KeyError, Exception]], ids=["all", "it", "its base"])
def test_exceptions_are_tried_again_if_asked_for(which: Any, notes: Notes) -> None:
    @ray.remote(max_retries=3, retry_exceptions=which)
    def fail_twice(notes: Any) -> int:
        count = notes.add()
        if count < 3:
            raise ValueError(count)
        return count

    assert get(fail_twice.remote(notes)) == 3


@pytest.mark.parametrize("which", [False, [KeyError], []], ids=["none", "another", "empty"])
def test_other_exceptions_are_not_tried_again(which: Any, notes: Notes) -> None:
    @ray.remote(max_retries=3, retry_exceptions=which)
    def fail(notes: Any) -> None:
        notes.add()
        raise ValueError

    with pytest.raises(ValueError):
        get(fail.remote(notes))
    assert len(notes.all()) == 1


def test_exceptions_use_up_the_retries(notes: Notes) -> None:
    @ray.remote(max_retries=2, retry_exceptions=True)
    def fail(notes: Any) -> None:
        raise ValueError(f"attempt {notes.add()}")

    with pytest.raises(ValueError, match="attempt 3"):
        get(fail.remote(notes))
    assert len(notes.all()) == 3


def test_retries_of_the_users_own_exceptions(notes: Notes) -> None:
    class Flaky(Exception):
        pass

    @ray.remote(retry_exceptions=[Flaky])
    def fail_once(notes: Any) -> str:
        if notes.add() == 1:
            raise Flaky
        return "second"

    assert get(fail_once.remote(notes)) == "second"


def test_crashes_and_exceptions_share_the_retries(notes: Notes) -> None:
    @ray.remote(max_retries=2, retry_exceptions=True)
    def both(notes: Any) -> str:
        count = notes.add()
        if count == 1:
            os._exit(1)
        if count == 2:
            raise ValueError
        return "third"

    assert get(both.remote(notes)) == "third"


def test_a_retried_task_gets_the_same_arguments(notes: Notes) -> None:
    @ray.remote
    def grow(items: list[int], notes: Any) -> list[int]:
        items.append(1)
        if notes.add() == 1:
            os._exit(1)
        return items

    assert get(grow.remote([0], notes)) == [0, 1]
    assert get(grow.remote(ray.put([5]), notes)) == [5, 1]


def test_exceptions_of_methods_are_tried_again_if_asked_for() -> None:
    @ray.remote(max_task_retries=3)
    class Flaky:
        def __init__(self) -> None:
            self.calls = 0

        @ray.method(retry_exceptions=True)
        def third_time(self) -> int:
            self.calls += 1
            if self.calls < 3:
                raise ValueError
            return self.calls

        def fail(self) -> None:
            self.calls += 1
            raise ValueError

        def count(self) -> int:
            return self.calls

    flaky = Flaky.remote()
    assert get(flaky.third_time.remote()) == 3
    with pytest.raises(ValueError):
        get(flaky.fail.remote())
    assert get(flaky.count.remote()) == 4
