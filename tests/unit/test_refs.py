"""HoldTable: one hold per id, counted by tokens, told to the daemon exactly once each way."""

from __future__ import annotations

import gc
import random
import threading
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from noded.client import refs as module
from noded.client.refs import Hold, HoldTable, ObjectRef, Token, borrowed

IDS = [b"%016d" % i for i in range(4)]
AFTER = (b"workers", 9)


def test_the_first_token_takes_and_the_last_gives() -> None:
    table = HoldTable()
    one, two = table.take(IDS[0]), table.take(IDS[0])
    assert one.hold is two.hold and one.hold.count == 2
    assert table.drain() == ([(IDS[0], 1)], [], [])
    del one
    assert table.drain() == ([], [], [])
    del two
    assert table.changed()
    assert table.drain() == ([], [(IDS[0], 1)], []) and not table.holds
    assert not table.changed()


def test_a_new_hold_has_a_new_generation() -> None:
    """So a late release of the old one cannot end the new one."""
    table = HoldTable()
    token = table.take(IDS[0])
    del token
    again = table.take(IDS[0])  # before the first one's end was noticed: it lives on
    assert table.drain() == ([(IDS[0], 1)], [], [])
    del again
    table.collect()
    third = table.take(IDS[0])
    assert table.drain() == ([(IDS[0], 2)], [(IDS[0], 1)], [])
    del third


def test_implicit_holds_are_not_told_but_released() -> None:
    table = HoldTable()
    token = table.take(IDS[0], implicit=True)
    assert not table.changed()
    assert table.snapshot() == ([(IDS[0], 0)], [])
    del token
    assert table.drain() == ([], [(IDS[0], 0)], [])


def test_a_release_may_wait_for_another_client() -> None:
    table = HoldTable()
    token = table.take(IDS[0])
    token.hold.give_after(*AFTER)
    token.hold.give_after(b"another", 3)
    token.hold.give_after(AFTER[0], 4)
    del token
    assert table.drain() == ([(IDS[0], 1)], [], [(IDS[0], 1, [(b"another", 3), AFTER])])


def test_again_counts_views() -> None:
    table = HoldTable()
    token = table.take(IDS[0])
    views = [table.again(token.hold) for _ in range(3)]
    del token
    table.collect()
    assert table.holds[IDS[0]].count == 3
    views.clear()
    table.collect()
    assert not table.holds


def test_a_snapshot_contains_the_changes_it_forgets() -> None:
    table = HoldTable()
    kept, gone = table.take(IDS[0]), table.take(IDS[1])
    del gone
    assert table.snapshot() == ([(IDS[0], 1)], [])
    assert not table.changed() and table.drain() == ([], [], [])
    del kept


def test_what_was_given_after_others_is_told_again() -> None:
    table = HoldTable()
    token = table.take(IDS[0], implicit=True)
    token.hold.give_after(*AFTER)
    del token
    assert table.snapshot() == ([], [(IDS[0], 0, [AFTER])])
    assert table.snapshot() == ([], [])


def test_nested_refs_end_with_their_hold() -> None:
    table = HoldTable()
    outer, inner = table.take(IDS[0]), table.take(IDS[1])
    outer.hold.nested = [inner]
    del inner
    table.drain()
    del outer
    assert table.drain()[1] == [(IDS[0], 1), (IDS[1], 2)], "both in one go, however deep"


def test_borrowed_refs_are_one_object() -> None:
    table, made = HoldTable(), []

    def make(id_: bytes, token: Token) -> ObjectRef[Any]:
        made.append(id_)
        return ObjectRef(1, 0, module.REMOTE, None, token, None, id_)

    one = borrowed(IDS[0], table, make)
    assert borrowed(IDS[0], table, make) is one and made == [IDS[0]]
    view = table.again(one._token.hold)
    del one
    gc.collect()
    two = borrowed(IDS[0], table, make)  # the hold lived on through the view
    assert table.drain() == ([(IDS[0], 1)], [], []) and two._token.hold is view.hold
    del two, view
    assert table.drain()[1] == [(IDS[0], 1)]


def test_tokens_may_die_in_any_thread() -> None:
    table, lock = HoldTable(), threading.Lock()
    start = threading.Barrier(4)

    def churn() -> None:
        dice, kept = random.Random(threading.get_ident()), []
        start.wait(10)
        for _ in range(2000):
            with lock:
                kept.append(table.take(dice.choice(IDS)))
                if dice.random() < 0.05:
                    table.collect()
            if len(kept) > 10:
                kept.pop(dice.randrange(len(kept)))

    threads = [threading.Thread(target=churn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    taken, given, _ = table.drain()
    assert not table.holds and sorted(taken) == sorted(given)
    assert len({generation for _, generation in taken}) == len(taken)


@pytest.mark.parametrize("copy", ["copy", "deepcopy"])
def test_copies_of_a_ref_are_the_ref(copy: str) -> None:
    import copy as copy_module

    ref: ObjectRef[int] = ObjectRef(1)
    assert getattr(copy_module, copy)(ref) is ref


class Holds(RuleBasedStateMachine):
    """A daemon that applies what it is told ends with the holds that the process has."""

    def __init__(self) -> None:
        super().__init__()
        self.table = HoldTable()
        self.tokens: list[Token] = []
        self.daemon: dict[bytes, int] = {}
        self.late: list[tuple[bytes, int]] = []

    @rule(id_=st.sampled_from(IDS))
    def take(self, id_: bytes) -> None:
        self.tokens.append(self.table.take(id_))

    @rule(at=st.integers(0, 99), after=st.booleans())
    def drop(self, at: int, after: bool) -> None:
        if self.tokens:
            if after:
                self.tokens[at % len(self.tokens)].hold.give_after(*AFTER)
            self.tokens.pop(at % len(self.tokens))

    @rule()
    def tell(self) -> None:
        taken, given, after = self.table.drain()
        for id_, generation in taken:
            self.daemon[id_] = generation
        for id_, generation in given:
            self.release(id_, generation)
        self.late += [entry[:2] for entry in after]

    @rule()
    def apply_late(self) -> None:
        for entry in self.late:
            self.release(*entry)
        self.late.clear()

    @rule()
    def new_daemon(self) -> None:
        self.daemon = dict(self.table.snapshot()[0])
        self.late.clear()

    def release(self, id_: bytes, generation: int) -> None:
        if self.daemon.get(id_) == generation:
            del self.daemon[id_]

    @invariant()
    def counts_are_right(self) -> None:
        self.table.collect()
        counts: dict[bytes, int] = {}
        for token in self.tokens:
            counts[token.hold.id] = counts.get(token.hold.id, 0) + 1
        assert {id_: hold.count for id_, hold in self.table.holds.items()} == counts

    def teardown(self) -> None:
        self.tell()
        assert set(self.daemon) >= set(self.table.holds), "what is held here is held there"
        self.tokens.clear()
        self.tell()
        self.apply_late()
        assert not self.daemon and not self.table.holds


Holds.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestHolds = Holds.TestCase


def test_a_hold_without_tokens_is_nothing() -> None:
    assert Hold(IDS[0], 3).count == 0
