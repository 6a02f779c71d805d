"""Random programs of tasks, actors, refs, waits, streams and cancels come out as a sequential model says.

Hypothesis makes the programs and shortens those that fail. TEST_SEED repeats a run's programs (not its timing).
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.leaks import LeakCheck
from harness.programs import STEPS, World, settle
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import noded
from noded.client.runtime import current

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("TEST_SEED") or random.randrange(1 << 30))
CLUSTERS: dict[str, dict[str, Any]] = {
    "one CPU": {"num_cpus": 1},
    "small store": {"num_cpus": 2, "object_store_memory": 48 << 20},
    "four CPUs": {"num_cpus": 4, "object_store_memory": 256 << 20},
}
OFTEN = ["add", "call", "gated", "open", "stream", "take", "put", "actor", "get"]
"""What the others need to have something to do."""
programs = st.lists(
    st.tuples(st.sampled_from(STEPS + OFTEN), st.integers(0, 9999), st.integers(0, 9999), st.booleans()),
    min_size=8,
    max_size=45,
)


def status() -> dict[str, Any]:
    runtime = current()
    assert runtime is not None
    found: dict[str, Any] = runtime.ask("status")
    return found


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """The cluster outlives the tests; see ``cluster``."""


@pytest.fixture(scope="module", params=list(CLUSTERS))
def cluster(request: pytest.FixtureRequest, leak_check: LeakCheck) -> Iterator[str]:
    print(f"TEST_SEED={SEED}")
    before = leak_check.take()
    with noded.init("local", log_to_driver=False, **CLUSTERS[request.param]):
        yield request.param
    left = leak_check.left_since(before)
    if left:
        leak_check.end_all(before)
        pytest.fail("the cluster left behind:\n  " + "\n  ".join(left), pytrace=False)


def run(directory: Path, examples: int) -> None:
    numbers = iter(range(1 << 30))

    @seed(SEED)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(programs)
    def program(steps: list[Any]) -> None:
        place = directory / str(next(numbers))
        place.mkdir()
        World(place).run(steps)
        settle(status)

    print(f"TEST_SEED={SEED}")
    program()


def test_programs(cluster: str, tmp_path: Path) -> None:
    run(tmp_path, 18)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_programs_many(cluster: str, tmp_path: Path) -> None:
    run(tmp_path, 1500)
