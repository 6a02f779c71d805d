"""Random things that wait, on a real cluster with a node that is away and one that drains: `why` is right for each.

What each case does is in its function: it makes something that waits, and says which kinds may be the answer (two where
noded may turn a wait into an error at any moment), and what its sentence must name. Cases that need a node, a fault or
a process of their own are in test_why.py.
"""

from __future__ import annotations

import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
from harness.gates import Gate
from harness.wait import wait_for

import noded
from noded.cluster_utils import Cluster
from noded.policy import deaths, reasons
from noded.util.placement_group import placement_group, remove_placement_group
from noded.util.scheduling_strategies import (
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)
from noded.util.state import explain

LIMIT = 0.05
"""Seconds that an answer may take; of three, as this machine may have just stopped us."""


@noded.remote(max_retries=0)
def wait_for_signal(*args: Any) -> None:
    signal.pause()


@noded.remote(max_retries=0)
def make(size: int) -> bytes:
    return bytes(size)


@noded.remote
class Holder:
    """Holds what it has; a call waits for ever."""

    def here(self) -> str:
        return str(noded.get_runtime_context().get_node_id())

    def hang(self, *args: Any) -> None:
        signal.pause()


@dataclass
class Case:
    thing: Any
    kinds: tuple[str, ...]
    words: str = ""
    end: Callable[[], Any] = lambda: None
    keep: Any = None


