"""Where placement groups go, over nodes that only count: on all nodes or none, whatever is refused, lost or late."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from component.fake_nodes import OWN, FakeNode, World, cpus

from noded import ids
from noded.head import group_placement
from noded.policy import labels
from noded.wire import cluster_messages as c
from noded.wire import messages as m


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), 60))


@pytest.fixture(autouse=True)
def haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_placement, "_LOOK_SECONDS", 0.005)
    monkeypatch.setattr(group_placement, "_AGED", 0.02)
    monkeypatch.setattr(group_placement, "_QUEUE_SECONDS", 0.1)


@dataclass(eq=False)
class Wish:
    """A group, as the table of groups sees it."""

    world: World
    id: bytes
    bundles: list[dict[str, int]]
    strategy: str = "PACK"
    labels: Sequence[str] = ()
    nodes: list[int] = field(default_factory=list)
    """Empty while it is not created."""
    events: list[str] = field(default_factory=list)
    reason: str = ""
    removed: bool = False

    def _spec(self) -> m.GroupSpec:
        return m.GroupSpec(self.id, self.bundles, self.strategy, job="job", labels=list(self.labels))

    def _answers(self) -> tuple[Any, Any, Any]:
        return self._created, self._infeasible, self._lost

    def reserve(self) -> Wish:
        self.world.groups.reserve_group(self._spec(), *self._answers())
        return self

    def restore(self, nodes: list[int]) -> Wish:
        self.nodes = nodes
        self.world.groups.restore_group(self._spec(), nodes, *self._answers())
        return self

    def _created(self, nodes: list[int]) -> None:
        assert not self.nodes, "it is created twice"
        assert not self.removed, "it comes back after its removal"
        assert len(nodes) == len(self.bundles)
        self.nodes = nodes
        self.events.append("created")
        self.check()

    def check(self) -> None:
        """It is where it is said to be, as far as that can be known."""
        for index, number in enumerate(self.nodes):
            assert number, f"bundle {index} is nowhere"
            fake = self.world.fakes[number]
            known = fake.record.api is fake and fake.record.id == fake.id
            if known and not any(isinstance(m, c.ReleaseGroup) and m.id == self.id for m in fake.inbox):
                assert fake.groups[self.id][index] == self.bundles[index]

    def _infeasible(self, reason: str) -> None:
        self.reason = reason
        self.events.append("infeasible")

    def _lost(self) -> None:
        assert self.nodes, "what was not created is lost"
        self.nodes = []
        self.events.append("lost")

    def remove(self) -> Wish:
        self.nodes = []
        self.events.append("removing")
        self.world.groups.release_group(self.id, self._released)
        return self

    def _released(self) -> None:
        assert not self.removed
        self.removed = True
        self.events.append("removed")


def wish(world: World, seq: int, *sizes: float, strategy: str = "PACK", **more: Any) -> Wish:
    return Wish(world, ids.group_id(ids.node_prefix(OWN), seq), [cpus(size) for size in sizes], strategy, **more)


async def cluster(*sizes: float) -> World:
    """The head's own node with nothing, and nodes 2, 3, … with so many CPUs each."""
    world = World()
    world.node(OWN, cpus(0, memory=1))
    await world.head()
    for number, size in enumerate(sizes, OWN + 1):
        await world.node(number, cpus(size)).connect()
    return world


async def until(condition: Callable[[], Any], world: World, reason: str) -> None:
    for _ in range(2000):
        if condition():
            return
        await world.settle()
        await asyncio.sleep(0.001)
    raise AssertionError(reason)


def released(fake: FakeNode) -> list[c.ReleaseGroup]:
    return [message for message in fake.got if isinstance(message, c.ReleaseGroup)]


def reserved(fake: FakeNode) -> list[c.ReserveGroup]:
    return [message for message in fake.got if isinstance(message, c.ReserveGroup)]


def assert_nothing_is_left(world: World) -> None:
    for fake in world.fakes.values():
        assert not fake.groups and not fake.queued_groups and not fake.closing, fake.number
    assert not world.groups.plans and not world.groups.waiting


# ---------------------------------------------------------------- all or nothing


