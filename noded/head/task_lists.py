"""One page of the tasks of all nodes: which ids may be on it, what everybody knows of these, and what of that is
wanted. See ``policy/task_pages.py``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from msgspec.structs import replace

from noded.head.nodes import NodeRecord
from noded.policy import task_pages
from noded.policy.query import NODE_SECONDS, Page, Query, part_of

Told = tuple[list[tuple[NodeRecord, Any]], list[str]]
"""Who has answered what, and why there is no answer of the others."""
Ask = Callable[[str, dict[str, Any], Iterable[NodeRecord], float], Awaitable[Told]]

_MORE_SECONDS = 1.0
"""For the second step, when the first has waited for a node that hangs."""


async def page(query: Query, nodes: list[NodeRecord], ask: Ask) -> Page:
    """``ask(what, arguments, nodes, seconds)``."""
    if len(nodes) == 1:  # it alone can say how many there are
        told, problems = await ask("state", {**query.arguments(), "alone": True}, nodes, NODE_SECONDS)
        found = part_of(told[0][1]) if told else Page()
        found.problems = problems
        return found
    until = time.monotonic() + NODE_SECONDS + _MORE_SECONDS
    asked, notes, problems = query, list[str](), list[str]()
    while True:
        told, away = await ask("state", asked.arguments(), nodes, min(NODE_SECONDS, until - time.monotonic()))
        problems += away
        parts = [part_of(answer) for _, answer in told]
        notes += (note for part in parts for note in part.notes)
        nodes = [node for node, _ in told]
        picked = task_pages.picked(asked, parts)
        rows: list[dict[str, Any]] = []
        if picked.ids:
            told, away = await ask("state", {**asked.arguments(), "ids": picked.ids}, nodes, until - time.monotonic())
            problems += away
            rows = [row for _, answer in told for row in answer["rows"]]
            notes += (note for _, answer in told for note in answer["notes"])
            nodes = [node for node, _ in told]
        found = await asyncio.to_thread(task_pages.page, query, picked, rows)
        # A page without rows helps nobody: what may have been wanted is not, so look at what comes behind it.
        if found.rows or not found.cursor or not query.limit or time.monotonic() > until - NODE_SECONDS:
            found.problems, found.notes = problems, list(dict.fromkeys(notes))
            return found
        asked = replace(query, cursor=found.cursor)
