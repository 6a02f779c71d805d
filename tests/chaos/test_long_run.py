"""Mixed load on a cluster of four hosts while everything breaks, for twenty minutes: see harness/chaos.

    NODED_CHAOS_SECONDS=120 NODED_CHAOS_SEED=7 .venv/bin/pytest -m slow tests/chaos/test_long_run.py

    NODED_CHAOS_SEED      repeats a run's choices (not its timing)
    NODED_CHAOS_SECONDS   how long faults come
    NODED_CHAOS_SCHEDULE  a file `schedule` that a failed run has left, perhaps made shorter by hand
    NODED_CHAOS_KINDS     a pattern: only faults of these kinds, as "worker-.*|visit.*"
    NODED_CHAOS_SPARED    nodes that do not crash as wholes, as "head,n1": those of the drivers that stay
    NODED_CHAOS_LOG       the daemons' --log-level
    NODED_CHAOS_STORAGE   sqlite, or redis: a redis-server on the head's host, to which things happen as well

Each run adds a line to test-results/chaos.jsonl; scripts/chaos_page.py makes docs/chaos.md of them.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from harness import netns
from harness.chaos.run import Settings, run
from harness.cluster import REPOSITORY

RESULTS = REPOSITORY / "test-results" / "chaos.jsonl"


pytestmark = pytest.mark.skipif(bool(netns.available()), reason=netns.available() or "hosts work here")


@pytest.fixture
def settings(outer_environment: dict[str, str]) -> Settings:
    asked = {name.removeprefix("NODED_CHAOS_"): value for name, value in outer_environment.items() if value}
    return Settings(
        seed=int(asked.get("SEED") or random.randrange(1 << 30)),
        seconds=float(asked.get("SECONDS", 1200)),
        storage=asked.get("STORAGE", "sqlite"),
        faults=Path(asked["SCHEDULE"]) if "SCHEDULE" in asked else None,
        kinds=asked.get("KINDS", ""),
        spared=tuple(asked["SPARED"].split(",")) if "SPARED" in asked else (),
        flags=("--log-level", asked["LOG"]) if "LOG" in asked else (),
    )


@pytest.mark.slow
@pytest.mark.timeout(0)  # the run has its own limits, which depend on what was asked for
def test_long_run(settings: Settings) -> None:
    print(f"NODED_CHAOS_SEED={settings.seed}")
    assert settings.storage in ("sqlite", "redis")
    outcome = run(settings)
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(outcome.line()) + "\n")
    assert not outcome.violations, outcome.story
