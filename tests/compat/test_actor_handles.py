"""What an actor's class may be made of, and its handles wherever they may go."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import ray
from harness.wait import wait_for

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


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# ---------------------------------------------------------------- classes


def test_inherited_overridden_and_super_methods() -> None:
    class Base:
        def __init__(self, name: str) -> None:
            self.name = name

        def who(self) -> str:
            return f"base {self.name}"

        def inherited(self) -> str:
            return self.who()

    @ray.remote
    class Derived(Base):
        def __init__(self, name: str) -> None:
            super().__init__(name.upper())

        def who(self) -> str:
            return f"derived of {super().who()}"

    derived = Derived.remote("x")
    assert get(derived.inherited.remote()) == "derived of base X"


def test_multiple_inheritance_and_abstract_bases() -> None:
    import abc

    class Shape(abc.ABC):
        @abc.abstractmethod
        def area(self) -> float: ...

    class Named:
        def name(self) -> str:
            return type(self).__mro__[-2].__name__

    @ray.remote
    class Square(Named, Shape):
        def area(self) -> float:
            return 4.0

    square = Square.remote()
    assert get(square.area.remote()) == 4.0
    assert get(square.name.remote()) == "ABC"


def test_actor_classes_cannot_be_base_classes() -> None:
    Counter = counter_class()

    with pytest.raises(TypeError):

        class Derived(Counter):  # type: ignore[misc]
            pass


def test_class_methods_and_static_methods_are_callable() -> None:
    @ray.remote
    class Mixed:
        start = 100

        @classmethod
        def of_class(cls, amount: int) -> int:
            cls.start += amount
            return cls.start

        @staticmethod
        def of_nobody(a: int, b: int = 1) -> int:
            return a * b

        def of_instance(self) -> int:
            return self.start

    mixed = Mixed.remote()
    assert get(mixed.of_class.remote(5)) == 105
    assert get(mixed.of_nobody.remote(3, b=7)) == 21
    assert get(mixed.of_instance.remote()) == 105


def test_class_attributes_belong_to_the_process() -> None:
    class Shared:
        calls: list[int] = []

        def add(self) -> int:
            self.calls.append(1)
            return len(self.calls)

    Actor = ray.remote(Shared)
    first, second = Actor.remote(), Actor.remote()
    assert get([first.add.remote(), first.add.remote(), second.add.remote()]) == [1, 2, 1]
    assert Shared.calls == []


def test_properties_work_inside_and_are_not_methods_of_the_handle() -> None:
    @ray.remote
    class Circle:
        def __init__(self, radius: float) -> None:
            self.radius = radius

        @property
        def diameter(self) -> float:
            return 2 * self.radius

        def get_diameter(self) -> float:
            return self.diameter

    circle = Circle.remote(3)
    assert get(circle.get_diameter.remote()) == 6
    with pytest.raises(AttributeError):
        _ = circle.diameter


def test_private_and_dunder_methods_are_callable() -> None:
    @ray.remote
    class Odd:
        def __call__(self, x: int) -> int:
            return x + 1

        def _private(self) -> str:
            return "private"

        def __len__(self) -> int:
            return 3

    odd = Odd.remote()
    assert get(odd.__call__.remote(1)) == 2
    assert get(odd._private.remote()) == "private"
    assert get(odd.__len__.remote()) == 3


def test_methods_of_an_actor_may_use_closures_and_globals_of_their_module() -> None:
    factor = 7

    def times(x: int) -> int:
        return x * factor

    @ray.remote
    class Closed:
        def run(self, x: int) -> int:
            return times(x)

    assert get(Closed.remote().run.remote(6)) == 42


def test_an_actor_keeps_its_process_and_its_child_processes_work() -> None:
    @ray.remote
    class Shell:
        def run(self) -> str:
            return subprocess.run([sys.executable, "-c", "print('child')"], capture_output=True, text=True).stdout

        def pid(self) -> int:
            return os.getpid()

    shell = Shell.remote()
    first = get(shell.pid.remote())
    assert get(shell.run.remote()) == "child\n"
    assert get(shell.pid.remote()) == first


# ---------------------------------------------------------------- handles


def test_handle_as_argument_of_tasks_and_of_other_actors() -> None:
    @ray.remote
    def bump(counter: Any, times: int) -> int:
        return ray.get([counter.add.remote() for _ in range(times)])[-1]

    @ray.remote
    class Friend:
        def bump(self, counter: Any) -> int:
            return ray.get(counter.add.remote(100))

    counter = counter_class().remote()
    assert get(bump.remote(counter, 3)) == 3
    assert get(Friend.remote().bump.remote(counter)) == 103
    assert get(counter.add.remote(0)) == 103


@pytest.mark.may_leak("what a function captured is kept by the workers that know it")
def test_handle_in_structures_closures_and_put() -> None:
    counter = counter_class().remote()

    @ray.remote
    def nested(box: Any) -> int:
        return ray.get(box["list"][0].add.remote())

    @ray.remote
    def closed() -> int:
        return ray.get(counter.add.remote())

    assert get(nested.remote({"list": [counter]})) == 1
    assert get(closed.remote()) == 2
    assert get(get(ray.put(counter)).add.remote()) == 3


@pytest.mark.may_leak("an actor whose handle was pickled is kept for as long as the program runs")
def test_handle_pickled_by_ray_cloudpickle() -> None:
    counter = counter_class().remote()
    get(counter.add.remote())

    again = ray.cloudpickle.loads(ray.cloudpickle.dumps(counter))
    assert get(again.add.remote()) == 2


@pytest.mark.may_leak("an actor whose handle was pickled is kept for as long as the program runs")
def test_handle_pickled_by_ray_cloudpickle_travels_as_bytes() -> None:
    counter = counter_class().remote()

    @ray.remote
    def bump(data: bytes) -> int:
        return ray.get(ray.cloudpickle.loads(data).add.remote())

    assert get(bump.remote(ray.cloudpickle.dumps(counter))) == 1


def test_handles_of_one_actor_are_equal_and_hash_alike() -> None:
    Counter = counter_class()
    counter, other = Counter.remote(), Counter.remote()
    again = get(ray.put(counter))

    assert again == counter and hash(again) == hash(counter)
    assert counter != other
    assert {counter: 1}[again] == 1


def test_handles_and_classes_are_of_their_public_types() -> None:
    Counter = counter_class()
    counter = Counter.remote()

    assert isinstance(counter, ray.actor.ActorHandle)
    assert isinstance(Counter, ray.actor.ActorClass)
    assert isinstance(counter.add, ray.actor.ActorMethod)


def test_current_actor_can_be_passed_on() -> None:
    @ray.remote
    def tell(actor: Any) -> None:
        ray.get(actor.note.remote("told"))

    @ray.remote(max_concurrency=2)
    class Selfish:
        def __init__(self) -> None:
            self.notes: list[str] = []

        def note(self, text: str) -> None:
            self.notes.append(text)

        def run(self) -> list[str]:
            ray.get(tell.remote(ray.get_runtime_context().current_actor))
            return self.notes

    assert get(Selfish.remote().run.remote()) == ["told"]


def test_actors_make_actors() -> None:
    Counter = counter_class()

    @ray.remote
    class Parent:
        def __init__(self) -> None:
            self.child = Counter.remote(10)

        def bump(self) -> int:
            return ray.get(self.child.add.remote())

        def give(self) -> Any:
            return self.child

    parent = Parent.remote()
    assert get(parent.bump.remote()) == 11
    assert get(get(parent.give.remote()).add.remote()) == 12


def test_actor_id_as_hex_and_in_its_context() -> None:
    @ray.remote
    class Named:
        def id(self) -> str:
            return ray.get_runtime_context().get_actor_id()

    actor = Named.remote()
    assert get(actor.id.remote()) == actor._actor_id.hex()


def test_an_actor_ends_with_its_last_handle() -> None:
    counter = counter_class().remote()
    pid = get(counter.pid.remote())
    copy = get(ray.put(counter))

    del counter
    assert get(copy.add.remote()) == 1
    del copy
    wait_for(lambda: not is_alive(pid), "an actor without handles lives on", 30)


def test_calls_made_before_the_last_handle_went_are_done() -> None:
    refs = [counter_class().remote(i).add.remote() for i in range(2)]
    assert get(refs) == [1, 2]


def test_a_handle_in_a_running_task_keeps_the_actor(gate: Any) -> None:
    @ray.remote
    def use(counter: Any, gate: Any) -> int:
        gate.wait()
        return ray.get(counter.add.remote())

    counter = counter_class().remote()
    get(counter.add.remote())
    ref = use.remote(counter, gate)
    del counter
    gate.open()
    assert get(ref) == 2


def test_a_handle_in_a_stored_object_keeps_the_actor() -> None:
    counter = counter_class().remote()
    get(counter.add.remote())
    box = ray.put([counter])
    del counter
    assert get(get(box)[0].add.remote()) == 2
