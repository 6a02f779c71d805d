"""GPUs by number: each test has a cluster that is told it has two. None needs the hardware."""

from __future__ import annotations

import os
from typing import Any

import pytest
import ray
from harness.wait import wait_for

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture(autouse=True)
def two_gpus(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    ray.init("local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=60)


def seer() -> Any:
    @ray.remote(num_cpus=0)
    def see() -> Any:
        return sorted(ray.get_gpu_ids()), os.environ.get("CUDA_VISIBLE_DEVICES")

    return see


def test_an_actor_and_a_task_with_one_gpu_each_see_different_ones() -> None:
    @ray.remote(num_gpus=1)
    class Actor:
        def see(self) -> Any:
            return ray.get_gpu_ids(), os.environ["CUDA_VISIBLE_DEVICES"]

    actor = Actor.remote()
    first, first_seen = get(actor.see.remote())
    second, second_seen = get(seer().options(num_gpus=1).remote())
    assert sorted([*first, *second]) == [0, 1]
    assert first_seen == str(first[0]) and second_seen == str(second[0])


def test_both_and_none() -> None:
    see = seer()
    ids, seen = get(see.options(num_gpus=2).remote())
    assert ids == [0, 1]
    assert sorted(seen.split(",")) == ["0", "1"]
    assert get(see.remote())[0] == []
    assert ray.get_gpu_ids() == []


@pytest.mark.improves("a task without GPUs sees none")
def test_tasks_without_gpus_see_none() -> None:
    assert get(seer().remote()) == ([], "")


def test_ids_are_in_the_runtime_context() -> None:
    @ray.remote(num_gpus=1, num_cpus=0)
    def context() -> Any:
        found = ray.get_runtime_context()
        return found.get_accelerator_ids()["GPU"], found.get_assigned_resources()

    ids, resources = get(context.remote())
    assert ids in (["0"], ["1"])
    assert resources == {"GPU": 1.0}


def test_resources_of_the_cluster() -> None:
    assert ray.cluster_resources()["GPU"] == 2
    assert ray.available_resources()["GPU"] == 2

    @ray.remote(num_gpus=0.5)
    class Half:
        def ids(self) -> Any:
            return ray.get_gpu_ids()

    half = Half.remote()
    get(half.ids.remote())
    wait_for(lambda: ray.available_resources().get("GPU") == 1.5, "half a GPU is not taken")


def test_fractions_share_a_device() -> None:
    @ray.remote(num_gpus=0.5, num_cpus=0)
    class Half:
        def ids(self) -> Any:
            return ray.get_gpu_ids()

    halves = [Half.remote() for _ in range(4)]
    ids = sorted(id for ids in get([half.ids.remote() for half in halves]) for id in ids)
    assert ids == [0, 0, 1, 1]


def test_a_fraction_is_of_one_device(notes: Any, gate: Any) -> None:
    @ray.remote(num_gpus=0.6, num_cpus=0)
    def hold(notes: Any, gate: Any) -> Any:
        notes.add(ray.get_gpu_ids()[0])
        gate.wait()
        return ray.get_gpu_ids()

    refs = [hold.remote(notes, gate) for _ in range(3)]
    assert sorted(notes.wait(2)) == ["0", "1"]
    assert ray.wait(refs, num_returns=1, timeout=0.5)[0] == []
    assert len(notes.all()) == 2  # 0.4 are left on each, and those are not one 0.6
    gate.open()
    assert all(len(ids) == 1 for ids in get(refs))


def test_more_than_one_must_be_whole() -> None:
    with pytest.raises(ValueError):
        seer().options(num_gpus=1.5).remote()


def test_tasks_wait_for_a_free_gpu(notes: Any, gate: Any) -> None:
    @ray.remote(num_gpus=2, num_cpus=0)
    def hold(notes: Any, gate: Any) -> None:
        notes.add()
        gate.wait()

    holding = hold.remote(notes, gate)
    notes.wait(1)
    waiting = seer().options(num_gpus=1).remote()
    assert ray.wait([waiting], timeout=0.3)[0] == []
    gate.open()
    get(holding)
    assert len(get(waiting)[0]) == 1


def test_more_gpus_than_there_are_stay_pending() -> None:
    ref = seer().options(num_gpus=3).remote()
    assert ray.wait([ref], timeout=0.5) == ([], [ref])
    ray.cancel(ref)


def test_bundles_keep_their_gpus() -> None:
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = placement_group([{"GPU": 1}, {"GPU": 1}])
    get(group.ready())
    seen = []
    for index in (0, 0, 1, 1):
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
        seen.append(get(seer().options(num_gpus=1, scheduling_strategy=strategy).remote())[0])
    assert seen[0] == seen[1] and seen[2] == seen[3]
    assert sorted(seen[1] + seen[2]) == [0, 1]
    remove_placement_group(group)


def test_accelerator_type_that_no_node_has_waits() -> None:
    from ray.util.accelerators import NVIDIA_TESLA_V100

    ref = seer().options(num_gpus=1, accelerator_type=NVIDIA_TESLA_V100).remote()
    assert ray.wait([ref], timeout=0.5) == ([], [ref])
    ray.cancel(ref)
