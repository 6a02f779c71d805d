"""The object store of a daemon that reads its clients in an unlucky order, with a real arena and ledger.

What a client says is handed over by hand, one message at a time, as if its socket had been read just then.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from noded import ids
from noded.node.ledger import Ledger
from noded.node.object_store import ObjectStore
from noded.node.session import Client
from noded.node.spill_files import SpillFiles
from noded.node.spilling import Spilling
from noded.shm import arena as shm
from noded.wire import messages as m

NODE = 7
OWNER, ONE, TWO = (NODE.to_bytes(ids.NODE_SIZE, "big") + name for name in (b"ownr", b"one.", b"two."))
OBJECT = ids.object_id(OWNER, 1, 0)


class Nobody:
    """The other nodes, of which there are none: nothing here may be their business."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"another node was asked: {name}")


class Node:
    def __init__(self, told: bool = True) -> None:
        self.ledger = Ledger.create(incarnation=bytes(16))
        self.arena = shm.Arena(shm.create(1 << 20), 1 << 20)
        self.clients = {p: Client(p, "worker", 1, 1, told=told) for p in (OWNER, ONE, TWO)}
        self.store = ObjectStore(self.arena, self.ledger, self.clients, lambda id_: None, NODE)
        self.store.elsewhere = Nobody()
        self.store.spilling = self.store.space.relief = Spilling(
            self.store, self.store.space, SpillFiles([], "none", None), self.clients, lambda name, fd: None
        )
        if not told:
            self.store.recovering = set(self.clients)
        self.at = 0

    def region(self, prefix: bytes) -> None:
        """As if it had been granted before."""
        from noded.node.space import Region

        self.store.space._allocator.reserve(0, 1)
        self.store.space._add(Region(0, 1, prefix, False))

    def write(self, id_: bytes) -> int:
        offset, end = self.at, shm.BLOCK
        self.arena.begin(offset, id_, 8, end)
        self.arena.copy_in(offset + shm.HEADER_SIZE, bytes(8))
        self.arena.seal(offset)
        self.at += shm.footprint(8)
        return offset

    def refs(self, prefix: bytes, message: m.Refs) -> None:
        client = self.clients[prefix]
        self.store.on_refs(client, message)
        client.seq = message.seq
        self.store.progressed(client)

    def sealed(self, prefix: bytes, seq: int, id_: bytes, offset: int) -> None:
        client = self.clients[prefix]
        self.store.on_sealed(client, m.Sealed(seq, [(id_, offset)]))
        client.seq = seq
        self.store.progressed(client)

    def told(self, prefix: bytes, message: m.Told, snapshot: set[bytes]) -> None:
        client = self.clients[prefix]
        client.told = True
        client.seq = max(client.seq, message.seq)
        self.store.client_told(client, snapshot, message)
        self.store.progressed(client)

    def close(self) -> None:
        self.arena.close(unmap=True)
        self.ledger.close()


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node()
    yield node
    node.close()


@pytest.mark.parametrize("order", list(itertools.permutations([OWNER, ONE, TWO])))
def test_what_was_handed_to_two_is_kept_whoever_is_read_first(node: Node, order: tuple[bytes, ...]) -> None:
    node.region(OWNER)
    node.sealed(OWNER, 1, OBJECT, node.write(OBJECT))
    said = {
        OWNER: m.Refs(2, after_all=[(OBJECT, 0, [(ONE, 1), (TWO, 1)])]),
        ONE: m.Refs(1, [(OBJECT, 1)]),
        TWO: m.Refs(1, [(OBJECT, 1)]),
    }
    for prefix in order:
        node.refs(prefix, said[prefix])
        assert OBJECT in node.store.entries, f"freed when {prefix!r} was read"
    node.refs(ONE, m.Refs(2, releases=[(OBJECT, 1)]))
    assert OBJECT in node.store.entries
    node.refs(TWO, m.Refs(2, releases=[(OBJECT, 1)]))
    assert OBJECT not in node.store.entries


