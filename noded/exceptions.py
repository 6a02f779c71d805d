"""The one tree of errors that users see. How they travel is in `error_parts.py`.

Names are those of Ray's `ray.exceptions`, with the prefix dropped:

    NodedError
    ├── TaskError                              the task's own code raised; see as_dual()
    ├── TaskCancelledError
    ├── TaskUnschedulableError   ActorUnschedulableError   TaskPlacementGroupRemoved   ActorPlacementGroupRemoved
    ├── WorkerCrashedError                     the worker's process ended under the task
    │   └── WorkerOutOfMemoryError   WorkerNodeDiedError       also an OutOfMemoryError, a NodeDiedError
    ├── ActorError
    │   ├── ActorDiedError                     for good: no call will ever work again
    │   │   └── ActorOutOfMemoryError          also an OutOfMemoryError
    │   └── ActorUnavailableError              for now: a later call may work
    ├── ActorAlreadyExistsError   ActorHandleNotFoundError     both also a ValueError
    ├── ObjectLostError
    │   ├── OwnerDiedError   ObjectFreedError   ObjectFetchTimedOutError
    │   ├── ReferenceCountingAssertionError    also an AssertionError
    │   └── ObjectReconstructionFailedError
    │       ├── ObjectReconstructionFailedMaxAttemptsExceededError
    │       └── ObjectReconstructionFailedLineageEvictedError
    ├── GetTimeoutError   SerializationError   also a TimeoutError, a TypeError
    ├── UnserializableException
    ├── OutOfMemoryError   OutOfDiskError   ObjectStoreFullError   PendingCallsLimitExceeded
    ├── RuntimeEnvSetupError   AuthenticationError   PlacementGroupUnschedulableError
    └── NodeDiedError   LocalDaemonDiedError   NodedSystemError (PlacementGroupAlreadyExistsError, also a ValueError)

Every error can be pickled, whatever its constructor takes. Errors that never leave one module (a bad
configuration, a broken frame) are defined in that module.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, cast

from noded.error_parts import (
    Alias,
    combine,
    ending,
    named,
    parts,
    pickles_itself,
    rebuild,
    remote_traceback,
    safe_str,
    sentence,
    tail_text,
    type_name,
)


class NodedError(Exception):
    """Base of all errors of noded."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Without __init__: its arguments are the story's parts, args holds the finished text.
        return rebuild, (type(self), self.args, {}, dict(self.__dict__))


# --- tasks -----------------------------------------------------------------------------------------------


class TaskError(NodedError):
    """The code of a task or of an actor's method raised.

    `get` raises `as_dual()`: an error that is also an instance of the class of `cause`, with its
    attributes, so that `except ValueError` works across processes.
    """

    def __init__(
        self,
        task_name: str,
        traceback_text: str,
        *,
        cause: BaseException | None = None,
        cause_type: str = "",
        cause_message: str = "",
        pid: int | None = None,
        node: str = "",
    ) -> None:
        if cause is not None:
            cause_type = cause_type or type_name(type(cause))
            cause_message = cause_message or safe_str(cause)
        super().__init__(f"{cause_type}: {cause_message}" if cause_message else cause_type)
        self.task_name = task_name
        self.traceback_text = traceback_text
        self.cause = cause
        self.cause_type = cause_type
        self.cause_message = cause_message
        self.pid = pid
        self.node = node

    @classmethod
    def from_exception(
        cls, cause: BaseException, task_name: str, *, pid: int | None = None, node: str = ""
    ) -> TaskError:
        """Made where the task ran, while `cause` still has its traceback."""
        text = remote_traceback(cause)
        return cls(task_name, text, cause=cause, pid=os.getpid() if pid is None else pid, node=node)

    def without_cause(self) -> TaskError:
        """The same story without the original exception, for one that cannot be pickled."""
        return TaskError(
            self.task_name,
            self.traceback_text,
            cause_type=self.cause_type,
            cause_message=self.cause_message,
            pid=self.pid,
            node=self.node,
        )

    def as_dual(self) -> TaskError:
        """A fresh error, to be raised once, that is also an instance of the cause's class.

        Without a cause, or with one whose class cannot be combined (final, conflicting layouts, not
        derived from Exception), it is a plain TaskError. Through nested tasks the innermost cause counts.
        """
        root = self.cause
        while isinstance(root, TaskError):
            root = root.cause
        if isinstance(root, Exception):
            combined = combine(TaskError, type(root))
            if combined is not None:
                _, args, members, attributes = parts(root)
                # Attributes of the user's class win: `except MyError as e: e.node` means theirs.
                merged = {**self.__dict__, **attributes, "_plain": self}
                try:
                    return cast(TaskError, rebuild(combined, args, members, merged))
                except TypeError:  # a C base whose __new__ wants what we cannot know
                    pass
        return cast(TaskError, rebuild(TaskError, self.args, {}, dict(self.__dict__)))

    as_instanceof_cause = as_dual  # the names that Ray has for these
    function_name = Alias("task_name")
    traceback_str = Alias("traceback_text")

    def __str__(self) -> str:
        plain = self.__dict__.get("_plain", self)
        where = [f"pid {plain.pid}"] if plain.pid is not None else []
        where += [f"node {plain.node}"] if plain.node else []
        place = f" ({', '.join(where)})" if where else ""
        text = plain.traceback_text.rstrip("\n") or BaseException.__str__(plain)
        return f"task {plain.task_name}{place} raised:\n{text}"

    def __reduce__(self) -> tuple[Any, ...]:
        plain = self.__dict__.get("_plain")
        if plain is not None:
            return _restore_dual, (plain, list(getattr(self, "__notes__", ())))
        state = dict(self.__dict__)
        cause = state.pop("cause")
        travels = cause if cause is None or pickles_itself(type(cause)) else parts(cause)
        return _restore_task_error, (self.args, state, travels)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return self.__reduce__()  # before one that the user's class may define


