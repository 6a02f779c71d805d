"""Recipes without a cluster: what is remembered, forgotten and followed."""

from __future__ import annotations

from typing import Any

import pytest

from noded import ids
from noded.client import lineage, refs
from noded.client.lineage import Lineage
from noded.client.refs import AWAY, FAILED, PENDING, HoldTable, ObjectRef
from noded.client.submission import Function, Task
from noded.wire import messages as m

PREFIX = b"\0\0\1abcd"
ACTOR = ids.actor_id(PREFIX, 999)


class Caller:
    """A process whose tasks are not run; calls of its actor fail at once."""

    def __init__(self) -> None:
        self.holds = HoldTable()
        self.sent: list[Any] = []
        self.submitted: list[Task] = []
        self.waiting_actor = False
        self.lineage = Lineage(
            self.holds, self, self.sent.append, self._submit, self._call, lambda actor, seq: self.waiting_actor
        )
        self.number = 0

    def announce_locked(self, ref: ObjectRef[Any]) -> None:
        self.publish_locked(ref)

    def publish_locked(self, entry: Any) -> None:
        if entry._token is None:
            self._hold(entry)

    def _hold(self, ref: ObjectRef[Any]) -> None:
        import weakref

        ref._token = self.holds.take(ref.binary())
        ref._token.hold.ref = weakref.ref(ref)

    def _submit(self, task: Task, queue: Any) -> None:
        self.submitted.append(task)

    def _call(self, actor: bytes, class_name: str, task: Task, token: Any) -> None:
        self._fail(task)

    def _fail(self, task: Task) -> None:
        for ref in task.refs:
            ref._value, ref._state = ValueError("dead"), FAILED
        task.over = True
        self.lineage.over(task)

    def done(self, *needs: ObjectRef[Any], method: str = "", retries: int = 3, size: int = 10) -> ObjectRef[Any]:
        """A result that lies on another node."""
        self.number += 1
        ref: ObjectRef[Any] = ObjectRef(self.number, 0, AWAY, (2, 1_000_000))
        self._hold(ref)
        task = Task(self.number, f"t{self.number}", b"x" * size, [ref], 1, method=method, retries=retries)
        task.fn = None if method else Function("f", b"", b"", [])
        task.deps = [(at, need) for at, need in enumerate(needs)] or None
        self.lineage.remember(task, (ACTOR, "A") if method else None)
        return ref

    def rebuild(self, ref: ObjectRef[Any] | bytes) -> str:
        """Why not; empty: it is being made again."""
        self.holds.collect()
        before = len(self.sent)
        self.lineage.on_rebuild(m.Rebuild([ref if isinstance(ref, bytes) else ref.binary()], "lost"))
        return self.sent[-1].reason if len(self.sent) > before else ""


@pytest.fixture
def caller(monkeypatch: pytest.MonkeyPatch) -> Caller:
    monkeypatch.setattr(refs, "own_prefix", PREFIX)
    return Caller()


def names(tasks: list[Task]) -> list[str]:
    return [task.name for task in tasks]


def test_what_was_dropped_is_made_before_what_needs_it(caller: Caller) -> None:
    first = caller.done()
    second = caller.done(first)
    kept = caller.done()
    last = caller.done(second, kept)
    del first, second
    assert caller.rebuild(last) == ""
    assert sorted(names(caller.submitted)) == ["t1", "t2", "t4"], "what is still referred to is not made again"
    by_name = {task.name: task for task in caller.submitted}
    assert by_name["t4"].deps is not None
    assert by_name["t4"].deps[0][1] is by_name["t2"].refs[0] and by_name["t4"].deps[1][1] is kept
    assert by_name["t2"].refs[0]._state == PENDING and by_name["t2"].refs[0]._task is by_name["t2"]
    assert caller.rebuild(last) == "" and len(caller.submitted) == 3, "it runs already"


def test_what_fails_at_once_is_no_trouble(caller: Caller) -> None:
    """A call of an actor that is dead ends before others of the same chain have begun."""
    call = caller.done(method="m")
    between = caller.done(call)
    last = caller.done(between, call)
    del call, between
    assert caller.rebuild(last) == ""
    assert sorted(names(caller.submitted)) == ["t2", "t3"]
    assert all(ref._state == FAILED for task in caller.submitted for _, ref in task.deps or () if ref._seq == 1)


def test_retries_are_spent(caller: Caller) -> None:
    ref = caller.done(retries=2)
    for left in (1, 0):
        assert caller.rebuild(ref) == ""
        task = caller.submitted[-1]
        assert task.retries == left
        task.over = True
        caller.lineage.over(task)
    assert "as often as it may be" in caller.rebuild(ref)
    assert caller.sent[-1].final


def test_deaths_of_a_repetition_count(caller: Caller) -> None:
    ref = caller.done(retries=3)
    assert caller.rebuild(ref) == ""
    caller.submitted[-1].retries = 0  # its workers have died twice
    caller.lineage.over(caller.submitted[-1])
    assert "as often as it may be" in caller.rebuild(ref)


@pytest.mark.parametrize("method", ["", "m"])
def test_what_may_not_be_repeated(caller: Caller, method: str) -> None:
    ref = caller.done(retries=0, method=method)
    assert "may not be repeated" in caller.rebuild(ref)
    last = caller.done(ref)
    id_ = ref.binary().hex()
    del ref
    assert f"the argument {id_} of t2 was dropped, and t1 may not be repeated" in caller.rebuild(last)


def test_an_actor_that_waits_for_its_own_result(caller: Caller) -> None:
    ref = caller.done(method="m")
    caller.waiting_actor = True
    assert "waits for it in a later call" in caller.rebuild(ref)


def test_what_runs_for_the_first_time_is_left_alone(caller: Caller) -> None:
    """Its worker has died before it answered: its task is under way again by itself."""
    ref: ObjectRef[Any] = ObjectRef(7)
    caller.publish_locked(ref)
    assert caller.rebuild(ref) == "" and not caller.submitted


def test_the_oldest_go_and_those_that_nobody_misses_before_them(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineage, "MOST_RECIPES", 3)
    kept = caller.done()
    dropped = caller.done().binary()
    others = [caller.done() for _ in range(2)]
    assert "too old" in caller.rebuild(dropped)
    assert caller.rebuild(kept) == ""
    others += [caller.done() for _ in range(3)]
    assert "not remembered any more" in caller.rebuild(others[0]) or "not remembered any more" in caller.rebuild(kept)


def test_bytes_are_bounded(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "MOST_BYTES", 100_000)
    for _ in range(100):
        caller.done(size=5_000)
    assert caller.lineage._bytes <= 100_000
    assert len(caller.lineage._recipes) < 20