def test_a_half_that_is_refused_gives_the_other_back_and_both_come_later() -> None:
    async def body() -> None:
        world = await cluster(2, 2)
        two, three = world.fakes[2], world.fakes[3]
        three.occupy(cpus(2))  # the head does not know yet
        group = wish(world, 1, 2, 2).reserve()
        while two.step() or three.step():
            pass
        assert not group.nodes and not two.groups and not three.groups
        assert [message.removed for message in released(two)] == [False]
        await world.settle()
        assert not group.nodes and not two.groups and not three.groups, "half of it is kept"
        three.occupy({})
        await until(lambda: group.nodes, world, "it is not created")
        assert sorted(group.nodes) == [2, 3] and group.events == ["created"]
        group.remove()
        await world.settle()
        assert group.removed
        assert_nothing_is_left(world)

    run(body)


def test_a_late_answer_of_an_attempt_that_has_failed_is_given_back() -> None:
    async def body() -> None:
        world = await cluster(2, 2)
        two, three = world.fakes[2], world.fakes[3]
        three.occupy(cpus(2))
        group = wish(world, 1, 2, 2).reserve()
        assert two.step() and three.step() and three.step()  # node 2's yes is under way while node 3's no arrives
        assert two.groups and two.outbox and not group.nodes
        await world.settle()
        assert not two.groups and not group.nodes
        group.remove()
        await world.settle()
        assert group.removed
        assert_nothing_is_left(world)

    run(body)


def test_a_late_answer_does_not_cost_what_was_reserved_since() -> None:
    async def body() -> None:
        world = await cluster(2, 2)
        two, three = world.fakes[2], world.fakes[3]
        three.occupy(cpus(2))
        group = wish(world, 1, 2, 2).reserve()
        assert two.step() and two.outbox and three.step() and three.step()
        three.occupy({})
        three.report()
        assert three.step()
        two._deliver(c.Report(1, available=cpus(2)))  # of the time before
        assert [type(message) for message in two.inbox] == [c.ReleaseGroup, c.ReserveGroup]
        two._deliver(two.outbox.popleft())  # the yes to the first attempt
        assert [(type(message), message.attempt) for message in two.inbox] == [
            (c.ReleaseGroup, 1), (c.ReserveGroup, 2), (c.ReleaseGroup, 1),
        ]  # fmt: skip
        await until(lambda: group.nodes, world, "it is not created")
        await world.settle()
        group.check()
        assert two.groups and three.groups and group.events == ["created"]

    run(body)


def test_what_is_removed_while_it_is_being_reserved_leaves_nothing() -> None:
    async def body() -> None:
        world = await cluster(2, 2)
        for steps in range(6):
            group = wish(world, 10 + steps, 2, 2).reserve()
            for _ in range(steps):
                world.fakes[2 + _ % 2].step()
            group.remove()
            await world.settle()
            assert group.removed and not group.nodes
            assert_nothing_is_left(world)

    run(body)


def test_release_waits_for_all_nodes() -> None:
    async def body() -> None:
        world = await cluster(2, 2)
        two, three = world.fakes[2], world.fakes[3]
        group = wish(world, 1, 2, 2).reserve()
        await world.settle()
        three.slow = True
        group.remove()
        await world.settle()
        assert not two.groups and three.groups and not group.removed
        assert world.groups.nodes_of(group.id) == [], "what runs in it is to end"
        three.finish_groups()
        await world.settle()
        assert group.removed
        assert_nothing_is_left(world)

    run(body)


@pytest.mark.parametrize("comes_back", [True, False])
def test_release_waits_for_a_node_that_is_away(comes_back: bool) -> None:
    async def body() -> None:
        world = await cluster(2, 2)
        group = wish(world, 1, 2, 2).reserve()
        await world.settle()
        three = world.fakes[3]
        three.disconnect()
        group.remove()
        await world.settle()
        assert not group.removed and three.groups
        if comes_back:
            await three.connect()
        else:
            await three.lost()
            await three.connect()
        await world.settle()
        assert group.removed
        assert_nothing_is_left(world)

    run(body)


# ---------------------------------------------------------------- nodes that die


