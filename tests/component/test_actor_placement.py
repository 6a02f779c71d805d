"""Where actors run, over nodes that only count: each once, whatever is refused, lost or late; never two at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from component.fake_nodes import OWN, FakeNode, World, cpus

from noded import ids
from noded.head import actor_placement
from noded.head.storage import Op
from noded.head.storage.memory import MemoryStorage
from noded.policy import labels
from noded.wire import cluster_messages as c
from noded.wire import messages as m

MAKER = ids.new_prefix(OWN)


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), 60))


@pytest.fixture(autouse=True)
def haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor_placement, "_LOOK_SECONDS", 0.005)
    monkeypatch.setattr(actor_placement, "_QUEUE_AFTER", 0.02)
    monkeypatch.setattr(actor_placement, "_GIVE_UP", 0.05)


class Disk(MemoryStorage):
    """Whose writes wait as long as it is ``stuck``."""

    def __init__(self, world: World):
        super().__init__(data=world.data)
        self.flowing = asyncio.Event()
        self.flowing.set()

    async def write(self, ops: Sequence[Op]) -> None:
        await self.flowing.wait()
        await super().write(ops)


async def cluster(*sizes: float) -> World:
    """The head's own node with nothing, and nodes 2, 3, … with so many CPUs each."""
    world = World()
    world.node(OWN, cpus(0, memory=1))
    await world.head(Disk(world))
    for number, size in enumerate(sizes, OWN + 1):
        await world.node(number, cpus(size)).connect()
    return world


def spec(seq: int, size: float = 1, *, maker: bytes = MAKER, **more: Any) -> m.ActorSpec:
    more.setdefault("job", "job")
    return m.ActorSpec(ids.actor_id(maker, seq), "A", b"", 0, {}, cpus(size), cpus(size), **more)


def create(world: World, wanted: m.ActorSpec, *, again: bool = False) -> bytes:
    world.actors.create(ids.prefix_of(wanted.id), wanted, b"class and arguments", again)
    return wanted.id


def at(world: World, id_: bytes) -> str:
    return world.actors.records[id_].state


def where(world: World, id_: bytes) -> int:
    """The only node where it runs; 0: nowhere."""
    assert not world.twins, f"it ran twice at once: {world.twins}"
    found = world.living(id_)
    return found[0][0] if found else 0


async def until(condition: Callable[[], Any], world: World, reason: str) -> None:
    for _ in range(1000):
        if condition():
            return
        await world.settle()
        await asyncio.sleep(0.001)
    raise AssertionError(reason)


async def up(world: World, *actors: bytes) -> None:
    """Until their constructors have returned."""

    def alive() -> bool:
        for fake in world.fakes.values():
            fake.construct()
        return all(at(world, id_) == "alive" for id_ in actors)

    await until(alive, world, "they do not start")


def stops(fake: FakeNode) -> list[c.StopActor]:
    return [message for message in fake.got if isinstance(message, c.StopActor)]


def hosts(fake: FakeNode) -> list[c.HostActor]:
    return [message for message in fake.got if isinstance(message, c.HostActor)]


# ---------------------------------------------------------------- choosing


def test_each_start_is_an_instance_and_runs_once() -> None:
    async def body() -> None:
        world = await cluster(2, 2)
        id_ = create(world, spec(1, max_restarts=-1))
        await up(world, id_)
        for instance in range(1, 5):
            node = where(world, id_)
            assert node and world.living(id_) == [(node, instance)] and world.actors.records[id_].instance == instance
            world.fakes[node].end_actor(id_)
            await world.settle()
            await up(world, id_)
        assert world.actors.records[id_].restarts == 4

    run(body)


