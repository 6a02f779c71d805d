"""One row per task, from what its submitter and its workers know, which may be processes of different nodes.

A worker knows its runs (these rows have a start), a submitter what has not ended and what has failed for
good. Of several runs the last one counts; a submitter that still waits for a place overrules a run that has failed: it
will run again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Row = dict[str, Any]

WAITS = ("PENDING_ARGS_AVAIL", "PENDING_NODE_ASSIGNMENT")
SENT = "SUBMITTED_TO_WORKER"


def merge(rows: Iterable[Row]) -> list[Row]:
    """In the order of ids. ``attempt_number`` counts the runs that are known here."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["task_id"], []).append(row)
    return [_one(each) for _, each in sorted(found.items())]


def _one(rows: list[Row]) -> Row:
    runs = sorted((row for row in rows if row["start_time_ms"]), key=lambda row: row["start_time_ms"])
    told = next((row for row in rows if not row["start_time_ms"]), None)
    if not runs:
        assert told is not None
        return {**told, "attempt_number": 0}
    last = {**runs[-1], "attempt_number": len(runs) - 1}
    if told is None or last["state"] in ("RUNNING", "FINISHED"):
        return last
    if told["state"] in WAITS:
        return {**told, "attempt_number": len(runs), "job_id": told["job_id"] or last["job_id"]}
    if told["state"] == "FAILED":  # its submitter knows best of what
        known = {key: told[key] for key in ("error_type", "error_message") if told[key]}
        return {**last, **known}
    return last
