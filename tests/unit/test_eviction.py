from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noded.policy.eviction import Candidate, choose


def test_what_was_unused_longest_goes_first() -> None:
    old, young = Candidate(0, 4, used=1.0), Candidate(4, 4, used=2.0)
    assert choose([], [young, old], 4) == [old]
    assert choose([(8, 3)], [young, old], 6) == [young]  # beside free blocks, though it is younger: old alone is short


def test_nothing_goes_where_there_is_room() -> None:
    assert choose([(0, 8)], [Candidate(8, 4, 1.0)], 8) == []


def test_scattered_free_blocks_become_one_run() -> None:
    between = Candidate(2, 1, used=5.0)
    assert choose([(0, 2), (3, 2), (10, 3)], [between, Candidate(7, 3, used=9.0)], 5) == [between]


def test_what_cannot_be_is_none() -> None:
    assert choose([(0, 2)], [Candidate(4, 4, 1.0)], 5) is None
    with pytest.raises(ValueError, match="at least one block"):
        choose([], [], 0)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[Candidate], list[tuple[int, int]]]:
    """Free extents (which never touch), candidates, and what stays."""
    free: list[tuple[int, int]] = []
    candidates: list[Candidate] = []
    stays: list[tuple[int, int]] = []
    at = 0
    for kind, blocks in draw(st.lists(st.tuples(st.sampled_from("fcs"), st.integers(1, 6)), max_size=14)):
        if kind == "f" and free and sum(free[-1]) == at:
            kind = "c"
        if kind == "f":
            free.append((at, blocks))
        elif kind == "c":
            candidates.append(Candidate(at, blocks, draw(st.floats(0, 10))))
        else:
            stays.append((at, blocks))
        at += blocks
    return free, candidates, stays


@given(layouts(), st.integers(1, 20))
def test_what_goes_makes_room_and_nothing_else_does(
    layout: tuple[list[tuple[int, int]], list[Candidate], list[tuple[int, int]]], need: int
) -> None:
    free, candidates, _ = layout
    chosen = choose(free, candidates, need)
    if chosen is None:
        assert longest(free, candidates) < need
        return
    assert longest(free, chosen) >= need
    for left_out in chosen:
        assert longest(free, [each for each in chosen if each is not left_out]) < need, "none goes without need"
    youngest = max((each.used for each in chosen), default=0.0)
    older = [each for each in candidates if each.used < youngest]
    assert not chosen or longest(free, older) < need, "what is older would not have been enough"


def longest(free: list[tuple[int, int]], candidates: list[Candidate]) -> int:
    blocks = {b for start, n in free for b in range(start, start + n)}
    blocks |= {b for each in candidates for b in range(each.start, each.start + each.blocks)}
    best = run = 0
    for block in range(max(blocks, default=-1) + 2):
        run = run + 1 if block in blocks else 0
        best = max(best, run)
    return best
