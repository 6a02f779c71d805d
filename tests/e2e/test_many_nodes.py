"""Four nodes of 2 CPUs on this machine: where work runs, and values, actors, groups and streams across nodes.

What happens when nodes die is in test_many_nodes_faults.py.
"""

from __future__ import annotations

import asyncio
import collections
import gc
import itertools
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from harness.cluster import noded_command
from harness.drivers import Driver
from harness.gates import Gate, Notes
from harness.leaks import LeakCheck
from harness.processes import all_processes, descendants, mentioning
from harness.wait import wait_for

import noded
from noded.cluster_utils import Cluster, Node
from noded.exceptions import ActorDiedError, TaskCancelledError, TaskUnschedulableError
from noded.ids import node_of_worker
from noded.util import placement_group, placement_group_table, remove_placement_group
from noded.util.scheduling_strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
    PlacementGroupSchedulingStrategy,
)

BIG = 20_000_000
MEDIUM = 3_000_000
STORE = 100 << 20


@pytest.fixture(scope="module")
def nodes(leak_check: LeakCheck) -> Iterator[Cluster]:
    before = leak_check.take()
    sizes: dict[str, Any] = {"num_cpus": 2, "object_store_memory": STORE}
    with Cluster(True, False, {**sizes, "labels": {"zone": "a"}}) as cluster:
        for labels in ({"zone": "a", "kind": "big"}, {"zone": "b"}, {"zone": "b", "kind": "small"}):
            cluster.add_node(labels=labels, **sizes)
        cluster.wait_for_nodes()
        cluster.connect(namespace="test")
        yield cluster
    left = leak_check.left_since(before)
    if left:
        leak_check.end_all(before)
        pytest.fail("the module's cluster left behind:\n  " + "\n  ".join(left), pytrace=False)


def in_use(cluster: Cluster) -> str:
    """What is not free on any node; empty when all is."""
    gc.collect()
    found = {}
    for node in cluster.list_all_nodes():
        status = node.ask("status")
        busy = {name: status[name] for name in ("leases", "demands", "groups", "actors") if status[name]}
        busy |= {name: used for name, used in status["resources"]["used"].items() if used}
        if status["store"]["ids"]:
            busy["store"] = status["store"]
        if busy:
            found[node.name] = busy
    known = noded.available_resources()  # what the head knows is a moment old
    if not found and known.get("CPU") != noded.cluster_resources().get("CPU"):
        found["the head"] = known
    return str(found) if found else ""


@pytest.fixture(autouse=True)
def nothing_left_behind(nodes: Cluster, request: pytest.FixtureRequest) -> Iterator[None]:
    """On the module's cluster: of each node its resources, actors and objects."""
    wait_for(lambda: not in_use(nodes), lambda: f"the test before left: {in_use(nodes)}", 20)
    yield
    wait_for(lambda: not in_use(nodes), lambda: f"the test left: {in_use(nodes)}", 20)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


def get(refs: Any, timeout: float = 40) -> Any:
    return noded.get(refs, timeout=timeout)


def here() -> str:
    return noded.get_runtime_context().get_node_id()


@noded.remote
def where(*_: Any, seconds: float = 0) -> str:
    time.sleep(seconds)
    return here()


@noded.remote
def make(size: int) -> bytes:
    return b"x" * size


def on(node: Node | str, soft: bool = False) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node if isinstance(node, str) else node.node_id, soft)


def member(cluster: Cluster, name: str) -> Node:
    return next(node for node in cluster.list_all_nodes() if node.name == name)


def ids_of(cluster: Cluster, *names: str) -> set[str]:
    return {node.node_id for node in cluster.list_all_nodes() if not names or node.name in names}


# ---------------------------------------------------------------- where things run


def test_all_nodes_are_used_without_being_asked_to(nodes: Cluster) -> None:
    assert set(get([where.remote(seconds=0.5) for _ in range(8)])) == ids_of(nodes)


def test_spread_of_few(nodes: Cluster) -> None:
    spread = where.options(scheduling_strategy="SPREAD")
    found = collections.Counter(get([spread.remote(seconds=1) for _ in range(8)]))
    assert found == dict.fromkeys(ids_of(nodes), 2)