def test_of_a_group_that_loses_a_node_only_that_part_moves() -> None:
    async def body() -> None:
        world = await cluster(1, 1, 1, 1)
        group = wish(world, 1, 1, 1, 1, strategy="STRICT_SPREAD").reserve()
        await world.settle()
        before = group.nodes
        assert len(set(before)) == 3
        gone = before[1]
        (spare,) = {2, 3, 4, 5} - set(before)
        await world.fakes[gone].lost()
        assert world.groups.nodes_of(group.id) is None
        await until(lambda: group.nodes, world, "it is not placed anew")
        assert group.events == ["created", "lost", "created"]
        assert group.nodes == [spare if number == gone else number for number in before]
        for number in set(before) - {gone}:
            assert not released(world.fakes[number]), "what has not died was given back"
        group.remove()
        await world.settle()
        assert group.removed

    run(body)


def test_a_group_that_must_be_on_one_node_moves_whole() -> None:
    async def body() -> None:
        world = await cluster(3, 3)
        group = wish(world, 1, 1, 2, strategy="STRICT_PACK").reserve()
        await world.settle()
        (first,) = set(group.nodes)
        await world.fakes[first].lost()
        await until(lambda: group.nodes, world, "it is not placed anew")
        assert group.nodes == [5 - first] * 2
        assert world.fakes[5 - first].groups[group.id].keys() == {0, 1}

    run(body)


def test_a_node_that_dies_before_it_has_answered_costs_the_attempt_alone() -> None:
    async def body() -> None:
        world = await cluster(2, 2, 2)
        group = wish(world, 1, 2, 2).reserve()
        first, second = (fake.number for fake in world.fakes.values() if fake.inbox)
        world.fakes[first].step()
        world.fakes[first].step()
        await world.fakes[second].lost()
        await until(lambda: group.nodes, world, "it is not placed anew")
        assert second not in group.nodes and group.events == ["created"]
        await world.fakes[second].connect()
        group.remove()
        await world.settle()
        assert_nothing_is_left(world)

    run(body)


def test_a_node_that_dies_while_the_rest_of_its_group_is_placed_anew() -> None:
    """Bundle 0 is lost with its node while bundle 1 is asked for elsewhere: that one's yes is not the whole group."""

    async def body() -> None:
        world = await cluster(1, 1, 1, 1)
        group = wish(world, 1, 1, 1, strategy="STRICT_SPREAD").reserve()
        await world.settle()
        first, second = group.nodes
        await world.fakes[second].lost()
        await until(lambda: any(fake.inbox for fake in world.fakes.values()), world_without_steps(world), "not tried")
        await world.fakes[first].lost()
        await until(lambda: group.nodes, world, "it is not placed anew")
        assert not set(group.nodes) & {0, first, second}
        group.check()

    run(body)


def world_without_steps(world: World) -> Any:
    """Time passes, and no message arrives."""

    class Still:
        async def settle(self) -> None:
            return

    return Still()


# ---------------------------------------------------------------- nodes that register


def test_bundles_that_nobody_wants_are_given_back() -> None:
    async def body() -> None:
        world = await cluster(2, 2)
        group = wish(world, 1, 1, 1, strategy="STRICT_SPREAD").reserve()
        await world.settle()
        two, three = world.fakes[2], world.fakes[3]
        two.disconnect()
        stranger = ids.group_id(ids.node_prefix(9), 1)
        two.groups[stranger], two.attempts[stranger] = {0: cpus(1)}, 4
        await two.connect()
        await world.settle()
        assert two.groups.keys() == {group.id} and group.nodes and group.events == ["created"]
        assert [(message.id, message.removed) for message in released(two)] == [(stranger, True)]
        assert not released(three)

    run(body)


def test_what_a_node_does_not_have_any_more_is_placed_anew() -> None:
    async def body() -> None:
        world = await cluster(1, 1, 1)
        group = wish(world, 1, 1, 1, strategy="STRICT_SPREAD").reserve()
        await world.settle()
        kept, gone = group.nodes
        world.fakes[gone].disconnect()
        del world.fakes[gone].groups[group.id]
        world.fakes[gone].occupy(cpus(1))
        await world.fakes[gone].connect()
        await until(lambda: group.nodes, world, "it is not placed anew")
        assert group.events == ["created", "lost", "created"] and group.nodes[0] == kept != group.nodes[1] != gone
        assert not released(world.fakes[kept])

    run(body)


