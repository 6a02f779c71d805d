"""The head's table of nodes: numbers, who is away and who is dead, and that a death is written before it counts.

Time is a clock of the test's: a second passes when it says so. The storage is in memory, and may be made to wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec
import pytest

from noded.head import nodes
from noded.head.nodes import TABLE, NodeRecord, NodeTable, StoredNode
from noded.head.storage import Op
from noded.head.storage.memory import MemoryData, MemoryStorage
from noded.policy import liveness
from noded.wire import cluster_messages as c

OWN = 1


class Clock:
    """In place of the module ``time`` of the table."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(nodes, "time", clock)
    return clock


class Disk(MemoryStorage):
    """Whose writes wait as long as it is ``stuck``."""

    def __init__(self, data: MemoryData):
        super().__init__(data=data)
        self.flowing = asyncio.Event()
        self.flowing.set()

    async def write(self, ops: Sequence[Op]) -> None:
        await self.flowing.wait()
        await super().write(ops)


class Api:
    """A node that hears what is told to all."""

    def __init__(self) -> None:
        self.entries: dict[int, c.NodeEntry] = {}
        self.drains: list[bool] = []
        self.said: list[tuple[bytes, Any]] = []

    def nodes(self, frame: bytes, message: c.Nodes, entries: list[c.NodeEntry]) -> None:
        known = {} if message.all else self.entries
        self.entries = {**known, **{entry.number: entry for entry in entries}}

    def drain(self, on: bool) -> None:
        self.drains.append(on)

    def to_client(self, prefix: bytes, message: Any, payload: bytes) -> None:
        self.said.append((prefix, message))


def register(number: int, id_: str = "", **more: Any) -> c.Register:
    amounts = {"CPU": 40_000}
    told = c.Register(
        c.CLUSTER_VERSION, "v", "3.11", "default", "", number, id_ or f"id-of-{number}", 1, f"n{number}",
        f"10.0.0.{number}:1", f"10.0.0.{number}", "host", "/run", 1, amounts, dict(amounts), {"zone": "a"},
    )  # fmt: skip
    return msgspec.structs.replace(told, **more)


class Head:
    """One life of the table."""

    def __init__(self, clock: Clock, data: MemoryData | None = None):
        self.clock = clock
        self.data = data or MemoryData()
        self.disk = Disk(self.data)
        self.dead: list[tuple[int, str]] = []
        self.alive: list[int] = []
        self.rooms = 0
        self.apis: dict[int, Api] = {}
        self.table = NodeTable(self.disk, on_alive=self._on_alive, on_dead=self._on_dead, on_room=self._on_room)

    def _on_alive(self, record: NodeRecord) -> None:
        self.alive.append(record.number)

    def _on_dead(self, record: NodeRecord) -> None:
        stored = self.stored()[record.number]
        assert stored.dead and stored.id == record.id and stored.reason, "not written before it counts"
        assert record.state == "DEAD" and self.table.by_id(record.id) is None
        assert self.table.cluster.get(record.id) is None
        self.dead.append((record.number, record.id))

    def _on_room(self) -> None:
        self.rooms += 1

    def stored(self) -> dict[int, StoredNode]:
        found = self.data.tables.get(("default", TABLE), {})
        return {int(key): msgspec.msgpack.decode(value, type=StoredNode) for key, value in found.items()}

    async def start(self) -> Head:
        await self.disk.open()
        await self.table.restore(OWN)
        self.own = self.table.register_own(register(OWN), self.api(OWN))
        self.table.tell_all(self.apis[OWN])
        for _ in range(5):
            await asyncio.sleep(0)  # it is written
        return self

    def api(self, number: int) -> Api:
        self.apis[number] = Api()
        return self.apis[number]

    async def join(self, number: int, id_: str = "") -> NodeRecord:
        message = register(number, id_)
        assert not self.table.refuse(message)
        record = await self.table.register(message, self.api(number))
        self.table.joined(record)
        return record

    def close(self, record: NodeRecord) -> None:
        self.table.disconnected(record, self.apis[record.number])

    async def pass_time(self, seconds: float, *beating: NodeRecord) -> None:
        """As the judge sees it, who looks every quarter of a second; these nodes send their heartbeats."""
        for _ in range(round(seconds / nodes.JUDGE_SECONDS)):
            self.clock.now += nodes.JUDGE_SECONDS
            for record in beating:
                self.table.heard(record, c.Report(1))
            await self._judge_once()

    async def _judge_once(self) -> None:
        """One turn of the real judge, without its sleep."""
        turns = iter([1, 2, 3])

        async def sleep(_: float) -> None:
            if next(turns, None) is None:
                raise asyncio.CancelledError

        real = asyncio.sleep
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asyncio, "sleep", sleep)
            with pytest.raises(asyncio.CancelledError):
                await self.table._judge()
        for _ in range(5):
            await real(0)


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), 20))


