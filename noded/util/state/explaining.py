"""Asking the cluster about one thing: ``explain(id)``."""

from __future__ import annotations

from typing import Any

from noded.client.runtime import runtime


def explain(id: Any) -> dict[str, Any]:
    """Why a task, object, actor or placement group waits, or what became of it: a dict with ``kind`` (of the closed
    list in docs/why.md), ``reason``, ``state``, and what else is known. ``id``: a ref, a handle, a placement group, or
    an id in hex. Raises ValueError for what is no id.
    """
    found = id if isinstance(id, str) else id_of(id)
    answer: dict[str, Any] = runtime().ask("why", id=found)
    return answer


def held(sort_by: str = "size", group_by: str = "holder", limit: int = 100) -> dict[str, Any]:
    """Internal: who holds what in the cluster, as `noded memory --json` shows it; see docs/memory.md."""
    answer: dict[str, Any] = runtime().ask("memory", sort_by=sort_by, group_by=group_by, limit=limit)
    return answer


def id_of(thing: Any) -> str:
    """In hex, of a ref, a handle, a placement group, or what has an id. Raises ValueError."""
    for name in ("_actor_id", "id"):
        inner = getattr(thing, name, None)
        if inner is not None and hasattr(inner, "hex"):
            return str(inner.hex())
    if hasattr(thing, "hex"):
        return str(thing.hex())
    raise ValueError(f"{thing!r} has no id: give a ref, a handle, a placement group, or an id in hex")