def test_a_receiver_that_has_died_is_not_waited_for(node: Node) -> None:
    node.region(OWNER)
    node.sealed(OWNER, 1, OBJECT, node.write(OBJECT))
    node.refs(OWNER, m.Refs(2, after_all=[(OBJECT, 0, [(ONE, 1), (TWO, 1)])]))
    node.store.client_died(node.clients.pop(ONE))
    assert OBJECT in node.store.entries
    node.store.client_died(node.clients.pop(TWO))
    assert OBJECT not in node.store.entries


@pytest.mark.parametrize("order", list(itertools.permutations([OWNER, ONE])))
def test_a_result_that_came_and_went_while_the_daemon_was_away_is_freed(order: tuple[bytes, ...]) -> None:
    """Its maker wrote it and its owner dropped it before either has told."""
    node = Node(told=False)
    try:
        del node.clients[TWO]
        node.store.recovering.discard(TWO)
        node.region(ONE)
        node.write(OBJECT)
        for prefix in order:
            if prefix == OWNER:
                node.refs(OWNER, m.Refs(1, after=[(OBJECT, 0, ONE, 5)]))
                node.told(OWNER, m.Told(1, [], [], []), set())
            else:
                node.told(ONE, m.Told(5, [], [], [0]), set())
        assert not node.store.entries and not node.clients[OWNER].held
    finally:
        node.close()


@pytest.mark.parametrize("arrived", [0, 2])
def test_of_a_stream_that_goes_on_only_what_has_not_arrived_is_kept(arrived: int) -> None:
    node = Node(told=False)
    try:
        node.region(ONE)
        for index in range(4):
            node.write(ids.object_id(OWNER, 7, index))
        for prefix in (ONE, TWO):
            node.told(prefix, m.Told(5, [], [], [0]), set())
        node.told(OWNER, m.Told(1, [], [7], [], streams=[(7, arrived)]), set())
        kept = sorted(ids.index_of(id_) for id_ in node.store.entries)
        assert kept == list(range(arrived, 4))
        node.store.on_stream_over(node.clients[OWNER], m.StreamOver(7, 3))
        assert sorted(ids.index_of(id_) for id_ in node.store.entries) == list(range(arrived, 3))
    finally:
        node.close()


def test_an_object_of_its_own_that_a_client_dropped_before_it_told_is_freed() -> None:
    node = Node(told=False)
    try:
        node.region(OWNER)
        node.write(OBJECT)
        for prefix in (ONE, TWO, OWNER):
            node.told(prefix, m.Told(0, [], [], [0]), set())
        assert not node.store.entries
    finally:
        node.close()


@pytest.mark.parametrize("dead_at_first", [True, False])
def test_a_value_is_lost_with_the_node_that_had_it_even_if_that_had_told_nobody(
    node: Node, dead_at_first: bool
) -> None:
    """Its maker, a worker there, has told the caller where it lies; the daemon there never came to tell its home."""

    class Others:
        def is_dead(self, node: int) -> bool:
            return dead_at_first

    class Session:
        def __init__(self) -> None:
            self.sent: list[Any] = []

        def send(self, message: Any, payload: bytes = b"") -> None:
            self.sent.append(message)

    node.store.elsewhere = Others()
    caller, session = node.clients[OWNER], Session()
    caller.session = session
    node.store.on_subscribe(caller, m.Subscribe([OBJECT], True, 9))
    if not dead_at_first:
        assert not session.sent
        node.store.node_died(9, "it was unplugged")
    (rebuild,) = session.sent
    assert isinstance(rebuild, m.Rebuild) and rebuild.ids == [OBJECT]
    node.store.on_gone(caller, m.Gone([OBJECT], f"{rebuild.reason}; it was put", True))
    lost = session.sent[-1]
    assert isinstance(lost, m.Lost) and lost.id == OBJECT and lost.kind == "lost" and "was put" in lost.reason
