"""Whose process ends when a node runs out of memory: what can be run again, of who uses most, the newest."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from noded.policy.memory_victim import Candidate, Victim, pick

MIB = 1 << 20
LEAST = 32 * MIB


def task(
    worker: str, used: int, since: float = 0.0, *, group: bytes = b"a", retriable: bool = True, actor: bool = False
) -> Candidate:
    return Candidate(worker, group, retriable, since, used * MIB, actor)


@st.composite
def _candidates(draw: st.DrawFn) -> list[Candidate]:
    count = draw(st.integers(0, 12))
    return [
        Candidate(
            f"w{index}",
            draw(st.sampled_from([b"a", b"b", b"c"])),
            draw(st.booleans()),
            draw(st.floats(0, 9)),
            draw(st.integers(0, 400)) * MIB,
            draw(st.booleans()),
        )
        for index in range(count)
    ]


@given(_candidates(), st.integers(0, 1 << 30))
def test_who_it_is(candidates: list[Candidate], seed: int) -> None:
    victim = pick(candidates, LEAST)
    large = [each for each in candidates if each.used >= LEAST]
    if not large:
        assert victim is None
        return
    assert victim is not None
    chosen = next(each for each in candidates if each.worker == victim.worker)
    assert chosen in large
    assert chosen.retriable or not any(each.retriable for each in large), "what cannot be run again goes last"
    rivals = [each for each in large if each.retriable == chosen.retriable]
    sums = {group: sum(x.used for x in rivals if x.group == group) for group in {x.group for x in rivals}}
    assert sums[chosen.group] == max(sums.values()) == victim.group_used
    group = [each for each in rivals if each.group == chosen.group]
    assert victim.group == len(group)
    assert 2 * chosen.used >= sums[chosen.group] / len(group), "its end must help"
    for each in group:
        assert each.since <= chosen.since or 2 * each.used * len(group) < sums[chosen.group]
    assert not victim.free or (chosen.retriable and any(not each.actor for each in large if each is not chosen)), (
        "a task that is alone with its memory would be ended again and again"
    )

    shuffled = candidates[:]
    random.Random(seed).shuffle(shuffled)
    assert pick(shuffled, LEAST) == victim


def test_the_newest_of_the_largest_group() -> None:
    many = [task("a1", 200, 1), task("a2", 200, 2), task("b1", 300, 9, group=b"b")]

    assert pick(many, LEAST) == Victim("a2", True, 2, 400 * MIB)


def test_a_small_one_does_not_go_for_a_large_one() -> None:
    assert pick([task("large", 4000, 1), task("small", 50, 2)], LEAST) == Victim("large", True, 2, 4050 * MIB)


def test_actors_that_stay_do_not_make_a_task_free() -> None:
    alone = [task("t", 500, 5), task("actor", 400, 1, retriable=False, actor=True)]

    assert pick(alone, LEAST) == Victim("t", False, 1, 500 * MIB)


def test_what_cannot_be_run_again_is_last() -> None:
    first = pick([task("once", 900, 9, retriable=False), task("again", 100, 1)], LEAST)
    assert first is not None and first.worker == "again" and first.free
    second = pick([task("once", 900, 9, retriable=False)], LEAST)
    assert second is not None and second.worker == "once" and not second.free


def test_nobody_goes_for_what_others_use() -> None:
    assert pick([task("idle", 20), task("idler", 10)], LEAST) is None