def test_spread_of_many(nodes: Cluster) -> None:
    spread = where.options(scheduling_strategy="SPREAD")
    get([spread.remote(seconds=0.5) for _ in range(8)])  # the workers are there
    found = collections.Counter(get([spread.remote(seconds=0.2) for _ in range(80)]))
    assert set(found) == ids_of(nodes) and all(19 <= count <= 21 for count in found.values()), found


def test_node_affinity(nodes: Cluster) -> None:
    for node in nodes.list_all_nodes():
        for soft in (False, True):
            refs = [where.options(scheduling_strategy=on(node, soft)).remote() for _ in range(3)]
            assert get(refs) == [node.node_id] * 3


def test_node_affinity_of_actors(nodes: Cluster) -> None:
    for node in nodes.list_all_nodes():
        actor = Keeper.options(scheduling_strategy=on(node)).remote()
        assert get(actor.where.remote()) == node.node_id


def test_a_removed_node_hard_and_soft(nodes: Cluster) -> None:
    extra = nodes.add_node(num_cpus=2, object_store_memory=64 << 20)
    id_ = extra.node_id
    assert get(where.options(scheduling_strategy=on(id_)).remote()) == id_
    nodes.remove_node(extra)
    began = time.monotonic()
    with pytest.raises(TaskUnschedulableError, match=id_[:8]):
        get(where.options(scheduling_strategy=on(id_)).remote())
    assert time.monotonic() - began < 3
    assert get(where.options(scheduling_strategy=on(id_, soft=True)).remote()) in ids_of(nodes)


@pytest.mark.parametrize(
    ("hard", "soft", "names"),
    [
        ({"zone": In("a")}, {}, ["head", "n1"]),
        ({"zone": NotIn("a")}, {}, ["n2", "n3"]),
        ({"kind": Exists()}, {}, ["n1", "n3"]),
        ({"kind": DoesNotExist()}, {}, ["head", "n2"]),
        ({"zone": In("b"), "kind": Exists()}, {}, ["n3"]),
        ({"zone": In("b")}, {"kind": In("small")}, ["n3"]),
        ({"zone": In("a")}, {"kind": NotIn("big")}, ["head"]),
        ({}, {"zone": In("nowhere")}, ["head", "n1", "n2", "n3"]),
        ({}, {"kind": Exists()}, ["n1", "n3"]),
        ({}, {"kind": DoesNotExist(), "zone": In("b")}, ["n2"]),
    ],
)
def test_labels(nodes: Cluster, hard: Any, soft: Any, names: list[str]) -> None:
    labelled = where.options(scheduling_strategy=NodeLabelSchedulingStrategy(hard=hard, soft=soft))
    for _ in range(3):  # one at a time: where the preferred are full, others do
        assert get(labelled.remote()) in ids_of(nodes, *names)


def test_labels_that_no_node_has(nodes: Cluster) -> None:
    strategy = NodeLabelSchedulingStrategy(hard={"zone": In("nowhere")})
    began = time.monotonic()
    with pytest.raises(TaskUnschedulableError, match="nowhere"):
        get(where.options(scheduling_strategy=strategy).remote())
    assert time.monotonic() - began < 3


def test_a_task_runs_where_its_big_argument_is(nodes: Cluster) -> None:
    for node in nodes.list_all_nodes():
        big = make.options(scheduling_strategy=on(node)).remote(BIG)
        noded.wait([big], fetch_local=False, timeout=30)
        assert get(where.remote(big)) == node.node_id
        del big


def test_what_fits_nowhere(nodes: Cluster) -> None:
    began = time.monotonic()
    with pytest.raises(TaskUnschedulableError) as caught:
        get(where.options(num_cpus=64).remote())
    assert time.monotonic() - began < 3
    text = str(caught.value)
    assert "CPU" in text and "64" in text and "has 2" in text
    assert any(id_[:8] in text for id_ in ids_of(nodes)), "it does not say which node comes closest"


# ---------------------------------------------------------------- values


def test_results_puts_and_arguments(nodes: Cluster) -> None:
    @noded.remote
    def total(*parts: Any) -> int:
        return sum(len(noded.get(p) if isinstance(p, noded.ObjectRef) else p) for p in parts)

    @noded.remote
    def put(size: int) -> list[Any]:
        return [noded.put(b"p" * size)]

    mine = noded.put(b"m" * MEDIUM)
    for node in nodes.list_all_nodes():
        for size in (10, MEDIUM):
            made = make.options(scheduling_strategy=on(node)).remote(size)
            assert len(get(made)) == size
            [theirs] = get(put.options(scheduling_strategy=on(node)).remote(size))
            assert get(theirs) == b"p" * size
            for other in nodes.list_all_nodes():
                assert get(total.options(scheduling_strategy=on(other)).remote(made, theirs, mine)) == 2 * size + MEDIUM
            del made, theirs


