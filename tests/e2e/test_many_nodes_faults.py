"""Daemons of a cluster of several nodes are killed and come back, and nodes are lost for good."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.gates import Gate, Notes
from harness.wait import wait_for

import noded
from noded.client.runtime import current
from noded.cluster_utils import Cluster, Node
from noded.exceptions import ObjectLostError
from noded.util import placement_group, placement_group_table, remove_placement_group
from noded.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

MEDIUM = 3_000_000
SIZES: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 80 << 20}


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    """A head and two members; this program is connected to the head."""
    with Cluster(True, False, SIZES) as cluster:
        cluster.add_node(**SIZES)
        cluster.add_node(**SIZES)
        cluster.wait_for_nodes()
        cluster.connect(namespace="test")
        yield cluster


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


def get(refs: Any, timeout: float = 60) -> Any:
    return noded.get(refs, timeout=timeout)


def on(node: Node, soft: bool = False) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node.node_id, soft)


def member(cluster: Cluster, name: str) -> Node:
    return next(node for node in cluster.list_all_nodes() if node.name == name)


@noded.remote
def where() -> str:
    return noded.get_runtime_context().get_node_id()


@noded.remote
def process() -> int:
    return os.getpid()


@noded.remote
def make(size: int) -> bytes:
    return b"x" * size


@noded.remote(max_retries=0)
def gated(gate: Gate, notes: Notes, value: Any) -> Any:
    notes.add(noded.get_runtime_context().get_node_id())
    gate.wait()
    return value


@noded.remote
def retried(gate: Gate, notes: Notes) -> str:
    notes.add(noded.get_runtime_context().get_node_id())
    gate.wait()
    return noded.get_runtime_context().get_node_id()


@noded.remote
class Counter:
    def __init__(self) -> None:
        self.total = 0

    def add(self, number: int) -> int:
        self.total += number
        return self.total

    def slow(self, gate: Gate) -> int:
        gate.wait()
        return self.total

    def where(self) -> tuple[str, int]:
        return noded.get_runtime_context().get_node_id(), os.getpid()


def test_an_idle_worker_that_has_ended_is_dialed_no_more(nodes: Cluster) -> None:
    """Nobody tells who has no lease of it; it is not there, and nothing is wanted of it."""
    pid = get(process.options(scheduling_strategy=on(member(nodes, "n1"))).remote())
    runtime = current()
    assert runtime is not None
    links = runtime.tasks.links
    assert [link.pid for link in links.values()] == [pid]
    wait_for(lambda: not any(link.lease for link in links.values()), "its lease does not end", 20)
    wait_for(lambda: noded.available_resources() == noded.cluster_resources(), "its node still counts the lease", 20)

    os.kill(pid, signal.SIGKILL)

    def forgotten() -> bool:
        get(where.remote())  # connections are read while something is waited for
        return pid not in [link.pid for link in list(links.values())]

    wait_for(forgotten, "it is still dialed", 20)
    assert get(process.options(scheduling_strategy=on(member(nodes, "n1"))).remote()) != pid


def test_a_members_daemon_is_killed_and_comes_back(nodes: Cluster, gate: Gate, tmp_path: Path) -> None:
    n1 = member(nodes, "n1")
    notes, id_ = Notes(tmp_path / "notes"), n1.node_id
    actor = Counter.options(scheduling_strategy=on(n1)).remote()
    assert get(actor.add.remote(1)) == 1
    kept = make.options(scheduling_strategy=on(n1)).remote(MEDIUM)
    noded.wait([kept], fetch_local=False, timeout=30)
    tasks = [gated.options(scheduling_strategy=on(n1)).remote(gate, notes, i) for i in range(2)]
    big = gated.options(scheduling_strategy=on(n1)).remote(gate, notes, b"b" * MEDIUM)
    notes.wait(2)

    nodes.kill(n1)
    calls = [actor.add.remote(1) for _ in range(50)]  # to the worker, which lives
    assert get(calls)[-1] == 51
    later = where.options(scheduling_strategy=on(n1)).remote()
    gate.open()
    assert get(tasks) == [0, 1], "a task's result does not need the daemon"
    nodes.restart(n1)

    assert n1.node_id == id_
    assert get(later) == id_
    assert len(get(kept)) == MEDIUM and len(get(big)) == MEDIUM
    assert get(actor.add.remote(1)) == 52
    assert len(notes.all()) == 3, "something was run twice"


def test_a_members_daemon_is_killed_again_and_again_under_load(nodes: Cluster) -> None:
    n1, n2 = member(nodes, "n1"), member(nodes, "n2")
    actor = Counter.options(scheduling_strategy=on(n1)).remote()
    calls, results = [], []
    for round_ in range(4):
        for number in range(10):
            calls.append(actor.add.remote(1))
            results.append(make.options(scheduling_strategy=on((n1, n2)[number % 2])).remote(150_000 + round_))
        nodes.restart(n1)
    assert get(calls) == list(range(1, 41))
    assert [len(value) for value in get(results)] == [150_000 + round_ for round_ in range(4) for _ in range(10)]


def test_the_heads_daemon_is_killed_and_comes_back(nodes: Cluster, gate: Gate, tmp_path: Path) -> None:
    n1, n2 = member(nodes, "n1"), member(nodes, "n2")
    assert nodes.head_node is not None
    notes = Notes(tmp_path / "notes")
    named = Counter.options(name="named", scheduling_strategy=on(n1)).remote()
    stays = Counter.options(name="stays", lifetime="detached", scheduling_strategy=on(n2)).remote()
    assert get([named.add.remote(5), stays.add.remote(7)]) == [5, 7]
    before = get([named.where.remote(), stays.where.remote()])
    tasks = [gated.options(scheduling_strategy=on(n1)).remote(gate, notes, i) for i in range(2)]
    notes.wait(2)
    group = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
    assert group.wait(20)
    bundles = placement_group_table(group)["bundles_to_node_id"]

    nodes.kill(nodes.head_node)
    assert get(named.add.remote(1)) == 6, "a call does not need the head"
    gate.open()
    assert get(tasks) == [0, 1]
    nodes.restart(nodes.head_node)
    nodes.wait_for_nodes(20)

    again, there = noded.get_actor("named"), noded.get_actor("stays")
    assert get([again.add.remote(1), there.add.remote(1)]) == [7, 8]
    assert get([again.where.remote(), there.where.remote()]) == before
    assert placement_group_table(group)["bundles_to_node_id"] == bundles
    in_group = PlacementGroupSchedulingStrategy(group, 1)
    assert get(where.options(scheduling_strategy=in_group).remote()) == bundles[1]
    remove_placement_group(group)
    assert {get(where.options(scheduling_strategy=on(node)).remote()) for node in nodes.list_all_nodes()} == {
        node.node_id for node in nodes.list_all_nodes()
    }
    fresh = Counter.options(scheduling_strategy=on(n2)).remote()
    assert get(fresh.add.remote(3)) == 3
    assert len(notes.all()) == 2, "a task was run twice"
    noded.kill(stays)


def test_a_driver_at_a_member_while_the_head_is_away(nodes: Cluster) -> None:
    n1 = member(nodes, "n1")
    assert nodes.head_node is not None
    noded.shutdown()
    noded.init(n1.address)
    actor = Counter.remote()
    assert get(actor.add.remote(1)) == 1
    nodes.kill(nodes.head_node)
    assert get(where.options(scheduling_strategy=on(n1)).remote()) == n1.node_id
    assert get(actor.add.remote(1)) == 2
    waiting = Counter.remote()
    called = waiting.add.remote(4)
    nodes.restart(nodes.head_node)
    assert get(called) == 4
    assert get(actor.add.remote(1)) == 3


def test_a_node_that_leaves_in_order(nodes: Cluster, gate: Gate, tmp_path: Path) -> None:
    """What was there goes on elsewhere at once."""
    lost_with_its_node(nodes, gate, tmp_path, graceful=True)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_node_that_is_gone(nodes: Cluster, gate: Gate, tmp_path: Path) -> None:
    """The same once the head has declared it dead, a minute after its connection was closed."""
    lost_with_its_node(nodes, gate, tmp_path, graceful=False)


def lost_with_its_node(nodes: Cluster, gate: Gate, tmp_path: Path, *, graceful: bool) -> None:
    n2 = member(nodes, "n2")
    notes = Notes(tmp_path / "notes")
    id_ = n2.node_id
    actor = Counter.options(max_restarts=2, max_task_retries=2, scheduling_strategy=on(n2, soft=True)).remote()
    mortal = Counter.options(scheduling_strategy=on(n2)).remote()
    assert get([actor.where.remote(), mortal.where.remote()])[0][0] == id_
    assert get(mortal.add.remote(1)) == 1
    group = placement_group([{"CPU": 0.5}] * 2, strategy="STRICT_SPREAD")
    assert group.wait(20)
    there = {index for index, node in placement_group_table(group)["bundles_to_node_id"].items() if node == id_}
    lost = make.options(scheduling_strategy=on(n2), max_retries=0).remote(MEDIUM)
    noded.wait([lost], fetch_local=False, timeout=30)
    task = retried.options(num_cpus=0.5, scheduling_strategy=on(n2, soft=True)).remote(gate, notes)
    assert notes.wait(1) == [id_]
    began = time.monotonic()

    nodes.remove_node(n2, allow_graceful=graceful)
    gate.open()
    limit = 30 if graceful else 100
    with pytest.raises(ObjectLostError):
        get(lost, limit)
    assert get(task, limit) != id_ and len(notes.all()) == 2
    assert get(actor.where.remote(), limit)[0] != id_
    with pytest.raises(noded.exceptions.ActorDiedError):
        get(mortal.add.remote(1), limit)
    took = time.monotonic() - began
    assert took < limit, f"it took {took:.1f} s"

    def placed_anew() -> bool:
        return id_ not in placement_group_table(group)["bundles_to_node_id"].values() and bool(group.wait(0.1))

    if there:  # two nodes are left for two bundles
        wait_for(placed_anew, lambda: f"{placement_group_table(group)}", limit)
    refs = [where.options(num_cpus=0.5, scheduling_strategy=PlacementGroupSchedulingStrategy(group, i)).remote()
            for i in range(2)]  # fmt: skip
    assert set(get(refs)) == {node.node_id for node in nodes.list_all_nodes()}
    remove_placement_group(group)


def test_a_daemon_that_starts_again_asks_what_the_job_is_before_it_gives_it_a_worker(
    nodes: Cluster, gate: Gate, tmp_path: Path
) -> None:
    """The head does not answer yet, and a task that runs there needs another worker."""
    node, head, notes = member(nodes, "n1"), nodes.head_node, Notes(tmp_path / "notes")
    assert head is not None

    @noded.remote
    def inner() -> str:
        return noded.get_runtime_context().namespace

    @noded.remote
    def outer(here: NodeAffinitySchedulingStrategy) -> str:
        notes.add()
        gate.wait()
        return str(noded.get(inner.options(scheduling_strategy=here).remote()))

    ref = outer.options(scheduling_strategy=on(node)).remote(on(node))
    notes.wait(1)
    restarting = threading.Thread(target=node._process.restart)
    os.kill(head.pid, signal.SIGSTOP)
    try:
        restarting.start()
        gate.open()
        time.sleep(3)  # enough for the task to run there, if it may
    finally:
        os.kill(head.pid, signal.SIGCONT)
    restarting.join()
    assert get(ref) == "test"
