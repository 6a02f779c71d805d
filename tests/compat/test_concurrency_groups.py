"""Concurrency groups: methods with limits of their own, in async and in threaded actors."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import ray
from ray.exceptions import GetTimeoutError

pytestmark = pytest.mark.usefixtures("cluster")


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=60)


def threaded_class() -> Any:
    @ray.remote(concurrency_groups={"io": 2, "compute": 3})
    class Threaded:
        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.here: dict[str, int] = {}
            self.most: dict[str, int] = {}
            self.barriers = {count: threading.Barrier(count) for count in (2, 3)}

        def _pause(self, group: str) -> int:
            with self.lock:
                self.here[group] = self.here.get(group, 0) + 1
                self.most[group] = max(self.most.get(group, 0), self.here[group])
            threading.Event().wait(0.02)
            with self.lock:
                self.here[group] -= 1
            return self.most[group]

        @ray.method(concurrency_group="io")
        def io(self) -> int:
            return self._pause("io")

        @ray.method(concurrency_group="compute")
        def compute(self) -> int:
            return self._pause("compute")

        def default(self) -> int:
            return self._pause("default")

        @ray.method(concurrency_group="io")
        def wait(self, gate: Any) -> str:
            gate.wait()
            return "waited"

        def meet(self, count: int) -> int:
            self.barriers[count].wait(50)
            return threading.get_ident()

    return Threaded


def async_class() -> Any:
    @ray.remote(concurrency_groups={"io": 2, "compute": 4})
    class Async:
        def __init__(self) -> None:
            self.here: dict[str, int] = {}
            self.most: dict[str, int] = {}
            self.go = False
            self.event = asyncio.Event()

        async def _pause(self, group: str) -> int:
            self.here[group] = self.here.get(group, 0) + 1
            self.most[group] = max(self.most.get(group, 0), self.here[group])
            for _ in range(4):
                await asyncio.sleep(0.005)
            self.here[group] -= 1
            return self.most[group]

        @ray.method(concurrency_group="io")
        async def io(self) -> int:
            return await self._pause("io")

        @ray.method(concurrency_group="compute")
        async def compute(self) -> int:
            return await self._pause("compute")

        async def default(self) -> int:
            return await self._pause("default")

        @ray.method(concurrency_group="io")
        async def wait(self) -> str:
            while not self.go:
                await asyncio.sleep(0.005)
            return "waited"

        async def release(self) -> None:
            self.go = True

        @ray.method(concurrency_group="io")
        async def wait_for_event(self) -> str:
            await self.event.wait()
            return "waited"

        async def set_event(self) -> None:
            self.event.set()

    return Async


@pytest.mark.parametrize(("method", "most"), [("io", 2), ("compute", 3), ("default", 1)])
def test_limits_of_threaded_groups(method: str, most: int) -> None:
    actor = threaded_class().remote()
    assert max(get([getattr(actor, method).remote() for _ in range(9)])) == most


def test_max_concurrency_is_the_limit_of_the_default_group_of_threaded_actors() -> None:
    actor = threaded_class().options(max_concurrency=3).remote()
    assert len(set(get([actor.meet.remote(3) for _ in range(3)]))) == 3


def test_groups_do_not_hold_each_other_back(gate: Any) -> None:
    actor = threaded_class().remote()
    waiting = [actor.wait.remote(gate) for _ in range(3)]  # more than the group takes
    assert get([actor.compute.remote(), actor.default.remote()])
    gate.open()
    assert get(waiting) == ["waited"] * 3


def test_group_of_one_call() -> None:
    actor = threaded_class().remote()
    refs = [actor.meet.options(concurrency_group="io").remote(2) for _ in range(2)]
    assert len(set(get(refs))) == 2


def test_groups_have_threads_of_their_own() -> None:
    actor = threaded_class().remote()
    first = actor.meet.options(concurrency_group="io").remote(2)
    second = actor.meet.options(concurrency_group="compute").remote(2)
    assert len({get(first), get(second)}) == 2


def test_order_within_a_group_of_one() -> None:
    @ray.remote(concurrency_groups={"log": 1})
    class Log:
        def __init__(self) -> None:
            self.lines: list[int] = []

        @ray.method(concurrency_group="log")
        def add(self, line: int) -> None:
            self.lines.append(line)

        @ray.method(concurrency_group="log")
        def all(self) -> list[int]:
            return self.lines

    log = Log.remote()
    for number in range(50):
        log.add.remote(number)
    assert get(log.all.remote()) == list(range(50))


@pytest.mark.parametrize(("method", "most"), [("io", 2), ("compute", 4)])
def test_limits_of_async_groups(method: str, most: int) -> None:
    actor = async_class().remote()
    assert max(get([getattr(actor, method).remote() for _ in range(10)])) == most


def test_default_group_of_async_actors_takes_many() -> None:
    actor = async_class().remote()
    assert max(get([actor.default.remote() for _ in range(10)])) == 10


def test_max_concurrency_is_the_limit_of_the_default_group_of_async_actors() -> None:
    actor = async_class().options(max_concurrency=3).remote()
    assert max(get([actor.default.remote() for _ in range(10)])) == 3


def test_async_groups_do_not_hold_each_other_back() -> None:
    actor = async_class().remote()
    waiting = [actor.wait.remote() for _ in range(3)]
    assert get([actor.compute.remote(), actor.default.remote()])
    get(actor.release.remote())
    assert get(waiting) == ["waited"] * 3


@pytest.mark.improves("all groups of an async actor share one event loop")
def test_asyncio_primitives_are_shared_by_groups() -> None:
    actor = async_class().remote()
    waiting = [actor.wait_for_event.remote() for _ in range(2)]
    get(actor.set_event.remote())
    assert get(waiting) == ["waited"] * 2


def test_group_of_one_call_of_an_async_actor() -> None:
    actor = async_class().remote()
    refs = [actor.default.options(concurrency_group="io").remote() for _ in range(8)]
    assert max(get(refs)) == 2


def test_groups_belong_to_the_class_and_not_to_options() -> None:
    class Plain:
        def __init__(self) -> None:
            self.barrier = threading.Barrier(2)

        def meet(self) -> bool:
            self.barrier.wait(50)
            return True

    actor = ray.remote(concurrency_groups={"pair": 2})(Plain).remote()
    refs = [actor.meet.options(concurrency_group="pair").remote() for _ in range(2)]
    assert get(refs) == [True, True]
    with pytest.raises(ValueError):
        ray.remote(Plain).options(concurrency_groups={"pair": 2})


def test_group_travels_with_the_handle(gate: Any) -> None:
    @ray.remote
    def use(actor: Any) -> int:
        return max(ray.get([actor.io.remote() for _ in range(6)]))

    assert get(use.remote(threaded_class().remote())) == 2


def test_unknown_group_in_a_method_is_an_error() -> None:
    class Wrong:
        @ray.method(concurrency_group="oi")
        def call(self) -> None: ...

    with pytest.raises(Exception) as caught:  # at once, or from the call
        get(ray.remote(concurrency_groups={"io": 1})(Wrong).remote().call.remote())
    assert not isinstance(caught.value, GetTimeoutError)


def test_unknown_group_of_a_call_is_an_error() -> None:
    actor = threaded_class().remote()
    with pytest.raises(Exception) as caught:
        get(actor.default.options(concurrency_group="oi").remote())
    assert not isinstance(caught.value, GetTimeoutError)


@pytest.mark.improves("an unknown group fails the call; on Ray it ends the actor")
@pytest.mark.parametrize("make", [threaded_class, async_class], ids=["threaded", "async"])
def test_unknown_group_of_a_call_is_a_value_error_and_the_actor_lives_on(make: Any) -> None:
    actor = make().remote()
    with pytest.raises(ValueError, match="'oi'"):
        get(actor.default.options(concurrency_group="oi").remote())
    assert get(actor.default.remote()) == 1


def test_generators_in_groups(gate: Any) -> None:
    @ray.remote(concurrency_groups={"streams": 2})
    class Streamer:
        def __init__(self) -> None:
            self.barrier = threading.Barrier(2)

        @ray.method(concurrency_group="streams")
        def items(self) -> Any:
            for number in range(2):
                self.barrier.wait(50)
                yield number

    streamer = Streamer.remote()
    first, second = streamer.items.remote(), streamer.items.remote()
    assert [get(ref) for ref in first] == [0, 1]
    assert [get(ref) for ref in second] == [0, 1]
