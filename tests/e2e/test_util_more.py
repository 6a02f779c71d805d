"""The smaller helpers of noded.util that need a cluster."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.gates import Gate
from harness.wait import wait_for

import noded
from noded import util
from noded.exceptions import TaskError

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.slow]


@noded.remote
def square(x: int) -> int:
    if x == 3:
        raise KeyError(x)
    return x * x


# ---------------------------------------------------------------- as_completed, map_unordered


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_as_completed_gives_each_once(chunk_size: int) -> None:
    refs = [square.remote(x) for x in (1, 2, 4, 5, 6)]
    assert sorted(util.as_completed(refs, chunk_size=chunk_size)) == [1, 4, 16, 25, 36]
    assert set(util.as_completed(refs, chunk_size=chunk_size, yield_obj_refs=True)) == set(refs)
    assert list(util.as_completed([])) == []


def test_as_completed_gives_first_what_is_ready_first(tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    waiting = noded.remote(Gate.wait).remote(gate)
    results = util.as_completed([waiting, square.remote(2)], chunk_size=1)
    assert next(results) == 4
    gate.open()
    assert next(results) is None


def test_as_completed_raises_errors_and_refuses_nonsense() -> None:
    with pytest.raises(KeyError):
        list(util.as_completed([square.remote(3)]))
    with pytest.raises(ValueError, match="chunk_size"):
        list(util.as_completed([square.remote(1)], chunk_size=0))
    with pytest.raises(TypeError, match="bogus"):
        list(util.as_completed([square.remote(1)], bogus=1))


@pytest.mark.parametrize("backpressure_size", [None, 1, 5])
def test_map_unordered_over_tasks_and_actor_methods(backpressure_size: int | None) -> None:
    @noded.remote
    class Doubler:
        def double(self, x: int) -> int:
            return 2 * x

    doubler = Doubler.remote()
    for fn, expected in ((square, lambda x: x * x), (doubler.double, lambda x: 2 * x)):
        found = sorted(util.map_unordered(fn, iter(range(10, 30)), backpressure_size=backpressure_size))
        assert found == [expected(x) for x in range(10, 30)]


def test_map_unordered_keeps_no_more_under_way_than_asked() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for x in range(10, 100):
            taken.append(x)
            yield x

    results = util.map_unordered(square, items(), backpressure_size=4, chunk_size=2)
    next(results)
    assert len(taken) <= 6
    with pytest.raises(ValueError, match="backpressure_size"):
        next(util.map_unordered(square, [1], backpressure_size=0))


# ---------------------------------------------------------------- serializers


class Locked:
    def __init__(self, value: Any) -> None:
        self.value = value
        self.lock = threading.Lock()


@pytest.fixture
def registered() -> Iterator[None]:
    util.register_serializer(Locked, serializer=lambda one: one.value, deserializer=lambda value: Locked(value + 1))
    yield
    util.deregister_serializer(Locked)


@pytest.mark.usefixtures("registered")
def test_a_registered_class_travels_anywhere() -> None:
    @noded.remote
    def value_of(one: Any) -> Any:
        return one.value

    assert noded.get(noded.put(Locked(1))).value == 2
    assert noded.get(noded.put({"deep": [Locked(1)]}))["deep"][0].value == 2
    assert noded.get(value_of.remote(Locked(1))) == 2
    captured = Locked(5)
    assert noded.get(noded.remote(lambda: captured.value).remote()) == 6


@pytest.mark.usefixtures("registered")
def test_the_registration_is_the_processs_and_the_class_s_own() -> None:
    @noded.remote
    def back(one: Any) -> Any:
        return one

    class Derived(Locked):
        pass

    with pytest.raises(TypeError, match="lock"):
        noded.put(Derived(1))
    with pytest.raises(TypeError, match="lock"):
        noded.get(back.remote(Locked(1)))


def test_without_a_registration_it_cannot_travel() -> None:
    util.register_serializer(Locked, serializer=lambda one: one.value, deserializer=Locked)
    stored = noded.put(Locked(7))
    util.deregister_serializer(Locked)
    util.deregister_serializer(Locked)

    assert noded.get(stored).value == 7
    with pytest.raises(TypeError, match="lock"):
        noded.put(Locked(1))
    with pytest.raises(TypeError, match="class"):
        util.register_serializer("no class", serializer=str, deserializer=str)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="serializer"):
        util.register_serializer(Locked, serializer=None, deserializer=str)  # type: ignore[arg-type]


# ---------------------------------------------------------------- inspect_serializability


def test_what_can_travel_has_no_failures() -> None:
    out = io.StringIO()
    assert util.inspect_serializability({"ref": noded.put(1)}, print_file=out) == (True, set())
    assert "FAIL" not in out.getvalue()


def test_failures_are_found_in_closures_attributes_and_items() -> None:
    lock = threading.Lock()

    class Holder:
        def __init__(self) -> None:
            self.fine = 1
            self.items = [1, {"x": lock}]

    def function() -> Any:
        return lock

    out = io.StringIO()
    fine, found = util.inspect_serializability(function, name="function", print_file=out)
    assert not fine
    (failure,) = found
    assert (failure.path, failure.name, failure.obj, failure.parent) == (("function", "lock"), "lock", lock, function)
    assert "Serializing 'lock'" in out.getvalue() and "FAIL" in out.getvalue()

    _, found = util.inspect_serializability(Holder(), print_file=out)
    assert {failure.path for failure in found} == {("items", "[1]", "['x']")}
    _, found = util.inspect_serializability(Holder(), depth=1, print_file=out)
    assert {failure.path for failure in found} == {("items",)}
    _, found = util.inspect_serializability(lock, print_file=out)
    assert {(failure.path, failure.obj) for failure in found} == {((), lock)}


def test_it_prints_to_stdout_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    util.inspect_serializability(threading.Lock(), name="my lock")
    assert "my lock" in capsys.readouterr().out


# ---------------------------------------------------------------- the rest


def test_named_actors_are_listed_while_they_live() -> None:
    @noded.remote
    class Named:
        def ready(self) -> None:
            pass

    here = Named.options(name="here").remote()
    there = Named.options(name="there", namespace="elsewhere").remote()
    noded.get([here.ready.remote(), there.ready.remote()])
    mine = noded.get_runtime_context().namespace

    assert util.list_named_actors() == ["here"]
    listed = util.list_named_actors(all_namespaces=True)
    assert {(one["name"], one["namespace"]) for one in listed} == {("here", mine), ("there", "elsewhere")}
    assert noded.get(noded.remote(util.list_named_actors).remote()) == ["here"]
    noded.kill(here)
    wait_for(lambda: util.list_named_actors() == [], "a dead actor is listed")


def test_the_nodes_address() -> None:
    assert util.get_node_ip_address() == noded.nodes()[0]["NodeManagerAddress"]


def test_drivers_elsewhere_are_refused_by_name() -> None:
    with pytest.raises(NotImplementedError, match="other machines"):
        util.connect("host:10001")
    util.disconnect()
    assert noded.is_initialized()


def test_errors_of_helpers_are_task_errors() -> None:
    with pytest.raises(TaskError):
        list(util.map_unordered(square, [3]))
