"""What a node has: no unit or device is lost, invented or given twice, whatever is taken, lent and restored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from noded.node import capacity as capacity_module
from noded.node.capacity import Bundles, Capacity, KeptGroup, Share, bundle_of
from noded.node.ledger import MAX_KEY, LedgerFull
from noded.resources import UNIT, base_name
from noded.wire import messages as m

GPUS = st.sampled_from([1800, 2500, 5000, 6000, UNIT, 2 * UNIT])
REQUESTS = st.fixed_dictionaries({}, optional={"CPU": st.sampled_from([5000, UNIT, 2 * UNIT]), "GPU": GPUS})
BUNDLES = st.dictionaries(st.integers(0, 5), REQUESTS, min_size=1, max_size=4)
"""A node may have any of a group's."""


class Book:
    """In place of a ledger's table."""

    def __init__(self, records: Mapping[bytes | int, bytes] | None = None):
        self.records: dict[bytes | int, bytes] = dict(records or {})
        self.room = 100
        self.refused = False
        self.moments: list[dict[bytes | int, bytes]] = []
        """What a crash would have left, after each change."""

    def put(self, key: bytes | int, payload: bytes) -> None:
        assert isinstance(key, int) or len(key) <= MAX_KEY
        assert len(payload) < 980, "no slot has room for it"
        if key not in self.records and len(self.records) >= self.room:
            self.refused = True
            raise LedgerFull("no room")
        self.records[key] = payload
        self.moments.append(dict(self.records))

    def get(self, key: bytes | int) -> bytes | None:
        return self.records.get(key)

    def delete(self, key: bytes | int) -> bool:
        found = self.records.pop(key, None) is not None
        self.moments.append(dict(self.records))
        return found

    def items(self) -> Iterator[tuple[bytes | int, bytes]]:
        for key in tuple(self.records):
            if key in self.records:
                yield key, self.records[key]

    def __len__(self) -> int:
        return len(self.records)

    def pieces(self) -> dict[bytes, list[tuple[int, int]]]:
        """Group -> (turn, number) of each of its pieces."""
        found: dict[bytes, list[tuple[int, int]]] = {}
        for key in self.records:
            assert isinstance(key, bytes)
            found.setdefault(key[:-2], []).append((key[-2], key[-1]))
        return found


