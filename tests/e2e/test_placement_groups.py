"""Placement groups: what goes beyond the cases of tests/compat, above all kills of the daemon at every stage.

After each test with a node of its own it is checked that the node's resources have come out even.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from harness.cluster import Node
from harness.drivers import Driver
from harness.processes import all_processes
from harness.wait import wait_for

import noded
from noded.client.runtime import Runtime, current
from noded.exceptions import (
    ActorDiedError,
    ActorPlacementGroupRemoved,
    ActorUnavailableError,
    ActorUnschedulableError,
    PlacementGroupAlreadyExistsError,
    PlacementGroupUnschedulableError,
    TaskPlacementGroupRemoved,
    TaskUnschedulableError,
)
from noded.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from noded.util.scheduling_strategies import PlacementGroupSchedulingStrategy


@pytest.fixture
def node() -> Iterator[Node]:
    """A running node of 4 CPUs and 2 widgets with this process as its driver."""
    with Node("--resources", '{"widget": 2}', num_cpus=4) as node:
        noded.init(address=node.address, log_to_driver=False, namespace="test")
        try:
            yield node
        finally:
            noded.shutdown()
            if node.running:
                wait_for(lambda: not left(node), lambda: f"still in use: {left(node)}", 20)


def left(node: Node) -> dict[str, Any]:
    status = node.status()
    found = {name: status[name] for name in ("drivers", "actors", "leases", "demands") if status[name]}
    return found | {name: used for name, used in status["resources"]["used"].items() if used}


def runtime() -> Runtime:
    found = current()
    assert found is not None
    return found


def inside(group: PlacementGroup, bundle: int = -1, **more: Any) -> dict[str, Any]:
    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, bundle, **more)}


def state(group: PlacementGroup) -> str:
    return str(placement_group_table(group)["state"])


def heard_of_removal(group: PlacementGroup) -> bool:
    try:
        return group.wait(0) and False
    except TaskPlacementGroupRemoved:
        return True


def has_died(actor: Any) -> bool:
    try:
        return noded.get(actor.add.remote(), timeout=30) and False
    except ActorUnavailableError:  # it is seen to have died, and not yet that it is for good
        return False
    except (ActorDiedError, ActorPlacementGroupRemoved):
        return True


def free() -> tuple[float, float]:
    found = noded.available_resources()
    return found.get("CPU", 0.0), found.get("widget", 0.0)


def wait_free(cpus: float, widgets: float = 2) -> None:
    wait_for(lambda: free() == (cpus, widgets), lambda: f"free are {free()}, not {(cpus, widgets)}", 20)


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def functions() -> dict[str, Any]:
    """Made in a function, so that they travel by value."""

    @noded.remote(num_cpus=1)
    def note(log: str, gate: str = "", word: Any = None) -> Any:
        """Says that it started, and ends when the gate is there."""
        fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{os.getpid()}\n".encode())
        os.close(fd)
        while gate and not os.path.exists(gate):
            time.sleep(0.005)
        return word

    @noded.remote(num_cpus=1)
    class Member:
        def __init__(self) -> None:
            self.count = 0

        def add(self) -> int:
            self.count += 1
            return self.count

        def pid(self) -> int:
            return os.getpid()

    @noded.remote(num_cpus=0)
    def same(value: Any) -> Any:
        return value

    return dict(locals())


# ---------------------------------------------------------------- ready and wait


def test_one_that_no_node_can_hold_says_so_and_waits_on(node: Node) -> None:
    group = placement_group([{"CPU": 1}, {"CPU": 99, "widget": 1}])
    ref = group.ready()
    before = time.monotonic()
    with pytest.raises(PlacementGroupUnschedulableError, match=r"CPU: asks 100, the node has 4"):
        noded.get(ref, timeout=30)
    assert time.monotonic() - before > 2.5
    assert group.wait(0.05) is False and state(group) == "PENDING"
    with pytest.raises(PlacementGroupUnschedulableError):
        noded.get(group.ready(), timeout=30)
    remove_placement_group(group)
    with pytest.raises(TaskPlacementGroupRemoved, match=group.id.hex()):
        noded.get(group.ready(), timeout=30)


def test_refs_that_are_ready_later_go_wherever_refs_go(node: Node) -> None:
    same = functions()["same"]
    first = placement_group([{"widget": 2}])
    second = placement_group([{"widget": 1}, {"widget": 1}])
    assert first.wait(20)
    as_argument = same.remote(second.ready())
    nested = same.remote([second.ready()])

    async def await_it() -> Any:
        return await asyncio.wait_for(second.ready(), 30)

    def release() -> None:
        wait_for(lambda: noded.wait([nested], timeout=0)[0], "the nested ref does not arrive")
        remove_placement_group(first)

    thread = threading.Thread(target=release)
    thread.start()
    assert asyncio.run(await_it()) == second
    thread.join()
    assert noded.get(as_argument, timeout=30) == second
    assert noded.get(noded.get(nested, timeout=30)[0], timeout=30) == second
    remove_placement_group(second)


def test_polling_for_ready_leaves_nothing(node: Node) -> None:
    full, group = placement_group([{"widget": 2}]), placement_group([{"widget": 1}])
    for _ in range(2000):
        assert noded.wait([group.ready()], timeout=0)[0] == []
    assert len(runtime().groups.known[group.id.binary()].ready) < 1000
    kept = group.ready()
    remove_placement_group(full)
    assert noded.get(kept, timeout=30) == group
    remove_placement_group(group)


def test_removal_is_heard_by_who_waits_in_a_thread_and_in_another_process(node: Node) -> None:
    full, group = placement_group([{"widget": 2}]), placement_group([{"widget": 1}])
    assert full.wait(20)
    heard: list[str] = []
    ref = group.ready()

    def wait(what: Any) -> None:
        try:
            heard.append(str(what()))
        except TaskPlacementGroupRemoved as error:
            heard.append(type(error).__name__)

    threads = [
        threading.Thread(target=wait, args=(lambda: group.wait(30),)),
        threading.Thread(target=wait, args=(lambda: noded.get(ref, timeout=30),)),
    ]
    for thread in threads:
        thread.start()

    @noded.remote(num_cpus=0)
    def elsewhere(group: Any) -> Any:
        open(gate, "w").close()
        return group.wait(30)

    gate = os.path.join(node.dir, "gate")
    waits = elsewhere.remote(group)
    wait_for(lambda: os.path.exists(gate), "the task did not start")
    remove_placement_group(group)
    for thread in threads:
        thread.join(20)
    assert heard == ["TaskPlacementGroupRemoved"] * 2
    with pytest.raises(TaskPlacementGroupRemoved):
        noded.get(waits, timeout=30)
    remove_placement_group(full)


def test_a_task_that_waits_for_a_group_lends_it_its_cpus(node: Node) -> None:
    @noded.remote(num_cpus=1)
    def make() -> bool:
        group = placement_group([{"CPU": 4}])
        found = group.wait(30)
        remove_placement_group(group)
        return found

    assert noded.get(make.remote(), timeout=60) is True


# ---------------------------------------------------------------- what runs in one that is removed


def test_removal_ends_what_runs_in_it_and_nothing_else(node: Node, tmp_path: Path) -> None:
    make, log, other = functions(), tmp_path / "log", tmp_path / "other"
    gate = str(tmp_path / "gate")
    group = placement_group([{"CPU": 2, "widget": 1}])
    running = make["note"].options(**inside(group)).remote(str(log), gate)
    actor = make["Member"].options(max_restarts=5, **inside(group)).remote()
    assert noded.get(actor.add.remote(), timeout=30) == 1
    beside = make["note"].remote(str(other), gate, "beside")
    queued = make["note"].options(**inside(group)).remote(str(log))
    late = make["Member"].options(**inside(group)).remote()
    late_call = late.add.remote()
    wait_for(lambda: lines(log) and lines(other), "the tasks did not start")
    wait_free(1, 1)
    remove_placement_group(group)
    for ref in (running, queued):
        with pytest.raises(TaskPlacementGroupRemoved):
            noded.get(ref, timeout=30)
    wait_for(lambda: has_died(actor), "the actor in the group lives", 20)
    with pytest.raises(ActorPlacementGroupRemoved, match=r"^the actor Member \w+ died: its placement group"):
        noded.get(late_call, timeout=30)
    with pytest.raises(TaskPlacementGroupRemoved, match=group.id.hex()):
        noded.get(make["note"].options(**inside(group)).remote(str(log)), timeout=30)
    wait_free(3)
    open(gate, "w").close()
    assert noded.get(beside, timeout=30) == "beside"
    assert len(lines(log)) == 1


def test_a_group_is_not_free_for_others_before_its_processes_have_ended(node: Node, tmp_path: Path) -> None:
    """The widget of a group goes to the next one only when whoever used it is gone."""

    @noded.remote(num_cpus=0, resources={"widget": 2}, max_retries=0)
    def use(log: str) -> None:
        fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{os.getpid()}\n".encode())
        time.sleep(600)

    log = tmp_path / "log"
    for turn in range(5):
        group = placement_group([{"widget": 2}])
        assert group.wait(20)
        if turn:
            assert int(lines(log)[-1]) not in all_processes()
        ref = use.options(**inside(group)).remote(str(log))
        wait_for(lambda count=turn + 1: len(lines(log)) == count, "the task did not start")
        remove_placement_group(group)
        del ref


# ---------------------------------------------------------------- names, lives


SUBMITTER = """
from noded.util.placement_group import *
stays = placement_group([{"widget": 1}], name="stays", lifetime="detached")
goes = placement_group([{"CPU": 1}], name="goes")
pending = placement_group([{"CPU": 4}])
noded.get([stays.ready(), goes.ready()], timeout=30)
say("made", goes.id.hex(), pending.id.hex())
hear()
"""


@pytest.mark.parametrize("how", ["leaves", "is killed", "is killed while the daemon is away"])
def test_groups_of_a_driver_that_ends(node: Node, how: str) -> None:
    with Driver(node.address, SUBMITTER) as driver:
        goes, pending = driver.expect("made").split()
        with pytest.raises(PlacementGroupAlreadyExistsError, match="'stays' is taken"):
            placement_group([{"CPU": 1}], name="stays")
        assert get_placement_group("goes").bundle_specs == [{"CPU": 1.0}]
        if how == "leaves":
            driver.tell("end")
            driver.end()
        else:
            if how != "is killed":
                node.kill9()
            driver.kill()
            if how != "is killed":
                node.restart()
    wait_free(4, 1)
    found = placement_group_table()
    assert {found[id_]["state"] for id_ in (goes, pending) if id_ in found} <= {"REMOVED"}
    with pytest.raises(ValueError, match="no placement group named 'goes'"):
        get_placement_group("goes")
    stays = get_placement_group("stays")
    assert stays.wait(10) and stays.bundle_specs == [{"widget": 1.0}]
    remove_placement_group(stays)
    wait_free(4)


def test_groups_of_a_detached_actor_live_with_it(node: Node) -> None:
    source = """
    @noded.remote(num_cpus=0, lifetime="detached", name="keeper")
    class Keeper:
        def make(self):
            from noded.util.placement_group import placement_group
            self.group = placement_group([{"widget": 1}], name="kept")
            return self.group.wait(30)
    keeper = Keeper.remote()
    assert noded.get(keeper.make.remote(), timeout=30)
    say("made")
    """
    with Driver(node.address, source) as driver:
        driver.expect("made")
        driver.end()
    wait_for(lambda: node.status()["drivers"] == 1, "the driver is not seen to have left")
    group = get_placement_group("kept")
    node.restart()
    assert group.wait(20) and free() == (4, 1)
    noded.kill(noded.get_actor("keeper"))
    wait_free(4)
    assert state(group) == "REMOVED"


# ---------------------------------------------------------------- labels and nodes


def test_labels_of_a_private_cluster_and_what_wants_them() -> None:
    from noded.util.scheduling_strategies import In, NodeAffinitySchedulingStrategy, NodeLabelSchedulingStrategy, NotIn

    with pytest.raises(ValueError, match=r"noded\.io/node-id"):
        noded.init("local", labels={"noded.io/node-id": "x"})
    with noded.init("local", num_cpus=2, labels={"zone": "a", "example.com/kind": "big"}):
        here = noded.get_runtime_context().get_node_id()
        found = {"zone": "a", "example.com/kind": "big", "noded.io/node-id": here, "ray.io/node-id": here}
        assert noded.nodes()[0]["Labels"] == found == noded.get_runtime_context().get_node_labels()

        @noded.remote
        def f() -> str:
            return "ran"

        @noded.remote
        class A:
            def f(self) -> str:
                return "ran"

        def strategy(value: Any) -> dict[str, Any]:
            return {"scheduling_strategy": value}

        elsewhere = "ab" * 16
        runs = [
            {"label_selector": {"zone": "in(a,b)", "none": "!x"}},
            {"label_selector": {"zone": "b"}, "fallback_strategy": [{"label_selector": {"zone": "!b"}}]},
            strategy(NodeLabelSchedulingStrategy({"zone": In("a")}, soft={"zone": NotIn("a")})),
            strategy(NodeLabelSchedulingStrategy(None, soft={"zone": In("b")})),
            strategy(NodeAffinitySchedulingStrategy(here, soft=False)),
            strategy(NodeAffinitySchedulingStrategy(elsewhere, soft=True)),
        ]
        refused = [
            ({"label_selector": {"zone": "!a"}}, r"zone not in \(a\).*zone=a"),
            (strategy(NodeLabelSchedulingStrategy({"zone": In("b")})), r"zone in \(b\)"),
            (strategy(NodeAffinitySchedulingStrategy(elsewhere, soft=False)), elsewhere),
        ]
        assert noded.get([f.options(**options).remote() for options in runs], timeout=30) == ["ran"] * len(runs)
        actors = [A.options(**options).remote() for options in runs]
        assert noded.get([actor.f.remote() for actor in actors], timeout=30) == ["ran"] * len(runs)
        homeless = [A.options(**options).remote() for options, _ in refused]
        refs = [
            (f.options(**options).remote(), a.f.remote()) for (options, _), a in zip(refused, homeless, strict=True)
        ]
        for (task, call), (_, words) in zip(refs, refused, strict=True):
            with pytest.raises(TaskUnschedulableError, match=words):
                noded.get(task, timeout=30)
            with pytest.raises(ActorUnschedulableError, match=words):
                noded.get(call, timeout=30)
        good = placement_group([{"CPU": 1}] * 2, bundle_label_selector=[{"zone": "a"}, {}])
        bad = placement_group([{"CPU": 1}] * 2, bundle_label_selector=[{}, {"zone": "b"}])
        assert good.wait(20)
        with pytest.raises(PlacementGroupUnschedulableError, match=r"bundle 1: .*zone in \(b\)"):
            noded.get(bad.ready(), timeout=30)
        del actors, homeless


# ---------------------------------------------------------------- kill -9 of the daemon


def test_created_groups_and_what_runs_in_them_go_on(node: Node, tmp_path: Path) -> None:
    make, log, gate = functions(), tmp_path / "log", str(tmp_path / "gate")
    group = placement_group([{"CPU": 2, "widget": 1}, {"CPU": 1}], name="kept")
    actor = make["Member"].options(**inside(group, 0)).remote()
    assert noded.get(actor.add.remote(), timeout=30) == 1
    pid = noded.get(actor.pid.remote())
    running = make["note"].options(**inside(group, 0)).remote(str(log), gate, "inside")
    wait_for(lambda: lines(log), "the task did not start")
    waiting = [make["note"].options(**inside(group)).remote(str(log), "", i) for i in range(20)]
    outside = [make["note"].remote(str(log), "", i) for i in range(20)]
    node.kill9()
    more = [make["note"].options(**inside(group, 1)).remote(str(log), "", i) for i in range(20)]
    node.restart()
    assert noded.get(waiting + outside + more, timeout=60) == [*range(20)] * 3
    assert group.wait(20) and state(group) == "CREATED" and get_placement_group("kept") == group
    assert noded.get([actor.add.remote(), actor.pid.remote()], timeout=30) == [2, pid]
    open(gate, "w").close()
    assert noded.get(running, timeout=30) == "inside"
    assert len(lines(log)) == 61
    wait_free(1, 1)
    del actor
    remove_placement_group(group)
    wait_free(4)


def test_a_group_has_its_resources_before_anything_waits_for_them_again(node: Node, tmp_path: Path) -> None:
    log = tmp_path / "log"
    group = placement_group([{"CPU": 4}])
    assert group.wait(20)
    outside = [functions()["note"].remote(str(log)) for _ in range(4)]
    later = placement_group([{"CPU": 1}])
    node.restart()
    assert later.wait(0.3) is False and not lines(log)
    inner = [functions()["note"].options(**inside(group)).remote(str(log)) for _ in range(4)]
    noded.get(inner, timeout=30)
    assert noded.wait(outside, timeout=0)[0] == [] and state(later) == "PENDING"
    remove_placement_group(group)
    assert later.wait(20)
    noded.get(outside, timeout=30)
    remove_placement_group(later)


def test_requests_that_the_daemon_never_answered_are_told_again(node: Node) -> None:
    old = [placement_group([{"widget": 0.1}]) for _ in range(5)]
    assert all(group.wait(20) for group in old)
    node.signal(signal.SIGSTOP)
    new = [placement_group([{"widget": 0.1}]) for _ in range(5)]
    short = placement_group([{"widget": 0.1}])
    for group in [*old, short]:
        remove_placement_group(group)
    ready = [group.ready() for group in new]
    node.kill9()
    while_away = placement_group([{"CPU": 1}])
    node.restart()
    assert noded.get(ready, timeout=30) == new and while_away.wait(20)
    wait_free(3, 1.5)
    assert {state(group) for group in new} == {"CREATED"}
    assert not {g["state"] for id_, g in placement_group_table().items() if id_ == short.id.hex()} - {"REMOVED"}
    for group in [*new, while_away]:
        remove_placement_group(group)
    wait_free(4)


@pytest.mark.parametrize("moment", ["before it is read", "right after it is on record"])
def test_a_removal_in_whose_midst_the_daemon_dies_is_carried_out(node: Node, tmp_path: Path, moment: str) -> None:
    make, log = functions(), tmp_path / "log"
    group = placement_group([{"CPU": 2, "widget": 1}])
    running = [make["note"].options(max_retries=3, **inside(group)).remote(str(log), "never") for _ in range(2)]
    actor = make["Member"].options(num_cpus=0, max_restarts=5, **inside(group)).remote()
    assert noded.get(actor.add.remote(), timeout=30) == 1
    wait_for(lambda: len(lines(log)) == 2, "the tasks did not start")
    if moment == "before it is read":
        node.signal(signal.SIGSTOP)
        remove_placement_group(group)
        node.kill9()
    else:  # it has not ended anything yet, and told nobody
        node.kill9()
        path = Path(os.environ["NODED_HOME"]) / "clusters" / node.cluster / "head.db"
        with closing(sqlite3.connect(path)) as database, database:
            gone = database.execute("DELETE FROM records WHERE tbl = 'placement_groups' AND key = ?", (group.id.hex(),))
            assert gone.rowcount == 1
    node.restart()
    wait_for(lambda: heard_of_removal(group), "this process is not told that the group is gone", 20)
    wait_for(lambda: has_died(actor), "the actor in the group lives", 20)
    for ref in running:
        with pytest.raises(TaskPlacementGroupRemoved):
            noded.get(ref, timeout=30)
    wait_free(4)
    assert len(lines(log)) == 2


@pytest.mark.slow
def test_pending_and_infeasible_groups_wait_on_over_kills(node: Node) -> None:
    full = placement_group([{"widget": 2}])
    assert full.wait(20)
    pending = placement_group([{"widget": 1}], name="pending")
    never = placement_group([{"widget": 3}])
    ref, hopeless = pending.ready(), never.ready()
    for _ in range(2):
        node.restart()
        assert pending.wait(0.05) is False
    assert get_placement_group("pending") == pending
    with pytest.raises(PlacementGroupUnschedulableError, match="widget: asks 3"):
        noded.get(hopeless, timeout=30)
    remove_placement_group(full)
    assert noded.get(ref, timeout=30) == pending
    for group in (pending, never):
        remove_placement_group(group)


@pytest.mark.slow
def test_many_creations_and_removals_through_kills(node: Node) -> None:
    """One thread makes and removes, the test kills: each group is created once, none is left."""
    stop, failures, count = threading.Event(), [], 0

    def work() -> None:
        nonlocal count
        try:
            while not stop.is_set():
                groups = [placement_group([{"widget": 0.01}]) for _ in range(50)]
                assert all(group.wait(30) for group in groups)
                for group in groups:
                    remove_placement_group(group)
                count += len(groups)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(4):
        seen = count
        wait_for(lambda seen=seen: count > seen + 200 or failures, "nothing is created any more", 30)
        node.restart()
    stop.set()
    thread.join(60)
    assert not failures and not thread.is_alive()
    wait_free(4)
    assert {group["state"] for group in placement_group_table().values()} <= {"REMOVED"}


def test_a_node_that_starts_over_still_has_its_groups(node: Node, tmp_path: Path) -> None:
    """Daemon and spawner die at once, and all workers with them: groups are reserved anew, and are empty."""
    group = placement_group([{"CPU": 2, "widget": 1}], name="kept")
    full = placement_group([{"widget": 1}])
    pending = placement_group([{"widget": 1}])
    actor = functions()["Member"].options(**inside(group)).remote()
    assert noded.get(actor.add.remote(), timeout=30) == 1 and full.wait(20)
    spawner = node.status()["spawner_pid"]
    node.kill9()
    os.kill(spawner, signal.SIGKILL)
    node.start()
    assert group.wait(20) and get_placement_group("kept") == group
    assert noded.get(functions()["note"].options(**inside(group)).remote(str(tmp_path / "log"), "", 7), timeout=30) == 7
    assert pending.wait(0.1) is False
    remove_placement_group(full)
    assert pending.wait(20)
    wait_free(2, 0)
    for each in (group, pending):
        remove_placement_group(each)
    wait_free(4)


def test_an_idle_worker_of_a_removed_group_gets_no_more_tasks(node: Node) -> None:
    @noded.remote
    def task() -> int:
        return 1

    for _ in range(10):
        group = placement_group([{"CPU": 1}])
        assert group.wait(10)
        inside = task.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group))
        assert noded.get(inside.remote()) == 1
        remove_placement_group(group)
        with pytest.raises(TaskPlacementGroupRemoved):
            noded.get(inside.remote(), timeout=10)
