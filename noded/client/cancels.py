"""Cancels of tasks that another process has submitted: by way of the daemon to that process, however often either dies.

Whoever cancels keeps the request, and the ref, until the task is over, and tells it again to a daemon that restarts.
Whoever submitted the task may so be told twice: each request has a number, and is followed once.
"""

from __future__ import annotations

from noded.client.control import Control
from noded.client.objects import Objects
from noded.client.refs import ObjectRef
from noded.client.tasks import Tasks
from noded.wire import messages as m

_REMEMBERED = 1000


class Cancels:
    """Every method needs the runtime's lock."""

    def __init__(self, prefix: bytes, control: Control, objects: Objects, tasks: Tasks):
        self._prefix = prefix
        self._control = control
        self._objects = objects
        self._tasks = tasks
        self._open: dict[bytes, tuple[m.CancelRef, ObjectRef[object]]] = {}
        self._number = 0
        self._followed: dict[bytes, None] = {}

    def cancel(self, ref: ObjectRef[object], force: bool, recursive: bool) -> None:
        """Have the task of a borrowed ref cancelled."""
        id_ = ref.binary()
        if id_.startswith(self._prefix):  # one of ours, that has been away
            self._tasks.cancel_for_locked(id_, force, recursive)
            return
        self._number += 1
        origin = self._prefix + self._number.to_bytes(5, "big")
        message = m.CancelRef(id_, force, recursive, origin)
        first = id_ not in self._open
        self._open[id_] = message, ref
        if first and not self._objects.when_settled_locked(ref, lambda: self._over(id_)):
            del self._open[id_]
            return
        self._control.send(message)
        self._control.flush()
        self._control.wake()

    def _over(self, id_: bytes) -> None:
        self._open.pop(id_, None)

    def on_cancel_for(self, message: m.CancelFor) -> None:
        """Another process cancels a task of ours."""
        if message.origin in self._followed:
            return
        self._followed[message.origin] = None
        if len(self._followed) > _REMEMBERED:
            del self._followed[next(iter(self._followed))]
        self._tasks.cancel_for_locked(message.id, message.force, message.recursive)

    def retell(self) -> None:
        for message, _ in self._open.values():
            self._control.send(message)
