"""Serves the values of objects to other nodes, and takes values from drivers that have no node.

A thread per connection, with blocking calls: values never pass through the loop. What has to be asked of the object
store is asked on the loop's thread. A source is kept open until the peer has read what was sent of it, because pages
are sent by reference (see ``wire/chunks.py``). See also ``transfer.py``.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from noded.node.transfer import BUFFER, CHUNK, NotYet, Source, Target, WriteFailed, receive_into
from noded.wire import chunks
from noded.wire.chunks import Channel, Malformed, Refused

log = logging.getLogger("noded.transfer")

THREADS = 64
BACKLOG = 256
BUSY_SECONDS = 5.0
"""Who asks for what has not arrived here yet is put off after so long."""
_LOOK_SECONDS = 0.25
_PLACE_SECONDS = 0.01
"""How often to look whether a place was found for what is to arrive."""
_PIECE = 1 << 20
"""What is still arriving is passed on in steps of this size."""

T = TypeVar("T")


class TransferServer:
    """On the loop: ``open_source(id)`` may raise NotYet; ``allocate(id, size)`` finds room for a value and may raise
    Refused.
    """

    def __init__(
        self,
        arena_fd: int,
        open_source: Callable[[bytes], Source | None],
        allocate: Callable[[bytes, int], Awaitable[Target]],
        *,
        threads: int = THREADS,
        patience: float = chunks.PATIENCE,
    ):
        self.fd = arena_fd
        self.open_source = open_source
        self.patience = patience
        self.stopping = False
        self.sent_bytes = 0
        self.backlog: deque[Channel] = deque()
        self._allocate = allocate
        self._threads_limit = threads
        self._loop: asyncio.AbstractEventLoop | None = None
        self.lock = threading.Lock()
        self._connections: set[_Connection] = set()
        self._threads: set[threading.Thread] = set()
        self._asking: set[asyncio.Task[Any]] = set()

    def serve(self, sock: socket.socket) -> None:
        """Take over an authenticated connection. On the loop."""
        self._loop = asyncio.get_running_loop()
        channel = Channel(sock, self.patience)
        with self.lock:
            if self.stopping or len(self.backlog) >= BACKLOG:
                channel.close()
            elif len(self._threads) < self._threads_limit:
                thread = threading.Thread(target=self._run, args=(channel,), name="transfer-serve", daemon=True)
                self._threads.add(thread)
                thread.start()
            else:
                self.backlog.append(channel)
                idle = next((c for c in self._connections if c.idle), None)
                if idle is not None:
                    idle.idle = False
                    idle.channel.shutdown()

    def _run(self, first: Channel) -> None:
        """A thread's life: this connection, then whatever waits for a thread."""
        channel: Channel | None = first
        while channel is not None:
            connection = _Connection(self, channel)
            with self.lock:
                self._connections.add(connection)
                if self.stopping:
                    channel.shutdown()
            connection.run()
            with self.lock:
                self._connections.discard(connection)
                channel = self.backlog.popleft() if self.backlog else None
                if channel is None:
                    self._threads.discard(threading.current_thread())

    async def stop(self) -> None:
        """Close every connection and wait for the threads; the loop must run on meanwhile."""
        with self.lock:
            self.stopping = True
            connections, threads = list(self._connections), list(self._threads)
            while self.backlog:
                self.backlog.popleft().close()
        for connection in connections:
            connection.channel.shutdown()
        for task in list(self._asking):
            task.cancel()
        for thread in threads:
            await asyncio.to_thread(thread.join)

    # ------------------------------------------------------------ for the threads

    def ask(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call it on the loop's thread and wait for what it returns or raises."""
        answer: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            try:
                answer.set_result(function(*arguments))
            except BaseException as error:
                answer.set_exception(error)

        self.tell(run)
        return answer.result()

    def tell(self, function: Callable[..., None], *arguments: Any) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError as error:
            raise ConnectionAbortedError(f"the node has stopped: {error}") from error

    def allocate(self, id_: bytes, size: int) -> Target:
        async def ask() -> Target:
            if self.stopping or (task := asyncio.current_task()) is None:
                raise Refused("the node stops")
            self._asking.add(task)
            try:
                return await self._allocate(id_, size)
            finally:
                self._asking.discard(task)

        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(ask(), self._loop).result()


class _Held(msgspec.Struct):
    """An open source, and how many replies from it the peer has not read yet."""

    id: bytes
    source: Source
    unread: int = 0


class _Connection:
    def __init__(self, server: TransferServer, channel: Channel):
        self.channel = channel
        self.idle = False
        """Between two requests: another may have its thread."""
        self._server = server
        self._served = 0
        self._held: dict[bytes, _Held] = {}
        self._unread: deque[_Held] = deque()

    def run(self) -> None:
        try:
            while self._serve_one():
                pass
        except Malformed as error:
            log.warning("closing a transfer connection: %s", error)
        except (OSError, WriteFailed, concurrent.futures.CancelledError) as error:
            log.info("a transfer connection is over: %s", str(error) or "the node stops")
        except Exception:
            log.exception("closing a transfer connection: a request cannot be handled")
        # Reset first: what the peer has not read by then it will not take for good.
        self.channel.reset() if self._unread else self.channel.close()
        with contextlib.suppress(ConnectionAbortedError):
            for id_ in list(self._held):
                self._close_source(id_)

    def _serve_one(self) -> bool:
        self.idle = self._served > 0 and not self._unread and self.channel.is_quiet()
        if self.idle and self._server.backlog:
            return False
        try:
            op = self.channel.read(1)
        except TimeoutError:
            if self._unread:
                raise
            op = b""
        self.idle = False
        self._served += 1
        if not op:
            return False
        if op[0] == chunks.READ:
            self._on_read()
        elif op[0] == chunks.GET:
            self._on_get(*chunks.GET_REST.unpack(self.channel.expect(chunks.GET_REST.size)))
        elif op[0] == chunks.PUT:
            self._on_put(*chunks.PUT_REST.unpack(self.channel.expect(chunks.PUT_REST.size)))
        else:
            raise Malformed(f"there is no request {op[0]}")
        return True

    # ------------------------------------------------------------ GET

    def _on_read(self) -> None:
        if not self._unread:
            raise Malformed("nothing was sent that could have been read")
        held = self._unread.popleft()
        held.unread -= 1
        if not held.unread:
            self._close_source(held.id)

    def _on_get(self, id_: bytes, offset: int, length: int) -> None:
        held = self._held.get(id_)
        if held is None:
            try:
                source = self._open_source(id_)
            except NotYet:
                return self.channel.send(chunks.GET_REPLY.pack(chunks.BUSY, 0))
            if source is None:
                return self.channel.send(chunks.GET_REPLY.pack(chunks.GONE, 0))
            held = self._held[id_] = _Held(id_, source)
        source = held.source
        if offset + length > source.size:
            raise Malformed(f"{length} bytes at {offset} were asked for of an object of {source.size}")
        if len(self._unread) >= chunks.OUTSTANDING:
            raise Malformed("too much was asked for before the rest was read")
        if not self._wait_for(source, offset, min(length, _PIECE), BUSY_SECONDS):
            failed = source.progress is not None and source.progress.failed
            self.channel.send(chunks.GET_REPLY.pack(chunks.GONE if failed else chunks.BUSY, 0))
            if not held.unread:
                self._close_source(id_)
            return
        held.unread += 1
        self._unread.append(held)
        more = socket.MSG_MORE if length and self.channel.by_reference else 0
        self.channel.send(chunks.GET_REPLY.pack(chunks.OK, length), more)
        self._send(source, offset, length)

    def _open_source(self, id_: bytes) -> Source | None:
        until = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                return self._server.ask(self._server.open_source, id_)
            except NotYet:
                if self._server.stopping or time.monotonic() > until:
                    raise
                time.sleep(_PLACE_SECONDS)

    def _wait_for(self, source: Source, start: int, count: int, seconds: float) -> bool:
        if source.progress is None:
            return True
        until = time.monotonic() + seconds
        while not source.progress.wait(start, start + count, _LOOK_SECONDS):
            if source.progress.failed or self._server.stopping or time.monotonic() > until:
                return False
        return True

    def _send(self, source: Source, offset: int, length: int) -> None:
        end = offset + length
        while offset < end:
            step = min(end - offset, CHUNK)
            if source.progress is not None and not source.progress.complete:
                step = min(step, _PIECE)
                if not self._wait_for(source, offset, step, self._server.patience):
                    raise ConnectionAbortedError("the object that was passed on does not arrive any more")
            fd = self._server.fd if source.fd < 0 else source.fd
            if self.channel.send_file(fd, source.offset + offset, step) < step:
                raise WriteFailed("what it is in ends before the object does")
            with self._server.lock:
                self._server.sent_bytes += step
            offset += step

    def _close_source(self, id_: bytes) -> None:
        self._server.tell(self._held.pop(id_).source.close)

    # ------------------------------------------------------------ PUT

    def _on_put(self, id_: bytes, size: int) -> None:
        server = self._server
        try:
            target = server.allocate(id_, size)
        except Refused as error:
            self.channel.send(chunks.put_refusal(str(error)))
            self._discard(size)
            return
        try:
            receive_into(self.channel, target.fd, target.offset, size, lambda count: None)
            server.ask(target.done)
        except BaseException as error:
            server.tell(target.give_up)
            if not isinstance(error, Refused):
                raise
            return self.channel.send(chunks.put_refusal(str(error)))
        self.channel.send(bytes([chunks.OK]))

    def _discard(self, size: int) -> None:
        """What is sent in spite of a refusal, until it ends or the peer closes."""
        buffer = memoryview(bytearray(min(size, BUFFER)))
        while size:
            size -= self.channel.receive(buffer[:size])