# ---------------------------------------------------------------- numbers


def test_numbers_are_given_once_also_by_heads_that_follow(clock: Clock) -> None:
    async def body() -> None:
        head = await Head(clock).start()
        given = [await head.table.new_number(f"n{i}") for i in range(3)]
        assert given == [2, 3, 4] and head.stored().keys() == {1, 2, 3, 4}
        again = await Head(clock, head.data).start()
        assert await again.table.new_number("n") == 5
        await again.join(77)
        assert await again.table.new_number("n") == 78
        assert again.table.knows(77) and not again.table.knows(76)

    run(body)


def test_a_number_is_written_before_it_is_told(clock: Clock) -> None:
    async def body() -> None:
        head = await Head(clock).start()
        head.disk.flowing.clear()
        asked = [asyncio.create_task(head.table.new_number("n")) for _ in range(2)]
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in asked)
        head.disk.flowing.set()
        assert await asyncio.gather(*asked) == [2, 3] and {2, 3} <= head.stored().keys()

    run(body)


# ---------------------------------------------------------------- alive, away, dead


def test_a_node_that_is_silent_is_away_and_then_dead(clock: Clock) -> None:
    async def body() -> None:
        head = await Head(clock).start()
        two, three = await head.join(2), await head.join(3)
        assert head.alive == [2, 3] and not head.table.alone
        await head.pass_time(20, two, three)
        assert two.state == three.state == "ALIVE"
        await head.pass_time(liveness.SILENT_AWAY + 0.5, two)
        assert (two.state, three.state) == ("ALIVE", "AWAY")
        view = head.table.cluster.get(three.id)
        assert view is not None and not view.schedulable and head.table.waiting_for_nodes
        head.table.heard(three, c.Report(2))
        assert three.state == "ALIVE" and head.alive == [2, 3, 3]
        await head.pass_time(liveness.SILENT_DEAD - 0.5, two)
        assert three.state == "AWAY" and not head.dead
        await head.pass_time(1, two)
        assert three.state == "DEAD" and head.dead == [(3, three.id)] and two.state == "ALIVE"
        await head.pass_time(100, two)
        assert len(head.dead) == 1 and head.own.state == "ALIVE", "the own node is never judged"
        assert head.table.find("n3") is None and three in head.table.records.values()

    run(body)


def test_a_node_takes_work_when_it_has_told_what_it_has(clock: Clock) -> None:
    async def body() -> None:
        head = await Head(clock).start()

        def may() -> bool:
            view = head.table.cluster.get("id-of-2")
            return view is not None and view.schedulable

        for _ in range(2):
            two = await head.table.register(register(2), head.api(2))
            assert two.state == "ALIVE" and not may() and not head.alive
            head.table.heard(two, c.Report(1, available={"CPU": 10_000}))
            assert not may() and not head.alive
            head.table.joined(two)
            assert may() and head.alive == [2]
            head.close(two)
            assert not may()
            head.alive.clear()

    run(body)


def test_a_node_whose_connection_is_closed_has_longer(clock: Clock) -> None:
    async def body() -> None:
        head = await Head(clock).start()
        two = await head.join(2)
        head.close(two)
        assert two.state == "AWAY" and two.api is None and head.table.waiting_for_nodes
        await head.pass_time(liveness.RESET_DEAD - 1)
        assert two.state == "AWAY"
        await head.join(2)
        assert two.state == "ALIVE" and head.table.by_id(two.id) is two
        await head.pass_time(10, two)
        head.close(two)
        await head.pass_time(liveness.RESET_DEAD + 1)
        assert two.state == "DEAD" and "did not come back" in two.reason

    run(body)


def test_a_connection_that_was_replaced_is_none(clock: Clock) -> None:
    async def body() -> None:
        head = await Head(clock).start()
        two = await head.join(2)
        before = head.apis[2]
        await head.join(2)
        head.table.disconnected(two, before)
        assert two.state == "ALIVE" and two.api is head.apis[2]
        head.table.to_client(b"prefix", 2, "message")
        head.table.to_client(b"prefix", 99, "message")
        assert head.apis[2].said == [(b"prefix", "message")] and not before.said

    run(body)


