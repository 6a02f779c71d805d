"""The stacks of workers all over the cluster: each node is asked, for only it knows what its workers run."""

from __future__ import annotations

import asyncio
from typing import Any

from noded.head.nodes import NodeRecord, NodeTable

_NODE_SECONDS = 5.0


async def ask_stacks(nodes: NodeTable, args: dict[str, Any]) -> dict[str, Any]:
    """``stacks`` of all nodes that answer, and ``problems`` of those that do not."""

    async def of(node: NodeRecord) -> tuple[list[dict[str, Any]], str]:
        problem = f"it is away: {node.reason}"
        if node.api is not None:
            try:
                return await asyncio.wait_for(node.api.ask("stack", args), _NODE_SECONDS), ""
            except TimeoutError:
                problem = f"it has not answered within {_NODE_SECONDS:g} s"
            except ValueError as refusal:
                problem = str(refusal)
        return [], f"node {node.name} was not asked: {problem}"

    there = [node for node in nodes.records.values() if node.id and node.state != "DEAD"]
    answers = await asyncio.gather(*map(of, there))
    return {
        "stacks": [stack for found, _ in answers for stack in found],
        "problems": [problem for _, problem in answers if problem],
    }