class World:
    """Three nodes whose CPUs are taken, one that drains, one that is away."""

    def __init__(self, cluster: Cluster, tmp: Path) -> None:
        self.cluster = cluster
        head = cluster.add_node(num_cpus=1, object_store_memory=32 << 20)
        self.zone = cluster.add_node(num_cpus=2, resources={"x": 1}, labels={"zone": "a"}, object_store_memory=32 << 20)
        self.drains = cluster.add_node(num_cpus=1, resources={"drained": 1}, object_store_memory=32 << 20)
        self.away = cluster.add_node(num_cpus=1, resources={"gone": 1}, object_store_memory=32 << 20)
        cluster.connect()
        self.gate = Gate(tmp / "env-gate")
        for amount, resources in ((2, {"x": 1}), (1, {"drained": 1}), (1, {"gone": 1}), (1, {})):
            assert noded.get(self._hold(amount, resources).here.remote(), timeout=30)
        self.ids = {
            "head": head.node_id,
            "zone": self.zone.node_id,
            "drains": self.drains.node_id,
            "away": self.away.node_id,
        }
        head.ask("drain", {"node": self.drains.node_id, "on": True})
        cluster.kill(self.away)
        wait_for(lambda: explain(self.ids["away"])["kind"] == reasons.NODE_AWAY, "the node does not become AWAY")
        self.alive = Holder.options(num_cpus=0, max_concurrency=1).remote()
        self.blocked = wait_for_signal.options(num_cpus=1).remote()
        noded.get(self.alive.here.remote(), timeout=30)

    def _hold(self, num_cpus: int, resources: dict[str, float]) -> Any:
        holder = Holder.options(num_cpus=num_cpus, resources=resources).remote()
        self.__dict__.setdefault("holders", []).append(holder)
        return holder

    # ------------------------------------------------------------ cases: a task or an actor with these options

    def either(self, rng: random.Random, **options: Any) -> tuple[Any, Callable[[], Any]]:
        if rng.random() < 0.5:
            actor = Holder.options(**options).remote()
            return actor, lambda: noded.kill(actor)
        ref = wait_for_signal.options(**options).remote()
        return ref, lambda: noded.cancel(ref)

    def busy(self, rng: random.Random) -> Case:
        options: dict[str, Any] = {"num_cpus": rng.choice([1, 2])}
        name = "CPU"
        if rng.random() < 0.4:
            options, name = {"num_cpus": 0, "resources": {"x": 1}}, "x"
        thing, end = self.either(rng, **options)
        return Case(thing, (reasons.RESOURCES_BUSY,), name, end)

    def never(self, rng: random.Random) -> Case:
        options = rng.choice([{"num_cpus": 50}, {"resources": {"unicorn": 1}, "num_cpus": 0}, {"num_gpus": 3}])
        thing, end = self.either(rng, **options)
        return Case(thing, (reasons.NEVER, reasons.FAILED), "can ever satisfy it", end)

    def affinity(self, rng: random.Random) -> Case:
        node, kind = rng.choice(
            [("zone", reasons.NODE_BUSY), ("drains", reasons.NODE_DRAINING), ("away", reasons.NODE_AWAY)]
        )
        place = NodeAffinitySchedulingStrategy(self.ids[node], soft=False)
        thing, end = self.either(rng, num_cpus=1, scheduling_strategy=place)
        return Case(thing, (kind,), self.ids[node][:8], end)

    def no_such_node(self, rng: random.Random) -> Case:
        node = rng.randbytes(16).hex()
        place = NodeAffinitySchedulingStrategy(node, soft=False)
        thing, end = self.either(rng, num_cpus=1, scheduling_strategy=place)
        return Case(thing, (reasons.NEVER, reasons.FAILED), node[:8], end)

    def labels(self, rng: random.Random) -> Case:
        good = rng.random() < 0.6
        place = NodeLabelSchedulingStrategy(hard={"zone": In("a" if good else "nowhere")})
        thing, end = self.either(rng, num_cpus=1, scheduling_strategy=place)
        kinds = (reasons.LABELS_BUSY,) if good else (reasons.NEVER, reasons.FAILED)
        return Case(thing, kinds, "labels", end)

    def only_away(self, rng: random.Random) -> Case:
        name, kind = rng.choice([("gone", reasons.NODE_AWAY), ("drained", reasons.NODE_DRAINING)])
        thing, end = self.either(rng, num_cpus=0, resources={name: 1})
        return Case(thing, (kind,), name, end)

    def dependency(self, rng: random.Random) -> Case:
        ref = wait_for_signal.options(num_cpus=0).remote(self.blocked)
        return Case(ref, (reasons.ARGUMENTS_PENDING,), self.blocked.hex(), lambda: noded.cancel(ref))

    def behind_a_call(self, rng: random.Random) -> Case:
        """An ordered actor: a call whose argument is missing, and one behind it."""
        first = self.alive.hang.remote(self.blocked)
        second = self.alive.here.remote()
        if rng.random() < 0.5:
            kind, thing = reasons.ARGUMENTS_PENDING, first
        else:
            kind, thing = reasons.BEHIND_CALLS, second
        # Several such pairs stand behind one another.
        return Case(thing, (kind,), "", lambda: (noded.cancel(second), noded.cancel(first)), (first, second))

    def actor_call(self, rng: random.Random) -> Case:
        actor = Holder.options(num_cpus=2).remote()
        ref = actor.here.remote()
        return Case(ref, (reasons.ACTOR_NOT_READY,), "CPU", lambda: noded.kill(actor), actor)

    def group(self, rng: random.Random) -> Case:
        bundles, kind, words = rng.choice(
            [
                ([{"CPU": 1}, {"CPU": 1}], (reasons.RESOURCES_BUSY, reasons.RESERVING), ""),
                ([{"CPU": 60}], (reasons.INFEASIBLE,), "CPU"),
                ([{"unicorn": 1, "CPU": 1}], (reasons.INFEASIBLE,), "unicorn"),
                ([{"gone": 1, "CPU": 1}], (reasons.NODE_AWAY,), "away"),
            ]
        )
        group = placement_group(bundles, strategy=rng.choice(["PACK", "SPREAD"]))
        if rng.random() < 0.5:
            return Case(group, kind, words, lambda: remove_placement_group(group))
        place = PlacementGroupSchedulingStrategy(group)
        thing, _ = self.either(rng, num_cpus=1, scheduling_strategy=place)
        return Case(thing, (reasons.GROUP_PENDING,), group.id.hex(), lambda: remove_placement_group(group), group)

    def environment(self, rng: random.Random) -> Case:
        """All the same one: its workers wait at the gate."""
        path = self.gate.path

        def setup() -> None:
            Gate(path).wait(120)

        environment = {"worker_process_setup_hook": setup}
        if rng.random() < 0.5:
            actor = Holder.options(num_cpus=0, runtime_env=environment).remote()
            return Case(actor, (reasons.ENV_BUILDING,), "runtime environment", lambda: noded.kill(actor))
        ref = wait_for_signal.options(num_cpus=0, runtime_env=environment).remote()
        return Case(ref, (reasons.ENV_BUILDING, reasons.WORKER_STARTING), "", lambda: noded.cancel(ref))

    def store(self, rng: random.Random) -> Case:
        """Its result finds no room in the head's store, which is full of what this process looks at. A second later it
        is on the disk, so this is looked at at once.
        """
        place = NodeAffinitySchedulingStrategy(self.ids["head"], soft=False)
        kept = [noded.get(noded.put(numpy.ones(8 << 20, numpy.uint8))) for _ in range(2)]
        ref = make.options(num_cpus=0, scheduling_strategy=place).remote(rng.randrange(18, 24) << 20)
        case = Case(ref, (reasons.STORE_FULL,), "of the object store")
        check("store", case, [])
        noded.get(ref, timeout=30)
        del kept
        return Case(ref, (reasons.READY, reasons.DONE_OR_DROPPED), keep=ref)

    def running(self, rng: random.Random) -> Case:
        return Case(self.alive, (reasons.RUNNING,), "it lives on node")


