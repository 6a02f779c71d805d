"""Tasks: arguments, results, closures, nesting, resources."""

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
from harness.gates import Gate, GateMaker, Notes

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


# ---------------------------------------------------------------- refs as arguments


def test_refs_at_the_top_are_replaced_by_their_values() -> None:
    @ray.remote
    def kinds(*args: Any, **kwargs: Any) -> Any:
        return [type(a).__name__ for a in args], {k: type(v).__name__ for k, v in kwargs.items()}

    ref = ray.put(1)

    assert get(kinds.remote(ref, [ref], x=ref, y={"k": ref})) == (["int", "list"], {"x": "int", "y": "dict"})


def test_refs_inside_stay_refs() -> None:
    @ray.remote
    def look(box: Any) -> Any:
        (inner,) = box["refs"]
        return isinstance(inner, ray.ObjectRef), ray.get(inner)

    assert get(look.remote({"refs": [ray.put("inside")]})) == (True, "inside")


def test_chains_of_tasks() -> None:
    @ray.remote
    def increment(x: int) -> int:
        return x + 1

    ref = ray.put(0)
    for _ in range(20):
        ref = increment.remote(ref)

    assert get(ref) == 20


def test_a_task_waits_for_its_arguments(gate: Gate) -> None:
    @ray.remote
    def wait(gate: Any) -> int:
        gate.wait()
        return 1

    @ray.remote
    def add(x: int, y: int) -> int:
        return x + y

    late = add.remote(wait.remote(gate), 2)
    assert ray.wait([late], timeout=0.1) == ([], [late])
    gate.open()

    assert get(late) == 3


def test_a_task_whose_argument_failed_does_not_run(notes: Notes) -> None:
    @ray.remote
    def fail() -> None:
        raise ValueError("first")

    @ray.remote
    def run(x: Any, notes: Any) -> None:
        notes.add()

    with pytest.raises(ValueError, match="first"):
        get(run.remote(fail.remote(), notes))
    assert notes.all() == []


def test_a_returned_ref_is_a_ref() -> None:
    @ray.remote
    def inner() -> str:
        return "value"

    @ray.remote
    def outer() -> Any:
        return inner.remote()

    ref = get(outer.remote())

    assert isinstance(ref, ray.ObjectRef)
    assert get(ref) == "value"


# ---------------------------------------------------------------- number of results


@pytest.mark.parametrize("make", [tuple, list, np.array, "generator", "yield"])
def test_several_results(make: Any) -> None:
    def three() -> Any:
        return (n for n in (1, 2, 3)) if make == "generator" else make([1, 2, 3])

    def stream() -> Any:
        yield from (1, 2, 3)

    three = ray.remote(num_returns=3)(stream if make == "yield" else three)

    refs = three.remote()

    assert isinstance(refs, list) and len(refs) == 3
    assert get(refs) == [1, 2, 3]


def test_no_result() -> None:
    @ray.remote(num_returns=0)
    def run(notes: Any = None) -> None:
        if notes:
            notes.add()

    assert run.remote() is None


def test_a_task_without_result_runs(notes: Notes) -> None:
    @ray.remote(num_returns=0)
    def run(notes: Any) -> None:
        notes.add("ran")

    run.remote(notes)

    assert notes.wait(1) == ["ran"]


@pytest.mark.parametrize("value", [(1,), (1, 2, 3), ()], ids=["fewer", "more", "none"])
def test_the_wrong_number_of_results_is_an_error_of_all(value: Any) -> None:
    @ray.remote(num_returns=2)
    def function() -> Any:
        return value

    for ref in function.remote():
        with pytest.raises(ValueError):
            get(ref)


def test_one_value_is_not_several_results() -> None:
    @ray.remote(num_returns=2)
    def function() -> int:
        return 1

    with pytest.raises(ray.exceptions.RayTaskError):
        get(function.remote())


def test_an_error_is_in_all_results() -> None:
    @ray.remote(num_returns=2)
    def fail() -> None:
        raise KeyError("both")

    for ref in fail.remote():
        with pytest.raises(KeyError):
            get(ref)


def test_results_are_objects_of_their_own() -> None:
    @ray.remote(num_returns=2)
    def big() -> Any:
        return np.zeros(200_000), np.ones(200_000)

    zeros, ones = big.remote()
    del zeros

    assert get(ones).sum() == 200_000


# ---------------------------------------------------------------- nesting and resources


def test_tasks_that_wait_for_tasks_do_not_block_them() -> None:
    @ray.remote
    def down(depth: int) -> int:
        return 1 if depth == 0 else 1 + ray.get(down.remote(depth - 1))

    assert get(down.remote(7)) == 8  # deeper than there are CPUs


def test_refs_made_in_a_task_outlive_it() -> None:
    @ray.remote
    def make() -> list[Any]:
        return [ray.put(np.full(50_000, n)) for n in range(3)]

    assert [int(array[0]) for array in get(get(make.remote()))] == [0, 1, 2]


def test_tasks_run_at_the_same_time(gates: GateMaker) -> None:
    @ray.remote
    def meet(mine: Any, others: Any) -> bool:
        mine.open()
        others.wait()
        return True

    first, second = gates("first"), gates("second")

    assert get([meet.remote(first, second), meet.remote(second, first)]) == [True, True]


@pytest.mark.parametrize("options", [{"num_cpus": 2}, {"num_cpus": 0, "resources": {"widget": 1}}], ids=["CPU", "own"])
def test_resources_limit_what_runs_at_once(options: Any, gate: Gate, notes: Notes) -> None:
    @ray.remote(**options)
    def hold(gate: Any, notes: Any) -> None:
        notes.add("started")
        gate.wait()

    refs = [hold.remote(gate, notes) for _ in range(3)]  # two have room: of 4 CPUs, of 2 widgets
    notes.wait(2)

    assert ray.wait(refs, num_returns=1, timeout=0.3)[0] == []
    assert len(notes.all()) == 2
    gate.open()
    get(refs)
    assert len(notes.all()) == 3


def test_a_task_without_cpus_runs_beside_full_ones(gate: Gate, notes: Notes) -> None:
    @ray.remote(num_cpus=4)
    def hold(gate: Any, notes: Any) -> None:
        notes.add()
        gate.wait()

    @ray.remote(num_cpus=0)
    def light() -> int:
        return 1

    full = hold.remote(gate, notes)
    notes.wait(1)

    assert get(light.remote()) == 1
    gate.open()
    get(full)


def test_a_worker_ends_after_max_calls() -> None:
    @ray.remote(max_calls=1)
    def pid() -> int:
        return os.getpid()

    assert len({get(pid.remote()) for _ in range(3)}) == 3


def test_a_task_has_its_functions_name_or_the_one_it_was_given() -> None:
    @ray.remote
    def tell() -> str:
        return ray.get_runtime_context().get_task_name()

    assert get(tell.remote()).endswith("tell")
    assert get(tell.options(name="own name").remote()) == "own name"


def test_many_tasks_keep_their_results_apart() -> None:
    @ray.remote
    def square(n: int) -> int:
        return n * n

    assert get([square.remote(n) for n in range(300)]) == [n * n for n in range(300)]


def test_the_environment_of_a_task_is_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    @ray.remote
    def read() -> str | None:
        return os.environ.get("SET_LATER_IN_THE_DRIVER")

    monkeypatch.setenv("SET_LATER_IN_THE_DRIVER", "1")

    assert get(read.remote()) is None
