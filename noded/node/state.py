"""Lists and summaries of the cluster's state, as far as this node has a part in them.

Clients and commands ask their own node, which passes the question on to the head; the head asks all nodes for what is
theirs (``tell``). While the head is away a node answers with what it has itself, and says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

from noded.lifecycle import pieces
from noded.node.events import EventLog
from noded.node.object_rows import ObjectRows
from noded.node.own_rows import OwnRows
from noded.node.readers import Readers
from noded.node.task_table import TaskTable, told
from noded.node.worker_rows import WorkerRows
from noded.policy import summary, task_pages
from noded.policy.query import NODE_SECONDS, Collector, Page, Query, query_of

_HEAD_SECONDS = NODE_SECONDS + 1.5
_AWAY = "the head does not answer: this is what this node alone has"
Row = dict[str, Any]


class NodeState:
    """``ask_head(what, args)`` waits for a head that is away; ``connected()``: it is there."""

    def __init__(
        self,
        own: OwnRows,
        workers: WorkerRows,
        objects: ObjectRows,
        events: EventLog,
        tasks: TaskTable,
        readers: Readers,
        *,
        ask_head: Callable[[str, dict[str, Any]], Awaitable[Any]],
        connected: Callable[[], bool],
    ):
        self._own = own
        self._workers = workers
        self._objects = objects
        self._tasks = tasks
        self._readers = readers
        self._ask_head = ask_head
        self._connected = connected
        self._pages: dict[str, Callable[[Query], Awaitable[Page]]] = {
            "objects": objects.page,
            "tasks": self._task_page,
            "cluster_events": partial(readers.run, events.page),
        }
        self._rows: dict[str, Callable[[], Iterator[Row]]] = {
            "workers": workers.rows,
            "runtime_envs": own.runtime_envs,
            "actors": own.actors,
            "nodes": own.nodes,
            "placement_groups": own.placement_groups,
            "jobs": own.jobs,
        }

    # ------------------------------------------------------------ of clients and commands

    async def ask(self, args: dict[str, Any]) -> Any:
        """One page of the cluster's. Raises ValueError."""
        query = query_of(args)
        return await self._of_head("state", args) or self._alone((await self._page(query)).answer())

    async def ask_summary(self, args: dict[str, Any]) -> Any:
        """Raises ValueError."""
        kind = summary.checked(args)
        return await self._of_head("state_summary", args) or self._alone(await self._own_summary(kind))

    async def _of_head(self, what: str, args: dict[str, Any]) -> Any:
        """None: it does not answer."""
        if not self._connected():
            return None
        try:
            return await asyncio.wait_for(self._ask_head(what, args), _HEAD_SECONDS)
        except TimeoutError:
            return None

    @staticmethod
    def _alone(answer: dict[str, Any]) -> dict[str, Any]:
        return {**answer, "problems": [_AWAY]}

    # ------------------------------------------------------------ of the head

    async def tell(self, args: dict[str, Any]) -> Any:
        """This node's part of a page. Of tasks: their ids, or all it has of ``ids``; the page if it is ``alone``."""
        query = query_of(args)
        if query.kind != "tasks" or args.get("alone"):
            page = await self._page(query)
        elif "ids" in args:
            page = await self._tasks_of(frozenset(args["ids"]))
        else:
            known = await self._tasks.known(task_pages.sought(query))
            page = await self._readers.run(task_pages.candidates, query, known)
        return page.as_part()

    async def tell_summary(self, args: dict[str, Any]) -> Any:
        return await self._part(summary.checked(args))

    async def tell_drivers(self, args: dict[str, Any]) -> Any:
        return list(self._workers.drivers())

    async def _page(self, query: Query) -> Page:
        if query.kind in self._pages:
            return await self._pages[query.kind](query)
        collector = Collector(query)
        async for rows in pieces(list(self._rows[query.kind]())):
            for row in rows:
                collector.add(row, row.get("_key", ""))
        return collector.page()

    async def _task_page(self, query: Query) -> Page:
        """Of all that this node knows."""
        known = await self._tasks.known(task_pages.sought(query))
        part = await self._readers.run(task_pages.candidates, query, known, None)
        picked = task_pages.picked(query, [part], None)
        told = await self._tasks_of(frozenset(picked.ids)) if picked.ids else Page()
        page = await self._readers.run(task_pages.page, query, picked, told.rows)
        page.notes = list(dict.fromkeys([*part.notes, *told.notes]))
        if not query.filters:
            page.matched = page.total
        return page

    async def _tasks_of(self, ids: frozenset[str]) -> Page:
        known = await self._tasks.known(task_pages.Sought(ids))
        return Page(known.rows, [row["task_id"] for row in known.rows], notes=known.notes)

    async def _part(self, kind: str) -> dict[str, Any]:
        """This node's part of a summary."""
        if kind == "objects":
            return await self._objects.summary()
        return {"counts": told(await self._tasks.counts()), "notes": []}

    async def _own_summary(self, kind: str) -> dict[str, Any]:
        if kind == "actors":
            return {**summary.of_actors(self._own.actors()), "notes": []}
        part = await self._part(kind)
        return {**summary.merge(kind, [part]), "notes": part["notes"]}
