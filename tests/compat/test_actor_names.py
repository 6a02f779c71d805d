"""Named actors: get_actor, namespaces, get_if_exists, detached actors and the list of names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from harness.wait import wait_for
from ray.exceptions import RayActorError
from ray.util import list_named_actors

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

        def name(self) -> Any:
            return ray.get_runtime_context().get_actor_name()

        def pid(self) -> int:
            return os.getpid()

    return Counter


def end(actor: Any) -> None:
    """Kill it, and wait until it is known to be dead."""
    ray.kill(actor)

    def ended() -> bool:
        try:
            get(actor.__ray_ready__.remote())
        except RayActorError:
            return True
        return False

    wait_for(ended, "the killed actor still answers", 30)


@pytest.fixture
def to_end() -> Iterator[list[Any]]:
    """Detached actors that the test made; they end with it."""
    actors: list[Any] = []
    yield actors
    while actors:
        end(actors.pop())


def is_known(name: str, namespace: str | None = None) -> bool:
    try:
        ray.get_actor(name, namespace)
    except ValueError:
        return False
    return True


# ---------------------------------------------------------------- names


def test_get_actor_finds_the_actor_by_name() -> None:
    counter = counter_class().options(name="finds").remote()
    get(counter.add.remote())

    found = ray.get_actor("finds")
    assert found == counter
    assert get(found.add.remote()) == 2


def test_name_is_known_before_the_constructor_is_done(gate: Any) -> None:
    @ray.remote
    class Slow:
        def __init__(self, gate: Any) -> None:
            gate.wait()

        def done(self) -> str:
            return "done"

    slow = Slow.options(name="slow").remote(gate)
    ref = ray.get_actor("slow").done.remote()
    gate.open()
    assert get(ref) == "done"
    assert slow is not None


def test_unknown_name_is_a_value_error() -> None:
    with pytest.raises(ValueError):
        ray.get_actor("nobody")


def test_empty_name_is_a_value_error() -> None:
    with pytest.raises(ValueError):
        ray.get_actor("")
    with pytest.raises(ValueError):
        counter_class().options(name="").remote()


def test_name_must_be_a_string() -> None:
    with pytest.raises(TypeError):
        counter_class().options(name=5).remote()


def test_taken_name_is_a_value_error() -> None:
    first = counter_class().options(name="taken").remote(1)

    with pytest.raises(ValueError):
        counter_class().options(name="taken").remote(2)
    assert get(first.add.remote()) == 2


def test_name_is_free_again_after_the_actor_was_killed() -> None:
    first = counter_class().options(name="reuse").remote()
    get(first.add.remote())
    end(first)
    with pytest.raises(ValueError):
        ray.get_actor("reuse")

    second = counter_class().options(name="reuse").remote(7)
    assert get(second.add.remote()) == 8


def test_name_ends_with_the_last_handle() -> None:
    counter = counter_class().options(name="passing").remote()
    get(counter.add.remote())
    del counter
    wait_for(lambda: not is_known("passing"), "the name outlives its actor", 30)


def test_handle_from_get_actor_does_not_keep_the_actor() -> None:
    counter = counter_class().options(name="weak").remote()
    get(counter.add.remote())

    found = ray.get_actor("weak")
    del counter
    wait_for(lambda: not is_known("weak"), "a handle from get_actor keeps its actor", 30)
    with pytest.raises(RayActorError):
        get(found.add.remote())


def test_name_of_the_current_actor() -> None:
    named = counter_class().options(name="called").remote()
    unnamed = counter_class().remote()

    assert get(named.name.remote()) == "called"
    assert get(unnamed.name.remote()) == ""


def test_tasks_and_actors_find_actors_by_name() -> None:
    @ray.remote
    def bump() -> int:
        return ray.get(ray.get_actor("shared").add.remote())

    @ray.remote
    class Friend:
        def bump(self) -> int:
            return ray.get(ray.get_actor("shared").add.remote())

    counter = counter_class().options(name="shared").remote()
    assert get(bump.remote()) == 1
    assert get(Friend.remote().bump.remote()) == 2
    assert get(counter.add.remote()) == 3


def test_name_given_in_the_decorator() -> None:
    @ray.remote(name="decorated")
    class Named:
        def hello(self) -> str:
            return "hello"

    named = Named.remote()
    assert get(ray.get_actor("decorated").hello.remote()) == "hello"
    assert named is not None


# ---------------------------------------------------------------- namespaces


def test_same_name_in_two_namespaces() -> None:
    Counter = counter_class()
    here = Counter.options(name="twin").remote(1)
    there = Counter.options(name="twin", namespace="elsewhere").remote(10)

    assert ray.get_actor("twin") == here
    assert ray.get_actor("twin", namespace="elsewhere") == there
    assert get(ray.get_actor("twin", "elsewhere").add.remote()) == 11


def test_default_namespace_is_that_of_the_job() -> None:
    counter = counter_class().options(name="at home").remote()

    assert ray.get_runtime_context().namespace == "compat"
    assert ray.get_actor("at home", namespace="compat") == counter
    with pytest.raises(ValueError):
        ray.get_actor("at home", namespace="abroad")


def test_namespace_must_be_a_string_that_is_not_empty() -> None:
    with pytest.raises(TypeError):
        counter_class().options(name="x", namespace=3).remote()
    with pytest.raises(ValueError):
        counter_class().options(name="x", namespace="").remote()


# ---------------------------------------------------------------- get_if_exists


def test_get_if_exists_makes_one_and_then_returns_it() -> None:
    Counter = counter_class().options(name="once", get_if_exists=True)

    first = Counter.remote(5)
    second = Counter.remote(50)
    assert first == second
    assert get(second.add.remote()) == 6


def test_get_if_exists_by_many_tasks_at_once() -> None:
    Counter = counter_class().options(name="race", get_if_exists=True)

    @ray.remote(num_cpus=0.5)
    def join(gate: Any) -> int:
        counter = Counter.remote()
        return ray.get(counter.pid.remote())

    mine = Counter.remote()
    pids = get([join.remote(None) for _ in range(4)])
    assert set(pids) == {get(mine.pid.remote())}


def test_get_if_exists_needs_a_name() -> None:
    with pytest.raises(ValueError):
        counter_class().options(get_if_exists=True).remote()


# ---------------------------------------------------------------- detached


def test_detached_actor_lives_without_handles(to_end: list[Any], gate: Any) -> None:
    counter = counter_class().options(name="detached", lifetime="detached").remote()
    pid = get(counter.pid.remote())
    del counter

    found = ray.get_actor("detached")
    to_end.append(found)
    assert get(found.add.remote()) == 1
    assert get(found.pid.remote()) == pid


def test_detached_actor_outlives_the_task_that_made_it(to_end: list[Any]) -> None:
    Counter = counter_class()

    @ray.remote
    def make() -> None:
        ray.get(Counter.options(name="from task", lifetime="detached").remote().add.remote(41))

    get(make.remote())
    found = ray.get_actor("from task")
    to_end.append(found)
    assert get(found.add.remote()) == 42


def test_actor_ends_with_the_task_that_made_it_unless_detached() -> None:
    Counter = counter_class()

    @ray.remote
    def make() -> None:
        ray.get(Counter.options(name="of task").remote().add.remote())

    get(make.remote())
    wait_for(lambda: not is_known("of task"), "the actor outlives the task that held it", 30)


def test_killed_detached_actor_is_gone() -> None:
    counter = counter_class().options(name="killed", lifetime="detached").remote()
    get(counter.add.remote())
    end(ray.get_actor("killed"))
    with pytest.raises(ValueError):
        ray.get_actor("killed")


def test_unknown_lifetime_is_a_value_error() -> None:
    with pytest.raises(ValueError):
        counter_class().options(lifetime="forever").remote()


def test_lifetime_non_detached_is_the_default() -> None:
    counter = counter_class().options(name="short", lifetime="non_detached").remote()
    get(counter.add.remote())
    del counter
    wait_for(lambda: not is_known("short"), "a non_detached actor outlives its handles", 30)


def test_detached_actor_survives_its_driver_and_others_die_with_it(run_program: Any, to_end: list[Any]) -> None:
    done = run_program(
        """
        import sys
        import ray

        ray.init(address=sys.argv[1], namespace="compat")

        @ray.remote(num_cpus=0)
        class Counter:
            def __init__(self):
                self.value = 0

            def add(self):
                self.value += 1
                return self.value

        stays = Counter.options(name="stays", lifetime="detached").remote()
        goes = Counter.options(name="goes").remote()
        print(ray.get([stays.add.remote(), goes.add.remote()]))
        """,
        ray.get_runtime_context().gcs_address,
    )
    assert done.returncode == 0, done.stderr
    assert "[1, 1]" in done.stdout
    stays = ray.get_actor("stays")
    to_end.append(stays)
    assert get(stays.add.remote()) == 2
    wait_for(lambda: not is_known("goes"), "an actor outlives its driver", 30)


# ---------------------------------------------------------------- the list of names


def test_list_named_actors_of_this_namespace() -> None:
    Counter = counter_class()
    actors = [
        Counter.options(name="one").remote(),
        Counter.options(name="two").remote(),
        Counter.options(name="three", namespace="elsewhere").remote(),
    ]
    get([actor.add.remote() for actor in actors])

    names = list_named_actors()
    assert {"one", "two"} <= set(names)
    assert "three" not in names


def test_list_named_actors_of_all_namespaces() -> None:
    Counter = counter_class()
    actors = [Counter.options(name="one").remote(), Counter.options(name="three", namespace="elsewhere").remote()]
    get([actor.add.remote() for actor in actors])

    listed = list_named_actors(all_namespaces=True)
    assert {"name": "one", "namespace": "compat"} in listed
    assert {"name": "three", "namespace": "elsewhere"} in listed


def test_list_named_actors_forgets_the_dead() -> None:
    counter = counter_class().options(name="mortal").remote()
    get(counter.add.remote())
    assert "mortal" in list_named_actors()
    end(counter)
    assert "mortal" not in list_named_actors()
