"""Actors: construction, state, errors, and the order of calls."""

from __future__ import annotations

import os
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

pytestmark = pytest.mark.usefixtures("cluster")


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=60)


def counter_class() -> Any:
    @ray.remote
    class Counter:
        def __init__(self, start: int = 0) -> None:
            self.value = start

        def add(self, amount: int = 1) -> int:
            self.value += amount
            return self.value

        def pid(self) -> int:
            return os.getpid()

    return Counter


# ---------------------------------------------------------------- construction


def test_state_is_kept_between_calls() -> None:
    counter = counter_class().remote()

    assert get(counter.add.remote()) == 1
    assert get(counter.add.remote(10)) == 11
    assert get(counter.add.remote(amount=4)) == 15


def test_constructor_takes_all_kinds_of_arguments() -> None:
    @ray.remote
    class Arguments:
        def __init__(self, a: int, b: int = 2, *rest: int, c: int, d: int = 4, **more: int) -> None:
            self.seen = (a, b, rest, c, d, more)

        def seen_by_init(self) -> Any:
            return self.seen

    assert get(Arguments.remote(1, c=3).seen_by_init.remote()) == (1, 2, (), 3, 4, {})
    assert get(Arguments.remote(1, 5, 6, 7, c=8, e=9).seen_by_init.remote()) == (1, 5, (6, 7), 8, 4, {"e": 9})


def test_constructor_gets_the_values_of_top_level_refs_and_the_refs_of_nested_ones() -> None:
    @ray.remote
    class Keeper:
        def __init__(self, value: Any, nested: Any, *, named: Any) -> None:
            self.seen = value, type(nested[0]) is ray.ObjectRef, ray.get(nested[0]), named

        def all(self) -> Any:
            return self.seen

    keeper = Keeper.remote(ray.put(1), [ray.put(2)], named=ray.put(3))
    assert get(keeper.all.remote()) == (1, True, 2, 3)


def test_constructor_waits_for_its_arguments(gate: Any) -> None:
    @ray.remote
    def late(gate: Any) -> str:
        gate.wait()
        return "late"

    @ray.remote
    class Holder:
        def __init__(self, value: str) -> None:
            self.value = value

        def get(self) -> str:
            return self.value

    ref = Holder.remote(late.remote(gate)).get.remote()
    assert ray.wait([ref], timeout=0.1) == ([], [ref])
    gate.open()
    assert get(ref) == "late"


def test_class_without_constructor() -> None:
    @ray.remote
    class Plain:
        def hello(self) -> str:
            return "hello"

    assert get(Plain.remote().hello.remote()) == "hello"


def test_remote_as_a_function_with_and_without_options() -> None:
    class Plain:
        def hello(self) -> str:
            return "hello"

    assert get(ray.remote(Plain).remote().hello.remote()) == "hello"
    assert get(ray.remote(num_cpus=1)(Plain).remote().hello.remote()) == "hello"


def test_options_returns_another_class_and_leaves_the_first_alone() -> None:
    Counter = counter_class()
    wide = Counter.options(num_cpus=0.5)

    assert wide is not Counter
    assert get(wide.remote(3).add.remote()) == 4
    assert get(Counter.remote().add.remote()) == 1


def test_wrong_constructor_arguments_are_refused_at_once() -> None:
    Counter = counter_class()

    with pytest.raises(TypeError):
        Counter.remote(1, 2)
    with pytest.raises(TypeError):
        Counter.remote(begin=1)


def test_wrong_method_arguments_are_refused_at_once() -> None:
    counter = counter_class().remote()

    with pytest.raises(TypeError):
        counter.add.remote(1, 2)
    with pytest.raises(TypeError):
        counter.add.remote(by=1)
    with pytest.raises(TypeError):
        counter.pid.remote(1)


def test_actor_classes_and_methods_cannot_be_called_directly() -> None:
    Counter = counter_class()
    counter = Counter.remote()

    with pytest.raises(TypeError):
        Counter()
    with pytest.raises(TypeError):
        counter.add()


def test_unknown_method_is_an_attribute_error() -> None:
    counter = counter_class().remote()

    with pytest.raises(AttributeError):
        counter.subtract.remote(1)
    with pytest.raises(AttributeError):
        _ = counter.value


def test_two_actors_are_two_processes() -> None:
    Counter = counter_class()
    first, second = Counter.remote(), Counter.remote()

    get(first.add.remote(5))
    assert get(second.add.remote()) == 1
    pids = get([first.pid.remote(), second.pid.remote()])
    assert len({*pids, os.getpid()}) == 3


# ---------------------------------------------------------------- calls