CASES: dict[str, int] = {
    "busy": 8,
    "never": 4,
    "affinity": 6,
    "no_such_node": 2,
    "labels": 4,
    "only_away": 4,
    "dependency": 4,
    "behind_a_call": 2,
    "actor_call": 4,
    "group": 8,
    "environment": 2,
    "store": 1,
    "running": 1,
}
"""By how often they come."""


def check(name: str, case: Case, took: list[float]) -> None:
    """Until the answer is right, which it must become: things are on their way for a moment. Each answer is quick."""

    def right() -> bool:
        nonlocal told
        best = 1.0
        for _ in range(3):
            began = time.monotonic()
            told = explain(case.thing)
            best = min(best, time.monotonic() - began)
            if best < LIMIT:
                break
        took.append(best)
        assert told["kind"] in reasons.KINDS or told["kind"] in deaths.KINDS, f"{name}: not of the lists: {told}"
        assert told["reason"], f"{name}: no sentence: {told}"
        ended = told["state"] in ("dead", "failed") and reasons.NEVER in case.kinds
        return (told["kind"] in case.kinds or ended) and case.words in told["reason"]

    told: dict[str, Any] = {}
    wait_for(right, lambda: f"{name}: not one of {case.kinds} with {case.words!r}: {told}", 15)


def run(world: World, count: int, seed: int) -> None:
    rng = random.Random(seed)
    names = rng.choices(list(CASES), list(CASES.values()), k=count)
    took: list[float] = []
    environments = 0
    while names:
        batch, names = names[:25], names[25:]
        cases = []
        for name in batch:
            if name == "environment" and (environments := environments + 1) > 8:
                name = "busy"  # each of them is a process
            cases.append((name, getattr(world, name)(rng)))
        for name, case in cases:
            check(name, case, took)
        for _, case in cases:
            case.end()
    slow = [seconds for seconds in took if seconds > LIMIT]
    assert not slow, f"{len(slow)} of {len(took)} answers took longer than {LIMIT} s: {slow[:10]}"
    print(f"{len(took)} answers, median {statistics.median(took) * 1000:.1f} ms, longest {max(took) * 1000:.1f} ms")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("NODED_HOME", str(tmp_path / "home"))
    with Cluster() as cluster:
        world = World(cluster, tmp_path)
        yield world
        world.gate.open()
        world.__dict__.clear()


def test_sixty_random_things_that_wait(world: World) -> None:
    world.store(random.Random(1))
    run(world, 59, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(10))
def test_five_hundred_random_things_that_wait(world: World, seed: int) -> None:
    run(world, 50, seed=100 + seed)