def test_nested_refs(nodes: Cluster) -> None:
    @noded.remote
    def box(size: int, others: list[str]) -> list[Any]:
        if not others:
            return [make.remote(size), noded.put(b"y" * size)]
        inner = box.options(scheduling_strategy=on(others[0])).remote(size, others[1:])
        return [inner, noded.put(b"z" * size)]

    @noded.remote
    def unbox(boxed: list[Any]) -> int:
        parts = [noded.get(one) for one in boxed]
        return sum(noded.get(unbox.remote(part)) if isinstance(part, list) else len(part) for part in parts)

    order = [node.node_id for node in nodes.list_all_nodes()]
    for size in (5, 300_000):
        outer = box.options(scheduling_strategy=on(order[0])).remote(size, order[1:])
        assert get(unbox.options(scheduling_strategy=on(order[2])).remote([outer])) == 5 * size


def test_streams_and_generators(nodes: Cluster) -> None:
    @noded.remote
    def stream(count: int, size: int) -> Iterator[bytes]:
        for number in range(count):
            yield bytes([number]) * size

    for node in nodes.list_all_nodes():
        for size in (3, 200_000):
            got = [get(ref) for ref in stream.options(scheduling_strategy=on(node)).remote(5, size)]
            assert got == [bytes([number]) * size for number in range(5)]
        with_window = stream.options(scheduling_strategy=on(node), _generator_backpressure_num_objects=2)
        assert len([get(ref) for ref in with_window.remote(6, 1000)]) == 6
        dynamic = stream.options(scheduling_strategy=on(node), num_returns="dynamic").remote(4, 150_000)
        assert [len(get(ref)) for ref in get(dynamic)] == [150_000] * 4

    @noded.remote
    def consume(items: Any) -> int:
        return sum(len(noded.get(ref)) for ref in items)

    far = stream.options(scheduling_strategy=on(member(nodes, "n1"))).remote(4, 200_000)
    assert get(consume.options(scheduling_strategy=on(member(nodes, "n2"))).remote(list(far))) == 800_000


def test_awaits(nodes: Cluster) -> None:
    async def main() -> list[int]:
        refs = [
            make.options(scheduling_strategy=on(node)).remote(size)
            for node in nodes.list_all_nodes()
            for size in (7, MEDIUM)
        ]
        return [len(value) for value in await asyncio.wait_for(asyncio.gather(*refs), 40)]

    assert asyncio.run(main()) == [7, MEDIUM] * 4


def test_wait_over_nodes(nodes: Cluster, gate: Gate) -> None:
    @noded.remote
    def gated(gate: Gate) -> bytes:
        gate.wait()
        return b"x" * 200_000

    open_, closed = (
        [m.options(scheduling_strategy=on(n)).remote(argument) for n in nodes.list_all_nodes()]
        for m, argument in ((make, 200_000), (gated, gate))
    )
    ready, rest = noded.wait([*closed, *open_], num_returns=4, timeout=40)
    assert ready == open_ and rest == closed
    gate.open()
    assert len(noded.wait(closed, num_returns=4, timeout=40)[0]) == 4


# ---------------------------------------------------------------- actors


@noded.remote
class Keeper:
    def __init__(self) -> None:
        self.kept: Any = None
        self.total = 0

    def where(self) -> str:
        return here()

    def pid(self) -> int:
        return os.getpid()

    def keep(self, refs: Any) -> None:
        self.kept = refs

    def give(self) -> Any:
        return self.kept

    def look(self) -> int:
        return len(noded.get(self.kept[0]))

    def echo(self, value: Any) -> Any:
        return value

    def add(self, number: int) -> int:
        self.total += number
        return self.total

    def ask(self, other: Any, size: int) -> int:
        return len(noded.get(other.echo.remote(b"e" * size)))


