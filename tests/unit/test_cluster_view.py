"""What a node knows of the others: who is there, who has died, and what is left of them for decisions."""

from __future__ import annotations

from typing import Any

from hypothesis import given as hypothetically
from hypothesis import strategies as st

from noded.node.cluster_view import ClusterView
from noded.policy import given
from noded.wire import cluster_messages as c

OWN = 1


def entry(number: int, id_: str = "", state: str = "ALIVE", cpus: int = 4, **more: Any) -> c.NodeEntry:
    amounts = {} if state == "DEAD" else {"CPU": cpus}
    return c.NodeEntry(
        number, id_ or f"id{number}", f"n{number}", f"a{number}", state, amounts, dict(amounts), {}, **more
    )


class Watched(ClusterView):
    def __init__(self) -> None:
        super().__init__(OWN)
        self.dead: list[tuple[int, str]] = []
        self.changes = 0
        self.on_dead = self._dead
        self.on_change = self._changed

    def _dead(self, entry: c.NodeEntry) -> None:
        assert entry.state == "DEAD" and entry.id not in self.by_id and self.cluster.get(entry.id) is None
        self.dead.append((entry.number, entry.id))

    def _changed(self) -> None:
        self.changes += 1


def test_nodes_are_known_by_number_and_id_and_the_own_one_is_none_of_the_others() -> None:
    view = Watched()
    view.update([entry(1), entry(2), entry(3, state="AWAY"), entry(4, state="DRAINING")], True)
    assert view.by_id == {"id1": 1, "id2": 2, "id3": 3, "id4": 4} and view.changes == 1
    assert [e.number for e in view.others()] == [2, 3, 4]
    assert view.address(2) == "a2" and view.address(9) == ""
    assert {node.id: node.schedulable for node in view.cluster} == {"id2": True, "id3": False, "id4": False}


def test_a_node_that_dies_is_told_of_once_and_stays_to_be_looked_at() -> None:
    view = Watched()
    view.update([entry(1), entry(2)], True)
    for _ in range(2):
        view.update([entry(2, state="DEAD", reason="silent")], False)
    view.update([entry(1), entry(2, state="DEAD")], True)
    assert view.dead == [(2, "id2")] and not view.others() and view.entries[2].state == "DEAD"


def test_a_node_that_starts_over_has_died_before() -> None:
    view = Watched()
    view.update([entry(2, "old")], True)
    view.update([entry(2, "new")], False)
    assert view.dead == [(2, "old")] and view.by_id == {"new": 2}
    assert [node.id for node in view.cluster] == ["new"]
    view.update([entry(2, "new", "DEAD")], False)
    view.update([entry(2, "third")], False)
    assert view.dead == [(2, "old"), (2, "new")], "it is told of once, also if it comes back"


def test_what_died_before_we_came_is_told_as_well() -> None:
    """Something may wait for it."""
    view = Watched()
    view.update([entry(1), entry(2, state="DEAD")], True)
    assert view.dead == [(2, "id2")]


def test_those_that_the_head_does_not_name_any_more_are_gone() -> None:
    view = Watched()
    view.update([entry(1), entry(2), entry(3, state="DEAD")], True)
    view.update([entry(1)], False)
    assert view.entries.keys() == {1, 2, 3}
    view.update([entry(1)], True)
    assert view.entries.keys() == {1} and view.by_id == {"id1": 1} and view.dead == [(3, "id3"), (2, "id2")]


def test_what_is_given_away_counts_until_the_node_reports_or_for_a_while() -> None:
    view = Watched()
    view.update([entry(1), entry(2)], True)

    def free() -> int:
        node = view.cluster.get("id2")
        assert node is not None and view.entries[2].available == {"CPU": 4}
        return node.available["CPU"]

    view.take("id2", {"CPU": 2, "GPU": 1}, 10.0)
    view.take("id2", {"CPU": 1}, 10.2)
    view.take("nobody", {"CPU": 3}, 10.2)
    assert free() == 1
    view.take("id2", {"CPU": -1}, 10.3)
    assert free() == 2
    view.expire(10.0 + given.SECONDS + 0.1)
    assert free() == 4
    view.take("id2", {"CPU": 2}, 20.0)
    view.update([entry(2)], False)
    assert free() == 4
    view.expire(30.0)
    assert free() == 4
    view.take("id2", {"CPU": 2}, 40.0)
    view.update([entry(2, state="DEAD")], False)
    view.expire(50.0)
    assert view.cluster.get("id2") is None


_ENTRIES = st.builds(
    entry,
    st.integers(1, 4),
    st.sampled_from(["a", "b", "c", "d", "e", "f"]),
    st.sampled_from(["ALIVE", "AWAY", "DRAINING", "DEAD"]),
)


@hypothetically(
    updates=st.lists(
        st.tuples(
            st.lists(_ENTRIES, max_size=4, unique_by=lambda e: e.number).filter(
                lambda entries: len({e.id for e in entries}) == len(entries)
            ),
            st.booleans(),
        )
    )
)
def test_the_view_is_what_was_said_last_and_each_that_was_there_dies_once(
    updates: list[tuple[list[c.NodeEntry], bool]],
) -> None:
    view = Watched()
    said: dict[int, c.NodeEntry] = {}
    owner: dict[str, int] = {}
    for entries, everything in updates:
        # An id is of one start of one node.
        entries = [e for e in entries if owner.setdefault(e.id, e.number) == e.number]
        # One that has died, or has been followed by another, does not come back.
        entries = [e for e in entries if (e.number, e.id) not in view.dead or e.state == "DEAD"]
        said = {**({} if everything else said), **{e.number: e for e in entries}}
        view.update(entries, everything)
        assert view.entries == said
        assert view.by_id == {e.id: e.number for e in said.values() if e.state != "DEAD"}
        living = {e.id: e.state == "ALIVE" for e in said.values() if e.state != "DEAD" and e.number != OWN}
        assert {node.id: node.schedulable for node in view.cluster} == living
        there = {(e.number, e.id) for e in said.values() if e.state != "DEAD"}
        assert not there & set(view.dead)
    known = [pair for pair in view.dead if pair in {(owner[id_], id_) for id_ in owner}]
    assert len(known) == len(view.dead)