def test_a_node_that_is_full_sends_it_elsewhere() -> None:
    async def body() -> None:
        world = await cluster(2, 2)
        world.fakes[2].occupy(cpus(2))
        world.fakes[3].occupy(cpus(2))
        actors = [create(world, spec(seq, 2)) for seq in (1, 2)]
        await world.settle(report=False)  # both were full, and the head did not know
        assert not any(where(world, id_) for id_ in actors)
        world.fakes[3].occupy({})
        await until(lambda: any(where(world, id_) for id_ in actors), world, "it is not placed")
        assert {where(world, id_) for id_ in actors} == {0, 3}
        world.fakes[2].occupy({})
        await up(world, *actors)
        assert {where(world, id_) for id_ in actors} == {2, 3}

    run(body)


def test_one_that_finds_no_room_waits_at_a_node_that_could_hold_it() -> None:
    async def body() -> None:
        world = await cluster(1, 2)
        for number in (2, 3):
            world.fakes[number].occupy(cpus(1))
        world.fakes[3].occupy(cpus(2))
        await world.settle()
        id_ = create(world, spec(1, 2))
        await until(lambda: world.fakes[3].actors, world, "it waits nowhere")
        assert hosts(world.fakes[3])[-1].wait and not hosts(world.fakes[2]) and at(world, id_) == "pending"
        world.fakes[3].occupy({})
        await up(world, id_)
        assert where(world, id_) == 3

    run(body)


def test_one_that_a_node_refuses_though_it_seems_free_there_waits_there_in_the_end() -> None:
    """Its GPUs are free in pieces: only who queues for them is given way."""

    async def body() -> None:
        world = await cluster(2, 1)
        world.fakes[2].refuses = lambda message: not message.wait
        id_ = create(world, spec(1, 2))
        for _ in range(100):
            await world.settle()
            await asyncio.sleep(0.001)
        assert where(world, id_) == 2

    run(body)


def test_what_fits_nowhere_is_refused_after_a_while_unless_a_node_comes() -> None:
    async def body() -> None:
        world = await cluster(2)
        first, second = create(world, spec(1, 3)), create(world, spec(2, 4))
        assert world.places.why(first) is not None
        await world.settle()
        assert at(world, first) == at(world, second) == "pending"
        await world.node(3, cpus(3)).connect()
        await up(world, first)
        await until(lambda: at(world, second) == "dead", world, "it waits for good")
        assert world.actors.records[second].kind == "never" and "asks 4" in world.actors.records[second].reason

    run(body)


def test_what_only_a_node_that_is_away_could_hold_waits() -> None:
    async def body() -> None:
        world = await cluster(2, 4)
        world.fakes[3].disconnect()
        id_ = create(world, spec(1, 4))
        await asyncio.sleep(0.08)
        await world.settle()
        assert at(world, id_) == "pending"
        await world.fakes[3].connect()
        await up(world, id_)
        assert where(world, id_) == 3

    run(body)


def test_labels_and_nodes_are_minded() -> None:
    async def body() -> None:
        world = await cluster(4)
        await world.node(3, cpus(4), zone="b").connect()
        in_b = m.Place(labels=labels.encode(labels.parse_selector({"zone": "b"})))
        actors = [create(world, spec(seq, where=in_b)) for seq in range(3)]
        pinned = create(world, spec(9, where=m.Place(node=world.fakes[2].id)))
        await up(world, *actors, pinned)
        assert {where(world, id_) for id_ in actors} == {3} and where(world, pinned) == 2

    run(body)


def test_what_waits_at_the_only_node_goes_to_one_that_comes() -> None:
    async def body() -> None:
        world = World()
        world.node(OWN, cpus(2))
        await world.head()
        actors = [create(world, spec(seq, 2)) for seq in range(2)]
        await world.settle()
        await world.node(2, cpus(2)).connect()
        for _ in range(60):
            await world.settle()
            await asyncio.sleep(0.003)
        assert {where(world, id_) for id_ in actors} == {OWN, 2}

    run(body)


# ---------------------------------------------------------------- groups


