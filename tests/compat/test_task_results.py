"""Tasks: refs as arguments, the number of results, nesting and resources."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import ray
from harness.gates import Gate, GateMaker, Notes

pytestmark = pytest.mark.usefixtures("cluster")
TIMEOUT = 60


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=TIMEOUT)


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