def test_a_node_that_has_some_of_its_bundles_only_has_lost_the_others() -> None:
    async def body() -> None:
        world = await cluster(2, 1)
        group = wish(world, 1, 1, 1, strategy="STRICT_PACK").reserve()
        await world.settle()
        assert group.nodes == [2, 2]
        world.fakes[2].disconnect()
        del world.fakes[2].groups[group.id][1]  # there was no room for it in the ledger
        await world.fakes[2].connect()
        await world.settle()
        assert "lost" in group.events
        await until(lambda: group.nodes, world, "it is not placed anew")
        group.check()

    run(body)


def test_a_connection_that_breaks_while_bundles_are_asked_for_costs_no_bundle() -> None:
    async def body() -> None:
        world = await cluster(2, 2)
        for steps in range(5):
            group = wish(world, 20 + steps, 2, 2).reserve()
            two = world.fakes[2]
            for _ in range(steps):
                two.step()
            two.disconnect()
            await world.settle()
            assert not group.nodes or steps >= 2
            await two.connect()
            await until(lambda group=group: group.nodes, world, "it is not created")
            group.remove()
            await world.settle()
            assert group.removed
            assert_nothing_is_left(world)

    run(body)


def test_a_connection_that_breaks_after_a_yes_costs_the_attempt() -> None:
    """The node keeps bundles that the head does not count as placed yet, and is told to give them back: they are not
    part of what the others say yes to.
    """

    async def body() -> None:
        world = await cluster(2, 2)
        group = wish(world, 1, 2, 2).reserve()
        two = world.fakes[2]
        assert two.step() and two.step() and world.fakes[3].inbox
        two.disconnect()
        await two.connect()
        await until(lambda: group.nodes, world, "it is not created")
        await world.settle()
        group.check()
        group.remove()
        await world.settle()
        assert_nothing_is_left(world)

    run(body)


# ---------------------------------------------------------------- waiting


def test_one_that_has_waited_long_queues_where_tasks_would_make_way() -> None:
    async def body() -> None:
        world = await cluster(2, 2)
        for number in (2, 3):
            world.fakes[number].occupy(cpus(2))
        await world.settle()
        groups = [wish(world, seq, 2, 2).reserve() for seq in (1, 2)]
        await until(lambda: world.fakes[2].queued_groups, world, "it does not queue")
        assert [len(fake.queued_groups) for fake in world.fakes.values()] == [0, 1, 1]
        assert {one.id for n in (2, 3) for one in world.fakes[n].queued_groups} == {groups[0].id}, "one at a time"
        for number in (2, 3):
            world.fakes[number].occupy({})
            await world.settle()
        assert groups[0].nodes and not groups[1].nodes
        groups[0].remove()
        await until(lambda: groups[1].nodes, world, "the other one does not get its turn")

    run(body)


def test_one_that_queues_in_vain_gives_back_what_it_got() -> None:
    async def body() -> None:
        world = await cluster(2, 2)
        for number in (2, 3):
            world.fakes[number].occupy(cpus(2))
        await world.settle()
        group = wish(world, 1, 2, 2).reserve()
        await until(lambda: world.fakes[3].queued_groups, world, "it does not queue")
        world.fakes[2].occupy({})
        await world.settle()
        assert world.fakes[2].groups, "it has half of what it wants, and waits for the rest"
        await until(lambda: released(world.fakes[2]), world, "it keeps its half for good")
        assert not released(world.fakes[2])[0].removed and not group.nodes
        world.fakes[3].occupy({})
        await until(lambda: group.nodes, world, "it is not created")

    run(body)


