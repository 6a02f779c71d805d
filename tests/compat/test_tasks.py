"""Tasks: arguments, closures, and what travels."""

from __future__ import annotations

import enum
import os
import threading
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import ray

pytestmark = pytest.mark.usefixtures("cluster")
TIMEOUT = 60


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=TIMEOUT)


# ---------------------------------------------------------------- calls


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((1,), {}, (1, 2, (), 3, {})),
        ((1, 5), {}, (1, 5, (), 3, {})),
        ((1, 5, 6, 7), {}, (1, 5, (6, 7), 3, {})),
        ((1,), {"c": 9}, (1, 2, (), 9, {})),
        ((), {"a": 4, "b": 5, "z": 6}, (4, 5, (), 3, {"z": 6})),
    ],
)
def test_arguments_are_bound_as_in_a_plain_call(args: Any, kwargs: Any, expected: Any) -> None:
    @ray.remote
    def bind(a: Any, b: Any = 2, *rest: Any, c: Any = 3, **named: Any) -> Any:
        return a, b, rest, c, named

    assert get(bind.remote(*args, **kwargs)) == expected


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), ((1, 2), {}), ((1,), {"y": 2}), ((1,), {"x": 2}), ((), {"y": 2})]
)
def test_wrong_arguments_are_refused_by_the_call(args: Any, kwargs: Any) -> None:
    @ray.remote
    def identity(x: Any) -> Any:
        return x

    with pytest.raises(TypeError):
        identity.remote(*args, **kwargs)


def test_a_remote_function_cannot_be_called_directly() -> None:
    @ray.remote
    def function() -> int:
        return 1

    with pytest.raises(TypeError):
        function()


def test_lambdas_can_be_remote() -> None:
    double = ray.remote(lambda x: 2 * x)

    assert get(double.remote(4)) == 8


def test_a_function_may_be_made_remote_more_than_once() -> None:
    def two() -> Any:
        return 1, 2

    first, second = ray.remote(two), ray.remote(num_returns=2)(two)

    assert get(first.remote()) == (1, 2)
    assert get(second.remote()) == [1, 2]
    assert two() == (1, 2)


def test_a_task_may_return_nothing() -> None:
    @ray.remote
    def nothing() -> None:
        pass

    assert get(nothing.remote()) is None


def test_async_functions_are_not_tasks() -> None:
    with pytest.raises(ValueError):

        @ray.remote
        async def function() -> int:
            return 1

        function.remote()


def test_tasks_run_in_other_processes() -> None:
    @ray.remote
    def pid() -> int:
        return os.getpid()

    assert get(pid.remote()) != os.getpid()


def test_exceptions_can_be_values() -> None:
    @ray.remote
    def make() -> Exception:
        return KeyError("a value")

    value = get(make.remote())

    assert isinstance(value, KeyError) and value.args == ("a value",)


# ---------------------------------------------------------------- what travels


def test_closures_and_globals_travel_by_value() -> None:
    base = 40

    def add(x: int) -> int:
        return x + base

    @ray.remote
    def function(x: int) -> int:
        return add(x) + int(np.int64(0))

    assert get(function.remote(2)) == 42


def test_a_closure_is_taken_at_the_first_call() -> None:
    values = [1]

    @ray.remote
    def see() -> list[int]:
        return values

    assert get(see.remote()) == [1]
    values.append(2)
    assert get(see.remote()) == [1]


def test_functions_with_the_same_name_are_not_mixed_up() -> None:
    def make(n: int) -> Any:
        @ray.remote
        def function() -> int:
            return n

        return function

    made = [make(n) for n in range(5)]

    assert get([function.remote() for function in made]) == [0, 1, 2, 3, 4]


def test_remote_functions_call_themselves() -> None:
    @ray.remote
    def fibonacci(n: int) -> int:
        if n < 2:
            return n
        return sum(ray.get([fibonacci.remote(n - 1), fibonacci.remote(n - 2)]))

    assert get(fibonacci.remote(5)) == 5


def test_remote_functions_are_arguments_and_results() -> None:
    @ray.remote
    def add(x: int, y: int) -> int:
        return x + y

    @ray.remote
    def apply(function: Any, *args: int) -> int:
        return ray.get(function.remote(*args))

    @ray.remote
    def give() -> Any:
        return add

    assert get(apply.remote(add, 3, 4)) == 7
    assert get(get(give.remote()).remote(5, 6)) == 11


def test_classes_of_the_test_travel_by_value() -> None:
    @dataclass
    class Point:
        x: int
        y: int = 0

        def norm(self) -> int:
            return abs(self.x) + abs(self.y)

    class Color(enum.Enum):
        RED = 1

    Pair = namedtuple("Pair", "left right")

    @ray.remote
    def use(point: Any, color: Any, pair: Any) -> Any:
        return point.norm(), color.name, pair.left, Point(point.y, point.x), color

    norm, name, left, flipped, color = get(use.remote(Point(3, -4), Color.RED, Pair(1, 2)))

    assert (norm, name, left) == (7, "RED", 1)
    assert (flipped.x, flipped.y, color.value) == (-4, 3, 1)


def test_arguments_are_copies() -> None:
    @ray.remote
    def grow(items: list[int]) -> list[int]:
        items.append(9)
        return items

    items = [1]

    assert get(grow.remote(items)) == [1, 9]
    assert items == [1]


def test_a_put_argument_is_not_changed_for_others() -> None:
    @ray.remote
    def grow(items: list[int]) -> int:
        items.append(9)
        return len(items)

    ref = ray.put([1, 2])

    assert get([grow.remote(ref) for _ in range(3)]) == [3, 3, 3]
    assert get(ref) == [1, 2]


@pytest.mark.parametrize("size", [10, 90_000, 110_000, 3 << 20])
def test_arguments_and_results_of_any_size(size: int) -> None:
    @ray.remote
    def twice(data: bytes) -> bytes:
        return data + data

    data = os.urandom(size)

    assert get(twice.remote(data)) == data + data


def test_what_cannot_be_pickled_is_refused_by_the_call() -> None:
    @ray.remote
    def identity(x: Any) -> Any:
        return x

    with pytest.raises(TypeError):
        identity.remote(i for i in range(3))
    with pytest.raises(TypeError):
        identity.remote({"deep": [threading.Lock()]})


def test_what_a_function_closes_over_must_be_picklable() -> None:
    lock = threading.Lock()

    @ray.remote
    def function() -> bool:
        return lock.locked()

    with pytest.raises(TypeError):
        function.remote()
