"""Placement groups from a program's side: what this process made, watches and waits for.

State comes from the daemon (``GroupAt``). A request that the daemon has not answered is repeated after each reconnect.
A group nobody here refers to any more is forgotten; one that comes back in a value is asked for anew.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from noded import exceptions as ex
from noded.client.control import Control
from noded.client.refs import FAILED, INLINE, ObjectRef
from noded.client.submission import Task
from noded.client.tasks import Tasks
from noded.wire import messages as m

_PRUNE_AT = 64
_BUNDLES_REMEMBERED = 1_000


class Group:
    """What this process knows of one placement group."""

    __slots__ = ("__weakref__", "id", "pruned", "ready", "reason", "spec", "state", "waiting")

    def __init__(self, id_: bytes, spec: m.GroupSpec | None = None):
        self.id = id_
        self.spec = spec
        """While its creation may have to be repeated."""
        self.state = "pending"
        """As in GroupAt; ``removing``: this process has asked for its removal."""
        self.reason = ""
        self.ready: list[weakref.ref[Task]] = []
        """Of the refs that are to be ready when it is created."""
        self.pruned = _PRUNE_AT
        self.waiting = 0
        """Threads in wait()."""

    def error(self) -> ex.NodedError | None:
        """Why ``ready()`` fails now."""
        name = f"the placement group {self.id.hex()}"
        if self.state in ("removed", "removing"):
            return ex.TaskPlacementGroupRemoved(self.id.hex(), f"{name} is gone{_because(self.reason)}")
        if self.state == "infeasible":
            return ex.PlacementGroupUnschedulableError(
                f"{name} cannot be created: {self.reason}; it still waits for a node that can hold it: "
                "remove it, or start such a node"
            )
        return None


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


class Groups:
    """All groups this process talks of. Methods that end in ``_locked`` need the runtime's lock."""

    def __init__(self, control: Control, tasks: Tasks, next_seq: Callable[[], int], notify: Callable[[], None]):
        self.control = control
        self.tasks = tasks
        self.known: weakref.WeakValueDictionary[bytes, Group] = weakref.WeakValueDictionary()
        self._unanswered: dict[bytes, Group] = {}
        """Kept although nobody else here may refer to them."""
        self.bundles: dict[bytes, list[dict[str, float]]] = {}
        """What the daemon has said of groups that came without."""
        self._next_seq = next_seq
        self._notify = notify

    def remember_bundles(self, id_: bytes, bundles: list[dict[str, float]]) -> None:
        self.bundles[id_] = bundles
        if len(self.bundles) > _BUNDLES_REMEMBERED:
            del self.bundles[next(iter(self.bundles))]

    def create_locked(self, spec: m.GroupSpec) -> Group:
        group = self.known[spec.id] = self._unanswered[spec.id] = Group(spec.id, spec)
        self.control.send(m.CreateGroup(spec))
        self.control.flush()
        return group

    def group_locked(self, id_: bytes) -> Group:
        """The record of a group, watched from now on."""
        group = self.known.get(id_)
        if group is None:
            group = self.known[id_] = Group(id_)
            self.control.send(m.WatchGroup(id_))
            self.control.flush()
        return group

    def remove_locked(self, id_: bytes) -> None:
        group = self.known.get(id_)
        if group is None:
            group = self.known[id_] = Group(id_)
        if group.state == "removed":
            return
        self._unanswered[id_] = group
        group.spec = None
        group.state, group.reason = "removing", "it was removed with remove_placement_group()"
        self.control.send(m.RemoveGroup(id_))
        self.control.flush()
        self.tasks.group_removed_locked(id_)
        self._settle(group)

    def forget_locked(self, id_: bytes) -> None:
        """Its creation was refused, and the caller knows."""
        self._unanswered.pop(id_, None)

    # ------------------------------------------------------------ ready

    def ready_locked(self, group: Group, value: bytes) -> ObjectRef[Any]:
        """A ref that gets this value when the group is created, or an error."""
        ref: ObjectRef[Any] = ObjectRef(self._next_seq())
        if group.state == "created":
            ref._value, ref._state = value, INLINE
            return ref
        error = group.error()
        if error is not None:
            ref._value, ref._state = error, FAILED
            return ref
        # The task holds the group, the ref the task; who drops the ref, as loops with wait() do, leaves nothing.
        task = Task(ref._seq, "PlacementGroup.ready", value, [ref], 1, keep=[group])
        ref._task = task
        group.ready.append(weakref.ref(task))
        if len(group.ready) > group.pruned:
            group.ready = [each for each in group.ready if each() is not None]
            group.pruned = 2 * len(group.ready) + _PRUNE_AT
        return ref

    def _settle(self, group: Group) -> None:
        """Tell the refs, as far as there is something to tell."""
        error = group.error()
        if error is None and group.state != "created":
            return
        waiting, group.ready = group.ready, []
        for task in filter(None, [each() for each in waiting]):
            if error is not None:
                self.tasks.fail_locked(task, error)
            elif not task.over:
                task.refs[0]._value, task.refs[0]._state = task.payload, INLINE
                self.tasks._finish(task, None, 0)
        if waiting or group.waiting:
            self._notify()

    # ------------------------------------------------------------ from the daemon

    def on_group_at(self, message: m.GroupAt) -> None:
        group = self.known.get(message.id)
        if group is None or (group.state == "removing" and message.state != "removed"):
            return
        if message.state == "removed":
            self.tasks.group_removed_locked(message.id)
        if message.state in ("created", "removed"):
            self._unanswered.pop(message.id, None)
            group.spec = None
        if group.state != "removing" or not group.reason:
            group.reason = message.reason
        group.state = message.state
        self._settle(group)

    def retell_locked(self) -> None:
        for group in list(self.known.values()):
            if group.state == "removing":
                self.control.send(m.RemoveGroup(group.id))
            elif group.spec is not None:
                self.control.send(m.CreateGroup(group.spec))
            elif group.state != "removed":
                self.control.send(m.WatchGroup(group.id))

    def lost_locked(self, error: ex.NodedError) -> None:
        """The daemon is gone for good."""
        for group in list(self.known.values()):
            waiting, group.ready = group.ready, []
            for task in filter(None, [each() for each in waiting]):
                self.tasks.fail_locked(task, error)
