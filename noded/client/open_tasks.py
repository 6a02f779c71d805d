"""The tasks and calls of this process that have not ended, and those that it has seen fail: for who lists tasks.

Called by the helper thread under the runtime's lock; a million tasks may be queued, so only so many are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from noded.client.refs import PENDING, REMOTE
from noded.telemetry import read_own

if TYPE_CHECKING:
    from noded.client.runtime import Runtime
    from noded.client.submission import Task

ARGUMENTS = "PENDING_ARGS_AVAIL"
PLACE = "PENDING_NODE_ASSIGNMENT"
SENT = "SUBMITTED_TO_WORKER"


def tell(runtime: Runtime, limit: int) -> dict[str, Any]:
    """``tasks``: [seq, name, state, id of the actor or "", worker or "", retries left, resources]; ``failed``: by
    number, see ``Tasks.failures``; ``counts``: of a process whose page nobody else can read.
    """
    found = [
        [
            task.seq,
            (task.extra.name if task.extra is not None else "") or task.name,
            state,
            actor,
            task.link.worker if task.link is not None else "",
            task.retries,
            task.queue.resources if task.queue is not None else {},
        ]
        for task, state, actor in islice(_open(runtime), limit)
    ]
    failed = {
        str(seq): {key: told.get(key, "") for key in ("name", "cause", "reason")}
        for seq, told in (list(runtime.tasks.failures.items())[-limit:] if limit else ())
    }
    counts = []
    if not runtime.page.path:
        counts = [[kind, name, *each] for (kind, name), each in read_own(runtime.page).counts.items()]
    return {"tasks": found, "failed": failed, "counts": counts}


def _open(runtime: Runtime) -> Iterator[tuple[Task, str, str]]:
    tasks = runtime.tasks
    for worker in tasks.links.values():
        actor = worker.actor.id.hex() if worker.actor is not None else ""
        for task in worker.inflight.values():
            yield task, SENT, actor
    for actor in runtime.actors.actors.values():
        for task in (*actor.queue, *actor.parked):
            if not task.over:
                yield task, ARGUMENTS if _lacks(task) else PLACE, actor.id.hex()
    for task in tasks.waiting:
        if task.queue is not None:
            yield task, ARGUMENTS, ""
    for queue in list(tasks.queues.values()):
        for task in queue.ready:
            if not task.over:
                yield task, PLACE, ""


def _lacks(task: Task) -> bool:
    return bool(task.unresolved) and any(ref._state in (PENDING, REMOTE) for _, ref in task.deps or ())
