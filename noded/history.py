"""What a cluster has left: the same lists, summaries and timeline that its nodes would give, from their files alone.

Read are the events (``node/event_files.py``) and the telemetry pages (``node/pages.py``) of every node whose logs are
in a directory; nothing is written there. What was alive when the last word of it was written is only shown so where its
process is found on this machine: it may also have ended when nobody could write that down any more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noded import telemetry
from noded.node import event_files, timeline
from noded.node.control import start_time
from noded.node.event_files import Event
from noded.node.pages import RUN, Key, Snapshot, add, load_totals, page_names, runs, worker_of
from noded.node.records import boot_id
from noded.node.task_table import run_row, told
from noded.policy import deaths, summary, task_pages
from noded.policy.query import Collector, Page, Query, page_of, query_of
from noded.telemetry import Counts

_DEPTH = 4
"""Directories below the one that is given."""
_GONE = "it was there when its node wrote for the last time, and is not any more"
_SOURCES = {"ACTOR": "actors", "PLACEMENT_GROUP": "placement_groups", "JOB": "jobs", "WORKER": "workers"}
_IDS = {
    "actors": "actor_id",
    "placement_groups": "placement_group_id",
    "jobs": "job_id",
    "workers": "worker_id",
    "nodes": "node_id",
}
Row = dict[str, Any]


@dataclass
class _Process:
    """What is written of a process, by which it is found again."""

    pid: int
    start_ticks: int
    node: str

    def lives(self, boots: dict[str, str], boot: str) -> bool:
        return bool(self.start_ticks) and boots.get(self.node) == boot and start_time(self.pid) == self.start_ticks


class History:
    """Raises LookupError where there is nothing of a node in the directory."""

    def __init__(self, directory: Path):
        self.logs = [path for path in _directories(directory, _DEPTH) if event_files.numbers(path) or runs(str(path))]
        """The directories of nodes' logs."""
        if not self.logs:
            raise LookupError(
                f"there is nothing of a node in {directory}: give the directory of a node's logs, or that of a "
                "cluster, which is ~/.noded/clusters/NAME on the head's machine"
            )
        self._rows: dict[str, dict[str, Row]] = {kind: {} for kind in _IDS}
        self._processes: dict[str, _Process] = {}
        """Of workers and drivers, by id."""
        self._daemons: dict[str, _Process] = {}
        """By the node's id; the last one."""
        self._boots: dict[str, str] = {}
        """Which run of its machine a node was in."""
        self._ended: dict[str, str] = {}
        """Nodes that have ended in order, by id, and why."""
        self._heads: set[str] = set()
        """Ids of nodes that were heads."""
        self._boot = boot_id()
        for event in self._events():
            self._take(event)
        self._alive = {id_ for id_, each in self._processes.items() if each.lives(self._boots, self._boot)}
        self._settle()

    # ------------------------------------------------------------ questions

    def answer(self, what: str, arguments: dict[str, Any]) -> Any:
        """As a node answers. Raises ValueError."""
        if what == "timeline":
            return [event for node, each in self._snapshots() for event in timeline.events([each], node)]
        if what == "state_summary":
            return self._summary(summary.checked(arguments))
        return self._page(query_of(arguments)).answer()

    def _page(self, query: Query) -> Page:
        if query.kind == "cluster_events":
            collector = Collector(query)
            for event in self._events():
                if event.again:
                    continue
                known = {"node_id": event.node, **event.known()} if query.detail else None
                collector.add({**event.row(), "custom_fields": known})
            return collector.page()
        if query.kind == "tasks":
            rows = [
                run_row(each, snapshot, node)
                for node, snapshot in self._snapshots()
                for each in snapshot.reading.records
            ]
            return task_pages.whole(query, task_pages.Known(rows, len({row["task_id"] for row in rows})))
        if query.kind not in self._rows:
            raise ValueError(
                f"{query.kind.replace('_', ' ')} are not written down: of a cluster that is gone there are "
                f"{', '.join([*self._rows, 'tasks', 'events'])}"
            )
        return page_of(query, self._rows[query.kind].values())

    def _summary(self, kind: str) -> dict[str, Any]:
        if kind == "actors":
            found = summary.of_actors(self._rows["actors"].values())
        elif kind == "tasks":
            found = summary.merge("tasks", [{"counts": told(self._counts())}])
        else:
            raise ValueError("objects are not written down: a cluster that is gone has none")
        return {**found, "problems": [], "notes": []}

    # ------------------------------------------------------------ events

    def _events(self) -> Iterator[Event]:
        """Of all nodes, oldest first."""
        found = [event for logs in self.logs for event in event_files.read(logs)]
        return iter(sorted(found, key=lambda event: event.id))

    def _take(self, event: Event) -> None:
        known = event.known()
        row = known.get("row")
        if event.source in ("NODE", "HEAD"):
            if row is not None:
                node = self._rows["nodes"].setdefault(row["node_id"], {"resources_total": {}, "labels": {}})
                node.update({"state_message": None, **row})
                if row["state"] == "DEAD":
                    node.setdefault("end_time_ms", int(event.time * 1000))
            if "boot_id" in known and row is not None:
                self._boots[event.node] = known["boot_id"]
                self._daemons[event.node] = _Process(row["pid"], known["start_ticks"], event.node)
                if event.source == "HEAD":
                    self._heads.add(event.node)
            elif known.get("ended") and (ended := self._rows["nodes"].get(event.node)) is not None:
                self._ended[event.node] = event.message
                ended.update(state="DEAD", state_message=event.message, end_time_ms=int(event.time * 1000))
        elif row is not None and (kind := _SOURCES.get(event.source)) is not None:
            self._rows[kind][row[_IDS[kind]]] = row
            if event.source == "WORKER" and "start_ticks" in known:
                self._processes[row["worker_id"]] = _Process(row["pid"], known["start_ticks"], event.node)

    def _settle(self) -> None:
        """What has no process any more is not shown as alive, nor are drivers of a node that has ended."""
        heads_live = any(self._daemon_lives(node) for node in self._heads)
        workers, nodes = self._rows["workers"], self._rows["nodes"]
        busy = {self._processes[id_].node for id_ in self._alive if workers[id_]["worker_type"] == "WORKER"}
        for id_, node in nodes.items():
            if node["state"] != "DEAD" and not self._daemon_lives(id_):
                state = "AWAY" if id_ in busy else "DEAD"
                node.update(state=state, state_message=node["state_message"] or "its daemon has ended")
        self._alive = {id_ for id_ in self._alive if nodes.get(workers[id_]["node_id"], {}).get("state") != "DEAD"}
        for id_, worker in workers.items():
            if worker.setdefault("is_alive", False) and id_ not in self._alive:
                ended = self._ended.get(worker["node_id"])
                how = "INTENDED_SYSTEM_EXIT" if ended else "SYSTEM_ERROR"
                worker.update(is_alive=False, exit_type=how, exit_detail=ended or _GONE)
        for actor in self._rows["actors"].values():
            lives = actor.get("worker_id") in self._alive if actor["state"] == "ALIVE" else heads_live
            if actor["state"] != "DEAD" and not lives:
                reason = self._ended.get(actor.get("node_id", ""), _GONE)
                actor.update(state="DEAD", reason=reason, death_kind=deaths.UNSEEN)
        with_driver = {workers[id_].get("job_id") for id_ in self._alive}
        for job in self._rows["jobs"].values():
            if job["status"] == "RUNNING" and job["job_id"] not in with_driver:
                job.update(status="STOPPED", message=_GONE)
        for group in self._rows["placement_groups"].values():
            if group["state"] != "REMOVED" and not heads_live:
                group.update(state="REMOVED", reason="its cluster has ended")

    def _daemon_lives(self, node: str) -> bool:
        daemon = self._daemons.get(node)
        return daemon is not None and daemon.lives(self._boots, self._boot)

    # ------------------------------------------------------------ telemetry pages

    def _runs(self) -> Iterator[tuple[str, str]]:
        """(id of the node, directory) of each run of a node that has left pages."""
        known = {id_[:12]: id_ for id_ in self._rows["nodes"]}
        for logs in self.logs:
            for directory in runs(str(logs)):
                start = os.path.basename(directory).removeprefix(RUN)
                yield known.get(start, start), directory

    def _snapshots(self) -> Iterator[tuple[str, Snapshot]]:
        for node, directory in self._runs():
            for name in page_names(directory):
                reading = telemetry.read(os.path.join(directory, name))
                if reading is not None:
                    yield node, Snapshot(name, self._page_lives(name), reading)

    def _page_lives(self, name: str) -> bool:
        id_ = worker_of(name) or name.removeprefix("driver-").partition(".")[0]
        return id_ in self._alive

    def _counts(self) -> dict[Key, Counts]:
        found: dict[Key, Counts] = {}
        for _, directory in self._runs():
            totals = load_totals(directory)
            add(found, totals.counts)
            for name in page_names(directory):
                if name in totals.held or (reading := telemetry.read(os.path.join(directory, name))) is None:
                    continue
                lives = self._page_lives(name)
                add(found, {key: counts if lives else ended(counts) for key, counts in reading.counts.items()})
        return found


def ended(counts: Counts) -> Counts:
    """Of a process that has ended: nothing that it ran, or waited for, goes on."""
    failed = counts.failed + max(0, counts.submitted - counts.done - counts.failed)
    return counts._replace(raised=counts.raised + counts.running, running=0, failed=failed)


def _directories(top: Path, depth: int) -> Iterator[Path]:
    yield top
    if depth:
        for entry in sorted(os.scandir(top), key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(RUN):
                yield from _directories(Path(entry.path), depth - 1)