def test_an_actor_of_a_group_waits_for_it_and_runs_on_its_bundle() -> None:
    async def body() -> None:
        world = await cluster(1, 1, 1)
        group = ids.group_id(MAKER, 5)
        nodes: list[int] | None = None
        world.group_nodes = lambda id_: nodes
        actors = [create(world, spec(seq, where=m.Place(group=group, bundle=seq))) for seq in range(2)]
        anywhere = create(world, spec(7, where=m.Place(group=group)))
        beyond = create(world, spec(8, where=m.Place(group=group, bundle=2)))
        await world.settle()
        assert all(at(world, id_) == "pending" for id_ in (*actors, anywhere, beyond))
        assert world.places.why(anywhere) == ("group_pending", f"its placement group {group.hex()} is not created yet")
        nodes = [4, 2]
        for index, number in enumerate(nodes):
            world.fakes[number].groups[group] = {index: cpus(1)}
            world.fakes[number].attempts[group] = 1
        await up(world, *actors, anywhere)
        assert [where(world, id_) for id_ in actors] == nodes and where(world, anywhere) in nodes
        assert at(world, beyond) == "dead" and "no bundle 2" in world.actors.records[beyond].reason

        nodes = []
        late = create(world, spec(9, where=m.Place(group=group)))
        await world.settle()
        assert at(world, late) == "dead" and world.actors.records[late].kind == "removed"

    run(body)


def test_an_actor_of_a_group_goes_to_another_of_its_nodes_when_one_is_full() -> None:
    async def body() -> None:
        world = await cluster(1, 1)
        group = ids.group_id(MAKER, 5)
        world.group_nodes = lambda id_: [2, 3]
        world.fakes[3].groups[group], world.fakes[3].attempts[group] = {1: cpus(1)}, 1
        id_ = create(world, spec(1, where=m.Place(group=group)))
        await up(world, id_)
        assert where(world, id_) == 3

    run(body)


# ---------------------------------------------------------------- nodes that die or come back


def test_what_ran_on_a_dead_node_is_started_elsewhere_or_dead() -> None:
    async def body() -> None:
        world = await cluster(2, 2)
        lasting, mortal = create(world, spec(1, max_restarts=1, name="n")), create(world, spec(2))
        await up(world, lasting, mortal)
        for _ in range(2):
            gone = where(world, lasting)
            await world.fakes[gone].lost()
            await until(lambda: at(world, lasting) in ("starting", "dead"), world, "nothing follows")
            await world.fakes[gone].connect()
            await world.settle()
        record = world.actors.records[lasting]
        assert record.state == "dead" and record.death is not None and "is lost" in record.death.reason
        assert not world.living(lasting) and not world.twins
        if at(world, mortal) == "dead":
            assert not world.living(mortal)

    run(body)


def test_what_its_maker_made_dies_with_the_makers_node_unless_detached() -> None:
    async def body() -> None:
        world = await cluster(4, 4)
        maker = ids.new_prefix(2)
        pinned = m.Place(node=world.fakes[3].id)
        own = create(world, spec(1, maker=maker, where=pinned, max_restarts=-1))
        detached = create(world, spec(2, maker=maker, where=pinned, detached=True, name="d"))
        await up(world, own, detached)
        await world.fakes[2].lost()
        await until(lambda: at(world, own) == "dead", world, "it lives on")
        assert not world.living(own) and where(world, detached) == 3 and at(world, detached) == "alive"

    run(body)


def test_a_connection_that_breaks_costs_no_actor_wherever_it_breaks() -> None:
    async def body() -> None:
        world = await cluster(2, 0.5)
        two = world.fakes[2]
        for steps in range(5):
            id_ = create(world, spec(steps, 2))
            for _ in range(steps):
                two.step()
            two.disconnect()
            await world.settle()
            await two.connect()
            await up(world, id_)
            assert where(world, id_) == 2
            assert [s for s in world.starts if s[0] == id_] == [(id_, 1, 2)]
            world.actors.kill(id_, True, "over")
            await until(lambda id_=id_: at(world, id_) == "dead", world, "it does not end")
            assert not two.actors

    run(body)


