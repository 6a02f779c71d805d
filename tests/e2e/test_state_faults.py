"""Lists while daemons are away, after they have come back, and of a cluster that is gone; with very many tasks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness.cluster import Node, noded_command
from harness.members import Members
from harness.wait import wait_for

import noded
from noded.config import home
from noded.history import History
from noded.util import state
from noded.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from noded.util.state.asking import refuse_gaps
from noded.util.state.exception import RayStateApiException


@noded.remote
def quick() -> None:
    pass


@noded.remote
def waits(path: str) -> None:
    with open(path) as pipe:
        pipe.read()


@noded.remote(max_retries=0)
def dies() -> None:
    print("last words", flush=True)
    os._exit(7)


@noded.remote
class Keeper:
    def pid(self) -> int:
        return os.getpid()


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[str]:
    """Tasks that read it go on when the test is over."""
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR)
    yield path
    os.close(fd)


def command(*arguments: str, ok: bool = True, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        [*noded_command(), *arguments],
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode == 0) is ok, done.stdout + done.stderr
    return done.stdout if ok else done.stderr


def running() -> list[Any]:
    return list(state.list_tasks(filters=[("state", "=", "RUNNING")], raise_on_missing_output=False))


def test_answers_during_and_after_restarts_of_daemon_and_head(pipe: str) -> None:
    with Members() as cluster:
        member = cluster.add()
        noded.init(address=member.address, log_to_driver=False)
        try:
            here = NodeAffinitySchedulingStrategy(noded.get_runtime_context().get_node_id(), soft=False)
            keeper = Keeper.options(name="keeper", max_restarts=1, scheduling_strategy=here).remote()
            pid = noded.get(keeper.pid.remote(), timeout=30)
            refs = [waits.options(scheduling_strategy=here).remote(pipe)]
            with pytest.raises(noded.exceptions.WorkerCrashedError):
                noded.get(dies.options(scheduling_strategy=here).remote(), timeout=30)
            wait_for(lambda: len(running()) == 1, lambda: f"not running: {running()}")
            (dead,) = [w for w in state.list_workers(detail=True) if w.death_kind == "exit"]

            cluster.head.kill9()
            wait_for(lambda: not member.status()["head_link"]["connected"], "it does not see that the head is away")
            alone = state.list_actors(raise_on_missing_output=False)
            assert [(a.pid, a.state) for a in alone] == [(pid, "ALIVE")] and "this node alone" in alone.problems[0]
            with pytest.raises(RayStateApiException, match="head does not answer"):
                state.list_actors()
            assert len(running()) == 1
            shown = command("list", "tasks", "-f", "state=RUNNING", "-o", "json", "--cluster", cluster.head.cluster)
            assert [row["name"] for row in json.loads(shown)] == ["waits"]
            for kind in ("nodes", "jobs", "placement_groups", "workers", "cluster_events", "objects", "runtime_envs"):
                getattr(state, f"list_{kind}")(raise_on_missing_output=False)
            assert state.summarize_tasks(raise_on_missing_output=False)["cluster"]["summary"]["waits"]
            assert state.summarize_actors(raise_on_missing_output=False)["cluster"]["total_actors"] == 1

            cluster.head.start()
            found = wait_for(lambda: _unless_refused(lambda: state.list_actors(detail=True)), "no answer", 30)
            assert [(a.pid, a.state, a.name) for a in found] == [(pid, "ALIVE", "keeper")]
            assert [j.status for j in state.list_jobs()] == ["RUNNING"]

            member.kill9()
            member.start()
            assert len(running()) == 1
            workers = wait_for(
                lambda: _unless_refused(lambda: {w.worker_id: w for w in state.list_workers(detail=True)}), "no answer"
            )
            assert workers[dead.worker_id] == dead, "who has died is known after a restart as well"
            events = [e.message for e in state.list_cluster_events(limit=1000)]
            assert [e for e in events if "started again" in e and "n1" in e]
            assert [e for e in events if "started again" in e and "head" in e]
            del refs
        finally:
            noded.shutdown()


def _unless_refused(ask: Any) -> Any:
    try:
        return ask()
    except RayStateApiException:
        return None


def test_a_node_that_is_stopped_is_missing_and_that_is_said() -> None:
    with Members() as cluster:
        member = cluster.add()
        noded.init(address=cluster.address, log_to_driver=False)
        try:
            member.signal(signal.SIGSTOP)
            try:
                rows = state.list_workers(raise_on_missing_output=False)
                assert {row.node_id for row in rows} == {noded.get_runtime_context().get_node_id()}
                (problem,) = rows.problems
                assert "n1" in problem and ("has not answered within 3 s" in problem or "is away" in problem)
                with pytest.raises(RayStateApiException, match="not all of the cluster has answered"):
                    refuse_gaps(rows.problems)
            finally:
                member.signal(signal.SIGCONT)
        finally:
            noded.shutdown()


def test_history_of_a_cluster_that_is_gone(pipe: str, tmp_path: Path) -> None:
    with Members() as cluster:
        cluster.add(name="other")
        noded.init(address=cluster.address, log_to_driver=False)
        job = noded.get_runtime_context().get_job_id()
        keeper = Keeper.options(name="keeper", lifetime="detached").remote()
        noded.get(keeper.pid.remote(), timeout=30)
        noded.get([quick.remote() for _ in range(20)], timeout=30)
        with pytest.raises(noded.exceptions.WorkerCrashedError):
            noded.get(dies.remote(), timeout=30)
        ref = waits.remote(pipe)
        wait_for(lambda: len(running()) == 1, lambda: f"not running: {running()}")
        directory = str(home(os.environ) / "clusters" / cluster.head.cluster)
        told = json.loads(command("history", directory, "list", "tasks", "-f", "state=RUNNING", "-o", "json"))
        assert [row["name"] for row in told] == ["waits"], "while it runs the same is told"
        assert [n["state"] for n in _left(directory, "nodes")] == ["ALIVE", "ALIVE"]
        # Everything at once, so that nobody can write down how it ends.
        for node in cluster.all.values():
            node.crash()
        noded.shutdown()
        del ref
        assert [n["state"] for n in _left(directory, "nodes")] == ["DEAD", "DEAD"]
        assert [w for w in _left(directory, "workers") if w["is_alive"]] == []
        assert [(a["class_name"], a["state"]) for a in _left(directory, "actors")] == [("Keeper", "DEAD")]
        (told,) = _left(directory, "jobs")
        assert told["job_id"] == job and told["status"] == "STOPPED", "the driver lives, but not in this cluster"
        tasks = {t["task_id"]: t for t in _left(directory, "tasks")}
        states = sorted((t["name"], t["state"]) for t in tasks.values())
        assert (
            states.count(("quick", "FINISHED")) == 20 and ("waits", "FAILED") in states and ("dies", "FAILED") in states
        )
        assert not [t for t in tasks.values() if t["state"] == "RUNNING"]
        summary = History(Path(directory)).answer("state_summary", {"kind": "tasks"})
        assert summary["summary"]["quick"]["state_counts"] == {"FINISHED": 20}
        assert summary["summary"]["waits"]["state_counts"] == {"FAILED": 1}
        assert "code 7" in command(
            "history", directory, "list", "events", "-f", "source_type=worker", "-f", "severity=error"
        )
        (died,) = [task["task_id"] for task in tasks.values() if task["name"] == "dies"]
        assert command("history", directory, "logs", "--task", died) == "last words\n"
        (keeper_row,) = _left(directory, "actors")
        assert "keeper" in command("history", directory, "get", "actor", keeper_row["actor_id"])
        assert len(History(Path(directory)).answer("timeline", {})) == 24
        copy = shutil.copytree(f"{directory}/logs", tmp_path / "copy" / "logs")
        (kept,) = History(copy).answer("state", {"kind": "actors"})["rows"]
        assert kept["actor_id"] == keeper_row["actor_id"]
    with pytest.raises(ValueError, match="objects are not written down"):
        History(copy).answer("state", {"kind": "objects"})
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "nothing of a node" in command("history", str(empty), "list", "tasks", ok=False)


def _left(directory: str, kind: str) -> list[dict[str, Any]]:
    answer = History(Path(directory)).answer("state", {"kind": kind, "limit": 1000, "detail": True})
    found: list[dict[str, Any]] = answer["rows"]
    return found


def test_the_commands_show_the_same(pipe: str) -> None:
    with Node() as node:
        noded.init(address=node.address, log_to_driver=False)
        try:
            on = ("--cluster", node.cluster)
            noded.get([quick.remote() for _ in range(5)], timeout=30)
            refs = [waits.options(num_cpus=2).remote(pipe) for _ in range(3)]
            wait_for(lambda: len(running()) == 1, lambda: f"not running: {running()}")
            lines = command("list", "tasks", *on, "--limit", "2").splitlines()
            assert len(lines) == 3 and lines[0].split()[:4] == ["TASK_ID", "ATTEMPT_NUMBER", "NAME", "STATE"]
            (task,) = running()
            assert task.task_id in command("list", "tasks", *on, "-f", "state=running", "-o", "yaml")
            shown = dict(line.split(maxsplit=1) for line in command("get", "task", task.task_id, *on).splitlines())
            assert (shown["name"], shown["state"], shown["language"]) == ("waits", "RUNNING", "PYTHON")
            summary = command("summary", "tasks", *on)
            assert "quick" in summary and "5 FINISHED" in summary and "2 PENDING, 1 RUNNING" in summary
            assert "cannot be filtered by" in command("list", "tasks", *on, "-f", "colour=red", ok=False)
            assert "kinds are actors" in command("list", "planets", *on, ok=False)
            assert json.loads(command("timeline", *on))
            demand = wait_for(lambda: node.status()["demand"], "nothing waits")
            assert [(row["name"], row["asks"]["CPU"], row["kind"]) for row in demand] == [
                ("waits", 2.0, "resources_busy")
            ]
            with pytest.raises(noded.exceptions.WorkerCrashedError):
                noded.get(dies.options(num_cpus=0).remote(), timeout=30)
            status = command("status", *on)
            assert "× waits (2 CPU)" in status and "resources_busy" in status
            assert "1 by exit" in status and "code 7" in " ".join(status.split())
            del refs
        finally:
            noded.shutdown()


@pytest.mark.parametrize("count", [5_000, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_seven_of_very_many(pipe: str, count: int) -> None:
    """Those that run are exactly told, and quickly, whatever has ended; counts are exact, memory is bounded."""
    with Node(num_cpus=2) as node:
        noded.init(address=node.address, log_to_driver=False)
        try:
            daemon = psutil.Process(node.pid)
            noded.get([quick.remote() for _ in range(500)], timeout=60)
            state.list_tasks(limit=1000)
            before = daemon.memory_info().rss
            for _ in range(count // 2500):
                noded.get([quick.remote() for _ in range(2500)], timeout=120)
            refs = [waits.options(num_cpus=0).remote(pipe) for _ in range(7)]
            wait_for(lambda: len(running()) == 7, lambda: f"running are {len(running())}", 30)
            took = []
            for _ in range(5):
                began = time.monotonic()
                found = state.list_tasks(filters=[("state", "=", "RUNNING")])
                took.append(time.monotonic() - began)
                assert {t.name for t in found} == {"waits"} and len(found) == found.matched == 7
            counts = state.summarize_tasks()["cluster"]["summary"]
            assert counts["quick"]["state_counts"] == {"FINISHED": count + 500}
            assert counts["waits"]["state_counts"] == {"RUNNING": 7}
            assert len(state.list_tasks(limit=3000, raise_on_missing_output=False)) == 3000
            assert (grown := daemon.memory_info().rss - before) < 50e6, f"it has grown by {grown / 1e6:.0f} MB"
            assert min(took) < 0.2, f"it took {min(took):.3f} s"
            del refs
        finally:
            noded.shutdown()
