"""Which questions this node is asked, by its clients and by the head, and who answers: a component, or the head.

A question about the whole cluster goes to the head, which asks each node its part of it.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Coroutine
from typing import Any

from noded.node import timeline
from noded.node.control import Question
from noded.node.session import Client
from noded.parts import Parts
from noded.policy.holdings import MEMORY_SECONDS, merge, wanted_of
from noded.wire import cluster_messages as c

_OF_THE_HEAD = (
    "nodes",
    "resources",
    "get_actor",
    "named_actors",
    "await_actor",
    "actor_info",
    "placement_groups",
    "get_placement_group",
    "await_placement_group",
    "drain",
    "cluster",
)


class Questions:
    def __init__(self, parts: Parts):
        self._parts = parts

    def of_clients(self) -> dict[str, Question]:
        """Once all who answer are there, but for records and why."""
        parts = self._parts
        return {
            **{what: self._forward(what) for what in _OF_THE_HEAD},
            **parts.view.questions(),
            "await_package": parts.packages.ask_await,
            "timeline": self._ask_timeline,
            "logs": parts.logs.ask,
            "log_level": parts.logs.ask_level,
            "stack": parts.stacks.ask,
            "why": lambda client, args: parts.why.ask(client, args),
            "memory": self._ask_memory,
            "state": lambda client, args: parts.records.state.ask(args),
            "state_summary": lambda client, args: parts.records.state.ask_summary(args),
        }

    def of_the_head(self) -> dict[str, Callable[[dict[str, Any]], Coroutine[Any, Any, Any]]]:
        """Once logs and packages are there."""
        parts = self._parts
        return {
            "state": lambda args: parts.records.state.tell(args),
            "state_summary": lambda args: parts.records.state.tell_summary(args),
            "drivers": lambda args: parts.records.state.tell_drivers(args),
            "explain": lambda args: parts.why.explain(args),
            "stack": lambda args: parts.stacks.tell(args),
            "explain_at": lambda args: parts.why.explain_at(args),
            "memory": self._tell_memory,
            "status": self._tell_status,
            "timeline": self._tell_timeline,
            **parts.logs.told(),
            "actor_payload": self._tell_actor_payload,
            "package": parts.packages.tell,
            "job_config": self._tell_job_config,
        }

    def _forward(self, what: str) -> Question:
        async def ask(client: Client | None, args: dict[str, Any]) -> Any:
            return await self._parts.head_side.ask(what, args)

        return ask

    async def _ask_timeline(self, client: Client | None, args: dict[str, Any]) -> Any:
        """Of all nodes, as far as they answer."""
        return await self._parts.head_side.ask("timeline", {})

    async def _ask_memory(self, client: Client | None, args: dict[str, Any]) -> Any:
        """Of the cluster; of this node alone while the head is away."""
        wanted_of(args)
        if not self._parts.head_problem():
            try:
                return await asyncio.wait_for(self._parts.head_side.ask("memory", args), MEMORY_SECONDS)
            except TimeoutError:
                pass
        told = merge([await self._tell_memory(args)], **wanted_of(args))
        return {**told, "problem": "the head does not answer: this is what this node alone has"}

    async def _tell_memory(self, args: dict[str, Any]) -> Any:
        parts = self._parts
        told = await parts.holdings.report(**wanted_of(args))
        return {"node": parts.number, "name": parts.config.node_name, "id": parts.node_id, **told}

    async def _tell_status(self, args: dict[str, Any]) -> Any:
        return self._parts.view.status()

    async def _tell_timeline(self, args: dict[str, Any]) -> Any:
        parts = self._parts
        return await parts.readers.run(lambda: timeline.events(parts.pages.read(), parts.node_ip))

    async def _tell_actor_payload(self, args: dict[str, Any]) -> Any:
        """Class and arguments of an actor here, as base64; empty where they are not kept any more."""
        hosted = self._parts.host.hosted.get(bytes.fromhex(args["id"]))
        return base64.b64encode(hosted.payload if hosted is not None else b"").decode()

    async def _tell_job_config(self, args: dict[str, Any]) -> Any:
        config = self._parts.jobs.configs.get(str(args["job"]))
        return c.as_text(config) if config is not None else ""
