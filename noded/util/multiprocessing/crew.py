"""The workers of a pool, and which of them does what next.

A chunk of calls is given to the worker that is free first. A worker whose chunks are short is given some ahead,
so that it never waits for the pool. Work is handed out by the thread that submits it and, when an answer makes
room, by the crew's own thread, which also runs callbacks and replaces workers that died.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from noded.client.api import kill, wait
from noded.client.refs import ObjectRef
from noded.client.watch import Watch
from noded.exceptions import ActorDiedError, LocalDaemonDiedError, TaskError

AHEAD_SECONDS = 0.005
"""So much work may lie ahead of a worker."""
MOST_AHEAD = 64
END_SECONDS = 5.0


class PoolWorker:
    """The actor."""

    def __init__(self, initializer: Callable[..., Any] | None, initargs: tuple[Any, ...]):
        if initializer is not None:
            initializer(*initargs)

    def ready(self) -> None:
        """Returns when the initializer has."""

    def run(self, how: str, fn: Callable[..., Any], chunk: list[Any]) -> tuple[list[Any], dict[int, TaskError]]:
        """(results, errors by place). ``how``: each item is "one" argument, several ("star"), or (args, kwargs)."""
        results: list[Any] = []
        errors: dict[int, TaskError] = {}
        for at, item in enumerate(chunk):
            try:
                if how == "one":
                    results.append(fn(item))
                elif how == "star":
                    results.append(fn(*item))
                else:
                    results.append(fn(*item[0], **item[1]))
            except Exception as problem:
                results.append(None)
                errors[at] = _carried(TaskError.from_exception(problem, getattr(fn, "__qualname__", repr(fn))))
        return results, errors


def _carried(error: TaskError) -> TaskError:
    """Without the user's exception where that cannot be pickled: one must not cost the others their results."""
    import cloudpickle

    try:
        cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:
        return error.without_cause()
    return error


class Chunk:
    """Some calls for one worker, and their answer. Its state changes under the crew's lock."""

    __slots__ = ("arrived", "error", "fn", "how", "items", "on_arrival", "ref", "size")

    def __init__(self, how: str, fn: Any, items: list[Any], on_arrival: Callable[[Chunk], Callable[[], None] | None]):
        self.how = how
        self.fn = fn
        self.items: list[Any] | None = items
        self.size = len(items)
        self.on_arrival = on_arrival
        """Called under the crew's lock; may return what the crew's thread is to do without it."""
        self.ref: ObjectRef[Any] | None = None
        self.error: BaseException | None = None
        """Why there is no answer."""
        self.arrived = False


class _Member:
    def __init__(self, handle: Any, left: int | None):
        self.handle = handle
        self.left = left
        """Chunks that it may still be given (maxtasksperchild)."""
        self.in_flight = 0
        self.since = 0.0
        self.pace: float | None = None
        """Moving average of the seconds from one answer to the next while it has work."""
        self.dead = False

    def room(self) -> bool:
        if self.dead or self.left == 0:
            return False
        if self.pace is None:
            return self.in_flight == 0
        return self.in_flight < max(1, min(MOST_AHEAD, int(AHEAD_SECONDS / self.pace)))

    def finished(self) -> bool:
        return self.left == 0 and not self.in_flight


