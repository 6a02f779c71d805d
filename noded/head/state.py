"""Lists and summaries of the cluster's state, and the events of its changes.

Actors, placement groups, nodes and jobs are in the head's own tables; everything else its nodes have, who are all asked
at once, filter for themselves, and answer with one page each. See ``policy/query.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from noded.head import state_rows as rows
from noded.head import task_lists
from noded.head.actor_placement import ActorPlacement
from noded.head.actors import ActorRecord, ActorTable
from noded.head.group_placement import GroupPlacement
from noded.head.group_records import GroupRecord
from noded.head.jobs import JobRecord, JobTable
from noded.head.nodes import NodeRecord, NodeTable
from noded.head.placement_groups import GroupTable
from noded.head.task_lists import Told
from noded.lifecycle import pieces
from noded.policy import deaths, summary
from noded.policy.query import NODE_SECONDS, Collector, Page, Query, merge, part_of, query_of


class Emit(Protocol):
    """Write down that something has happened."""

    def __call__(self, source: str, message: str, severity: str = "INFO", **fields: Any) -> None: ...


class HeadState:
    def __init__(
        self,
        nodes: NodeTable,
        actors: ActorTable,
        actor_places: ActorPlacement,
        groups: GroupTable,
        group_places: GroupPlacement,
        jobs: JobTable,
        emit: Emit,
    ):
        self._nodes = nodes
        self._actor_places = actor_places
        self._group_places = group_places
        self._actors = actors
        self._groups = groups
        self._jobs = jobs
        self._emit = emit
        nodes.on_change = self._node_changed
        actors.on_change = self._actor_changed
        groups.on_change = self._group_changed
        jobs.on_change = self._job_changed

    # ------------------------------------------------------------ questions

    async def ask(self, args: dict[str, Any], number: int) -> Any:
        """One page. Raises ValueError."""
        query = query_of(args)
        if query.kind == "actors":
            page = await self._list(query, list(self._actors.records.values()), self._actor_row)
        elif query.kind == "placement_groups":
            page = await self._list(query, list(self._groups.records.values()), self._group_row)
        elif query.kind == "nodes":
            self._nodes.refresh()
            page = await self._list(query, self._known_nodes(), rows.node_row)
        elif query.kind == "jobs":
            page = await self._list_jobs(query)
        elif query.kind == "tasks":
            page = await task_lists.page(query, self._living(), self._ask_each)
        else:
            told, problems = await self._ask_nodes("state", query.arguments())
            page = await asyncio.to_thread(merge, query, [part_of(part) for part in told])
            page.problems = problems
        return page.answer()

    async def ask_summary(self, args: dict[str, Any], number: int) -> Any:
        """Raises ValueError."""
        kind = summary.checked(args)
        if kind == "actors":
            actors = (self._actor_row(record) for record in self._actors.records.values())
            return {**summary.of_actors(actors), "problems": [], "notes": []}
        told, problems = await self._ask_nodes("state_summary", {"kind": kind})
        notes = [note for part in told for note in part["notes"]]
        return {**summary.merge(kind, told), "problems": problems, "notes": notes}

    async def _list(self, query: Query, records: list[Any], row: Callable[[Any], rows.Row]) -> Page:
        collector = Collector(query)
        async for part in pieces(records):
            for record in part:
                collector.add(row(record))
        return collector.page()

    async def _list_jobs(self, query: Query) -> Page:
        told, problems = await self._ask_nodes("drivers", {})
        drivers = {driver["job_id"]: driver for part in told for driver in part}
        found = [rows.job_row(job, record, self._nodes, drivers.get(job)) for job, record in self._jobs.records()]
        page = await self._list(query, found, lambda row: row)
        page.problems = problems
        return page

    def _known_nodes(self) -> list[NodeRecord]:
        return [record for record in self._nodes.records.values() if record.id]

    async def _ask_nodes(self, what: str, args: dict[str, Any]) -> tuple[list[Any], list[str]]:
        """All that live: their answers, and why there are none of some."""
        told, problems = await self._ask_each(what, args, self._living(), NODE_SECONDS)
        return [answer for _, answer in told], problems

    def _living(self) -> list[NodeRecord]:
        return [record for record in self._known_nodes() if record.state != "DEAD"]

    @staticmethod
    async def _ask_each(what: str, args: dict[str, Any], nodes: Iterable[NodeRecord], seconds: float) -> Told:
        problems: list[str] = []

        async def ask(record: NodeRecord) -> list[tuple[NodeRecord, Any]]:
            problem = f"it is away: {record.reason}"
            if record.api is not None:
                try:
                    return [(record, await asyncio.wait_for(record.api.ask(what, args), seconds))]
                except TimeoutError:
                    problem = f"it has not answered within {seconds:.2g} s"
                except ValueError as refusal:
                    problem = str(refusal)
            problems.append(f"what node {record.name} ({record.id}) has is missing: {problem}")
            return []

        answers = await asyncio.gather(*map(ask, nodes))
        return [each for answer in answers for each in answer], problems

    def _actor_row(self, record: ActorRecord) -> rows.Row:
        return rows.actor_row(record, self._nodes)

    def _group_row(self, record: GroupRecord) -> rows.Row:
        return rows.group_row(record, self._nodes)

    def waiting(self) -> Iterator[tuple[str, Mapping[str, int], str, str]]:
        """Actors and groups that wait here: (what, asks, kind, reason)."""
        for id_, pending in list(self._actor_places.pending.items()):
            spec = pending.record.spec
            yield f"actor {spec.class_name}", spec.placement, *(self._actor_places.why(id_) or ("", ""))
        for id_, plan in list(self._group_places.waiting.items()):
            asks: dict[str, int] = {}
            for bundle in plan.spec.bundles:
                for name, amount in bundle.items():
                    asks[name] = asks.get(name, 0) + amount
            yield f"placement group {plan.spec.strategy}", asks, *(self._group_places.why(id_) or ("", ""))

    # ------------------------------------------------------------ what changes

    def _node_changed(self, record: NodeRecord) -> None:
        row = rows.node_row(record)
        severity = {"DEAD": "ERROR", "AWAY": "WARNING"}.get(row["state"], "INFO")
        why = f": {record.reason}" if record.reason else ""
        self._emit("NODE", f"node {record.name} ({record.address}) is {row['state']}{why}", severity, row=_lean(row))

    def _actor_changed(self, record: ActorRecord) -> None:
        row = self._actor_row(record)
        bad = record.death is not None and record.death.kind in deaths.UNINTENDED
        why = f": {row['reason']}" if row["reason"] else ""
        name = f"{record.spec.class_name}{f' {record.spec.name!r}' if record.spec.name else ''}"
        text = f"actor {name} ({row['actor_id']}) is {row['state']}{why}"
        self._emit("ACTOR", text, "ERROR" if bad else "INFO", row=_lean(row))

    def _group_changed(self, record: GroupRecord) -> None:
        row = self._group_row(record)
        why = f": {record.reason}" if record.reason else ""
        text = f"placement group {row['placement_group_id']} is {row['state']}{why}"
        bad = record.lost or record.infeasible
        self._emit("PLACEMENT_GROUP", text, "WARNING" if bad else "INFO", row=_lean(row))

    def _job_changed(self, job: str, record: JobRecord) -> None:
        row = rows.job_row(job, record, self._nodes, None)
        why = f": {record.message}" if record.message else ""
        text = f"job {job} ({record.config.entrypoint}) is {record.status}{why}"
        self._emit("JOB", text, "ERROR" if record.status == "FAILED" else "INFO", row=_lean(row))


def _lean(row: rows.Row) -> rows.Row:
    """Without what is not there: a list shows None for it anyway."""
    return {name: value for name, value in row.items() if value not in (None, "", {}, [])}
