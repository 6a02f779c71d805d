"""A head's tables over nodes that only count: for tests of where groups and actors are placed.

The node table, the placements and the storage are the real ones. A ``FakeNode`` keeps bundles and runs actors as a node
does that knows nothing but the messages it gets; what is under way to it and from it waits until ``step`` takes it, in
order, and is lost with the connection. The head's own node answers at once, as it is in the same process.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from noded.head.actor_placement import ActorPlacement
from noded.head.actors import ActorTable
from noded.head.group_placement import GroupPlacement
from noded.head.nodes import NodeRecord, NodeTable
from noded.head.storage.memory import MemoryData, MemoryStorage
from noded.resources import UNIT
from noded.wire import cluster_messages as c
from noded.wire import messages as m

OWN = 1
_serial = itertools.count(1)


def cpus(count: float, **more: float) -> dict[str, int]:
    return {name: round(amount * UNIT) for name, amount in {"CPU": count, **more}.items() if amount}


@dataclass(eq=False)
class Running:
    """An actor on a node, or one that waits for room there."""

    message: c.HostActor
    worker: str = ""
    alive: bool = False


class FakeNode:
    """``NodeApi``. ``busy`` is what tasks have; ``slow``: what runs in its groups ends at ``finish_groups``.

    ``refuses(message)``: it says no, whatever seems free.
    """

    def __init__(self, world: World, number: int, total: dict[str, int], labels: dict[str, str] | None = None):
        self.world = world
        self.number = number
        self.total = total
        self.labels = labels or {}
        self.refuses: Callable[[Any], bool] = lambda message: False
        self.slow = False
        self.connected = False
        self.got: list[Any] = []
        """All that it was told, ever."""
        self.start_over()

    def start_over(self) -> None:
        """All that ran is gone, and it is another node from now on."""
        self.id = f"{self.number:04d}{next(_serial):08d}"
        self.busy: dict[str, int] = {}
        self.groups: dict[bytes, dict[int, dict[str, int]]] = {}
        self.attempts: dict[bytes, int] = {}
        """Of the groups that it holds."""
        self.heard: dict[bytes, int] = {}
        """Group -> the last attempt to place it here, whatever came of it."""
        self.closing: dict[bytes, c.ReleaseGroup] = {}
        self.queued_groups: list[c.ReserveGroup] = []
        self.actors: dict[bytes, Running] = {}
        self.frozen = False
        self.inbox: deque[Any] = deque()
        self.outbox: deque[Any] = deque()

    # ------------------------------------------------------------ what it has

    @property
    def available(self) -> dict[str, int]:
        left = dict(self.total)
        outside = [r.message.spec.placement for r in self.actors.values() if r.worker and not self._group_of(r)]
        bundles = [bundle for group in self.groups.values() for bundle in group.values()]
        for amounts in (self.busy, *outside, *bundles):
            for name, amount in amounts.items():
                left[name] = left.get(name, 0) - amount
        return left

    @staticmethod
    def _group_of(running: Running) -> bytes:
        return running.message.spec.where.group

    def _has(self, amounts: dict[str, int]) -> bool:
        available = self.available
        return all(available.get(name, 0) >= amount for name, amount in amounts.items())

    # ------------------------------------------------------------ NodeApi

    def host_actor(self, message: c.HostActor, payload: bytes) -> None:
        self._receive(message)

    def stop_actor(self, message: c.StopActor) -> None:
        self._receive(message)

    def reserve_group(self, message: c.ReserveGroup) -> None:
        self._receive(message)

    def release_group(self, message: c.ReleaseGroup) -> None:
        self._receive(message)

    def to_client(self, prefix: bytes, message: Any, payload: bytes) -> None:
        self.world.told.append((prefix, message))

    def end_job(self, message: c.EndJob) -> None:
        return

    def claim_actors(self, ids: list[bytes]) -> None:
        return

    def drain(self, on: bool) -> None:
        return

    def stop(self, reason: str) -> None:
        return

    def nodes(self, frame: bytes, message: c.Nodes, entries: list[c.NodeEntry]) -> None:
        return

    async def ask(self, what: str, arguments: dict[str, Any]) -> Any:
        raise ValueError(what)

    # ------------------------------------------------------------ messages under way

    def _receive(self, message: Any) -> None:
        assert self.connected, "it is told something without a connection"
        self.got.append(message)
        if self.number == OWN:
            self._handle(message)
        else:
            self.inbox.append(message)

    def _say(self, message: Any) -> None:
        if self.number == OWN:
            self._deliver(message)
        elif self.connected:
            self.outbox.append(message)

    def step(self) -> bool:
        """Take one message, in either direction; False when there is none."""
        if self.inbox and not self.frozen:
            self._handle(self.inbox.popleft())
        elif self.outbox:
            self._deliver(self.outbox.popleft())
        else:
            return False
        return True

    def _deliver(self, message: Any) -> None:
        world, record = self.world, self.record
        if record.state == "DEAD" or world.nodes.is_dying(record) or record.id != self.id:
            return
        if isinstance(message, c.Report):
            world.nodes.heard(record, message)
        elif isinstance(message, c.GroupReserved):
            world.groups.reserved(record, message)
        elif isinstance(message, c.GroupReleased):
            world.groups.released(record, message.id)
        elif isinstance(message, c.ActorStarted):
            world.places.started(record, message.id, message.instance, message.worker, message.pid)
        elif isinstance(message, c.ActorNever):
            world.places.never(record, message.id, message.instance, message.reason, message.kind)
        elif isinstance(message, c.ActorExited):
            world.places.exited(record, message.id, message.instance, message.death)
        elif isinstance(message, c.ActorHosted):
            world.places.hosted(record, message.actor)
        else:
            world.actors.up(message)

    def _handle(self, message: Any) -> None:
        if isinstance(message, c.ReserveGroup):
            self._reserve(message)
        elif isinstance(message, c.ReleaseGroup):
            self._release(message)
        elif isinstance(message, c.HostActor):
            self._host(message)
        else:
            self._stop(message)

    # ------------------------------------------------------------ groups

    def _reserve(self, message: c.ReserveGroup) -> None:
        id_, attempt = message.id, message.attempt
        self.heard[id_] = attempt
        if id_ in self.closing:
            self._say(c.GroupReserved(id_, attempt, False, "what it had here before is not free yet"))
            return
        held = self.groups.get(id_, {})
        if held:
            self.attempts[id_] = attempt
        missing = {index: bundle for index, bundle in message.bundles.items() if index not in held}
        if not missing:
            self._say(c.GroupReserved(id_, attempt, True))
            return
        message = msgspec.structs.replace(message, bundles=missing)
        self.queued_groups = [one for one in self.queued_groups if one.id != id_]  # of an earlier attempt
        if self._has_room_for(message):
            self._open(message)
        elif message.wait:
            self.queued_groups.append(message)
        else:
            self._say(c.GroupReserved(id_, attempt, False, "not free now"))

    def _has_room_for(self, message: c.ReserveGroup) -> bool:
        wanted: dict[str, int] = {}
        for bundle in message.bundles.values():
            for name, amount in bundle.items():
                wanted[name] = wanted.get(name, 0) + amount
        return message.id not in self.closing and not self.refuses(message) and self._has(wanted)

    def _open(self, message: c.ReserveGroup) -> None:
        mine = self.groups.setdefault(message.id, {})
        assert not mine.keys() & message.bundles.keys(), "a bundle is reserved twice"
        mine.update(message.bundles)
        self.attempts[message.id] = message.attempt
        self._say(c.GroupReserved(message.id, message.attempt, True))

    def _release(self, message: c.ReleaseGroup) -> None:
        if not message.removed and self.heard.get(message.id, 0) > message.attempt:
            return
        self.queued_groups = [one for one in self.queued_groups if one.id != message.id]
        if message.id not in self.groups:
            self._say(c.GroupReleased(message.id, message.attempt))
            return
        self.closing[message.id] = message
        if not self.slow:
            self.finish_groups()

    def finish_groups(self) -> None:
        """What ran in the groups that are to end has ended."""
        for id_ in list(self.closing):
            message = self.closing.pop(id_)
            del self.groups[id_], self.attempts[id_]
            for actor in [i for i, r in self.actors.items() if self._group_of(r) == id_]:
                self.end_actor(actor, "its placement group was removed")
            self._say(c.GroupReleased(id_, message.attempt))
        self.serve()

    # ------------------------------------------------------------ actors

    def _host(self, message: c.HostActor) -> None:
        known = self.actors.get(message.spec.id)
        if known is not None and known.message.instance == message.instance:
            return
        if known is not None:
            self._stop(c.StopActor(message.spec.id, known.message.instance, "it is started anew", False))
        running = Running(message)
        if self._may_start(running):
            self.actors[message.spec.id] = running
            self._start(running)
        elif message.wait:
            self.actors[message.spec.id] = running
        else:
            self._say(c.ActorNever(message.spec.id, message.instance, "there is no room for it now", "full"))

    def _may_start(self, running: Running) -> bool:
        group = self._group_of(running)
        if self.refuses(running.message):
            return False
        return (
            group in self.groups and group not in self.closing if group else self._has(running.message.spec.placement)
        )

    def _start(self, running: Running) -> None:
        id_, instance = running.message.spec.id, running.message.instance
        running.worker = f"{self.number:06x}{next(_serial):010x}"
        self.world.starts.append((id_, instance, self.number))
        twins = self.world.living(id_)
        if len(twins) > 1:
            self.world.twins.append((id_, twins))
        self._say(c.ActorStarted(id_, instance, running.worker, 1))

    def _stop(self, message: c.StopActor) -> None:
        running = self.actors.get(message.id)
        if running is None or running.message.instance != message.instance:
            if not message.move:
                self._say(c.ActorExited(message.id, message.instance, None))
        elif not running.worker:
            del self.actors[message.id]
            if message.move:
                self._say(c.ActorNever(message.id, message.instance, message.reason, "full"))
            else:
                self._say(c.ActorExited(message.id, message.instance, None))
        elif not message.move:
            del self.actors[message.id]
            self._say(c.ActorExited(message.id, message.instance, m.Death(running.worker)))
            self.serve()

    def end_actor(self, id_: bytes, reason: str = "") -> None:
        """It ends by itself."""
        running = self.actors.pop(id_)
        self._say(c.ActorExited(id_, running.message.instance, m.Death(running.worker, reason=reason)))
        self.serve()

    def construct(self) -> None:
        """The constructors return."""
        for id_, running in self.actors.items():
            if running.worker and not running.alive:
                running.alive = True
                self._say(id_)

    def told(self) -> list[c.HostedActor]:
        return [
            c.HostedActor(id_, r.message.instance, r.worker, 1, r.message.spec, r.alive)
            for id_, r in self.actors.items()
            if r.worker
        ]

    # ------------------------------------------------------------ life

    def serve(self) -> None:
        """There may be room for what waits."""
        for message in list(self.queued_groups):
            if message in self.queued_groups and self._has_room_for(message):
                self.queued_groups.remove(message)
                self._open(message)
        for running in list(self.actors.values()):
            if not running.worker and self._may_start(running):
                self._start(running)

    def occupy(self, amounts: dict[str, int]) -> None:
        """Tasks have so much from now on; the head does not know before the next report."""
        self.busy = amounts
        self.serve()

    def report(self) -> None:
        if self.number == OWN:
            self.world.nodes.own_amounts(self.record, dict(self.total), self.available, 0)
        else:
            self._say(c.Report(next(_serial), dict(self.total), {n: self.available.get(n, 0) for n in self.total}))

    def _register(self) -> c.Register:
        return c.Register(
            c.CLUSTER_VERSION, "", "3.11", "default", "", self.number, self.id, 1, f"n{self.number}",
            f"10.0.0.{self.number}:1", f"10.0.0.{self.number}", "host", "", 1, dict(self.total), self.available,
            self.labels,
        )  # fmt: skip

    async def connect(self) -> bool:
        """Register; one that was declared dead starts over, and does so as another one (False)."""
        world, message = self.world, self._register()
        self.inbox.clear()
        self.outbox.clear()
        if self.number != OWN and world.nodes.refuse(message):
            self.start_over()
            await self.connect()
            return False
        self.actors = {id_: r for id_, r in self.actors.items() if r.worker}  # the head has the others started anew
        self.queued_groups = []
        self.connected = True
        held = [c.HeldGroup(id_, self.attempts[id_], sorted(bundles)) for id_, bundles in self.groups.items()]
        if self.number == OWN:
            self.record = world.nodes.register_own(message, self)
            world.groups.restored()
            world.places.restored()
            world.groups.registered(self.record, held)
            world.places.registered(self.record, self.told())
        else:
            self.record = await world.nodes.register(message, self)
            world.places.registered(self.record, self.told())
            world.groups.registered(self.record, held)
            world.nodes.joined(self.record)
        return True

    def disconnect(self) -> None:
        """What is under way is lost."""
        self.inbox.clear()
        self.outbox.clear()
        if self.connected:
            self.connected = False
            self.world.nodes.disconnected(self.record, self)

    async def lost(self, reason: str = "it was silent for too long") -> None:
        """Its deadline passes, and then the head declares it dead."""
        self.frozen = True
        self.disconnect()
        await self.world.nodes.left(self.record, reason)

    async def crash(self) -> None:
        """All that was there is gone, and it starts over at once."""
        self.disconnect()
        self.start_over()
        await self.connect()


@dataclass(eq=False)
class World:
    """One cluster. ``head()`` begins a new life of the head over the same storage."""

    data: MemoryData = field(default_factory=MemoryData)
    fakes: dict[int, FakeNode] = field(default_factory=dict)
    told: list[tuple[bytes, Any]] = field(default_factory=list)
    starts: list[tuple[bytes, int, int]] = field(default_factory=list)
    """Of actors: (id, instance, node)."""
    twins: list[tuple[bytes, list[tuple[int, int]]]] = field(default_factory=list)
    """Actors that ran twice at once."""
    group_nodes: Callable[[bytes], list[int] | None] | None = None

    def node(self, number: int, total: dict[str, int] | None = None, **labels: str) -> FakeNode:
        """Not connected yet."""
        found = self.fakes[number] = FakeNode(self, number, total or cpus(2), labels)
        return found

    async def head(self, storage: Any = None, restore: Callable[[], Any] = lambda: None) -> World:
        """It has its own node at once; the others are to connect. ``restore()`` tells it of the groups there are."""
        for fake in self.fakes.values():
            fake.connected = False
        self.storage = storage or MemoryStorage(data=self.data)
        await self.storage.open()
        self.nodes = NodeTable(self.storage, on_alive=lambda _: self.kick(), on_dead=self._on_dead, on_room=self.kick)
        self.groups = GroupPlacement(self.nodes)
        self.places = ActorPlacement(
            self.nodes,
            group_nodes=lambda id_: (self.group_nodes or self.groups.nodes_of)(id_),
            job_config=lambda job: None,
        )
        self.actors = ActorTable(self.storage, lambda prefix, at, error: self.told.append((prefix, at)))
        self.actors.host, self.places.table = self.places, self.actors
        await self.nodes.restore(OWN)
        await self.actors.restore()
        restore()
        if OWN not in self.fakes:
            self.node(OWN)
        await self.fakes[OWN].connect()
        return self

    def stop_head(self) -> None:
        """It is gone, with all that it has not written."""
        for fake in self.fakes.values():
            fake.inbox.clear()
            fake.outbox.clear()
            fake.connected = False
        for what in (self.groups, self.places):
            if what._timer is not None:
                what._timer.cancel()
            what._look_later = lambda: None  # type: ignore[method-assign]
        for task in (*self.actors._tasks, *self.nodes._writes):
            task.cancel()

    async def connect(self, *numbers: int) -> None:
        for number in numbers:
            await self.fakes[number].connect()

    def _on_dead(self, record: NodeRecord) -> None:
        self.places.node_died(record)
        self.groups.node_died(record)

    def kick(self) -> None:
        self.groups.kick()
        self.places.kick()

    def living(self, id_: bytes) -> list[tuple[int, int]]:
        """(node, instance) of every running instance; those on a node whose deadline has passed do not run."""
        return [
            (fake.number, running.message.instance)
            for fake in self.fakes.values()
            if not fake.frozen and (running := fake.actors.get(id_)) is not None and running.worker
        ]

    async def settle(self, *, report: bool = True) -> None:
        """Until nothing is under way any more."""
        quiet = 0
        while quiet < 5:
            if report and quiet == 2:
                for fake in self.fakes.values():
                    if fake.connected:
                        fake.report()
            moved = sum(fake.step() for fake in self.fakes.values())
            quiet = 0 if moved and quiet < 2 else quiet + 1
            await asyncio.sleep(0)

    async def run(self, rng: random.Random, act: Callable[[], bool], until: Callable[[], bool], limit: float) -> None:
        """Messages arrive when they like, and ``act`` does something now and then, until it says False; then on until
        ``until``.
        """
        end = asyncio.get_running_loop().time() + limit
        acting = True
        while acting or not until():
            assert asyncio.get_running_loop().time() < end, "it does not come to rest"
            fakes = list(self.fakes.values())
            for fake in rng.sample(fakes, len(fakes)):
                for _ in range(rng.randrange(3)):
                    fake.step()
                if fake.connected and rng.random() < 0.2:
                    fake.report()
            if acting and rng.random() < 0.5:
                acting = act()
            await asyncio.sleep(0 if rng.random() < 0.7 else 0.001)
