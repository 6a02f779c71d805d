"""Custom serializers, and saying what cannot be pickled."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.util import inspect_serializability

pytestmark = pytest.mark.usefixtures("cluster")
TIMEOUT = 60


def make_class() -> Any:
    class Local:
        """Has a lock, so it cannot be pickled as it is."""

        def __init__(self, name: str) -> None:
            self.name = name
            self.lock = threading.Lock()

    return Local


@pytest.fixture
def registered() -> Iterator[Any]:
    Local = make_class()
    ray.util.register_serializer(Local, serializer=lambda c: c.name, deserializer=lambda name: Local(name + "!"))
    yield Local
    ray.util.deregister_serializer(Local)


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=TIMEOUT)


def test_a_registered_serializer_is_used(registered: Any) -> None:
    found = get(ray.put(registered("a")))

    assert type(found).__name__ == "Local" and found.name == "a!"


def test_a_registered_serializer_is_used_for_arguments(registered: Any) -> None:
    @ray.remote
    def name(connection: Any) -> str:
        return connection.name

    assert get(name.remote(registered("b"))) == "b!"
    assert get(name.remote(ray.put(registered("c")))) == "c!"


def test_a_registered_serializer_is_used_inside_values(registered: Any) -> None:
    found = get(ray.put({"deep": [registered("d")]}))

    assert found["deep"][0].name == "d!"


def test_without_its_serializer_the_class_cannot_be_pickled() -> None:
    Local = make_class()
    ray.util.register_serializer(Local, serializer=lambda c: c.name, deserializer=Local)
    ray.util.deregister_serializer(Local)

    with pytest.raises(TypeError):
        ray.put(Local("e"))


def test_reduce_and_getstate_are_honoured() -> None:
    class Reduced:
        def __init__(self, x: int) -> None:
            self.x = x

        def __reduce__(self) -> Any:
            return Reduced, (self.x + 1,)

    class Stated:
        def __init__(self) -> None:
            self.kept, self.lock = 1, threading.Lock()

        def __getstate__(self) -> Any:
            return {"kept": self.kept}

        def __setstate__(self, state: Any) -> None:
            self.__dict__.update(state, restored=True)

    reduced, stated = get(ray.put((Reduced(1), Stated())))

    assert reduced.x == 2
    assert (stated.kept, stated.restored) == (1, True)


def test_inspect_serializability_of_what_can_be_pickled(capsys: pytest.CaptureFixture[str]) -> None:
    ok, failures = inspect_serializability({"a": [1, 2]}, name="fine")

    assert ok is True and failures == set()
    assert "{'a': [1, 2]}" in capsys.readouterr().out


def test_inspect_serializability_finds_what_cannot(capsys: pytest.CaptureFixture[str]) -> None:
    lock = threading.Lock()

    def uses_it() -> bool:
        return lock.locked()

    ok, failures = inspect_serializability(uses_it, name="function")

    assert ok is False
    (failure,) = failures
    assert failure.obj is lock and failure.parent is uses_it and failure.path[-1] == "lock"
    assert "lock" in capsys.readouterr().out


def test_inspect_serializability_looks_into_attributes() -> None:
    ok, failures = inspect_serializability(make_class()("x"), name="connection")

    assert ok is False
    assert any(type(failure.obj) is type(threading.Lock()) for failure in failures)


def test_the_error_names_what_cannot_be_pickled() -> None:
    named_lock = threading.Lock()

    @ray.remote
    def uses_it() -> bool:
        return named_lock.locked()

    with pytest.raises(TypeError, match="named_lock"):
        uses_it.remote()


def test_a_result_that_cannot_be_pickled_is_an_error_of_the_task() -> None:
    @ray.remote
    def make() -> Any:
        return threading.Lock()

    with pytest.raises(TypeError):
        get(make.remote())


def test_an_argument_that_cannot_be_unpickled_is_an_error_of_the_task() -> None:
    class Broken:
        def __reduce__(self) -> Any:
            return int, ("no number",)

    @ray.remote
    def take(x: Any) -> None: ...

    with pytest.raises(ray.exceptions.RayError):
        get(take.remote(Broken()))
