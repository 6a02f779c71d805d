"""Whether there is memory to begin something: not above the threshold, and not as soon as it would be there again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from noded.policy.memory_room import MemoryRoom

KEY, OTHER = (b"client", 1), (b"client", 2)
LIMIT, THRESHOLD = 1000, 900


def room(used: int) -> MemoryRoom:
    found = MemoryRoom()
    found.seen(used, LIMIT, THRESHOLD)
    return found


def test_nobody_waits_where_there_is_enough() -> None:
    assert not room(900).tight
    assert room(900).refuse(KEY, True) == ""


def test_above_the_threshold_nothing_begins_until_there_is_a_little_room() -> None:
    found = room(901)
    assert found.pressed and "901" not in found.refuse(KEY, False)
    assert "nothing new begins" in found.refuse(KEY, True)

    assert not found.seen(895, LIMIT, THRESHOLD) and found.pressed
    assert found.seen(880, LIMIT, THRESHOLD) and not found.pressed
    assert found.refuse(KEY, True) == ""


def test_what_was_ended_begins_when_there_is_as_much_as_it_used() -> None:
    found = room(950)
    found.ended(KEY, 200)
    found.seen(750, LIMIT, THRESHOLD)

    assert "it was ended for want of memory" in found.refuse(KEY, True)
    assert found.refuse(OTHER, True) == ""
    assert found.seen(700, LIMIT, THRESHOLD) and found.refuse(KEY, True) == ""


def test_each_time_that_was_too_little_it_needs_more() -> None:
    found = room(700)
    for need in (200, 300, 450):
        found.ended(KEY, 200)
        assert found.needs[KEY] == need
    found.ended(KEY, 1000)
    assert found.needs[KEY] == 1000
    found.forget(b"another")
    assert found.needs
    found.forget(b"client")
    assert not found.tight


@given(st.lists(st.tuples(st.integers(0, LIMIT), st.integers(0, 2 * LIMIT)), max_size=20))
def test_where_nothing_runs_something_begins(story: list[tuple[int, int]]) -> None:
    found = MemoryRoom()
    for used, ended in story:
        found.seen(used, LIMIT, THRESHOLD)
        if ended:
            found.ended(KEY, ended)
        assert found.refuse(KEY, False) == ""
        assert not found.refuse(KEY, True) or found.tight
        assert found.pressed or used <= THRESHOLD


def test_what_it_remembers_is_bounded() -> None:
    found = room(500)
    for number in range(5000):
        found.ended((b"client", number), 1)

    assert len(found.needs) == 1000 and (b"client", 4999) in found.needs