def test_one_that_fits_nowhere_waits_for_a_node_that_can_hold_it() -> None:
    async def body() -> None:
        world = await cluster(2)
        group = wish(world, 1, 3).reserve()
        assert group.events[0] == "infeasible" and "a node has at most 2" in group.reason
        assert world.groups.why(group.id) == ("infeasible", group.reason)
        await world.node(3, cpus(4)).connect()
        await until(lambda: group.nodes == [3], world, "it is not created")
        assert world.groups.why(group.id) is None

    run(body)


def test_labels_choose_the_nodes_of_bundles() -> None:
    async def body() -> None:
        world = await cluster()
        await world.node(2, cpus(4), zone="a").connect()
        await world.node(3, cpus(4), zone="b").connect()
        a, b, nowhere = (labels.encode(labels.parse_selector({"zone": zone})) for zone in "abc")
        group = wish(world, 1, 1, 1, 1, labels=[b, a, b]).reserve()
        await world.settle()
        assert group.nodes == [3, 2, 3]
        other = wish(world, 2, 1, 1, labels=[a, nowhere]).reserve()
        assert other.events == ["infeasible"] and "bundle 1" in other.reason and "zone in (c)" in other.reason
        broken = wish(world, 3, 1, labels=["{"]).reserve()
        assert "cannot be read" in broken.reason
        await world.node(4, cpus(1), zone="c").connect()
        await until(lambda: other.nodes, world, "it is not created")
        assert other.nodes == [2, 4]

    run(body)


def test_the_only_node_answers_what_it_can_never_hold() -> None:
    async def body() -> None:
        world = World()
        world.node(OWN, cpus(4), zone="a")
        await world.head()
        spread = wish(world, 1, 1, 1, strategy="STRICT_SPREAD").reserve()
        assert spread.events == ["infeasible"] and "there is one" in spread.reason
        other = wish(world, 2, 1, labels=[labels.encode(labels.parse_selector({"zone": "b"}))]).reserve()
        assert other.events == ["infeasible"] and "zone in (b)" in other.reason
        small = wish(world, 3, 1, 1).reserve()
        assert small.nodes == [OWN, OWN]
        await world.node(2, cpus(2), zone="b").connect()
        await until(lambda: spread.nodes and other.nodes, world, "they are not created")
        assert sorted(spread.nodes) == [OWN, 2] and other.nodes == [2]

    run(body)


def test_one_that_waits_at_the_only_node_goes_to_one_that_comes() -> None:
    async def body() -> None:
        world = World()
        world.node(OWN, cpus(2)).occupy(cpus(2))
        await world.head()
        group = wish(world, 1, 2).reserve()
        assert world.fakes[OWN].queued_groups
        await world.node(2, cpus(2)).connect()
        for _ in range(100):
            await world.settle()
            await asyncio.sleep(0.003)
        assert group.nodes == [2]

    run(body)


def test_one_that_the_own_node_refuses_at_once_goes_on_waiting() -> None:
    """As two halves of GPUs that the head takes for a whole."""

    async def body() -> None:
        world = World()
        own = world.node(OWN, cpus(2))
        await world.head()
        await world.node(2, cpus(1)).connect()
        own.refuses = lambda message: True
        group = wish(world, 1, 2).reserve()
        for busy in (1, 0):
            own.occupy(cpus(busy))
            await world.settle()
            world.kick()
        own.refuses = lambda message: False
        own.serve()
        await until(lambda: group.nodes, world, "it is forgotten")
        assert group.nodes == [OWN]

    run(body)


def test_what_is_left_of_a_group_stays_while_the_rest_finds_no_room() -> None:
    """Also while there is one node only, where it could wait, and when another comes that is too small."""

    async def body() -> None:
        world = World()
        own = world.node(OWN, cpus(4))
        await world.head()
        await world.node(2, cpus(2)).connect()
        own.occupy(cpus(2))
        await world.settle()
        group = wish(world, 1, 2, 2).reserve()
        await world.settle()
        assert sorted(group.nodes) == [OWN, 2]
        kept = group.nodes.index(OWN)
        await world.fakes[2].lost()
        await world.settle()
        await world.node(3, cpus(1)).connect()
        await world.settle()
        await world.fakes[3].lost()
        await world.settle()
        assert not own.queued_groups and not released(own)
        assert group.events == ["created", "lost"]
        await world.node(4, cpus(2)).connect()
        await until(lambda: group.nodes, world, "the rest is not placed")
        assert group.nodes[kept] == OWN and sorted(group.nodes) == [OWN, 4] and not released(own)
        group.check()

    run(body)