def test_actor_calls_with_big_values(nodes: Cluster) -> None:
    actors = [Keeper.options(scheduling_strategy=on(node)).remote() for node in nodes.list_all_nodes()]
    assert [get(actor.where.remote()) for actor in actors] == [n.node_id for n in nodes.list_all_nodes()]
    for actor in actors:
        assert get(actor.echo.remote(b"v" * MEDIUM)) == b"v" * MEDIUM
        assert get([actor.add.remote(number) for number in range(200)])[-1] == sum(range(200))
    for one, two in itertools.permutations(actors, 2):  # one at a time: who waits for another takes no calls
        assert get(one.ask.remote(two, 300_000)) == 300_000


def test_refs_held_by_an_actor_elsewhere_outlive_the_drivers(nodes: Cluster) -> None:
    keeper = Keeper.options(scheduling_strategy=on(member(nodes, "n1"))).remote()
    for refs in (
        [noded.put(b"k" * MEDIUM)],
        [make.options(scheduling_strategy=on(member(nodes, "n2"))).remote(MEDIUM)],
        [make.options(scheduling_strategy=on(member(nodes, "n1"))).remote(200_000)],
        [noded.put(7)],
    ):
        expected = get(refs[0])
        get(keeper.keep.remote(refs))
        del refs
        gc.collect()
        time.sleep(0.3)
        again = get(keeper.give.remote())
        assert get(again[0]) == expected
        del again
        if expected != 7:
            assert get(keeper.look.remote()) == len(expected)
        get(keeper.keep.remote(None))


def used(cluster: Cluster) -> dict[str, int]:
    gc.collect()
    return {node.name: node.ask("status")["store"]["used_bytes"] for node in cluster.list_all_nodes()}


def test_objects_are_freed_everywhere(nodes: Cluster) -> None:
    def work() -> None:
        made = [make.options(scheduling_strategy=on(node)).remote(MEDIUM) for node in nodes.list_all_nodes()]
        mine = noded.put(b"m" * MEDIUM)
        for node in nodes.list_all_nodes():
            assert get(where.options(scheduling_strategy=on(node)).remote(*made, mine)) == node.node_id
        assert [len(value) for value in get(made)] == [MEDIUM] * 4

    work()  # workers that have run something once may keep a slab
    wait_for(lambda: not in_use(nodes), "objects are left")
    before = used(nodes)
    for _ in range(3):
        work()
    wait_for(
        lambda: all(now <= before[name] for name, now in used(nodes).items()),
        lambda: f"{used(nodes)} are used, {before} were",
        20,
    )


