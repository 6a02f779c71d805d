"""What a method may declare: number of returns, streams, and how many calls may wait."""

from __future__ import annotations

from typing import Any

import pytest
import ray
from harness.wait import wait_for
from ray.exceptions import PendingCallsLimitExceeded, RayTaskError, TaskCancelledError

pytestmark = pytest.mark.usefixtures("cluster")


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=60)


# ---------------------------------------------------------------- num_returns


def returner_class() -> Any:
    @ray.remote
    class Returner:
        @ray.method(num_returns=2)
        def two(self) -> Any:
            return 1, 2

        @ray.method(num_returns=0)
        def none(self, notes: Any) -> None:
            notes.add("ran")

        def many(self, count: int) -> list[int]:
            return list(range(count))

    return Returner


def test_method_with_num_returns_gives_a_list_of_refs() -> None:
    refs = returner_class().remote().two.remote()
    assert isinstance(refs, list) and len(refs) == 2
    assert get(refs) == [1, 2]


def test_method_without_returns_gives_none_and_runs(notes: Any) -> None:
    returner = returner_class().remote()
    assert returner.none.remote(notes) is None
    assert notes.wait(1) == ["ran"]


def test_num_returns_of_one_call() -> None:
    returner = returner_class().remote()
    assert get(returner.many.options(num_returns=3).remote(3)) == [0, 1, 2]
    assert get(returner.many.remote(3)) == [0, 1, 2]
    assert isinstance(returner.two.options(num_returns=1).remote(), ray.ObjectRef)


def test_wrong_number_of_returns_is_the_error_of_every_ref() -> None:
    refs = returner_class().remote().many.options(num_returns=3).remote(2)
    for ref in refs:
        with pytest.raises(ValueError) as caught:
            get(ref)
        assert isinstance(caught.value, RayTaskError)


def test_error_of_a_method_with_two_returns_is_the_error_of_both() -> None:
    @ray.remote
    class Failing:
        @ray.method(num_returns=2)
        def fail(self) -> Any:
            raise OSError("both")

    for ref in Failing.remote().fail.remote():
        with pytest.raises(OSError, match="both"):
            get(ref)


def test_num_returns_of_a_method_travels_with_the_handle() -> None:
    @ray.remote
    def use(returner: Any) -> int:
        return len(returner.two.remote())

    assert get(use.remote(returner_class().remote())) == 2


def test_num_returns_of_a_method_is_known_by_name() -> None:
    returner = returner_class().options(name="declared").remote()
    assert get(ray.get_actor("declared").two.remote()) == [1, 2]
    del returner


def test_name_of_one_call() -> None:
    @ray.remote
    class Named:
        def name(self) -> Any:
            return ray.get_runtime_context().get_task_name()

    named = Named.remote()
    assert get(named.name.options(name="my call").remote()) == "my call"
    assert get(named.name.remote()) == "Named.name"


# ---------------------------------------------------------------- streams


def streamer_class() -> Any:
    @ray.remote
    class Streamer:
        def __init__(self) -> None:
            self.made = 0

        def count(self, upto: int) -> Any:
            for number in range(upto):
                self.made += 1
                yield number

        def broken(self) -> Any:
            yield 1
            raise ValueError("in the middle")

        def how_many(self) -> int:
            return self.made

        @ray.method(_generator_backpressure_num_objects=2)
        def slowly(self, notes: Any) -> Any:
            for number in range(6):
                notes.add(number)
                yield number

    return Streamer


def test_generator_method_streams_refs() -> None:
    stream = streamer_class().remote().count.remote(4)

    assert isinstance(stream, ray.ObjectRefGenerator)
    refs = list(stream)
    assert all(isinstance(ref, ray.ObjectRef) for ref in refs)
    assert get(refs) == [0, 1, 2, 3]


def test_stream_of_one_call_by_option() -> None:
    stream = streamer_class().remote().count.options(num_returns="streaming").remote(2)
    assert [get(ref) for ref in stream] == [0, 1]


@pytest.mark.improves("a generator may yield from any iterable")
def test_stream_of_a_generator_that_yields_from_an_iterable() -> None:
    @ray.remote
    class Streamer:
        def items(self) -> Any:
            yield from range(3)

    assert [get(ref) for ref in Streamer.remote().items.remote()] == [0, 1, 2]


