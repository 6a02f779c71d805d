"""The tasks of this node's processes, as rows: those that its workers run or ran last, from their pages, and those that
its drivers and workers have submitted and that have not ended, or failed, from these themselves.

Rows of one task may come from several nodes: ``policy/task_rows.py`` makes one of them. Exact counts are of the pages
alone, see ``pages.py``.
"""

from __future__ import annotations

import asyncio
import heapq
import json
from collections.abc import Callable, Coroutine
from itertools import repeat
from typing import Any, NamedTuple

from noded import ids, telemetry
from noded.node.pages import Key, Pages, Snapshot, worker_of
from noded.node.readers import Readers
from noded.node.session import Client
from noded.policy.reasons import RAISED
from noded.resources import UNIT
from noded.telemetry import Counts, Record
from noded.wire import messages as m

MOST = 10_000
"""Rows of one node's runs, the newest; and of the open tasks of all its processes together."""
_LEAST = 500
"""So many of its open tasks any process may tell."""
_ASK_SECONDS = 0.2

TYPES = {telemetry.TASK: "NORMAL_TASK", telemetry.CALL: "ACTOR_TASK", telemetry.CREATION: "ACTOR_CREATION_TASK"}
_FAILED = {
    telemetry.RAISED_ERROR: "TASK_EXECUTION_EXCEPTION",
    telemetry.CANCELLED: "TASK_CANCELLED",
    telemetry.DIED: "WORKER_DIED",
}
_ERROR_TYPES = {
    RAISED: "TASK_EXECUTION_EXCEPTION",
    "cancelled": "TASK_CANCELLED",
    "oom": "OUT_OF_MEMORY",
    "memory_limit": "OUT_OF_MEMORY",
    "node_memory": "OUT_OF_MEMORY",
    "env": "RUNTIME_ENV_SETUP_FAILED",
    "node_lost": "NODE_DIED",
    "removed": "TASK_PLACEMENT_GROUP_REMOVED",
    "infeasible": "TASK_UNSCHEDULABLE_ERROR",
    "never": "TASK_UNSCHEDULABLE_ERROR",
}
"""In Ray's words, by causes; all others are WORKER_DIED."""

Ask = Callable[[Client, Callable[[int], Any], float], Coroutine[Any, Any, bytes]]


class _Open(NamedTuple):
    """What a client has told."""

    rows: list[dict[str, Any]]
    problem: str
    cut: bool
    """There may be more."""


