"""The tasks and calls of this process that have not ended, and those that it has seen fail: for who lists tasks.

A million tasks may be queued. Under the runtime's lock they are only copied; which of them are wanted, and are the
first, a thread finds out.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from noded.client.refs import PENDING, REMOTE
from noded.telemetry import read_own
from noded.wire import messages as m

if TYPE_CHECKING:
    from noded.client.runtime import Runtime
    from noded.client.submission import Task

ARGUMENTS = "PENDING_ARGS_AVAIL"
PLACE = "PENDING_NODE_ASSIGNMENT"
SENT = "SUBMITTED_TO_WORKER"


class _Group(NamedTuple):
    """Tasks in one state (empty: each is to be looked at), of one actor or none."""

    tasks: list[Task]
    state: str
    actor: str = ""


_FAILED = _Group([], "FAILED")


def answer(runtime: Runtime, question: m.WhatTasks) -> None:
    """Under the runtime's lock; what is long is done by a thread, which ends when it has answered."""
    groups, failures = list(_copied(runtime)), dict(runtime.tasks.failures)

    def work() -> None:
        told = json.dumps({**tell(groups, failures, question), "counts": _counts(runtime)}).encode()
        with runtime.lock:
            runtime.control.send(m.Tasks(question.request), told)
            runtime.control.flush()

    threading.Thread(target=work, name="noded-open-tasks", daemon=True).start()


def tell(groups: list[_Group], failures: dict[int, dict[str, Any]], question: m.WhatTasks) -> dict[str, Any]:
    """``tasks``: [number, name, state, id of the actor or "", worker or "", retries left, resources]; ``failed``: by
    number, see ``Tasks.failures``; ``until``: there are more, behind this number (0: no more); ``total``: of both.
    """
    limit = question.limit
    total = sum(len(group.tasks) for group in groups) + len(failures)
    if not limit:
        return {"tasks": [], "failed": {}, "until": 0, "total": total}
    named = _Named(question.names, question.not_names)
    found: list[tuple[int, Task | None, _Group]] = []
    left = False
    for group in groups:
        tasks = _wanted(group, named, question)
        left = left or len(tasks) > limit
        found += ((task.seq, task, group) for task in tasks[:limit])
    if not question.states or "failed" in question.states:
        numbers, after = frozenset(question.numbers), question.after
        for seq, failure in failures.items():
            if seq > after and (not numbers or seq in numbers) and named[failure["name"]]:
                found.append((seq, None, _FAILED))
    found.sort(key=itemgetter(0))
    first = found[:limit]
    return {
        "tasks": [_told(task, group) for _, task, group in first if task is not None and not task.over],
        "failed": {
            str(seq): {key: failures[seq].get(key, "") for key in ("name", "cause", "reason")}
            for seq, task, _ in first
            if task is None
        },
        "until": first[-1][0] if left or len(first) < len(found) else 0,
        "total": total,
    }


class _Named(dict[str, bool]):
    """By a task's name: whether it is one of those that are wanted. There are few names, and many tasks."""

    def __init__(self, names: list[str], not_names: list[str]):
        self._names, self._not_names = names, not_names

    def __missing__(self, name: str) -> bool:
        small = name.casefold()
        self[name] = (not self._names or small in self._names) and small not in self._not_names
        return self[name]


def _wanted(group: _Group, named: _Named, question: m.WhatTasks) -> list[Task]:
    """In the order of their numbers. Of a million tasks each step takes some 50 ms."""
    tasks, after, states = group.tasks, question.after, question.states
    if states and group.state and group.state.casefold() not in states:
        return []
    if after:
        tasks = [task for task in tasks if task.seq > after]
    if question.numbers:
        numbers = frozenset(question.numbers)
        tasks = [task for task in tasks if task.seq in numbers]
    if question.names or question.not_names:
        tasks = [task for task in tasks if named[task.name if task.extra is None else _name(task)]]
    if states and not group.state:
        tasks = [task for task in tasks if _state(task, group).casefold() in states]
    return sorted(tasks, key=attrgetter("seq"))


def _state(task: Task, group: _Group) -> str:
    return group.state or (ARGUMENTS if _lacks(task) else PLACE)


def _told(task: Task, group: _Group) -> list[Any]:
    link, queue = task.link, task.queue
    worker, asks = link.worker if link is not None else "", queue.resources if queue is not None else {}
    return [task.seq, _name(task), _state(task, group), group.actor, worker, task.retries, asks]


def _name(task: Task) -> str:
    return (task.extra.name if task.extra is not None else "") or task.name


def _copied(runtime: Runtime) -> Iterator[_Group]:
    tasks = runtime.tasks
    for worker in tasks.links.values():
        actor = worker.actor.id.hex() if worker.actor is not None else ""
        yield _Group(list(worker.inflight.values()), SENT, actor)
    for each in runtime.actors.actors.values():
        yield _Group([*each.queue, *each.parked], "", each.id.hex())
    yield _Group([task for task in tasks.waiting.values() if task.queue is not None], ARGUMENTS)
    for queue in tasks.queues.values():
        yield _Group(list(queue.ready), PLACE)


def _lacks(task: Task) -> bool:
    return bool(task.unresolved) and any(ref._state in (PENDING, REMOTE) for _, ref in task.deps or ())


def _counts(runtime: Runtime) -> list[list[Any]]:
    """Of a process whose page nobody else can read."""
    if runtime.page.path:
        return []
    return [[kind, name, *each] for (kind, name), each in read_own(runtime.page).counts.items()]
