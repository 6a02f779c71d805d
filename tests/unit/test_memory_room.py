"""Whether there is memory to begin something: not above the threshold, and not as soon as it would be there again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from noded.policy.memory_room import MemoryRoom

KEY, OTHER = (b"client", 1), (b"client", 2)
LIMIT, THRESHOLD = 1000, 900


def room(used: int) -> MemoryRoom:
    found = MemoryRoom()
    found.seen(used, LIMIT, THRESHOLD, 0.0)
    return found


def test_nobody_waits_where_there_is_enough() -> None:
    assert not room(900).tight
    assert room(900).refuse(KEY, True, 0.0) == ""


def test_above_the_threshold_nothing_begins_until_there_is_a_little_room() -> None:
    found = room(901)
    assert found.pressed
    assert "nothing new begins" in found.refuse(KEY, True, 0.0)

    assert not found.seen(895, LIMIT, THRESHOLD, 1.0) and found.pressed
    assert found.seen(880, LIMIT, THRESHOLD, 2.0) and not found.pressed
    assert found.refuse(KEY, True, 2.0) == ""


def test_or_until_there_was_just_enough_for_a_while() -> None:
    found = room(901)
    assert not found.seen(899, LIMIT, THRESHOLD, 4.0)
    assert found.seen(899, LIMIT, THRESHOLD, 6.0) and not found.pressed


def test_what_was_ended_begins_when_there_is_as_much_as_it_used() -> None:
    found = room(950)
    found.ended(KEY, 200, 0.0)
    found.seen(750, LIMIT, THRESHOLD, 1.0)

    assert "it was ended for want of memory" in found.refuse(KEY, True, 1.0)
    assert found.refuse(OTHER, True, 1.0) == ""
    assert found.refuse(KEY, True, 61.0) == "", "it is tried in the end"
    assert found.seen(700, LIMIT, THRESHOLD, 2.0) and found.refuse(KEY, True, 2.0) == ""


def test_each_time_that_was_too_little_it_needs_more() -> None:
    found = room(700)
    for need in (200, 300, 450):
        found.ended(KEY, 200, 7.0)
        assert found.needs[KEY] == (need, 67.0)
    found.ended(KEY, 1000, 8.0)
    assert found.needs[KEY] == (1000, 68.0)
    found.forget(b"another")
    assert found.needs
    found.forget(b"client")
    assert not found.tight


@given(st.lists(st.tuples(st.integers(0, LIMIT), st.integers(0, 2 * LIMIT), st.floats(0, 9)), max_size=20))
def test_nothing_waits_for_ever(story: list[tuple[int, int, float]]) -> None:
    found, now = MemoryRoom(), 0.0
    for used, ended, passed in story:
        now += passed
        found.seen(used, LIMIT, THRESHOLD, now)
        if ended:
            found.ended(KEY, ended, now)
        assert found.refuse(KEY, False, now) == "", "nothing else runs"
        assert not found.refuse(KEY, True, now) or found.tight
        assert found.pressed or used <= THRESHOLD
    found.seen(THRESHOLD, LIMIT, THRESHOLD, now + 6)
    assert found.refuse(KEY, True, now + 61) == ""


def test_what_it_remembers_is_bounded() -> None:
    found = room(500)
    for number in range(5000):
        found.ended((b"client", number), 1, 0.0)

    assert len(found.needs) == 1000 and (b"client", 4999) in found.needs
