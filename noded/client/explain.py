"""What this process knows of a task, actor call or object that it made: why it waits, in one of a closed list of kinds.

Called by the helper thread under the runtime's lock, so it must be quick: also where a million tasks are queued.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from operator import attrgetter, indexOf
from typing import TYPE_CHECKING, Any

from noded import ids
from noded.client import failures
from noded.client.refs import AWAY, FAILED, PENDING, REMOTE
from noded.policy import reasons

if TYPE_CHECKING:
    from noded.client.runtime import Runtime
    from noded.client.submission import Task, WorkerLink


_SEQ = attrgetter("seq")
_AROUND = 8
_LOOKS_FOR = 0.01
"""Seconds: after 30 ms without an answer the node takes us for busy."""
_SLICE = 10_000


def explain(runtime: Runtime, id_: bytes) -> dict[str, Any]:
    if ids.is_actor_id(id_):
        return _actor(runtime, id_)
    seq = ids.seq_of(id_)
    hold = runtime.holds.holds.get(id_)
    ref = hold.ref() if hold is not None and hold.ref is not None else None
    if (task := _find(runtime, seq, ref)) is not None:
        return _task(runtime, task)
    if (failure := runtime.tasks.failures.get(seq)) is not None:
        return failure
    state = getattr(ref, "_state", None)
    if state == FAILED:
        error = ref._value  # type: ignore[union-attr]
        if isinstance(error, BaseException):
            return failures.told(error)
        return failures.raised(failures.RAISED)
    if state == AWAY:
        node, size = ref._value  # type: ignore[union-attr]
        return {"state": "ready", "kind": reasons.READY, "reason": f"its value of {size} bytes lies on node {node}"}
    if state in (PENDING, REMOTE):
        return {"state": "pending", "kind": reasons.VALUE_PENDING, "reason": "its value is not there yet"}
    if state is None:
        reason = "it has ended, or nobody here refers to it any more"
        return {"state": "ready", "kind": reasons.DONE_OR_DROPPED, "reason": reason}
    return {"state": "ready", "kind": reasons.READY, "reason": "it is there"}


def _actor(runtime: Runtime, id_: bytes) -> dict[str, Any]:
    """One of ours, of which the head knows nothing."""
    actor = runtime.actors.actors.get(id_)
    if actor is None:
        reason = "it has ended, and the process that made it does not refer to it any more"
        return {"state": "ended", "kind": reasons.ENDED, "reason": reason}
    if actor.dead is not None:
        told = failures.told(actor.dead)
        return {**told, "state": "dead", "kind": told.get("cause") or reasons.ENDED}
    if actor.creation is not None:
        reason = "the process that makes it has asked for it, and the head does not know of it yet"
        return {"state": "not_created", "kind": reasons.NOT_CREATED, "reason": reason}
    reason = f"it was {actor.state} when it was last told of; the head waits for its node to come back and tell of it"
    return {"state": actor.state, "kind": reasons.NODE_AWAY, "reason": reason}


def _find(runtime: Runtime, seq: int, ref: Any) -> Task | None:
    """The task or call with this number that has not ended."""
    tasks = runtime.tasks
    found: Task | None = tasks.under_way(seq) or tasks.waiting.get(seq) or getattr(ref, "_task", None)
    if found is not None or getattr(ref, "_state", PENDING) not in (PENDING, REMOTE):
        return found
    queues = [queue.ready for queue in tasks.queues.values()]
    queues += [actor.queue for actor in runtime.actors.actors.values()]
    place = _place(queues, seq)
    found = queues[place[0]][place[1]] if place is not None else None
    return found if found is not None and not found.over else None


def _place(queues: Sequence[deque[Task]], seq: int) -> tuple[int, int] | None:
    """Which of these queues it is in, and where there, as far as that can be found out in time."""
    for number, queue in enumerate(queues):  # most are in the order of the numbers; threads mix them a little
        there = bisect_left(queue, seq, key=_SEQ)
        for at in range(max(0, there - _AROUND), min(len(queue), there + _AROUND)):
            if queue[at].seq == seq:
                return number, at
    until = time.monotonic() + _LOOKS_FOR
    for number, queue in enumerate(queues):  # but for what came back, or had to wait for arguments
        numbers = map(_SEQ, queue)
        for begin in range(0, len(queue), _SLICE):
            with suppress(ValueError):
                return number, begin + indexOf(islice(numbers, _SLICE), seq)
            if time.monotonic() > until:
                return None
    return None


def _task(runtime: Runtime, task: Task) -> dict[str, Any]:
    told: dict[str, Any] = {"name": task.name, "state": "pending", "owner_pid": runtime.pid}
    if (attempt := runtime.tasks.attempts.get(task.seq)) is not None:
        told |= {"last_attempt": attempt, "retries_left": task.retries}
    if task.link is not None:
        return told | _at_worker(task, task.link)
    if task.unresolved:
        return told | _arguments(task)
    queue = task.queue
    if queue is None:
        return told | _call(runtime, task)
    return {
        **told,
        "kind": reasons.LEASE_PENDING,
        "reason": f"it waits for a worker, with {len(queue.ready)} others of its kind; {len(queue.leases)} workers "
        "run them now",
        "class": queue.number,
    }


def _at_worker(task: Task, worker: WorkerLink) -> dict[str, Any]:
    told: dict[str, Any] = {"worker": worker.worker, "pid": worker.pid, "node": worker.node}
    if worker.session is not None and worker.session.suspended:
        return {**told, "kind": reasons.LINK_DOWN, "reason": "the connection to its worker is down, and is made again"}
    before = sum(1 for seq in worker.inflight if seq < task.seq)
    if before and worker.running != task.seq and worker.actor is None:
        return {**told, "kind": reasons.BEHIND_OTHERS, "reason": f"it is behind {before} others at its worker"}
    if task.cancelled:
        reason = f"it was cancelled, and its worker (pid {worker.pid}) has not ended it yet"
        return {**told, "kind": reasons.CANCELLING, "reason": reason}
    stream = task.stream
    if stream is not None and stream.window and stream.arrived - stream.taken >= stream.window:
        reason = (
            f"{stream.arrived} of its items have arrived, its consumer has taken {stream.taken}, and it may be "
            f"{stream.window} ahead: it waits for the next to be taken"
        )
        return {**told, "kind": reasons.BACKPRESSURE, "reason": reason, "taken": stream.taken, "items": stream.arrived}
    told |= {"state": "running", "kind": reasons.RUNNING, "reason": f"a worker has it (pid {worker.pid})"}
    return {**told, "calls_before": before} if before else told


def _arguments(task: Task) -> dict[str, Any]:
    missing = [ref.hex() for _, ref in task.deps or () if ref._state in (PENDING, REMOTE)]
    reason = f"{len(missing)} of its arguments are not there yet, as {', '.join(missing[:1])}"
    return {"kind": reasons.ARGUMENTS_PENDING, "reason": reason, "missing": missing[:10]}


def _call(runtime: Runtime, task: Task) -> dict[str, Any]:
    """A call that is not at its actor yet."""
    actors = list(runtime.actors.actors.values())
    place = _place([actor.queue for actor in actors], task.seq)
    if place is not None:
        actor, before = actors[place[0]], place[1]
        told: dict[str, Any] = {"actor": actor.id.hex()}
        if actor.link is None or actor.killing:
            reason = f"its actor {actor.id.hex()} is {actor.state}; {before} calls are before it"
            return {**told, "kind": reasons.ACTOR_NOT_READY, "reason": reason, "calls_before": before}
        reason = f"{before} calls are before it, and {len(actor.link.inflight)} are with its actor {actor.id.hex()}"
        first = actor.queue[0]
        if first.unresolved:
            missing = _arguments(first)
            reason += f"; the first of them, {first.name}, waits: {missing['reason']}"
            told["missing"] = missing["missing"]
        return {**told, "kind": reasons.BEHIND_CALLS, "reason": reason, "calls_before": before}
    return {"kind": reasons.SUBMITTING, "reason": "it is being submitted"}
