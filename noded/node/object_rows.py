"""Objects of this node, as lists show them: a row for each object and whoever needs it here.

Goes through the store in pieces. How a process holds an object, and which line made the ref, only that process knows;
it is asked about the rows of a page, or, where a filter is about that, about all that the other filters let through.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from msgspec.structs import replace

from noded import ids
from noded.lifecycle import pieces
from noded.node import holdings
from noded.node.entry import Entry
from noded.node.holdings import NODED, OTHER_OBJECTS, Holder, Holdings, Row
from noded.node.object_store import ObjectStore
from noded.policy.query import Collector, Page, Query, shown
from noded.policy.summary import Objects

NOT_RECORDED = "disabled"
"""Ray's word for lines that are not recorded."""
_ASKED = {"reference_type", "call_site"}
_MOST_ASKED = 10_000
"""More rows at once would make the garbage collector look at them for long."""
_TYPES = {"driver": "DRIVER", "worker": "WORKER", "actor": "WORKER"}


class ObjectRows:
    def __init__(self, store: ObjectStore, holdings: Holdings, *, node_id: str, ip: str):
        self._store = store
        self._holdings = holdings
        self._node_id = node_id
        self._ip = ip

    async def page(self, query: Query) -> Page:
        if any(each.key in _ASKED for each in query.filters):
            return await self._page_of_told(query)
        collector = Collector(query, keep=lambda told: told["_row"])
        async for row in self._all():
            told = self._told(row)
            collector.add(told, told["_key"])
        page = collector.page()
        await self._holdings.complete(page.rows)
        page.rows = [shown(query, self._told(row)) for row in page.rows]
        return page

    async def _page_of_told(self, query: Query) -> Page:
        """A filter is about what only the holders know."""
        quick = replace(query, filters=tuple(each for each in query.filters if each.key not in _ASKED))
        matching: list[Row] = []
        total = left_out = 0
        async for row in self._all():
            total += 1
            if quick.matches(self._told(row)):
                if len(matching) < _MOST_ASKED:
                    matching.append(row)
                else:
                    left_out += 1
        await self._holdings.complete(matching)
        collector = Collector(query)
        async for part in pieces(matching):
            for row in part:
                told = self._told(row)
                collector.add(told, told["_key"])
        page = collector.page()
        page.total = total
        if left_out:
            page.notes.append(f"{left_out} objects were not looked at: filter by something else as well")
        return page

    async def summary(self) -> dict[str, Any]:
        found = Objects()
        asked: list[Row] = []
        more = 0
        async for row in self._all():
            if len(asked) < _MOST_ASKED:
                asked.append(row)
            else:
                more += 1
                found.add(self._told(row))
        found.recording = await self._holdings.complete(asked)
        async for part in pieces(asked):
            for row in part:
                found.add(self._told(row))
        notes = [f"{more} objects are counted without asking who holds them how"] if more else []
        return {**found.told(), "notes": notes}

    async def _all(self) -> AsyncIterator[Row]:
        holders: dict[bytes, Holder] = {}
        entries = self._store.entries
        async for part in pieces(list(entries.values())):
            for entry in part:
                if entries.get(entry.id) is entry:
                    for key in _needed_by(entry):
                        holder = holders.get(key)
                        if holder is None:
                            holder = holders[key] = self._holdings.holder(key)
                        yield holdings.row(entry, holdings.size_of(entry), holder)

    def _told(self, row: Row) -> dict[str, Any]:
        entry, holder = row.entry, row.holder
        known = entry.here or (entry.away is not None and entry.away.size)
        return {
            "object_id": entry.id.hex(),
            "object_size": row.size if known else -1,
            "task_status": "NIL" if ids.is_actor_id(entry.id) else "FINISHED" if known else "PENDING",
            "attempt_number": 1,
            "reference_type": _reference_type(entry, row),
            "call_site": row.site or NOT_RECORDED,
            "type": _TYPES.get(holder.kind, holder.kind.upper().replace(" ", "_")),
            "pid": holder.pid,
            "ip": self._ip,
            "node_id": self._node_id,
            "where": None if ids.is_actor_id(entry.id) else self._holdings.where(entry),
            "_row": row,
            "_key": f"{entry.id.hex()}.{self._store.node:06x}.{holder.kind}.{holder.prefix.hex()}",
        }


def _needed_by(entry: Entry) -> list[bytes]:
    found = list(entry.holders)
    if entry.containers:
        found.append(OTHER_OBJECTS)
    elif not found and (entry.here or entry.waiting):
        found.append(NODED)
    return found


def _reference_type(entry: Entry, row: Row) -> str:
    if ids.is_actor_id(entry.id):
        return "ACTOR_HANDLE"
    if "argument of" in row.hold:
        return "USED_BY_PENDING_TASK"
    if row.holder.kind == "object":
        return "CAPTURED_IN_OBJECT"
    if "view" in row.hold:
        return "PINNED_IN_MEMORY"
    return "LOCAL_REFERENCE" if row.holder.kind in _TYPES else "PINNED_IN_MEMORY"
