"""``ActorPool``: spread calls over a fixed set of actors, one at a time each.

A call that finds no free actor waits here, in the caller, until one has answered. Nothing happens in the
background: the next waiting call is made by the ``get_next`` that takes an answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from noded.client.api import get, wait
from noded.client.refs import ObjectRef


class _Call(NamedTuple):
    number: int
    """In the order of submission."""
    actor: Any
    result: Any
    """What the user's function has returned: a ref or a list of refs."""


class ActorPool:
    """``ActorPool([actor, …])``. ``fn(actor, value)`` must return the ObjectRef of a call to that actor."""

    def __init__(self, actors: Iterable[Any]):
        self._idle = list(actors)
        self._waiting: deque[tuple[Callable[[Any, Any], Any], Any]] = deque()
        self._running: dict[ObjectRef[Any], _Call] = {}
        self._by_number: dict[int, ObjectRef[Any]] = {}
        self._submitted = 0
        self._returned = 0
        """Number of the next answer in order."""

    def map(self, fn: Callable[[Any, Any], Any], values: Iterable[Any]) -> Iterator[Any]:
        """The answers for all values, in the order of the values. Answers nobody has taken before are dropped."""
        self._submit_all(fn, values)
        return self._answers(self.get_next)

    def map_unordered(self, fn: Callable[[Any, Any], Any], values: Iterable[Any]) -> Iterator[Any]:
        """The answers for all values, in the order in which they come."""
        self._submit_all(fn, values)
        return self._answers(self.get_next_unordered)

    def _submit_all(self, fn: Callable[[Any, Any], Any], values: Iterable[Any]) -> None:
        while self.has_next():
            try:
                self.get_next_unordered(timeout=0, ignore_if_timedout=True)
            except TimeoutError:
                pass
        for value in values:
            self.submit(fn, value)

    def _answers(self, take: Callable[[], Any]) -> Iterator[Any]:
        while self.has_next():
            yield take()

    def submit(self, fn: Callable[[Any, Any], Any], value: Any) -> None:
        """Call ``fn(actor, value)`` with a free actor: now, or as soon as an answer has been taken."""
        if not self._idle:
            self._waiting.append((fn, value))
            return
        actor = self._idle.pop()
        try:
            result = fn(actor, value)
            ref = result[0] if isinstance(result, list) and result else result
            if not isinstance(ref, ObjectRef):
                raise TypeError(
                    "the function given to an ActorPool must return the ObjectRef of a call to the actor, "
                    f"not {type(result).__name__}"
                )
        except BaseException:
            self._idle.append(actor)
            raise
        self._running[ref] = _Call(self._submitted, actor, result)
        self._by_number[self._submitted] = ref
        self._submitted += 1

    def has_next(self) -> bool:
        """Whether an answer is outstanding."""
        return bool(self._running)

    def get_next(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The next answer in the order of submission.

        Raises TimeoutError after ``timeout`` seconds; with ``ignore_if_timedout`` the answer is given up as well
        and its actor counts as free. Raises StopIteration when nothing is outstanding.
        """
        if not self.has_next():
            raise StopIteration("No more results to get")
        if self._returned >= self._submitted:
            raise ValueError(
                "get_next() cannot be called now: get_next_unordered() has taken a later answer, "
                "and only it can take those that are left"
            )
        return self._take([self._by_number[self._returned]], timeout, ignore_if_timedout)

    def get_next_unordered(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """An answer that is there, of whichever call; else as ``get_next``."""
        if not self.has_next():
            raise StopIteration("No more results to get")
        return self._take(list(self._running), timeout, ignore_if_timedout)

    def _take(self, refs: list[ObjectRef[Any]], timeout: float | None, ignore: bool) -> Any:
        ready, late = wait(refs, num_returns=1, timeout=timeout)
        if not ready and not ignore:
            raise TimeoutError(f"Timed out waiting for result: no answer after {timeout:g} s")
        ref = ready[0] if ready else late[0]
        call = self._running.pop(ref)
        del self._by_number[call.number]
        self._returned = max(self._returned, call.number + 1)
        self._free(call.actor)
        if not ready:
            raise TimeoutError(f"Timed out waiting for result after {timeout:g} s. The task {ref!r} has been ignored.")
        return get(call.result)

    def _free(self, actor: Any) -> None:
        self._idle.append(actor)
        if self._waiting:
            self.submit(*self._waiting.popleft())

    def has_free(self) -> bool:
        """Whether ``submit`` would make its call at once."""
        return bool(self._idle) and not self._waiting

    def pop_idle(self) -> Any:
        """Take a free actor out of the pool; None when there is none."""
        return self._idle.pop() if self.has_free() else None

    def push(self, actor: Any) -> None:
        """Add an actor. Raises ValueError when the pool has it already."""
        if actor in self._idle or any(actor == call.actor for call in self._running.values()):
            raise ValueError("Actor already belongs to current ActorPool")
        self._free(actor)
