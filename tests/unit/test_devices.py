"""Devices and fractions of them: the promises by property, the policy by example."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noded.policy import devices
from noded.resources import UNIT

AMOUNTS = st.one_of(st.integers(0, UNIT), st.integers(1, 5).map(lambda n: n * UNIT))
ROOMS = st.dictionaries(st.integers(0, 7), st.integers(0, UNIT), max_size=8)


def full(count: int) -> dict[int, int]:
    return dict.fromkeys(range(count), UNIT)


def fill(free: dict[int, int], amount: float, times: int) -> list[dict[int, int]]:
    """The shares of as many of `times` requests as fit at once."""
    shares = []
    for _ in range(times):
        share = devices.assign(free, round(amount * UNIT))
        if share is None:
            break
        free = devices.take(free, share)
        shares.append(share)
    return shares


@given(ROOMS, AMOUNTS)
def test_a_share_is_what_was_asked_and_there_was_room(free: dict[int, int], amount: int) -> None:
    before = dict(free)
    share = devices.assign(free, amount)
    assert free == before
    if share is None:
        if amount <= UNIT:
            assert all(room < amount for room in free.values())
        else:
            assert sum(room == UNIT for room in free.values()) * UNIT < amount
        return
    assert sum(share.values()) == amount
    assert all(0 < units <= free[index] for index, units in share.items())
    assert len(share) == max(1, amount // UNIT) if amount else not share


@given(ROOMS, st.integers(1, UNIT))
def test_a_fraction_goes_where_it_fits_best(free: dict[int, int], amount: int) -> None:
    share = devices.assign(free, amount)
    if share is not None:
        [index] = share
        for other, room in free.items():
            if room >= amount:
                assert (free[index], index) <= (room, other)


@given(st.integers(0, 6), st.lists(st.tuples(st.booleans(), AMOUNTS, st.integers(0, 100)), max_size=60))
def test_no_device_is_ever_over_committed(count: int, steps: list[tuple[bool, int, int]]) -> None:
    free, live = full(count), list[dict[int, int]]()
    for asks, amount, which in steps:
        if asks:
            share = devices.assign(free, amount)
            if share is not None:
                free = devices.take(free, share)
                live.append(share)
        elif live:
            free = devices.give(free, live.pop(which % len(live)))
        for index in range(count):
            assert free[index] == UNIT - sum(share.get(index, 0) for share in live)
            assert free[index] >= 0
    for share in live:
        free = devices.give(free, share)
    assert free == full(count)


@given(ROOMS, AMOUNTS)
def test_give_undoes_take(free: dict[int, int], amount: int) -> None:
    share = devices.assign(free, amount)
    if share is not None:
        assert devices.give(devices.take(free, share), share) == free


@given(st.integers(0, 8), AMOUNTS)
def test_never_means_that_it_does_not_fit_on_idle_devices(count: int, amount: int) -> None:
    assert devices.never(count, amount) == (devices.assign(full(count), amount) is None)


def test_ten_times_six_tenths_on_two_devices_go_two_at_once() -> None:
    assert fill(full(2), 0.6, 10) == [{0: 6000}, {1: 6000}]


def test_eighty_times_eighteen_hundredths_on_sixteen_devices_go_five_a_device() -> None:
    shares = fill(full(16), 0.18, 81)
    assert shares == [{number // 5: 1800} for number in range(80)]


def test_fractions_leave_whole_devices_whole() -> None:
    free = devices.take(full(3), {1: 5000})
    assert devices.assign(free, 5000) == {1: 5000}
    assert devices.assign(free, 2 * UNIT) == {0: UNIT, 2: UNIT}
    assert devices.assign(free, 3 * UNIT) is None
    assert devices.assign(free, UNIT) == {0: UNIT}


def test_a_bundle_hands_out_what_it_holds() -> None:
    bundle = {3: UNIT, 5: 2500}
    assert devices.assign(bundle, UNIT) == {3: UNIT}
    assert devices.assign(bundle, 2500) == {5: 2500}
    assert devices.assign(bundle, 2 * UNIT) is None


def test_what_cannot_be_pointed_at_is_refused() -> None:
    for amount in (UNIT + 1, 3 * UNIT // 2, -1):
        with pytest.raises(ValueError, match="devices cannot be given"):
            devices.assign(full(2), amount)
        with pytest.raises(ValueError, match="devices cannot be given"):
            devices.never(2, amount)


def test_errors_of_the_books_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot take 6000 units of device 0: it has 4000"):
        devices.take({0: 4000}, {0: 6000})
    with pytest.raises(ValueError, match="cannot take 1 units of device 7: it has 0"):
        devices.take({0: 4000}, {7: 1})
    with pytest.raises(ValueError, match="cannot give 6000 units back to device 0: it has 5000"):
        devices.give({0: 5000}, {0: 6000})
    with pytest.raises(ValueError, match="cannot give 1 units back to device 7: it has no room"):
        devices.give({0: 5000}, {7: 1})
