"""init and shutdown, programs and their ends, and what there is to ask about the cluster."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from harness.wait import wait_for

TIMEOUT = 60
CLUSTER = pytest.mark.usefixtures("cluster")


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=TIMEOUT)


def start(**arguments: Any) -> Any:
    given = {"num_cpus": 2, "include_dashboard": False, "log_to_driver": False, **arguments}
    return ray.init("local", **given)


# ---------------------------------------------------------------- init and shutdown


def test_init_shutdown_and_init_again(alone: None) -> None:
    assert not ray.is_initialized()
    for _ in range(2):
        start()
        assert ray.is_initialized()
        assert get(ray.remote(lambda: 1).remote()) == 1
        ray.shutdown()
        assert not ray.is_initialized()


def test_shutdown_without_a_cluster(alone: None) -> None:
    ray.shutdown()
    ray.shutdown()

    assert not ray.is_initialized()


@CLUSTER
def test_init_twice_is_an_error_unless_it_is_ignored() -> None:
    with pytest.raises(RuntimeError):
        ray.init()

    again = ray.init(ignore_reinit_error=True)

    assert again.address_info["node_id"] == ray.get_runtime_context().get_node_id()


def test_the_context_of_init(alone: None) -> None:
    with start() as context:
        assert ray.is_initialized()
        assert {"address", "gcs_address", "node_id", "node_ip_address", "session_dir", "webui_url"} <= set(
            context.address_info
        )
        assert context.python_version.count(".") == 2
        assert isinstance(context.dashboard_url, str)
    assert not ray.is_initialized()


def test_a_context_can_be_disconnected(alone: None) -> None:
    context = start()
    context.disconnect()

    assert not ray.is_initialized()


def test_remote_functions_live_through_a_shutdown(alone: None) -> None:
    base = 1

    @ray.remote
    def function() -> int:
        return base + 1

    for _ in range(2):
        start()
        assert get(function.remote()) == 2
        ray.shutdown()


def test_the_first_call_starts_a_cluster(run_program: Callable[..., Any]) -> None:
    done = run_program(
        """
        import ray

        @ray.remote
        def one():
            return 1

        print(ray.is_initialized(), ray.get(one.remote()), ray.is_initialized())
        """
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "1", "True"]


def test_a_program_ends_with_its_exit_code(run_program: Callable[..., Any]) -> None:
    done = run_program(
        """
        import ray, sys
        ray.init("local", num_cpus=1)
        print(ray.get(ray.remote(lambda: "worked").remote()))
        sys.exit(7)
        """
    )

    assert (done.returncode, done.stdout.strip().splitlines()[-1:]) == (7, ["worked"])


def test_an_uncaught_error_of_a_task_ends_the_program(run_program: Callable[..., Any]) -> None:
    done = run_program(
        """
        import ray
        ray.init("local", num_cpus=1)

        @ray.remote
        def fail():
            raise ValueError("the reason")

        ray.get(fail.remote())
        """
    )

    assert done.returncode == 1
    assert "ValueError" in done.stderr and "the reason" in done.stderr


def test_the_output_of_tasks_comes_to_the_driver(start_program: Callable[..., Any]) -> None:
    program = start_program(
        """
        import ray, sys
        ray.init("local", num_cpus=1)

        @ray.remote
        def speak():
            print("said by the task", flush=True)

        ray.get(speak.remote())
        sys.stdin.readline()
        """
    )
    for line in program.stdout:  # until pytest's timeout
        if "said by the task" in line:
            break
    else:
        pytest.fail("the program ended without its task's output")
    program.stdin.write("end\n")
    program.stdin.close()

    assert program.wait(TIMEOUT) == 0


def test_a_second_driver_joins_by_address(alone: None, run_program: Callable[..., Any]) -> None:
    context = start(namespace="joined")

    @ray.remote
    class Counter:
        def __init__(self) -> None:
            self.n = 0

        def add(self) -> int:
            self.n += 1
            return self.n

    counter = Counter.options(name="counter").remote()
    assert get(counter.add.remote()) == 1
    done = run_program(
        """
        import ray, sys
        ray.init(sys.argv[1], namespace="joined", log_to_driver=False)
        print(ray.get(ray.get_actor("counter").add.remote()), ray.get_runtime_context().get_job_id())
        """,
        context.address_info["address"],
    )

    assert done.returncode == 0, done.stderr
    value, job = done.stdout.split()
    assert value == "2"
    assert job != ray.get_runtime_context().get_job_id()
    assert get(counter.add.remote()) == 3


def test_the_address_in_the_environment(alone: None, run_program: Callable[..., Any]) -> None:
    context = start()
    done = run_program(
        """
        import ray
        ray.init(log_to_driver=False)
        print(ray.get_runtime_context().get_node_id())
        """,
        RAY_ADDRESS=context.address_info["address"],
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [context.address_info["node_id"]]


def test_sizes_are_not_for_a_running_cluster(alone: None, run_program: Callable[..., Any]) -> None:
    context = start()
    done = run_program(
        """
        import ray, sys
        try:
            ray.init(sys.argv[1], num_cpus=1)
        except ValueError:
            print("refused")
        """,
        context.address_info["address"],
    )

    assert done.stdout.split() == ["refused"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"num_cpus": -1}, ValueError),
        ({"namespace": 1}, TypeError),
        ({"namespace": ""}, ValueError),
        ({"no_such_argument": 1}, (TypeError, RuntimeError)),
        ({"num_cpus": "two"}, (TypeError, AssertionError)),
        ({"resources": {"CPU": 1}}, (ValueError, AssertionError)),
        ({"runtime_env": {"env_vars": {"A": 1}}}, TypeError),
    ],
    ids=str,
)
def test_wrong_arguments_of_init(alone: None, arguments: Any, error: Any) -> None:
    with pytest.raises(error):
        start(**arguments)
    assert not ray.is_initialized()


@pytest.mark.improves("unknown keys of a runtime_env are refused; Ray ignores them with a warning")
def test_unknown_keys_of_a_runtime_env_are_refused(alone: None) -> None:
    with pytest.raises(ValueError, match="env_varz"):
        start(runtime_env={"env_varz": {}})


# ---------------------------------------------------------------- the cluster


@CLUSTER
def test_cluster_resources() -> None:
    found = ray.cluster_resources()

    assert found["CPU"] == 4 and found["widget"] == 2
    assert found["memory"] > 0 and found["object_store_memory"] > 0
    assert found[f"node:{ray.nodes()[0]['NodeManagerAddress']}"] == 1


@CLUSTER
def test_available_resources(gate: Any) -> None:
    @ray.remote(num_cpus=3, resources={"widget": 1})
    def hold(gate: Any) -> None:
        gate.wait()

    wait_for(lambda: ray.available_resources().get("CPU") == 4, lambda: f"in use: {ray.available_resources()}")
    ref = hold.remote(gate)
    wait_for(lambda: ray.available_resources().get("CPU") == 1, lambda: f"not in use: {ray.available_resources()}")
    assert ray.available_resources()["widget"] == 1
    gate.open()
    get(ref)
    wait_for(lambda: ray.available_resources().get("widget") == 2, lambda: f"in use: {ray.available_resources()}")


@CLUSTER
def test_nodes() -> None:
    (node,) = ray.nodes()

    assert node["Alive"] is True and node["alive"] is True
    assert node["NodeID"] == ray.get_runtime_context().get_node_id()
    assert node["Resources"]["CPU"] == 4
    assert isinstance(node["NodeManagerAddress"], str) and isinstance(node["NodeManagerHostname"], str)
    assert isinstance(node["Labels"], dict)


@CLUSTER
def test_timeline(tmp_path: Path) -> None:
    @ray.remote
    def a_traced_task() -> None: ...

    get(a_traced_task.remote())
    events = wait_for(
        lambda: [e for e in ray.timeline() if "a_traced_task" in json.dumps(e)], "the task is not in the timeline", 20
    )
    path = tmp_path / "timeline.json"
    ray.timeline(filename=str(path))

    assert {"cat", "name", "ph", "pid", "tid", "ts"} <= set(events[0])
    assert isinstance(json.loads(path.read_text()), list)


@CLUSTER
def test_a_cpu_task_has_no_gpu_ids() -> None:
    @ray.remote
    def ids() -> Any:
        return ray.get_gpu_ids()

    assert ray.get_gpu_ids() == []
    assert get(ids.remote()) == []


def test_the_version() -> None:
    major, minor = ray.__version__.split(".")[:2]

    assert int(major) == 2 and int(minor) >= 0
