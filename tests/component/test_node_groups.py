"""A node's placement groups as a head asks for them, over the real orders, leases, capacity and ledger.

The workers and the other nodes are not there: a worker is ready when the test says so, and ends when it says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import pytest

from noded import ids
from noded.node.actor_host import NodeActorHost
from noded.node.capacity import Capacity
from noded.node.leases import Demand, Leases
from noded.node.ledger import Ledger
from noded.node.orders import NodeOrders
from noded.node.session import Client
from noded.node.workers import Worker, WorkerRecord
from noded.resources import UNIT
from noded.wire import cluster_messages as c
from noded.wire import messages as m

NODE = 7
MAKER = ids.new_prefix(1)
GROUP = ids.group_id(MAKER, 1)


def cpus(count: float) -> dict[str, int]:
    return {"CPU": round(count * UNIT)}


class Session:
    """What a client is told."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def send(self, message: Any, payload: bytes | memoryview = b"") -> None:
        self.said.append(message)

    def close(self) -> None:
        return


class Pool:
    """Of workers that are asked for and killed, and nothing follows by itself."""

    stopping = False

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.killed: list[Worker] = []

    def assign(self, assignee: Any, job: str, env: str = "") -> None:
        self.asked.append(assignee)

    def unassign(self, assignee: Any) -> None:
        self.asked = [one for one in self.asked if one is not assignee]

    def kill(self, worker: Worker, reason: str, kind: str = "") -> None:
        self.killed.append(worker)

    def save(self, worker: Worker) -> None:
        return


class Router:
    """Of a node among others."""

    alone = False

    def chooses(self, where: m.Place) -> bool:
        return False

    def route(self, demands: Iterable[Demand], now: float) -> None:
        return

    def demand_changed(self, client: Client, cls: int, count: int) -> None:
        return

    def send_back(self, demand: Demand) -> None:
        raise AssertionError("nothing here is another node's")


