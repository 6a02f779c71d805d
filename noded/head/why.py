"""Why something waits, or what became of it, as the head knows it; nodes are asked for their part (``node/why.py``).

Kinds are those of ``policy/reasons.py`` and ``policy/deaths.py``. Actors, groups and nodes are known here; of tasks and
objects their home is asked, of workers their node, and of what has ended with its maker the books of all nodes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from noded import ids
from noded.head.actor_placement import ActorPlacement
from noded.head.actors import ActorRecord, ActorTable
from noded.head.group_placement import GroupPlacement
from noded.head.nodes import NodeRecord, NodeTable
from noded.head.placement_groups import GroupTable
from noded.policy import deaths, last_run, reasons
from noded.resources import UNIT

_NODE_SECONDS = 0.25
"""What a node does not tell in this time is left out."""
_HOME_SECONDS = 0.6
"""Of the node where a task was made, which may have to ask others, by way of us."""
Answer = dict[str, Any]
Question = Callable[[dict[str, Any], int], Awaitable[Any]]


class HeadWhy:
    """``job_lives(job)``: its node's number and configuration, or None."""

    def __init__(
        self,
        nodes: NodeTable,
        actors: ActorTable,
        actor_places: ActorPlacement,
        groups: GroupTable,
        group_places: GroupPlacement,
        job_lives: Callable[[str], tuple[int, str] | None],
    ):
        self._nodes = nodes
        self._actors = actors
        self._actor_places = actor_places
        self._groups = groups
        self._group_places = group_places
        self._job_lives = job_lives

    def questions(self) -> dict[str, Question]:
        return {"why": self._ask_why, "why_at": self._ask_at, "why_traces": self._ask_traces}

    async def _ask_why(self, args: dict[str, Any], number: int) -> Answer:
        text = str(args.get("id", "")).strip()
        node = self._nodes.known(text)
        if node is not None:
            return self._node(node)
        if reason := self._nodes.why_dead(text):  # its number has another one by now
            return {"state": "dead", "node": text, **_lost(f"it is lost: {reason}")}
        text = text.lower().removeprefix("0x")
        id_ = ids.parse(text)
        if id_ is None:
            return await self._worker_or_job(text)
        if ids.is_group_id(id_):
            return await self._group(id_)
        if ids.is_actor_id(id_):
            return await self._actor(id_)
        return await self._of_home(id_)

    async def _ask_at(self, args: dict[str, Any], number: int) -> Answer:
        """What a node (``node``: its id) says of the part that it has."""
        node = self._nodes.by_id(str(args.pop("node", "")))
        return await self._at(node, args) if node is not None else {}

    async def _ask_traces(self, args: dict[str, Any], number: int) -> list[Answer]:
        """What all nodes but the one that asks know of the runs of this task."""
        return await self._from_all({"task": str(args["id"])}, but=number)

    async def _from_books(self, text: str) -> Answer:
        """A death, from whichever node's book."""
        return next(iter(await self._from_all({"dead": text})), {})

    async def _from_all(self, args: dict[str, Any], but: int = 0) -> list[Answer]:
        there = [node for number, node in self._nodes.records.items() if node.api is not None and number != but]
        answers = await asyncio.gather(*(self._at(node, args) for node in there))
        return [answer for answer in answers if answer]

    async def _at(self, node: NodeRecord, args: dict[str, Any]) -> Answer:
        if node.api is None:
            return {}
        try:
            told: Answer = await asyncio.wait_for(node.api.ask("explain_at", args), _NODE_SECONDS)
        except (TimeoutError, ValueError):
            return {}
        return told

    # ------------------------------------------------------------ nodes, workers, jobs

    def _node(self, node: NodeRecord) -> Answer:
        seconds = round(time.time() - node.since, 1)
        told: Answer = {"state": node.entry().state.lower(), "name": node.name, "node": node.id, "pid": node.pid}
        told |= {"address": node.address, "for_s": seconds}
        if node.state == "DEAD":
            return {**told, **_lost(f"it is lost: {node.reason}")}
        told["total"] = {name: amount / UNIT for name, amount in node.total.items()}
        told["used"] = {name: (a - node.available.get(name, 0)) / UNIT for name, a in node.total.items()}
        if node.state == "AWAY":
            reason = f"it is away since {seconds} s: {node.reason}; when it stays away it is taken for dead"
            return {**told, "kind": reasons.NODE_AWAY, "reason": reason}
        if node.draining:
            return {**told, "kind": reasons.NODE_DRAINING, "reason": "it gets no new work; what runs there goes on"}
        return {**told, "kind": reasons.RUNNING, "reason": f"it takes work; {node.waiting} things wait for room there"}

    async def _worker_or_job(self, text: str) -> Answer:
        if not ids.is_worker_or_job(text):
            raise ValueError(reasons.no_id(text))
        if len(text) == 8:
            return await self._job(text)
        node = self._nodes.records.get(ids.node_of_worker(text))
        if node is None:
            return _nothing(f"no node of this cluster has started a worker {text}")
        if node.state == "DEAD":
            lost = _lost(f"its node {node.name} ({node.id}) is lost: {node.reason}")
            return {"state": "dead", "node": node.id, **lost}
        if node.api is None:
            reason = f"its node {node.name} is away: {node.reason}"
            return {"state": "pending", "kind": reasons.NODE_AWAY, "reason": reason, "node": node.id}
        told = await self._at(node, {"worker": text})
        return told or _nothing(f"node {node.name} has no worker {text}, and none of its last dead ones was it")

    async def _job(self, job: str) -> Answer:
        lives = self._job_lives(job)
        if lives is None:
            found = await self._from_books(job)
            return found or _nothing(f"there is no job {job}, and none of those that ended last was it")
        number, entrypoint = lives
        node = self._nodes.records.get(number)
        told: Answer = {"state": "running", "kind": reasons.RUNNING, "entrypoint": entrypoint}
        told["reason"] = (
            "its driver runs" if node is not None else "its driver has ended, and a detached actor of it lives"
        )
        return {**told, "node": node.id if node is not None else ""}

    # ------------------------------------------------------------ tasks and objects

    async def _of_home(self, id_: bytes) -> Answer:
        """The node of the process that made its id knows."""
        home = self._nodes.records.get(ids.node_of(id_))
        if home is None:
            return _nothing("no node of this cluster has made this id")
        if home.state == "DEAD":
            task = ids.task_id(ids.prefix_of(id_), ids.seq_of(id_)).hex()
            ended = f"the node where it was made, {home.name}, is dead: {home.reason}"
            return last_run.told(task, await self._from_all({"task": task}), ended)
        return await self._ask_home(home, id_)

    async def _ask_home(self, home: NodeRecord, id_: bytes) -> Answer:
        away: Answer = {"state": "pending", "kind": reasons.NODE_AWAY, "node": home.id}
        if home.api is None:
            return {**away, "reason": f"the node where it was made, {home.name}, is away: {home.reason}"}
        try:
            told: Answer = await asyncio.wait_for(home.api.ask("explain", {"id": id_.hex()}), _HOME_SECONDS)
            return told
        except TimeoutError:
            problem = f"does not answer within {_HOME_SECONDS:g} s: its daemon is stopped, or very busy"
        except ValueError as error:
            problem = f"cannot answer: {error}"
        return {**away, "reason": f"the node where it was made, {home.name}, {problem}"}

    # ------------------------------------------------------------ groups

    async def _group(self, id_: bytes) -> Answer:
        group = self._groups.records.get(id_)
        if group is None:
            if self._groups.gone(id_):
                reason = self._groups.rejected.get(id_) or "it was removed, or who was to create it has ended"
                return {"state": "removed", "kind": reasons.GROUP_REMOVED, "reason": reason}
            return {"state": "not_created", "kind": reasons.NOT_CREATED, "reason": "nobody has created it (yet)"}
        told: Answer = {"state": group.state, "strategy": group.spec.strategy, "bundles": len(group.spec.bundles)}
        if group.state == "removed":
            return {**told, "kind": reasons.GROUP_REMOVED, "reason": group.reason or "it was removed"}
        found = self._group_places.why(id_)
        if found is None:
            if group.state == "created":
                where = ", ".join(sorted({self._name(number) for number in group.nodes}))
                return {**told, "kind": reasons.READY, "reason": f"its bundles are on {where}"}
            return {**told, "kind": reasons.STORAGE_AWAY, "reason": "it has its bundles; its record is being written"}
        told["kind"], told["reason"] = found
        if group.lost:
            told["reason"] += "; a node that had bundles of it is lost, and they are placed anew"
        if found[0] == reasons.RESERVING:
            for number in self._group_places.asked(id_):
                node = self._nodes.records.get(number)
                there = await self._at(node, {"group": id_.hex()}) if node is not None else {}
                if there.get("kind") == reasons.NEVER:
                    there["kind"] = reasons.INFEASIBLE
                if there:
                    return {**told, **there, "node": node.id if node is not None else ""}
        return told

    def _name(self, number: int) -> str:
        node = self._nodes.records.get(number)
        return f"node {node.name}" if node is not None else f"node {number}"

    # ------------------------------------------------------------ actors

    async def _actor(self, id_: bytes) -> Answer:
        record = self._actors.records.get(id_)
        if record is None:
            return await self._unknown_actor(id_)
        node = self._nodes.records.get(record.node)
        told: Answer = {
            "state": record.state,
            "actor": id_.hex(),
            "class_name": record.spec.class_name,
            "node": {"id": node.id, "name": node.name, "state": node.state, "reason": node.reason} if node else None,
            "restarts": record.restarts,
            "max_restarts": record.spec.max_restarts,
            "worker": record.worker,
            "pid": record.pid,
        }
        if record.state == "dead":
            told |= {
                "kind": record.kind or reasons.ENDED,
                "cause": record.kind,
                "reason": record.reason or "it has ended",
            }
            return told | (deaths.facts(record.death) if record.death is not None else {})
        told["kind"], told["reason"] = await self._actor_waits(record, node, told)
        if record.restarts and record.state != "alive":
            most = record.spec.max_restarts
            told["reason"] += f"; this is restart {record.restarts} of {most if most >= 0 else 'any number'}"
            if record.death is not None:
                told["last_death"] = {"kind": record.death.kind, "reason": record.death.reason} | deaths.facts(
                    record.death
                )
                told["reason"] += f", after {record.death.reason}"
        return told

    async def _unknown_actor(self, id_: bytes) -> Answer:
        """Most of those that have ended are forgotten here when the head starts anew; not in their nodes' books."""
        home = self._nodes.records.get(ids.node_of(id_))
        if home is None or home.state == "DEAD":
            found = await self._from_books(id_.hex())
            reason = "it has ended, or was never created: the node of its maker is gone"
            return found or {"state": "ended", "kind": reasons.ENDED, "reason": reason}
        found, by_maker = await asyncio.gather(self._from_books(id_.hex()), self._ask_home(home, id_))
        if found and by_maker["kind"] != reasons.NOT_CREATED:
            return found
        if by_maker["kind"] in (reasons.OWNER_GONE, reasons.DONE_OR_DROPPED):
            reason = f"it has ended, or was never created: {by_maker['reason']}"
            return {"state": "ended", "kind": reasons.ENDED, "reason": reason}
        return by_maker

    async def _actor_waits(self, record: ActorRecord, node: NodeRecord | None, told: Answer) -> tuple[str, str]:
        found = self._actor_places.why(record.spec.id)
        if found is not None:
            return found
        if record.written is not None and not record.written.done():
            return reasons.STORAGE_AWAY, "its record is not written yet: it is placed when the head's storage has it"
        if node is None:
            return reasons.STARTING, "a node is being chosen for it"
        if node.state == "AWAY":
            return reasons.NODE_AWAY, f"its node {node.name} is away: {node.reason}"
        if record.state == "alive":
            return reasons.RUNNING, f"it lives on node {node.name}, pid {record.pid}"
        if record.state == "starting":
            return reasons.CONSTRUCTOR, f"its constructor runs, pid {record.pid}"
        there = await self._at(node, {"actor": record.spec.id.hex()})
        if there:
            told |= there
            return there["kind"], there["reason"]
        return reasons.STARTING, f"it is on its way to node {node.name}"


def _nothing(reason: str) -> Answer:
    return {"state": "unknown_id", "kind": reasons.NO_SUCH_ID, "reason": reason}


def _lost(reason: str) -> Answer:
    return {"kind": deaths.NODE_LOST, "cause": deaths.NODE_LOST, "reason": reason}
