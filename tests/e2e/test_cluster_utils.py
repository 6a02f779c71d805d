"""cluster_utils.Cluster: real nodes that other programs can use and that leave nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from harness.gates import Notes
from harness.processes import all_processes, mentioning
from harness.wait import wait_for

import noded
from noded.cluster_utils import Cluster
from noded.util.executor import NodedExecutor
from noded.util.multiprocessing import Pool
from noded.util.queue import Queue


@pytest.fixture(autouse=True)
def home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the process's own home other tests have left the records of their clusters."""
    monkeypatch.setenv("NODED_HOME", str(tmp_path / "home"))


def left_behind() -> list[Path]:
    """Of private clusters, which are those of these tests; others may still run one that tests share."""
    return [*running(), *Path(os.environ["NODED_HOME"]).glob("clusters/*")]


def running() -> list[Path]:
    return [path for path in Path(os.environ["NODED_RUN_DIR"]).glob("*") if not path.name.startswith("test-")]


def test_a_node_is_added_used_and_removed() -> None:
    cluster = Cluster()
    assert cluster.address is None and cluster.list_all_nodes() == []
    with pytest.raises(RuntimeError, match="uninitialized"):
        cluster.connect()

    with pytest.raises(ValueError, match="kind of"):
        cluster.add_node(labels={"kind of": "big"})
    node = cluster.add_node(num_cpus=3, resources={"disk": 2}, labels={"kind": "big"}, include_dashboard=False)
    cluster.wait_for_nodes()
    assert cluster.list_all_nodes() == [node] and cluster.remaining_processes_alive()
    assert cluster.address == node.address == cluster.gcs_address
    cluster.connect(namespace="mine")
    assert noded.get_runtime_context().namespace == "mine"
    assert noded.get_runtime_context().get_node_id() == node.node_id
    found = noded.cluster_resources()
    assert (found["CPU"], found["disk"]) == (3, 2) and noded.nodes()[0]["Labels"]["kind"] == "big"
    with pytest.raises(RuntimeError, match="connected already"):
        cluster.connect()
    cluster.remove_node(node)
    assert not noded.is_initialized() and cluster.list_all_nodes() == []
    with pytest.raises(ValueError, match="not a node"):
        cluster.remove_node(node)
    cluster.shutdown()
    assert left_behind() == []


def test_head_and_connection_at_once_and_another_program(run_program: Any) -> None:
    with Cluster(initialize_head=True, connect=True, head_node_args={"num_cpus": 1}) as cluster:
        assert cluster.connected and noded.cluster_resources()["CPU"] == 1
        source = "import os, noded; print(noded.init(os.environ['ADDRESS'])['node_id'])"
        assert run_program(source, ADDRESS=cluster.address).strip() == noded.get_runtime_context().get_node_id()
        noded.shutdown()
        assert cluster.remaining_processes_alive()
        cluster.connect()
    assert not noded.is_initialized() and left_behind() == []


def test_an_ungraceful_removal_and_a_killed_daemon() -> None:
    cluster = Cluster(True)
    node = cluster.head_node
    assert node is not None
    before = node.pid
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: node.pid != before and node.alive(), "the daemon was not started again")
    cluster.connect()
    assert noded.get(noded.remote(lambda: 5).remote(), timeout=30) == 5
    noded.shutdown()
    cluster.remove_node(node, allow_graceful=False)
    assert left_behind() == [] and mentioning(all_processes().values(), [node.run_dir]) == []


def test_several_nodes_join_and_leave() -> None:
    with Cluster(True, True, {"num_cpus": 1}) as cluster:
        assert cluster.head_node is not None
        one = cluster.add_node(num_cpus=2, resources={"disk": 1}, labels={"kind": "big"}, object_store_memory=80 << 20)
        two = cluster.add_node(node_name="other", num_cpus=3, object_store_memory=80 << 20)
        cluster.wait_for_nodes()
        assert cluster.list_all_nodes() == [cluster.head_node, one, two]
        assert cluster.worker_nodes == {one, two} and cluster.remaining_processes_alive()
        assert noded.cluster_resources()["CPU"] == 6
        found = {node["NodeID"]: node for node in noded.nodes()}
        assert set(found) == {node.node_id for node in cluster.list_all_nodes()}
        assert found[one.node_id]["Labels"]["kind"] == "big" and found[two.node_id]["NodeName"] == "other"
        assert two.ask("status")["head_link"]["connected"]
        with pytest.raises(ValueError, match="'other' already"):
            cluster.add_node(node_name="other")

        cluster.remove_node(one)
        cluster.wait_for_nodes(5)
        assert cluster.list_all_nodes() == [cluster.head_node, two]
        assert [node["Alive"] for node in noded.nodes() if node["NodeName"] == "n1"] == [False]
        assert not Path(one.run_dir).exists()
        with pytest.raises(ValueError, match="not a node"):
            cluster.remove_node(one)
        cluster.remove_node(two, allow_graceful=False)
        assert not Path(two.run_dir).exists() and mentioning(all_processes().values(), [two.run_dir]) == []
        cluster.wait_for_nodes(5)
    assert not noded.is_initialized() and left_behind() == []


