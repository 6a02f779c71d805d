"""Pulls the values of objects from other nodes into the arena.

A pull is cut into chunks, which are taken in ascending order so that the part that is there can be passed on. It has
one or more streams; a stream is a turn of a thread on a connection to one source. What a stream leaves unfinished goes
to another. The choice of sources is made on the loop, the bytes are moved in threads. See also ``transfer.py``.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from noded.node.transfer import IDLE_SECONDS, IdleChannels, Incoming
from noded.node.transfer_stream import End, Pull, Stream
from noded.wire import chunks

log = logging.getLogger("noded.transfer")

THREADS = 8
"""In each of two lanes, so that small values need not wait for large ones."""
SMALL = 1 << 20
ROUNDS = 3
"""How often more sources are asked for without a byte in between."""
ROUND_SECONDS = 0.2
BUSY_RETRY_SECONDS = 0.2
BUSY_LIMIT_SECONDS = 30.0


T = TypeVar("T")


class PullFailed(Exception):
    def __init__(self, reasons: list[str]):
        super().__init__("; ".join(reasons) or "there is no source")
        self.reasons = reasons


class PullCancelled(Exception):
    """Nobody wants the object here any more, or the node stops."""


class Puller:
    """``connect(address)`` dials and authenticates, blocking, in a thread of ours; it must end by itself."""

    def __init__(
        self,
        arena_fd: int,
        connect: Callable[[str], socket.socket],
        *,
        threads: int = THREADS,
        patience: float = chunks.PATIENCE,
    ):
        self._arena_fd = arena_fd
        self.connect = connect
        self.patience = patience
        self.idle = IdleChannels()
        self.waiting: set[Stream] = set()
        """Streams of large values that have no thread yet."""
        self.pulled_bytes = 0
        self.pulled_objects = 0
        self._pulls: dict[bytes, Pull] = {}
        self._large = ThreadPoolExecutor(threads, "transfer-pull")
        self._small = ThreadPoolExecutor(threads, "transfer-pull-small")
        self._sweep: asyncio.TimerHandle | None = None
        self._stopped = False

    def incoming(self, id_: bytes) -> Incoming | None:
        """What has arrived of an object that is being pulled."""
        pull = self._pulls.get(id_)
        return None if pull is None else pull.incoming

    def cancel(self, id_: bytes) -> None:
        """Its ``pull`` raises PullCancelled as soon as nobody writes any more."""
        pull = self._pulls.get(id_)
        if pull is not None:
            pull.end()

    async def stop(self) -> None:
        self._stopped = True
        for pull in self._pulls.values():
            pull.end()
        for lane in (self._large, self._small):
            await asyncio.to_thread(lane.shutdown)
        self.idle.close()
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    async def pull(
        self,
        id_: bytes,
        size: int,
        offset: int,
        sources: list[str],
        more_sources: Callable[[], Awaitable[list[str]]],
        fd: int = -1,
    ) -> None:
        """Write the value to ``offset`` of the arena, or of the file ``fd``. However it ends, nobody writes there any
        more afterwards. Raises PullFailed when no source is left, PullCancelled.
        """
        if self._stopped:
            raise PullCancelled("the node stops")
        if id_ in self._pulls:
            raise ValueError(f"object {id_.hex()} is being pulled already")
        pull = self._pulls[id_] = Pull(id_, size, self._arena_fd if fd < 0 else fd, offset)
        running: dict[asyncio.Future[End], Stream] = {}
        try:
            await self._drive(pull, running, sources, more_sources)
            self.pulled_bytes += size
            self.pulled_objects += 1
        finally:
            del self._pulls[id_]
            if not pull.incoming.complete:
                pull.incoming.fail()
            await self._settle(pull, running)
            self._sweep_later()

    async def _drive(
        self,
        pull: Pull,
        running: dict[asyncio.Future[End], Stream],
        sources: list[str],
        more_sources: Callable[[], Awaitable[list[str]]],
    ) -> None:
        incoming = pull.incoming
        candidates = dict.fromkeys(sources, 0.0)  # address -> when to try it
        reasons: list[str] = []
        rounds, asked_at = 0, incoming.changed_at
        while not incoming.complete:
            if pull.ended.done():
                raise PullCancelled(f"the pull of object {pull.id.hex()} was cancelled")
            self._start_streams(pull, running, candidates)
            if not running and not candidates:
                rounds = 1 if incoming.changed_at > asked_at else rounds + 1
                asked_at = incoming.changed_at
                more = await _unless(pull.ended, more_sources()) if rounds <= ROUNDS else []
                if not more and not pull.ended.done():
                    raise PullFailed(reasons)
                # At once, if it is the first time; what has just failed gets some time to come back.
                candidates = dict.fromkeys(more or [], time.monotonic() + ROUND_SECONDS * (rounds - 1))
                continue
            delay = min(candidates.values()) - time.monotonic() if candidates and pull.has_work() else None
            if len(running) == pull.streams:
                delay = None
            waits: set[asyncio.Future[Any]] = {pull.ended, *running}
            done, _ = await asyncio.wait(waits, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
            if pull.ended.done():
                continue
            for future in [f for f in running if f in done]:
                self._on_end(pull, running.pop(future), future.result(), candidates, reasons)

    def _start_streams(
        self, pull: Pull, running: dict[asyncio.Future[End], Stream], candidates: dict[str, float]
    ) -> None:
        now = time.monotonic()
        for address in [a for a, due in candidates.items() if due <= now]:
            if len(running) >= pull.streams or not pull.has_work():
                return
            del candidates[address]
            stream = Stream(self, pull, address)
            lane = self._small
            if pull.incoming.size >= SMALL:
                lane = self._large
                self.waiting.add(stream)
            running[asyncio.get_running_loop().run_in_executor(lane, stream.run)] = stream

    def _on_end(self, pull: Pull, stream: Stream, end: End, candidates: dict[str, float], reasons: list[str]) -> None:
        now = time.monotonic()
        if end is End.NO_ROOM:
            raise PullFailed([stream.reason])
        if end is End.BUSY and now - pull.incoming.changed_at < BUSY_LIMIT_SECONDS:
            candidates[stream.address] = now + BUSY_RETRY_SECONDS
        elif end in (End.BUSY, End.FAILED):
            log.info("object %s: %s", pull.id.hex(), stream.reason)
            reasons.append(stream.reason)
        else:
            candidates[stream.address] = 0.0

    async def _settle(self, pull: Pull, running: dict[asyncio.Future[End], Stream]) -> None:
        """Wait for the streams that may still write; the others will not begin."""
        writing = set(pull.end())
        for future, stream in running.items():
            if stream not in writing:
                future.cancel()
                self.waiting.discard(stream)
        left = {future for future, stream in running.items() if stream in writing}
        cancelled = False
        while left:
            try:
                _, left = await asyncio.wait(left)
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            raise asyncio.CancelledError

    def _sweep_later(self) -> None:
        if self._sweep is None and len(self.idle) and not self._stopped:
            self._sweep = asyncio.get_running_loop().call_later(IDLE_SECONDS / 2, self._on_sweep)

    def _on_sweep(self) -> None:
        self._sweep = None
        self.idle.close(older_than=IDLE_SECONDS)
        self._sweep_later()


async def _unless(ended: asyncio.Future[Any], asked: Awaitable[T]) -> T | None:
    """What it returns, or None if that does not come before the end."""
    task: asyncio.Future[Any] = asyncio.ensure_future(asked)
    try:
        await asyncio.wait({task, ended}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
