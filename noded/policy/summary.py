"""Summaries of tasks, actors and objects, with Ray's names: made from rows or counts, and merged over nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

KINDS = ("tasks", "actors", "objects")
_MIB = 1 << 20
Summary = dict[str, Any]


def checked(args: Mapping[str, Any]) -> str:
    """The kind that a question is for. Raises ValueError."""
    kind = args.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"{kind!r} has no summary: kinds are {', '.join(KINDS)}")
    return str(kind)


def of_actors(rows: Iterable[Mapping[str, Any]]) -> Summary:
    classes: dict[str, Counter[str]] = {}
    total = 0
    for row in rows:
        total += 1
        classes.setdefault(row["class_name"], Counter())[row["state"]] += 1
    found = {name: {"class_name": name, "state_counts": dict(counts)} for name, counts in classes.items()}
    return {"summary": found, "total_actors": total, "summary_by": "class"}


def of_tasks(counts: Iterable[tuple[Any, ...]]) -> Summary:
    """``counts``: (type, name, submitted, done, failed, runs finished, runs failed, running) of the whole cluster: a
    task may be submitted on one node and run on another.
    """
    found: dict[str, Any] = {}
    totals: Counter[str] = Counter()
    for type_, name, *each in counts:
        states = {state: count for state, count in _states(type_, *each).items() if count}
        if states:
            # A task and a method may have the same name.
            key = f"{name} ({type_})" if name in found else name
            found[key] = {"func_or_class_name": name, "type": type_, "state_counts": states}
            totals[type_] += sum(states.values())
    return {"summary": found, **_task_totals(totals), "summary_by": "func_name"}


def _states(
    type_: str, submitted: int, done: int, failed: int, finished: int, raised: int, running: int
) -> dict[str, int]:
    """Ended as submitters count, running as workers do, and the rest waits. Constructors have no submitter: they count
    as workers do.
    """
    if type_ == "ACTOR_CREATION_TASK":
        return {"RUNNING": running, "FINISHED": finished, "FAILED": raised}
    waiting = max(0, submitted - done - failed - running)
    return {"PENDING": waiting, "RUNNING": running, "FINISHED": done, "FAILED": failed}


def _task_totals(totals: Mapping[str, int]) -> Summary:
    return {
        "total_tasks": totals.get("NORMAL_TASK", 0),
        "total_actor_tasks": totals.get("ACTOR_TASK", 0),
        "total_actor_scheduled": totals.get("ACTOR_CREATION_TASK", 0),
    }


class Objects:
    """Of one node: what is needed by whom, by the line that made the ref."""

    def __init__(self) -> None:
        self._sites: dict[str, Summary] = {}
        self._sizes: dict[str, int] = {}
        self._owners: dict[str, set[int]] = {}
        self.recording = False

    def add(self, row: Mapping[str, Any]) -> None:
        site = row["call_site"]
        found = self._sites.get(site)
        if found is None:
            found = self._sites[site] = {
                "total_objects": 0,
                "task_state_counts": Counter(),
                "task_attempt_number_counts": Counter(),
                "ref_type_counts": Counter(),
            }
            self._sizes[site], self._owners[site] = 0, set()
        found["total_objects"] += 1
        found["task_state_counts"][row["task_status"]] += 1
        found["task_attempt_number_counts"][str(row["attempt_number"])] += 1
        found["ref_type_counts"][row["reference_type"]] += 1
        self._sizes[site] += max(0, row["object_size"])
        if row["pid"]:
            self._owners[site].add(row["pid"])

    def told(self) -> Summary:
        """For ``merge``."""
        return {
            "sites": {
                site: {**found, "bytes": self._sizes[site], "workers": len(self._owners[site])}
                for site, found in self._sites.items()
            },
            "recording": self.recording,
        }


def merge(kind: str, parts: Iterable[Mapping[str, Any]]) -> Summary:
    """``parts``: of each node; for tasks ``{"counts": […]}``, see ``of_tasks``."""
    if kind == "tasks":
        sums: dict[tuple[str, str], list[int]] = {}
        for part in parts:
            for type_, name, *each in part["counts"]:
                known = sums.setdefault((type_, name), [0] * len(each))
                sums[type_, name] = [a + b for a, b in zip(known, each, strict=True)]
        return of_tasks((*key, *each) for key, each in sums.items())
    found: dict[str, Summary] = {}
    recording = False
    for part in parts:
        recording = recording or part["recording"]
        for site, told in part["sites"].items():
            _add_site(found.setdefault(site, _no_objects()), told)
    return {
        "summary": found,
        "total_objects": sum(site["total_objects"] for site in found.values()),
        "total_size_mb": sum(site["total_size_mb"] for site in found.values()),
        "callsite_enabled": recording,
        "summary_by": "callsite",
    }


def _no_objects() -> Summary:
    counts: dict[str, Any] = {
        name: {} for name in ("task_state_counts", "task_attempt_number_counts", "ref_type_counts")
    }
    return {"total_objects": 0, "total_size_mb": 0.0, "total_num_workers": 0, "total_num_nodes": 0, **counts}


def _add_site(found: Summary, told: Mapping[str, Any]) -> None:
    found["total_objects"] += told["total_objects"]
    found["total_size_mb"] += told["bytes"] / _MIB
    found["total_num_workers"] += told["workers"]
    found["total_num_nodes"] += 1
    for name in ("task_state_counts", "task_attempt_number_counts", "ref_type_counts"):
        for key, count in told[name].items():
            found[name][key] = found[name].get(key, 0) + count
