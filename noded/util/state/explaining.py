"""Asking the cluster about one thing: ``explain(id)``."""

from __future__ import annotations

from typing import Any

from noded.client.runtime import runtime
from noded.util.identify import id_of


def explain(id: Any) -> dict[str, Any]:
    """Why something waits, or what became of it: a dict with ``kind`` (of the closed lists in docs/why.md), ``reason``,
    ``state``, and what else is known. ``id``: a ref, a generator, a handle, a placement group; or the id of such, of a
    worker, job or node as text, or a node's name. Raises ValueError for what is no id.
    """
    answer: dict[str, Any] = runtime().ask("why", id=id_of(id))
    return answer


def held(sort_by: str = "size", group_by: str = "holder", limit: int = 100) -> dict[str, Any]:
    """Internal: who holds what in the cluster, as `noded memory --json` shows it; see docs/memory.md."""
    answer: dict[str, Any] = runtime().ask("memory", sort_by=sort_by, group_by=group_by, limit=limit)
    return answer
