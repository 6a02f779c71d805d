"""Resources: amounts in fixed point, what runs beside what, and what is free when."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.leaks import LeakCheck
from harness.wait import wait_for

import noded
from noded.exceptions import ActorUnschedulableError, TaskUnschedulableError

TIMEOUT = 30
GB = 1 << 30


@pytest.fixture(scope="module")
def cluster(leak_check: LeakCheck) -> Iterator[noded.ClientContext]:
    """With resources of every kind; the GPUs exist by declaration only."""
    before = leak_check.take()
    sizes = {"num_cpus": 3, "num_gpus": 2, "resources": {"tape": 2, "head:1": 0.5}, "_memory": 4 * GB}
    with noded.init("local", object_store_memory=64 << 20, **sizes) as context:
        yield context
    left = leak_check.left_since(before)
    if left:
        leak_check.end_all(before)
        pytest.fail("the module's cluster left behind:\n  " + "\n  ".join(left), pytrace=False)


pytestmark = pytest.mark.usefixtures("cluster")


def get(refs: Any) -> Any:
    return noded.get(refs, timeout=TIMEOUT)


def free(name: str) -> float:
    return noded.available_resources().get(name, 0)


@noded.remote
def hold(directory: Path, name: str) -> str:
    """Runs until the test says `go`."""
    (directory / f"{name}.runs").touch()
    wait_for((directory / "go").exists, "the test never said go")
    return name


def running(directory: Path) -> int:
    return len(list(directory.glob("*.runs")))


@noded.remote
class Holder:
    def ready(self) -> bool:
        return True

    def assigned(self) -> Any:
        return noded.get_runtime_context().get_assigned_resources()


def test_the_totals_are_what_was_asked_for() -> None:
    total = noded.cluster_resources()

    assert (total["CPU"], total["GPU"], total["tape"], total["head:1"]) == (3, 2, 2, 0.5)
    assert total["memory"] == 4 * GB and total["object_store_memory"] == 64 << 20
    [node] = noded.nodes()
    assert node["Alive"] and node["Resources"]["CPU"] == 3 and len(node["NodeID"]) > 10


@pytest.mark.parametrize(
    "options, name, taken",
    [
        ({"num_cpus": 2}, "CPU", 2),
        ({"num_cpus": 0.25}, "CPU", 0.25),
        ({"num_cpus": 0, "num_gpus": 0.5}, "GPU", 0.5),
        ({"num_cpus": 0, "num_gpus": 2}, "GPU", 2),
        ({"memory": GB}, "memory", GB),
        ({"resources": {"tape": 1}}, "tape", 1),
        ({"resources": {"head:1": 0.0001}}, "head:1", 0.0001),
    ],
)
def test_a_running_task_takes_exactly_its_amount(
    options: dict[str, Any], name: str, taken: float, tmp_path: Path
) -> None:
    before = free(name)
    ref = hold.options(**options).remote(tmp_path, "one")
    wait_for(lambda: running(tmp_path) == 1, "the task never began")

    assert free(name) == pytest.approx(before - taken, abs=1e-9)
    (tmp_path / "go").touch()
    assert get(ref) == "one"
    wait_for(lambda: free(name) == before, lambda: f"{name}: {before} before, {free(name)} after")


def test_no_more_run_at_once_than_fit(tmp_path: Path) -> None:
    refs = [hold.options(num_cpus=0, resources={"tape": 1}).remote(tmp_path, str(i)) for i in range(4)]
    wait_for(lambda: running(tmp_path) == 2, "two of four should run")
    other = get(noded.remote(lambda: "CPUs are free all the same").remote())

    assert other and running(tmp_path) == 2
    (tmp_path / "go").touch()
    assert get(refs) == ["0", "1", "2", "3"]


def test_fractions_add_up_without_drift(tmp_path: Path) -> None:
    """Ten tenths are one: in floats they are not."""
    refs = [hold.options(num_cpus=0.1).remote(tmp_path, str(i)) for i in range(4)]
    wait_for(lambda: running(tmp_path) == 4, "four tasks of a tenth of a CPU should run at once")
    (tmp_path / "go").touch()
    get(refs)
    tenth = noded.remote(num_cpus=0.1)(lambda: None)
    get([tenth.remote() for _ in range(50)])

    wait_for(lambda: free("CPU") == 3, lambda: f"{free('CPU')!r} of 3 CPUs are free")


def test_an_actor_holds_its_resources_while_it_lives() -> None:
    holder = Holder.options(num_cpus=1, num_gpus=1, memory=GB, resources={"tape": 0.5}).remote()
    get(holder.ready.remote())

    assert (free("CPU"), free("GPU"), free("tape"), free("memory")) == (2, 1, 1.5, 3 * GB)
    assert get(holder.assigned.remote()) == {"CPU": 1, "GPU": 1, "memory": GB, "tape": 0.5}
    del holder
    wait_for(lambda: free("GPU") == 2 and free("CPU") == 3, "an actor that is gone holds resources")


def test_an_actor_waits_for_its_resources(tmp_path: Path) -> None:
    first = Holder.options(num_gpus=2).remote()
    get(first.ready.remote())
    second = Holder.options(num_gpus=1).remote()
    ready, _ = noded.wait([second.ready.remote()], timeout=0.1)

    assert not ready
    noded.kill(first)
    assert get(second.ready.remote())


def test_a_waiting_task_lends_its_cpus(tmp_path: Path) -> None:
    """Three parents on three CPUs, each waiting for a child that needs one."""

    @noded.remote
    def parent(n: int) -> int:
        return 1 + noded.get(child.remote(n))

    @noded.remote
    def child(n: int) -> int:
        return n

    assert get([parent.remote(n) for n in range(6)]) == list(range(1, 7))


def test_a_large_request_is_not_starved_by_small_ones() -> None:
    @noded.remote(num_cpus=1)
    def small() -> None: ...

    @noded.remote(num_cpus=3)
    def large() -> str:
        return "ran"

    refs = [small.remote() for _ in range(200)]
    big = large.remote()
    refs += [small.remote() for _ in range(200)]

    assert get(big) == "ran"
    get(refs)


def test_what_can_never_run_is_refused() -> None:
    never = [
        ({"num_cpus": 3.5}, r"CPU: asks 3.5, the node has 3"),
        ({"num_gpus": 3}, r"GPU: asks 3, the node has 2"),
        ({"memory": 5 * GB}, r"memory: asks 5.*e\+09, the node has 4"),
        ({"resources": {"tape": 2.0001}}, r"tape: asks 2.0001, the node has 2"),
        ({"resources": {"typo": 1}}, r"typo: asks 1, the node has 0"),
    ]
    tasks = [hold.options(**options).remote(Path("."), "never") for options, _ in never]
    actors = [Holder.options(**options).remote() for options, _ in never]

    for task, actor, (_, text) in zip(tasks, actors, never, strict=True):
        with pytest.raises(TaskUnschedulableError, match=text):
            noded.get(task, timeout=10)
        with pytest.raises(ActorUnschedulableError, match=text):
            noded.get(actor.ready.remote(), timeout=10)


def test_refused_tasks_do_not_stand_in_the_way() -> None:
    never = [hold.options(num_cpus=64).remote(Path("."), "x") for _ in range(5)]
    assert get(noded.remote(lambda: 1).remote()) == 1

    for ref in never:
        with pytest.raises(TaskUnschedulableError):
            noded.get(ref, timeout=10)


def test_a_dead_worker_gives_its_resources_back() -> None:
    @noded.remote(num_cpus=2, max_retries=0, resources={"tape": 2})
    def die() -> None:
        os._exit(1)

    with pytest.raises(noded.exceptions.WorkerCrashedError):
        get(die.remote())
    wait_for(lambda: free("CPU") == 3 and free("tape") == 2, "a dead worker's resources are not free")


def test_an_ended_driver_gives_everything_back() -> None:
    """Another program on the same machine has its own cluster: nothing of it shows here."""
    source = "import noded; noded.init('local', num_cpus=1); print(noded.cluster_resources()['CPU'])"
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )

    assert done.stdout == "1.0\n", done.stderr
    assert noded.cluster_resources()["CPU"] == 3


def test_many_long_names_of_resources(run_program: Callable[..., str]) -> None:
    """They are part of what the daemon writes down of a lease, which has a size."""
    source = """
        import noded

        names = {f"{number:02d}" + "x" * 60: 1.0 for number in range(30)}
        noded.init("local", num_cpus=1, resources=names)
        some, task = dict(list(names.items())[:12]), noded.remote(lambda: "ran")
        print(noded.get(task.options(resources=some).remote(), timeout=20))

        @noded.remote
        class Actor:
            def say(self):
                return "lives"

        print(noded.get(Actor.options(resources=some).remote().say.remote(), timeout=20))
        for what in (lambda: task.options(resources=names).remote(),
                     lambda: Actor.options(resources=names).remote().say.remote()):
            try:
                noded.get(what(), timeout=20)
            except noded.exceptions.NodedError as error:
                print(type(error).__name__, "too long together" in str(error))
        print(noded.get(task.remote(), timeout=20))
    """
    said = run_program(source).splitlines()
    assert said == ["ran", "lives", "TaskUnschedulableError True", "ActorUnschedulableError True", "ran"]
