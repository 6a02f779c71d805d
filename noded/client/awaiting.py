"""Refs and streams that event loops and futures wait for.

While a loop waits, it reads our sockets itself (their epoll is one of its descriptors), so that an answer reaches the
coroutine without a thread switch. Only the wake-up is done here; values are loaded by who waits.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Generator
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from noded import exceptions as ex
from noded.client.generators import Stream
from noded.client.objects import Objects
from noded.client.reader import Reader
from noded.client.refs import AWAY, PENDING, REMOTE, ObjectRef

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future


class _Loop:
    """One event loop that waits for something of ours."""

    def __init__(self, loop: Any):
        self.loop = loop
        self.thread = threading.get_ident()
        self.waiting: set[Any] = set()
        self.ready: list[Any] = []
        self.fd = -1
        """While it reads: a descriptor of our epoll that is the loop's own, for it may outlive ours."""

    def stop_reading(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            try:
                self.loop.remove_reader(fd)
            except RuntimeError:  # the loop is closed
                pass
            os.close(fd)


class Awaiting:
    """``own_loop``: a loop whose selector reads our sockets anyway (async actors)."""

    def __init__(self, lock: Any, reader: Reader, objects: Objects, flush: Callable[[], None]):
        self._lock = lock
        self._reader = reader
        self._objects = objects
        self._flush = flush
        self._loops: dict[Any, _Loop] = {}
        self._settled: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._open: set[Future[Any]] = set()
        self.own_loop: Any = None
        self._over = ""
        """Why nothing comes any more."""

    # ------------------------------------------------------------ event loops

    def ref(self, ref: ObjectRef[Any]) -> Generator[Any, None, Any]:
        """``await ref``: its value, or its error."""
        while ref._state == PENDING or ref._state == REMOTE or ref._state == AWAY:  # its task may end on another node
            yield from self._future(lambda tell: self._objects.when_settled_locked(ref, tell))
        return self._objects.load(ref)

    def item(self, stream: Stream) -> asyncio.Future[None]:
        """Done when the stream has an item, or is over."""

        def watch(tell: Callable[[], None]) -> bool:
            if stream.items or stream.over:
                return False
            stream.waiters.append(tell)
            return True

        future: asyncio.Future[None] = self._future(watch)
        return future

    def _future(self, watch: Callable[[Callable[[], None]], bool]) -> Any:
        import asyncio

        loop = asyncio.get_running_loop()
        future = loop.create_future()
        with self._lock:
            known = self._loops.get(loop)
            if self._over:
                raise ex.LocalDaemonDiedError(self._over)
            if known is None:
                self._forget_closed_locked()
                known = self._loops[loop] = _Loop(loop)
            if not watch(lambda: self._tell_locked(known, future)):
                future.set_result(None)
                return future
            known.waiting.add(future)
            self._flush()
        if loop is not self.own_loop and known.fd < 0:
            known.fd = os.dup(self._reader.epoll.fileno())
            loop.add_reader(known.fd, self._read, known)
        return future

    def _forget_closed_locked(self) -> None:
        for loop, known in list(self._loops.items()):
            if loop.is_closed():
                known.stop_reading()
                del self._loops[loop]

    def _tell_locked(self, known: _Loop, future: Any) -> None:
        known.waiting.discard(future)
        known.ready.append(future)
        if len(known.ready) == 1:
            try:
                if threading.get_ident() == known.thread:
                    known.loop.call_soon(self._wake, known)
                else:
                    known.loop.call_soon_threadsafe(self._wake, known)
            except RuntimeError:  # the loop is closed, nobody waits any more
                known.ready.clear()

    def _wake(self, known: _Loop) -> None:
        with self._lock:
            ready, known.ready = known.ready, []
        for future in ready:
            if not future.done():
                future.set_result(None)

    def _read(self, known: _Loop) -> None:
        reader = self._reader
        if reader.role.acquire(blocking=False):
            try:
                reader.poll(0)
            finally:
                reader.release()
        if not known.waiting:
            known.stop_reading()

    # ------------------------------------------------------------ futures

    def future(self, ref: ObjectRef[Any]) -> Future[Any]:
        """A future that gets the ref's value. It cannot be cancelled."""
        from concurrent.futures import Future

        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()

        def settle() -> None:
            self._open.discard(future)
            try:
                value = self._objects.load(ref)
            except BaseException as error:
                _settle(future, error, None)
            else:
                _settle(future, None, value)

        with self._lock:
            if self._over:
                _settle(future, ex.LocalDaemonDiedError(self._over), None)
                return future
            self._open.add(future)
            if not self._objects.when_settled_locked(ref, lambda: self._settled.put(settle)):
                self._settled.put(settle)
            self._flush()
            if self._thread is None:
                self._thread = threading.Thread(target=self._settle, name="noded-futures", daemon=True)
                self._thread.start()
        return future

    def _settle(self) -> None:
        """Values are loaded, and callbacks run, outside of our lock."""
        while (settle := self._settled.get()) is not None:
            try:
                settle()
            except BaseException:  # a callback raised what ends programs; other futures are to come all the same
                threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))
            del settle  # it holds a ref, and its value

    # ------------------------------------------------------------ end

    def fail(self, reason: str) -> None:
        """Nothing will ever come: who waits is told."""
        with self._lock:
            self._over = reason
            loops, futures = list(self._loops.values()), list(self._open)
            self._open.clear()
        error = ex.LocalDaemonDiedError(reason)

        def tell(known: _Loop) -> None:
            for future in list(known.waiting):
                if not future.done():
                    future.set_exception(error)
            known.waiting.clear()
            known.stop_reading()

        for known in loops:
            if threading.get_ident() == known.thread:
                tell(known)
                continue
            try:
                known.loop.call_soon_threadsafe(tell, known)
            except RuntimeError:  # closed
                known.stop_reading()
        for waiting in futures:
            _settle(waiting, error, None)
        self._settled.put(None)


def _settle(future: Future[Any], error: BaseException | None, value: Any) -> None:
    """Whoever comes first: the value, or the end of the connection."""
    from concurrent.futures import InvalidStateError

    try:
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)
    except InvalidStateError:
        pass
