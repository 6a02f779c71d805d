"""Streaming tasks from the caller's side: items arrive, are taken, and the worker learns how far we are."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from noded import exceptions as ex
from noded.client.generators import Stream, dropped
from noded.client.objects import Objects
from noded.client.refs import FAILED, INLINE, ObjectRef
from noded.client.submission import Task, WorkerLink
from noded.wire import messages as m


class Streams:
    """Methods that end in ``_locked`` need the runtime's lock, the others take it."""

    def __init__(self, lock: Any, objects: Objects, send: Callable[[Any], None]):
        self._lock = lock
        self._objects = objects
        self._send = send
        """To the daemon."""
        self.flush: Callable[[WorkerLink], None] = lambda link: None
        self.token_of: Callable[[ObjectRef[Any], bytes, WorkerLink, int], Any]
        """The hold on an object that a worker stored for us."""
        self.place_from: Callable[[WorkerLink, int, int], tuple[tuple[int, int], int]]
        """Value and state of a ref to it."""

    def on_item_locked(self, worker: WorkerLink, task: Task, message: m.Item, payload: Any) -> None:
        stream: Stream = task.stream
        if message.index < stream.arrived:  # from a run before this one, read late
            return
        ref: ObjectRef[Any] = ObjectRef(task.seq, message.index, INLINE, bytes(payload) if not message.id else None)
        if message.id:
            ref._token = self.token_of(ref, message.id, worker, message.hseq)
            ref._value, ref._state = self.place_from(worker, message.offset, message.size)
        stream.arrived = message.index + 1
        if not stream.dropped:
            stream.items.append(ref)
            stream.tell()

    def over_locked(self, task: Task) -> None:
        """The task has ended: by an error, then that is the last item."""
        stream: Stream = task.stream
        if stream.over:
            return
        end = task.refs[0]
        if end._state == FAILED and not stream.dropped:
            stream.items.append(ObjectRef(task.seq, stream.arrived, FAILED, end._value))
            if not isinstance(end._value, BaseException):  # the task's own error is told by that item alone
                end._value, end._state = b"", INLINE
        stream.over = True
        task.stream = None  # no cycle: items that nobody takes go with the generator
        if stream.lost:
            self._send(m.StreamOver(task.seq, stream.arrived))
        stream.tell()

    def worker_lost_locked(self, task: Task) -> None:
        """It may have stored items that it did not tell us of any more: the daemon counts us as their holder. They are
        given up at the end, for until then the next run may make the same ones.
        """
        if task.stream is not None:
            task.stream.lost = True

    # ------------------------------------------------------------ the generator's side

    def take(self, stream: Stream) -> ObjectRef[Any] | None:
        """The next item, None at the end."""
        with self._lock:
            if not stream.items:
                return None
            ref = stream.items.popleft()
            stream.taken += 1
            if stream.window and not stream.over:
                self._tell_locked(stream, stream.taken)
            return ref

    def wait(self, stream: Stream, timeout: float | None) -> None:
        """Until there is an item or the end; raises GetTimeoutError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._objects.guard:
            if not self._objects.sleep(lambda: stream.items or stream.over, deadline):
                raise ex.GetTimeoutError(
                    f"no item of the stream of {stream.task.name} arrived within {timeout:g} s; wait longer"
                )

    def _tell_locked(self, stream: Stream, count: int) -> None:
        link: WorkerLink | None = stream.task.link
        if link is not None and not link.link.closed:
            link.link.send(m.Taken(stream.task.seq, count))
            self.flush(link)

    def drop_locked(self) -> None:
        """Generators that nobody has any more: their items are not wanted."""
        while dropped:
            stream = dropped.popleft()
            stream.dropped = True
            stream.items.clear()
            if not stream.over:
                self._tell_locked(stream, -1)


def extra_of(task: Task) -> m.Extra | None:
    """What goes with a push or call beside the arguments."""
    extra: m.Extra | None = task.extra
    if task.stream is not None and (task.stream.arrived or task.stream.dropped):
        # Run again: the items that are there are not sent again.
        window = 0 if task.stream.dropped else task.stream.window
        extra = msgspec.structs.replace(extra or m.Extra(), skip=task.stream.arrived, window=window)
    return extra
