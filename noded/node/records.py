"""What a node tells of itself and writes down: its part of lists and summaries (``state.py``), the log of events, and
what ``noded status`` shows of what waits and what has failed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from noded.node.actor_host import NodeActorHost
from noded.node.cluster_view import ClusterView
from noded.node.control import ControlServer, start_time
from noded.node.death_book import DeathBook
from noded.node.demand import DemandFigures
from noded.node.events import EventLog
from noded.node.holdings import Holdings
from noded.node.leases import Leases
from noded.node.object_rows import ObjectRows
from noded.node.object_store import ObjectStore
from noded.node.own_rows import OwnRows
from noded.node.readers import Readers
from noded.node.state import NodeState
from noded.node.task_table import TaskTable
from noded.node.worker_rows import WorkerRows
from noded.node.workers import Worker, WorkerPool
from noded.telemetry import Record
from noded.wire import cluster_messages as c
from noded.wire import messages as m

Problem = tuple[str, str, str]
"""(source of its event, what it is about, what is wrong or empty)."""


class NodeRecords:
    """``head()``: the head, here or by its connection; ``connected()``: it is there. ``at_head()``: see
    ``DemandFigures``. ``problems()``: what is looked at now and then, and its states; changes become events.
    """

    def __init__(
        self,
        events: EventLog,
        pool: WorkerPool,
        store: ObjectStore,
        leases: Leases,
        host: NodeActorHost,
        view: ClusterView,
        control: ControlServer,
        holdings: Holdings,
        tasks: TaskTable,
        readers: Readers,
        dead: DeathBook,
        job_configs: dict[str, m.JobConfig],
        *,
        node_id: str,
        ip: str,
        is_head: bool,
        head: Callable[[], Any],
        connected: Callable[[], bool],
        at_head: Callable[[], Iterator[tuple[str, Mapping[str, int], str, str]]],
        problems: Callable[[], Iterator[Problem]],
    ):
        self.events = events
        self.workers = WorkerRows(pool, control.clients, dead, events, node_id=node_id, ip=ip)
        own = OwnRows(
            host, view, leases.capacity, pool, self.workers, job_configs, node_id=node_id, head=is_head
        )  # fmt: skip
        self.state = NodeState(
            own,
            self.workers,
            ObjectRows(store, holdings, node_id=node_id, ip=ip),
            events,
            tasks,
            readers,
            ask_head=lambda what, args: head().ask(what, args),
            connected=connected,
        )
        self._demand = DemandFigures(leases, at_head)
        self._problems = problems
        self._known: dict[tuple[str, str], str] = {}
        self._is_head = is_head
        pool.on_forked = self.workers.started

    # ------------------------------------------------------------ life

    async def start(self, register: c.Register, *, recovered: bool) -> None:
        """The daemon has started."""
        again = " again, with what runs here" if recovered else ""
        self.events.emit(
            "HEAD" if self._is_head else "NODE",
            f"the daemon of node {register.name} (pid {register.pid}) has started{again}; epoch {register.epoch}",
            row={
                "node_id": register.node_id,
                "node_ip": register.node_ip,
                "is_head_node": self._is_head,
                "state": "ALIVE",
                "node_name": register.name,
                "address": register.address,
                "pid": register.pid,
            },
            epoch=register.epoch,
            start_ticks=start_time(register.pid),
            boot_id=await asyncio.to_thread(boot_id),
        )

    async def stop(self, reason: str) -> None:
        """``reason``: empty when only the daemon ends."""
        if reason:
            self.events.emit("NODE", f"the node ends: {reason}", ended=True)
        await self.events.stop()

    # ------------------------------------------------------------ what happens

    def died_running(self, page: str, records: list[Record]) -> None:
        """What the process with this telemetry page ran when it ended."""
        if records:
            tasks = [{"task_id": record.id.hex(), "name": record.name} for record in records]
            some = ", ".join(f"{each['name']} ({each['task_id']})" for each in tasks[:3])
            worker = page.removeprefix("worker-").partition(".")[0]
            text = f"worker {worker} ran {some}{' and others' if len(tasks) > 3 else ''} when it ended"
            self.events.emit("WORKER", text, "WARNING", worker_id=worker, tasks=tasks)

    def ended_for_memory(self, worker: Worker, kind: str, reason: str) -> None:
        text = f"worker {worker.id} (pid {worker.record.pid}) is ended: {reason}"
        self.events.emit("MEMORY", text, "WARNING", worker_id=worker.id, pid=worker.record.pid, death_kind=kind)

    def look(self) -> None:
        """Now and then: what has begun or ceased to be wrong."""
        for source, about, problem in self._problems():
            before = self._known.get((source, about), "")
            if problem and not before:
                self.events.emit(source, f"{about}: {problem}", "WARNING", about=about, problem=problem)
            elif before and not problem:
                self.events.emit(source, f"{about} is well again", about=about)
            self._known[source, about] = problem

    # ------------------------------------------------------------ questions

    def figures(self) -> dict[str, Any]:
        """For ``noded status``."""
        return {
            "demand": self._demand.figures(),
            "failures": self.workers.failures(),
            "events": self.events.figures(),
        }


def boot_id() -> str:
    """Of the machine's present run; pids of another one mean nothing."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return f"unknown {os.uname().nodename}"