def test_what_the_judge_has_slept_does_not_count(clock: Clock) -> None:
    async def body() -> None:
        head = await Head(clock).start()
        two = await head.join(2)
        clock.now += 10_000  # it was stopped
        await head.pass_time(1)
        assert two.state == "ALIVE" and not head.dead

    run(body)


def test_the_real_judge_looks_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "JUDGE_SECONDS", 0.01)
    monkeypatch.setattr(liveness, "SILENT_AWAY", 0.05)
    monkeypatch.setattr(liveness, "SILENT_DEAD", 0.15)

    async def body() -> None:
        head = await Head(Clock()).start()
        head.table.start()
        await head.join(2)
        for _ in range(500):
            await asyncio.sleep(0.01)
            if head.dead:
                break
        assert head.dead == [(2, "id-of-2")]
        await head.table.stop()

    run(body)


# ---------------------------------------------------------------- a death is written first


def test_a_death_counts_when_it_is_written_and_meanwhile_nothing_of_the_node_does(clock: Clock) -> None:
    async def body() -> None:
        head = await Head(clock).start()
        two = await head.join(2)
        head.disk.flowing.clear()
        await head.pass_time(liveness.SILENT_DEAD + 1)
        assert not head.dead and two.state == "AWAY" and head.table.is_dying(two)
        assert head.table.refuse(register(2)), "it comes back while its death is being written"
        assert not head.table.refuse(register(2, "another start"))
        await head.pass_time(10)
        head.disk.flowing.set()
        await asyncio.sleep(0.01)
        assert head.dead == [(2, "id-of-2")] and not head.table.is_dying(two)
        assert "silent" in head.table.refuse(register(2)), "for good"
        again = await Head(clock, head.data).start()
        assert "silent" in again.table.refuse(register(2)) and again.table.records[2].state == "DEAD"
        assert not again.table.waiting_for_nodes

    run(body)


def test_a_word_of_a_node_that_is_dying_does_not_bring_it_back(clock: Clock) -> None:
    async def body() -> None:
        head = await Head(clock).start()
        two = await head.join(2)
        head.disk.flowing.clear()
        await head.pass_time(liveness.SILENT_DEAD + 1)
        assert head.table.is_dying(two)
        before = len(head.alive)
        head.close(two)
        head.disk.flowing.set()
        await asyncio.sleep(0.01)
        assert two.state == "DEAD" and len(head.alive) == before
        head.close(two)
        assert two.state == "DEAD"

    run(body)


def test_one_that_ends_in_order_is_dead_at_once(clock: Clock) -> None:
    async def body() -> None:
        head = await Head(clock).start()
        two = await head.join(2)
        await head.table.left(two, "it was stopped")
        assert head.dead == [(2, two.id)] and two.reason == "it was stopped" and head.table.alone
        await head.table.left(two, "it was stopped")
        assert len(head.dead) == 1

    run(body)


def test_a_node_that_starts_over_has_died_before_it_lives_again(clock: Clock) -> None:
    async def body() -> None:
        head = await Head(clock).start()
        two = await head.join(2, "old")
        head.table.drain(two, True)
        head.disk.flowing.clear()
        coming = asyncio.create_task(head.join(2, "new"))
        await asyncio.sleep(0.01)
        assert not coming.done() and not head.dead
        head.disk.flowing.set()
        assert await coming is two
        assert head.dead == [(2, "old")] and two.state == "ALIVE" and two.id == "new" and not two.draining
        assert head.table.by_id("new") is two and head.table.by_id("old") is None
        assert head.stored()[2].id == "new" and not head.stored()[2].dead
        assert head.table.refuse(register(2, "new")) == ""
        await head.table.left(two, "over")
        assert (await head.join(2, "third")).state == "ALIVE" and len(head.dead) == 2

    run(body)


def test_after_a_restart_all_are_awaited_and_then_dead(clock: Clock) -> None:
    async def body() -> None:
        first = await Head(clock).start()
        for number in (2, 3):
            await first.join(number)
        head = await Head(clock, first.data).start()
        two, three = head.table.records[2], head.table.records[3]
        assert two.state == three.state == "AWAY" and head.table.waiting_for_nodes and not head.table.alone
        assert await head.join(2) is two and two.state == "ALIVE" and not head.dead
        await head.pass_time(liveness.RESET_DEAD + 1, two)
        assert head.dead == [(3, "id-of-3")] and not head.table.waiting_for_nodes
        assert head.stored()[3].dead

    run(body)