def test_one_that_fits_nowhere_keeps_nobody_from_queueing() -> None:
    async def body() -> None:
        world = await cluster(2, 2)
        for number in (2, 3):
            world.fakes[number].occupy(cpus(1))  # they never are free both at once unless somebody queues
        await world.settle()
        wish(world, 1, 50).reserve()
        group = wish(world, 2, 2, 2).reserve()
        for _ in range(100):
            await world.settle()
            await asyncio.sleep(0.003)
        assert any(message.wait and message.id == group.id for message in reserved(world.fakes[2]))

    run(body)


def test_many_that_fit_nowhere_keep_nobody_else_waiting() -> None:
    async def body() -> None:
        world = await cluster(2)
        world.fakes[2].occupy(cpus(2))
        await world.settle()
        for seq in range(40):
            wish(world, seq, 50).reserve()
        group = wish(world, 100, 1).reserve()
        world.fakes[2].occupy({})
        for _ in range(100):
            await world.settle()
            await asyncio.sleep(0.003)
        assert group.nodes == [2]

    run(body)


def test_one_that_a_node_refuses_though_it_seems_free_there_queues_in_the_end() -> None:
    """Its GPUs are free in pieces."""

    async def body() -> None:
        world = await cluster(2, 1)
        world.fakes[2].refuses = lambda message: not message.wait
        group = wish(world, 1, 2).reserve()
        await until(lambda: group.nodes, world, "it does not queue")
        assert [message.wait for message in reserved(world.fakes[2])][-2:] == [False, True]

    run(body)


# ---------------------------------------------------------------- head restarts


def test_a_head_that_restarts_finds_what_was_created_and_asks_for_the_rest() -> None:
    async def body() -> None:
        world = await cluster(2, 2)
        made = wish(world, 1, 1, 1, strategy="STRICT_SPREAD").reserve()
        await world.settle()
        half = wish(world, 2, 1, 1, strategy="STRICT_SPREAD").reserve()
        world.fakes[2].step()  # it has its half, and the head has not heard of it
        assert made.nodes and half.id in world.fakes[2].groups
        world.stop_head()
        again = wish(world, 1, 1, 1, strategy="STRICT_SPREAD")
        await world.head(restore=lambda: again.restore(made.nodes))
        await world.connect(2, 3)
        await world.settle()
        assert half.id not in world.fakes[2].groups, "nobody may want it"
        later = wish(world, 2, 1, 1, strategy="STRICT_SPREAD").reserve()
        await until(lambda: later.nodes, world, "it is not created")
        again.check()
        assert again.events == [] and len(world.fakes[2].groups) == len(world.fakes[3].groups) == 2
        for one in (again, later):
            one.remove()
        await world.settle()
        assert again.removed and later.removed
        assert_nothing_is_left(world)

    run(body)


def test_what_queues_for_the_head_before_does_not_meddle_with_what_the_next_one_asks_for() -> None:
    async def body() -> None:
        world = await cluster(2, 2)
        for number in (2, 3):
            world.fakes[number].occupy(cpus(2))
        wish(world, 1, 2, 2).reserve()  # refused at first: nobody has told that they are busy
        two = world.fakes[2]
        await until(lambda: two.queued_groups, world, "it does not queue")
        assert two.queued_groups[0].attempt > 1
        world.stop_head()
        await world.head()
        await world.connect(2, 3)
        again = wish(world, 1, 2, 2).reserve()
        for number in (2, 3):
            world.fakes[number]._deliver(c.Report(1, available=cpus(2)))
        assert [message.attempt for message in two.inbox] == [1]
        for number in (2, 3):
            world.fakes[number].occupy({})  # before it has come to what the new head asks for
        for _ in range(30):
            await world.settle()
            await asyncio.sleep(0.003)
        assert again.nodes
        again.check()
        again.remove()
        await world.settle()
        assert_nothing_is_left(world)

    run(body)


