"""cluster_utils.Cluster: a real node that other programs can use and that leaves nothing."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from harness.gates import Notes
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
    return [*Path(os.environ["NODED_RUN_DIR"]).glob("*"), *Path(os.environ["NODED_HOME"]).glob("clusters/*")]


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
    with pytest.raises(NotImplementedError, match="several nodes"):
        cluster.add_node()

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
    assert left_behind() == []


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