def test_one_that_was_given_a_number_and_never_came_is_not_awaited(clock: Clock) -> None:
    async def body() -> None:
        first = await Head(clock).start()
        await first.table.new_number("n2")
        assert not first.table.waiting_for_nodes and first.table.alone
        head = await Head(clock, first.data).start()
        assert not head.table.waiting_for_nodes and head.table.alone
        await head.pass_time(liveness.RESET_DEAD + 1)
        assert not head.table.refuse(register(2)) and head.table.alone
        assert (await head.join(2)).state == "ALIVE"

    run(body)


def test_one_that_never_came_does_not_die(clock: Clock) -> None:
    async def body() -> None:
        first = await Head(clock).start()
        await first.table.new_number("n2")
        head = await Head(clock, first.data).start()
        await head.pass_time(liveness.RESET_DEAD + 1)
        assert head.dead == [] and not head.stored()[2].dead
        two = await head.join(2)
        await head.pass_time(liveness.SILENT_DEAD + 1)
        assert head.dead == [(2, two.id)], "from then on it is judged"

    run(body)


# ---------------------------------------------------------------- what others see


def test_all_nodes_are_told_what_changes_and_the_dead_have_nothing(clock: Clock) -> None:
    async def body() -> None:
        head = await Head(clock).start()
        two, three = await head.join(2), await head.join(3)
        for api in head.apis.values():
            head.table.tell_all(api)
        head.table.flush()
        head.table.heard(two, c.Report(1, available={"CPU": 10_000}))
        head.table.drain(three, True)
        head.table.flush()
        for api in head.apis.values():
            assert {n: e.state for n, e in api.entries.items()} == {1: "ALIVE", 2: "ALIVE", 3: "DRAINING"}
            assert api.entries[2].available == {"CPU": 10_000} and api.entries[2].total == {"CPU": 40_000}
        assert head.apis[3].drains == [True] and head.rooms
        await head.table.left(two, "over")
        head.table.flush()
        entry = head.apis[3].entries[2]
        assert (entry.state, entry.total, entry.available, entry.reason) == ("DEAD", {}, {}, "over")

    run(body)


def test_amounts_that_are_gone_are_gone(clock: Clock) -> None:
    async def body() -> None:
        head = await Head(clock).start()
        two = await head.join(2)
        head.table.heard(two, c.Report(1, total={"GPU": 10_000}, available={"GPU": 5_000}))
        assert two.total == {"CPU": 40_000, "GPU": 10_000} and two.available == {"CPU": 40_000, "GPU": 5_000}
        head.table.heard(two, c.Report(2, total={"GPU": 0}, available={"GPU": 0}, waiting=3))
        assert two.total == two.available == {"CPU": 40_000} and two.waiting == 3
        view = head.table.cluster.get(two.id)
        assert view is not None and view.available == {"CPU": 40_000}

    run(body)


def test_nodes_are_found_by_what_people_call_them(clock: Clock) -> None:
    async def body() -> None:
        head = await Head(clock).start()
        two, three = await head.join(2, "abcdef12"), await head.join(3, "abcdff34")
        for word in ("abcdef12", "abcde", "n2", "2", "10.0.0.2:1"):
            assert head.table.find(word) is two, word
        assert head.table.find("abcd") is None and head.table.find("abc") is None and head.table.find("abcdf") is three

    run(body)


def test_few_of_the_dead_are_shown(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "_SHOW_DEAD", 3)

    async def body() -> None:
        head = await Head(clock).start()
        for number in range(2, 10):
            clock.now += 1
            await head.table.left(await head.join(number), "over")
        assert head.table.records.keys() == {1, 7, 8, 9}
        assert head.table.refuse(register(9)) == "over"

    run(body)


def test_a_start_that_was_declared_dead_is_refused_however_many_have_died_since(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "_SHOW_DEAD", 3)

    async def body() -> None:
        head = await Head(clock).start()
        for number in range(2, 10):
            clock.now += 1
            await head.table.left(await head.join(number), "over")
        assert head.table.refuse(register(2))

    run(body)
