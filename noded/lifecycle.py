"""What the daemon's components share: how long the loop's callbacks take, and what keeps them short."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

_PROBE_SECONDS = 0.25
_PIECE_SECONDS = 0.005
_PIECE = 256
SLOW_SECONDS = 0.05
"""In debug mode a callback that takes longer is told."""

log = logging.getLogger("noded.loop")


@contextmanager
def no_collections() -> Iterator[None]:
    """While very many objects are made that all stay, the collector would look at them again and again in vain."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


async def pieces(things: list[T]) -> AsyncIterator[list[T]]:
    """The same in small lists; the loop serves others between them, as often as it takes."""
    began = time.monotonic()
    for at in range(0, len(things), _PIECE):
        yield things[at : at + _PIECE]
        if time.monotonic() - began > _PIECE_SECONDS:
            await asyncio.sleep(0)
            began = time.monotonic()


class RunQueue:
    """How long the calling thread was ready and had no CPU: on a busy machine that is most of what looks like a slow
    callback.
    """

    def __init__(self) -> None:
        try:
            self._fd = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # a kernel without these figures: all counts as ours
            self._fd = -1

    def waited(self) -> float:
        """Seconds since the thread began."""
        return int(os.pread(self._fd, 100, 0).split()[1]) / 1e9 if self._fd >= 0 else 0.0

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def time_callbacks() -> None:
    """For the debug mode: every callback over SLOW_SECONDS is told, with its time without that for which it had no CPU.
    (asyncio's own message counts that too, and is of no use where other programs run.) For the life of the process.
    """
    queue, run = RunQueue(), asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        begun, worked, waited = time.monotonic(), time.thread_time(), queue.waited()
        run(handle)
        if time.monotonic() - begun > SLOW_SECONDS:
            took = time.monotonic() - begun - (queue.waited() - waited)
            if took > SLOW_SECONDS:
                worked = time.thread_time() - worked
                log.warning("slow callback: %.0f ms, of these %.0f ms at work: %r", took * 1e3, worked * 1e3, handle)

    asyncio.Handle._run = timed  # type: ignore[assignment, method-assign]


class LoopProbe:
    """Measures how late the loop serves a timer: the longest callback, seen from outside, and apart from it the longest
    time for which the machine had no CPU for the loop. Also marks that the loop turns.
    """

    def __init__(self) -> None:
        self.longest_ms = 0.0
        self.longest_wait_ms = 0.0
        self._queue: RunQueue | None = None
        self._waited = 0.0
        self._handle: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._beat: Callable[[], None] = lambda: None
        self.on_look: Callable[[float, float], None] = lambda late, waited: None
        """Four times a second: the seconds of both."""
        self._due = 0.0

    def start(self, loop: asyncio.AbstractEventLoop, beat: Callable[[], None]) -> None:
        self._loop, self._beat = loop, beat
        self._queue = RunQueue()
        self._waited = self._queue.waited()
        self._arm()

    def _arm(self) -> None:
        assert self._loop is not None
        self._due = time.monotonic() + _PROBE_SECONDS
        self._handle = self._loop.call_later(_PROBE_SECONDS, self._on_timer)

    def _on_timer(self) -> None:
        assert self._queue is not None
        late = (time.monotonic() - self._due) * 1000
        waited, self._waited = self._waited, self._queue.waited()
        # At most: the loop may have waited for a CPU before the timer was due.
        wait = min(late, (self._waited - waited) * 1000)
        self.longest_ms = max(self.longest_ms, late - wait)
        self.longest_wait_ms = max(self.longest_wait_ms, wait)
        self.on_look((late - wait) / 1000, wait / 1000)
        self._beat()
        self._arm()

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._queue is not None:
            self._queue.close()
            self._queue = None
