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
from typing import Any, NamedTuple

from msgspec.structs import replace

from noded import ids, telemetry
from noded.node.pages import Key, Pages, Snapshot, worker_of
from noded.node.readers import Readers
from noded.node.session import Client
from noded.policy.reasons import RAISED
from noded.policy.task_pages import Known, Sought
from noded.resources import UNIT
from noded.telemetry import Counts, Record
from noded.wire import messages as m

MOST = 10_000
"""Rows of one node's runs, the newest."""
MOST_OPEN = 2_000
"""Rows of the open tasks of all its processes together, at once: what is left comes with the next page."""
_LEAST = 500
"""So many of its open tasks any process may tell at once."""
_ASK_SECONDS = 0.5

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

_OPEN = {"pending_args_avail", "pending_node_assignment", "submitted_to_worker", "failed"}
"""States of which clients know tasks."""

Ask = Callable[[Client, Callable[[int], Any], float], Coroutine[Any, Any, bytes]]


class _Open(NamedTuple):
    """What a client has told. ``total``: all that it has; ``until``: there are more rows, of ids behind this one."""

    rows: list[dict[str, Any]]
    problem: str = ""
    total: int = 0
    until: str = ""


class TaskTable:
    """``ask(client, question, seconds)``: what that client says, as JSON; raises TimeoutError."""

    def __init__(self, pages: Pages, clients: dict[bytes, Client], node_id: str, ask: Ask, readers: Readers):
        self._pages = pages
        self._clients = clients
        self._node_id = node_id
        self._ask = ask
        self._readers = readers

    async def known(self, sought: Sought) -> Known:
        """Rows with the names of Ray's TaskState: all that this node knows of the tasks whose rows may be sought."""
        questions = self._questions(sought)
        runs, told = await asyncio.gather(self._readers.run(self._runs, sought), self._open(questions))
        rows, more, all_runs = runs
        mine = {row["task_id"] for row in rows}
        rows += (row for one in told for row in one.rows)
        twice = sum(row["task_id"] in mine for one in told for row in one.rows)
        total = all_runs + sum(one.total for one in told) - twice
        notes = [one.problem for one in told if one.problem]
        if more:
            notes.append(f"{more} older runs that may match were not looked at: only the newest {MOST} of a node are")
        return Known(rows, total, min((one.until for one in told if one.until), default=""), notes)

    async def counts(self) -> dict[Key, Counts]:
        """Of each (kind, name), exact. Of drivers without a node only while they answer."""
        found = await self._readers.run(self._pages.counts)
        away = [c for c in self._clients.values() if c.kind == "driver" and c.remote]
        told = await asyncio.gather(*(self._tell(client, m.WhatTasks(0, 0)) for client in away))
        for one in await self._readers.run(lambda: [json.loads(data) for data in told if data]):
            for kind, name, *each in one["counts"]:
                found[kind, name] = found.get((kind, name), Counts()) + Counts(*each)
        return found

    # ------------------------------------------------------------ runs

    def _runs(self, sought: Sought) -> tuple[list[dict[str, Any]], int, int]:
        """Reads files. The newest rows, how many more are sought, and of how many tasks there are any."""
        found: list[tuple[float, Record, Snapshot]] = []
        tasks: set[bytes] = set()
        ids_ = None if sought.ids is None else {bytes.fromhex(each) for each in sought.ids if _is_id(each)}
        after = bytes.fromhex(sought.after) if _is_id(sought.after) else b""
        for snapshot in self._pages.read():
            for record in snapshot.reading.records:
                tasks.add(record.id)
                if (
                    (ids_ is None or record.id in ids_)
                    and (not after or record.id > after)
                    and (not sought.names or record.name.casefold() in sought.names)
                    and record.name.casefold() not in sought.not_names
                    and (not sought.states or state_of(record, snapshot)[0].casefold() in sought.states)
                ):
                    found.append((record.start, record, snapshot))
        newest = heapq.nlargest(MOST, found, key=lambda each: each[0]) if len(found) > MOST else found
        rows = [run_row(record, snapshot, self._node_id) for _, record, snapshot in newest]
        return rows, len(found) - len(newest), len(tasks)

    # ------------------------------------------------------------ what has not ended

    def _questions(self, sought: Sought) -> list[tuple[Client, m.WhatTasks]]:
        """What each client is to be asked, but for the number of the question."""
        if sought.states and not sought.states & _OPEN:
            return []
        clients = [each for each in self._clients.values() if each.kind in ("driver", "worker")]
        share = max(_LEAST, MOST_OPEN // max(1, len(clients)))
        after = bytes.fromhex(sought.after) if _is_id(sought.after) else b""
        states, names, not_names = sorted(sought.states), sorted(sought.names), sorted(sought.not_names)
        found = []
        for client in clients:
            if sought.ids is not None:
                begin = client.prefix.hex()
                numbers = [
                    ids.seq_of(bytes.fromhex(id_)) for id_ in sought.ids if id_.startswith(begin) and _is_id(id_)
                ]
                if numbers:
                    found.append((client, m.WhatTasks(0, max(share, len(numbers)), states, names, numbers)))
                continue
            begins = ids.prefix_of(after)
            none = begins > client.prefix or sought.ran or (sought.jobs and client.job.casefold() not in sought.jobs)
            behind = ids.seq_of(after) if begins == client.prefix else 0
            found.append((client, m.WhatTasks(0, 0 if none else share, states, names, [], behind, not_names)))
        return found

    async def _open(self, questions: list[tuple[Client, m.WhatTasks]]) -> list[_Open]:
        if not questions:
            return []
        told = await asyncio.gather(*(self._tell(client, question) for client, question in questions))
        clients = [client for client, _ in questions]
        silent = [self._silent(client) for client in clients]
        return await self._readers.run(lambda: list(map(self._told_open, clients, told, silent)))

    def _told_open(self, client: Client, data: bytes, silent: str) -> _Open:
        """Thousands of rows take many milliseconds: not for the loop."""
        if not data:
            who = f"the {client.kind} with pid {client.pid} (job {client.job})"
            silent = silent or "it is busy in code that holds Python's lock, or stopped"
            return _Open([], f"{who} does not say what it waits for: {silent}")
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
        until = ids.task_id(prefix, told["until"]).hex() if told["until"] else ""
        return _Open(rows, "", told["total"], until)

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

    async def _tell(self, client: Client, question: m.WhatTasks) -> bytes:
        """JSON; empty when it does not answer."""
        if self._silent(client):
            return b""
        try:
            return await self._ask(client, lambda number: replace(question, request=number), _ASK_SECONDS)
        except TimeoutError:
            return b""

    @staticmethod
    def _silent(client: Client) -> str:
        if client.session is None or not client.told:
            return "it is not connected now"
        if client.version < m.TASKS_SINCE:
            return "it has an older noded"
        return ""


def _is_id(text: str) -> bool:
    return len(text) == 2 * ids.ID_SIZE and not set(text) - set("0123456789abcdef")


def told(counts: dict[Key, Counts]) -> list[tuple[Any, ...]]:
    """For ``policy/summary.py``."""
    return [(TYPES[kind], name, *each) for (kind, name), each in counts.items() if kind in TYPES]


def state_of(record: Record, snapshot: Snapshot) -> tuple[str, str]:
    """Of a run, and the type of its error."""
    if record.outcome in _FAILED:
        return "FAILED", _FAILED[record.outcome]
    if not record.end:
        return ("RUNNING", "") if snapshot.alive else ("FAILED", "WORKER_DIED")
    return "FINISHED", ""


def run_row(record: Record, snapshot: Snapshot, node_id: str) -> dict[str, Any]:
    """A run, as its worker's page has it."""
    reading = snapshot.reading
    state, error = state_of(record, snapshot)
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
