"""The book of a node's dead: why its last workers and drivers ended, for who asks later (``noded why``).

Kept over restarts of the daemon in a file beside the logs, a JSON line for each, written by a thread of its own. A
process can be looked up by its worker's id, by the ids that it made (their first 7 bytes), by its job, by the actor
that it had, and by the tasks that it ran when it died. Those that died of something and those that ended as intended do
not displace each other.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from noded import ids
from noded.node.session import Client
from noded.node.workers import Worker
from noded.policy import deaths
from noded.wire import cluster_messages as c
from noded.wire import messages as m

log = logging.getLogger("noded.death_book")

KEPT = 1000
"""Of each sort."""
_LINES = 4 * KEPT
"""Lines of the file, after which it is written anew."""
_TOLD = 100
FILE = "deaths.jsonl"
Record = dict[str, Any]


class DeathBook:
    """``running(worker)``: what it ran when it died, see ``running.py``; called in the book's thread."""

    def __init__(self, directory: str, node_id: str, running: Callable[[str], list[dict[str, Any]]]):
        self._path = os.path.join(directory, FILE)
        self._node_id = node_id
        self._running = running
        self._by_id: OrderedDict[str, Record] = OrderedDict()
        """The oldest first, by worker, or by prefix of a driver."""
        self._index: dict[str, str] = {}
        """Other names of those."""
        self._counts = {True: 0, False: 0}
        self._lines = 0
        self._thread = ThreadPoolExecutor(1, "noded-deaths")

    async def start(self) -> None:
        """Read what the daemons before this one have written; what has been entered meanwhile is newer."""
        loop = asyncio.get_running_loop()
        before = await loop.run_in_executor(self._thread, self._load)
        since = list(self._by_id.values())
        for record in [*before, *since]:
            self._enter(record)

    async def stop(self) -> None:
        """All of it is on disk."""
        await asyncio.to_thread(self._thread.shutdown)

    # ------------------------------------------------------------ entries

    def worker_died(self, worker: Worker, death: m.Death) -> None:
        record = {
            "id": worker.id,
            "state": "dead",
            "kind": death.kind,
            "cause": death.kind,
            "reason": death.reason or deaths.KINDS.get(death.kind, ""),
            **deaths.facts(death),
            "job": worker.record.job,
            "actor": worker.record.actor.hex(),
            "ended_at": time.time(),
        }
        if death.signal is not None:
            record["signal_number"] = death.signal
        if death.free:
            record["free"] = True
        self._enter(record)
        loop = asyncio.get_running_loop()

        def finish() -> None:
            """In the thread: what it ran is in its page, which goes later."""
            if tasks := self._running(worker.id)[:_TOLD]:
                loop.call_soon_threadsafe(self._add_tasks, record, tasks)
            self._append({**record, "running": tasks})

        self._submit(finish)

    def driver_ended(self, client: Client) -> None:
        """Its exit code is its parent's to know."""
        how = (
            "it has left in order" if client.detached else "its process has ended without leaving: by itself, or killed"
        )
        record = {
            "id": client.prefix.hex(),
            "state": "dead",
            "kind": deaths.LEFT if client.detached else deaths.JOB_ENDED,
            "cause": deaths.LEFT if client.detached else deaths.JOB_ENDED,
            "reason": f"the driver of job {client.job} (pid {client.pid}) has ended: {how}",
            "pid": client.pid,
            "node": self._node_id,
            "job": client.job,
            "driver": True,
            "ended_at": time.time(),
        }
        self._enter(record)
        self._submit(lambda: self._append(record))

    def _submit(self, call: Callable[[], None]) -> None:
        try:
            self._thread.submit(call)
        except RuntimeError:  # the daemon stops; nobody will ask it any more
            return

    def _add_tasks(self, record: Record, tasks: list[dict[str, Any]]) -> None:
        record["running"] = tasks
        if record["id"] in self._by_id:
            for task in tasks:
                self._index[task["task"]] = record["id"]

    # ------------------------------------------------------------ look up

    def find(self, text: str) -> Record | None:
        """The record of a worker, of the process that has made ids with this prefix, of a job's driver, or of the
        worker that ran this task or had this actor.
        """
        found = self._by_id.get(self._index.get(text, text))
        return None if found is None else {**found, "ended_s_ago": round(time.time() - found["ended_at"], 1)}

    def records(self) -> list[Record]:
        """Of this start of the node, oldest first."""
        return [record for record in self._by_id.values() if record.get("node") == self._node_id]

    def death_of(self, wid: str) -> m.Death | None:
        """As it was told when it was seen: who was away then is to hear the same."""
        found = self._by_id.get(wid)
        if found is None or found.get("driver"):
            return None
        number = found.get("signal_number")
        death = m.Death(wid, found.get("pid", 0), found.get("exit_code"), number, found["reason"])
        death.max_rss_kb, death.stderr = found.get("max_rss", 0) >> 10, found.get("stderr_tail", [])
        death.node, death.kind, death.free = found.get("node", ""), found["kind"], bool(found.get("free"))
        return death

    def jobs_left(self) -> list[str]:
        """Of drivers that have left in order, the last ones."""
        found = [each["job"] for each in self.records() if each.get("driver") and each["kind"] == deaths.LEFT]
        return found[-_TOLD:]

    def of_actors(self) -> list[c.DeadActor]:
        """The last deaths of workers that had an actor."""
        found = [(id_, record["actor"]) for id_, record in reversed(self._by_id.items()) if record.get("actor")]
        deaths_ = [(bytes.fromhex(actor), self.death_of(wid)) for wid, actor in found[:_TOLD]]
        return [c.DeadActor(actor, death) for actor, death in deaths_ if death is not None]

    def _enter(self, record: Record) -> None:
        id_ = record["id"]
        if id_ in self._by_id:
            self._forget(id_)
        self._by_id[id_] = record
        self._counts[_unintended(record)] += 1
        for name in _names(record):
            self._index[name] = id_
        if self._counts[_unintended(record)] > KEPT:
            sort = _unintended(record)
            self._forget(next(one for one, old in self._by_id.items() if _unintended(old) == sort))

    def _forget(self, id_: str) -> None:
        record = self._by_id.pop(id_)
        self._counts[_unintended(record)] -= 1
        for name in _names(record):
            if self._index.get(name) == id_:
                del self._index[name]

    # ------------------------------------------------------------ the file: in the thread

    def _load(self) -> list[Record]:
        try:
            with open(self._path, "rb") as file:
                lines = file.readlines()
        except OSError:
            return []
        found = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except ValueError:  # a daemon was killed in the middle of it
                continue
        self._lines = len(lines)
        if lines and not lines[-1].endswith(b"\n"):
            self._rewrite(found)
        return found

    def _append(self, record: Record) -> None:
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, json.dumps(record).encode() + b"\n")
            finally:
                os.close(fd)
            self._lines += 1
            if self._lines > _LINES:
                self._rewrite(self._load())
        except OSError as error:  # the directory is gone, or the disk is full: it is known until the daemon restarts
            log.info("a death is not written down: %s", error)

    def _rewrite(self, records: list[Record]) -> None:
        """The last ones of each sort."""
        kept: list[Record] = []
        counts = {True: 0, False: 0}
        for record in reversed(records):
            counts[_unintended(record)] += 1
            if counts[_unintended(record)] <= KEPT:
                kept.append(record)
        draft = f"{self._path}.new"
        with open(draft, "wb") as file:
            file.writelines(json.dumps(record).encode() + b"\n" for record in reversed(kept))
        os.replace(draft, self._path)
        self._lines = len(kept)


def _unintended(record: Record) -> bool:
    return record["kind"] in deaths.UNINTENDED


def _names(record: Record) -> list[str]:
    """By what it may be asked for, beside its id."""
    found = [task["task"] for task in record.get("running", ())]
    if record.get("driver"):
        return [*found, record["job"]]
    if record.get("actor"):
        found.append(record["actor"])
    return [*found, record["id"][: 2 * ids.PREFIX_SIZE]]
