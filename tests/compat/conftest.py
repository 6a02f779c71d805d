"""The suite that says what `import ray` programs may rely on. It runs on noded, and by `make compat` on Ray itself
(COMPAT_PEER=ray, in Ray's own virtual environment, without the repository's other conftest files).

COMPAT_PLACE=elsewhere runs what uses the shared cluster on a head without CPUs and a node that has them all, so that
every task and actor is on another node than its driver; COMPAT_PLACE=remote with the driver as one without a node.

Tests that request `cluster` share one for as long as nobody shuts it down; tests that call init() and shutdown()
themselves request `alone`. `gate`, `gates` and `notes` let tests and tasks wait for each other by files.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from harness.leaks import LeakCheck, Snapshot

HERE = Path(__file__).parent
ON_RAY = os.environ.get("COMPAT_PEER", "noded") == "ray"
if ON_RAY:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    # Ray's workers do not get the driver's sys.path as pytest made it, and tasks use tests/harness.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
else:
    from noded.client.api import job_env

    _outside = os.environ.get("PYTHONPATH")
    import noded.compat.ray  # noqa: F401  from here on `import ray` is noded

    _inside = os.environ["PYTHONPATH"]

import ray  # noqa: E402
from harness.gates import Gate, GateMaker, Notes  # noqa: E402
from harness.wait import wait_for  # noqa: E402

NUM_CPUS = 4
PLACE = os.environ.get("COMPAT_PLACE", "here")
_nodes: Any = None
_FAILED = pytest.StashKey[bool]()
_shared: tuple[LeakCheck, Snapshot] | None = None
"""Of the shared cluster: what was there before it."""


def _take_noded_for_ray(do: bool) -> None:
    """Also in what is started from here; but not in other tests of this session."""
    if ON_RAY:
        return
    from noded.compat.environment import PATH

    if do:
        os.environ["PYTHONPATH"] = job_env["PYTHONPATH"] = _inside
        sys.path.insert(1, PATH)
        return
    job_env.pop("PYTHONPATH", None)
    os.environ.pop("PYTHONPATH", None)
    if _outside is not None:
        os.environ["PYTHONPATH"] = _outside
    sys.path[:] = [entry for entry in sys.path if entry != PATH]


_take_noded_for_ray(False)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    _take_noded_for_ray(True)


@pytest.hookimpl(wrapper=True, trylast=True)  # last, so that output is captured still: the leak check sees that
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Any:
    try:
        return (yield)
    finally:
        _take_noded_for_ray(False)
        if nextitem is None or not nextitem.path.is_relative_to(HERE):
            _shut_down()


# They count nodes, or bind something to the driver's own, which has no CPUs with COMPAT_PLACE=elsewhere.
OF_ONE_NODE = {
    "test_a_task_may_be_bound_to_a_node",
    "test_cluster_resources",
    "test_nodes",
    "test_the_context_of_a_task",
    "test_table_of_one_group",
    "test_node_affinity_to_this_node",
    "test_node_affinity_of_an_actor",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if PLACE == "elsewhere":
        for item in items:
            if item.name in OF_ONE_NODE:
                item.add_marker(pytest.mark.skip(reason="is about a cluster of one node"))
    if not ON_RAY:
        return
    for item in items:
        marker = item.get_closest_marker("improves")
        if marker is not None:
            item.add_marker(pytest.mark.skip(reason=f"noded does better: {marker.args[0]}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    item.stash[_FAILED] = item.stash.get(_FAILED, False) or report.failed
    return report


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> None:
    """A private cluster with 4 CPUs and the namespace "compat", shared with the tests before and after."""
    global _shared
    if not ray.is_initialized():
        if not ON_RAY:
            leak_check = request.getfixturevalue("leak_check")
            _shared = leak_check, leak_check.take()
        if PLACE != "here":
            _start_nodes()
            return
        ray.init(
            "local",
            num_cpus=NUM_CPUS,
            resources={"widget": 2},
            object_store_memory=256 << 20,
            namespace="compat",
            include_dashboard=False,
            log_to_driver=False,
        )


def _start_nodes() -> None:
    global _nodes
    from harness.members import Members

    sizes = ("--object-store-memory", str(256 << 20))
    widgets = ("--resources", '{"widget": 2}')
    if PLACE == "elsewhere":
        _nodes = Members(*sizes, num_cpus=0).__enter__()
        _nodes.add(*widgets, num_cpus=NUM_CPUS)
        address = _nodes.address
    else:
        _nodes = Members(*sizes, *widgets, num_cpus=NUM_CPUS).__enter__()
        address = f"noded://{_nodes.address}"
        os.environ["NODED_RUN_DIR"] += "-of-a-host-without-nodes"
    ray.init(address, namespace="compat", log_to_driver=False)


@pytest.fixture
def alone() -> Iterator[None]:
    """No cluster at first; what the test starts is ended after it."""
    _shut_down()
    yield
    ray.shutdown()


@pytest.fixture
def gates(tmp_path: Path) -> GateMaker:
    return lambda name: Gate(tmp_path / name)


@pytest.fixture
def gate(gates: GateMaker) -> Gate:
    return gates("gate")


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "notes")


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """On noded: no process, descriptor or segment; on the shared cluster no resource, actor or object in use."""
    if ON_RAY:
        yield
        return
    if "cluster" in request.fixturenames:
        request.getfixturevalue("cluster")
        at_first = _in_use()
        yield
        kept = request.node.get_closest_marker("may_leak") or request.node.stash.get(_FAILED, False)
        if not kept:  # a failure holds the refs in its frames
            wait_for(
                lambda: not ray.is_initialized() or _less(_in_use(), at_first),
                lambda: f"the test left on the cluster: {_in_use()}, before it: {at_first}",
            )
        return
    if "alone" in request.fixturenames:
        request.getfixturevalue("alone")
    leak_check = request.getfixturevalue("leak_check")
    before = leak_check.take()
    yield
    ray.shutdown() if "alone" in request.fixturenames else None
    _fail_if_left(leak_check, before, "the test")


def _shut_down() -> None:
    global _shared, _nodes
    ray.shutdown()
    if _nodes is not None:
        nodes, _nodes = _nodes, None
        os.environ["NODED_RUN_DIR"] = os.environ["NODED_RUN_DIR"].removesuffix("-of-a-host-without-nodes")
        nodes.__exit__(None, None, None)
    if _shared is not None:
        (leak_check, before), _shared = _shared, None
        _fail_if_left(leak_check, before, "the shared cluster")


def _fail_if_left(leak_check: LeakCheck, before: Snapshot, who: str) -> None:
    left = leak_check.left_since(before)
    if left:
        leak_check.end_all(before)
        pytest.fail(f"{who} left behind:\n  " + "\n  ".join(left), pytrace=False)


def _in_use() -> dict[str, float]:
    from noded.client.runtime import current

    gc.collect()
    runtime = current()
    assert runtime is not None
    found = runtime.ask("status")
    counted = {"actors": found["actors"], "demands": found["demands"], "ids in the store": found["store"]["ids"]}
    return {**found["resources"]["used"], **counted}


def _less(now: dict[str, float], before: dict[str, float]) -> bool:
    return all(amount <= before.get(name, 0) for name, amount in now.items())


def _write_program(directory: Path, source: str) -> list[str]:
    path = directory / "program.py"
    path.write_text(("" if ON_RAY else "import noded.compat.ray\n") + textwrap.dedent(source))
    return [sys.executable, str(path)]


@pytest.fixture
def run_program(tmp_path: Path) -> Callable[..., Any]:
    """`run_program(source, *args, **environment)`: what a script did that `import ray`s, by subprocess.run."""

    def run(source: str, *args: str, **environment: str) -> Any:
        return subprocess.run(
            [*_write_program(tmp_path, source), *args],
            cwd=tmp_path,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
        )

    return run


@pytest.fixture
def start_program(tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    """`start_program(source)`: a Popen with pipes for stdin and for stdout and stderr together; ended with the test."""
    with ExitStack() as stack:

        def start(source: str) -> Any:
            program = stack.enter_context(
                subprocess.Popen(
                    _write_program(tmp_path, source),
                    cwd=tmp_path,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
            stack.callback(program.kill)
            return program

        yield start