class Head:
    """What the node tells it."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []

    def group_reserved(self, id_: bytes, attempt: int, ok: bool, reason: str) -> None:
        self.said.append(("reserved" if ok else "refused", attempt))

    def group_released(self, id_: bytes, attempt: int) -> None:
        self.said.append(("released", attempt))

    def actor_started(self, id_: bytes, instance: int, worker: str, pid: int) -> None:
        self.said.append(("started", instance))

    def actor_never(self, id_: bytes, instance: int, reason: str, kind: str) -> None:
        self.said.append(("never", instance, kind))

    def actor_exited(self, id_: bytes, instance: int, death: m.Death | None) -> None:
        self.said.append(("exited", instance))

    def actor_hosted(self, actor: c.HostedActor) -> None:
        self.said.append(("hosted", actor.instance))


class Node:
    def __init__(self, size: float = 4) -> None:
        self.total = cpus(size)
        self.ledger = Ledger.create(incarnation=bytes(16))
        self.capacity = Capacity(dict(self.total), [], self.ledger.bundles)
        self.leases = Leases(self.capacity, 1, lambda wid: wid, lambda place: "")
        self.pool = self.leases.pool = Pool()
        self.leases.router = Router()
        self.head = Head()
        self.host = NodeActorHost(self.leases, self.pool, self.head, lambda job, config: None)
        self.orders = NodeOrders(
            self.leases, self.pool, self.host, None, {}, self.head, worker_path=lambda wid: wid,
            on_group_at=lambda message: None, on_all_nodes=lambda: None, claim_actors=lambda made: None,
            request_stop=lambda reason: None, questions={},
        )  # fmt: skip
        self.made = 0

    # ------------------------------------------------------------ the head

    def reserve(self, attempt: int, bundles: dict[int, float], *, wait: bool = False, group: bytes = GROUP) -> None:
        amounts = {index: cpus(size) for index, size in bundles.items()}
        self.orders.reserve_group(c.ReserveGroup(m.GroupSpec(group, [], job="job"), attempt, amounts, wait))

    def release(self, attempt: int, *, removed: bool = False, group: bytes = GROUP) -> None:
        self.orders.release_group(c.ReleaseGroup(group, attempt, removed))

    def said(self) -> list[tuple[Any, ...]]:
        """Since the last time."""
        said, self.head.said = self.head.said, []
        return said

    def held(self, group: bytes = GROUP) -> tuple[int, list[int]] | None:
        """(attempt, bundles) as it registers with them; the next daemon would do it with the same."""
        found = {held.id: held for held in self.orders.held_groups()}
        kept = Capacity(dict(self.total), [], self.ledger.bundles).kept_groups()
        assert kept.keys() == found.keys()
        assert all(sorted(kept[id_].bundles) == held.bundles for id_, held in found.items())
        return (found[group].attempt, found[group].bundles) if group in found else None

    @property
    def free(self) -> float:
        return self.capacity.available["CPU"] / UNIT

    def assert_as_new(self) -> None:
        assert self.capacity.available == self.capacity.total == self.total
        assert not self.capacity.groups and not self.leases.groups and not len(self.ledger.bundles)
        assert not self.pool.asked and not self.leases.actors

    # ------------------------------------------------------------ what runs

    async def turn(self) -> None:
        """What has room is served."""
        for _ in range(5):
            await asyncio.sleep(0)

    async def place(self, size: float = 1, instance: int = 1, group: bytes = GROUP) -> None:
        """An actor that looks for a worker."""
        self.made += 1
        where = m.Place(group=group) if group else m.ANYWHERE
        spec = m.ActorSpec(ids.actor_id(MAKER, self.made), "A", b"", 0, {}, cpus(size), cpus(size), where=where)
        self.orders.host_actor(c.HostActor(spec, instance, False, m.JobConfig(), True), b"")
        await self.turn()

    def ready(self) -> Worker:
        """A worker is there for whoever has asked first."""
        self.made += 1
        prefix = ids.new_prefix(NODE)
        client = Client(prefix, "worker", 1, 1, session=Session())
        worker = Worker(f"{prefix.hex()}00", WorkerRecord(self.made), client, self.pool.asked.pop(0))
        self.leases.on_ready(worker)
        return worker

    async def run(self, size: float = 1, group: bytes = GROUP) -> Worker:
        """An actor."""
        await self.place(size, group=group)
        worker = self.ready()
        assert self.said() == [("started", 1)]
        return worker

    async def demand(self, size: float = 1) -> Session:
        """A client wants to run a task in the group."""
        session = Session()
        client = Client(ids.new_prefix(NODE), "worker", 1, 1, "job", session=session)
        self.leases.on_class(client, m.ClassDef(1, cpus(size), where=m.Place(group=GROUP)))
        self.leases.on_demand(client, m.Demand(1, 1))
        await self.turn()
        return session

    async def end(self, worker: Worker) -> None:
        self.host.worker_exited(worker, m.Death(worker.id))
        await self.turn()


def run(body: Callable[[Node], Coroutine[Any, Any, None]], size: float = 4) -> None:
    async def on_a_node() -> None:
        node = Node(size)
        try:
            await body(node)
            await node.turn()
            if node.leases._timer is not None:
                node.leases._timer.cancel()
        finally:
            node.ledger.close()

    asyncio.run(asyncio.wait_for(on_a_node(), 20))


# ---------------------------------------------------------------- waiting


@pytest.mark.parametrize("second", [4, 1], ids=["the head as before", "a head that counts anew"])
def test_one_that_queues_twice_opens_once(second: int) -> None:
    async def body(node: Node) -> None:
        tenant = await node.run(4, group=b"")
        node.reserve(3, {0: 1, 1: 2}, wait=True)
        node.reserve(second, {0: 1, 1: 2}, wait=True)
        await node.turn()
        assert node.said() == [] and node.held() is None
        await node.end(tenant)
        assert node.said() == [("exited", 1), ("reserved", second)]
        assert node.held() == (second, [0, 1]) and node.free == 1
        node.release(second)
        assert node.said() == [("released", second)]
        node.assert_as_new()

    run(body)


def test_of_one_that_queues_for_less_than_before_only_that_is_taken() -> None:
    async def body(node: Node) -> None:
        tenant = await node.run(4, group=b"")
        node.reserve(1, {0: 1, 1: 2}, wait=True)
        node.reserve(2, {1: 2}, wait=True)
        await node.end(tenant)
        assert node.said() == [("exited", 1), ("reserved", 2)] and node.held() == (2, [1]) and node.free == 2
        node.release(2, removed=True)
        node.assert_as_new()

    run(body)


@pytest.mark.parametrize("removed", [False, True])
def test_one_that_queues_is_given_up_by_a_release(removed: bool) -> None:
    async def body(node: Node) -> None:
        tenant = await node.run(4, group=b"")
        node.reserve(1, {0: 1}, wait=True)
        node.reserve(2, {0: 1}, wait=True)
        node.release(2, removed=removed)
        assert node.said() == [("released", 2)]
        await node.end(tenant)
        assert node.said() == [("exited", 1)]
        node.assert_as_new()

    run(body)


def test_one_that_may_not_wait_is_refused_at_once_and_leaves_nothing_in_the_queue() -> None:
    async def body(node: Node) -> None:
        tenant = await node.run(4, group=b"")
        node.reserve(1, {0: 1}, wait=True)
        node.reserve(2, {0: 1})
        assert node.said() == [("refused", 2)]
        await node.end(tenant)
        assert node.said() == [("exited", 1)]
        node.assert_as_new()

    run(body)


def test_what_queues_is_forgotten_before_the_node_registers_and_what_it_has_is_not() -> None:
    """The head asks again, with attempts that another one has numbered."""

    async def body(node: Node) -> None:
        node.reserve(1, {0: 1})
        node.said()
        tenant = await node.run(3, group=b"")
        node.reserve(8, {1: 2}, wait=True)
        node.orders.forget_waiting()
        assert node.held() == (8, [0])
        await node.end(tenant)
        assert node.said() == [("exited", 1)] and node.held() == (8, [0])
        node.reserve(1, {0: 1, 1: 2}, wait=True)
        await node.turn()
        assert node.said() == [("reserved", 1)] and node.held() == (1, [0, 1])
        node.release(1)
        node.assert_as_new()

    run(body)


# ---------------------------------------------------------------- while what was there ends


@pytest.mark.parametrize("wait", [False, True])
def test_while_what_ran_in_it_ends_it_is_refused_and_afterwards_not(wait: bool) -> None:
    async def body(node: Node) -> None:
        node.reserve(1, {0: 2})
        assert node.said() == [("reserved", 1)]
        worker = await node.run()
        node.release(1)
        assert node.pool.killed == [worker] and node.said() == []
        node.reserve(2, {0: 2}, wait=wait)
        assert node.said() == [("refused", 2)] and node.free == 2
        await node.end(worker)
        assert node.said() == [("released", 1), ("exited", 1)] and node.held() is None
        node.assert_as_new()
        node.reserve(3, {0: 2}, wait=wait)
        await node.turn()
        assert node.said() == [("reserved", 3)] and node.held() == (3, [0])
        assert await node.run() not in node.pool.killed and node.free == 2

    run(body)


def test_nothing_starts_in_a_group_that_ends() -> None:
    async def body(node: Node) -> None:
        node.reserve(1, {0: 3})
        node.said()
        worker = await node.run()
        node.release(1)
        await node.place()
        assert not node.pool.asked
        await node.end(worker)
        assert not node.pool.asked and node.held() is None
        node.reserve(2, {0: 3})
        await asyncio.sleep(0.06)
        assert len(node.pool.asked) == 1, "it waits for its group"

    run(body)


# ---------------------------------------------------------------- attempts that cross


def test_the_release_of_an_old_attempt_does_not_touch_what_was_reserved_since() -> None:
    async def body(node: Node) -> None:
        node.reserve(1, {0: 1})
        node.release(1)
        node.reserve(2, {0: 1})
        assert node.said() == [("reserved", 1), ("released", 1), ("reserved", 2)]
        worker = await node.run()
        node.release(1)
        assert node.said() == [] and node.held() == (2, [0]) and worker not in node.pool.killed
        node.release(2)
        await node.end(worker)
        assert node.said() == [("released", 2), ("exited", 1)]
        node.assert_as_new()

    run(body)


def test_the_release_of_an_old_attempt_leaves_one_that_queues() -> None:
    async def body(node: Node) -> None:
        tenant = await node.run(4, group=b"")
        node.reserve(1, {0: 1}, wait=True)
        node.reserve(2, {0: 1}, wait=True)
        node.release(1)
        await node.end(tenant)
        assert node.said() == [("exited", 1), ("reserved", 2)] and node.held() == (2, [0])

    run(body)


def test_what_is_removed_goes_whatever_attempt_is_named() -> None:
    async def body(node: Node) -> None:
        node.reserve(5, {0: 1})
        node.release(1, removed=True)
        assert node.said() == [("reserved", 5), ("released", 1)]
        node.assert_as_new()

    run(body)


def test_a_later_attempt_releases_what_was_reserved_before_it() -> None:
    """Bundles of it that were placed elsewhere since had attempts of their own."""

    async def body(node: Node) -> None:
        node.reserve(1, {0: 1})
        node.release(4)
        assert node.said() == [("reserved", 1), ("released", 4)]
        node.assert_as_new()

    run(body)


def test_one_that_was_reserved_already_is_told_again_and_has_its_new_number() -> None:
    async def body(node: Node) -> None:
        node.reserve(5, {0: 1, 1: 1})
        node.reserve(1, {0: 1, 1: 1})  # a head that knows nothing of the one before
        assert node.said() == [("reserved", 5), ("reserved", 1)] and node.held() == (1, [0, 1]) and node.free == 2
        node.release(1)
        assert node.said() == [("released", 1)]
        node.assert_as_new()

    run(body)


# ---------------------------------------------------------------- further bundles


def test_further_bundles_are_added_to_those_it_has() -> None:
    async def body(node: Node) -> None:
        node.reserve(1, {0: 1})
        node.said()
        worker = await node.run()
        node.reserve(2, {0: 1, 2: 2})
        assert node.said() == [("reserved", 2)] and node.held() == (2, [0, 2]) and node.free == 1
        node.reserve(3, {1: 1})
        assert node.said() == [("reserved", 3)] and node.held() == (3, [0, 1, 2]) and node.free == 0
        assert not node.pool.killed, "what runs in it goes on"
        second, third = await node.run(2), await node.run(1)
        await node.end(worker)
        assert node.free == 0, "the bundles stay the group's"
        node.release(3, removed=True)
        assert set(node.pool.killed) == {second, third}
        for one in (second, third):
            await node.end(one)
        assert node.said()[-2:] == [("released", 3), ("exited", 1)]
        node.assert_as_new()

    run(body)


def test_further_bundles_without_room_are_refused_and_cost_nothing() -> None:
    async def body(node: Node) -> None:
        node.reserve(1, {0: 3})
        node.reserve(2, {0: 3, 1: 2})
        assert node.said() == [("reserved", 1), ("refused", 2)] and node.free == 1
        assert [held.bundles for held in node.orders.held_groups()] == [[0]]
        node.release(2)
        assert node.said() == [("released", 2)]
        node.assert_as_new()

    run(body)


def test_further_bundles_that_wait_are_added_once() -> None:
    async def body(node: Node) -> None:
        node.reserve(1, {0: 1})
        node.said()
        tenant = await node.run(3, group=b"")
        for attempt in (2, 3):
            node.reserve(attempt, {0: 1, 1: 2}, wait=True)
        await node.turn()
        assert node.said() == []
        await node.end(tenant)
        assert node.said() == [("exited", 1), ("reserved", 3)] and node.held() == (3, [0, 1]) and node.free == 1
        node.release(3)
        node.assert_as_new()

    run(body)


# ---------------------------------------------------------------- what waits in a group that moves


def test_a_group_that_comes_back_after_its_removal_has_room_for_what_waits() -> None:
    """A head that has restarted wants no bundles that it knows nothing of yet, and then its client asks again."""

    async def body(node: Node) -> None:
        node.reserve(1, {0: 1})
        node.release(1, removed=True)
        node.reserve(1, {0: 1})
        node.said()
        first = await node.run()
        waiting = await node.demand()
        await asyncio.sleep(0.06)
        assert waiting.said == [], "its group is not removed"
        await node.end(first)
        assert len(node.pool.asked) == 1

    run(body)


@pytest.mark.parametrize("removed", [False, True])
def test_what_is_about_to_start_in_a_group_that_goes_is_refused_only_if_the_group_is_gone(removed: bool) -> None:
    async def body(node: Node) -> None:
        node.reserve(1, {0: 2})
        await node.place()
        client = await node.demand()
        assert len(node.pool.asked) == 2
        node.release(1, removed=removed)
        said = node.said()
        assert ("released", 1) in said and node.held() is None and not node.pool.asked
        if removed:
            assert ("never", 1, "removed") in said
            assert [(type(x), x.kind) for x in client.said] == [(m.Unschedulable, "removed")]
        else:
            assert ("never", 1, "full") in said, "it is to be tried on the node where its bundle is then"
            assert client.said == []
            node.reserve(2, {0: 2})
            await asyncio.sleep(0.06)
            assert len(node.pool.asked) == 1, "the task waits for its group"

    run(body)
