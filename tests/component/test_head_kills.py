"""A head that is killed at any of its writes has, when it starts again, the state of before or of after it."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from component.kill_points import PHASES, TABLES, Tables, make_head, storage_at
from harness.redis import Server


@pytest.mark.parametrize("backend", ["sqlite", "redis"])
def test_killed_at_every_write(backend: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        url = ""
        if backend == "redis":
            url = stack.enter_context(Server(tmp_path / "redis", persistent=False)).url
        done = subprocess.run(
            [sys.executable, "-m", "component.kill_points", str(tmp_path / "lives"), *([url] if url else [])],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        writes = int(done.stdout)
        assert writes >= 15, f"{writes} writes: the life of the tables is too short"
        touched: set[str] = set()
        for at in range(1, writes + 1):
            for phase in PHASES:
                place = tmp_path / "lives" / f"{at}-{phase}"
                before, after = pickle.loads((place / "expected").read_bytes())
                touched |= {name for name in TABLES if before[name] != after[name]}
                found = asyncio.run(look(place, url))
                allowed = {"before": [before], "during": [before, after], "after": [after]}[phase]
                assert found in allowed, f"write {at}, killed {phase} it: {found} is none of {allowed}"
        assert touched == set(TABLES)


async def look(place: Path, url: str) -> Tables:
    """What is in the storage; the head's tables can read it."""
    storage = storage_at(place, url)
    await storage.open()
    found = {name: await storage.load(name) for name in TABLES}
    head = make_head(storage)
    await head.restore(0, "another")
    dead = [record for record in head.actors.records.values() if record.state == "dead"]
    assert len(dead) == len(found["actor_deaths"])
    assert len(head.actors.records) - len(dead) == len(found["actors"])
    assert len(head.groups.records) == len(found["placement_groups"])
    assert head.jobs.known() == set(found["jobs"])
    assert head.cluster_id == (found["cluster"]["id"].decode() if found["cluster"] else "another")
    await storage.close()
    return found