def test_what_waits_for_a_node_is_given_to_it_once() -> None:
    """Twice does harm where the first is answered before the second comes: by ``full``, or by its end."""

    async def body() -> None:
        world = await cluster(2, 2)
        id_ = create(world, spec(1, 4))
        await world.settle()
        assert at(world, id_) == "pending"
        await world.node(4, cpus(4)).connect()
        assert len(hosts(world.fakes[4])) == 1

    run(body)


def test_one_that_ended_while_its_node_was_away_is_noticed() -> None:
    async def body() -> None:
        world = await cluster(2)
        lasting, mortal = create(world, spec(1, max_restarts=1)), create(world, spec(2))
        await up(world, lasting, mortal)
        two = world.fakes[2]
        two.disconnect()
        for id_ in (lasting, mortal):
            two.end_actor(id_)
        await two.connect()
        await up(world, lasting)
        assert world.living(lasting) == [(2, 2)] and at(world, mortal) == "dead"
        death = world.actors.records[mortal].death
        assert death is not None and "while its node or the head was away" in death.reason

    run(body)


def test_one_that_is_killed_while_its_node_is_away_ends_when_it_is_back() -> None:
    async def body() -> None:
        world = await cluster(2, 2)
        id_ = create(world, spec(1, where=m.Place(node=world.fakes[2].id)))
        await up(world, id_)
        world.fakes[2].disconnect()
        world.actors.kill(id_, True, "it is killed")
        await world.settle()
        assert at(world, id_) == "alive", "nobody can know"
        await world.fakes[2].connect()
        await world.settle()
        assert at(world, id_) == "dead" and not world.living(id_)

    run(body)


def test_one_that_is_killed_on_its_way_to_a_node_that_is_away_is_not_started_there_any_more() -> None:
    async def body() -> None:
        world = await cluster(1, 1)
        id_ = create(world, spec(1, max_restarts=-1))
        for _ in range(5):
            await asyncio.sleep(0)  # it is written first
        gone = 2 if world.fakes[2].inbox else 3
        world.fakes[gone].disconnect()
        world.actors.kill(id_, False, "it is killed, and may restart")
        await world.fakes[gone].connect()
        await up(world, id_)
        await world.settle()
        assert where(world, id_) and [start[1] for start in world.starts] == [2]

    run(body)


def test_an_instance_that_is_not_the_present_one_is_stopped() -> None:
    async def body() -> None:
        world = await cluster(2, 2)
        id_ = create(world, spec(1, max_restarts=-1))
        await up(world, id_)
        node = where(world, id_)
        other = world.fakes[5 - node]
        old = c.HostActor(spec(1, max_restarts=-1), 0, False, m.JobConfig(), True)
        other._say(c.ActorHosted(c.HostedActor(id_, 0, "worker", 1, old.spec)))
        other._say(c.ActorStarted(id_, 0, "worker", 1))
        other._say(c.ActorStarted(id_, 1, "worker", 1))
        other._say(c.ActorExited(id_, 1, None))
        other._say(c.ActorNever(id_, 1, "", "full"))
        await world.settle()
        assert [(s.id, s.instance) for s in stops(other)] == [(id_, 0), (id_, 0), (id_, 1)]
        assert where(world, id_) == node and at(world, id_) == "alive" and not stops(world.fakes[node])
        unknown = ids.actor_id(MAKER, 99)
        other._say(c.ActorStarted(unknown, 1, "worker", 1))
        await world.settle()
        assert stops(other)[-1].id == unknown

    run(body)


# ---------------------------------------------------------------- ends