class TaskCancelledError(NodedError):
    """The task was cancelled before it finished."""

    def __init__(self, task_id: str = "", message: str = "") -> None:
        self.task_id = task_id
        super().__init__(message or f"task{named(task_id)} was cancelled")


class TaskUnschedulableError(NodedError):
    """No node can ever run the task; the text says what it asks for and what there is."""


class TaskPlacementGroupRemoved(NodedError):
    """The task's placement group was removed before it ran."""

    def __init__(self, group_id: str = "", message: str = "") -> None:
        self.group_id = group_id
        super().__init__(message or f"the placement group{named(group_id)} of this task was removed: use another group")


class WorkerCrashedError(NodedError):
    """The worker's process ended while it ran the task, and no retry was left.

    `kind` is the cause, of the closed list in docs/why.md; `node` the id of its node; `max_rss` is in bytes.
    """

    def __init__(
        self,
        message: str = "",
        *,
        worker_id: str = "",
        pid: int | None = None,
        exit_code: int | None = None,
        signal: str = "",
        stderr_tail: Sequence[str] = (),
        max_rss: int | None = None,
        node: str = "",
        kind: str = "",
    ) -> None:
        self.kind = kind
        self.node = node
        self.worker_id = worker_id
        self.pid = pid
        self.exit_code = exit_code
        self.signal = signal
        self.stderr_tail = list(stderr_tail)
        self.max_rss = max_rss
        how = ending(pid, exit_code, signal, max_rss, node)
        head = sentence(message, f"worker{named(worker_id)} ended while it ran a task: {how}", how)
        super().__init__(head + tail_text(self.stderr_tail))


# --- actors ----------------------------------------------------------------------------------------------


class ActorError(NodedError):
    """A call to an actor could not be carried out."""

    def __init__(self, message: str = "", *, actor_id: str = "") -> None:
        self.actor_id = actor_id
        super().__init__(message or f"a call to the actor{named(actor_id)} failed")


class ActorDiedError(ActorError):
    """The actor has ended for good. `kind`, `node` and `max_rss` are as in WorkerCrashedError."""

    def __init__(
        self,
        message: str = "",
        *,
        actor_id: str = "",
        pid: int | None = None,
        exit_code: int | None = None,
        signal: str = "",
        stderr_tail: Sequence[str] = (),
        max_rss: int | None = None,
        node: str = "",
        kind: str = "",
    ) -> None:
        how = ending(pid, exit_code, signal, max_rss, node)
        head = sentence(message, f"the actor{named(actor_id)} died: {how}", how)
        super().__init__(head + tail_text(stderr_tail), actor_id=actor_id)
        self.kind = kind
        self.node = node
        self.pid = pid
        self.exit_code = exit_code
        self.signal = signal
        self.stderr_tail = list(stderr_tail)
        self.max_rss = max_rss


class ActorUnavailableError(ActorError):
    """The actor cannot be reached now. The call may or may not have run; a later one may work."""

    def __init__(self, message: str = "", *, actor_id: str = "") -> None:
        text = message or (
            f"the actor{named(actor_id)} cannot be reached now; this call may or may not have run: "
            "try again, or set max_task_retries for calls that may run twice"
        )
        super().__init__(text, actor_id=actor_id)


class ActorUnschedulableError(NodedError):
    """No node can ever host the actor; the text says what it asks for and what there is."""


class ActorAlreadyExistsError(NodedError, ValueError):
    """The name is taken by another actor of the namespace: choose another, or set get_if_exists."""


class ActorHandleNotFoundError(NodedError, ValueError):
    """The handle is of an actor of a cluster that this process has left: make it again after init()."""