def test_calls_of_one_caller_run_in_order() -> None:
    @ray.remote
    class Log:
        def __init__(self) -> None:
            self.lines: list[int] = []

        def add(self, line: int) -> None:
            self.lines.append(line)

        def all(self) -> list[int]:
            return self.lines

    log = Log.remote()
    for number in range(200):
        log.add.remote(number)
    assert get(log.all.remote()) == list(range(200))


def test_a_call_that_waits_for_its_argument_holds_back_later_calls(gate: Any) -> None:
    @ray.remote
    def late(gate: Any) -> int:
        gate.wait()
        return 10

    counter = counter_class().remote()
    first = counter.add.remote(late.remote(gate))
    second = counter.add.remote(1)
    assert ray.wait([second], timeout=0.2) == ([], [second])
    gate.open()
    assert get([first, second]) == [10, 11]


def test_out_of_order_execution_lets_later_calls_go_ahead(gate: Any) -> None:
    @ray.remote
    def late(gate: Any) -> int:
        gate.wait()
        return 10

    counter = counter_class().options(allow_out_of_order_execution=True).remote()
    first = counter.add.remote(late.remote(gate))
    assert get(counter.add.remote(1)) == 1
    gate.open()
    assert get(first) == 11


def test_overlapping_calls_have_no_order_to_keep() -> None:
    with pytest.raises(ValueError):
        counter_class().options(max_concurrency=2, allow_out_of_order_execution=False).remote()


def test_methods_take_and_return_refs_and_handles() -> None:
    Counter = counter_class()

    @ray.remote
    class Maker:
        def make(self, start: int) -> Any:
            return Counter.remote(start)

        def put(self, value: Any) -> Any:
            return ray.put(value)

        def length(self, refs: list[Any]) -> int:
            return sum(ray.get(refs))

    maker = Maker.remote()
    made = get(maker.make.remote(5))
    assert get(made.add.remote()) == 6
    ref = get(maker.put.remote("x"))
    assert isinstance(ref, ray.ObjectRef) and get(ref) == "x"
    assert get(maker.length.remote([ray.put(1), ray.put(2)])) == 3


def test_numpy_travels_both_ways() -> None:
    np = pytest.importorskip("numpy")

    @ray.remote
    class Matrix:
        def __init__(self, values: Any) -> None:
            self.values = values

        def doubled(self) -> Any:
            return self.values * 2

    values = np.arange(200_000, dtype=np.float64)
    doubled = get(Matrix.remote(values).doubled.remote())
    assert np.array_equal(doubled, values * 2)
    assert not doubled.flags.writeable


def test_error_in_a_method_is_raised_by_get_and_the_actor_lives_on() -> None:
    @ray.remote
    class Fragile:
        def fail(self) -> None:
            raise KeyError("broken")

        def fine(self) -> str:
            return "fine"

    fragile = Fragile.remote()
    with pytest.raises(KeyError) as caught:
        get(fragile.fail.remote())
    assert isinstance(caught.value, RayTaskError)
    assert isinstance(caught.value.cause, KeyError)
    assert "broken" in str(caught.value)
    assert get(fragile.fine.remote()) == "fine"


def test_error_in_the_constructor_is_what_every_call_gets() -> None:
    @ray.remote
    class Broken:
        def __init__(self) -> None:
            raise ValueError("no good start")

        def call(self) -> None: ...

    broken = Broken.remote()
    for _ in range(2):
        with pytest.raises(ActorDiedError, match="no good start") as caught:
            get(broken.call.remote())
        assert isinstance(caught.value, RayActorError)


def test_error_of_a_constructor_argument_ends_the_actor() -> None:
    @ray.remote
    def fail() -> None:
        raise RuntimeError("argument failed")

    Counter = counter_class()
    with pytest.raises(RayActorError):
        get(Counter.remote(fail.remote()).add.remote())


def test_error_of_a_call_argument_is_the_error_of_the_call() -> None:
    @ray.remote
    def fail() -> None:
        raise RuntimeError("argument failed")

    counter = counter_class().remote()
    with pytest.raises(RuntimeError, match="argument failed"):
        get(counter.add.remote(fail.remote()))
    assert get(counter.add.remote()) == 1


def test_attributes_that_cannot_be_pickled_stay_in_the_actor() -> None:
    import threading

    @ray.remote
    class Locked:
        def __init__(self) -> None:
            self.lock = threading.Lock()

        def take(self) -> bool:
            return self.lock.acquire(blocking=False)

    locked = Locked.remote()
    assert get([locked.take.remote(), locked.take.remote()]) == [True, False]
