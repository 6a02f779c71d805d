"""A private cluster shared by a module's tests, and what has to be so again after each of them."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.leaks import LeakCheck
from harness.wait import wait_for

import noded
from noded.client.runtime import current

_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    item.stash[_FAILED] = item.stash.get(_FAILED, False) or report.failed
    return report


def status() -> dict[str, Any]:
    """The daemon's own view, as `noded status` shows it."""
    runtime = current()
    assert runtime is not None
    found: dict[str, Any] = runtime.ask("status")
    return found


@pytest.fixture(scope="module")
def node_status() -> Callable[[], dict[str, Any]]:
    return status


@pytest.fixture
def run_program(tmp_path: Path) -> Callable[..., str]:
    """`run_program(source, **environment)` runs it in tmp_path; its stdout, and stderr too with `errors=True`."""

    def run(source: str, *, errors: bool = False, **environment: str) -> Any:
        path = tmp_path / "program.py"
        path.write_text(textwrap.dedent(source))
        done = subprocess.run(
            [sys.executable, str(path)],
            cwd=tmp_path,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"the program ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return (done.stdout, done.stderr) if errors else done.stdout

    return run


@pytest.fixture(scope="module")
def cluster(leak_check: LeakCheck) -> Iterator[noded.ClientContext]:
    """A private cluster with 2 CPUs, one of the module's tests after the other."""
    before = leak_check.take()
    with noded.init("local", num_cpus=2, object_store_memory=256 << 20) as context:
        yield context
    left = leak_check.left_since(before)
    if left:
        leak_check.end_all(before)
        pytest.fail("the module's cluster left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest, leak_check: LeakCheck) -> Iterator[None]:
    """Processes as everywhere; on the shared cluster, whose workers stay: its resources, actors and objects."""
    if "cluster" in request.fixturenames:
        at_first = _in_use()
        yield
        if not request.node.stash.get(_FAILED, False):  # a failure holds the refs in its frames
            wait_for(lambda: _less(_in_use(), at_first), lambda: f"the test left on the cluster: {_in_use()}")
        return
    before = leak_check.take()
    yield
    left = leak_check.left_since(before)
    if left:
        leak_check.end_all(before)
        pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)


def _in_use() -> dict[str, float]:
    gc.collect()
    found = status()
    counted = {"actors": found["actors"], "demands": found["demands"], "ids in the store": found["store"]["ids"]}
    return {**found["resources"]["used"], **counted}


def _less(now: dict[str, float], before: dict[str, float]) -> bool:
    return all(amount <= before.get(name, 0) for name, amount in now.items())
