"""Pages of tasks of which several nodes know something."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noded.policy import task_rows
from noded.policy.query import part_of, query_of
from noded.policy.task_pages import Known, Sought, candidates, page, picked, sought, whole


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
    """As the head does it, one page; a single node answers alone."""
    query = query_of({"kind": "tasks", "filters": list(filters), **args})
    known = [Known([dict(row) for row in rows], len({row["task_id"] for row in rows})) for rows in nodes]
    if len(known) == 1:
        return whole(query, known[0]).answer()
    parts = [candidates(query, each, MOST) for each in known]
    chosen = picked(query, [part_of(json.loads(json.dumps(part.as_part()))) for part in parts], MOST)
    return page(query, chosen, (row for each in known for row in each.rows if row["task_id"] in chosen.ids)).answer()


def numbers(answer: dict[str, Any]) -> list[int]:
    return [int(task["task_id"], 16) for task in answer["rows"]]


MOST = 7
"""Ids that a node tells at once."""
TOLD = (*task_rows.WAITS, task_rows.SENT, "FAILED")
RUNS = ("RUNNING", "FINISHED", "FAILED")
known_tasks = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from(TOLD) | st.none(), st.lists(st.sampled_from(RUNS), max_size=3)),
    max_size=25,
    unique_by=lambda each: each[0],
)
some_filters = st.lists(
    st.tuples(st.just("state"), st.sampled_from(["=", "!="]), st.sampled_from(["RUNNING", "FINISHED", *TOLD]))
    | st.tuples(st.just("node_id"), st.sampled_from(["=", "!="]), st.sampled_from(["n0", "n1", "None"]))
    | st.tuples(st.just("error_type"), st.sampled_from(["=", "!="]), st.sampled_from(["TOLD", "RUN", None]))
    | st.tuples(st.just("worker_pid"), st.sampled_from(["=", "!=", "<"]), st.sampled_from([2, 3]))
    | st.tuples(st.just("attempt_number"), st.sampled_from(["=", ">"]), st.integers(0, 2))
    | st.tuples(st.just("name"), st.sampled_from(["=", "!="]), st.sampled_from(["f0", "f1"]))
    | st.tuples(st.just("job_id"), st.just("="), st.sampled_from(["j", "other"])),
    max_size=2,
)


@given(
    known_tasks,
    st.integers(1, 5),
    some_filters,
    st.integers(1, 3),
    st.lists(st.integers(0, 2), min_size=100, max_size=100),
)
def test_pages_are_what_a_look_at_everything_gives(
    tasks: list[tuple[int, str | None, list[str]]],
    limit: int,
    filters: list[tuple[str, str, Any]],
    count: int,
    places: list[int],
) -> None:
    """Whatever is known where, whatever is asked for, and however small the pages are."""
    nodes: list[list[dict[str, Any]]] = [[] for _ in range(count)]
    at = iter(each % count for each in places)
    for number, told, runs in tasks:
        if told is not None:
            nodes[next(at)].append(row(number, told, error_type="TOLD" if told == "FAILED" and number % 2 else ""))
        for start, how in enumerate(runs, 1):
            node, error = next(at), "RUN" if how == "FAILED" else ""
            found_at = {"node_id": f"n{node}", "worker_pid": 1 + start, "error_type": error}
            nodes[node].append({**run(number, how, start), **found_at})
    query = query_of({"kind": "tasks", "filters": filters})
    rows = task_rows.merge([dict(each) for rows in nodes for each in rows])
    empty = ("node_id", "error_type", "worker_pid")
    rows = [{**each, **{name: each[name] or None for name in empty}} for each in rows]
    wanted = [int(each["task_id"], 16) for each in rows if query.matches(each)]
    found: list[int] = []
    cursor, pages = "", 0
    while True:
        answer = ask(nodes, *filters, limit=limit, cursor=cursor)
        found += numbers(answer)
        assert answer["total"] >= len(rows)
        assert answer["matched"] in (len(wanted), None) and (pages or count > 1 or answer["matched"] is not None)
        cursor, pages = answer["cursor"], pages + 1
        if not cursor:
            break
        assert pages < 100, "it never ends"
    assert found == wanted


@pytest.mark.parametrize(
    "wanted", [("state", "=", "FAILED"), ("node_id", "=", "A"), ("error_type", "=", "WORKER_DIED")]
)
def test_a_task_that_succeeded_elsewhere_is_told_as_it_ended(wanted: tuple[str, str, Any]) -> None:
    first = {**run(1, "FAILED", 1, error_type="WORKER_DIED"), "node_id": "A"}
    second = {**run(1, "FINISHED", 2), "node_id": "B"}
    assert numbers(ask([[first], [second]], wanted)) == []
    assert numbers(ask([[first, second]], wanted)) == []
    (task,) = ask([[first], [second]], ("state", "=", "FINISHED"), ("node_id", "=", "B"))["rows"]
    assert (task["attempt_number"], task["error_type"]) == (1, None)


def test_tasks_that_wait_are_no_candidates_for_what_only_runs_have() -> None:
    known = Known([row(number, "PENDING_NODE_ASSIGNMENT") for number in range(5000)] + [run(6000, "RUNNING")], 5001)
    query = query_of({"kind": "tasks", "filters": [("worker_pid", "=", 5)]})
    part = candidates(query, known)
    assert (len(part.keys), part.more, part.total) == (1, False, 5001)
    assert picked(query, [part, part]).count == 1


def test_what_is_not_told_yet_bounds_a_page() -> None:
    """A node that may know more of later ids is asked for them with the next page."""
    here = Known([row(1, "FAILED"), row(2, "FAILED"), row(9, "FAILED")], 50, until=f"{5:032x}")
    there = Known([run(4, "FINISHED"), run(7, "FINISHED")], 2)
    query = query_of({"kind": "tasks"})
    chosen = picked(query, [candidates(query, here), candidates(query, there)])
    assert [int(id_, 16) for id_ in chosen.ids] == [1, 2, 4] and chosen.until == here.until
    answer = page(query, chosen, [*here.rows[:2], there.rows[0]]).answer()
    assert answer["cursor"] == here.until and answer["matched"] is None and answer["total"] == 52


def test_what_may_be_told_less_of_is_said() -> None:
    query = query_of(
        {"kind": "tasks", "filters": [("name", "=", "F1"), ("state", "=", "FAILED"), ("state", "!=", "x")]}
    )
    assert sought(query) == Sought(None, frozenset({"failed"}), frozenset({"f1"}))
    query = query_of(
        {"kind": "tasks", "filters": [("state", "!=", "FAILED"), ("name", "!=", "X"), ("node_id", "=", "A")]}
    )
    assert "failed" not in sought(query).states and len(sought(query).states) == 5
    assert sought(query).not_names == {"x"} and sought(query).ran
    query = query_of(
        {"kind": "tasks", "filters": [("state", "=", "gone"), ("job_id", "=", "J"), ("node_id", "=", None)]}
    )
    assert sought(query).states == {""} and sought(query).jobs == {"j"} and not sought(query).ran
    query = query_of({"kind": "tasks", "filters": [("task_id", "=", "AB")], "cursor": f"{7:032x}.00000001"})
    assert sought(query) == Sought(frozenset({"ab"}), after=f"{7:032x}")


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
    part = candidates(query, Known(rows, 9))
    assert part.keys == [each["task_id"] for each in rows if each[key] == rows[4][key]] and part.total == 9
