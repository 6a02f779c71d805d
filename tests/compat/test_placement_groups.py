"""Placement groups on one node of 4 CPUs: reserving, checking, naming."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray
from harness.wait import wait_for
from ray.exceptions import GetTimeoutError
from ray.util import placement_group_table
from ray.util.placement_group import (
    PlacementGroup,
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


# ---------------------------------------------------------------- reserving


@pytest.mark.parametrize("strategy", ["PACK", "SPREAD", "STRICT_PACK"])
def test_strategies_that_fit_on_one_node(make: Make, strategy: str) -> None:
    group = make([{"CPU": 1}, {"CPU": 1}], strategy=strategy)
    assert group.wait(30) is True
    assert placement_group_table(group)["strategy"] == strategy


def test_strict_spread_over_more_nodes_than_there_are_stays_pending(make: Make) -> None:
    group = make([{"CPU": 1}, {"CPU": 1}], strategy="STRICT_SPREAD")
    assert group.wait(0.5) is False
    assert state_of(group) == "PENDING"


def test_strict_spread_of_one_bundle(make: Make) -> None:
    assert make([{"CPU": 1}], strategy="STRICT_SPREAD").wait(30) is True


def test_pack_is_the_default(ready: Make) -> None:
    assert placement_group_table(ready([{"CPU": 1}]))["strategy"] == "PACK"


def test_ready_is_a_ref_whose_value_is_the_group(make: Make) -> None:
    group = make([{"CPU": 1}])
    ref = group.ready()
    assert isinstance(ref, ray.ObjectRef)
    assert get(ref).id == group.id


def test_ready_of_a_group_that_does_not_fit_is_pending(make: Make) -> None:
    ref = make([{"CPU": 100}]).ready()
    assert ray.wait([ref], timeout=0.5) == ([], [ref])
    with pytest.raises(GetTimeoutError):
        ray.get(ref, timeout=0.1)


def test_wait_with_a_timeout_is_false_when_it_passes(make: Make) -> None:
    assert make([{"CPU": 100}]).wait(timeout_seconds=0.2) is False
    assert make([{"CPU": 1}]).wait(timeout_seconds=30) is True


def test_a_group_takes_its_resources_from_the_node(ready: Make) -> None:
    ready([{"CPU": 1}, {"CPU": 2}])
    assert wait_for(lambda: ray.available_resources().get("CPU") == 1, "3 of 4 CPUs are not taken", 30)


def test_a_group_is_all_or_nothing(ready: Make, make: Make) -> None:
    ready([{"CPU": 2}])
    second = make([{"CPU": 1}, {"CPU": 2}])
    assert second.wait(0.5) is False
    assert ray.available_resources().get("CPU") == 2


def test_a_waiting_group_is_placed_when_another_is_removed(ready: Make, make: Make) -> None:
    first = ready([{"CPU": 3}])
    second = make([{"CPU": 3}])
    assert second.wait(0.3) is False
    remove_placement_group(first)
    assert second.wait(30) is True


def test_bundles_may_be_fractions_and_custom_resources(ready: Make) -> None:
    group = ready([{"CPU": 0.5}, {"CPU": 0.25, "memory": 1024 * 1024}])
    assert group.bundle_specs == [{"CPU": 0.5}, {"CPU": 0.25, "memory": 1024 * 1024}]


@pytest.mark.improves("gives back what a group had that was removed while it was placed; Ray sometimes does not")
def test_groups_removed_at_once_give_everything_back(make: Make) -> None:
    for _ in range(20):
        remove_placement_group(make([{"CPU": 1}, {"CPU": 1}]))
    assert make([{"CPU": 4}]).wait(30)


def test_infeasible_custom_resource_stays_pending(make: Make) -> None:
    group = make([{"unobtainium": 1}])
    assert group.wait(0.3) is False
    assert state_of(group) == "PENDING"


def test_bundle_specs_and_count(ready: Make) -> None:
    group = ready([{"CPU": 1}, {"CPU": 2}])
    assert group.bundle_count == 2
    assert group.bundle_specs == [{"CPU": 1}, {"CPU": 2}]
    assert PlacementGroup.empty().is_empty and not group.is_empty


# ---------------------------------------------------------------- validation


@pytest.mark.parametrize(
    "bundles",
    [[], [{}], [{"CPU": 0}], [{"CPU": 1}, {}]],
    ids=str,
)
def test_wrong_bundles_are_value_errors(bundles: Any) -> None:
    with pytest.raises(ValueError):
        placement_group(bundles)


@pytest.mark.improves("refuses negative amounts; Ray adds them to what the node has")
def test_negative_amounts_in_bundles_are_value_errors() -> None:
    with pytest.raises(ValueError):
        placement_group([{"CPU": -1}])


@pytest.mark.parametrize("bundles", ["CPU", {"CPU": 1}, None, [["CPU"]]], ids=str)
def test_bundles_must_be_a_list_of_dicts(bundles: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        placement_group(bundles)


def test_unknown_strategy_and_lifetime_are_value_errors() -> None:
    with pytest.raises(ValueError):
        placement_group([{"CPU": 1}], strategy="SOMEHOW")
    with pytest.raises(ValueError):
        placement_group([{"CPU": 1}], lifetime="long")


def test_bundle_index_out_of_range_is_a_value_error(ready: Make) -> None:
    group = ready([{"CPU": 1}])

    @ray.remote
    def f() -> None: ...

    for index in (1, -2):
        with pytest.raises(ValueError):
            f.options(**inside(group, placement_group_bundle_index=index)).remote()


def test_a_task_that_fits_no_bundle_is_a_value_error(ready: Make) -> None:
    group = ready([{"CPU": 1}, {"CPU": 1}])

    @ray.remote(num_cpus=2)
    def wide() -> None: ...

    @ray.remote(resources={"unobtainium": 1})
    def odd() -> None: ...

    with pytest.raises(ValueError):
        wide.options(**inside(group)).remote()
    with pytest.raises(ValueError):
        odd.options(**inside(group)).remote()


# ---------------------------------------------------------------- the table


def test_table_of_one_group(ready: Make) -> None:
    group = ready([{"CPU": 1}, {"CPU": 2}], strategy="PACK", name="tabled")
    table = placement_group_table(group)

    assert table["placement_group_id"] == group.id.hex()
    assert table["name"] == "tabled"
    assert table["bundles"] == {0: {"CPU": 1.0}, 1: {"CPU": 2.0}}
    assert table["state"] == "CREATED"
    node = ray.get_runtime_context().get_node_id()
    assert table["bundles_to_node_id"] == {0: node, 1: node}


def test_table_of_all_groups(ready: Make) -> None:
    first, second = ready([{"CPU": 1}]), ready([{"CPU": 1}])
    table = placement_group_table()
    assert {first.id.hex(), second.id.hex()} <= set(table)
    assert table[first.id.hex()]["state"] == "CREATED"


def test_removed_group_is_in_the_table_as_removed(ready: Make) -> None:
    group = ready([{"CPU": 1}])
    remove_placement_group(group)
    wait_for(lambda: state_of(group) == "REMOVED", "the group is never REMOVED", 30)


# ---------------------------------------------------------------- names


def test_group_by_name(ready: Make) -> None:
    group = ready([{"CPU": 1}], name="named group")
    found = get_placement_group("named group")
    assert found.id == group.id
    assert found.bundle_specs == [{"CPU": 1}]


def test_unknown_and_empty_names_are_value_errors() -> None:
    with pytest.raises(ValueError):
        get_placement_group("no such group")
    with pytest.raises(ValueError):
        get_placement_group("")


def test_group_by_name_from_a_task(ready: Make) -> None:
    group = ready([{"CPU": 1}], name="shared group")

    @ray.remote
    def find() -> str:
        return ray.util.get_placement_group("shared group").id.hex()

    assert get(find.remote()) == group.id.hex()
