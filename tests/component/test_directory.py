"""What a node brings from others, when that does not go well, with a real store and nobody at the other end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from noded import ids
from noded.node.directory import Directory
from noded.node.ledger import Ledger
from noded.node.object_store import ObjectStore
from noded.node.session import Client
from noded.node.spill_files import SpillFiles
from noded.node.spilling import Spilling
from noded.node.transfer_pull import PullFailed
from noded.shm import arena as shm
from noded.wire import cluster_messages as c
from noded.wire import messages as m

NODE, HOME, SOURCE = 7, 8, 9
READER = NODE.to_bytes(ids.NODE_SIZE, "big") + b"read"
OBJECT = ids.object_id(HOME.to_bytes(ids.NODE_SIZE, "big") + b"made", 1, 0)
SIZE = 300_000


class Peers:
    """``asked`` counts how often the home was asked where the object is."""

    attached = True
    seq = 0

    def __init__(self) -> None:
        self.asked = 0
        self.asked_again = asyncio.Event()

    def need(self, number: int) -> Peers:
        return self

    def next_seq(self, number: int) -> int:
        self.seq += 1
        return self.seq

    def send(self, number: int, message: Any) -> None:
        if isinstance(message, c.WantObjects):
            assert (number, message.ids) == (HOME, [OBJECT])
            self.asked += 1
            if self.asked == 2:
                self.asked_again.set()


class View:
    def __init__(self) -> None:
        self.entries: dict[int, Any] = {}

    def address(self, number: int) -> str:
        return f"node-{number}"


class Puller:
    async def pull(self, *arguments: Any) -> None:
        raise PullFailed(["the source has forgotten it"])


@pytest.mark.parametrize("end", ["it is dropped", "its reader dies"])
async def test_what_nobody_needs_any_more_is_not_looked_for_for_ever(end: str) -> None:
    """Its home has forgotten it as well, so nobody will ever say where it is."""
    ledger, arena = Ledger.create(incarnation=bytes(16)), shm.Arena(shm.create(1 << 20), 1 << 20)
    clients = {READER: Client(READER, "worker", 1, 1)}
    store, peers = ObjectStore(arena, ledger, clients, lambda id_: None, NODE), Peers()
    store.spilling = store.space.relief = Spilling(
        store, store.space, SpillFiles([], "none", None), clients, lambda name, fd: None
    )
    store.elsewhere = directory = Directory(store, peers, View(), clients, Puller())  # type: ignore[arg-type]
    reader = clients[READER]
    try:
        store.on_refs(reader, m.Refs(1, [(OBJECT, 1)]))
        store.on_subscribe(reader, m.Subscribe([OBJECT]))
        directory.flush()
        directory.on_found(c.Found(OBJECT, SIZE, [SOURCE]), b"")
        await asyncio.wait_for(peers.asked_again.wait(), 10)
        if end == "it is dropped":
            store.on_refs(reader, m.Refs(2, [], [(OBJECT, 1)]))
        else:
            store.client_died(clients.pop(READER))
        await asyncio.wait_for(asyncio.gather(*directory._tasks), 10)

        assert not store.space.used_bytes() and not store.entries
    finally:
        await directory.stop()
        arena.close(unmap=True)
        ledger.close()
