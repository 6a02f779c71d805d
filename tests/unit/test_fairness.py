"""Who is served next: only what fits, jobs in turn, and nobody starves."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from noded.policy.fairness import AGED, Request, pick

_NAMES = st.sampled_from(["CPU", "GPU", "x"])


@st.composite
def _requests(draw: st.DrawFn) -> Request:
    resources = draw(st.dictionaries(_NAMES, st.integers(1, 6), max_size=3))
    lacking = draw(st.sets(st.sampled_from(sorted(resources)))) if resources else set()
    elsewhere = draw(st.sampled_from([(), (), (), ("placement group",)]))
    return Request(resources, draw(st.integers(0, 3)), draw(st.floats(0, 10)), (*sorted(lacking), *elsewhere))


_REQUESTS = st.lists(_requests(), max_size=12)


def request(resources: dict[str, int], turn: int, since: float, available: dict[str, int]) -> Request:
    """One that lacks what is not there in the amount it asks for."""
    lacking = tuple(name for name, amount in resources.items() if available.get(name, 0) < amount)
    return Request(resources, turn, since, lacking)


@given(requests=_REQUESTS, now=st.floats(10, 13))
def test_what_is_served_lacks_nothing_and_takes_nothing_from_the_aged(requests: list[Request], now: float) -> None:
    index = pick(requests, now)
    aged = [r for r in requests if r.lacking and now - r.since > AGED]
    if index is None:
        for one in requests:
            # What fits is left waiting only for the sake of one that is older, aged, and lacks what it would take.
            assert one.lacking or any(
                old.since <= one.since and not set(old.lacking).isdisjoint(one.resources) for old in aged
            )
        return
    chosen = requests[index]
    assert not chosen.lacking
    for old in aged:
        if old.since < chosen.since:
            assert set(old.lacking).isdisjoint(chosen.resources)


@given(requests=_REQUESTS)
def test_jobs_take_turns_and_wait_in_order(requests: list[Request]) -> None:
    """While nobody is aged: the job that was served longest ago, and of that the request that waits longest."""
    index = pick(requests, 0.0)
    able = [r for r in requests if not r.lacking]
    if not able:
        assert index is None
        return
    assert index is not None
    assert requests[index].turn == min(r.turn for r in able)
    assert requests[index].since == min(r.since for r in able if r.turn == requests[index].turn)


@given(requests=_REQUESTS, now=st.floats(10, 13))
def test_order_of_the_list_does_not_matter(requests: list[Request], now: float) -> None:
    shuffled = random.Random(3).sample(requests, len(requests))
    first, second = pick(requests, now), pick(shuffled, now)
    assert (first is None) == (second is None)
    if first is not None and second is not None:
        assert (requests[first].turn, requests[first].since) == (shuffled[second].turn, shuffled[second].since)


def test_an_aged_large_request_is_served_in_the_end() -> None:
    """Small ones come without end and would always fit: the large one gets its room within about AGED."""
    available, running, clock = {"CPU": 4}, [], 0.0
    served_at = None
    dice = random.Random(1)
    while clock < 10:
        small = 6
        while True:
            large = request({"CPU": 4}, 0, 0.0, available)
            index = pick([large, *[request({"CPU": 1}, 0, clock - 0.01, available)] * small], clock)
            if index is None:
                break
            if index == 0:
                served_at = clock
                break
            small -= 1
            available["CPU"] -= 1
            running.append(clock + dice.uniform(0.1, 0.3))
        if served_at is not None:
            break
        clock += 0.01
        available["CPU"] += sum(1 for end in running if end <= clock)
        running = [end for end in running if end > clock]
    assert served_at is not None and served_at <= AGED + 0.35


def test_an_aged_request_does_not_keep_what_it_does_not_lack() -> None:
    wants_gpu = Request({"CPU": 1, "GPU": 1}, 0, 0.0, ("GPU",))
    other = Request({"CPU": 1}, 5, 4.0)
    assert pick([wants_gpu, other], 5.0) == 1


def test_one_that_waits_for_no_resource_keeps_none_back() -> None:
    """It lacks its placement group, or another node: CPUs that it would take there are not for it to keep."""
    waits = Request({"CPU": 1}, 0, 0.0, ("placement group",))
    assert pick([waits, Request({"CPU": 1}, 5, 4.0)], 5.0) == 1


def test_three_jobs_are_served_evenly() -> None:
    turns, served, turn = [0, 0, 0], [0, 0, 0], 0
    for _ in range(30):
        # The first job has asked long before the others and asks for much more.
        requests = [Request({"CPU": 1}, turns[job], since) for job, since in ((0, 1.0), (0, 1.1), (1, 5.0), (2, 6.0))]
        index = pick(requests, 6.5)
        assert index is not None
        job = (0, 0, 1, 2)[index]
        turn += 1
        turns[job] = turn
        served[job] += 1
    assert served == [10, 10, 10]


def test_nobody_is_served_who_lacks_anything() -> None:
    assert pick([Request({"CPU": 1}, 0, 0.0, ("CPU",))], 0.5) is None
    assert pick([Request({}, 0, 0.0)], 0.5) == 0
    assert pick([], 0.0) is None
