"""The values of the option scheduling_strategy: checked when they are made, equal by value, picklable."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from noded.util.scheduling_strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
    PlacementGroupSchedulingStrategy,
)

NODE = "ab" * 16


def test_defaults() -> None:
    group = PlacementGroupSchedulingStrategy("the group")
    assert group.placement_group == "the group"
    assert group.placement_group_bundle_index == -1
    assert group.placement_group_capture_child_tasks is None

    node = NodeAffinitySchedulingStrategy(NODE, soft=True)
    assert (node.node_id, node.soft, node._spill_on_unavailable, node._fail_on_unavailable) == (
        NODE,
        True,
        False,
        False,
    )


def test_an_id_object_counts_by_its_hex() -> None:
    class Id:
        def hex(self) -> str:
            return NODE

    assert NodeAffinitySchedulingStrategy(Id(), soft=False).node_id == NODE


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (In("a", "b"), In("a", "b"), In("a")),
        (NotIn("a"), NotIn("a"), In("a")),
        (Exists(), Exists(), DoesNotExist()),
        (
            NodeAffinitySchedulingStrategy(NODE, soft=True),
            NodeAffinitySchedulingStrategy(NODE, soft=True),
            NodeAffinitySchedulingStrategy(NODE, soft=False),
        ),
        (
            NodeLabelSchedulingStrategy({"a": In("x"), "b": Exists()}, soft={"c": NotIn("y")}),
            NodeLabelSchedulingStrategy({"b": Exists(), "a": In("x")}, soft={"c": NotIn("y")}),
            NodeLabelSchedulingStrategy({"a": In("x"), "b": Exists()}),
        ),
        (
            PlacementGroupSchedulingStrategy("g", 1),
            PlacementGroupSchedulingStrategy("g", 1),
            PlacementGroupSchedulingStrategy("g", 2),
        ),
    ],
)
def test_equal_by_value_and_picklable(one: Any, same: Any, other: Any) -> None:
    assert one == same and hash(one) == hash(same)
    assert one != other
    assert pickle.loads(pickle.dumps(one)) == one


@pytest.mark.parametrize(
    ("error", "make"),
    [
        (TypeError, lambda: NodeAffinitySchedulingStrategy(NODE)),
        (TypeError, lambda: NodeAffinitySchedulingStrategy(None, soft=True)),
        (ValueError, lambda: NodeAffinitySchedulingStrategy("", soft=True)),
        (ValueError, lambda: NodeAffinitySchedulingStrategy("not hex", soft=True)),
        (ValueError, lambda: NodeAffinitySchedulingStrategy(NODE, soft=False, _spill_on_unavailable=True)),
        (ValueError, lambda: NodeAffinitySchedulingStrategy(NODE, soft=True, _fail_on_unavailable=True)),
        (ValueError, lambda: In()),
        (ValueError, lambda: In(1)),
        (ValueError, lambda: NotIn("a", None)),
        (ValueError, lambda: NodeLabelSchedulingStrategy(None)),
        (ValueError, lambda: NodeLabelSchedulingStrategy({})),
        (ValueError, lambda: NodeLabelSchedulingStrategy(["a"])),
        (ValueError, lambda: NodeLabelSchedulingStrategy({"a": "x"})),
        (ValueError, lambda: NodeLabelSchedulingStrategy({}, soft={1: Exists()})),
    ],
)
def test_wrong_values_are_refused(error: type[Exception], make: Any) -> None:
    with pytest.raises(error):
        make()
