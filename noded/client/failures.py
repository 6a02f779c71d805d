"""What a caller is told when its task did not run to its end: from the daemon's words to exceptions."""

from __future__ import annotations

from typing import Any

from noded import exceptions as ex
from noded.client.submission import Task
from noded.policy import deaths, reasons
from noded.wire import messages as m


def cancelled(task: Task, how: str = "") -> ex.TaskCancelledError:
    id_ = task.refs[0].task_id() if task.refs else ""
    return ex.TaskCancelledError(id_, f"task {task.name} {id_} was cancelled{how}")


_CRASHES = {
    deaths.OOM: ex.WorkerOutOfMemoryError,
    deaths.MEMORY_LIMIT: ex.WorkerOutOfMemoryError,
    deaths.NODE_MEMORY: ex.WorkerOutOfMemoryError,
    deaths.NODE_LOST: ex.WorkerNodeDiedError,
}
_ACTOR_DEATHS = dict.fromkeys((deaths.OOM, deaths.MEMORY_LIMIT, deaths.NODE_MEMORY), ex.ActorOutOfMemoryError)


_CAUSES: dict[type[BaseException], str] = {
    ex.TaskUnschedulableError: reasons.NEVER,
    ex.ActorUnschedulableError: reasons.NEVER,
    ex.RuntimeEnvSetupError: deaths.ENV,
    ex.TaskCancelledError: deaths.CANCELLED,
    ex.TaskPlacementGroupRemoved: deaths.REMOVED,
    ex.ActorPlacementGroupRemoved: deaths.REMOVED,
    ex.TaskError: reasons.RAISED,
}
"""Of errors that tell of no process."""


RAISED = "it has ended with an error of its own code, which get() raises"


def raised(reason: str) -> dict[str, Any]:
    """As ``told``, of an error of the user's, which is not unpickled for that."""
    return {"state": "failed", "kind": reasons.FAILED, "cause": reasons.RAISED, "reason": reason}


def crashed(name: str, death: m.Death) -> ex.WorkerCrashedError:
    reason = f": {death.reason}" if death.reason else ""
    return _CRASHES.get(death.kind, ex.WorkerCrashedError)(
        f"the worker that ran {name} died{reason}", worker_id=death.worker, **death_fields(death)
    )


def unschedulable(task: Task, message: m.Unschedulable) -> ex.NodedError:
    if message.kind == "env":
        return ex.RuntimeEnvSetupError(
            f"the runtime environment of task {task.name} cannot be set up: {message.reason}"
        )
    if message.kind == "start":
        return ex.WorkerCrashedError(f"task {task.name} has not run: {message.reason}", kind=deaths.START)
    if message.kind == "removed":
        group = task.queue.where.group.hex() if task.queue is not None else ""
        return ex.TaskPlacementGroupRemoved(group, f"task {task.name} cannot run: {message.reason} ({group})")
    return ex.TaskUnschedulableError(f"task {task.name} cannot be scheduled: {message.reason}")


def death_fields(death: m.Death) -> dict[str, Any]:
    """A Death as keyword arguments of the errors that tell it."""
    return {
        "pid": death.pid or None,
        "exit_code": death.code,
        "signal": "" if death.signal is None else deaths.signal_name(death.signal),
        "stderr_tail": death.stderr,
        "max_rss": death.max_rss_kb << 10 or None,
        "node": death.node,
        "kind": death.kind,
    }


def actor_died(text: str, actor_id: str, death: m.Death) -> ex.ActorDiedError:
    return _ACTOR_DEATHS.get(death.kind, ex.ActorDiedError)(text, actor_id=actor_id, **death_fields(death))


def told(error: BaseException) -> dict[str, Any]:
    """An error of noded's own for who asks why (``explain.py``): with what it knows of the end of a process."""
    facts = {"state": "failed", "kind": reasons.FAILED, "error": type(error).__name__}
    first, _, rest = str(error).partition("\n")
    facts["reason"] = first
    if isinstance(error, ex.RuntimeEnvSetupError) and rest.strip():  # the end of a traceback
        facts["reason"] = f"{first} {rest.strip().splitlines()[-1].strip()}"
    for kind, cause in _CAUSES.items():
        if isinstance(error, kind):
            facts["cause"] = cause
    if not isinstance(error, ex.WorkerCrashedError | ex.ActorDiedError):
        return facts
    names = {"kind": "cause", "worker_id": "worker"} | {
        x: x for x in ("pid", "node", "exit_code", "signal", "max_rss", "stderr_tail")
    }
    known = {as_: value for name, as_ in names.items() if (value := getattr(error, name, "")) not in (None, "", [])}
    return {**facts, **known}
