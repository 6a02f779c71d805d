"""``summarize_…``: how many there are of what, in which state. Counts are exact, also of what no list shows."""

from __future__ import annotations

from typing import Any

from noded.util.state.asking import ask, refuse_gaps


def summarize_kind(
    kind: str, address: str | None, timeout: float, raise_on_missing_output: bool
) -> dict[str, dict[str, Any]]:
    """``kind``: tasks, actors or objects. Raises RayStateApiException."""
    answer = ask("state_summary", {"kind": kind}, address, timeout)
    if raise_on_missing_output:
        refuse_gaps(answer["problems"])
    return {"cluster": {name: value for name, value in answer.items() if name not in ("problems", "notes")}}


def summarize_tasks(
    address: str | None = None, timeout: float = 30, raise_on_missing_output: bool = True, _explain: bool = False
) -> dict[str, dict[str, Any]]:
    """By function, or class and method; ``timeout``: seconds. Raises RayStateApiException."""
    return summarize_kind("tasks", address, timeout, raise_on_missing_output)


def summarize_actors(
    address: str | None = None, timeout: float = 30, raise_on_missing_output: bool = True, _explain: bool = False
) -> dict[str, dict[str, Any]]:
    """By class; ``timeout``: seconds. Raises RayStateApiException."""
    return summarize_kind("actors", address, timeout, raise_on_missing_output)


def summarize_objects(
    address: str | None = None, timeout: float = 30, raise_on_missing_output: bool = True, _explain: bool = False
) -> dict[str, dict[str, Any]]:
    """By the line that made the ref, where these are recorded; ``timeout``: seconds. Raises RayStateApiException."""
    return summarize_kind("objects", address, timeout, raise_on_missing_output)