def test_a_killed_daemon_stays_away_until_it_is_restarted() -> None:
    with Cluster(True) as cluster:
        node = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
        assert cluster.head_node is not None
        for which in (node, cluster.head_node):
            before, was = which.pid, which.node_id
            cluster.kill(which)
            time.sleep(0.3)
            assert which.pid == before and not Path(f"/proc/{before}").exists()
            if which is node:
                with pytest.raises(TimeoutError, match="counts 1 nodes, not 2"):
                    cluster.wait_for_nodes(0.3)
            cluster.restart(which)
            assert which.pid != before and which.node_id == was
            cluster.wait_for_nodes(10)
        before = node.pid
        os.kill(before, signal.SIGKILL)
        wait_for(lambda: node.pid != before, "the supervision is gone after a restart")
        cluster.wait_for_nodes(10)
    assert left_behind() == []


def test_removing_the_head_removes_all() -> None:
    cluster = Cluster(True)
    node = cluster.add_node(object_store_memory=80 << 20)
    assert cluster.head_node is not None
    cluster.remove_node(cluster.head_node)
    assert cluster.worker_nodes == set() and cluster.address is None and not node.alive()
    assert left_behind() == []
    cluster.add_node()
    cluster.shutdown()
    assert left_behind() == []


@pytest.mark.parametrize("how", ["its end", "SIGKILL"])
def test_nothing_is_left_when_the_program_ends(how: str, tmp_path: Path) -> None:
    source = """
        import sys, time, noded
        from noded.cluster_utils import Cluster
        cluster = Cluster(True, True)
        cluster.add_node(object_store_memory=80 << 20, num_cpus=2)
        noded.get([noded.remote(time.sleep).remote(0.1) for _ in range(6)])
        print("ready", flush=True)
        sys.stdin.readline()
    """
    program = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(source)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path
    )
    with program:
        assert program.stdin is not None and program.stdout is not None
        assert program.stdout.readline() == b"ready\n"
        run_dir = os.environ["NODED_RUN_DIR"]
        assert mentioning(all_processes().values(), [run_dir])
        if how == "SIGKILL":
            program.kill()
        else:
            program.stdin.write(b"go\n")
            program.stdin.flush()
        assert program.wait(30) == (-signal.SIGKILL if how == "SIGKILL" else 0)

    def left() -> list[str]:
        return [str(p) for p in mentioning(all_processes().values(), [f"{run_dir}/cluster-{program.pid}"])]

    wait_for(lambda: not left() and not running(), lambda: f"the program left {left()} and {running()}", 20)


def test_helpers_do_not_notice_that_the_daemon_is_killed(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes")

    def work(number: int) -> int:
        notes.add()
        time.sleep(0.005)
        return number

    with Cluster(True, True, {"num_cpus": 2}) as cluster, Pool(2) as pool, NodedExecutor() as executor:
        assert cluster.head_node is not None
        shared = Queue()
        mapped = pool.map_async(work, range(50), chunksize=1)
        futures = [executor.submit(work, number) for number in range(50)]
        taken = shared.actor.get.remote()
        notes.wait(10)
        os.kill(cluster.head_node.pid, signal.SIGKILL)
        assert mapped.get(60) == [future.result(60) for future in futures] == list(range(50))
        shared.put("after the kill")
        assert noded.get(taken, timeout=60) == "after the kill"


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(RuntimeError, match="uninitialized"):
        Cluster(connect=True)
    with pytest.raises(TypeError, match="bogus"):
        Cluster(initialize_head=True, head_node_args={"bogus": 1})
    with pytest.raises(ValueError, match="num_cpus"):
        Cluster(initialize_head=True, head_node_args={"num_cpus": -1})
