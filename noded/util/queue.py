"""``Queue``: a queue that many tasks and actors share. It lives in an actor; its handle may travel anywhere.

Items are objects like any other: big ones lie in shared memory. A blocked ``put`` or ``get`` waits in the
actor and holds up nobody else.
"""

from __future__ import annotations

import queue
from collections.abc import Iterable
from typing import Any

from noded.client.api import get, kill, wait
from noded.client.remote import remote

WAITERS = 100_000
"""So many blocked calls may wait in the actor at once."""


class Empty(queue.Empty):
    """There is no item, or none has come in time."""


class Full(queue.Full):
    """There is no room, or none has come in time."""


class Queue:
    """First in, first out. ``maxsize`` 0 means no bound; ``actor_options`` are options of its actor."""

    def __init__(self, maxsize: int = 0, actor_options: dict[str, Any] | None = None):
        self.maxsize = maxsize
        options = {"max_concurrency": WAITERS, **(actor_options or {})}
        self.actor: Any = remote(_QueueActor).options(**options).remote(maxsize)

    def __len__(self) -> int:
        return self.size()

    def size(self) -> int:
        """The number of items now."""
        return int(get(self._actor().qsize.remote()))

    def qsize(self) -> int:
        """The number of items now."""
        return self.size()

    def empty(self) -> bool:
        """Whether there is no item now."""
        return bool(get(self._actor().empty.remote()))

    def full(self) -> bool:
        """Whether there is no room now."""
        return bool(get(self._actor().full.remote()))

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Add an item, waiting for room up to ``timeout`` seconds (for ever: None). Raises Full."""
        call = self._put_call(item, block, timeout)
        try:
            get(call)
        except queue.Full as full:
            raise _plain(Full, full) from None

    async def put_async(self, item: Any, block: bool = True, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """As ``put``, awaited."""
        call = self._put_call(item, block, timeout)
        try:
            await call
        except queue.Full as full:
            raise _plain(Full, full) from None

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take an item, waiting for one up to ``timeout`` seconds (for ever: None). Raises Empty."""
        call = self._get_call(block, timeout)
        try:
            return get(call)
        except queue.Empty as empty:
            raise _plain(Empty, empty) from None

    async def get_async(self, block: bool = True, timeout: float | None = None) -> Any:  # noqa: ASYNC109
        """As ``get``, awaited."""
        call = self._get_call(block, timeout)
        try:
            return await call
        except queue.Empty as empty:
            raise _plain(Empty, empty) from None

    def put_nowait(self, item: Any) -> None:
        """``put(item, block=False)``."""
        self.put(item, block=False)

    def get_nowait(self) -> Any:
        """``get(block=False)``."""
        return self.get(block=False)

    def put_nowait_batch(self, items: Iterable[Any]) -> None:
        """Add all items, or none: raises Full when there is no room for all."""
        if not isinstance(items, Iterable):
            raise TypeError("Argument 'items' must be an Iterable")
        try:
            get(self._actor().put_nowait_batch.remote(list(items)))
        except queue.Full as full:
            raise _plain(Full, full) from None

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        """Take so many items, or none: raises Empty when there are fewer."""
        if not isinstance(num_items, int):
            raise TypeError("Argument 'num_items' must be an int")
        if num_items < 0:
            raise ValueError("'num_items' must be nonnegative")
        try:
            return list(get(self._actor().get_nowait_batch.remote(num_items)))
        except queue.Empty as empty:
            raise _plain(Empty, empty) from None

    def shutdown(self, force: bool = False, grace_period_s: int = 5) -> None:
        """End the queue's actor: when what was called has been done, but after ``grace_period_s`` seconds, or
        with ``force``, at once. What is in the queue is lost; the queue cannot be used any more.
        """
        actor, self.actor = self.actor, None
        if actor is None:
            return
        if not force:
            done, _ = wait([actor.__ray_terminate__.remote()], timeout=grace_period_s)
            if done:
                return
        kill(actor, no_restart=True)

    def _actor(self) -> Any:
        if self.actor is None:
            raise RuntimeError("this Queue was shut down: make a new one")
        return self.actor

    def _put_call(self, item: Any, block: bool, timeout: float | None) -> Any:
        if not block:
            return self._actor().put_nowait.remote(item)
        return self._actor().put.remote(item, _seconds(timeout))

    def _get_call(self, block: bool, timeout: float | None) -> Any:
        if not block:
            return self._actor().get_nowait.remote()
        return self._actor().get.remote(_seconds(timeout))


def _seconds(timeout: float | None) -> float | None:
    if timeout is not None and timeout < 0:
        raise ValueError("'timeout' must be a non-negative number")
    return timeout


def _plain(kind: type[Exception], error: Exception) -> Exception:
    """The actor's refusal is no failure of a task: it is raised without the actor's traceback."""
    cause = getattr(error, "cause", None)
    return kind(*cause.args) if isinstance(cause, kind) else kind()


class _QueueActor:
    """Its waiting is the caller's: the timeouts are part of the calls."""

    def __init__(self, maxsize: int):
        import asyncio

        self._maxsize = maxsize
        self._queue: asyncio.Queue[Any] = asyncio.Queue(maxsize)

    async def qsize(self) -> int:
        return self._queue.qsize()

    async def empty(self) -> bool:
        return self._queue.empty()

    async def full(self) -> bool:
        return self._queue.full()

    async def put(self, item: Any, timeout: float | None = None) -> None:  # noqa: ASYNC109
        import asyncio

        if not self._queue.full():
            self._queue.put_nowait(item)
            return
        try:
            await asyncio.wait_for(self._queue.put(item), timeout)
        except TimeoutError:
            raise Full(f"no room in {timeout:g} s: the queue holds {self._maxsize} items") from None

    async def get(self, timeout: float | None = None) -> Any:  # noqa: ASYNC109
        import asyncio

        if not self._queue.empty():
            return self._queue.get_nowait()
        try:
            return await asyncio.wait_for(self._queue.get(), timeout)
        except TimeoutError:
            raise Empty(f"no item in {timeout:g} s") from None

    async def put_nowait(self, item: Any) -> None:
        if self._queue.full():
            raise Full(f"the queue holds {self._maxsize} items already")
        self._queue.put_nowait(item)

    async def get_nowait(self) -> Any:
        if self._queue.empty():
            raise Empty("the queue is empty")
        return self._queue.get_nowait()

    async def put_nowait_batch(self, items: list[Any]) -> None:
        if self._maxsize > 0 and self._queue.qsize() + len(items) > self._maxsize:
            raise Full(
                f"cannot add {len(items)} items: the queue holds {self._queue.qsize()} of {self._maxsize} already"
            )
        for item in items:
            self._queue.put_nowait(item)

    async def get_nowait_batch(self, count: int) -> list[Any]:
        if count > self._queue.qsize():
            raise Empty(f"cannot take {count} items: the queue holds {self._queue.qsize()}")
        return [self._queue.get_nowait() for _ in range(count)]
