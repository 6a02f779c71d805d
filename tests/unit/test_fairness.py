"""Who is served next: only what fits, jobs in turn, and nobody starves."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from noded.policy.fairness import AGED, Request, never_fits, pick

_RESOURCES = st.dictionaries(st.sampled_from(["CPU", "GPU", "x"]), st.integers(1, 6), max_size=3)
_REQUESTS = st.lists(st.builds(Request, _RESOURCES, st.integers(0, 3), st.floats(0, 10)), max_size=12)
_AVAILABLE = st.dictionaries(st.sampled_from(["CPU", "GPU", "x"]), st.integers(-3, 8), max_size=3)


def fits(request: Request, available: dict[str, int]) -> bool:
    return all(available.get(name, 0) >= amount for name, amount in request.resources.items())


@given(requests=_REQUESTS, available=_AVAILABLE, now=st.floats(10, 13))
def test_what_is_served_fits_and_takes_nothing_from_the_aged(
    requests: list[Request], available: dict[str, int], now: float
) -> None:
    index = pick(requests, available, now)
    aged = [r for r in requests if not fits(r, available) and now - r.since > AGED]
    if index is None:
        for request in requests:
            # What fits is left waiting only for the sake of one that is older, aged, and lacks what it would take.
            assert not fits(request, available) or any(
                old.since <= request.since
                and any(available.get(n, 0) < a and n in request.resources for n, a in old.resources.items())
                for old in aged
            )
        return
    chosen = requests[index]
    assert fits(chosen, available)
    for old in aged:
        if old.since < chosen.since:
            lacking = {n for n, a in old.resources.items() if available.get(n, 0) < a}
            assert not lacking & set(chosen.resources)


@given(requests=_REQUESTS, available=_AVAILABLE)
def test_jobs_take_turns_and_wait_in_order(requests: list[Request], available: dict[str, int]) -> None:
    """While nobody is aged: the job that was served longest ago, and of that the request that waits longest."""
    index = pick(requests, available, 0.0)
    able = [r for r in requests if fits(r, available)]
    if not able:
        assert index is None
        return
    assert index is not None
    assert requests[index].turn == min(r.turn for r in able)
    assert requests[index].since == min(r.since for r in able if r.turn == requests[index].turn)


@given(requests=_REQUESTS, available=_AVAILABLE, now=st.floats(10, 13))
def test_order_of_the_list_does_not_matter(requests: list[Request], available: dict[str, int], now: float) -> None:
    shuffled = random.Random(3).sample(requests, len(requests))
    first, second = pick(requests, available, now), pick(shuffled, available, now)
    assert (first is None) == (second is None)
    if first is not None and second is not None:
        assert (requests[first].turn, requests[first].since) == (shuffled[second].turn, shuffled[second].since)


def test_an_aged_large_request_is_served_in_the_end() -> None:
    """Small ones come without end and would always fit: the large one gets its room within about AGED."""
    available, running, clock = {"CPU": 4}, [], 0.0
    large = Request({"CPU": 4}, 0, 0.0)
    served_at = None
    dice = random.Random(1)
    while clock < 10:
        small = [Request({"CPU": 1}, 0, clock - 0.01) for _ in range(6)]
        while (index := pick([large, *small], available, clock)) is not None:
            if index == 0:
                served_at = clock
                break
            small.pop(index - 1)
            available["CPU"] -= 1
            running.append(clock + dice.uniform(0.1, 0.3))
        if served_at is not None:
            break
        clock += 0.01
        available["CPU"] += sum(1 for end in running if end <= clock)
        running = [end for end in running if end > clock]
    assert served_at is not None and served_at <= AGED + 0.35


def test_an_aged_request_does_not_keep_what_it_does_not_lack() -> None:
    wants_gpu = Request({"CPU": 1, "GPU": 1}, 0, 0.0)
    other = Request({"CPU": 1}, 5, 4.0)
    assert pick([wants_gpu, other], {"CPU": 1}, 5.0) == 1


def test_three_jobs_are_served_evenly() -> None:
    turns, served, turn = [0, 0, 0], [0, 0, 0], 0
    for _ in range(30):
        # The first job has asked long before the others and asks for much more.
        requests = [Request({"CPU": 1}, turns[job], since) for job, since in ((0, 1.0), (0, 1.1), (1, 5.0), (2, 6.0))]
        index = pick(requests, {"CPU": 1}, 6.5)
        assert index is not None
        job = (0, 0, 1, 2)[index]
        turn += 1
        turns[job] = turn
        served[job] += 1
    assert served == [10, 10, 10]


def test_nothing_is_granted_while_it_is_over_committed() -> None:
    assert pick([Request({"CPU": 1}, 0, 0.0)], {"CPU": -1}, 0.5) is None
    assert pick([Request({}, 0, 0.0)], {"CPU": -1}, 0.5) == 0
    assert pick([], {"CPU": 1}, 0.0) is None


def test_what_never_fits_is_told() -> None:
    assert never_fits({"CPU": 2, "x": 1}, {"CPU": 2}) == {"x": (1, 0)}
    assert never_fits({"CPU": 2}, {"CPU": 2}) == {}
