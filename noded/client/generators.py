"""Refs that come one by one: what a streaming task returns, and the value of a task with dynamic returns."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from noded.client.refs import INLINE, PENDING, ObjectRef


class Stream:
    """The items of one streaming task that have arrived and were not taken yet. Changes under the runtime's lock."""

    __slots__ = ("arrived", "dropped", "items", "lost", "over", "taken", "task", "waiters", "window")

    def __init__(self, task: Any, window: int):
        self.task = task
        self.window = window
        self.items: deque[ObjectRef[Any]] = deque()
        self.arrived = 0
        self.taken = 0
        self.over = False
        self.dropped = False
        self.lost = False
        """A worker died of it."""
        self.waiters: list[Callable[[], None]] = []
        """Called once, when an item arrives or the stream ends."""

    def tell(self) -> None:
        waiters, self.waiters = self.waiters, []
        for call in waiters:
            call()


dropped: deque[Stream] = deque()
"""Streams whose generator is gone; the helper tells their workers, which go on but send no more items."""


class ObjectRefGenerator:
    """The items of a streaming task, as ObjectRefs, each as soon as it is made: iterate it, also with ``async for``."""

    def __init__(self, stream: Stream, runtime: Any):
        self._stream = stream
        self._runtime = runtime
        self._end: ObjectRef[Any] = stream.task.refs[0]

    def __iter__(self) -> Iterator[ObjectRef[Any]]:
        return self

    def __next__(self) -> ObjectRef[Any]:
        return self._next_sync(None)

    def _next_sync(self, timeout_s: float | None = None) -> ObjectRef[Any]:
        """The next ref. Raises StopIteration at the end, GetTimeoutError after ``timeout_s`` seconds."""
        stream = self._stream
        while True:
            over = stream.over
            ref: ObjectRef[Any] | None = self._runtime.streams.take(stream)
            if ref is not None:
                return ref
            if over:
                raise StopIteration
            self._runtime.streams.wait(stream, timeout_s)  # another thread may then have been faster

    def __aiter__(self) -> AsyncIterator[ObjectRef[Any]]:
        return self

    async def __anext__(self) -> ObjectRef[Any]:
        stream = self._stream
        while True:
            over = stream.over
            ref: ObjectRef[Any] | None = self._runtime.streams.take(stream)
            if ref is not None:
                return ref
            if over:
                raise StopAsyncIteration
            await self._runtime.awaiting.item(stream)  # another coroutine may then have been faster

    def completed(self) -> ObjectRef[Any]:
        """A ref that is ready when the task has ended. Its value is None, or the error of a worker that died or of a
        cancel; an error of the task's own code is the last item only.
        """
        return self._end

    def next_ready(self) -> bool:
        """Whether the next item is there."""
        return bool(self._stream.items)

    def is_finished(self) -> bool:
        """Whether all items were taken and no more will come."""
        return self._stream.over and not self._stream.items

    def task_id(self) -> str:
        return self._end.task_id()

    @property
    def _state(self) -> int:
        """For ``wait``: ready when there is an item, or the end."""
        return INLINE if self._stream.items or self._stream.over else PENDING

    def __reduce__(self) -> Any:
        raise TypeError(
            "a generator of a streaming task cannot leave its process: pass its items, or use num_returns='dynamic'"
        )

    def __repr__(self) -> str:
        return f"ObjectRefGenerator({self._end.task_id()})"

    def __del__(self, dropped: deque[Stream] = dropped) -> None:  # bound: globals may be gone at the end
        if not self._stream.over:
            dropped.append(self._stream)


class DynamicObjectRefGenerator:
    """The refs of all items of a task with ``num_returns="dynamic"``: iterate it, or take its length."""

    def __init__(self, refs: list[ObjectRef[Any]]):
        self._refs = refs

    def __iter__(self) -> Iterator[ObjectRef[Any]]:
        return iter(self._refs)

    def __len__(self) -> int:
        return len(self._refs)

    def __repr__(self) -> str:
        return f"DynamicObjectRefGenerator({len(self._refs)} refs)"
