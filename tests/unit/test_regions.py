"""The region allocator against a naive bitmap, and its policy by example."""

from __future__ import annotations

import time
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noded.policy import regions
from noded.policy.regions import RegionAllocator

BLOCKS = 64
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["alloc", "alloc", "free", "part", "reserve", "double"]),
        st.integers(0, BLOCKS - 1),
        st.integers(1, 20),
        st.sampled_from([None, "a", "b"]),
    ),
    max_size=80,
)


def runs(bitmap: list[bool]) -> list[tuple[int, int]]:
    """(start, length) of the maximal runs of free blocks."""
    found, place = [], 0
    for used, group in groupby(bitmap):
        length = len(list(group))
        if not used:
            found.append((place, length))
        place += length
    return found


class Model:
    """The allocator beside a bitmap of used blocks and the list of live regions."""

    def __init__(self) -> None:
        self.allocator = RegionAllocator(BLOCKS)
        self.used = [False] * BLOCKS
        self.live: list[tuple[int, int]] = []
        self.high = 0

    def step(self, what: str, place: int, n: int, owner: str | None) -> None:
        if what == "alloc":
            self.alloc(n, owner)
        elif what == "reserve":
            self.reserve(place, n)
        elif what == "double":
            self.refuse_double_free(place, n)
        elif self.live:
            start, size = self.live.pop(place % len(self.live))
            cut = size if what == "free" else 1 + n % size
            self.allocator.free(start, cut, owner)
            self.used[start : start + cut] = [False] * cut
            if cut < size:
                self.live.append((start + cut, size - cut))

    def alloc(self, n: int, owner: str | None) -> None:
        start = self.allocator.alloc(n, owner)
        if start is None:
            assert all(size < n for _, size in runs(self.used))
        else:
            self.mark(start, n)

    def reserve(self, start: int, n: int) -> None:
        if start + n > BLOCKS or any(self.used[start : start + n]):
            with pytest.raises(ValueError, match="blocks"):
                self.allocator.reserve(start, n)
        else:
            self.allocator.reserve(start, n)
            self.mark(start, n)

    def refuse_double_free(self, start: int, n: int) -> None:
        n = min(n, BLOCKS - start)
        if not all(self.used[start : start + n]):
            with pytest.raises(ValueError, match="double free"):
                self.allocator.free(start, n)

    def mark(self, start: int, n: int) -> None:
        assert start in range(BLOCKS - n + 1)
        assert not any(self.used[start : start + n]), "overlaps a live region"
        self.used[start : start + n] = [True] * n
        self.live.append((start, n))
        self.high = max(self.high, start + n)

    def check(self) -> None:
        expected = runs(self.used)
        assert list(self.allocator.free_extents()) == expected
        assert self.allocator.free_blocks == self.used.count(False)
        assert self.allocator.largest_free == max((n for _, n in expected), default=0)
        assert self.allocator.high_water == self.high


@settings(max_examples=200)
@given(STEPS)
def test_agrees_with_a_bitmap(steps: list[tuple[str, int, int, str | None]]) -> None:
    model = Model()
    for step in steps:
        model.step(*step)
        model.check()
    for start, n in model.live:
        model.allocator.free(start, n)
    assert list(model.allocator.free_extents()) == [(0, BLOCKS)]


@given(STEPS)
def test_agrees_with_a_bitmap_when_warm_regions_are_forgotten(
    steps: list[tuple[str, int, int, str | None]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regions, "MAX_WARM", 2)
        model = Model()
        for step in steps:
            model.step(*step)
            model.check()


def filled(blocks: int, *sizes: int) -> tuple[RegionAllocator, list[int]]:
    allocator = RegionAllocator(blocks)
    starts = [allocator.alloc(size) for size in sizes]
    assert None not in starts
    return allocator, [start for start in starts if start is not None]


def test_an_owner_gets_its_last_region_back_even_from_inside_a_bigger_extent() -> None:
    allocator, (a, b, c) = filled(30, 10, 10, 10)
    allocator.free(a, 10, "x")
    allocator.free(b, 10, "y")
    allocator.free(c, 10, "z")
    assert list(allocator.free_extents()) == [(0, 30)]
    assert allocator.alloc(10, "y") == b
    assert list(allocator.free_extents()) == [(0, 10), (20, 10)]
    assert allocator.alloc(10, "x") == a


def test_last_freed_is_first_given() -> None:
    allocator, (a, b, c) = filled(30, 10, 10, 10)
    for start in (b, a, c):
        allocator.free(start, 10, "x")
    assert [allocator.alloc(10, "x") for _ in range(3)] == [c, a, b]


def test_a_stranger_gets_the_region_of_that_size_that_was_freed_last() -> None:
    allocator, (a, b, _) = filled(100, 10, 10, 10)
    allocator.free(b, 10, "x")
    allocator.free(a, 10, "y")
    assert allocator.alloc(10, "stranger") == a
    assert allocator.alloc(10) == b


def test_a_region_that_was_given_away_in_part_is_not_warm_any_more() -> None:
    allocator, (a, b) = filled(20, 10, 10)
    allocator.free(a, 10, "x")
    assert allocator.alloc(4, "y") == a
    assert allocator.alloc(10, "x") is None
    allocator.free(b, 10, "z")
    assert allocator.alloc(10, "x") == b


def test_best_fit_then_lowest_address() -> None:
    allocator, starts = filled(60, 20, 5, 8, 5, 8, 14)
    for place, size in ((0, 20), (2, 8), (4, 8)):
        allocator.free(starts[place], size)
    assert allocator.alloc(7) == starts[2]
    assert allocator.alloc(7) == starts[4]
    assert allocator.alloc(7) == starts[0]


def test_bad_calls_are_refused_and_change_nothing() -> None:
    allocator = RegionAllocator(10)
    assert allocator.alloc(4) == 0
    for start, n in ((8, 4), (-1, 2), (0, 0), (0, -1), (10, 1)):
        with pytest.raises(ValueError, match="inside"):
            allocator.free(start, n)
        with pytest.raises(ValueError, match="inside"):
            allocator.reserve(start, n)
    for start, n in ((4, 1), (3, 2), (0, 10), (9, 1)):
        with pytest.raises(ValueError, match="double free"):
            allocator.free(start, n)
    with pytest.raises(ValueError, match="two regions claim"):
        allocator.reserve(3, 2)
    with pytest.raises(ValueError, match="at least one block"):
        allocator.alloc(0)
    with pytest.raises(ValueError, match="at least one block"):
        RegionAllocator(0)
    assert list(allocator.free_extents()) == [(4, 6)] and allocator.free_blocks == 6


def test_high_water_stays() -> None:
    allocator = RegionAllocator(100)
    assert allocator.high_water == 0
    assert allocator.alloc(10) == 0
    allocator.reserve(50, 10)
    allocator.free(50, 10)
    assert allocator.high_water == 60
    assert allocator.blocks == 100


def test_a_million_blocks_in_thousands_of_pieces_stay_quick() -> None:
    allocator = RegionAllocator(1 << 20)
    starts = [allocator.alloc(16) for _ in range(1 << 14)]
    began = time.perf_counter()
    for start in starts[::2]:
        assert start is not None
        allocator.free(start, 16, "x")
    for _ in range(1 << 13):
        assert allocator.alloc(15, "y") is not None
    per_call = (time.perf_counter() - began) / (1 << 14)
    assert per_call < 200e-6, f"{per_call * 1e6:.0f} us a call"
