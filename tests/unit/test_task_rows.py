"""One row per task, whoever tells of it."""

from __future__ import annotations

from typing import Any

import pytest

from noded.policy.task_rows import merge


def row(id_: str, state: str, start: int = 0, **more: Any) -> dict[str, Any]:
    return {"task_id": id_, "state": state, "start_time_ms": start, "job_id": "j" if start else "", **EMPTY, **more}


EMPTY = {"error_type": "", "error_message": ""}
DIED = row("a", "FAILED", 5, error_type="WORKER_DIED")


@pytest.mark.parametrize(
    ("rows", "state", "attempt"),
    [
        ([row("a", "PENDING_ARGS_AVAIL")], "PENDING_ARGS_AVAIL", 0),
        ([row("a", "SUBMITTED_TO_WORKER"), row("a", "RUNNING", 5)], "RUNNING", 0),
        ([row("a", "SUBMITTED_TO_WORKER"), row("a", "FINISHED", 5)], "FINISHED", 0),  # its answer is on its way
        ([row("a", "FAILED", 5), row("a", "RUNNING", 9)], "RUNNING", 1),
        ([row("a", "RUNNING", 9), row("a", "FAILED", 5), row("a", "FAILED", 2)], "RUNNING", 2),
        ([DIED, row("a", "PENDING_NODE_ASSIGNMENT")], "PENDING_NODE_ASSIGNMENT", 1),
        ([DIED, row("a", "SUBMITTED_TO_WORKER")], "FAILED", 0),  # its submitter has not heard of it yet
        ([row("a", "FAILED")], "FAILED", 0),
    ],
)
def test_the_state(rows: list[dict[str, Any]], state: str, attempt: int) -> None:
    for order in (rows, rows[::-1]):
        (found,) = merge(order)
        assert (found["state"], found["attempt_number"]) == (state, attempt)


def test_its_submitter_knows_best_why_it_failed() -> None:
    told = row("a", "FAILED", error_type="OUT_OF_MEMORY", error_message="it used 3 GiB")
    (found,) = merge([told, DIED])
    assert (found["error_type"], found["error_message"], found["job_id"]) == ("OUT_OF_MEMORY", "it used 3 GiB", "j")


def test_in_the_order_of_ids() -> None:
    assert [found["task_id"] for found in merge([row("b", "RUNNING", 1), row("a", "RUNNING", 2)])] == ["a", "b"]