def node(cpus: float = 4, gpus: float = 2, kept: Book | None = None) -> Capacity:
    total = {"CPU": round(cpus * UNIT), "GPU": round(gpus * UNIT), "tape": UNIT}
    return Capacity(total, [str(i) for i in range(-(-round(gpus * UNIT) // UNIT))], Book() if kept is None else kept)


def sum_of(bundles: Bundles) -> dict[str, int]:
    return {name: sum(b.get(name, 0) for b in bundles.values()) for name in {n for b in bundles.values() for n in b}}


def numbered(*bundles: dict[str, int]) -> Bundles:
    return dict(enumerate(bundles))


def kept_without_gpus(kept: Book, id_: bytes, bundles: Bundles) -> None:
    """As a daemon leaves it that had none to give."""
    kept.records[id_ + b"\0\0"] = b"\1" + msgspec.msgpack.encode(KeptGroup(bundles, {}))


def grant(capacity: Capacity, amounts: Mapping[str, int], where: m.Place = m.ANYWHERE) -> Share | None:
    """As leases do it."""
    share = capacity.fit(amounts, where)
    return None if capacity.lacking(share) else capacity.take(share)


def open_group(capacity: Capacity, id_: bytes, bundles: Bundles, attempt: int = 0) -> bool:
    if capacity.lacking_for_group(bundles, sum_of(bundles)):
        return False
    capacity.open_group(id_, bundles, attempt)
    return True


def gpu(amount: float) -> dict[str, int]:
    return {"GPU": round(amount * UNIT)}


class Books(RuleBasedStateMachine):
    """Leases and groups come, lend, end, and are taken over by a new daemon, which knows their shares alone."""

    @initialize(
        cpus=st.integers(1, 4),
        gpus=st.sampled_from([0, 1, 1.5, 2, 3]),
        room=st.sampled_from([0, 1, 100]),
        many_pieces=st.booleans(),
    )
    def start(self, cpus: int, gpus: float, room: int, many_pieces: bool) -> None:
        # A record in pieces has room for all of them or none: what of it is left else is tested below.
        self.piece, capacity_module._PIECE = capacity_module._PIECE, 30 if many_pieces and room == 100 else 900
        self.shape = cpus, gpus
        self.kept = Book()
        self.kept.room = 10_000 if room == 100 else room
        self.capacity = node(*self.shape, self.kept)
        self.leases: list[tuple[Share, bytes]] = []
        self.lent: list[Share] = []
        self.groups: dict[bytes, Bundles] = {}
        self.known: dict[bytes, tuple[Bundles, dict[int, dict[int, int]], int]] = {}
        """What the next daemon is to have of each group."""
        self.made = 0

    @rule(amounts=REQUESTS)
    def lease(self, amounts: dict[str, int]) -> None:
        share = grant(self.capacity, amounts)
        if share is not None:
            self.leases.append((share, b""))

    @precondition(lambda self: self.groups)
    @rule(data=st.data(), amounts=REQUESTS)
    def lease_in_a_group(self, data: st.DataObject, amounts: dict[str, int]) -> None:
        id_ = data.draw(st.sampled_from(sorted(self.groups)))
        bundle = data.draw(st.sampled_from([-1, *self.groups[id_]]))
        where = m.Place(group=id_, bundle=bundle)
        share = grant(self.capacity, amounts, where)
        if share is not None:
            assert not self.capacity.never(amounts, where)
            assert bundle in (-1, share.bundle) and (not amounts or bundle_of(share.resources) == share.bundle)
            self.leases.append((share, id_))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        share, _ = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        if any(share is one for one in self.lent):
            self.lent = [one for one in self.lent if one is not share]
            self.capacity.lend(share, False)
        self.capacity.give(share)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def lend(self, data: st.DataObject) -> None:
        share, _ = data.draw(st.sampled_from(self.leases))
        lent = not any(share is one for one in self.lent)
        self.capacity.lend(share, lent)
        self.lent = [*self.lent, share] if lent else [one for one in self.lent if one is not share]

    @rule(bundles=BUNDLES)
    def open(self, bundles: Bundles) -> None:
        self.made += 1
        id_ = self.made.to_bytes(16, "big")[::-1]
        if self._open(id_, bundles):
            assert not self.capacity.never_for_group(bundles, sum_of(bundles))

    @precondition(lambda self: self.groups)
    @rule(data=st.data(), bundles=BUNDLES)
    def open_more(self, data: st.DataObject, bundles: Bundles) -> None:
        """Another node that had some of it has died."""
        id_ = data.draw(st.sampled_from(sorted(self.groups)))
        further = {index: bundle for index, bundle in bundles.items() if index not in self.groups[id_]}
        if further:
            self._open(id_, further)

    def _open(self, id_: bytes, bundles: Bundles) -> bool:
        self.kept.refused = False
        self.made += 1
        if not open_group(self.capacity, id_, bundles, self.made):
            return False
        self.groups[id_] = {**self.groups.get(id_, {}), **bundles}
        group = self.capacity.groups[id_]
        assert (group.bundles, group.attempt) == (self.groups[id_], self.made)
        if not self.kept.refused:
            self._know(id_)
        else:
            self.known.pop(id_, None)  # a part of it would be worse than nothing: it is lost as a whole
        return True

    def _know(self, id_: bytes) -> None:
        group = self.capacity.groups[id_]
        shares = {index: dict(share) for index, share in group.shares.items()}
        self.known[id_] = dict(group.bundles), shares, group.attempt

    @precondition(lambda self: self.groups)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        id_ = data.draw(st.sampled_from(sorted(self.groups)))
        for share, _ in [one for one in self.leases if one[1] == id_]:
            if any(share is one for one in self.lent):
                self.capacity.lend(share, False)
            self.capacity.give(share)
        self._forget_leases({(id_, index) for index in self.groups[id_]})
        del self.groups[id_]
        self.known.pop(id_, None)
        self.capacity.close_group(id_)

    def _forget_leases(self, lost: set[tuple[bytes, int]]) -> None:
        self.leases = [(share, id_) for share, id_ in self.leases if (id_, share.bundle) not in lost]
        self.lent = [one for one in self.lent if any(one is share for share, _ in self.leases)]

    @rule(found_later=st.booleans())
    def restart(self, found_later: bool) -> None:
        """Another daemon: it has leases and bundles from the ledger; it may find its GPUs later. What found no room
        there is lost, with what ran in it.
        """
        cpus, gpus = self.shape
        found_later = found_later and gpus == int(gpus)
        before = {name: amount for name, amount in self.capacity.available.items() if name.startswith("GPU")}
        kept = {id_: bundles for id_, (bundles, _, _) in self.known.items()}
        lost = {(id_, i) for id_, bundles in self.groups.items() for i in bundles if i not in kept.get(id_, {})}
        assert not lost or self.kept.room < 100
        self._forget_leases(lost)
        self.groups = kept
        self.capacity = node(cpus, 0 if found_later else gpus, self.kept)
        self.capacity.restore_groups()
        restored: list[tuple[Share, bytes]] = []
        for share, id_ in self.leases:
            taken = self.capacity.take(Share(share.resources, share.devices, bundle_of(share.resources)))
            assert taken.devices == share.devices
            restored.append((taken, id_))
            if any(share is one for one in self.lent):
                self.capacity.lend(taken, True)
                self.lent = [taken if one is share else one for one in self.lent]
        self.leases = restored
        self.capacity.restore_devices()
        if found_later:
            self.capacity.add_gpus([str(i) for i in range(int(gpus))], {})
        after = {name: amount for name, amount in self.capacity.available.items() if name.startswith("GPU")}
        if not lost:
            assert {n: a for n, a in after.items() if a} == {n: a for n, a in before.items() if a}
        for id_ in list(self.known):
            known = self.known[id_]
            self._know(id_)
            assert self.known[id_] == known

    @invariant()
    def what_is_kept_is_of_groups_that_there_are(self) -> None:
        pieces = self.kept.pieces()
        assert set(pieces) == set(self.known)
        for id_, found in pieces.items():
            turn = found[0][0]
            assert sorted(found) == [(turn, number) for number in range(len(found))], id_
        assert set(self.capacity.groups) == set(self.groups)

    @invariant()
    def amounts_add_up(self) -> None:
        total, available = self.capacity.own()
        in_groups = sum_of(numbered(*(b for bundles in self.groups.values() for b in bundles.values())))
        for name in total:
            out = sum(share.resources.get(name, 0) for share, _ in self.leases) + in_groups.get(name, 0)
            back = sum(share.resources.get(name, 0) for share in self.lent) if name == "CPU" else 0
            assert available[name] == total[name] - out + back, name

    @invariant()
    def nobody_shares_more_than_a_device(self) -> None:
        """Among those who run now: leases outside of groups, and bundles; and within each bundle, its leases."""
        rooms = {i: min(UNIT, round(self.shape[1] * UNIT) - i * UNIT) for i in range(len(self.capacity.ids))}
        outer = [share.devices for share, _ in self.leases if share.bundle < 0]
        for id_, bundles in self.groups.items():
            shares = self.capacity.groups[id_].shares
            assert shares.keys() == bundles.keys()
            for index, bundle in bundles.items():
                devices = shares[index]
                assert sum(devices.values()) == bundle.get("GPU", 0)
                inner = [s.devices for s, whose in self.leases if whose == id_ and s.bundle == index]
                self._within(inner, devices)
            outer += shares.values()
        self._within(outer, rooms)
        for share, _ in self.leases:
            asked = sum(amount for name, amount in share.resources.items() if base_name(name) == "GPU")
            assert sum(share.devices.values()) == asked
            assert len(share.devices) == (-(-asked // UNIT))

    @staticmethod
    def _within(shares: list[dict[int, int]], rooms: Mapping[int, int]) -> None:
        used: dict[int, int] = {}
        for share in shares:
            for device, units in share.items():
                used[device] = used.get(device, 0) + units
        assert all(units <= rooms.get(device, 0) for device, units in used.items()), (used, rooms)

    def teardown(self) -> None:
        if not hasattr(self, "capacity"):
            return
        capacity_module._PIECE = self.piece
        for share in self.lent:
            self.capacity.lend(share, False)
        for share, _ in self.leases:
            self.capacity.give(share)
        for id_ in self.groups:
            self.capacity.close_group(id_)
        assert not self.kept
        assert self.capacity.available == self.capacity.total == node(*self.shape).total
        # All of its GPUs can be had again, each by its own name.
        whole = int(self.shape[1])
        if whole:
            share = grant(self.capacity, gpu(whole))
            assert share is not None and self.capacity.names_of(share.devices) == [str(i) for i in range(whole)]


Books.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestBooks = Books.TestCase


@given(amounts=REQUESTS, gpus=st.sampled_from([0, 1, 2]))
def test_never_is_what_an_idle_node_lacks(amounts: dict[str, int], gpus: int) -> None:
    capacity = node(2, gpus)
    never = capacity.never(amounts, m.ANYWHERE)
    assert bool(never) == bool(capacity.lacking(capacity.fit(amounts, m.ANYWHERE)))
    for name, (asked, there) in never.items():
        assert asked == amounts[name] > there == capacity.total[name]


@given(bundles=BUNDLES, gpus=st.sampled_from([0, 1, 2]))
def test_a_group_is_never_possible_when_an_idle_node_cannot_have_it(bundles: Bundles, gpus: int) -> None:
    capacity = node(4, gpus)
    never = capacity.never_for_group(bundles, sum_of(bundles))
    assert bool(never) == bool(capacity.lacking_for_group(bundles, sum_of(bundles)))


def test_what_never_fits_is_told() -> None:
    capacity = node(2, 1)
    assert capacity.never({"CPU": 3 * UNIT, "x": 1}, m.ANYWHERE) == {"CPU": (3 * UNIT, 2 * UNIT), "x": (1, 0)}
    assert capacity.never({"CPU": 2 * UNIT, "GPU": UNIT}, m.ANYWHERE) == {}
    # The sum is there, but no device has room for the third.
    pieces = numbered(gpu(0.6), gpu(0.6), gpu(0.6))
    [(name, numbers)] = node(2, 2).never_for_group(pieces, gpu(1.8)).items()
    assert name.startswith("GPU") and numbers == (18000, 20000)


def test_what_never_fits_a_group_is_told_by_its_largest_bundle() -> None:
    capacity = node(4, 2)
    capacity.open_group(b"g" * 16, numbered({"CPU": UNIT}, {"CPU": 2 * UNIT, "GPU": UNIT}))

    def anywhere(bundle: int = -1) -> m.Place:
        return m.Place(group=b"g" * 16, bundle=bundle)

    assert capacity.never({"CPU": 2 * UNIT}, anywhere()) == {}
    assert capacity.never({"CPU": 2 * UNIT}, anywhere(0)) == {"CPU": (2 * UNIT, UNIT)}
    assert capacity.never({"CPU": 3 * UNIT, "GPU": UNIT}, anywhere()) == {"CPU": (3 * UNIT, 2 * UNIT)}
    assert capacity.never({"CPU": UNIT}, anywhere(2)) == {"bundle index": (2 * UNIT, UNIT)}
    capacity.open_group(b"h" * 16, {2: {"CPU": UNIT}})
    assert capacity.never({"CPU": UNIT}, m.Place(group=b"h" * 16, bundle=2)) == {}
    assert capacity.never({"CPU": UNIT}, m.Place(group=b"h" * 16, bundle=0)), "that bundle is on another node"


@pytest.mark.parametrize("group", [b"", b"g" * 16])
def test_one_and_a_half_devices_are_refused_and_harm_nobody(group: bytes) -> None:
    """No client of ours asks for them, but it must not be what stops a node."""
    capacity = node(4, 2)
    capacity.open_group(b"g" * 16, numbered(gpu(2))) if group else None
    where = m.Place(group=group)
    assert capacity.never(gpu(1.5), where) and capacity.lacking(capacity.fit(gpu(1.5), where))
    assert capacity.never_for_group(numbered(gpu(1.5)), gpu(1.5))


def test_ten_times_six_tenths_run_two_at_once_one_on_each() -> None:
    capacity = node(0, 2)
    shares = [grant(capacity, gpu(0.6)) for _ in range(10)]
    assert [share.devices for share in shares if share] == [{0: 6000}, {1: 6000}]
    assert capacity.lacking(capacity.fit(gpu(0.8), m.ANYWHERE)) == ["GPU"]


def test_eighty_times_eighteen_hundredths_run_five_on_each_device() -> None:
    capacity = node(0, 16)
    shares = [grant(capacity, gpu(0.18)) for _ in range(81)]
    assert [share.devices for share in shares if share] == [{n // 5: 1800} for n in range(80)]
    assert shares[80] is None


def test_small_pieces_leave_room_for_large_ones() -> None:
    """In the order of the bundles, the half would go beside nothing and leave no whole device."""
    capacity = node(0, 2)
    half = grant(capacity, gpu(0.5))
    assert half is not None and half.devices == {0: 5000}
    assert open_group(capacity, b"g" * 16, numbered(gpu(0.4), gpu(0.1), gpu(1)))
    assert capacity.groups[b"g" * 16].shares == {0: {0: 4000}, 1: {0: 1000}, 2: {1: UNIT}}
    other = node(0, 2)
    other.take(Share(gpu(0.4), {1: 4000}))
    assert open_group(other, b"h" * 16, numbered(gpu(0.4), gpu(0.6), gpu(0.6)))


def test_a_bundle_gives_its_own_devices_only() -> None:
    capacity = node(2, 3)
    outside = grant(capacity, gpu(1))
    capacity.open_group(b"g" * 16, numbered(gpu(1), gpu(0.5)))
    first, second = (grant(capacity, gpu(0.5), m.Place(group=b"g" * 16, bundle=i)) for i in (0, 1))
    assert outside and first and second
    assert (outside.devices, first.devices, second.devices) == ({0: UNIT}, {1: 5000}, {2: 5000})
    assert grant(capacity, gpu(1), m.Place(group=b"g" * 16)) is None
    rest = grant(capacity, gpu(0.5))
    assert rest and rest.devices == {2: 5000}
    assert grant(capacity, gpu(0.1)) is None


def test_a_bundle_is_chosen_that_could_have_it() -> None:
    """So that its waiting asks the right leases back."""
    capacity = node(4, 1)
    capacity.open_group(b"g" * 16, numbered({"CPU": UNIT}, {"CPU": UNIT, "GPU": UNIT}))
    where = m.Place(group=b"g" * 16)
    assert capacity.fit({"CPU": UNIT, "GPU": UNIT}, where).bundle == 1
    assert grant(capacity, {"CPU": UNIT, "GPU": UNIT}, where)
    assert capacity.fit({"CPU": UNIT, "GPU": UNIT}, where).bundle == 1


def test_after_a_restart_an_idle_bundle_gets_nothing_that_another_has() -> None:
    """The idle group is restored first; what runs in the busy one has device 0."""
    kept = Book()
    kept_without_gpus(kept, b"idle" * 4, {1: gpu(1)})
    kept_without_gpus(kept, b"busy" * 4, {0: gpu(1)})
    capacity = node(4, 2, kept)
    capacity.restore_groups()
    name = next(n for n in capacity.total if n.startswith("GPU@") and b"busy".hex() in n)
    capacity.take(Share({name: 5000}, {0: 5000}, 0))
    capacity.restore_devices()
    assert capacity.groups[b"idle" * 4].shares == {1: {1: UNIT}}
    assert capacity.groups[b"busy" * 4].shares == {0: {0: UNIT}}


def test_after_a_restart_a_bundle_has_the_gpus_that_it_had() -> None:
    kept = Book()
    before = node(4, 3, kept)
    first, second, third = (grant(before, gpu(1)) for _ in range(3))
    assert first and second and third
    before.give(second)
    before.open_group(b"one!" * 4, {0: {"CPU": UNIT}, 3: gpu(1)}, 5)
    before.give(first)
    before.open_group(b"two!" * 4, numbered(gpu(0.5), gpu(0.5)))
    after = node(4, 3, kept)
    after.restore_groups()
    after.restore_devices()
    assert after.groups[b"one!" * 4].shares == {0: {}, 3: {1: UNIT}}
    assert after.groups[b"one!" * 4].attempt == 5
    assert after.groups[b"two!" * 4].shares == {0: {0: 5000}, 1: {0: 5000}}
    for id_ in list(after.groups):
        after.close_group(id_)
    assert not kept and grant(after, gpu(3))


def test_a_book_that_is_full_costs_the_group_at_the_next_restart_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept = Book()
    kept.room = 1
    before = node(4, 2, kept)
    before.open_group(b"one!" * 4, numbered({"CPU": UNIT}))
    before.open_group(b"two!" * 4, numbered(gpu(1)))
    assert b"two!".hex() in caplog.text and "lost here at a restart" in caplog.text
    after = node(4, 2, kept)
    after.restore_groups()
    after.restore_devices()
    assert set(after.groups) == {b"one!" * 4} and grant(after, gpu(2))
    before.close_group(b"two!" * 4)
    before.close_group(b"one!" * 4)
    assert not kept


def test_a_group_of_many_bundles_is_kept_whole(caplog: pytest.LogCaptureFixture) -> None:
    bundles = {index: {f"resource-{index:03d}": UNIT} for index in range(200)}
    total = {**sum_of(bundles), "CPU": UNIT}
    kept = Book()
    before = Capacity(dict(total), [], kept)
    before.open_group(b"g" * 16, bundles)
    assert len(kept) > 3
    after = Capacity(dict(total), [], kept)
    after.restore_groups()
    assert after.groups[b"g" * 16].bundles == bundles and after.available == before.available
    after.close_group(b"g" * 16)
    assert not kept and after.available == total and not caplog.records


def test_of_a_group_that_has_room_in_part_nothing_stays_in_the_book() -> None:
    bundles = {index: {f"resource-{index:03d}": UNIT} for index in range(200)}
    kept = Book()
    kept.room = 2
    capacity = Capacity(sum_of(bundles), [], kept)
    capacity.open_group(b"g" * 16, bundles)
    capacity.close_group(b"g" * 16)
    assert not kept


@pytest.mark.parametrize("turns", [1, 255])
def test_a_crash_leaves_the_bundles_of_before_or_those_of_after(turns: int) -> None:
    """Wherever the daemon dies while further bundles are written down, or while the group is closed."""
    id_, other = b"g" * 16, b"h" * 16
    bundles = {index: {f"resource-{index:03d}": UNIT} for index in range(400)}
    total = {**sum_of(bundles), "CPU": UNIT}
    few, all_ = dict(list(bundles.items())[:200]), bundles
    kept = Book()
    before = Capacity(dict(total), [], kept)
    before.open_group(other, numbered({"CPU": UNIT}))
    for _ in range(turns - 1):  # the number of its turn goes around
        before._turns[id_] = before._turns.get(id_, -1) + 1
    before.open_group(id_, few)
    written = len(kept.moments)
    before.open_group(id_, {index: bundles[index] for index in range(200, 400)})
    opened = len(kept.moments)
    before.close_group(id_)
    seen = []
    for at, moment in enumerate(kept.moments[written - 1 :], written):
        book = Book(moment)
        after = Capacity(dict(total), [], book)
        after.restore_groups()
        found = after.groups[id_].bundles if id_ in after.groups else {}
        assert found in ((few, all_) if at <= opened else (all_, {})), at
        seen.append(len(found))
        assert after.groups[other].bundles == numbered({"CPU": UNIT})
        assert set(book.pieces()) == set(after.groups), "the rest of the others is cleared"
        assert all(len({turn for turn, _ in found}) == 1 for found in book.pieces().values())
        after.restore_groups() if not found else after.open_group(id_, {999: {}})  # it goes on
        again = Capacity(dict(total), [], book)
        again.restore_groups()
        assert (again.groups[id_].bundles if found else {}) == ({**found, 999: {}} if found else {})
        for each in list(again.groups):
            again.close_group(each)
        assert not book and again.available == total
    assert set(seen) == {200, 400, 0} and seen[-1] == 0


def test_gpus_found_late_count_what_is_in_use_already() -> None:
    kept = Book()
    kept_without_gpus(kept, b"g" * 16, {0: gpu(1)})
    capacity = node(4, 0, kept)
    capacity.take(Share(gpu(1), {0: UNIT}))
    capacity.restore_groups()
    capacity.restore_devices()
    capacity.add_gpus(["GPU-a", "GPU-b", "GPU-c"], {"accelerator_type:T4": UNIT})
    assert capacity.groups[b"g" * 16].shares == {0: {1: UNIT}}
    assert capacity.own()[1]["GPU"] == UNIT and capacity.total["accelerator_type:T4"] == UNIT
    share = grant(capacity, gpu(1))
    assert share and capacity.names_of(share.devices) == ["GPU-c"]


def test_a_resource_of_the_user_may_have_any_name() -> None:
    capacity = Capacity({"tape@home": UNIT, "x:1": UNIT}, [], Book())
    share = grant(capacity, {"tape@home": UNIT, "x:1": 5000})
    assert share and bundle_of(share.resources) == -1
    assert capacity.own() == ({"tape@home": UNIT, "x:1": UNIT}, {"tape@home": 0, "x:1": 5000})


def test_lending_is_of_cpus_only() -> None:
    capacity = node(2, 1)
    share = grant(capacity, {"CPU": 2 * UNIT, "GPU": UNIT})
    assert share
    capacity.lend(share, True)
    assert capacity.own()[1] == {"CPU": 2 * UNIT, "GPU": 0, "tape": UNIT}
    assert grant(capacity, {"CPU": UNIT})
    capacity.lend(share, False)  # it goes on, whatever is free
    assert capacity.available["CPU"] == -UNIT and capacity.lacking(capacity.fit({"CPU": 1}, m.ANYWHERE)) == ["CPU"]
