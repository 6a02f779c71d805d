"""What a caller is told when its task did not run to its end: from the daemon's words to exceptions."""

from __future__ import annotations

import signal
from typing import Any

from noded import exceptions as ex
from noded.client.submission import Task
from noded.wire import messages as m


def cancelled(task: Task, how: str = "") -> ex.TaskCancelledError:
    id_ = task.refs[0].task_id() if task.refs else ""
    return ex.TaskCancelledError(id_, f"task {task.name} {id_} was cancelled{how}")


def crashed(name: str, death: m.Death) -> ex.WorkerCrashedError:
    reason = f": {death.reason}" if death.reason else ""
    return ex.WorkerCrashedError(
        f"the worker that ran {name} died{reason}", worker_id=death.worker, **death_fields(death)
    )


def unschedulable(task: Task, message: m.Unschedulable) -> ex.NodedError:
    if message.kind == "env":
        return ex.RuntimeEnvSetupError(
            f"the runtime environment of task {task.name} cannot be set up: {message.reason}"
        )
    if message.kind == "removed":
        group = task.queue.where.group.hex() if task.queue is not None else ""
        return ex.TaskPlacementGroupRemoved(group, f"task {task.name} cannot run: {message.reason} ({group})")
    return ex.TaskUnschedulableError(f"task {task.name} cannot be scheduled: {message.reason}")


def death_fields(death: m.Death) -> dict[str, Any]:
    """A Death as keyword arguments of the errors that tell it."""
    return {
        "pid": death.pid or None,
        "exit_code": death.code,
        "signal": signal_name(death.signal),
        "stderr_tail": death.stderr,
        "max_rss": death.max_rss_kb << 10 or None,
    }


def signal_name(number: int | None) -> str:
    if number is None:
        return ""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
