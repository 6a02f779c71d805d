"""Tasks and actors in placement groups of one node of 4 CPUs, and what removal does to them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray
from harness.wait import wait_for
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.util import placement_group_table
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    get_placement_group,
    placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

pytestmark = pytest.mark.usefixtures("cluster")
Make = Callable[..., PlacementGroup]


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=60)


def state_of(group: PlacementGroup) -> str:
    return str(placement_group_table(group)["state"])


def inside(group: PlacementGroup, **options: Any) -> dict[str, Any]:
    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, **options)}


@pytest.fixture
def make() -> Iterator[Make]:
    """placement_group() whose groups are removed after the test."""
    made = []

    def make(*args: Any, **options: Any) -> PlacementGroup:
        made.append(placement_group(*args, **options))
        return made[-1]

    yield make
    for group in made:
        remove_placement_group(group)
    wait_for(lambda: ray.available_resources().get("CPU") == 4, "the groups' CPUs do not come back", 30)


@pytest.fixture
def ready(make: Make) -> Make:
    def ready(*args: Any, **options: Any) -> PlacementGroup:
        group = make(*args, **options)
        assert group.wait(30)
        return group

    return ready


# ---------------------------------------------------------------- using


def test_tasks_run_in_a_group_that_holds_all_cpus(ready: Make) -> None:
    group = ready([{"CPU": 4}])

    @ray.remote
    def f(x: int) -> int:
        return x + 1

    outside = f.remote(10)
    assert get([f.options(**inside(group)).remote(x) for x in range(8)]) == list(range(1, 9))
    assert ray.wait([outside], timeout=0.3)[0] == []
    remove_placement_group(group)
    assert get(outside) == 11


def test_tasks_of_a_bundle_share_it(ready: Make, gate: Any, notes: Any) -> None:
    group = ready([{"CPU": 1}, {"CPU": 2}])

    @ray.remote
    def enter(gate: Any, notes: Any) -> None:
        notes.add("in")
        gate.wait()

    refs = [enter.options(**inside(group, placement_group_bundle_index=1)).remote(gate, notes) for _ in range(3)]
    notes.wait(2)
    assert ray.wait(refs, num_returns=1, timeout=0.5)[0] == []
    assert len(notes.all()) == 2
    gate.open()
    get(refs)


def test_any_bundle_by_default(ready: Make, notes: Any) -> None:
    group = ready([{"CPU": 1}, {"CPU": 1}])

    @ray.remote
    def meet(notes: Any) -> int:
        notes.add()
        return len(notes.wait(2))

    assert get([meet.options(**inside(group)).remote(notes) for _ in range(2)]) == [2, 2]


def test_actors_live_in_a_group(ready: Make) -> None:
    group = ready([{"CPU": 2}])

    @ray.remote(num_cpus=1)
    class Member:
        def group(self) -> Any:
            return ray.get_runtime_context().get_placement_group_id()

    members = [Member.options(**inside(group, placement_group_bundle_index=0)).remote() for _ in range(2)]
    assert get([member.group.remote() for member in members]) == [group.id.hex()] * 2


def test_actor_without_cpus_in_a_group(ready: Make) -> None:
    group = ready([{"CPU": 1}])

    @ray.remote(num_cpus=0)
    class Idle:
        def group(self) -> Any:
            return ray.get_runtime_context().get_placement_group_id()

    assert get(Idle.options(**inside(group)).remote().group.remote()) == group.id.hex()


def test_strategy_in_the_decorator(ready: Make) -> None:
    group = ready([{"CPU": 1}])

    @ray.remote(scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=group))
    def where() -> Any:
        return ray.get_runtime_context().get_placement_group_id()

    assert get(where.remote()) == group.id.hex()


def test_a_task_waits_for_its_group_to_be_placed(ready: Make, make: Make) -> None:
    first = ready([{"CPU": 3}])
    second = make([{"CPU": 3}])

    @ray.remote
    def f() -> str:
        return "ran"

    ref = f.options(**inside(second)).remote()
    assert ray.wait([ref], timeout=0.3)[0] == []
    remove_placement_group(first)
    assert get(ref) == "ran"


def test_current_placement_group(ready: Make) -> None:
    group = ready([{"CPU": 1}])

    @ray.remote
    def current() -> Any:
        found = get_current_placement_group()
        return found.id.hex() if found is not None else None

    assert get_current_placement_group() is None
    assert get(current.remote()) is None
    assert get(current.options(**inside(group)).remote()) == group.id.hex()


def test_group_as_argument_of_a_task(ready: Make) -> None:
    group = ready([{"CPU": 1}])

    @ray.remote
    def f() -> Any:
        return ray.get_runtime_context().get_placement_group_id()

    @ray.remote(num_cpus=0)
    def use(group: Any) -> Any:
        strategy = PlacementGroupSchedulingStrategy(group)
        return group.bundle_count, ray.get(f.options(scheduling_strategy=strategy).remote())

    assert get(use.remote(group)) == (1, group.id.hex())


def test_group_made_by_a_task_ends_with_the_job_not_with_the_task(make: Make) -> None:
    @ray.remote(num_cpus=0)
    def create() -> Any:
        group = placement_group([{"CPU": 1}])
        ray.get(group.ready())
        return group

    group = get(create.remote())
    try:
        assert state_of(group) == "CREATED"
    finally:
        remove_placement_group(group)


# ---------------------------------------------------------------- child tasks


def child_group_of(**options: Any) -> Any:
    @ray.remote(num_cpus=0)
    def child() -> Any:
        return ray.get_runtime_context().get_placement_group_id()

    @ray.remote
    def parent() -> Any:
        return ray.get(child.options(**options).remote())

    return parent


def test_child_tasks_are_outside_by_default(ready: Make) -> None:
    group = ready([{"CPU": 1}])
    assert get(child_group_of().options(**inside(group)).remote()) is None


def test_child_tasks_are_captured_on_request(ready: Make) -> None:
    group = ready([{"CPU": 1}])
    options = inside(group, placement_group_capture_child_tasks=True)
    assert get(child_group_of().options(**options).remote()) == group.id.hex()


def test_captured_children_can_leave_by_the_default_strategy(ready: Make) -> None:
    group = ready([{"CPU": 1}])
    options = inside(group, placement_group_capture_child_tasks=True)
    assert get(child_group_of(scheduling_strategy="DEFAULT").options(**options).remote()) is None


def test_children_of_actors_are_captured_on_request(ready: Make) -> None:
    group = ready([{"CPU": 1}])

    @ray.remote(num_cpus=0)
    def child() -> Any:
        return ray.get_runtime_context().get_placement_group_id()

    @ray.remote
    class Parent:
        def run(self) -> Any:
            context = ray.get_runtime_context()
            return context.should_capture_child_tasks_in_placement_group, ray.get(child.remote())

    capturing = Parent.options(**inside(group, placement_group_capture_child_tasks=True)).remote()
    assert get(capturing.run.remote()) == (True, group.id.hex())


# ---------------------------------------------------------------- removing


def test_remove_twice_is_harmless(ready: Make) -> None:
    group = ready([{"CPU": 1}])
    remove_placement_group(group)
    remove_placement_group(group)


def test_removal_gives_the_resources_back(ready: Make) -> None:
    group = ready([{"CPU": 3}])
    wait_for(lambda: ray.available_resources().get("CPU") == 1, "3 of 4 CPUs are not taken", 30)
    remove_placement_group(group)
    wait_for(lambda: ray.available_resources().get("CPU") == 4, "the CPUs do not come back", 30)


def test_removal_ends_running_tasks_of_the_group(ready: Make, gate: Any, notes: Any) -> None:
    group = ready([{"CPU": 1}])

    @ray.remote(max_retries=0)
    def wait(gate: Any, notes: Any) -> None:
        notes.add(os.getpid())
        gate.wait()

    ref = wait.options(**inside(group)).remote(gate, notes)
    pid = int(notes.wait(1)[0])
    remove_placement_group(group)
    with pytest.raises(RayError):
        get(ref)
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), "the worker of the removed group lives on", 30)
    gate.open()


def test_removal_ends_actors_of_the_group(ready: Make) -> None:
    group = ready([{"CPU": 1}])

    @ray.remote(num_cpus=1)
    class Member:
        def hello(self) -> str:
            return "hello"

    member = Member.options(**inside(group)).remote()
    assert get(member.hello.remote()) == "hello"
    remove_placement_group(group)

    def ended() -> bool:
        try:
            get(member.hello.remote())
        except RayActorError:
            return True
        return False

    wait_for(ended, "the actor outlives its group", 30)


def test_tasks_queued_in_a_removed_group_fail(ready: Make, gate: Any, notes: Any) -> None:
    group = ready([{"CPU": 1}])

    @ray.remote(max_retries=0)
    def wait(gate: Any, notes: Any) -> None:
        notes.add()
        gate.wait()

    refs = [wait.options(**inside(group)).remote(gate, notes) for _ in range(3)]
    notes.wait(1)
    remove_placement_group(group)
    for ref in refs:
        with pytest.raises(RayError) as caught:
            get(ref)
        assert not isinstance(caught.value, GetTimeoutError)
    assert len(notes.all()) == 1


@pytest.mark.improves("fails what waits for a removed group; on Ray it waits for ever")
def test_tasks_that_wait_for_a_removed_group_fail(ready: Make, make: Make) -> None:
    ready([{"CPU": 3}])
    second = make([{"CPU": 3}])

    @ray.remote(max_retries=0)
    def f() -> None: ...

    ref = f.options(**inside(second)).remote()
    assert ray.wait([ref], timeout=0.2)[0] == []
    remove_placement_group(second)
    with pytest.raises(ray.exceptions.TaskPlacementGroupRemoved):
        get(ref)


@pytest.mark.improves("fails what waits for a removed group; on Ray it waits for ever")
def test_actors_that_wait_for_a_removed_group_fail(ready: Make, make: Make) -> None:
    ready([{"CPU": 3}])
    second = make([{"CPU": 3}])

    @ray.remote(num_cpus=1)
    class Member:
        def hello(self) -> None: ...

    member = Member.options(**inside(second)).remote()
    ref = member.hello.remote()
    assert ray.wait([ref], timeout=0.2)[0] == []
    remove_placement_group(second)
    with pytest.raises((RayActorError, ray.exceptions.ActorPlacementGroupRemoved)):
        get(ref)


@pytest.mark.improves("fails what is submitted to a removed group; on Ray it waits for ever")
def test_tasks_submitted_to_a_removed_group_fail(ready: Make) -> None:
    group = ready([{"CPU": 1}])
    remove_placement_group(group)
    wait_for(lambda: state_of(group) == "REMOVED", "the group is never REMOVED", 30)

    @ray.remote(max_retries=0)
    def f() -> None: ...

    with pytest.raises(ray.exceptions.TaskPlacementGroupRemoved):
        get(f.options(**inside(group)).remote())


def test_detached_group_survives_its_driver_and_others_go_with_it(run_program: Any, make: Make) -> None:
    done = run_program(
        """
        import sys
        import ray
        from ray.util.placement_group import placement_group

        ray.init(address=sys.argv[1], namespace="compat")
        stays = placement_group([{"CPU": 1}], name="stays", lifetime="detached")
        goes = placement_group([{"CPU": 1}], name="goes")
        ray.get([stays.ready(), goes.ready()])
        print(goes.id.hex())
        """,
        ray.get_runtime_context().gcs_address,
    )
    assert done.returncode == 0, done.stderr
    gone = done.stdout.split()[-1]
    try:
        stays = get_placement_group("stays")
        assert state_of(stays) == "CREATED"
        wait_for(
            lambda: placement_group_table().get(gone, {"state": "REMOVED"})["state"] == "REMOVED",
            "a group outlives its driver",
            30,
        )
    finally:
        remove_placement_group(get_placement_group("stays"))
