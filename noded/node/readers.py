"""Threads for questions that read files: logs, telemetry pages, events.

They are not those of the event loop, which objects and the head's state need: a question that hangs, on a slow or stuck
disk, holds up other questions alone. The threads end with the process, also where they hang.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

THREADS = 4
MOST = 64
"""Questions at once, of which THREADS run and the others wait."""
_T = TypeVar("_T")
Job = tuple["asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...]]


class Readers:
    """To be used on one event loop."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._open: set[asyncio.Future[Any]] = set()
        """Of what waits and what runs, also when nobody waits for the answer any more."""
        self._stopped = False

    async def run(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """What ``function`` returns or raises, in one of the threads. Raises ValueError when too many wait."""
        if self._stopped:
            raise ValueError("this question is not answered any more: its node's daemon ends")
        if len(self._open) >= MOST:
            raise ValueError(
                f"{len(self._open)} questions about logs and state wait on this node already, its disk may hang or be "
                "slow: ask again later"
            )
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._open.add(future)
        if len(self._threads) < min(THREADS, len(self._open)):
            thread = threading.Thread(target=self._work, name="noded-readers", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._queue.put((future, function, arguments))
        return await future

    def stop(self) -> None:
        """What waits is refused. What runs is not waited for."""
        self._stopped = True
        for future in self._open:
            if not future.done():
                future.set_exception(ValueError("this question was not answered: its node's daemon ends"))
        for _ in self._threads:
            self._queue.put(None)

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            future, function, arguments = job
            result, error = None, None
            if not future.done():
                try:
                    result = function(*arguments)
                except Exception as raised:
                    error = raised
            try:
                future.get_loop().call_soon_threadsafe(self._answered, future, result, error)
            except RuntimeError:  # the loop is closed: nobody waits
                return
            del job, future, function, arguments, result, error

    def _answered(self, future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
        self._open.discard(future)
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)