class ActorPlacementGroupRemoved(NodedError):
    """The actor's placement group was removed, and the actor with it."""

    def __init__(self, group_id: str = "", message: str = "") -> None:
        self.group_id = group_id
        super().__init__(
            message or f"the placement group{named(group_id)} of this actor was removed: create it in another group"
        )


# --- objects ---------------------------------------------------------------------------------------------


class ObjectLostError(NodedError):
    """The value of an ObjectRef is gone."""

    reason = "all its copies are gone, and it cannot be computed again: submit its task again"

    def __init__(self, object_id: str = "", message: str = "") -> None:
        self.object_id = object_id
        super().__init__(f"object{named(object_id)} is lost: {message or self.reason}")


class OwnerDiedError(ObjectLostError):
    """The process that was to deliver the value ended before it was there."""

    reason = "the process that submitted its task ended before the result was there: submit it again"


class ObjectFreedError(ObjectLostError):
    """The value was freed by hand."""

    reason = "it was freed explicitly while references to it were still in use"


class ObjectFetchTimedOutError(ObjectLostError):
    """A copy is said to exist, and could not be brought here in time."""

    reason = "no node could deliver a copy in time: see `noded status` for nodes that are away"


class ReferenceCountingAssertionError(ObjectLostError, AssertionError):
    """A reference is in use for an object that noded has already freed: an error in noded."""

    reason = "it was freed although this reference was still held; please report this as a bug"


class ObjectReconstructionFailedError(ObjectLostError):
    """The value was lost and computing it again failed."""

    reason = "it was lost, and its task could not be run again"


class ObjectReconstructionFailedMaxAttemptsExceededError(ObjectReconstructionFailedError):
    """The value was lost more often than its task may run."""

    reason = "its task has already been run max_retries times more: raise max_retries"


class ObjectReconstructionFailedLineageEvictedError(ObjectReconstructionFailedError):
    """The value was lost and what it was computed from had been forgotten."""

    reason = "the description of its task had been dropped to save memory; it cannot be computed again"


class GetTimeoutError(NodedError, TimeoutError):
    """`get` ran out of its timeout; the tasks go on."""


class SerializationError(NodedError, TypeError):
    """An argument or a result cannot be pickled. `path` leads from it to the part at fault."""

    def __init__(self, message: str, *, path: str = "") -> None:
        self.path = path
        super().__init__(f"{message} (at {path})" if path and path not in message else message)


class UnserializableException(NodedError):
    """A task failed, and its exception could not be unpickled here; the text is what it said."""

    def __init__(self, original_text: str = "") -> None:
        self.original_text = original_text
        super().__init__(f"the exception of a task cannot be unpickled here; it said:\n{original_text}")


# --- resources, limits, the node -------------------------------------------------------------------------


class OutOfMemoryError(NodedError):
    """The task used more memory than it may, or than the node has; the text says both amounts."""


class OutOfDiskError(NodedError):
    """An object fits neither in memory nor on disk; the text names the directory and the free bytes."""


class ObjectStoreFullError(NodedError):
    """The object store has no room; the text names the biggest holders."""


class PendingCallsLimitExceeded(NodedError):
    """The actor has max_pending_calls calls waiting already: wait for some of them first."""


class RuntimeEnvSetupError(NodedError):
    """The runtime environment of a task or actor could not be made."""


class NodeDiedError(NodedError):
    """The node that held the task or object was declared dead."""


class WorkerOutOfMemoryError(WorkerCrashedError, OutOfMemoryError):
    """The task's process was ended for want of memory, by the kernel or at a limit."""


class WorkerNodeDiedError(WorkerCrashedError, NodeDiedError):
    """The task's process ended because its node is lost; the text says why the head thinks so."""


class ActorOutOfMemoryError(ActorDiedError, OutOfMemoryError):
    """The actor's process was ended for want of memory, by the kernel or at a limit."""


class LocalDaemonDiedError(NodedError):
    """This machine's daemon and its workers have ended: start a daemon, then call init() again."""


class NodedSystemError(NodedError):
    """An error in noded itself; please report it with its text."""


class PlacementGroupAlreadyExistsError(NodedSystemError, ValueError):
    """The name is taken by another placement group of the namespace: choose another."""


class PlacementGroupUnschedulableError(NodedError):
    """No node can ever hold the placement group; the text says what it asks for and what there is."""


class AuthenticationError(NodedError):
    """The token is missing or not the cluster's: set NODED_TOKEN or NODED_TOKEN_FILE."""


def _restore_task_error(args: tuple[Any, ...], state: dict[str, Any], travelled: Any) -> TaskError:
    cause = rebuild(*travelled) if isinstance(travelled, tuple) else travelled
    return cast(TaskError, rebuild(TaskError, args, {}, {**state, "cause": cause}))


def _restore_dual(plain: TaskError, notes: list[str]) -> TaskError:
    dual = plain.as_dual()
    if notes:
        dual.__dict__["__notes__"] = notes
    return dual
