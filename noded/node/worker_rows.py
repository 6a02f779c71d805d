"""The processes of this node, as lists show them: workers and drivers, also ended ones; and the events of both. Those
that have ended are in the book of the dead (``death_book.py``).
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec

from noded.node.control import start_time
from noded.node.death_book import DeathBook
from noded.node.events import EventLog
from noded.node.session import Client
from noded.node.workers import Worker, WorkerPool
from noded.policy import deaths
from noded.wire import messages as m

_FAILURES_SHOWN = 5
_EXIT_TYPES = {
    deaths.LEFT: "INTENDED_USER_EXIT",
    deaths.KILLED: "INTENDED_USER_EXIT",
    deaths.CONSTRUCTOR: "USER_ERROR",
    deaths.ENV: "USER_ERROR",
    deaths.EXIT: "USER_ERROR",
    deaths.OOM: "NODE_OUT_OF_MEMORY",
    deaths.MEMORY_LIMIT: "NODE_OUT_OF_MEMORY",
    deaths.NODE_MEMORY: "NODE_OUT_OF_MEMORY",
}
Row = dict[str, Any]


class WorkerRows:
    def __init__(
        self,
        pool: WorkerPool,
        clients: dict[bytes, Client],
        dead: DeathBook,
        events: EventLog,
        *,
        node_id: str,
        ip: str,
    ):
        self._pool = pool
        self._clients = clients
        self._dead = dead
        self._events = events
        self._node_id = node_id
        self._ip = ip
        self._boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        self._tick = os.sysconf("SC_CLK_TCK")

    # ------------------------------------------------------------ what happens

    def started(self, worker: Worker) -> None:
        """It is forked."""
        text = f"worker {worker.id} (pid {worker.record.pid}) has started"
        self._events.emit("WORKER", text, row=self._row(worker), start_ticks=start_time(worker.record.pid))

    def ended(self, worker: Worker, death: m.Death) -> None:
        row = {
            **self._row(worker),
            "is_alive": False,
            "exit_type": _exit_type(death.kind),
            "exit_detail": death.reason,
            "end_time_ms": int(time.time() * 1000),
            "death_kind": death.kind,
        }
        bad = death.kind in deaths.UNINTENDED
        text = f"worker {worker.id} (pid {death.pid}) has ended: {death.reason}"
        self._events.emit("WORKER", text, "ERROR" if bad else "INFO", row=row, death=msgspec.structs.asdict(death))

    def driver_came(self, client: Client) -> None:
        text = f"the driver of job {client.job} (pid {client.pid}) has connected"
        self._events.emit("WORKER", text, row=self._driver(client), start_ticks=client.start_time)

    def driver_left(self, client: Client) -> None:
        """Or has ended."""
        how = "left" if client.detached else "ended without leaving"
        row = {
            **self._driver(client),
            "is_alive": False,
            "exit_type": "INTENDED_USER_EXIT" if client.detached else "SYSTEM_ERROR",
            "exit_detail": f"it has {how}",
            "end_time_ms": int(time.time() * 1000),
        }
        self._events.emit("WORKER", f"the driver of job {client.job} (pid {client.pid}) has {how}", row=row)

    # ------------------------------------------------------------ what there is

    def rows(self) -> Iterator[Row]:
        for worker in list(self._pool.workers.values()):
            yield self._row(worker)
        yield from self.drivers()
        for record in self._dead.records():
            yield self._dead_row(record)

    def _dead_row(self, record: dict[str, Any]) -> Row:
        driver = bool(record.get("driver"))
        return {
            "worker_id": record["id"],
            "is_alive": False,
            "worker_type": "DRIVER" if driver else "WORKER",
            "exit_type": _exit_type(record["kind"]),
            "exit_detail": record["reason"],
            "node_id": self._node_id,
            "ip": self._ip,
            "pid": record.get("pid", 0),
            "end_time_ms": int(record["ended_at"] * 1000),
            "job_id": record["job"] or None,
            "actor_id": record.get("actor") or None,
            "death_kind": record["kind"],
        }

    def drivers(self) -> Iterator[Row]:
        """Those that are there."""
        for client in list(self._clients.values()):
            if client.kind == "driver" and not client.detached:
                yield self._driver(client)

    def _driver(self, client: Client) -> Row:
        return {
            "worker_id": client.prefix.hex(),
            "is_alive": True,
            "worker_type": "DRIVER",
            "exit_type": None,
            "node_id": self._node_id,
            "ip": self._ip,
            "pid": client.pid,
            "start_time_ms": self._milliseconds(client.start_time),
            "job_id": client.job,
        }

    def _row(self, worker: Worker) -> Row:
        record = worker.record
        started = worker.client.start_time if worker.client is not None else 0
        return {
            "worker_id": worker.id,
            "is_alive": not worker.dead,
            "worker_type": "WORKER",
            "exit_type": None,
            "node_id": self._node_id,
            "ip": self._ip,
            "pid": record.pid,
            "start_time_ms": self._milliseconds(started),
            "job_id": record.job or None,
            "actor_id": record.actor.hex() or None,
        }

    def _milliseconds(self, ticks: int) -> int | None:
        """``ticks``: of the clock since the machine's start, as the kernel says when a process has started."""
        return int((self._boot + ticks / self._tick) * 1000) if ticks else None

    def failures(self) -> dict[str, Any]:
        """For ``noded status``: how many of those that are remembered have ended unintended, and the last of them."""
        bad = [record for record in self._dead.records() if record["kind"] in deaths.UNINTENDED]
        return {
            "by_kind": dict(Counter(record["kind"] for record in bad)),
            "last": [
                {
                    "worker_id": record["id"],
                    "pid": record.get("pid", 0),
                    "death_kind": record["kind"],
                    "exit_detail": record["reason"],
                    "end_time_ms": int(record["ended_at"] * 1000),
                }
                for record in bad[: -_FAILURES_SHOWN - 1 : -1]
            ],
        }


def _exit_type(kind: str) -> str:
    if kind in _EXIT_TYPES:
        return _EXIT_TYPES[kind]
    return "SYSTEM_ERROR" if kind in deaths.UNINTENDED else "INTENDED_SYSTEM_EXIT"
