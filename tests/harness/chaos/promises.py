"""What a driver may be told, and when: every rule of the long run about errors, in one place, as pure functions.

A driver records each error that it gets (see load.py); `verdict` says whether that error was right, by what had been
done to the cluster until then. Exact values, order and counts are checked where they are got (work.py, logs.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from harness.chaos.schedule import KILLS_WORKERS, LOSES_A_NODE, RECOVERY

PATIENCE = 15.0
"""Seconds that a call may wait while nothing is faulty, on a machine that is busy."""
_BEFORE = 3.0
"""Seconds: what died so shortly before something was begun may still have been given to it."""

_OF_A_JOB = {
    "plain": ("ActorDiedError",),
    "counter": ("ActorDiedError",),
    "retried": ("ActorDiedError",),
    "group": ("TaskPlacementGroupRemoved",),
}
"""What ends with its driver's node, wherever it is itself: the jobs of a lost node's drivers end, though a driver may
live on and have more work done.
"""
_KILLED_BY = {
    "signal": frozenset({"worker-kill"}),
    "spawner": frozenset({"spawner-kill"}),
    "node_lost": LOSES_A_NODE,
    "unseen": KILLS_WORKERS,
    "": KILLS_WORKERS,
}
"""Causes of a worker's end, as errors name them."""
_LOST = frozenset({"ObjectLostError", "OwnerDiedError", "ObjectReconstructionFailedError"})


@dataclass
class Happening:
    """A fault that was carried out; `ended` is None while it lasts. Times are CLOCK_MONOTONIC."""

    kind: str
    node: str
    began: float
    ended: float | None = None
    pid: int = 0
    """Of the one process that it was done to."""


def verdict(error: dict[str, Any], history: Sequence[Happening]) -> str:
    """Why this error breaks a promise; "" when it is right."""
    op, name, since, seen = error["op"], error["error"], error["since"], error["seen"]
    killed = _killed(error, history)
    if name in _OF_A_JOB.get(op, ()) and happened(history, LOSES_A_NODE, since, seen, [error["home"]]):
        return ""
    if op == "once" and name in ("WorkerCrashedError", "WorkerNodeDiedError"):
        return "" if killed else "no such worker was killed since it was submitted"
    if op == "plain" and name == "ActorDiedError":
        return "" if killed else "no such worker was killed since it was last heard"
    if op == "counter" and name == "ActorUnavailableError":
        return "" if killed else "no worker was killed since it was last heard"
    if op == "get_actor" and name == "GetTimeoutError":
        return "" if calm_seconds(history, since, seen) < PATIENCE else "it was not answered while nothing was faulty"
    if op == "put" and name in _LOST:  # a result is made again, whatever is lost
        return "" if happened(history, LOSES_A_NODE, since, seen, [error["home"]]) else "its node was not lost"
    return f"{op} may never fail with {name}"


def _killed(error: dict[str, Any], history: Sequence[Happening]) -> bool:
    """Whether a worker was killed then: the one that the error names, if it does, and in the way that it says."""
    kinds = _KILLED_BY.get(error["kind"], frozenset())
    could = [each for each in history if each.kind != "worker-kill" or error["pid"] in (None, each.pid)]
    return happened(could, kinds, error["since"], error["seen"])


def happened(
    history: Iterable[Happening], kinds: Collection[str], since: float, seen: float, nodes: Collection[str] = ()
) -> bool:
    """Whether such a thing was going on between these moments, on any of these nodes (of all, when none is named)."""
    return any(
        each.kind in kinds
        and (not nodes or each.node in nodes)
        and each.began <= seen
        and (each.ended is None or each.ended >= since - _BEFORE)
        for each in history
    )


def calm_seconds(history: Sequence[Happening], since: float, until: float) -> float:
    """How long between these moments nothing was faulty, nor had been for RECOVERY seconds."""
    if any(each.ended is None for each in history):
        until = min(until, min(each.began for each in history if each.ended is None))
    calm, at = 0.0, since
    for began, ended in sorted((each.began, each.ended) for each in history if each.ended is not None):
        if ended + RECOVERY <= at:
            continue
        if began >= until:
            break
        calm += max(0.0, began - at)
        at = max(at, ended + RECOVERY)
    return calm + max(0.0, until - at)
