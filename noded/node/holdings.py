"""Who holds what on this node: a row for each object and holder, with sums for each holder.

Reads the store, changes nothing, and goes through it in pieces, so that the loop serves others meanwhile; for each
object nothing is made that the garbage collector would count, as it would look at the whole store then. How a process
holds what it holds, and which line made its ref, that process says (``client/holding.py``); one that does not answer in
time is listed with what is known here. Which rows come first is decided in ``policy/holdings.py``.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Awaitable, Iterable
from typing import Any, Protocol

import msgspec

from noded import ids
from noded.lifecycle import pieces
from noded.node.actor_host import NodeActorHost
from noded.node.entry import Entry
from noded.node.object_store import ObjectStore
from noded.node.session import Client
from noded.node.workers import WorkerPool
from noded.policy.holdings import MOST_GROUPS, Rank, rank
from noded.wire import messages as m

ANSWER_SECONDS = 1.0
"""All clients are asked at once, and have so long."""
_BATCH = 2000
OTHER_OBJECTS, NODED = b"object", b"noded"
"""Who needs what no process holds."""
_NO_PROCESS = {OTHER_OBJECTS: ("object", "other objects"), NODED: ("noded", "noded")}
_CONTAINERS_SHOWN = 3
_UNKNOWN_SITE = "(not recorded)"


class Ask(Protocol):
    def __call__(
        self, client: Client, wanted: list[bytes], seconds: float, *, how: bool
    ) -> Awaitable[dict[str, Any]]: ...


class Holder(msgspec.Struct, eq=False):
    kind: str
    """``driver``, ``worker``, ``actor``, ``forked child``, ``node``, ``transfer``, ``object``, ``noded``."""
    text: str
    pid: int = 0
    job: str = ""
    peer: int = 0
    """Of a node: its number."""
    client: Client | None = None
    silent: str = ""
    """Why it does not say how it holds what it holds."""
    size: int = 0
    """Of all that it holds."""
    objects: int = 0
    prefix: bytes = b""
    """By which the store knows it."""
    seen: list[bytes] = []
    """All that it holds, where the sites of all are asked for."""
    sizes: list[int] = []


class Row(msgspec.Struct, eq=False):
    entry: Entry
    size: int
    holder: Holder
    hold: str
    inside: list[bytes] = []
    """Ids of some that contain it."""
    site: str = ""


def row(entry: Entry, size: int, holder: Holder) -> Row:
    """``complete`` says more of it."""
    return Row(entry, size, holder, _HOLDS.get(holder.kind, "local reference"))


def size_of(entry: Entry) -> int:
    """Bytes, as far as this node knows."""
    away = entry.away
    return entry.size if entry.here or away is None else away.size


class _Tally:
    """The sums, and the rows that come first."""

    def __init__(self, sort_by: str, limit: int, now: float, *, keep_all: bool):
        self.holders: dict[bytes, Holder] = {}
        self.now = now
        self.objects = 0
        """Whose value is here."""
        self.size = 0
        self.holds = 0
        self._sort_by = sort_by
        self._limit = limit
        self._keep_all = keep_all
        self._first: list[tuple[Rank, int, int, Entry, Holder]] = []

    def add(self, entry: Entry, size: int, holder: Holder) -> None:
        self.holds += 1
        holder.size += size
        holder.objects += 1
        if self._keep_all and holder.client is not None:
            holder.seen.append(entry.id)
            holder.sizes.append(size)
        key = rank(self._sort_by, size, self.now - entry.since, holder.pid)
        if len(self._first) < self._limit:
            heapq.heappush(self._first, (key, -self.holds, size, entry, holder))
        elif self._limit and key > self._first[0][0]:
            heapq.heapreplace(self._first, (key, -self.holds, size, entry, holder))

    def rows(self) -> list[Row]:
        rows = []
        for _, _, size, entry, holder in sorted(self._first, key=lambda each: each[:2], reverse=True):
            rows.append(row(entry, size, holder))
        return rows


class Holdings:
    def __init__(
        self,
        store: ObjectStore,
        clients: dict[bytes, Client],
        pool: WorkerPool,
        host: NodeActorHost,
        ask: Ask,
    ):
        self._store = store
        self._clients = clients
        self._pool = pool
        self._host = host
        self._ask = ask

    async def report(self, *, sort_by: str, group_by: str, limit: int) -> dict[str, Any]:
        """``bytes``: of the objects whose value is here; ``holds``: how many rows there would be without a limit."""
        entries = list(self._store.entries.values())
        tally = _Tally(sort_by, limit, time.monotonic(), keep_all=group_by == "site")
        known = self._store.entries
        async for part in pieces(entries):
            for entry in part:
                if not ids.is_actor_id(entry.id) and known.get(entry.id) is entry:
                    self._look_at(entry, tally)
        rows = tally.rows()
        await self._find_containers(entries, rows)
        recording = await self.complete(rows, tally.holders.values())
        holders = heapq.nlargest(MOST_GROUPS, tally.holders.values(), key=lambda h: h.size)
        figures = self._store.figures()
        told: dict[str, Any] = {
            "store": {name: figures[name] for name in ("used", "size", "on_disk")},
            "objects": tally.objects,
            "bytes": tally.size,
            "holds": tally.holds,
            "holders": [_describe(holder) for holder in holders],
            "rows": [self._told(row, tally.now) for row in rows],
            "recording": recording,
        }
        if group_by == "site":
            told["sites"], told["recording"] = await self._sites(holders)
        return told

    # ------------------------------------------------------------ what this daemon knows

    async def _find_containers(self, entries: list[Entry], rows: Iterable[Row]) -> None:
        wanted = {row.entry.id: row for row in rows if row.holder.kind == "object"}
        if not wanted:
            return
        async for part in pieces(entries):
            for entry in part:
                for id_ in entry.nested:
                    row = wanted.get(id_)
                    if row is not None and len(row.inside) < _CONTAINERS_SHOWN:
                        row.inside.append(entry.id)

    def _look_at(self, entry: Entry, tally: _Tally) -> None:
        here, size = entry.here, size_of(entry)
        if here:
            tally.objects += 1
            tally.size += size
        holders = tally.holders
        for prefix in entry.holders:
            key = b"serve" if prefix.startswith(b"serve") else prefix
            holder = holders.get(key)
            if holder is None:
                holder = holders[key] = self.holder(key)
            tally.add(entry, size, holder)
        if entry.containers:
            tally.add(
                entry, size, holders.get(OTHER_OBJECTS) or holders.setdefault(OTHER_OBJECTS, self.holder(OTHER_OBJECTS))
            )
        elif not entry.holders and (here or entry.waiting):
            tally.add(entry, size, holders.get(NODED) or holders.setdefault(NODED, self.holder(NODED)))

    def _kept(self, entry: Entry) -> str:
        """Why it is here, although nobody here holds it."""
        away = entry.away
        if entry.moving or entry.coming:
            return "it goes to disk, or comes back"
        if away is not None and away.pinned:
            return "made here, held at its home"
        if away is not None and away.cached:
            return "a copy that goes when there is no room"
        if entry.waiting or (away is not None and away.pulling):
            return "on its way here"
        return "until all processes have told what they hold" if self._store.recovering else "about to be freed"

    def holder(self, prefix: bytes) -> Holder:
        """Who this is: a client, or what else holds objects."""
        found = self._named(prefix)
        found.prefix = prefix
        return found

    def _named(self, prefix: bytes) -> Holder:
        if prefix in _NO_PROCESS:
            return Holder(*_NO_PROCESS[prefix])
        if prefix.startswith(b"serve"):
            return Holder("transfer", "transfers to other nodes")
        if prefix.startswith(b"fork"):
            parent = self._clients.get(prefix[4 : 4 + ids.PREFIX_SIZE])
            pid = parent.pid if parent is not None else 0
            return Holder("forked child", f"forked children of pid {pid}", pid, parent.job if parent else "")
        client = self._clients.get(prefix)
        if client is None:
            return Holder("worker", f"a process that has ended ({prefix.hex()})", silent="it has ended")
        if client.kind == "node":
            return Holder("node", f"node {ids.node_of(prefix)}", peer=ids.node_of(prefix))
        kind, text = client.kind, f"{client.kind} pid {client.pid}"
        worker = self._pool.by_prefix.get(prefix)
        if worker is not None and worker.record.actor:
            hosted = self._host.hosted.get(worker.record.actor)
            name = hosted.spec.class_name if hosted is not None and hosted.spec is not None else ""
            kind, text = "actor", f"actor {name + ' ' if name else ''}pid {client.pid}"
        if client.detached:
            text += ", which has left"
        return Holder(kind, text, client.pid, client.job, client=client, silent=_silence(client))

    # ------------------------------------------------------------ what processes say

    async def complete(self, rows: list[Row], holders: Iterable[Holder] = ()) -> bool:
        """Into the rows: how, and by which line. True when lines are recorded anywhere, also by one of ``holders``."""
        by_holder: dict[Holder, list[Row]] = {holder: [] for holder in holders if holder.client is not None}
        for row in rows:
            if row.holder.kind == "noded":
                row.hold = self._kept(row.entry)
            if row.holder.client is not None:
                by_holder.setdefault(row.holder, []).append(row)
        answers = await asyncio.gather(*(self._complete_of(holder, own) for holder, own in by_holder.items()))
        return any(answers)

    async def _complete_of(self, holder: Holder, rows: list[Row]) -> bool:
        assert holder.client is not None
        until, recording = time.monotonic() + ANSWER_SECONDS, False
        for at in range(0, len(rows), _BATCH):
            part = rows[at : at + _BATCH]
            told = await self._told_by(holder, [row.entry.id for row in part], until, how=True)
            if told is None:
                for row in rows[at:]:
                    row.hold = "detached program" if holder.client.detached else f"held; {holder.silent}"
                break
            for index, text in told["holds"]:
                part[index].hold = text
            if told["sites"] is not None:
                recording = True
                for row, site in zip(part, told["of"], strict=True):
                    row.site = told["sites"][site] if site >= 0 else ""
        return recording

    async def _told_by(self, holder: Holder, wanted: list[bytes], until: float, *, how: bool) -> dict[str, Any] | None:
        if holder.silent:
            return None
        assert holder.client is not None
        try:
            return await self._ask(holder.client, wanted, max(0.0, until - time.monotonic()), how=how)
        except TimeoutError:
            holder.silent = "does not answer"
            return None

    async def _sites(self, holders: Iterable[Holder]) -> tuple[list[dict[str, Any]], bool]:
        sums: dict[str, list[int]] = {}

        def add(site: str, size: int) -> None:
            found = sums.setdefault(site, [0, 0])
            found[0] += size
            found[1] += 1

        async def add_all(holder: Holder) -> bool:
            until, recording = time.monotonic() + ANSWER_SECONDS, False
            for at in range(0, len(holder.seen), _BATCH):
                part = holder.seen[at : at + _BATCH]
                told = await self._told_by(holder, part, until, how=False)
                known = told is not None and told["sites"] is not None
                recording = recording or known
                for index, size in enumerate(holder.sizes[at : at + _BATCH]):
                    site = told["of"][index] if told is not None and known else -1
                    add(told["sites"][site] if told is not None and site >= 0 else _UNKNOWN_SITE, size)
                await asyncio.sleep(0)
            return recording

        recording = any(await asyncio.gather(*(add_all(holder) for holder in holders if holder.seen)))
        most = heapq.nlargest(MOST_GROUPS, sums.items(), key=lambda each: each[1])
        return [{"site": site, "bytes": size, "objects": count} for site, (size, count) in most], recording

    # ------------------------------------------------------------ as JSON

    def _told(self, row: Row, now: float) -> dict[str, Any]:
        entry, holder = row.entry, row.holder
        return {
            "id": entry.id.hex(),
            "size": row.size,
            "where": self.where(entry),
            "copies": [*([self._store.node] if entry.here else []), *(entry.away.nodes if entry.away else ())],
            "kind": holder.kind,
            "holder": holder.text,
            "pid": holder.pid,
            "node": self._store.node,
            "peer": holder.peer,
            "job": holder.job,
            "hold": row.hold,
            "inside": [id_.hex() for id_ in row.inside],
            "age_s": round(max(0.0, now - entry.since), 3),
            "site": row.site,
        }

    def where(self, entry: Entry) -> str:
        if entry.offset >= 0:
            return "both" if entry.disk is not None else "memory"
        if entry.disk is not None:
            return "disk"
        away = entry.away
        if away is not None and away.lost:
            return "lost"
        if (away is not None and away.nodes) or ids.node_of(entry.id) != self._store.node:
            return "elsewhere"
        return "pending"


_HOLDS = {
    "node": "held by another node",
    "forked child": "forked child",
    "transfer": "on its way to another node",
    "object": "inside another object",
}


def _silence(client: Client) -> str:
    if client.detached:
        return "it has left the cluster"
    if client.session is None or not client.told:
        return "is not connected now"
    return "" if client.version >= m.MEMORY_SINCE else "has an older noded"


def _describe(holder: Holder) -> dict[str, Any]:
    return {
        "holder": holder.text,
        "kind": holder.kind,
        "pid": holder.pid,
        "job": holder.job,
        "peer": holder.peer,
        "bytes": holder.size,
        "objects": holder.objects,
        "silent": holder.silent,
    }
