"""Who holds what, of a store with very many objects: the daemon's loop serves others meanwhile."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from types import SimpleNamespace
from typing import Any

import pytest

from noded import ids
from noded.node.entry import Entry
from noded.node.holdings import Holdings
from noded.node.session import Client
from noded.policy.holdings import MOST_ROWS, merge, wanted_of
from noded.wire import messages as m

COUNT = 100_000
MOST_SECONDS = 0.05


class Store:
    """As much of the object store as is read."""

    node = 1
    recovering: tuple[()] = ()

    def __init__(self, prefix: bytes):
        self.entries: dict[bytes, Entry] = {}
        outer = Entry(ids.object_id(prefix, COUNT, 0))
        for seq in range(COUNT):
            entry = Entry(ids.object_id(prefix, seq, 0))
            entry.offset, entry.size, entry.containers = 1, seq, 1
            entry.holders.add(prefix)
            outer.nested.append(entry.id)
            self.entries[entry.id] = entry
        self.entries[outer.id] = outer

    def figures(self) -> dict[str, Any]:
        return {"used": 1, "size": 2, "on_disk": 3}


async def steps(asked: Any) -> tuple[Any, float]:
    """What comes of it, and the longest that the loop was busy without a break, by this thread's CPU."""
    longest, last, over = 0.0, time.thread_time(), False

    async def tick() -> None:
        nonlocal longest, last
        while not over:
            now = time.thread_time()
            longest, last = max(longest, now - last), now
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    told = await asked
    over = True
    await ticking
    return told, longest


@pytest.mark.parametrize("question", [{"limit": 100}, {"limit": MOST_ROWS, "sort_by": "age"}, {"group_by": "site"}])
def test_very_many_objects(question: dict[str, Any], request: pytest.FixtureRequest) -> None:
    prefix = ids.new_prefix(1)
    client = Client(prefix, "driver", 7, 0, version=m.MEMORY_SINCE)
    client.session = SimpleNamespace()  # type: ignore[assignment]
    batches = []

    async def ask(of: Client, wanted: list[bytes], seconds: float, *, how: bool) -> dict[str, Any]:
        batches.append(len(wanted))
        return {"holds": [], "sites": ["a.py:1 in f"], "of": [0] * len(wanted)}

    pool, host = SimpleNamespace(by_prefix={}), SimpleNamespace(hosted={})
    holdings: Any = Holdings(Store(prefix), {prefix: client}, pool, host, ask)  # type: ignore[arg-type]
    wanted = wanted_of(question)

    async def whole() -> dict[str, Any]:
        told = {"node": 1, "name": "head", **await holdings.report(**wanted)}
        await asyncio.sleep(0)
        json.dumps(told)
        await asyncio.sleep(0)
        return merge([told], **wanted)

    # A full collection walks all that other tests have left in this process; of a daemon it is not.
    gc.collect()
    gc.freeze()
    request.addfinalizer(gc.unfreeze)
    began = time.thread_time()
    told, longest = asyncio.run(steps(whole()))
    assert told["rows_in_all"] == 2 * COUNT and len(told["rows"]) == wanted["limit"]
    assert told["rows"][0]["id"] and max(batches) <= 2000
    if question.get("group_by") == "site":
        assert told["groups"] == [{"site": "a.py:1 in f", "bytes": sum(range(COUNT)), "objects": COUNT}]
    print(f"longest {longest * 1000:.1f} ms, in all {time.thread_time() - began:.2f} s")
    assert longest < MOST_SECONDS, f"the loop was busy for {longest:.3f} s"
