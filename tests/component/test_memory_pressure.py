"""What a node with too little memory begins, over its real leases: one thing at a time, until there is room.

And what it says of something that waits, where that is no matter of memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import pytest

from noded import ids
from noded.node.capacity import Capacity
from noded.node.leases import ActorLease, Demand, Lease, Leases
from noded.node.ledger import Ledger
from noded.node.session import Client
from noded.policy import reasons
from noded.resources import UNIT
from noded.wire import messages as m

LIMIT, THRESHOLD = 1000, 900


class Session:
    def send(self, message: Any, payload: bytes | memoryview = b"") -> None:
        return

    def close(self) -> None:
        return


class Pool:
    """Of workers that are asked for and are never there."""

    stopping = False

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def assign(self, assignee: Any, job: str, env: str = "") -> None:
        self.asked.append(assignee)

    def unassign(self, assignee: Any) -> None:
        self.asked.remove(assignee)


class Alone:
    alone = True

    def chooses(self, where: m.Place) -> bool:
        return False

    def route(self, demands: Iterable[Demand], now: float) -> None:
        return

    def demand_changed(self, client: Client, cls: int, count: int) -> None:
        return


class Node:
    def __init__(self) -> None:
        self.ledger = Ledger.create(incarnation=bytes(16))
        capacity = Capacity({"CPU": 8 * UNIT}, [], self.ledger.bundles)
        self.leases = Leases(capacity, 1, lambda wid: wid, lambda place: "")
        self.pool = Pool()
        self.leases.pool = self.pool  # type: ignore[assignment]
        self.leases.router = Alone()  # type: ignore[assignment]

    async def turn(self) -> int:
        """How many have a worker made for them, when all that can begin has."""
        for _ in range(20):
            await asyncio.sleep(0)
        return len(self.pool.asked)

    def uses(self, amount: int) -> None:
        if self.leases.room.seen(amount, LIMIT, THRESHOLD, asyncio.get_running_loop().time()):
            self.leases.kick()

    def demand(self, count: int = 1) -> Client:
        client = Client(ids.new_prefix(1), "driver", 1, 1, "job", session=Session())
        self.leases.on_class(client, m.ClassDef(1, {"CPU": UNIT}))
        self.leases.on_demand(client, m.Demand(1, count))
        return client

    def actor(self) -> ActorLease:
        nothing: Callable[..., None] = lambda *_: None  # noqa: E731
        actor = ActorLease(ids.new_prefix(1), "job", {}, {"CPU": UNIT}, "A", nothing, nothing)
        self.leases.request_actor(actor)
        return actor

    def end(self, lease: Lease) -> None:
        self.pool.asked.remove(lease)
        self.leases.on_lease_done(lease.client, lease.id)


def run(body: Callable[[Node], Coroutine[Any, Any, None]]) -> None:
    async def on_a_node() -> None:
        node = Node()
        try:
            await body(node)
            if node.leases._timer is not None:
                node.leases._timer.cancel()
        finally:
            node.ledger.close()

    asyncio.run(asyncio.wait_for(on_a_node(), 20))


def test_one_thing_at_a_time() -> None:
    async def body(node: Node) -> None:
        node.uses(950)
        client = node.demand(5)
        assert await node.turn() == 1, "where nothing runs one begins"
        told = node.leases.explain(client.prefix, 1)
        assert told["kind"] == "memory_pressure" and "too little memory" in told["reason"]

        node.end(node.pool.asked[0])
        assert await node.turn() == 1
        node.pool.asked[0].blocked = True  # it waits for what is to come
        node.leases.kick()
        assert await node.turn() == 2

        node.uses(899)
        assert await node.turn() == 2, "that is just enough, and may not be for long"
        node.uses(500)
        assert await node.turn() == 4

    run(body)


def test_what_was_ended_waits_for_as_much_as_it_used() -> None:
    async def body(node: Node) -> None:
        node.uses(500)
        first = node.demand()
        assert await node.turn() == 1
        second = node.demand()
        node.leases.room.ended((second.prefix, 1), 450, asyncio.get_running_loop().time())
        assert await node.turn() == 1
        assert "ended for want of memory" in node.leases.explain(second.prefix, 1)["reason"]
        node.demand()
        assert await node.turn() == 2, "others need not wait"

        node.uses(400)
        assert await node.turn() == 3
        assert {lease.client.prefix for lease in node.pool.asked} > {first.prefix, second.prefix}

    run(body)


def test_an_actor_waits_for_actors_and_a_task_does_not() -> None:
    async def body(node: Node) -> None:
        node.uses(950)
        node.actor()
        assert await node.turn() == 1
        node.actor()
        assert await node.turn() == 1
        node.demand(2)
        assert await node.turn() == 2
        node.uses(500)
        assert await node.turn() == 4

    run(body)


@pytest.mark.parametrize(("kind", "answer"), [("driver", reasons.OWNER_AWAY), ("guest", reasons.NODE_AWAY)])
def test_whose_maker_is_not_connected_waits_for_that_and_not_for_a_limit(kind: str, answer: str) -> None:
    async def body(node: Node) -> None:
        client = node.demand(20)
        client.kind = kind
        assert await node.turn() == 8
        assert node.leases.explain(client.prefix, 1)["kind"] == reasons.RESOURCES_BUSY
        client.session = None
        told = node.leases.explain(client.prefix, 1)
        assert told["kind"] == answer and "not connected" in told["reason"], told

    run(body)