@pytest.mark.parametrize("steps", range(5))
def test_one_that_is_killed_on_its_way_leaves_nothing(steps: int) -> None:
    async def body() -> None:
        world = await cluster(2, 2)
        id_ = create(world, spec(1, max_restarts=3, name="n"))
        await asyncio.sleep(0)
        for _ in range(steps):
            for fake in world.fakes.values():
                fake.step()
            await asyncio.sleep(0)
        world.actors.kill(id_, True, "it is killed")
        await until(lambda: at(world, id_) == "dead", world, "it does not end")
        await world.settle()
        assert not world.living(id_) and not any(fake.actors for fake in world.fakes.values())
        assert not world.places.pending and await world.storage.load("actors") == {}

    run(body)


def test_one_that_is_killed_twice_while_its_restart_is_written_is_started_once() -> None:
    async def body() -> None:
        world = await cluster(1, 1)
        id_ = create(world, spec(1, max_restarts=-1))
        await up(world, id_)
        world.storage.flowing.clear()
        world.fakes[where(world, id_)].end_actor(id_)
        await world.settle()
        assert at(world, id_) == "restarting"
        world.actors.kill(id_, False, "it is killed, and may restart")
        world.storage.flowing.set()
        await up(world, id_)
        assert where(world, id_)

    run(body)


# ---------------------------------------------------------------- head restarts


async def next_head(world: World, *numbers: int) -> None:
    world.stop_head()
    await asyncio.sleep(0)
    await world.head(Disk(world))
    await world.connect(*numbers)


def test_a_head_that_restarts_adopts_what_runs() -> None:
    async def body() -> None:
        world = await cluster(2, 2)
        durable, other = create(world, spec(1, max_restarts=-1, name="n")), create(world, spec(2))
        await up(world, durable, other)
        before = world.starts[:]
        await next_head(world, 2, 3)
        await world.settle()
        create(world, spec(1, max_restarts=-1, name="n"), again=True)
        create(world, spec(2), again=True)
        await world.settle()
        assert world.starts == before and at(world, durable) == at(world, other) == "alive"
        assert world.actors.by_name("n", "") is not None
        world.fakes[where(world, durable)].end_actor(durable)
        await world.settle()
        await up(world, durable)
        assert world.living(durable)[0][1] == 2

    run(body)


def test_what_is_asked_for_again_waits_for_nodes_that_may_have_it() -> None:
    async def body() -> None:
        world = await cluster(2, 2)
        here, nowhere = spec(1, where=m.Place(node=world.fakes[2].id)), spec(2)
        create(world, here)
        await up(world, here.id)
        await next_head(world, 3)
        for wanted in (here, nowhere):
            create(world, wanted, again=True)
        await world.settle()
        assert at(world, here.id) == at(world, nowhere.id) == "pending"
        await world.fakes[2].connect()
        await up(world, here.id, nowhere.id)
        assert [s for s in world.starts if s[0] == here.id] == [(here.id, 1, 2)] and where(world, nowhere.id)

    run(body)


def test_what_was_on_a_node_that_does_not_come_back_is_started_elsewhere() -> None:
    async def body() -> None:
        world = await cluster(2, 2)
        id_ = create(world, spec(1, max_restarts=-1, name="n"))
        await up(world, id_)
        gone = where(world, id_)
        await next_head(world, 5 - gone)
        await world.settle()
        assert at(world, id_) == "restoring"
        world.fakes[gone].frozen = True
        await world.nodes.left(world.nodes.records[gone], "it did not come back")
        await up(world, id_)
        assert where(world, id_) == 5 - gone and world.living(id_)[0][1] == 2

    run(body)


def test_an_end_that_was_decided_before_the_restart_still_comes() -> None:
    async def body() -> None:
        world = await cluster(2, 2)
        id_ = create(world, spec(1, max_restarts=-1, name="n"))
        await up(world, id_)
        node = where(world, id_)
        world.fakes[node].disconnect()
        world.actors.kill(id_, True, "it is killed")
        await world.settle()
        await next_head(world, 2, 3)
        await until(lambda: at(world, id_) == "dead", world, "it lives on")
        assert not world.living(id_)

    run(body)


