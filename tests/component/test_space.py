"""The space of a daemon's arena, with a real arena and ledger, when clients die or ask at an unlucky moment."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from noded import ids
from noded.node import space as module
from noded.node.ledger import Ledger
from noded.node.session import Client
from noded.node.space import Space
from noded.shm import arena as shm
from noded.wire import messages as m

NODE = 7
ONE, TWO = (NODE.to_bytes(ids.NODE_SIZE, "big") + name for name in (b"one.", b"two."))
BLOCKS = 4


class Session:
    def __init__(self) -> None:
        self.sent: asyncio.Queue[Any] = asyncio.Queue()

    def send(self, message: Any, payload: bytes | memoryview = b"") -> None:
        self.sent.put_nowait(message)

    def close(self) -> None: ...


class Node:
    def __init__(self) -> None:
        self.ledger = Ledger.create(incarnation=bytes(16))
        self.arena = shm.Arena(shm.create(BLOCKS * shm.BLOCK), BLOCKS * shm.BLOCK)
        self.space = Space(self.arena, self.ledger, NODE, lambda size: False, lambda: "")
        self.said = {prefix: Session() for prefix in (ONE, TWO)}
        self.clients = {p: Client(p, "worker", 1, 1, session=self.said[p]) for p in (ONE, TWO)}

    def want(self, prefix: bytes, blocks: int) -> None:
        self.space.on_want(self.clients[prefix], m.RegionWant(1, blocks * shm.BLOCK, True))

    async def granted(self, prefix: bytes) -> m.Region:
        region = await asyncio.wait_for(self.said[prefix].sent.get(), 10)
        assert isinstance(region, m.Region)
        return region

    def close(self) -> None:
        self.arena.close(unmap=True)
        self.ledger.close()


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node()
    yield node
    node.close()


class Gate:
    """In place of a call of the kernel, in the thread where that is made: waits to be opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        call = getattr(shm, name)

        def wait(*arguments: Any) -> None:
            self.reached.set()
            assert self.open.wait(10)
            call(*arguments)

        monkeypatch.setattr(module.shm, name, wait)


async def test_a_region_given_up_while_its_pages_are_taken_is_not_touched_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client dies meanwhile, and another one writes there."""
    gate = Gate(monkeypatch, "reserve")
    node.want(ONE, BLOCKS)
    await asyncio.to_thread(gate.reached.wait, 10)
    for region in node.space.of(ONE):
        node.space.retire(region)
    node.want(TWO, BLOCKS)
    offset = (await node.granted(TWO)).offset
    id_ = ids.object_id(TWO, 1, 0)
    node.arena.begin(offset, id_, 8, offset + shm.BLOCK)
    gate.open.set()
    await asyncio.gather(*node.space._tasks)

    header = node.arena.header(offset)
    assert header is not None and header.id == id_
    assert node.said[ONE].sent.empty()


async def test_what_was_granted_while_pages_are_given_back_stays(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.want(ONE, 1)
    node.want(ONE, 1)
    first, second = sorted([await node.granted(ONE), await node.granted(ONE)], key=lambda region: region.offset)
    node.space.on_done(node.clients[ONE], m.RegionDone(first.offset))  # two free extents: before and behind the second
    assert second.offset
    node.space._cold.ranges.clear()
    node.space._last_change = 0.0
    gate = Gate(monkeypatch, "punch")
    trimming = asyncio.create_task(node.space.trim())
    await asyncio.to_thread(gate.reached.wait, 10)
    node.want(TWO, BLOCKS - 2)
    gate.open.set()
    await trimming

    region = await node.granted(TWO)
    assert node.space.used_bytes() == second.size + region.size
