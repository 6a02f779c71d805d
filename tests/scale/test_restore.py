"""How long a head takes to read a big state: figures, no limits."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from component.kill_points import make_head
from harness.redis import Server, redis_storage

from noded import ids
from noded.head import actors, placement_groups
from noded.head.group_records import Stored as StoredGroup
from noded.head.nodes import NodeTable, StoredNode
from noded.head.storage import Op, Put, Storage
from noded.head.storage.sqlite import SqliteStorage
from noded.resources import UNIT
from noded.wire import messages as m

COUNT = 100_000
MAKER = ids.new_prefix(1)


def actor(seq: int) -> Op:
    spec = m.ActorSpec(ids.actor_id(MAKER, seq), "A", b"", 0, {}, {"CPU": UNIT}, {"CPU": UNIT}, job="j", name=f"a{seq}")
    stored = actors.Stored(1, spec, b"x" * 200, 0, "w" * 16, node=1 + seq % 1000)
    return Put(actors.TABLE, spec.id.hex(), msgspec.msgpack.encode(stored))


def group(seq: int) -> Op:
    spec = m.GroupSpec(ids.group_id(MAKER, seq), [{"CPU": UNIT}] * 2, "PACK", job="j", name=f"g{seq}")
    stored = StoredGroup(2, spec, True, [1 + seq % 1000] * 2)
    return Put(placement_groups.TABLE, spec.id.hex(), msgspec.msgpack.encode(stored))


def node(seq: int) -> Op:
    return NodeTable._put(StoredNode(1, seq, f"n{seq}", f"{seq:032x}", seq > 1000, "it was stopped"))


def records(what: str) -> Iterator[Op]:
    makers: Sequence[Callable[[int], Op]] = {"actors": [actor], "groups": [group], "nodes": [node]}.get(
        what, [actor, group, node]
    )
    for seq in range(1, COUNT // len(makers) + 1):
        for make in makers:
            yield make(seq)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["actors", "groups", "nodes", "all"])
@pytest.mark.parametrize("backend", ["sqlite", "redis"])
async def test_restore(backend: str, what: str, tmp_path: Path, record_property: Callable[[str, Any], None]) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(Server(tmp_path / "redis", persistent=False)) if backend == "redis" else None

        def storage() -> Storage:
            return redis_storage(server, tmp_path) if server is not None else SqliteStorage(tmp_path / "head.db")

        first = storage()
        await first.open()
        everything = list(records(what))
        for at in range(0, len(everything), 2_000):
            await first.write(everything[at : at + 2_000])
        await first.close()
        second = storage()
        begun = time.perf_counter()
        await second.open()
        opened = time.perf_counter()
        head = make_head(second)
        await head.restore(1, "c")
        ended = time.perf_counter()
        found = len(head.actors.records) + len(head.groups.records) + len(head.nodes.records)
        assert found == len(everything)
        figures = {"open, s": round(opened - begun, 3), "restore, s": round(ended - opened, 3)}
        for name, seconds in figures.items():
            record_property(name, seconds)
        print(f"{backend}, {len(everything):,} {what}, python {platform.python_version()}: {figures}")
        await second.close()
