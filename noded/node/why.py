"""Why something waits, or what became of it, as far as this node knows: ``noded why`` begins here.

Of a task or an object its home knows, of which the process that made it is asked, and the node itself where that does
not answer; of actors, placement groups, nodes and jobs the head (``head/why.py``), which asks nodes in turn. Kinds are
those of ``policy/reasons.py`` and ``policy/deaths.py``; every answer has ``state``, ``kind``, ``reason``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from noded import ids
from noded.config import process_state
from noded.node.actor_host import NodeActorHost
from noded.node.cluster_view import ClusterView
from noded.node.control import EXPLAIN_SECONDS, ControlServer
from noded.node.death_book import DeathBook
from noded.node.lease_router import LeaseRouter
from noded.node.leases import Leases
from noded.node.object_store import ObjectStore
from noded.node.readers import Readers
from noded.node.session import Client
from noded.node.workers import Worker, WorkerPool
from noded.policy import reasons

_HEAD_SECONDS = 2.0
_HOP_SECONDS = 0.5
_SHOWN = 20
Answer = dict[str, Any]
HeadQuestion = Callable[[str, dict[str, Any]], Awaitable[Any]]


class NodeWhy:
    """``running(worker)``: what it runs now (``running.py``), for a thread. ``head_problem()``: why
    the head cannot be asked, "" when it can.
    """

    def __init__(
        self,
        clients: dict[bytes, Client],
        control: ControlServer,
        leases: Leases,
        router: LeaseRouter,
        pool: WorkerPool,
        store: ObjectStore,
        host: NodeActorHost,
        view: ClusterView,
        book: DeathBook,
        readers: Readers,
        *,
        node_id: str,
        running: Callable[[str], list[dict[str, Any]]],
        ask_head: HeadQuestion,
        head_problem: Callable[[], str],
    ):
        self._clients = clients
        self._control = control
        self._leases = leases
        self._router = router
        self._pool = pool
        self._store = store
        self._host = host
        self._view = view
        self._book = book
        self._readers = readers
        self._node_id = node_id
        self._running = running
        self._ask_head = ask_head
        self._head_problem = head_problem

    # ------------------------------------------------------------ questions

    async def ask(self, client: Client | None, args: dict[str, Any]) -> Answer:
        """From a client of this node, or a tool: ``id`` is what a user has typed. Raises ValueError."""
        text = str(args.get("id", "")).strip()
        id_ = ids.parse(text)
        if id_ is not None and text not in self._view.by_id and self._is_home(id_):
            return await self.made_here(id_)
        problem = self._head_problem()
        if not problem:
            try:
                told: Answer = await asyncio.wait_for(self._ask_head("why", {"id": text}), _HEAD_SECONDS)
                return told
            except TimeoutError:
                problem = f"it has not answered within {_HEAD_SECONDS:g} s"
        return await self._without_head(text, problem)

    def _is_home(self, id_: bytes) -> bool:
        return ids.node_of(id_) == self._view.number and not ids.is_actor_id(id_) and not ids.is_group_id(id_)

    async def explain(self, args: dict[str, Any]) -> Answer:
        """From the head: of a task or object that was made here."""
        return await self.made_here(bytes.fromhex(args["id"]))

    async def explain_at(self, args: dict[str, Any]) -> Answer:
        """From the head, of what this node has: a worker, an actor or group that waits, a class of tasks, or what is in
        its book. Empty when it has none.
        """
        if "worker" in args:
            return await self._worker(str(args["worker"]))
        if "actor" in args:
            return self._leases.explain_actor(bytes.fromhex(args["actor"]))
        if "group" in args:
            return self._leases.explain_group(bytes.fromhex(args["group"]))
        if "cls" in args:
            return self._leases.explain(bytes.fromhex(args["client"]), int(args["cls"]))
        return self._book.find(str(args["dead"])) or {}

    # ------------------------------------------------------------ tasks and objects made here

    async def made_here(self, id_: bytes) -> Answer:
        client = self._clients.get(ids.prefix_of(id_))
        if client is None:
            return await self._without_maker(id_)
        if client.session is None or not client.told:
            reason = f"the process that made it (pid {client.pid}) is not connected now"
            return await self._of_node(client, id_, reasons.OWNER_AWAY, reason)
        try:
            told = await self._control.explain(client, id_)
        except TimeoutError:
            return await self._busy_maker(client, id_)
        if told["kind"] == reasons.LEASE_PENDING:
            told |= await self._explain_lease(client.prefix, told["class"])
            if told.get("last_attempt"):
                told["reason"] += f"; its last attempt ended so: {told['last_attempt']['reason']}"
        elif told["kind"] == reasons.RUNNING:
            await self._look_at_worker(told)
        elif told["kind"] == reasons.ACTOR_NOT_READY:
            of_actor = await self.ask(None, {"id": told["actor"]})
            told["reason"] += f": {of_actor['reason']}"
            told["actor_why"] = of_actor
        return told

    async def _explain_lease(self, prefix: bytes, cls: int) -> Answer:
        """Where it was sent they know better; what is short everywhere is known here."""
        told = self._leases.explain(prefix, cls)
        demand = self._leases.demands.get((prefix, cls))
        everywhere = demand is not None and bool(demand.why[0])
        sent = self._router.where_sent(prefix, cls)
        for node in sent:
            there = await self._at(node, {"client": prefix.hex(), "cls": cls})
            if there and not (everywhere and there["kind"] == reasons.RESOURCES_BUSY):
                told |= {**there, "node": node}
                break
        if sent:
            told["asked_of"] = sent
        return told or {"reason": "it is being given a worker"}

    async def _look_at_worker(self, told: Answer) -> None:
        """A task that a worker has may wait there: for room for its result."""
        at = ids.node_of_worker(told["worker"])
        entry = self._view.entries.get(at)
        there = (
            await self._worker(told["worker"])
            if at == self._view.number
            else await self._at(entry.id if entry is not None else "", {"worker": told["worker"]})
        )
        for name in ("blocked", "running"):
            if name in there:
                told[name] = there[name]
        if there.get("kind") == reasons.STORE_FULL:
            told |= {"state": "pending", "kind": there["kind"], "reason": there["reason"]}

    async def _at(self, node: str, args: dict[str, Any]) -> Answer:
        """What another node says of its part, through the head; empty where that cannot be had now."""
        if self._head_problem() or not node:
            return {}
        try:
            asking = self._ask_head("why_at", {**args, "node": node})
            told: Answer = await asyncio.wait_for(asking, _HOP_SECONDS)
        except (TimeoutError, ValueError):
            return {}
        return told

    async def _without_maker(self, id_: bytes) -> Answer:
        """The process that made it has ended: what is left is in the book of who died running it, on whatever node."""
        task = ids.task_id(ids.prefix_of(id_), ids.seq_of(id_)).hex()
        found = self._book.find(task)
        if found is None and not self._head_problem():
            try:
                found = await asyncio.wait_for(self._ask_head("why_dead", {"id": task}), _HOP_SECONDS)
            except (TimeoutError, ValueError):
                found = None
        if found:
            return {**found, "state": "failed", "kind": reasons.FAILED}
        reason = "the process that made it has ended, and with it what it had submitted"
        maker = self._book.find(ids.prefix_of(id_).hex())
        if maker is not None:
            reason = f"{reason}: {maker['reason']}"
        return {"state": "lost", "kind": reasons.OWNER_GONE, "reason": reason, **({"maker": maker} if maker else {})}

    async def _busy_maker(self, client: Client, id_: bytes) -> Answer:
        state = await self._readers.run(process_state, client.pid)
        how = "it is busy in code that holds Python's lock"
        if state is not None and state[0] in "Tt":
            how = f"it is stopped by a signal (`kill -CONT {client.pid}` lets it go on)"
        reason = (
            f"the process that made it (pid {client.pid}) does not answer within {EXPLAIN_SECONDS * 1000:g} ms: {how}"
        )
        return await self._of_node(client, id_, reasons.OWNER_BUSY, reason)

    async def _of_node(self, client: Client, id_: bytes, kind: str, reason: str) -> Answer:
        """What the node knows of a client's work without asking it."""
        entry = self._store.entries.get(id_)
        if entry is not None and entry.here:
            return {"state": "ready", "kind": reasons.READY, "reason": f"its value of {entry.size} bytes is here"}
        told: Answer = {"state": "pending", "kind": kind, "owner_pid": client.pid}
        waiting = []
        for (prefix, cls), demand in self._leases.demands.items():
            if prefix == client.prefix:
                why = self._leases.explain(prefix, cls)
                waiting.append({"name": demand.definition.name, **why})
        task = ids.task_id(client.prefix, ids.seq_of(id_)).hex()
        workers = []
        leased = [
            (x.worker.id, x.worker.record.pid) for x in self._leases.leases.values() if x.client is client and x.worker
        ]
        for wid, pid in leased[:_SHOWN]:
            runs = await self._readers.run(self._running, wid)
            workers.append({"worker": wid, "pid": pid, "running": runs})
            if any(one["task"] == task for one in runs):
                told |= {"state": "running", "kind": reasons.RUNNING, "worker": wid, "pid": pid}
        count = sum(one["leases_wanted"] for one in waiting if "leases_wanted" in one)
        reason += f"; its node knows: {len(leased)} workers have tasks of it, and it waits for {count} more"
        if waiting:
            reason += f", of {waiting[0]['name']}: {waiting[0]['kind']}, {waiting[0]['reason']}"
        return {**told, "reason": reason, "waiting": waiting[:_SHOWN], "workers": workers}

    # ------------------------------------------------------------ workers

    async def _worker(self, wid: str) -> Answer:
        """By its id, or by what it calls itself, which a driver does too."""
        worker = self._pool.workers.get(wid)
        if worker is None and len(wid) == 2 * ids.PREFIX_SIZE:
            prefix = bytes.fromhex(wid)
            worker, client = self._pool.by_prefix.get(prefix), self._clients.get(prefix)
            if client is not None and client.kind == "driver":
                return self._driver(client)
        if worker is None:
            return self._book.find(wid) or {}
        wid = worker.id
        record = worker.record
        told: Answer = {"state": "alive", "kind": reasons.RUNNING, "worker": wid, "pid": record.pid}
        told |= {"node": self._node_id, "job": record.job, "actor": record.actor.hex()}
        if running := await self._readers.run(self._running, wid):
            told["running"] = running[:_SHOWN]
        if worker.blocked:
            told["blocked"] = True
        return {**told, **(self._store_full(worker.prefix, record.pid) or self._phase(worker))}

    def _driver(self, client: Client) -> Answer:
        told: Answer = {"state": "alive", "kind": reasons.RUNNING, "pid": client.pid, "node": self._node_id}
        told |= {"job": client.job, "reason": f"it is the driver of job {client.job}, pid {client.pid}"}
        return {**told, **self._store_full(client.prefix, client.pid)}

    def _store_full(self, prefix: bytes, pid: int) -> Answer:
        """Empty unless a value of this process waits for room."""
        waits = self._store.space.waits_of(prefix)
        if not waits:
            return {}
        size, since = waits[0]
        figures = self._store.figures()
        reason = (
            f"a value that pid {pid} has made waits {time.monotonic() - since:.1f} s for {size} bytes of the object "
            f"store, where {figures['used']} of {figures['size']} are in use"
        )
        return {"kind": reasons.STORE_FULL, "reason": reason}

    def _phase(self, worker: Worker) -> Answer:
        record = worker.record
        if worker.client is None:
            return {"kind": reasons.WORKER_STARTING, "reason": f"it was forked (pid {record.pid}), and is starting"}
        if worker.job_sent is not None:
            kind, reason = self._pool.explain(worker.assigned)
            return {"kind": kind, "reason": reason}
        if record.kind:
            return {"reason": f"it is to end: {record.reason}"}
        if record.actor:
            return {"reason": f"it has the actor {record.actor.hex()}"}
        return {"reason": "it is leased to run tasks" if record.lease else "it is idle: the next task may have it"}

    # ------------------------------------------------------------ without the head

    async def _without_head(self, text: str, problem: str) -> Answer:
        away = f"the head is away ({problem})"
        told: Answer = {}
        id_ = ids.parse(text)
        hosted = self._host.hosted.get(id_) if id_ is not None else None
        if hosted is not None and id_ is not None:
            told = self._leases.explain_actor(id_)
            if hosted.lease.worker is not None:
                told = await self._worker(hosted.lease.worker.id)
                if not hosted.alive:
                    told |= {"kind": reasons.CONSTRUCTOR, "reason": f"its constructor runs, pid {told['pid']}"}
        elif id_ is not None and ids.is_group_id(id_):
            told = self._leases.explain_group(id_)
        elif id_ is None:
            told = await self._worker(text) or self._node(text)
        if told:
            return {"state": "pending", **told, "problem": f"{away}: this is what this node alone knows"}
        if id_ is None and not ids.is_worker_or_job(text):
            raise ValueError(reasons.no_id(text))
        return {"state": "pending", "kind": reasons.HEAD_AWAY, "reason": f"{away}, and only it knows: ask again later"}

    def _node(self, word: str) -> Answer:
        for entry in self._view.entries.values():
            if word in (entry.id, entry.name, str(entry.number)):
                kind = {"AWAY": reasons.NODE_AWAY, "DRAINING": reasons.NODE_DRAINING}.get(entry.state, reasons.RUNNING)
                reason = f"node {entry.name} was {entry.state} when the head last told: {entry.reason or 'all well'}"
                return {"state": entry.state.lower(), "kind": kind, "reason": reason, "node": entry.id}
        return {}
