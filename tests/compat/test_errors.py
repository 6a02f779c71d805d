"""What goes wrong in tasks and actors, and how it looks to the caller."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import pickle
import signal
import threading
from typing import Any

import pytest
import ray
from harness.gates import Gate, Notes

pytestmark = pytest.mark.usefixtures("cluster")
TIMEOUT = 60


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=TIMEOUT)


def raising_task() -> Any:
    @ray.remote
    def fail(make: Any) -> None:
        raise make()

    return fail


# ---------------------------------------------------------------- errors of tasks


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad"),
        KeyError("key"),
        ZeroDivisionError("zero"),
        FileNotFoundError(2, "no such file"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad byte"),
        StopIteration("stop"),
        TimeoutError("late"),
        ExceptionGroup("several", [ValueError(1), KeyError(2)]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_has_two_types(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        get(raising_task().remote(lambda: error))

    raised = caught.value
    assert isinstance(raised, ray.exceptions.RayTaskError)
    assert isinstance(raised, ray.exceptions.RayError)
    assert type(raised.cause) is type(error)
    assert str(raised.cause) == str(error)


def test_the_text_of_an_error_tells_the_story() -> None:
    @ray.remote
    def a_function_with_a_name() -> None:
        raise ValueError("the reason")

    with pytest.raises(ValueError) as caught:
        get(a_function_with_a_name.remote())

    text = str(caught.value)
    assert "a_function_with_a_name" in text and "the reason" in text and "test_errors.py" in text
    assert "pid" in text


def test_attributes_of_the_users_error() -> None:
    class Refused(Exception):
        def __init__(self, code: int) -> None:
            super().__init__(code)
            self.code = code

    with pytest.raises(Refused) as caught:
        get(raising_task().remote(lambda: Refused(7)))

    assert caught.value.code == 7
    assert caught.value.cause.code == 7


def test_errors_that_derive_from_the_users_base() -> None:
    class Base(Exception):
        pass

    class Special(Base):
        pass

    with pytest.raises(Base) as caught:
        get(raising_task().remote(Special))

    assert isinstance(caught.value, Special)


@pytest.mark.improves("an exception comes back whatever its constructor takes; Ray cannot unpickle it")
def test_errors_whose_constructor_takes_something_else() -> None:
    class Two(Exception):
        def __init__(self, first: int, second: int) -> None:
            super().__init__("two")
            self.sum = first + second

    with pytest.raises(Two) as caught:
        get(raising_task().remote(lambda: Two(1, 2)))
    assert caught.value.sum == 3


def test_errors_that_cannot_be_pickled() -> None:
    class Locked(Exception):
        def __init__(self) -> None:
            super().__init__("it says this")
            self.lock = threading.Lock()

    with pytest.raises(ray.exceptions.RayTaskError, match="it says this"):
        get(raising_task().remote(Locked))


def test_errors_of_a_base_that_is_no_exception() -> None:
    with pytest.raises(ray.exceptions.RayTaskError, match="not an Exception"):
        get(raising_task().remote(lambda: BaseException("not an Exception")))


def test_the_text_names_the_cause() -> None:
    @ray.remote
    def fail() -> None:
        try:
            _ = 1 / 0
        except ZeroDivisionError as error:
            raise ValueError("outer") from error

    with pytest.raises(ValueError, match="outer") as caught:
        get(fail.remote())

    assert "ZeroDivisionError" in str(caught.value)


def test_an_error_goes_up_through_nested_tasks() -> None:
    @ray.remote
    def inner() -> None:
        raise ValueError("from below")

    @ray.remote
    def outer() -> None:
        ray.get(inner.remote())

    with pytest.raises(ValueError, match="from below") as caught:
        get(outer.remote())

    assert isinstance(caught.value, ray.exceptions.RayTaskError)
    text = str(caught.value)
    assert "inner" in text and "outer" in text


def test_an_error_goes_through_chains() -> None:
    @ray.remote
    def follow(x: Any) -> Any:
        return x

    ref = raising_task().remote(lambda: KeyError("first"))
    for _ in range(5):
        ref = follow.remote(ref)

    with pytest.raises(KeyError, match="first"):
        get(ref)


def test_a_task_can_catch_the_error_of_another() -> None:
    fail = raising_task()

    @ray.remote
    def catch() -> str:
        try:
            ray.get(fail.remote(lambda: KeyError("caught")))
        except KeyError as error:
            return type(error.cause).__name__
        return "nothing"

    assert get(catch.remote()) == "KeyError"


def test_errors_can_be_pickled() -> None:
    with pytest.raises(ValueError) as caught:
        get(raising_task().remote(lambda: ValueError("travels")))

    again = ray.cloudpickle.loads(ray.cloudpickle.dumps(caught.value))

    assert isinstance(again, ValueError) and isinstance(again, ray.exceptions.RayTaskError)
    assert "travels" in str(again)


def test_errors_are_the_same_through_futures() -> None:
    future = raising_task().remote(lambda: KeyError("x")).future()

    assert concurrent.futures.wait([future], TIMEOUT).done
    assert isinstance(future.exception(), KeyError)


def test_an_error_can_be_put() -> None:
    assert isinstance(get(ray.put(ValueError("a value"))), ValueError)


# ---------------------------------------------------------------- the tree of exceptions


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("RayTaskError", "RayError"),
        ("TaskCancelledError", "RayError"),
        ("GetTimeoutError", "RayError"),
        ("WorkerCrashedError", "RayError"),
        ("RayActorError", "RayError"),
        ("ActorDiedError", "RayActorError"),
        ("ActorUnavailableError", "RayActorError"),
        ("ActorUnschedulableError", "RayError"),
        ("TaskUnschedulableError", "RayError"),
        ("ActorPlacementGroupRemoved", "RayError"),
        ("TaskPlacementGroupRemoved", "RayError"),
        ("ObjectLostError", "RayError"),
        ("ObjectFetchTimedOutError", "ObjectLostError"),
        ("ObjectFreedError", "ObjectLostError"),
        ("OwnerDiedError", "ObjectLostError"),
        ("ObjectReconstructionFailedError", "ObjectLostError"),
        ("ReferenceCountingAssertionError", "ObjectLostError"),
        ("ObjectStoreFullError", "RayError"),
        ("OutOfMemoryError", "RayError"),
        ("OutOfDiskError", "RayError"),
        ("PendingCallsLimitExceeded", "RayError"),
        ("RuntimeEnvSetupError", "RayError"),
        ("NodeDiedError", "RayError"),
        ("LocalRayletDiedError", "RayError"),
        ("RaySystemError", "RayError"),
        ("UserCodeException", "RayError"),
        ("UnserializableException", "RayError"),
        ("CrossLanguageError", "RayError"),
        ("AsyncioActorExit", "RayError"),
    ],
)
def test_the_names_of_the_exceptions(name: str, base: str) -> None:
    assert issubclass(getattr(ray.exceptions, name), getattr(ray.exceptions, base))
    assert issubclass(ray.exceptions.RayError, Exception)
    assert issubclass(ray.exceptions.GetTimeoutError, TimeoutError)


# ---------------------------------------------------------------- workers that end


@pytest.mark.parametrize("how", ["exit", "kill", "segfault"])
def test_a_worker_that_dies(how: str, notes: Notes) -> None:
    @ray.remote(max_retries=0)
    def die(how: str, notes: Any) -> None:
        notes.add()
        if how == "exit":
            os._exit(3)
        os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSEGV)

    with pytest.raises(ray.exceptions.WorkerCrashedError):
        get(die.remote(how, notes))
    assert len(notes.all()) == 1


def test_other_tasks_are_not_touched_by_a_crash(gate: Gate) -> None:
    @ray.remote(max_retries=0)
    def die() -> None:
        os._exit(1)

    @ray.remote(max_retries=0)
    def live(gate: Any) -> str:
        gate.wait()
        return "alive"

    living = live.remote(gate)
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        get(die.remote())
    gate.open()

    assert get(living) == "alive"


def test_sys_exit_in_a_task_ends_its_worker() -> None:
    @ray.remote(max_retries=0)
    def leave() -> None:
        raise SystemExit(1)

    with pytest.raises(ray.exceptions.RayError):
        get(leave.remote())


def test_objects_survive_the_worker_that_made_them() -> None:
    @ray.remote
    def make() -> Any:
        return b"x" * 1_000_000, os.getpid()

    @ray.remote(max_calls=1)
    def once() -> bytes:
        return b"y" * 1_000_000

    assert get(once.remote()) == b"y" * 1_000_000
    ref = once.remote()
    get(make.remote())
    assert len(get(ref)) == 1_000_000


# ---------------------------------------------------------------- actors


def test_an_actors_error_leaves_it_alive() -> None:
    @ray.remote
    class Counter:
        def __init__(self) -> None:
            self.n = 0

        def fail(self) -> None:
            self.n += 1
            raise KeyError("method")

        def value(self) -> int:
            return self.n

    counter = Counter.remote()
    with pytest.raises(KeyError, match="method"):
        get(counter.fail.remote())

    assert get(counter.value.remote()) == 1


def test_a_constructor_that_fails_is_told_to_each_caller() -> None:
    @ray.remote
    class Broken:
        def __init__(self) -> None:
            raise ValueError("constructor")

        def method(self) -> None: ...

    broken = Broken.remote()
    for _ in range(2):
        with pytest.raises(ray.exceptions.ActorDiedError, match="constructor"):
            get(broken.method.remote())


def test_an_actor_that_dies_in_a_call() -> None:
    @ray.remote
    class Fragile:
        def die(self) -> None:
            os._exit(1)

        def ping(self) -> str:
            return "pong"

    fragile = Fragile.remote()
    assert get(fragile.ping.remote()) == "pong"
    with pytest.raises(ray.exceptions.ActorDiedError):
        get(fragile.die.remote())
    with pytest.raises(ray.exceptions.RayActorError):
        get(fragile.ping.remote())


def test_an_error_of_an_async_actor() -> None:
    @ray.remote
    class Async:
        async def fail(self) -> None:
            await asyncio.sleep(0)
            raise KeyError("async")

    with pytest.raises(KeyError, match="async"):
        get(Async.remote().fail.remote())


def test_task_errors_can_be_raised_again_in_plain_pickles() -> None:
    error = ray.exceptions.GetTimeoutError("late")

    assert isinstance(pickle.loads(pickle.dumps(error)), TimeoutError)