def test_a_node_that_died_while_the_head_was_away_costs_its_bundles_alone() -> None:
    async def body() -> None:
        world = await cluster(1, 1, 1)
        made = wish(world, 1, 1, 1, strategy="STRICT_SPREAD").reserve()
        await world.settle()
        kept, gone = made.nodes
        world.stop_head()
        again = wish(world, 1, 1, 1, strategy="STRICT_SPREAD")
        await world.head(restore=lambda: again.restore(made.nodes))
        await world.connect(*({2, 3, 4} - {gone}))
        await world.settle()
        assert again.events == [], "it may come back"
        world.fakes[gone].frozen = True
        await world.nodes.left(world.nodes.records[gone], "it did not come back")
        await until(lambda: again.events[-1:] == ["created"], world, "it is not placed anew")
        assert again.nodes[0] == kept and again.nodes[1] not in (kept, gone)

    run(body)


def test_a_head_that_ended_between_a_death_and_what_follows_from_it_does_that_later() -> None:
    async def body() -> None:
        world = await cluster(1, 1, 1)
        made = wish(world, 1, 1, 1, strategy="STRICT_SPREAD").reserve()
        await world.settle()
        gone = made.nodes[1]
        world.nodes._on_dead = lambda record: world.stop_head()
        await world.fakes[gone].lost()
        again = wish(world, 1, 1, 1, strategy="STRICT_SPREAD")
        await world.head(restore=lambda: again.restore(made.nodes))
        await world.connect(*({2, 3, 4} - {gone}))
        for _ in range(30):
            await world.settle()
            await asyncio.sleep(0.003)
        assert again.nodes and gone not in again.nodes

    run(body)


# ---------------------------------------------------------------- many at once


@pytest.mark.parametrize("seed", range(6))
def test_many_that_compete_all_get_their_turn_and_leave_nothing(seed: int) -> None:
    """Tasks come and go, connections break, nodes start over."""
    rng = random.Random(seed)

    async def body() -> None:
        world = await cluster(4, 4, 4, 4)
        world.fakes[OWN].total = cpus(2)
        strategies = ["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]
        groups = [
            wish(world, seq, *(rng.choice([1, 1, 2, 3]) for _ in range(rng.randint(1, 4))), strategy=strategy)
            for seq in range(100)
            if (strategy := rng.choice(strategies))
        ]
        for group in groups:
            if group.strategy == "STRICT_PACK":
                group.bundles = group.bundles[:1] if sum(b["CPU"] for b in group.bundles) > 40_000 else group.bundles
        todo = list(groups)
        seen: set[bytes] = set()
        pending: list[asyncio.Task[Any]] = []

        def end_some() -> None:
            for group in groups:
                if group.nodes:
                    seen.add(group.id)
                    if rng.random() < 0.3:
                        group.remove()

        def act() -> bool:
            what = rng.random()
            fake = world.fakes[rng.randint(1, 5)]
            if what < 0.5 and todo:
                todo.pop().reserve()
            elif what < 0.75:
                end_some()
            elif what < 0.85:
                fake.occupy(cpus(rng.randint(0, 2)))
            elif what < 0.9:
                fake.slow = not fake.slow
                if not fake.slow:
                    fake.finish_groups()
            elif what < 0.93 and fake.number != OWN and all(task.done() for task in pending):
                pending[:] = [asyncio.create_task(rng.choice([reconnect, FakeNode.crash])(fake))]
            return bool(todo)

        async def reconnect(fake: FakeNode) -> None:
            fake.disconnect()
            await asyncio.sleep(rng.random() / 50)
            await fake.connect()

        def at_rest() -> bool:
            if rng.random() < 0.1:
                end_some()
                for fake in world.fakes.values():
                    fake.slow = False
                    fake.finish_groups()
                    fake.occupy({})
            return all(group.removed for group in groups)

        await world.run(rng, act, at_rest, 40)
        await asyncio.gather(*pending)
        assert seen == {group.id for group in groups}, "some never got their turn"
        await world.settle()
        assert_nothing_is_left(world)
        for fake in world.fakes.values():
            assert fake.available == fake.total

    run(body)
