"""The table of placement groups over memory storage and a host that only counts: what is told when, what survives a
crash at any moment, and that resources always come out even.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from noded import ids
from noded.head import placement_groups
from noded.head.group_records import Stored
from noded.head.placement_groups import TABLE, GroupTable
from noded.head.storage import Op, Superseded
from noded.head.storage.memory import MemoryData, MemoryStorage
from noded.wire import messages as m

MAKER, OTHER = b"maker--", b"other--"
OWN = 1


class Host:
    """Room for so many units of anything; grants in order, as far as there is room. Each grant is on another node."""

    def __init__(self, room: int):
        self.room = room
        self.node = OWN
        self.placed: dict[bytes, int] = {}
        self.nodes: dict[bytes, list[int]] = {}
        self.asked: dict[bytes, dict[str, Any]] = {}
        """The wishes of each group, as they came in."""
        self.waiting: dict[bytes, tuple[int, Callable[[list[int]], None]]] = {}
        self.lost: dict[bytes, Callable[[], None]] = {}
        self.ending: dict[bytes, Callable[[], None]] = {}
        self.slow = False
        """What runs in a group takes until ``finish()`` to end."""

    @staticmethod
    def size(bundles: list[dict[str, int]]) -> int:
        return sum(sum(bundle.values()) for bundle in bundles)

    @property
    def free(self) -> int:
        return self.room - sum(self.placed.values())

    def reserve_group(
        self,
        spec: m.GroupSpec,
        on_created: Callable[[list[int]], None],
        on_infeasible: Callable[[str], None],
        on_lost: Callable[[], None],
    ) -> None:
        id, bundles = spec.id, spec.bundles
        assert id not in self.placed and id not in self.waiting, "reserved twice"
        self._remember(spec, on_created, on_lost)
        self.waiting[id] = self.size(bundles), on_created
        if self.size(bundles) > self.room:
            on_infeasible(f"it asks for {self.size(bundles)}, there is {self.room}")
        self.grant()

    def _remember(
        self, spec: m.GroupSpec, on_created: Callable[[list[int]], None], on_lost: Callable[[], None]
    ) -> None:
        id = spec.id
        self.asked[id] = {
            "bundles": spec.bundles, "strategy": spec.strategy, "job": spec.job, "labels": list(spec.labels)
        }  # fmt: skip
        self.lost[id] = lambda: (self._wait_again(id, on_created), on_lost())[-1]

    def _wait_again(self, id: bytes, on_created: Callable[[list[int]], None]) -> None:
        self.waiting[id] = self.placed.pop(id), on_created
        del self.nodes[id]

    def lose(self, id: bytes) -> None:
        """A node of it has died. Its place goes to whoever waits longest."""
        self.lost[id]()
        self.grant()

    def grant(self) -> None:
        for id_, (size, on_created) in list(self.waiting.items()):
            if size <= self.free:
                del self.waiting[id_]
                self.placed[id_] = size
                self.node += 1
                self.nodes[id_] = [self.node] * len(self.asked[id_]["bundles"])
                on_created(list(self.nodes[id_]))

    def release_group(self, id: bytes, on_released: Callable[[], None]) -> None:
        self.waiting.pop(id, None)
        self.ending[id] = on_released
        if not self.slow:
            self.finish()

    def finish(self) -> None:
        ending, self.ending = self.ending, {}
        for id_, on_released in ending.items():
            self.placed.pop(id_, None)
            self.nodes.pop(id_, None)
            on_released()
        self.grant()

    def restore_group(
        self,
        spec: m.GroupSpec,
        nodes: list[int],
        on_created: Callable[[list[int]], None],
        on_infeasible: Callable[[str], None],
        on_lost: Callable[[], None],
    ) -> None:
        id, bundles = spec.id, spec.bundles
        assert id not in self.placed and id not in self.waiting, "restored twice"
        assert len(nodes) == len(bundles) and all(nodes)
        self._remember(spec, on_created, on_lost)
        self.placed[id], self.nodes[id] = self.size(bundles), list(nodes)
        self.node = max(self.node, *nodes)


class Disk(MemoryStorage):
    """Memory storage whose writes wait as long as it is ``stuck``."""

    def __init__(self, data: MemoryData):
        super().__init__(data=data)
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.writes: list[list[Op]] = []

    async def write(self, ops: Sequence[Op]) -> None:
        await self.flowing.wait()
        self.writes.append(list(ops))
        await super().write(ops)


class Head:
    """One life of the head: table, host and disk. What was told is kept in ``told``."""

    def __init__(self, data: MemoryData | None = None, room: int = 10, **options: Any):
        self.data = data or MemoryData()
        self.disk = Disk(self.data)
        self.host = Host(room)
        self.told: list[tuple[bytes, str]] = []
        self.reasons: list[str] = []
        self.untold: set[bytes] = set()
        self.lasting: set[bytes] = set()
        self.nodes: dict[bytes, list[int]] = {}
        """As told last, of each group."""
        self.table = GroupTable(
            self.disk,
            self.host,
            self.notify,
            may_create=lambda prefix: prefix in self.untold,
            outlives=lambda actor: actor in self.lasting,
            **options,
        )

    def notify(self, prefix: bytes, message: m.GroupAt) -> None:
        self.told.append((prefix, message.state))
        self.nodes[message.id] = message.nodes
        self.reasons.append(message.reason)

    async def start(self) -> Head:
        await self.disk.open()
        self.table.restore(await self.disk.load(TABLE), OWN)
        self.table.resume()
        return self

    async def quiet(self) -> None:
        """Until nothing is being written."""
        await until(lambda: self.table._writer is None and not self.table._dirty, "it does not stop writing")

    def states(self, prefix: bytes = MAKER) -> list[str]:
        """What this client was told since the last time."""
        found = [state for told, state in self.told if told == prefix]
        self.told = [entry for entry in self.told if entry[0] != prefix]
        return found

    async def nodes_on_disk(self, id_: bytes) -> list[int]:
        return msgspec.msgpack.decode((await self.disk.load(TABLE))[id_.hex()], type=Stored).nodes

    async def stored(self) -> int:
        return len(await self.disk.load(TABLE))


def spec(seq: int, *sizes: int, **more: Any) -> m.GroupSpec:
    more.setdefault("job", "j1")
    return m.GroupSpec(ids.group_id(MAKER, seq), [{"CPU": size} for size in sizes or (1,)], **more)


async def until(condition: Callable[[], Any], reason: str) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError(reason)


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), 20))


# ---------------------------------------------------------------- what is told when


def test_nobody_is_told_of_what_is_not_written() -> None:
    async def body() -> None:
        head = await Head().start()
        head.disk.flowing.clear()
        group = spec(1)
        head.table.create(MAKER, group)
        for _ in range(5):
            await asyncio.sleep(0)
        assert head.host.placed and head.states() == []
        head.table.watch(OTHER, group.id)
        head.table.create(MAKER, group)
        assert head.told == []
        head.disk.flowing.set()
        await head.quiet()
        assert head.states() == ["created"] and head.states(OTHER) == ["created"]
        assert len(head.disk.writes) == 1

    run(body)


def test_repeated_requests_change_nothing_and_are_answered() -> None:
    async def body() -> None:
        head = await Head().start()
        group = spec(1, 2, 3)
        for _ in range(3):
            head.table.create(MAKER, group)
            await head.quiet()
        assert head.states() == ["created"] * 3 and head.host.free == 5
        for _ in range(3):
            head.table.remove(MAKER, group.id)
            await head.quiet()
        assert head.states() == ["removed"] * 3 and head.host.free == 10
        head.table.create(MAKER, group)
        await head.quiet()
        assert head.states() == ["removed"] and head.host.free == 10 and await head.stored() == 0

    run(body)


def test_created_and_removed_before_the_write_costs_none() -> None:
    async def body() -> None:
        head = await Head().start()
        for seq in range(1, 50):
            head.table.create(MAKER, spec(seq))
            head.table.remove(MAKER, spec(seq).id)
        await head.quiet()
        assert head.disk.writes == [] and head.host.free == 10
        assert head.states() == ["removed"] * 49

    run(body)


def test_what_changes_together_is_written_together() -> None:
    async def body() -> None:
        head = await Head(room=100).start()
        for seq in range(1, 51):
            head.table.create(MAKER, spec(seq))
        await head.quiet()
        for seq in range(1, 51):
            head.table.remove(MAKER, spec(seq).id)
        await head.quiet()
        assert [len(ops) for ops in head.disk.writes] == [50, 50]

    run(body)


def test_one_that_waits_is_created_when_another_goes() -> None:
    async def body() -> None:
        head = await Head().start()
        head.table.create(MAKER, spec(1, 7))
        head.table.create(MAKER, spec(2, 7))
        await head.quiet()
        assert head.states() == ["created"]
        head.host.slow = True
        head.table.remove(OTHER, spec(1).id)
        await head.quiet()
        head.table.watch(OTHER, spec(1).id)
        head.table.remove(OTHER, spec(1).id)
        await head.quiet()
        assert head.told == [], "its resources are not free yet"
        head.host.finish()
        await head.quiet()
        assert head.states() == ["removed", "created"] and head.states(OTHER) == ["removed"]

    run(body)


def test_infeasible_is_told_after_a_while_and_may_still_be_created() -> None:
    async def body() -> None:
        head = await Head(infeasible_after=0.02).start()
        head.table.create(MAKER, spec(1, 99))
        await head.quiet()
        assert head.told == []
        assert head.table.table()[spec(1).id.hex()]["stats"]["scheduling_state"] == "INFEASIBLE"
        await until(lambda: head.told, "nothing is told")
        assert head.states() == ["infeasible"] and "asks for 99" in head.reasons[-1]
        head.table.watch(OTHER, spec(1).id)
        assert head.states(OTHER) == ["infeasible"]
        head.host.room = 99
        head.host.grant()
        await head.quiet()
        assert head.states() == ["created"] and head.reasons[-1] == ""

    run(body)


def test_one_that_is_created_in_time_was_never_infeasible() -> None:
    async def body() -> None:
        head = await Head(infeasible_after=0.02).start()
        head.table.create(MAKER, spec(1, 99))
        head.host.room = 99
        head.host.grant()
        head.table.create(MAKER, spec(2, 100))
        head.table.remove(MAKER, spec(2).id)
        await asyncio.sleep(0.04)
        assert head.states() == ["created", "removed"]

    run(body)


def test_labels_and_strategy_are_the_hosts_business() -> None:
    async def body() -> None:
        head = await Head().start()
        head.table.create(MAKER, spec(1, 1, 1, labels=["a", "b"], strategy="SPREAD", job="j7"))
        await head.quiet()
        wishes = {"bundles": spec(1, 1, 1).bundles, "strategy": "SPREAD", "job": "j7", "labels": ["a", "b"]}
        assert head.host.asked[spec(1).id] == wishes
        again = await Head(head.data).start()
        assert again.host.asked[spec(1).id] == wishes

    run(body)


def test_one_that_loses_a_node_waits_again_and_is_created_elsewhere() -> None:
    async def body() -> None:
        head = await Head().start()
        head.table.create(MAKER, spec(1, 7, 1))
        head.table.create(OTHER, spec(2, 7))
        await head.quiet()
        assert head.states() == ["created"] and head.nodes[spec(1).id] == head.host.nodes[spec(1).id] != []
        before = head.nodes[spec(1).id]
        head.disk.flowing.clear()
        head.host.lose(spec(1).id)  # the other one takes its place
        for _ in range(5):
            await asyncio.sleep(0)
        assert head.states() == ["pending"] and head.states(OTHER) == [] and head.nodes[spec(1).id] == []
        assert head.table.table(spec(1).id)[spec(1).id.hex()]["state"] == "RESCHEDULING"
        head.disk.flowing.set()
        await head.quiet()
        assert head.states(OTHER) == ["created"]
        head.table.remove(OTHER, spec(2).id)
        await head.quiet()
        assert head.states() == ["created"] and head.nodes[spec(1).id] == head.host.nodes[spec(1).id] != before
        assert head.table.table(spec(1).id)[spec(1).id.hex()]["state"] == "CREATED"
        again = await Head(head.data).start()
        assert again.host.nodes == head.host.nodes

    run(body)


def test_one_that_was_lost_and_found_before_the_write_is_told_of_once_it_is_written() -> None:
    async def body() -> None:
        head = await Head().start()
        head.table.create(MAKER, spec(1))
        await head.quiet()
        head.states()
        head.disk.flowing.clear()
        head.host.lose(spec(1).id)  # there is room elsewhere at once
        for _ in range(5):
            await asyncio.sleep(0)
        assert head.states() == ["pending"]
        head.disk.flowing.set()
        await head.quiet()
        assert head.states()[-1:] == ["created"] and head.nodes == head.host.nodes
        again = await Head(head.data).start()
        assert again.host.nodes == head.host.nodes

    run(body)


def test_nobody_is_told_of_new_nodes_that_are_not_written() -> None:
    async def body() -> None:
        head = await Head().start()
        head.table.create(MAKER, spec(1))
        await head.quiet()
        head.disk.flowing.clear()
        head.host.lose(spec(1).id)
        for _ in range(5):
            await asyncio.sleep(0)
        assert await head.nodes_on_disk(spec(1).id) != head.host.nodes[spec(1).id]
        head.table.watch(OTHER, spec(1).id)
        assert "created" not in head.states(OTHER)
        head.disk.flowing.set()
        await head.quiet()
        assert await head.nodes_on_disk(spec(1).id) == head.host.nodes[spec(1).id]
        assert head.states(OTHER)[-1:] == ["created"]

    run(body)


@pytest.mark.parametrize("turns", range(4))
def test_nobody_is_told_of_new_nodes_when_the_write_of_the_old_ones_ends(turns: int) -> None:
    """It is lost while it is being written, and created anew by then."""

    async def body() -> None:
        head = await Head().start()
        told: list[tuple[list[int], list[int]]] = []

        def notify(prefix: bytes, message: m.GroupAt) -> None:
            if message.state == "created":
                value = head.data.tables["default", TABLE][message.id.hex()]
                told.append((message.nodes, msgspec.msgpack.decode(value, type=Stored).nodes))

        head.table._notify = notify
        head.disk.flowing.clear()
        head.table.create(MAKER, spec(1))
        for _ in range(5):
            await asyncio.sleep(0)
        head.host.lose(spec(1).id)
        head.disk.flowing.set()
        for _ in range(turns):
            await asyncio.sleep(0)
            head.table.watch(OTHER, spec(1).id)
        await head.quiet()
        assert told and all(nodes == on_disk == head.host.nodes[spec(1).id] for nodes, on_disk in told)

    run(body)


def test_a_group_of_the_time_before_nodes_had_numbers_is_on_the_heads_own() -> None:
    async def body() -> None:
        head = await Head().start()
        value = msgspec.msgpack.encode((1, spec(1, 2, 3), True))
        head.table.restore({"": value}, 77)
        assert head.host.nodes == {spec(1).id: [77, 77]}

    run(body)


# ---------------------------------------------------------------- names, watchers, jobs


def test_names_are_taken_once_in_a_namespace_and_free_again_after_removal() -> None:
    async def body() -> None:
        head = await Head().start()
        head.table.create(MAKER, spec(1, name="n", namespace="a"))
        head.table.create(MAKER, spec(2, name="n", namespace="b"))
        assert await head.table.settled(spec(1).id) == ""
        assert await head.table.settled(spec(2).id) == ""
        head.table.create(OTHER, spec(3, name="n", namespace="a"))
        assert head.states(OTHER) == ["removed"]
        assert "'n' is taken" in await head.table.settled(spec(3).id)
        found = head.table.by_name("n", "a")
        assert found is not None and found.spec.id == spec(1).id
        head.table.remove(MAKER, spec(1).id)
        assert head.table.by_name("n", "a") is None
        head.table.create(MAKER, spec(4, name="n", namespace="a"))
        assert await head.table.settled(spec(4).id) == ""
        assert head.host.free == 8

    run(body)


def test_requests_that_are_none_are_refused_and_not_kept() -> None:
    async def body() -> None:
        head = await Head().start()
        for seq, bad in enumerate(
            [
                spec(1, 0),
                spec(2, -1),
                m.GroupSpec(spec(3).id, []),
                m.GroupSpec(spec(4).id, [{}]),
                spec(5, strategy="SOMEHOW"),
                spec(6, labels=["", ""]),
            ],
            1,
        ):
            head.table.create(MAKER, bad)
            assert head.states() == ["removed"], seq
            assert "no placement group" in await head.table.settled(bad.id)
        head.table.create(MAKER, spec(7, labels=["{"]))
        await head.quiet()
        assert head.table.records.keys() == {spec(7).id} and head.host.free == 9
        again = await Head(head.data).start()  # also what no node understands is read again
        assert again.table.records.keys() == {spec(7).id} and again.host.asked[spec(7).id]["labels"] == ["{"]

    run(body)


def test_who_watches_before_it_is_created_is_told() -> None:
    async def body() -> None:
        head = await Head().start()
        head.untold.add(MAKER)
        head.table.watch(OTHER, spec(1).id)
        for _ in range(3):
            head.table.sweep({"j1"})
        assert head.told == []
        head.table.create(MAKER, spec(1))
        await head.quiet()
        assert head.states(OTHER) == ["created"]

    run(body)


def test_who_watches_what_nobody_will_create_is_told() -> None:
    async def body() -> None:
        head = await Head().start()
        head.table.watch(OTHER, spec(1).id)
        head.table.sweep({"j1"})
        assert head.told == [], "the request may be on its way"
        head.table.sweep({"j1"})
        assert head.states(OTHER) == ["removed"] and "nothing is known" in head.reasons[-1]
        assert head.table.gone(spec(1).id)

    run(body)


def test_groups_end_with_their_job_unless_detached() -> None:
    async def body() -> None:
        head = await Head().start()
        head.table.create(MAKER, spec(1))
        head.table.create(MAKER, spec(2, detached=True))
        head.table.create(MAKER, spec(3, job="j2"))
        await head.quiet()
        head.table.job_ended("j1")
        await head.quiet()
        assert [head.table.gone(spec(seq).id) for seq in (1, 2, 3)] == [True, False, False]
        head.table.sweep(set())
        await head.quiet()
        assert [head.table.gone(spec(seq).id) for seq in (1, 2, 3)] == [True, False, True]
        assert head.host.free == 9 and await head.stored() == 1

    run(body)


def test_groups_of_a_detached_actor_end_with_it() -> None:
    async def body() -> None:
        head = await Head().start()
        actor = ids.actor_id(MAKER, 9)
        head.lasting.add(actor)
        head.table.create(MAKER, spec(1, actor=actor))
        head.table.job_ended("j1")
        head.table.sweep(set())
        await head.quiet()
        assert not head.table.gone(spec(1).id)
        head.lasting.clear()
        head.table.sweep(set())
        await head.quiet()
        assert head.table.gone(spec(1).id) and head.host.free == 10

    run(body)


def test_few_removed_groups_are_shown_and_more_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement_groups, "_SHOWN_REMOVED", 3)
    monkeypatch.setattr(placement_groups, "_REMEMBERED", 4)

    async def body() -> None:
        head = await Head().start()
        head.untold.add(MAKER)
        for seq in range(1, 11):
            head.table.create(MAKER, spec(seq))
            head.table.remove(MAKER, spec(seq).id)
            await head.quiet()
        assert {int(id_[14:24], 16) for id_ in head.table.table()} == {8, 9, 10}
        assert [seq for seq in range(1, 11) if head.table.gone(spec(seq).id)] == [4, 5, 6, 7, 8, 9, 10]

    run(body)


# ---------------------------------------------------------------- restarts


def test_a_restart_restores_what_was_created_and_queues_what_was_pending() -> None:
    async def body() -> None:
        first = await Head().start()
        first.table.create(MAKER, spec(1, 6, name="n", namespace="a"))
        first.table.create(MAKER, spec(2, 6))
        first.table.create(MAKER, spec(3, 1))
        await first.quiet()
        first.table.remove(MAKER, spec(3).id)
        await first.quiet()

        second = Head(first.data)
        await second.disk.open()
        second.table.restore(await second.disk.load(TABLE), OWN)
        assert second.host.placed == {spec(1).id: 6}, "before anything else is granted"
        assert second.host.waiting == {}
        second.table.resume()
        assert set(second.host.waiting) == {spec(2).id}
        for seq in (1, 2):
            second.table.watch(MAKER, spec(seq).id)
        second.table.watch(MAKER, spec(3).id)
        assert second.states() == ["created", "pending"]
        assert second.table.by_name("n", "a") is not None
        second.table.remove(MAKER, spec(1).id)
        await second.quiet()
        assert second.states() == ["removed", "created"]

    run(body)


def test_a_head_that_was_replaced_tells_nobody_anything_and_says_that_it_must_end() -> None:
    async def body() -> None:
        first = Head()
        await first.start()
        second = Head(first.data)
        await second.start()
        first.table.create(MAKER, spec(1))
        assert isinstance(await first.disk.ending.wait(), Superseded)
        await first.quiet()
        assert first.told == []

    run(body)


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("create"), st.integers(1, 8), st.integers(1, 4)),
        st.tuples(st.sampled_from(["remove", "lose"]), st.integers(1, 8), st.just(0)),
        st.tuples(st.just("turn"), st.integers(1, 4), st.just(0)),
        st.tuples(st.sampled_from(["stick", "flow", "slow", "finish", "crash"]), st.just(0), st.just(0)),
    ),
    max_size=40,
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(steps=_STEPS)
def test_whatever_happens_when_nothing_is_lost_and_nothing_is_twice(steps: list[tuple[str, int, int]]) -> None:
    """A client that repeats what was not answered, against a head that may crash at any moment."""

    async def body() -> None:
        head = await Head(room=8).start()
        wanted: dict[int, m.GroupSpec] = {}
        removing: set[int] = set()
        known: dict[int, str] = {}
        lost: set[int] = set()

        def read() -> None:
            """The client takes its answers."""
            for state, id_ in answers:
                seq = ids.seq_of(id_)
                assert not (known.get(seq) == "removed" and state != "removed"), "it came back"
                if known.get(seq) == "created" and state == "pending":
                    assert seq in lost, "it was lost, though no node was"
                known[seq] = state
            answers.clear()

        answers: list[tuple[str, bytes]] = []

        def connect(head: Head) -> None:
            def notify(prefix: bytes, message: m.GroupAt) -> None:
                if prefix == MAKER:
                    answers.append((message.state, message.id))

            head.table._notify = notify

        connect(head)
        for what, number, size in steps:
            if what == "create" and number not in wanted:
                wanted[number] = spec(number, size)
                head.table.create(MAKER, wanted[number])
            elif what == "remove" and number in wanted:
                removing.add(number)
                head.table.remove(MAKER, wanted[number].id)
            elif what == "lose" and number in wanted and wanted[number].id in head.host.placed:
                if wanted[number].id not in head.host.ending:
                    lost.add(number)
                    head.host.lose(wanted[number].id)
            elif what == "turn":
                for _ in range(number):
                    await asyncio.sleep(0)
            elif what == "stick":
                head.disk.flowing.clear()
            elif what == "flow":
                head.disk.flowing.set()
            elif what == "slow":
                head.host.slow = True
            elif what == "finish":
                head.host.finish()
            elif what == "crash":
                read()
                writer = head.table._writer
                if writer is not None:
                    writer.cancel()
                    await asyncio.wait([writer])
                head = await Head(head.data, room=8).start()
                connect(head)
                for seq, each in wanted.items():
                    if seq in removing:
                        if known.get(seq) != "removed":
                            head.table.remove(MAKER, each.id)
                    elif known.get(seq) in ("created", "removed"):
                        head.table.watch(MAKER, each.id)
                    else:
                        head.table.create(MAKER, each)
        head.disk.flowing.set()
        head.host.slow = False
        head.host.finish()
        await head.quiet()
        read()
        living = {seq for seq in wanted if seq not in removing}
        assert {seq for seq in wanted if known.get(seq) == "removed"} == removing
        assert {ids.seq_of(id_) for id_ in {**head.host.placed, **head.host.waiting}} == living
        assert {seq for seq in living if known.get(seq) == "created"} == {ids.seq_of(id_) for id_ in head.host.placed}
        assert head.host.placed == {id_: head.host.size(wanted[ids.seq_of(id_)].bundles) for id_ in head.host.placed}
        assert head.host.free >= 0
        assert await head.stored() == len(living)
        last = await Head(head.data, room=8).start()
        assert last.host.nodes == head.host.nodes

    run(body)