def test_what_waits_at_a_node_when_the_head_ends_is_not_started_twice() -> None:
    async def body() -> None:
        world = await cluster(2, 2)
        for number in (2, 3):
            world.fakes[number].occupy(cpus(2))
        await world.settle()
        id_ = create(world, spec(1, 2, max_restarts=-1, name="n"))
        await until(lambda: world.fakes[2].actors or world.fakes[3].actors, world, "it waits nowhere")
        node = 2 if world.fakes[2].actors else 3
        world.stop_head()
        world.fakes[5 - node].occupy({})
        await next_head(world, 2, 3)
        await up(world, id_)
        assert where(world, id_) == 5 - node
        world.fakes[node].occupy({})
        await world.settle()
        assert where(world, id_) == 5 - node

    run(body)


def test_a_head_that_ended_between_a_death_and_what_follows_from_it_does_that_later() -> None:
    async def body() -> None:
        world = await cluster(2, 2)
        id_ = create(world, spec(1, max_restarts=-1, name="n"))
        await up(world, id_)
        gone = where(world, id_)
        world.nodes._on_dead = lambda record: world.stop_head()
        await world.fakes[gone].lost()
        await next_head(world, 5 - gone)
        for _ in range(30):
            await world.settle()
            await asyncio.sleep(0.003)
        assert where(world, id_) == 5 - gone

    run(body)


# ---------------------------------------------------------------- at random


@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_none_runs_twice_and_all_come_to_an_end(seed: int) -> None:
    """Actors end and are killed, connections break, nodes die and start over; the head stays."""
    rng = random.Random(seed)

    async def body() -> None:
        world = await cluster(3, 3, 3)
        actors: list[bytes] = []
        pending: list[asyncio.Task[Any]] = []
        left = 200

        async def away(fake: FakeNode) -> None:
            fake.disconnect()
            await asyncio.sleep(rng.random() / 50)
            await fake.connect()

        async def die(fake: FakeNode) -> None:
            await fake.lost()
            await asyncio.sleep(rng.random() / 50)
            await fake.connect()

        def act() -> bool:
            nonlocal left
            left -= 1
            what = rng.random()
            fake = world.fakes[rng.randint(2, 4)]
            if what < 0.3 and len(actors) < 40:
                named = rng.random() < 0.5
                wanted = spec(len(actors), rng.choice([1, 1, 2]), max_restarts=rng.choice([0, 2, -1]))
                wanted.name = f"a{len(actors)}" if named else ""
                actors.append(create(world, wanted))
            elif what < 0.45:
                fake.construct()
            elif what < 0.6:
                if running := [id_ for id_, r in fake.actors.items() if r.worker]:
                    fake.end_actor(rng.choice(running))
            elif what < 0.75 and actors:
                world.actors.kill(rng.choice(actors), rng.random() < 0.5, "killed")
            elif what < 0.85:
                fake.occupy(cpus(rng.randint(0, 3)))
            elif all(task.done() for task in pending):
                for task in pending:
                    task.result()
                pending[:] = [asyncio.create_task(rng.choice([away, die, FakeNode.crash])(fake))]
            for id_ in actors:
                assert len(world.living(id_)) <= 1, "two at once"
            return left > 0

        def at_rest() -> bool:
            for fake in world.fakes.values():
                fake.occupy({})
                fake.construct()
            for id_ in actors:
                if at(world, id_) == "alive" and rng.random() < 0.1:
                    world.actors.kill(id_, True, "over")
            return all(at(world, id_) == "dead" for id_ in actors)

        await world.run(rng, act, at_rest, 40)
        await asyncio.gather(*pending)
        await world.settle()
        assert not world.twins, "one ran twice at once"
        assert not any(fake.actors for fake in world.fakes.values()), "one lives on that is dead to the head"
        assert not world.places.pending and await world.storage.load("actors") == {}

    run(body)