def test_stream_gives_items_before_the_method_ends(gate: Any) -> None:
    @ray.remote
    class Streamer:
        def items(self, gate: Any) -> Any:
            yield "first"
            gate.wait()
            yield "second"

    stream = Streamer.remote().items.remote(gate)
    assert get(next(stream)) == "first"
    gate.open()
    assert get(next(stream)) == "second"
    with pytest.raises(StopIteration):
        next(stream)


def test_empty_stream() -> None:
    with pytest.raises(StopIteration):
        next(streamer_class().remote().count.remote(0))


def test_error_in_a_stream_is_its_last_item() -> None:
    stream = streamer_class().remote().broken.remote()

    assert get(next(stream)) == 1
    failed = next(stream)
    with pytest.raises(ValueError, match="in the middle"):
        get(failed)
    with pytest.raises(StopIteration):
        next(stream)


def test_completed_of_a_stream_is_ready_when_the_method_has_ended(gate: Any) -> None:
    @ray.remote
    class Streamer:
        def items(self, gate: Any) -> Any:
            yield 1
            gate.wait()
            raise ValueError("its own error is the last item's")

    stream = Streamer.remote().items.remote(gate)
    done = stream.completed()
    assert ray.wait([done], timeout=0.2) == ([], [done])
    gate.open()
    assert get(done) is None


def test_backpressure_holds_the_method_back(notes: Any) -> None:
    stream = streamer_class().remote().slowly.remote(notes)

    notes.wait(2)
    seen = []
    for ref in stream:
        seen.append(get(ref))
        assert len(notes.all()) <= len(seen) + 3
    assert seen == [0, 1, 2, 3, 4, 5]


def test_stream_of_numbers_of_returns_by_option() -> None:
    refs = streamer_class().remote().count.options(num_returns=3).remote(3)
    assert get(refs) == [0, 1, 2]


def test_streams_of_two_methods_at_once() -> None:
    streamer = streamer_class().remote()
    first, second = streamer.count.remote(3), streamer.count.remote(3)
    assert [get(ref) for pair in zip(first, second, strict=True) for ref in pair] == [0, 0, 1, 1, 2, 2]
    assert get(streamer.how_many.remote()) == 6


def test_cancel_of_a_queued_stream(gate: Any) -> None:
    @ray.remote
    class Streamer:
        def wait(self, gate: Any) -> None:
            gate.wait()

        def count(self) -> Any:
            yield 1

    streamer = Streamer.remote()
    waiting = streamer.wait.remote(gate)
    stream = streamer.count.remote()
    ray.cancel(stream)
    gate.open()
    get(waiting)
    with pytest.raises(TaskCancelledError):
        for ref in stream:
            get(ref)


# ---------------------------------------------------------------- ray.method


def test_method_refuses_unknown_arguments() -> None:
    with pytest.raises((ValueError, AssertionError, TypeError)):

        @ray.method(num_cpus=1)
        def f() -> None: ...


def test_decorated_method_is_still_a_method() -> None:
    @ray.remote
    class Decorated:
        @ray.method(num_returns=1)
        def outer(self) -> int:
            return self.inner() + 1

        @ray.method(num_returns=2)
        def inner(self) -> int:
            return 1

    assert get(Decorated.remote().outer.remote()) == 2


# ---------------------------------------------------------------- max_pending_calls


def waiter_class() -> Any:
    @ray.remote
    class Waiter:
        def wait(self, gate: Any) -> str:
            gate.wait()
            return "waited"

    return Waiter


def test_calls_beyond_max_pending_calls_are_refused(gate: Any) -> None:
    waiter = waiter_class().options(max_pending_calls=3).remote()
    refs = []
    with pytest.raises(PendingCallsLimitExceeded):
        for _ in range(10):
            refs.append(waiter.wait.remote(gate))
    assert 3 <= len(refs) <= 4
    gate.open()
    assert get(refs) == ["waited"] * len(refs)


def test_calls_are_taken_again_when_earlier_ones_are_done(gate: Any) -> None:
    waiter = waiter_class().options(max_pending_calls=1).remote()
    first = waiter.wait.remote(gate)
    with pytest.raises(PendingCallsLimitExceeded):
        for _ in range(3):
            waiter.wait.remote(gate)
    gate.open()
    get(first)

    def again() -> Any:
        try:
            return get(waiter.wait.remote(gate))
        except PendingCallsLimitExceeded:
            return None

    assert wait_for(again, "calls are refused for ever") == "waited"


def test_no_limit_by_default(gate: Any) -> None:
    waiter = waiter_class().remote()
    refs = [waiter.wait.remote(gate) for _ in range(100)]
    gate.open()
    assert get(refs) == ["waited"] * 100
