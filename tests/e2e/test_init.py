"""init and shutdown: which cluster a program gets, and what it is told when it cannot have one."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.cluster import Node
from harness.processes import all_processes, mentioning
from harness.wait import wait_for

import noded
from noded.exceptions import NodedSystemError


@noded.remote
def one() -> int:
    return 1


@pytest.fixture(autouse=True)
def always_shut_down() -> Iterator[None]:
    yield
    noded.shutdown()


def running(directory: str) -> list[Any]:
    return [p for p in mentioning(all_processes().values(), [directory]) if p.pid != os.getpid() and p.state != "Z"]


# ---------------------------------------------------------------- a private cluster


def test_a_private_cluster_ends_with_shutdown_and_leaves_nothing() -> None:
    context = noded.init("local", num_cpus=1)
    directory = context["session_dir"]

    assert noded.is_initialized() and running(directory)
    assert noded.get(one.remote(), timeout=30) == 1
    noded.shutdown()
    assert not noded.is_initialized()
    wait_for(lambda: not running(directory), lambda: f"still running: {running(directory)}")
    assert not Path(directory).exists()


def test_what_init_returns() -> None:
    context = noded.init("local", num_cpus=1, namespace="mine")

    host, _, port = context["address"].rpartition(":")
    assert host and port.isdigit() and context["gcs_address"] == context["address"]
    assert context["node_id"] == noded.nodes()[0]["NodeID"] and context.address_info["node_id"] == context["node_id"]
    assert Path(context["session_dir"]).is_dir()
    assert context.dashboard_url == f"{'https' if os.environ.get('NODED_TLS_CERT') else 'http'}://{context['address']}"
    assert noded.get_runtime_context().namespace == "mine"


def test_as_a_context_manager() -> None:
    with noded.init("local", num_cpus=1) as context:
        assert noded.get(one.remote(), timeout=30) == 1
    assert not noded.is_initialized()
    wait_for(lambda: not running(context["session_dir"]), "the context manager left processes")


@pytest.mark.slow
def test_again_and_again() -> None:
    """The same functions and actor classes serve one cluster after the other."""

    @noded.remote
    class Counter:
        def call(self) -> int:
            return 2

    nodes = set()
    for cpus in (1, 2):
        context = noded.init("local", num_cpus=cpus)
        nodes.add(context["node_id"])
        counter = Counter.remote()
        assert noded.get([one.remote(), counter.call.remote()], timeout=30) == [1, 2]
        assert noded.cluster_resources()["CPU"] == cpus
        noded.shutdown()
        noded.shutdown()
    assert len(nodes) == 2


def test_twice_is_refused_unless_told_otherwise() -> None:
    first = noded.init("local", num_cpus=1)

    with pytest.raises(RuntimeError, match="ignore_reinit_error=True"):
        noded.init("local")
    again = noded.init("local", num_cpus=7, ignore_reinit_error=True)
    assert again["node_id"] == first["node_id"] and noded.cluster_resources()["CPU"] == 1


def test_the_first_remote_call_starts_a_private_cluster() -> None:
    assert not noded.is_initialized()
    ref = one.remote()

    assert noded.is_initialized() and noded.get(ref, timeout=30) == 1


@pytest.mark.parametrize("first", [lambda: noded.put(1), noded.cluster_resources, noded.nodes])
def test_other_first_calls_start_one_too(first: Callable[[], Any]) -> None:
    assert first()
    assert noded.is_initialized()


def test_a_task_is_in_its_drivers_cluster_and_cannot_start_another() -> None:
    noded.init("local", num_cpus=1)

    @noded.remote
    def inside() -> Any:
        try:
            noded.init("local")
        except RuntimeError:
            noded.shutdown()  # does nothing here
            return noded.is_initialized(), noded.init(ignore_reinit_error=True)["node_id"]

    assert noded.get(inside.remote(), timeout=30) == (True, noded.nodes()[0]["NodeID"])


def test_sizes() -> None:
    noded.init("local", num_cpus=1.5, num_gpus=1, resources={"r": 2}, object_store_memory=80 << 20, _memory=1 << 30)
    total = noded.cluster_resources()

    assert (total["CPU"], total["GPU"], total["r"], total["memory"]) == (1.5, 1, 2, 1 << 30)
    assert total["object_store_memory"] == 80 << 20


def test_refs_of_a_cluster_that_is_gone() -> None:
    noded.init("local", num_cpus=1)
    ref, pending = noded.put([1]), noded.remote(lambda: threading.Event().wait(999)).remote()
    noded.shutdown()
    noded.init("local", num_cpus=1)

    assert noded.get(one.remote(), timeout=30) == 1
    for old in (ref, pending):
        try:
            noded.get(old, timeout=0.2)
        except noded.exceptions.NodedError:
            continue
        assert old is ref  # a small value lives in its ref
    del ref, pending


def test_threads_that_wait_at_shutdown_are_told() -> None:
    noded.init("local", num_cpus=1)
    ref = noded.remote(lambda: threading.Event().wait(999)).remote()
    errors: list[BaseException] = []

    def wait(call: Callable[[], Any]) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    calls = [lambda: noded.get(ref), lambda: noded.wait([ref]), lambda: noded.get(ref, timeout=60)]
    threads = [threading.Thread(target=wait, args=[call]) for call in calls]
    for thread in threads:
        thread.start()
    noded.shutdown()
    for thread in threads:
        thread.join(30)

    assert not any(thread.is_alive() for thread in threads)
    assert all(isinstance(error, noded.exceptions.NodedError | RuntimeError) for error in errors), errors


# ---------------------------------------------------------------- a running one


@pytest.fixture
def node() -> Iterator[Node]:
    with Node(num_cpus=1) as node:
        yield node


def connected_to(node: Node, **how: Any) -> None:
    with noded.init(**how) as context:
        assert context["address"] == node.address and context["cluster"] == node.cluster
        assert noded.get(one.remote(), timeout=30) == 1
    assert node.running


def test_every_way_to_a_running_cluster(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    port = node.address.rpartition(":")[2]

    connected_to(node)
    connected_to(node, address="auto")
    connected_to(node, address=node.address)
    connected_to(node, address=f"noded://{node.address}")
    connected_to(node, address=f"localhost:{port}")
    connected_to(node, address=node.cluster)
    for address in (node.address, node.cluster, "auto"):
        monkeypatch.setenv("NODED_ADDRESS", address)
        connected_to(node)
    monkeypatch.setenv("NODED_ADDRESS", "local")
    with noded.init(num_cpus=1) as private:
        assert private["address"] != node.address
    monkeypatch.setenv("NODED_ADDRESS", "no such place")
    connected_to(node, address=node.address)  # the argument counts
    monkeypatch.delenv("NODED_ADDRESS")
    with noded.init("local", num_cpus=1) as private:
        assert private["cluster"] != node.cluster

    with pytest.raises(ValueError, match=r"num_cpus, resources cannot be given when connecting to a running cluster"):
        noded.init(num_cpus=2, resources={"x": 1})
    with pytest.raises(ConnectionError, match=r"no noded node .* listens at 127.0.0.1:1; .*noded start --head"):
        noded.init("127.0.0.1:1")
    assert not noded.is_initialized()


def test_several_running_clusters_must_be_told_apart(node: Node) -> None:
    with Node(num_cpus=1) as other:
        with pytest.raises(ConnectionError, match=rf"(?=.*{node.cluster})(?=.*{other.cluster}).*NODED_ADDRESS"):
            noded.init()
        connected_to(node, address=node.cluster)
        connected_to(other, address=other.address)


def test_no_running_cluster() -> None:
    with pytest.raises(ConnectionError, match=r"no cluster of this user runs on this host.*noded start --head"):
        noded.init("auto")
    with pytest.raises(ConnectionError, match=r"listens at 127.0.0.1:1"):
        noded.init("127.0.0.1:1")
    with pytest.raises(ValueError, match=r"'local', 'auto', host:port, or the name of a cluster.*'nonsense'"):
        noded.init("nonsense")


def test_private_clusters_are_not_found_by_others(run_program: Callable[..., str]) -> None:
    private = noded.init("local", num_cpus=1)
    output = run_program(
        """
        import noded
        try:
            noded.init("auto")
        except ConnectionError as error:
            print("not found")
        print(noded.init()["address"])
        """
    )
    found, address = output.splitlines()

    assert found == "not found" and address != private["address"]


def test_a_private_cluster_is_joined_by_its_address(run_program: Callable[..., str]) -> None:
    private = noded.init("local", num_cpus=1)
    output = run_program(f"import noded; print(noded.init({private['address']!r})['node_id'])")
    assert output.split() == [private["node_id"]]


def test_namespaces_separate_names_between_programs(node: Node, run_program: Callable[..., str]) -> None:
    noded.init(node.address, namespace="ours")

    @noded.remote
    class Shared:
        def call(self) -> str:
            return "shared"

    actor = Shared.options(name="known", lifetime="detached").remote()
    assert noded.get(actor.call.remote(), timeout=30) == "shared"
    source = """
        import os, noded
        namespace = os.environ["NAMESPACE"] or None
        noded.init(os.environ["ADDRESS"], namespace=namespace)
        try:
            print(noded.get(noded.get_actor("known").call.remote(), timeout=30))
        except ValueError as error:
            print("unknown:", error)
        """
    assert run_program(source, NAMESPACE="ours", ADDRESS=node.address) == "shared\n"
    for namespace in ("theirs", ""):
        assert run_program(source, NAMESPACE=namespace, ADDRESS=node.address).startswith("unknown: there is no actor")
    noded.kill(actor)


def test_a_program_that_leaves_takes_its_work_along(node: Node) -> None:
    noded.init(node.address)

    @noded.remote
    class Actor:
        def pid(self) -> int:
            return os.getpid()

    actor = Actor.remote()
    pid = noded.get(actor.pid.remote(), timeout=30)
    noded.shutdown()
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "an actor outlives the program that made it")

    assert node.running
    with noded.init(node.address):
        wait_for(
            lambda: noded.available_resources() == noded.cluster_resources(), "a program that left holds resources"
        )


# ---------------------------------------------------------------- wrong arguments


@pytest.mark.parametrize(
    "arguments, kind, text",
    [
        ({"no_such_argument": 1}, TypeError, "unknown arguments: no_such_argument"),
        ({"namespace": ""}, ValueError, "namespace must not be empty"),
        ({"namespace": 5}, TypeError, "namespace must be a string"),
        ({"runtime_env": {"pip": ["x"]}}, NotImplementedError, "pip"),
        ({"local_mode": True}, NotImplementedError, "local_mode"),
        ({"address": 5}, TypeError, "address"),
        ({"num_cpus": "many"}, TypeError, "num_cpus"),
        ({"num_cpus": -1}, ValueError, "num_cpus"),
        ({"num_gpus": -1}, ValueError, "num_gpus"),
        ({"resources": [1]}, TypeError, "resources"),
        ({"resources": {"x": -1}}, ValueError, "x"),
        ({"resources": {"CPU": 1}}, ValueError, "CPU"),
        ({"resources": {"": 1}}, ValueError, "resource name"),
        ({"object_store_memory": "big"}, TypeError, "object_store_memory"),
        ({"object_store_memory": 10}, ValueError, "object_store_memory must be at least"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], kind: Any, text: str) -> None:
    with pytest.raises(kind, match=text):
        noded.init(**{"address": "local", **arguments})
    assert not noded.is_initialized()


def test_init_works_after_a_failure() -> None:
    with pytest.raises(NodedSystemError, match=r"did not start: .*cannot map the object arena"):
        noded.init("local", object_store_memory=1 << 60)
    noded.init("local", num_cpus=1)

    assert noded.get(one.remote(), timeout=30) == 1
