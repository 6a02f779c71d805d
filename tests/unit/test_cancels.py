"""A cancel meets a call on its way from its queue to its start: in every order of the two, exactly one of them acts."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

from noded.wire import messages as m
from noded.worker.cancels import _NOTES, Cancels


class Inbound:
    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send_locked(self, message: Any) -> None:
        self.sent.append(message)

    def flush_locked(self) -> None:
        pass


class Engine:
    def __init__(self) -> None:
        self.open: set[int] = set()
        self.struck: list[int] = []

    def runs(self, inbound: Any, seq: int) -> bool:
        return seq in self.open

    def cancel(self, inbound: Any, seq: int, recursive: bool) -> bool:
        if seq in self.open:
            self.struck.append(seq)
        return seq in self.open


def parts() -> tuple[Cancels, Engine, deque[Any], Any]:
    engine, queue = Engine(), deque[Any]()
    executor: Any = SimpleNamespace(current=None, engine=engine)
    return Cancels(executor, lambda: [queue]), engine, queue, Inbound()


def test_one_that_waits_is_withdrawn_and_answered() -> None:
    cancels, engine, queue, inbound = parts()
    queue.extend([(inbound, m.Call(1, "f"), b""), (inbound, m.Call(2, "f"), b"")])
    cancels.on_cancel(inbound, m.Cancel(1, True))
    assert [item[1].seq for item in queue] == [2]
    assert inbound.sent == [m.Failed(1, 0, 0, True)]
    assert not cancels.take(inbound, 1) and not engine.struck


def test_one_that_runs_is_struck() -> None:
    cancels, engine, _, inbound = parts()
    engine.open.add(1)
    cancels.on_cancel(inbound, m.Cancel(1, True))
    assert engine.struck == [1] and not cancels.take(inbound, 1)


def test_one_that_is_taken_from_its_queue_finds_the_note() -> None:
    cancels, engine, _, inbound = parts()
    cancels.on_cancel(inbound, m.Cancel(1, True))  # popped, and not registered yet
    engine.open.add(1)
    assert cancels.take(inbound, 1)
    assert not cancels.take(inbound, 1) and not engine.struck


class LateEngine(Engine):
    """At the given look the main thread registers the call and looks for a note."""

    def __init__(self, begins_at: int) -> None:
        super().__init__()
        self.begins_at = begins_at
        self.looks = 0
        self.taken: list[bool] = []
        self.cancels: Cancels

    def look(self, inbound: Any, seq: int) -> None:
        self.looks += 1
        if self.looks == self.begins_at:
            self.open.add(seq)
            self.taken.append(self.cancels.take(inbound, seq))

    def runs(self, inbound: Any, seq: int) -> bool:
        self.look(inbound, seq)
        return super().runs(inbound, seq)

    def cancel(self, inbound: Any, seq: int, recursive: bool) -> bool:
        self.look(inbound, seq)
        return super().cancel(inbound, seq, recursive)


def test_one_that_begins_while_the_cancel_looks_is_struck_by_one_side_only() -> None:
    for begins_at in range(1, 5):
        engine, inbound = LateEngine(begins_at), Inbound()
        executor: Any = SimpleNamespace(current=None, engine=engine)
        cancels = engine.cancels = Cancels(executor, list)
        cancels.on_cancel(inbound, m.Cancel(1, True))  # type: ignore[arg-type]
        if not engine.taken:  # it begins after all of that
            engine.taken.append(cancels.take(inbound, 1))  # type: ignore[arg-type]
        assert len(engine.struck) + sum(engine.taken) == 1, f"begins at look {begins_at}: {engine.struck}"


def test_notes_that_nobody_takes_do_not_pile_up() -> None:
    cancels, _, _, inbound = parts()
    other: Any = Inbound()
    cancels.on_cancel(other, m.Cancel(7, True))
    for seq in range(_NOTES - 1):
        cancels.on_cancel(inbound, m.Cancel(seq, True))
    assert cancels.take(other, 7)
    for seq in range(2 * _NOTES):
        cancels.on_cancel(inbound, m.Cancel(seq, True))
    assert not cancels.take(inbound, 0) and cancels.take(inbound, 2 * _NOTES - 1)
    cancels.forget(inbound)
    assert not cancels.take(inbound, 2 * _NOTES - 2)
