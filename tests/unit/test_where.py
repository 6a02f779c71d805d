"""From options to places: what counts, what is taken from the submitter, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from noded.client import where
from noded.client.options import ActorOptions, TaskOptions
from noded.client.placement_groups import PlacementGroup, PlacementGroupID
from noded.client.strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
    PlacementGroupSchedulingStrategy,
)
from noded.policy.where import refuse
from noded.wire.messages import ANYWHERE, Place

GROUP = PlacementGroup(PlacementGroupID(bytes(16)), [{"CPU": 1.0}, {"CPU": 2.0, "disk": 1.0}])
ID = GROUP.id.binary()
INSIDE = Place(group=b"g" * 16, bundle=1)
CAPTURED = Place(group=b"g" * 16, bundle=1, capture=True)
CHILD = Place(group=b"g" * 16, capture=True)


def strategy(*args: Any, **more: Any) -> PlacementGroupSchedulingStrategy:
    return PlacementGroupSchedulingStrategy(*args, **more)


@pytest.mark.parametrize(
    ("given", "outside", "captured"),
    [
        (None, ANYWHERE, CHILD),
        ("DEFAULT", ANYWHERE, ANYWHERE),
        ("SPREAD", Place(spread=True), Place(spread=True)),
        (strategy(None), ANYWHERE, ANYWHERE),
        (strategy(PlacementGroup.empty()), ANYWHERE, ANYWHERE),
        (strategy("default"), ANYWHERE, CHILD),
        (strategy(GROUP), Place(group=ID), Place(group=ID, capture=True)),
        (strategy(GROUP, 1), Place(group=ID, bundle=1), Place(group=ID, bundle=1, capture=True)),
        (strategy(GROUP, -1, True), Place(group=ID, capture=True), Place(group=ID, capture=True)),
        (strategy(GROUP, -1, False), Place(group=ID), Place(group=ID)),
        (NodeAffinitySchedulingStrategy("AB", soft=False), Place(node="ab"), Place(node="ab")),
        (NodeAffinitySchedulingStrategy("ab", soft=True), Place(node="ab", soft=True), Place(node="ab", soft=True)),
    ],
    ids=repr,
)
def test_places(given: Any, outside: Place, captured: Place) -> None:
    assert where.place_of(given, ANYWHERE) == outside
    assert where.place_of(given, INSIDE) == outside, "a group that does not capture keeps nothing"
    assert where.place_of(given, CAPTURED) == captured


def test_a_bundle_without_a_group_is_refused_but_in_the_submitters_group_it_counts() -> None:
    given = strategy("default", 1)
    assert where.place_of(given, CAPTURED) == Place(group=CHILD.group, bundle=1, capture=True)
    for current in (ANYWHERE, INSIDE):
        with pytest.raises(ValueError, match="bundle index"):
            where.place_of(given, current)


def labels_of(given: Any, selector: Any = None, fallback: Any = None, current: Place = ANYWHERE) -> Place:
    return where.place_of(given, current, selector, fallback)


def test_labels_go_with_every_strategy() -> None:
    for given in (None, "DEFAULT", "SPREAD", strategy(GROUP), NodeAffinitySchedulingStrategy("EF", soft=True)):
        place = labels_of(given, {"zone": "a"})
        assert refuse(place, "n", {"zone": "a"}) == "" and refuse(place, "n", {}) != ""
    assert labels_of(None, {"zone": "a"}, current=CAPTURED).group == CHILD.group
    assert labels_of(None, {}) == ANYWHERE


def test_label_strategies() -> None:
    hard: dict[str, Any] = {"a": In("x", "y"), "b": NotIn("z"), "c": Exists(), "d": DoesNotExist()}
    place = labels_of(NodeLabelSchedulingStrategy(hard, soft={"e": In("1")}), {"f": "!0"})
    good = {"a": "y", "c": ""}
    assert refuse(place, "n", good) == ""
    for bad in ({"a": "z"}, {"b": "z"}, {"d": "1"}, {"f": "0"}):
        assert refuse(place, "n", good | bad), bad
    assert refuse(place, "n", {"a": "y"})
    assert refuse(labels_of(NodeLabelSchedulingStrategy(None, soft={"e": In("1")})), "n", {}) == ""


def test_fallbacks_count_where_the_selector_fails() -> None:
    place = labels_of(None, {"zone": "a"}, [{"label_selector": {"zone": "b"}}, {"label_selector": {"tier": "x"}}])
    assert [refuse(place, "n", {"zone": zone}) == "" for zone in "abc"] == [True, True, False]
    assert refuse(place, "n", {"tier": "x"}) == ""


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"scheduling_strategy": "FOO"}, ValueError),
        ({"scheduling_strategy": 5}, TypeError),
        ({"scheduling_strategy": strategy(5)}, TypeError),
        ({"scheduling_strategy": strategy(GROUP, 2)}, ValueError),
        ({"scheduling_strategy": strategy(GROUP, -2)}, ValueError),
        ({"scheduling_strategy": strategy(GROUP, "0")}, TypeError),
        ({"label_selector": ["zone"]}, TypeError),
        ({"label_selector": {"zone": "in("}}, ValueError),
        ({"label_selector": {"zone": None}}, ValueError),
        ({"fallback_strategy": 5}, TypeError),
        ({"fallback_strategy": [{"x": 1}]}, ValueError),
        ({"fallback_strategy": [{"label_selector": {"zone": "a b"}}]}, ValueError),
        ({"placement_group": GROUP, "scheduling_strategy": "SPREAD"}, ValueError),
        ({"placement_group_bundle_index": 0, "scheduling_strategy": "SPREAD"}, ValueError),
        ({"placement_group": GROUP, "placement_group_bundle_index": 2}, ValueError),
        ({"placement_group": "zz"}, TypeError),
    ],
    ids=str,
)
def test_options_that_are_refused_at_once(options: dict[str, Any], error: type[Exception]) -> None:
    for kind in (TaskOptions(), ActorOptions()):
        with pytest.raises(error):
            kind.changed(options)


@pytest.mark.parametrize(
    ("older", "current", "place"),
    [
        ({"placement_group": GROUP}, ANYWHERE, Place(group=ID)),
        ({"placement_group": GROUP, "placement_group_bundle_index": 1}, ANYWHERE, Place(group=ID, bundle=1)),
        (
            {"placement_group": GROUP, "placement_group_capture_child_tasks": True},
            ANYWHERE,
            Place(group=ID, capture=True),
        ),
        ({"placement_group": None}, CAPTURED, ANYWHERE),
        ({"placement_group": "default"}, CAPTURED, CHILD),
        ({"placement_group_capture_child_tasks": False}, CAPTURED, ANYWHERE),
        ({"placement_group": "default", "scheduling_strategy": "SPREAD"}, CAPTURED, Place(spread=True)),
    ],
    ids=str,
)
def test_the_three_older_options(
    monkeypatch: pytest.MonkeyPatch, older: dict[str, Any], current: Place, place: Place
) -> None:
    monkeypatch.setattr("noded.client.placement_groups.bundles_of", lambda id_: [{"CPU": 1.0}])
    assert TaskOptions().changed(older).place(current) == place


def test_what_fits_no_bundle_is_refused() -> None:
    inside = {"scheduling_strategy": strategy(GROUP)}
    first = {"scheduling_strategy": strategy(GROUP, 0)}
    for options in (
        {**inside, "num_cpus": 2},
        {**inside, "num_cpus": 0, "resources": {"disk": 1}},
        {**first, "num_cpus": 1},
        {**first, "num_cpus": 0},
    ):
        TaskOptions().changed(options).place(ANYWHERE)
    for options in (
        {**inside, "num_cpus": 3},
        {**inside, "num_cpus": 2, "resources": {"disk": 2}},
        {**first, "num_cpus": 1, "resources": {"disk": 1}},
        {**first, "num_cpus": 2},
        {**first, "num_gpus": 1},
    ):
        with pytest.raises(ValueError, match="fits no bundle"):
            TaskOptions().changed(options).place(ANYWHERE)
    disk = PlacementGroup(PlacementGroupID(bytes(16)), [{"disk": 1.0}])
    with pytest.raises(ValueError, match="an actor needs one CPU to start"):
        ActorOptions().changed({"scheduling_strategy": strategy(disk)}).place(ANYWHERE)
    ActorOptions().changed({"scheduling_strategy": strategy(disk), "num_cpus": 0}).place(ANYWHERE)
