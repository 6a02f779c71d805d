"""What became of a task whose maker has ended: from the traces that its runs have left on nodes.

A trace is what one node knows: ``run``, the last one that it has a record of, and ``death``, that of a worker which ran
it. How often it was to be tried, and with what result it ended, only its maker knew.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from noded.policy import deaths, reasons

RETURNED = "returned"
RAISED = "raised"
CANCELLED = "cancelled"
DIED = "died"
RUNNING = "running"

_NOT_TRIED_AGAIN = (deaths.JOB_ENDED, deaths.OWNER_ENDED, deaths.CANCELLED)
Trace = dict[str, Any]


def told(task: str, traces: Iterable[Trace], ended: str) -> dict[str, Any]:
    """The answer of `why`. ``task``: its id in hex. ``ended``: how its maker has, in words."""
    known = list(traces)
    run = max((trace["run"] for trace in known if trace.get("run")), key=lambda run: run["start"], default=None)
    death = max((trace["death"] for trace in known if trace.get("death")), key=lambda d: d["ended_at"], default=None)
    if run is not None and run["outcome"] != DIED and (death is None or run["start"] > _began(task, death)):
        return _of_run(run, ended)
    gone = {"state": "lost", "kind": reasons.OWNER_GONE, "reason": ended}
    if death is None:
        if run is None:
            return gone
        death = {"kind": deaths.UNSEEN, "reason": f"its worker (pid {run['pid']}) has ended while it ran"}
    if death["kind"] in _NOT_TRIED_AGAIN:
        return {**death, "state": "failed", "kind": reasons.FAILED}
    gone["reason"] = f"{ended}; before that its last attempt, of those that are known, ended so: {death['reason']}"
    return {**gone, "last_attempt": death}


def _began(task: str, death: Trace) -> float:
    """When the run did that this death has ended."""
    started: list[float] = [run["since"] for run in death.get("running", ()) if run["task"] == task]
    return max(started) if started else float(death["ended_at"])


def _of_run(run: Trace, ended: str) -> dict[str, Any]:
    facts = {"name": run["name"], "worker": run["worker"], "pid": run["pid"]}
    if run["outcome"] == RUNNING:
        return {**facts, "state": "running", "kind": reasons.RUNNING, "reason": f"pid {run['pid']} runs it; {ended}"}
    if run["outcome"] == RETURNED:
        reason = f"its last run, by pid {run['pid']}, has returned; {ended}"
        return {**facts, "state": "ready", "kind": reasons.DONE_OR_DROPPED, "reason": reason}
    failed = {**facts, "state": "failed", "kind": reasons.FAILED}
    if run["outcome"] == CANCELLED:
        return {**failed, "cause": deaths.CANCELLED, "reason": f"it was cancelled; {ended}"}
    raised = run["error"] or "an error"
    return {**failed, "cause": reasons.RAISED, "reason": f"its last run, by pid {run['pid']}, has raised {raised}"}