class Crew:
    """``size`` workers made by ``make``; each is replaced after ``lifespan`` chunks (None: never)."""

    def __init__(self, size: int, make: Callable[[], Any], lifespan: int | None):
        self.watch = Watch()
        self.size = size
        self._make = make
        self._lifespan = lifespan
        self._lock = threading.Lock()
        self._members = [_Member(make(), lifespan) for _ in range(size)]
        self._backlog: deque[Chunk] = deque()
        self._to_do: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        """For the thread; None: look whether there is something to hand out, or whether this is the end."""
        self._closed = False
        self._terminated = False
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="noded-pool", daemon=True)
        self._thread.start()

    def handles(self) -> list[Any]:
        return [member.handle for member in self._members]

    def submit(self, chunks: list[Chunk]) -> None:
        with self._lock:
            self._backlog.extend(chunks)
        self._hand_out()

    # ------------------------------------------------------------ handing out

    def _hand_out(self) -> None:
        while True:
            with self._lock:
                if not self._backlog or self._terminated:
                    return
                free = [member for member in self._members if member.room()]
                if not free:
                    return
                member = min(free, key=lambda one: one.in_flight)
                chunk = self._backlog.popleft()
                member.in_flight += 1
                if member.left is not None:
                    member.left -= 1
                if member.in_flight == 1:
                    member.since = time.monotonic()
            self._send(member, chunk)

    def _send(self, member: _Member, chunk: Chunk) -> None:
        try:
            if self.watch.closed:
                raise LocalDaemonDiedError("noded.shutdown() was called while the pool had work")
            ref = member.handle.run.remote(chunk.how, chunk.fn, chunk.items)
        except Exception as problem:  # the arguments cannot be pickled, or nobody is there any more
            chunk.error = problem
            self._on_answer(member, chunk)
            self.watch.look_again()
            return
        chunk.ref = ref
        chunk.items = None
        self.watch.when_done(ref, lambda: self._on_answer(member, chunk))

    def _on_answer(self, member: _Member, chunk: Chunk) -> None:
        """In any thread, perhaps under the runtime's lock."""
        with self._lock:
            now = time.monotonic()
            member.in_flight -= 1
            took = max(1e-6, now - member.since)
            member.since = now
            member.pace = took if member.pace is None else (3 * member.pace + took) / 4
            if chunk.ref is not None and isinstance(self.watch.failure(chunk.ref), ActorDiedError):
                member.dead = True
            then = self._arrived(chunk)
            if then is not None:
                self._to_do.put(then)
            if self._backlog or self._closed or member.dead or member.finished():
                self._to_do.put(None)

    def _arrived(self, chunk: Chunk) -> Callable[[], None] | None:
        chunk.arrived = True
        chunk.fn = None
        return chunk.on_arrival(chunk)

    # ------------------------------------------------------------ the crew's thread

    def _run(self) -> None:
        while not self._at_end():
            do = self._to_do.get()
            if do is not None:
                do()
                continue
            self._replace()
            self._hand_out()
        while not self._to_do.empty():  # callbacks
            do = self._to_do.get()
            if do is not None:
                do()
        self._leave()
        self._members.clear()
        self._ended = True
        self.watch.look_again()

    def _at_end(self) -> bool:
        with self._lock:
            busy = self._backlog or any(member.in_flight for member in self._members)
            return self._closed and not busy

    def _replace(self) -> None:
        """Workers that died or have done their share get a successor."""
        for at, member in enumerate(self._members):
            with self._lock:
                goes = (member.dead or member.finished()) and not self._terminated and not self.watch.closed
                if goes and self._closed and not self._backlog:
                    goes = False
            if goes:
                self._members[at] = _Member(self._make(), self._lifespan)

    def _leave(self) -> None:
        """The workers end: those of a closed pool in order, those of a terminated one have been killed."""
        handles = [member.handle for member in self._members if not member.dead]
        if self._terminated or self.watch.closed:
            return
        ends = [handle.__ray_terminate__.remote() for handle in handles]
        try:
            _, late = wait(ends, num_returns=len(ends), timeout=END_SECONDS) if ends else ([], [])
        except LocalDaemonDiedError:
            return
        for handle, end in zip(handles, ends, strict=True):
            if end in late:
                kill(handle)

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """No more work will come: the workers end when they have done what there is."""
        with self._lock:
            self._closed = True
        self._to_do.put(None)

    def terminate(self) -> None:
        """Now: what runs is killed, what waits never runs."""
        with self._lock:
            first = not self._terminated
            self._closed = self._terminated = True
            left, self._backlog = list(self._backlog), deque()
        if not first:
            return
        for handle in self.handles():
            if not self.watch.closed:
                kill(handle)
        for chunk in left:
            chunk.error = ActorDiedError("the pool was terminated before this work had begun")
            with self._lock:
                then = self._arrived(chunk)
                if then is not None:
                    self._to_do.put(then)
        self._to_do.put(None)
        self.watch.look_again()

    def join(self) -> None:
        """Wait for the end, after ``close`` or ``terminate``."""
        try:
            self.watch.wait_until(lambda: self._ended)
        except LocalDaemonDiedError:
            pass
        self._thread.join()