def test_cancel_elsewhere(nodes: Cluster, tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes")

    @noded.remote(max_retries=0)
    def sleep(notes: Notes) -> None:
        notes.add(os.getpid())
        for _ in range(3000):
            time.sleep(0.02)

    for node in nodes.list_all_nodes():
        for force in (False, True):
            before = len(notes.all())
            ref = sleep.options(scheduling_strategy=on(node)).remote(notes)
            pid = int(notes.wait(before + 1)[-1])
            noded.cancel(ref, force=force)
            began = time.monotonic()
            with pytest.raises(TaskCancelledError):
                get(ref)
            assert time.monotonic() - began < 5
            if force:
                wait_for(lambda pid=pid: not Path(f"/proc/{pid}").exists(), "the worker lives on")


def test_cancel_of_what_waits_elsewhere(nodes: Cluster, gate: Gate) -> None:
    @noded.remote
    def gated(gate: Gate) -> None:
        gate.wait()

    n1 = gated.options(scheduling_strategy=on(member(nodes, "n1")))
    refs = [n1.remote(gate) for _ in range(4)]
    queued = lambda: sum(node.ask("status")["demands"] for node in nodes.list_all_nodes())  # noqa: E731
    wait_for(queued, "the fourth does not wait for room")
    noded.cancel(refs[3])
    with pytest.raises(TaskCancelledError):
        get(refs[3], 10)
    gate.open()
    assert get(refs[:3]) == [None] * 3


def test_kill_of_an_actor_elsewhere(nodes: Cluster) -> None:
    for node in nodes.list_all_nodes():
        actor = Keeper.options(scheduling_strategy=on(node)).remote()
        pid = get(actor.pid.remote())
        noded.kill(actor)
        with pytest.raises(ActorDiedError):
            get(actor.add.remote(1))
        wait_for(lambda pid=pid: not Path(f"/proc/{pid}").exists(), "its worker lives on")


def test_actors_of_another_driver_at_another_node(nodes: Cluster) -> None:
    mine = Keeper.options(name="mine", scheduling_strategy=on(member(nodes, "n1"))).remote()
    get(mine.add.remote(5))
    source = """
        mine = noded.get_actor("mine")
        say("total", noded.get(mine.add.remote(6)), noded.get_runtime_context().get_node_id())
        from noded.util.scheduling_strategies import NodeAffinitySchedulingStrategy
        @noded.remote
        class Counter:
            def __init__(self): self.total = 0
            def add(self, n):
                self.total += n
                return self.total, noded.get_runtime_context().get_node_id()
        where = NodeAffinitySchedulingStrategy(sys.argv[1], False)
        stays = Counter.options(name="stays", lifetime="detached", scheduling_strategy=where).remote()
        noded.get(stays.add.remote(1))
        say("made")
    """
    n2, n3 = member(nodes, "n2"), member(nodes, "n3")
    with Driver(n2.address, source, n3.node_id) as driver:
        assert driver.expect("total") == f"11 {n2.node_id}"
        driver.expect("made")
        driver.end()
    stays = noded.get_actor("stays")
    assert get(stays.add.remote(2)) == (3, n3.node_id)
    assert set(noded.util.list_named_actors()) == {"mine", "stays"}
    noded.kill(stays)
    wait_for(lambda: "stays" not in noded.util.list_named_actors(), "it keeps its name")


# ---------------------------------------------------------------- placement groups


@pytest.fixture
def group() -> Iterator[Callable[..., Any]]:
    made = []

    def make_group(*args: Any, **options: Any) -> Any:
        made.append(placement_group(*args, **options))
        assert made[-1].wait(20), placement_group_table(made[-1])
        return made[-1]

    yield make_group
    for one in made:
        remove_placement_group(one)


def bundle_nodes(one: Any) -> list[str]:
    told = placement_group_table(one)["bundles_to_node_id"]
    return [told[index] for index in range(len(told))]


def inside(one: Any, bundle: int = -1, capture: bool = False) -> PlacementGroupSchedulingStrategy:
    return PlacementGroupSchedulingStrategy(one, bundle, capture)


@pytest.mark.parametrize(
    ("strategy", "count", "distinct"),
    [
        ("STRICT_PACK", 2, 1),
        ("PACK", 2, 1),
        ("PACK", 4, 2),
        ("SPREAD", 4, 4),
        ("SPREAD", 6, 4),
        ("STRICT_SPREAD", 4, 4),
    ],
)
def test_strategies(nodes: Cluster, group: Any, strategy: str, count: int, distinct: int) -> None:
    one = group([{"CPU": 1}] * count, strategy=strategy)
    found = bundle_nodes(one)
    assert len(set(found)) == distinct and set(found) <= ids_of(nodes)
    refs = [where.options(scheduling_strategy=inside(one, index)).remote() for index in range(count)]
    assert get(refs) == found
    assert set(get([where.options(scheduling_strategy=inside(one)).remote(seconds=0.2) for _ in range(count)])) <= set(
        found
    )


def test_group_that_never_fits(nodes: Cluster) -> None:
    one = placement_group([{"CPU": 1}] * 5, strategy="STRICT_SPREAD")
    assert not one.wait(0.5)
    remove_placement_group(one)


def test_child_tasks_are_captured(nodes: Cluster, group: Any) -> None:
    @noded.remote
    def parent() -> list[str]:
        return noded.get([where.remote(seconds=0.05) for _ in range(6)])

    one = group([{"CPU": 1}, {"CPU": 1}], strategy="STRICT_PACK")
    [home] = set(bundle_nodes(one))
    assert set(get(parent.options(scheduling_strategy=inside(one, 0, True)).remote())) == {home}


def test_actors_in_bundles_end_with_the_group(nodes: Cluster) -> None:
    one = placement_group([{"CPU": 1}] * 4, strategy="STRICT_SPREAD")
    assert one.wait(20)
    found = bundle_nodes(one)
    actors = [Keeper.options(num_cpus=1, scheduling_strategy=inside(one, i)).remote() for i in range(4)]
    assert get([actor.where.remote() for actor in actors]) == found
    remove_placement_group(one)

    def has_ended(actor: Any) -> bool:
        try:
            return get(actor.where.remote()) == ""
        except noded.exceptions.NodedError:
            return True

    for actor in actors:
        wait_for(lambda actor=actor: has_ended(actor), "an actor outlives its placement group")
    wait_for(lambda: placement_group_table(one)["state"] == "REMOVED", "the group is not removed")
    wait_for(lambda: noded.available_resources().get("CPU") == 8, "the CPUs do not come back")


# ---------------------------------------------------------------- the rest of a job


def test_a_working_directory_reaches_other_nodes(nodes: Cluster, tmp_path: Path) -> None:
    directory = tmp_path / "code"
    directory.mkdir()
    (directory / "data.txt").write_text("from the package")

    @noded.remote(runtime_env={"working_dir": str(directory)})
    def look() -> tuple[str, str]:
        return Path("data.txt").read_text(), here()

    for node in nodes.list_all_nodes():
        found = get(look.options(scheduling_strategy=on(node)).remote())
        assert found == ("from the package", node.node_id)


def test_prints_of_other_nodes_reach_the_driver(nodes: Cluster, capfd: pytest.CaptureFixture[str]) -> None:
    @noded.remote
    def say(word: str) -> None:
        print(f"said on {word}", flush=True)

    for node in nodes.list_all_nodes():
        get(say.options(scheduling_strategy=on(node)).remote(node.name))
    seen = ""

    def all_seen() -> bool:
        nonlocal seen
        seen += capfd.readouterr().out
        return all(f"said on {node.name}\n" in seen for node in nodes.list_all_nodes())

    wait_for(all_seen, lambda: f"the driver saw only {seen!r}")


def test_timeline_has_events_of_all_nodes(nodes: Cluster) -> None:
    @noded.remote
    def marked() -> None:
        return None

    get([marked.options(scheduling_strategy=on(node)).remote() for node in nodes.list_all_nodes()])
    numbers = {node.ask("status")["number"] for node in nodes.list_all_nodes()}

    def found() -> set[int]:
        workers = [
            event["tid"].removeprefix("worker:") for event in noded.timeline() if event["name"].endswith(".marked")
        ]
        return {node_of_worker(worker) for worker in workers}

    wait_for(lambda: found() == numbers, lambda: f"of the nodes {numbers} only {found()} are in the timeline")


def test_one_listening_port_a_node_and_none_of_workers(nodes: Cluster) -> None:
    get([where.remote(seconds=0.2) for _ in range(8)])
    everything = all_processes()
    for node in nodes.list_all_nodes():
        pids = {process.pid for process in mentioning(everything.values(), [node.run_dir])} - {os.getpid()}
        pids |= {process.pid for process in descendants(everything, node.pid)} | {node.pid}
        assert len(pids) >= 3, "daemon, spawner and workers"
        listening = {pid: ports for pid in pids if (ports := listening_ports(pid))}
        assert {port for ports in listening.values() for port in ports} == {int(node.address.rpartition(":")[2])}
        assert node.pid in listening
        workers = {process.pid for process in everything.values() if "noded.template" in process.command} & pids
        assert workers and not workers & listening.keys()


def listening_ports(pid: int) -> set[int]:
    inodes, ports = set(), set()
    with suppress(OSError):  # it may end meanwhile
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                target = os.readlink(fd)
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


def test_a_stop_of_another_cluster_does_not_touch_this_one(nodes: Cluster) -> None:
    with Cluster(True) as other:
        other.add_node(object_store_memory=64 << 20)
        pids = {node.pid for node in nodes.list_all_nodes()}
        for node in other.list_all_nodes():
            node._process.expect_end()
        done = subprocess.run(
            [*noded_command(), "stop", "--cluster", other.name], capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0 and other.name in done.stdout
        assert other.list_all_nodes() == []
        assert {node.pid for node in nodes.list_all_nodes()} == pids
        assert set(get([where.remote(seconds=0.3) for _ in range(8)])) == ids_of(nodes)


def test_a_remote_driver_without_a_node(nodes: Cluster) -> None:
    """One that finds no run directory here, as on a host without a node."""
    source = """
        @noded.remote
        def f(x): return x, noded.get_runtime_context().get_node_id()
        big = noded.put(b"r" * 300_000)
        found = noded.get([f.options(scheduling_strategy="SPREAD").remote(big) for _ in range(4)])
        say("done", len(found), all(value == b"r" * 300_000 for value, _ in found))
    """
    env = {"NODED_RUN_DIR": "/tmp/nowhere", "NODED_TOKEN": (Path(os.environ["NODED_HOME"]) / "token").read_text()}
    with Driver(member(nodes, "n1").address, source, env=env) as driver:
        assert driver.expect("done") == "4 True"
        driver.end()
