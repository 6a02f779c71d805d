"""The items of a streaming task, on their way out: in order, no more ahead of the caller than it allows.

A caller that dropped its generator gets no more items, but the task goes on: it may have effects of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from noded.wire import messages as m
from noded.worker.answers import Answers
from noded.worker.execution import Execution
from noded.worker.inbound import Inbound

_FLUSH_SECONDS = 0.001
_UNWANTED = 1000


class OutStream:
    """How far the caller is. ``progressed`` is called under the runtime's lock, in whichever thread reads."""

    def __init__(self, window: int):
        self.window = window
        self.sent = 0
        self.taken = 0
        self.dropped = False
        self._wake: Callable[[], None] = lambda: None

    def progressed(self, count: int) -> None:
        if count < 0:
            self.dropped = True
        else:
            self.taken = max(self.taken, count)
        self._wake()

    def full(self) -> bool:
        return bool(self.window) and self.sent - self.taken >= self.window and not self.dropped

    def on_progress(self, wake: Callable[[], None]) -> None:
        self._wake = wake


class Streaming:
    """Sends the items of generators. ``open`` is keyed by caller and number, for the messages that come back."""

    def __init__(self, answers: Answers, wait: Callable[[Callable[[], Any]], Any], flush: Callable[[Inbound], None]):
        self._answers = answers
        self._wait = wait
        """Blocks the calling thread until the condition holds; reads sockets meanwhile."""
        self._flush = flush
        self._last_flush = 0.0
        self.open: dict[tuple[Inbound, int], OutStream] = {}
        self._unwanted: dict[tuple[Inbound, int], None] = {}
        """Dropped by their callers before they began here, or after they had ended."""

    def on_taken(self, inbound: Inbound, message: m.Taken) -> None:
        key = inbound, message.seq
        if message.count < 0:
            # Noted before it is looked up: it may begin right now, in another thread.
            self._unwanted[key] = None
            if len(self._unwanted) > _UNWANTED:
                del self._unwanted[next(iter(self._unwanted))]
        stream = self.open.get(key)
        if stream is not None:
            stream.progressed(message.count)

    def on_closed(self, inbound: Inbound) -> None:
        """Nobody will read the items."""
        for (whose, _), stream in list(self.open.items()):
            if whose is inbound:
                stream.progressed(-1)
        for key in [key for key in self._unwanted if key[0] is inbound]:
            del self._unwanted[key]

    def _start(self, execution: Execution) -> tuple[OutStream, int]:
        extra = execution.message.extra or m.Extra()
        stream = OutStream(extra.window)
        stream.sent = stream.taken = extra.skip
        key = execution.inbound, execution.message.seq
        self.open[key] = stream
        stream.dropped = key in self._unwanted or execution.inbound.link.closed
        return stream, extra.skip

    def _end(self, execution: Execution) -> None:
        self.open.pop((execution.inbound, execution.message.seq), None)

    def _send(self, execution: Execution, stream: OutStream, value: Any) -> None:
        if not stream.dropped:
            self._answers.item(execution, stream.sent, value)
            stream.sent += 1
            if (now := time.monotonic()) - self._last_flush > _FLUSH_SECONDS:
                self._last_flush = now
                self._flush(execution.inbound)

    def run(self, execution: Execution, items: Any) -> None:
        """All items of a plain generator, in this thread. Raises what it raises."""
        stream, skip = self._start(execution)
        runtime = execution.runtime
        try:
            for index, value in enumerate(iterator_of(execution, items)):
                if index < skip:
                    continue
                with runtime.interrupts:
                    self._send(execution, stream, value)
                if stream.full():
                    self._flush(execution.inbound)
                    with runtime.interrupts:
                        self._wait(lambda: not stream.full() or execution.inbound.link.closed)
        finally:
            self._end(execution)

    async def run_async(self, execution: Execution, items: Any) -> None:
        """Likewise on an event loop, for plain and asynchronous generators."""
        stream, skip = self._start(execution)
        loop = asyncio.get_running_loop()
        room = asyncio.Event()

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(room.set)
            except RuntimeError:  # the loop is closed: the actor has ended
                pass

        stream.on_progress(wake)
        index = 0

        async def one(value: Any) -> None:
            nonlocal index
            index += 1
            if index <= skip:
                return
            self._send(execution, stream, value)
            while stream.full() and not execution.inbound.link.closed:
                self._flush(execution.inbound)
                room.clear()
                if stream.full():
                    await room.wait()

        try:
            if hasattr(items, "__aiter__"):
                async for value in items:
                    await one(value)
            else:
                for value in iterator_of(execution, items):
                    await one(value)
        finally:
            self._end(execution)


def iterator_of(execution: Execution, items: Any) -> Any:
    try:
        return iter(items)
    except TypeError:
        raise TypeError(
            f"{execution.name} has num_returns='streaming': it must be a generator or return an iterable, "
            f"not {items!r:.100}"
        ) from None
