"""What this process knows of a task, actor call or object that it made: why it waits, in one of a closed list of kinds.

Called by the helper thread under the runtime's lock, so it must be quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from noded import ids
from noded.client import failures
from noded.client.refs import AWAY, FAILED, PENDING, REMOTE

if TYPE_CHECKING:
    from noded.client.runtime import Runtime
    from noded.client.submission import Task


def explain(runtime: Runtime, id_: bytes) -> dict[str, Any]:
    seq = ids.seq_of(id_)
    for task in runtime.tasks.open_tasks():
        if task.seq == seq:
            return _task(runtime, task)
    if (failure := runtime.tasks.failures.get(seq)) is not None:
        return failure
    hold = runtime.holds.holds.get(id_)
    ref = hold.ref() if hold is not None and hold.ref is not None else None
    state = getattr(ref, "_state", None)
    if state == FAILED:
        error = ref._value  # type: ignore[union-attr]
        if isinstance(error, BaseException):
            return failures.told(error)
        # The user's own, which is not unpickled here.
        return {"state": "failed", "kind": "failed", "reason": "it has ended with an error, which get() raises"}
    if state == AWAY:
        node, size = ref._value  # type: ignore[union-attr]
        return {"state": "ready", "kind": "ready", "reason": f"its value of {size} bytes lies on node {node}"}
    if state in (PENDING, REMOTE):
        return {"state": "pending", "kind": "value_pending", "reason": "its value is not there yet"}
    return {
        "state": "ready",
        "kind": "ready" if state is not None else "done_or_dropped",
        "reason": "it is there" if state is not None else "it has ended, or nobody here refers to it any more",
    }


def _task(runtime: Runtime, task: Task) -> dict[str, Any]:
    told: dict[str, Any] = {"name": task.name, "state": "pending", "owner_pid": runtime.pid}
    if task.link is not None:
        worker = task.link
        told |= {"worker": worker.worker, "pid": worker.pid, "node": worker.node}
        if worker.session is not None and worker.session.suspended:
            return {**told, "kind": "link_down", "reason": "the connection to its worker is down, and is made again"}
        ahead = next(iter(worker.inflight), task.seq)
        if ahead != task.seq and worker.running != task.seq:
            reason = f"it is behind {sum(1 for s in worker.inflight if s < task.seq)} others at its worker"
            return {**told, "kind": "behind_others", "reason": reason}
        return {**told, "state": "running", "kind": "running", "reason": f"a worker has it (pid {worker.pid})"}
    if task.unresolved:
        missing = [ref.hex() for _, ref in task.deps or () if ref._state in (PENDING, REMOTE)]
        return {
            **told,
            "kind": "arguments_pending",
            "reason": f"{len(missing)} of its arguments are not there yet, as {', '.join(missing[:1])}",
            "missing": missing[:10],
        }
    queue = task.queue
    if queue is None:
        for actor in runtime.actors.actors.values():
            if task in actor.queue or task in actor.parked:
                before = list(actor.queue).index(task) if task in actor.queue else 0
                return {
                    **told,
                    "kind": "actor_not_ready" if actor.link is None else "behind_calls",
                    "reason": f"its actor {actor.id.hex()} is {actor.state}; {before} calls are before it",
                    "actor": actor.id.hex(),
                }
        return {**told, "kind": "submitting", "reason": "it is being submitted"}
    return {
        **told,
        "kind": "lease_pending",
        "reason": f"it waits for a worker, with {len(queue.ready)} others of its kind; {len(queue.leases)} workers "
        "run them now",
        "class": queue.number,
    }
