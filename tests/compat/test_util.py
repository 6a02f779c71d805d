"""The rest of ray.util: metrics, scheduling strategies, serializability, and small helpers."""

from __future__ import annotations

import ipaddress
import threading
from typing import Any

import pytest
import ray
from ray.util import get_node_ip_address, inspect_serializability, log_once
from ray.util.metrics import Counter, Gauge, Histogram
from ray.util.scheduling_strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
    PlacementGroupSchedulingStrategy,
)

pytestmark = pytest.mark.usefixtures("cluster")


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=60)


# ---------------------------------------------------------------- metrics


def test_counter_counts_up() -> None:
    counter = Counter("compat_counter", description="counts", tag_keys=("kind",))
    counter.set_default_tags({"kind": "a"})
    counter.inc()
    counter.inc(2.5, tags={"kind": "b"})
    assert counter.info["name"] == "compat_counter"
    assert counter.info["description"] == "counts"
    assert counter.info["tag_keys"] == ("kind",)
    assert counter.info["default_tags"] == {"kind": "a"}


@pytest.mark.parametrize("amount", [0, -1])
def test_counter_takes_only_positive_amounts(amount: int) -> None:
    with pytest.raises(ValueError):
        Counter("compat_positive").inc(amount)


def test_gauge_is_set() -> None:
    gauge = Gauge("compat_gauge", tag_keys=("kind",))
    gauge.set(1.5, tags={"kind": "x"})
    gauge.set(-3, tags={"kind": "x"})


def test_histogram_observes_and_needs_boundaries() -> None:
    histogram = Histogram("compat_histogram", boundaries=[1, 5], tag_keys=("kind",))
    histogram.observe(3, tags={"kind": "x"})
    assert histogram.info["boundaries"] == [1, 5]
    with pytest.raises(ValueError):
        Histogram("compat_negative", boundaries=[-1, 5])


def test_values_must_be_numbers() -> None:
    with pytest.raises(TypeError):
        Counter("compat_text").inc("1")


@pytest.mark.parametrize("kind", [Counter, Gauge], ids=["counter", "gauge"])
def test_metric_tags_are_checked(kind: Any) -> None:
    with pytest.raises(TypeError):
        kind("compat_tags", tag_keys="kind")
    with pytest.raises(TypeError):
        kind("compat_tags", tag_keys=(1,))
    metric = kind("compat_tags", tag_keys=("kind",))
    record = metric.inc if kind is Counter else metric.set
    with pytest.raises(ValueError):
        record(1)  # a declared tag without a value
    with pytest.raises(TypeError):
        record(1, tags={"kind": 1})
    with pytest.raises(ValueError):
        metric.set_default_tags({"other": "x"})
    with pytest.raises(TypeError):
        metric.set_default_tags({"kind": 1})


def test_metric_names_are_checked() -> None:
    with pytest.raises(ValueError):
        Counter("")
    with pytest.warns(UserWarning):
        Counter("not a name")


def test_metrics_in_tasks_and_actors() -> None:
    @ray.remote
    class Counting:
        def __init__(self) -> None:
            self.counter = Counter("compat_in_actor", tag_keys=("kind",))

        def count(self) -> str:
            self.counter.inc(1, {"kind": "x"})
            return str(self.counter.info["name"])

    assert get(Counting.remote().count.remote()) == "compat_in_actor"


def test_metrics_can_be_pickled() -> None:
    gauge = ray.cloudpickle.loads(ray.cloudpickle.dumps(Gauge("compat_pickled", tag_keys=("kind",))))
    gauge.set(1, {"kind": "x"})
    assert gauge.info["tag_keys"] == ("kind",)


# ---------------------------------------------------------------- scheduling strategies


def test_default_and_spread_strategies() -> None:
    @ray.remote
    def f() -> int:
        return 1

    assert get(f.options(scheduling_strategy="SPREAD").remote()) == 1
    assert get(f.options(scheduling_strategy="DEFAULT").remote()) == 1
    with pytest.raises(ValueError):
        f.options(scheduling_strategy="ELSEWHERE").remote()


def test_node_affinity_to_this_node() -> None:
    @ray.remote
    def where() -> str:
        return ray.get_runtime_context().get_node_id()

    here = ray.get_runtime_context().get_node_id()
    strategy = NodeAffinitySchedulingStrategy(node_id=here, soft=False)
    assert strategy.node_id == here and strategy.soft is False
    assert get(where.options(scheduling_strategy=strategy).remote()) == here


def test_node_affinity_of_an_actor() -> None:
    @ray.remote
    class Where:
        def node(self) -> str:
            return ray.get_runtime_context().get_node_id()

    here = ray.get_runtime_context().get_node_id()
    strategy = NodeAffinitySchedulingStrategy(here, soft=True)
    assert get(Where.options(scheduling_strategy=strategy).remote().node.remote()) == here