class TaskTable:
    """``ask(client, question, seconds)``: what that client says, as JSON; raises TimeoutError."""

    def __init__(self, pages: Pages, clients: dict[bytes, Client], node_id: str, ask: Ask, readers: Readers):
        self._pages = pages
        self._clients = clients
        self._node_id = node_id
        self._ask = ask
        self._readers = readers

    async def rows(self, *, running: bool = False, most: int = MOST) -> dict[str, Any]:
        """``rows``: with the names of Ray's TaskState; ``problems``: what is missing, in words. ``running``: only those
        that a worker runs now.
        """
        clients = [] if running else [c for c in self._clients.values() if c.kind in ("driver", "worker")]
        found, told = await asyncio.gather(self._readers.run(self._runs, running, most), self._all_open(clients, most))
        problems = [one.problem for one in told if one.problem]
        rows = found[0] + [row for one in told for row in one.rows]
        if found[1] > most:
            problems.append(f"of the node's last {found[1]} runs only the newest {most} are listed; counts are of all")
        return {"rows": rows, "problems": problems}

    async def counts(self) -> dict[Key, Counts]:
        """Of each (kind, name), exact. Of drivers without a node only while they answer."""
        found = await self._readers.run(self._pages.counts)
        away = [c for c in self._clients.values() if c.kind == "driver" and c.remote]
        told = await asyncio.gather(*(self._tell(client, 0) for client in away))
        for one in await self._readers.run(lambda: [json.loads(data) for data in told if data]):
            for kind, name, *each in one["counts"]:
                found[kind, name] = found.get((kind, name), Counts()) + Counts(*each)
        return found

    # ------------------------------------------------------------ runs

    def _runs(self, running: bool, most: int) -> tuple[list[dict[str, Any]], int]:
        """Reads files. The newest rows, and how many there are."""
        found: list[tuple[float, Record, Snapshot]] = []
        for snapshot in self._pages.read():
            for record in snapshot.reading.records:
                if not running or (snapshot.alive and not record.end):
                    found.append((record.start, record, snapshot))
        newest = heapq.nlargest(most, found, key=lambda each: each[0]) if len(found) > most else found
        return [run_row(record, snapshot, self._node_id) for _, record, snapshot in newest], len(found)

    # ------------------------------------------------------------ what has not ended

    async def _all_open(self, clients: list[Client], most: int) -> list[_Open]:
        """Each may tell its share of ``most``; what others leave of theirs is shared by those that have more to say."""
        share = max(_LEAST, most // max(1, len(clients)))
        told = await self._open(clients, share)
        cut = [at for at, one in enumerate(told) if one.cut]
        left = most - sum(len(one.rows) for one in told)
        if cut and left >= len(cut):
            again = await self._open([clients[at] for at in cut], share + left // len(cut))
            for at, one in zip(cut, again, strict=True):
                told[at] = one if one.rows else told[at]
        return told

    async def _open(self, clients: list[Client], most: int) -> list[_Open]:
        if not clients:
            return []
        told = await asyncio.gather(*(self._tell(client, most) for client in clients))
        silent = [self._silent(client) for client in clients]
        return await self._readers.run(lambda: list(map(self._told_open, clients, told, silent, repeat(most))))

    def _told_open(self, client: Client, data: bytes, silent: str, most: int) -> _Open:
        """Thousands of rows take many milliseconds: not for the loop."""
        who = f"the {client.kind} with pid {client.pid} (job {client.job})"
        if not data:
            silent = silent or "it is busy in code that holds Python's lock, or stopped"
            return _Open([], f"{who} does not say what it waits for: {silent}", False)
        told, prefix, job = json.loads(data), client.prefix, client.job
        rows = []
        for seq, name, state, actor, worker, _, resources in told["tasks"]:
            row = self._told(ids.task_id(prefix, seq), name, state, job, actor)
            row["worker_id"], row["required_resources"] = worker, {n: a / UNIT for n, a in resources.items()}
            rows.append(row)
        for seq, failure in told["failed"].items():
            row = self._told(ids.task_id(prefix, int(seq)), failure["name"], "FAILED", job, "")
            row["error_type"] = _ERROR_TYPES.get(failure["cause"], "WORKER_DIED")
            if failure["cause"] != RAISED:  # its worker knows of which class the error was
                row["error_message"] = failure["reason"]
            rows.append(row)
        cut = max(len(told["tasks"]), len(told["failed"])) >= most
        return _Open(
            rows, f"{who} has {most} open or failed tasks or more: not all of them are listed" if cut else "", cut
        )

    @staticmethod
    def _told(id_: bytes, name: str, state: str, job: str, actor: str) -> dict[str, Any]:
        return {
            "task_id": id_.hex(),
            "name": name,
            "state": state,
            "job_id": job,
            "actor_id": actor,
            "type": "ACTOR_TASK" if actor else "NORMAL_TASK",
            "func_or_class_name": name,
            "parent_task_id": "",
            "node_id": "",
            "worker_id": "",
            "worker_pid": 0,
            "error_type": "",
            "error_message": "",
            "start_time_ms": 0,
            "end_time_ms": 0,
            "required_resources": {},
        }

    async def _tell(self, client: Client, most: int) -> bytes:
        """JSON; empty when it does not answer."""
        if self._silent(client):
            return b""
        try:
            return await self._ask(client, lambda number: m.WhatTasks(number, most), _ASK_SECONDS)
        except TimeoutError:
            return b""

    @staticmethod
    def _silent(client: Client) -> str:
        if client.session is None or not client.told:
            return "it is not connected now"
        if client.version < m.TASKS_SINCE:
            return "it has an older noded"
        return ""


def told(counts: dict[Key, Counts]) -> list[tuple[Any, ...]]:
    """For ``policy/summary.py``."""
    return [(TYPES[kind], name, *each) for (kind, name), each in counts.items() if kind in TYPES]


def run_row(record: Record, snapshot: Snapshot, node_id: str) -> dict[str, Any]:
    """A run, as its worker's page has it."""
    reading = snapshot.reading
    state, error = "FINISHED", ""
    if record.outcome in _FAILED:
        state, error = "FAILED", _FAILED[record.outcome]
    elif not record.end:
        state, error = ("RUNNING", "") if snapshot.alive else ("FAILED", "WORKER_DIED")
    return {
        "task_id": record.id.hex(),
        "name": record.name,
        "state": state,
        "job_id": reading.job,
        "actor_id": reading.actor.hex() if record.kind != telemetry.TASK else "",
        "type": TYPES.get(record.kind, "NORMAL_TASK"),
        "func_or_class_name": record.name,
        "parent_task_id": "",
        "node_id": node_id,
        "worker_id": worker_of(snapshot.name),
        "worker_pid": reading.pid,
        "error_type": error,
        "error_message": record.error,
        "start_time_ms": round(record.start * 1000),
        "end_time_ms": round(record.end * 1000),
        "required_resources": {},
    }
