"""Pages of tasks of which several nodes know something."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noded.policy import task_rows
from noded.policy.query import part_of, query_of
from noded.policy.task_pages import merge, part_of_node, wants_running


def run(number: int, state: str, start: int = 1, **more: Any) -> dict[str, Any]:
    return row(number, state, start_time_ms=start, node_id="n", worker_id="w", worker_pid=5, **more)


def row(number: int, state: str, **more: Any) -> dict[str, Any]:
    """As a submitter tells it."""
    known = {"actor_id": "", "parent_task_id": "", "node_id": "", "worker_id": "", "worker_pid": 0, "job_id": "j"}
    known |= {"error_type": "", "error_message": "", "start_time_ms": 0, "end_time_ms": 0, "required_resources": {}}
    name = f"f{number % 3}"
    named = {"name": name, "func_or_class_name": name, "type": "NORMAL_TASK"}
    return {"task_id": f"{number:032x}", "state": state, **known, **named, **more}


def ask(nodes: list[list[dict[str, Any]]], *filters: tuple[str, str, Any], **args: Any) -> dict[str, Any]:
    query = query_of({"kind": "tasks", "filters": list(filters), **args})
    parts = [part_of_node(query, rows) for rows in nodes]
    return merge(query, [part_of(json.loads(json.dumps(part.as_part()))) for part in parts]).answer()


def numbers(answer: dict[str, Any]) -> list[int]:
    return [int(task["task_id"], 16) for task in answer["rows"]]


TOLD = (*task_rows.WAITS, task_rows.SENT, "FAILED")
RUNS = ("RUNNING", "FINISHED", "FAILED")
known_tasks = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from(TOLD) | st.none(), st.lists(st.sampled_from(RUNS), max_size=2)),
    max_size=25,
    unique_by=lambda each: each[0],
)


@given(
    known_tasks,
    st.integers(1, 5),
    st.sampled_from(["", "RUNNING", "FINISHED", "FAILED", *TOLD]),
    st.sampled_from(["=", "!="]),
    st.lists(st.integers(0, 2), min_size=100, max_size=100),
)
def test_pages_are_what_a_look_at_everything_gives(
    tasks: list[tuple[int, str | None, list[str]]], limit: int, state: str, op: str, places: list[int]
) -> None:
    """Whatever is known where, and however small the pages are."""
    nodes: list[list[dict[str, Any]]] = [[], [], []]
    at = iter(places)
    for number, told, runs in tasks:
        if told is not None:
            nodes[next(at)].append(row(number, told))
        for start, how in enumerate(runs, 1):
            nodes[next(at)].append(run(number, how, start))
    whole = task_rows.merge([dict(each) for rows in nodes for each in rows])
    filters = [("state", op, state)] if state else []
    wanted = [
        int(task["task_id"], 16)
        for task in whole
        if not state or (task["state"] == state if op == "=" else task["state"] != state)
    ]
    found: list[int] = []
    cursor, pages = "", 0
    while True:
        answer = ask(nodes, *filters, limit=limit, cursor=cursor)
        found += numbers(answer)
        if not pages and not answer["cursor"]:
            assert answer["matched"] == len(answer["rows"])
        cursor, pages = answer["cursor"], pages + 1
        if not cursor:
            break
        assert pages < 100, "it never ends"
    assert set(wanted) <= set(found) and found == sorted(set(found))
    if op == "=" and state:
        # Of two runs of a task the later one may be known elsewhere, and a run that has ended well as well.
        unsure = {number for number, _, runs in tasks if len(runs) > 1 or "FINISHED" in runs}
        wanted = [number for number in wanted if number not in unsure]
        found = [number for number in found if number not in unsure]
    assert found == wanted


def test_a_task_that_runs_elsewhere_is_one_row() -> None:
    here, there = [row(1, task_rows.SENT), row(2, "PENDING_NODE_ASSIGNMENT")], [run(1, "RUNNING")]
    told = ask([here, there], detail=True)
    assert [(task["state"], task["worker_pid"], task["language"]) for task in told["rows"]] == [
        ("RUNNING", 5, "PYTHON"),
        ("PENDING_NODE_ASSIGNMENT", None, "PYTHON"),
    ]
    assert (told["total"], told["matched"]) == (2, 2)
    assert numbers(ask([here, there], ("state", "=", task_rows.SENT))) == []
    assert numbers(ask([here, there], ("state", "=", "running"))) == [1]


def test_a_task_that_is_tried_again_has_not_failed() -> None:
    here, there = [row(1, "PENDING_NODE_ASSIGNMENT")], [run(1, "FAILED")]
    assert numbers(ask([here, there], ("state", "=", "FAILED"))) == []
    (task,) = ask([here, there])["rows"]
    assert (task["state"], task["attempt_number"]) == ("PENDING_NODE_ASSIGNMENT", 1)


@pytest.mark.parametrize("key", ["name", "func_or_class_name", "task_id"])
def test_what_is_the_same_everywhere_is_filtered_by_each_node(key: str) -> None:
    rows = [run(number, "FINISHED") for number in range(9)]
    query = query_of({"kind": "tasks", "filters": [(key, "=", rows[4][key])]})
    part = part_of_node(query, rows)
    assert {each[key] for each in part.rows} == {rows[4][key]} and part.total == 9


def test_only_what_runs_is_quickly_found() -> None:
    assert wants_running(query_of({"kind": "tasks", "filters": [("state", "=", "Running")]}))
    assert not wants_running(query_of({"kind": "tasks", "filters": [("state", "!=", "RUNNING")]}))
    assert not wants_running(query_of({"kind": "tasks"}))
