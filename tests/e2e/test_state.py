"""`noded.util.state`: lists, single things and summaries tell what was done, wherever it was done and whoever asks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.wait import wait_for

import noded
from noded.cluster_utils import Cluster
from noded.util import state
from noded.util.placement_group import placement_group, remove_placement_group
from noded.util.state.exception import RayStateApiException, ServerUnavailable

MB = 1 << 20


@noded.remote
def double(x: int) -> int:
    return 2 * x


@noded.remote
def fails() -> None:
    raise ValueError("on purpose")


@noded.remote(max_retries=0)
def dies() -> None:
    os._exit(7)


@noded.remote
def waits(path: str) -> None:
    with open(path) as pipe:
        pipe.read()


@noded.remote
class Keeper:
    def pid(self) -> int:
        return os.getpid()

    def worker(self) -> str:
        return noded.get_runtime_context().get_worker_id()


def settled(condition: Callable[[], Any], timeout: float = 20) -> Any:
    """What is told by another process may be a moment late."""
    return wait_for(condition, lambda: f"not so: {condition()}", timeout)


def by_id(found: list[Any]) -> dict[str, Any]:
    return {record[next(iter(record.asdict()))]: record for record in found}


@pytest.fixture
def two_nodes() -> Iterator[Cluster]:
    with Cluster(True, True, {"num_cpus": 2, "object_store_memory": 100 * MB}) as cluster:
        cluster.add_node(num_cpus=2, resources={"there": 4}, object_store_memory=100 * MB)
        yield cluster


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[str]:
    """Tasks that read it go on when the test is over."""
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR)
    yield path
    os.close(fd)


def test_what_was_done_is_what_is_told(two_nodes: Cluster, pipe: str) -> None:
    me = noded.get_runtime_context()
    head, member = two_nodes.head_node, next(iter(two_nodes.worker_nodes))
    assert head is not None
    there = {"resources": {"there": 1}}
    assert noded.get([double.remote(1), double.options(**there).remote(2)], timeout=30) == [2, 4]
    for task in (fails, dies.options(**there)):
        with pytest.raises((ValueError, noded.exceptions.WorkerCrashedError)):
            noded.get(task.remote(), timeout=30)
    running = waits.options(num_cpus=0, **there).remote(pipe)
    never = double.options(num_cpus=2, resources={"there": 4}).remote(5)
    after = double.remote(never)
    keeper = Keeper.options(name="keeper", **there, max_restarts=1).remote()
    gone = Keeper.remote()
    pids = noded.get([keeper.pid.remote(), gone.pid.remote()], timeout=30)
    noded.kill(gone)
    held = noded.put(np.zeros(2 * MB, np.uint8))
    group = placement_group([{"CPU": 0.5}, {"there": 0.5}], name="pair")
    noded.get(group.ready(), timeout=30)
    other = placement_group([{"CPU": 0.5}])
    noded.get(other.ready(), timeout=30)
    remove_placement_group(other)

    # Nodes.
    nodes = by_id(state.list_nodes(detail=True))
    assert {(n.node_name, n.state, n.is_head_node) for n in nodes.values()} == {
        ("head", "ALIVE", True),
        ("n1", "ALIVE", False),
    }
    told = nodes[member.node_id]
    assert told.resources_total["there"] == 4 and told.pid == member.pid and told.start_time_ms > 1.5e12
    assert state.get_node(head.node_id) == nodes[head.node_id] and state.get_node("ab" * 16) is None

    # Actors.
    one = settled(lambda: state.get_actor(keeper))
    assert (one.class_name, one.name, one.state, one.pid) == ("Keeper", "keeper", "ALIVE", pids[0])
    assert (one.node_id, one.job_id, one.num_restarts) == (member.node_id, me.get_job_id(), 0)
    assert one.required_resources == {"there": 1.0} and one.is_detached is False
    dead = settled(lambda: state.list_actors(filters=[("state", "=", "dead")], detail=True))
    assert [a.actor_id for a in dead] == [gone._actor_id.hex()] and dead[0].death_kind == "killed"
    assert "noded.kill()" in dead[0].death_cause["actor_died_error_context"]["error_message"]
    assert state.summarize_actors()["cluster"]["summary"]["Keeper"]["state_counts"] == {"ALIVE": 1, "DEAD": 1}

    # Tasks.
    tasks = settled(lambda: (found := by_id(state.list_tasks(detail=True))) and len(found) == 11 and found)
    failed = {t.name: t for t in tasks.values() if t.state == "FAILED"}
    assert {n: t.error_type for n, t in failed.items()} == {
        "fails": "TASK_EXECUTION_EXCEPTION",
        "dies": "WORKER_DIED",
    }
    runs = tasks[running.task_id().hex()]
    assert (runs.state, runs.name, runs.node_id, runs.type) == ("RUNNING", "waits", member.node_id, "NORMAL_TASK")
    assert state.get_task(running).worker_pid == runs.worker_pid and runs.end_time_ms is None
    assert tasks[never.task_id().hex()].state == "PENDING_NODE_ASSIGNMENT"
    assert tasks[after.task_id().hex()].state == "PENDING_ARGS_AVAIL"
    calls = state.list_tasks(filters=[("type", "=", "actor_task"), ("actor_id", "=", one.actor_id)])
    assert [(t.name, t.state, t.worker_pid) for t in calls] == [("Keeper.pid", "FINISHED", pids[0])]
    counts = state.summarize_tasks()["cluster"]
    assert counts["summary"]["double"]["state_counts"] == {"FINISHED": 2, "PENDING": 2}
    assert counts["summary"]["waits"]["state_counts"] == {"RUNNING": 1}
    assert (counts["total_tasks"], counts["total_actor_tasks"], counts["total_actor_scheduled"]) == (7, 2, 2)

    # Workers, with the driver.
    workers = by_id(state.list_workers(detail=True))
    assert [w.pid for w in workers.values() if w.worker_type == "DRIVER"] == [os.getpid()]
    assert workers[one.worker_id].actor_id == one.actor_id and workers[one.worker_id].is_alive
    (ended,) = [w for w in workers.values() if w.death_kind == "exit"]
    assert (ended.exit_type, ended.is_alive, ended.node_id) == ("USER_ERROR", False, member.node_id)
    assert "code 7" in ended.exit_detail and state.get_worker(ended.worker_id) == ended
    assert {w.worker_id for w in state.list_workers(filters=[("is_alive", "=", True)])} == {
        w.worker_id for w in workers.values() if w.is_alive
    }

    # Objects.
    (mine,) = state.get_objects(held)
    assert (mine.type, mine.pid, mine.reference_type, mine.where) == (
        "DRIVER",
        os.getpid(),
        "LOCAL_REFERENCE",
        "memory",
    )
    assert 2 * MB <= mine.object_size < 2 * MB + 4096
    pinned = noded.get(held)
    views = settled(lambda: state.list_objects(filters=[("reference_type", "=", "pinned_in_memory")]))
    assert {v.object_id for v in views} == {held.hex()} or held.hex() in {v.object_id for v in views}
    objects = state.summarize_objects()["cluster"]
    assert objects["total_size_mb"] >= 2 and not objects["callsite_enabled"]
    del pinned

    # Placement groups.
    groups = by_id(state.list_placement_groups(detail=True))
    pair = groups[group.id.hex()]
    assert (pair.name, pair.state, pair.strategy) == ("pair", "CREATED", "PACK")
    assert pair.bundles[1]["node_id"] == member.node_id and pair.bundles[1]["unit_resources"] == {"there": 0.5}
    settled(lambda: state.get_placement_group(other).state == "REMOVED")

    # Jobs, events.
    (job,) = state.list_jobs(detail=True)
    assert (job.job_id, job.status, job.driver_info["pid"]) == (me.get_job_id(), "RUNNING", str(os.getpid()))
    assert state.get_job(me.get_job_id()).driver_node_id == me.get_node_id()
    events = state.list_cluster_events(limit=1000, detail=True)
    assert [e.event_id for e in events] == sorted((e.event_id for e in events), reverse=True)
    said = [(e.source_type, e.severity, e.message) for e in events]
    assert [m for s, v, m in said if s == "WORKER" and v == "ERROR" and "code 7" in m], said
    assert {s for s, _, _ in said} == {"NODE", "HEAD", "WORKER", "ACTOR", "PLACEMENT_GROUP", "JOB"}
    settled(lambda: [e for e in state.list_cluster_events(detail=True) if "ran dies" in e.message])
    only = state.list_cluster_events(filters=[("source_type", "=", "job")])
    assert [e.message for e in only] == [f"job {me.get_job_id()} ({job.entrypoint}) is RUNNING"]

    # Paging, and what is wrong.
    pages: list[str] = []
    page = state.list_tasks(limit=4)
    while True:
        pages += [t.task_id for t in page]
        if not page.cursor:
            break
        page = state.list_tasks(limit=4, cursor=page.cursor)
    assert pages == sorted(tasks)
    whole = state.list_tasks()
    assert (len(whole), whole.matched, whole.total) == (11, 11, 11)
    there = state.list_tasks(filters=[("node_id", "=", member.node_id)])
    assert 0 < len(there) == there.matched < 11
    assert {t.task_id for t in there} == {t.task_id for t in whole if t.node_id == member.node_id}
    with pytest.raises(RayStateApiException, match="columns for filters are task_id"):
        state.list_tasks(filters=[("colour", "=", "red")])
    with pytest.raises(ValueError, match="operators are =, !="):
        state.list_actors(filters=[("state", "<", "x")])
    with pytest.raises(ValueError, match="pid is a number"):
        state.list_actors(filters=[("pid", "<", float("inf"))])  # which is nothing that JSON has
    assert state.list_tasks(limit=0) == [] and state.list_actors(filters=[("name", "=", "nobody")]) == []

    assert state.get_worker(noded.get(keeper.worker.remote(), timeout=30)).actor_id == one.actor_id
    assert state.get_worker(me.get_worker_id()).worker_type == "DRIVER"

    # Without a connection.
    address = two_nodes.address
    noded.shutdown()
    assert {n.node_id for n in state.list_nodes(address=address)} == set(nodes)
    settled(lambda: [j.status for j in state.list_jobs(address=two_nodes.name)] == ["SUCCEEDED"])
    with pytest.raises(ServerUnavailable):
        state.list_nodes(address="127.0.0.1:1", timeout=0.5)