def unknown_node() -> str:
    return "ab" * (len(ray.get_runtime_context().get_node_id()) // 2)


def test_hard_affinity_to_an_unknown_node_fails_and_soft_runs_anywhere() -> None:
    @ray.remote(max_retries=0)
    def f() -> int:
        return 1

    nobody = unknown_node()
    with pytest.raises(ray.exceptions.TaskUnschedulableError):
        get(f.options(scheduling_strategy=NodeAffinitySchedulingStrategy(nobody, soft=False)).remote())
    assert get(f.options(scheduling_strategy=NodeAffinitySchedulingStrategy(nobody, soft=True)).remote()) == 1


def test_hard_affinity_of_an_actor_to_an_unknown_node_fails() -> None:
    @ray.remote
    class Nowhere:
        def hello(self) -> None: ...

    nobody = unknown_node()
    strategy = NodeAffinitySchedulingStrategy(nobody, soft=False)
    with pytest.raises((ray.exceptions.ActorUnschedulableError, ray.exceptions.RayActorError)):
        get(Nowhere.options(scheduling_strategy=strategy).remote().hello.remote())


@pytest.mark.parametrize(
    ("arguments", "options"),
    [(("not hex",), {"soft": True}), (("",), {"soft": False})],
    ids=str,
)
def test_node_affinity_is_checked(arguments: Any, options: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        NodeAffinitySchedulingStrategy(*arguments, **options)


def test_spill_needs_soft_affinity() -> None:
    with pytest.raises(ValueError):
        NodeAffinitySchedulingStrategy(unknown_node(), soft=False, _spill_on_unavailable=True)
    with pytest.raises(TypeError):
        NodeAffinitySchedulingStrategy(unknown_node())


@pytest.mark.parametrize(
    "make",
    [
        lambda: NodeLabelSchedulingStrategy(hard={}),
        lambda: NodeLabelSchedulingStrategy(hard=["zone"]),
        lambda: NodeLabelSchedulingStrategy(hard={"zone": "a"}),
        lambda: NodeLabelSchedulingStrategy(hard={1: In("a")}),
        lambda: In(),
        lambda: NotIn(1),
    ],
    ids=["empty", "a list", "no operator", "key", "no values", "a number"],
)
def test_node_labels_are_checked(make: Any) -> None:
    with pytest.raises(ValueError):
        NodeLabelSchedulingStrategy(hard={"zone": make()})


def test_tasks_run_where_labels_do_not_exclude_it() -> None:
    @ray.remote
    def f() -> int:
        return 1

    strategy = NodeLabelSchedulingStrategy(hard={"compat": DoesNotExist()}, soft={"zone": In("a", "b")})
    assert get(f.options(scheduling_strategy=strategy).remote()) == 1


def test_tasks_wait_for_a_node_with_their_labels() -> None:
    @ray.remote
    def f() -> int:
        return 1

    ref = f.options(scheduling_strategy=NodeLabelSchedulingStrategy(hard={"compat": Exists()})).remote()
    assert ray.wait([ref], timeout=0.5) == ([], [ref])
    ray.cancel(ref)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        get(ref)


def test_placement_group_strategy_keeps_what_it_was_given() -> None:
    strategy = PlacementGroupSchedulingStrategy(None, placement_group_bundle_index=2)
    assert strategy.placement_group is None
    assert strategy.placement_group_bundle_index == 2
    assert strategy.placement_group_capture_child_tasks is None


# ---------------------------------------------------------------- small helpers


def test_node_ip_address() -> None:
    address = get_node_ip_address()
    assert str(ipaddress.ip_address(address)) == address


def test_log_once_is_true_once_per_key() -> None:
    assert log_once("compat key one") is True
    assert log_once("compat key one") is False
    assert log_once("compat key two") is True


def test_inspect_serializability_of_good_and_bad_things() -> None:
    good, failures = inspect_serializability(lambda: 1, name="good")
    assert good is True and failures == set()

    lock = threading.Lock()

    def bad() -> Any:
        return lock

    fine, failures = inspect_serializability(bad, name="bad")
    assert fine is False
    assert lock in {failure.obj for failure in failures}


def test_as_completed_and_map_unordered() -> None:
    @ray.remote
    def double(x: int) -> int:
        return 2 * x

    from ray.util import as_completed, map_unordered

    assert sorted(as_completed([double.remote(x) for x in range(4)])) == [0, 2, 4, 6]
    assert sorted(map_unordered(double, range(4))) == [0, 2, 4, 6]


def test_registered_serializers_are_used_and_forgotten() -> None:
    class Box:
        def __init__(self, value: int) -> None:
            self.value = value
            self.lock = threading.Lock()

    ray.util.register_serializer(Box, serializer=lambda box: box.value, deserializer=Box)
    assert get(ray.put(Box(3))).value == 3

    @ray.remote
    def value(box: Any) -> int:
        return box.value

    assert get(value.remote(Box(4))) == 4
    ray.util.deregister_serializer(Box)
    with pytest.raises(TypeError):
        ray.put(Box(5))
