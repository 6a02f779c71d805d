"""Lists of the cluster's state: filters, pages and their merging, without a cluster."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noded.policy.query import IDS, MOST_ROWS, Collector, Page, Query, key_of, merge, page_of, part_of, query_of
from noded.policy.state_records import RECORDS

STATES = ("ALIVE", "DEAD", "RESTARTING")


def actor(number: int, state: str = "ALIVE", **more: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(RECORDS["actors"].list_columns())
    return row | {"actor_id": f"{number:032x}", "state": state, "class_name": "A", "pid": number, **more}


def ask(rows: list[dict[str, Any]], *filters: tuple[str, str, Any], **args: Any) -> Page:
    return page_of(query_of({"kind": "actors", "filters": list(filters), **args}), rows)


def ids_of(page: Page) -> list[int]:
    return [int(row["actor_id"], 16) for row in page.rows]


rows_of_actors = st.lists(
    st.tuples(st.integers(0, 999), st.sampled_from(STATES)), max_size=60, unique_by=lambda each: each[0]
).map(lambda found: [actor(number, state) for number, state in found])


@given(rows_of_actors, st.integers(1, 7), st.sampled_from(["", *STATES]), st.integers(1, 4))
def test_pages_of_several_nodes_give_every_row_once_and_in_order(
    rows: list[dict[str, Any]], limit: int, state: str, nodes: int
) -> None:
    wanted = sorted(int(row["actor_id"], 16) for row in rows if not state or row["state"] == state)
    found: list[int] = []
    cursor = ""
    while True:
        args = {"kind": "actors", "limit": limit, "cursor": cursor}
        query = query_of({**args, "filters": [("state", "=", state.lower())] if state else []})
        parts = [page_of(query, rows[at::nodes]) for at in range(nodes)]
        answer = merge(query, [part_of(json.loads(json.dumps(part.as_part()))) for part in parts]).answer()
        assert answer["total"] == len(rows) and answer["matched"] == len(wanted) and len(answer["rows"]) <= limit
        found += [int(row["actor_id"], 16) for row in answer["rows"]]
        cursor = answer["cursor"]
        if not cursor:
            break
    assert found == wanted


@given(st.lists(st.integers(0, 10**6), unique=True, max_size=80), st.integers(1, 9))
def test_events_come_newest_first(numbers: list[int], limit: int) -> None:
    rows = [{"event_id": f"{number:020x}", "severity": "INFO", "source_type": "NODE"} for number in numbers]
    found: list[str] = []
    cursor = ""
    while True:
        query = query_of({"kind": "cluster_events", "limit": limit, "cursor": cursor})
        answer = merge(query, [page_of(query, rows[::2]), page_of(query, rows[1::2])]).answer()
        found += [row["event_id"] for row in answer["rows"]]
        cursor = answer["cursor"]
        if not cursor:
            break
    assert found == sorted((row["event_id"] for row in rows), reverse=True)


def test_what_is_read_and_what_is_asked_is_the_same_on_the_way() -> None:
    query = query_of(
        {"kind": "tasks", "filters": [("state", "=", "Running"), ("attempt_number", ">", "1")], "limit": 3}
    )
    assert query_of(json.loads(json.dumps(query.arguments()))) == query


def test_text_is_compared_without_case_and_numbers_as_numbers() -> None:
    rows = [actor(1), actor(2, "DEAD"), actor(10, "DEAD", name="Ann"), actor(11, pid=None)]
    assert ids_of(ask(rows, ("state", "=", "dead"))) == [2, 10]
    assert ids_of(ask(rows, ("state", "!=", "Dead"))) == [1, 11]
    assert ids_of(ask(rows, ("name", "=", "ANN"))) == [10]
    assert ids_of(ask(rows, ("pid", "=", "2"))) == [2]
    assert ids_of(ask(rows, ("pid", ">=", 2))) == [2, 10]
    assert ids_of(ask(rows, ("pid", "<", "10"))) == [1, 2]
    assert ids_of(ask(rows, ("pid", "=", 2.5))) == [] and ids_of(ask(rows, ("pid", "<", "2.5"))) == [1, 2]
    assert ids_of(ask(rows, ("pid", "=", None))) == [11]
    assert ids_of(ask(rows, ("state", "=", "DEAD"), ("pid", "!=", 2))) == [10]


def test_bools_may_be_written_in_several_ways() -> None:
    rows = [{"worker_id": "a", "is_alive": True}, {"worker_id": "b", "is_alive": False}]
    for value, wanted in ((True, "a"), ("true", "a"), ("False", "b"), ("0", "b")):
        found = page_of(query_of({"kind": "workers", "filters": [("is_alive", "=", value)]}), rows)
        assert [row["worker_id"] for row in found.rows] == [wanted]


def test_details_are_only_told_on_request() -> None:
    rows = [actor(1, is_detached=True)]
    assert set(ask(rows).rows[0]) == RECORDS["actors"].base_columns()
    assert ask(rows, detail=True).rows[0]["is_detached"] is True
    assert len(ask(rows, ("is_detached", "=", "true")).rows) == 1, "filters see details that are not shown"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"kind": "planets"}, "kinds are actors, cluster_events, jobs"),
        ({"kind": "actors", "limit": MOST_ROWS + 1}, "limit is a number"),
        ({"kind": "actors", "limit": True}, "limit is a number"),
        ({"kind": "actors", "cursor": 5}, "cursor is the text"),
        ({"kind": "actors", "filters": "state=DEAD"}, "list of"),
        ({"kind": "actors", "filters": [("state", "=")]}, "a filter is"),
        (
            {"kind": "actors", "filters": [("colour", "=", "red")]},
            "columns for filters are actor_id, class_name, state",
        ),
        ({"kind": "actors", "filters": [("death_cause", "=", "x")]}, "cannot be filtered by 'death_cause'"),
        ({"kind": "actors", "filters": [("state", "<", "x")]}, "operators are =, !="),
        ({"kind": "actors", "filters": [("pid", "~", 1)]}, "operators are =, !=, <, <=, >, >="),
        ({"kind": "actors", "filters": [("pid", "=", "many")]}, "pid is a number"),
        ({"kind": "workers", "filters": [("is_alive", "=", "maybe")]}, "is_alive is true or false"),
        ({"kind": ["actors"]}, "['actors'] cannot be listed"),
        ({"kind": "actors", "filters": [(["pid"], "=", 1)]}, "cannot be filtered by ['pid']"),
        ({"kind": "actors", "filters": [("pid", ["="], 1)]}, "['='] is no operator"),
        ({"kind": "tasks", "filters": [("worker_pid", "<", None)]}, "worker_pid < None says nothing"),
        ({"kind": "tasks", "filters": [("worker_pid", "<", "none")]}, "worker_pid < 'none' says nothing"),
        ({"kind": "actors", "filters": [("pid", "=", float("inf"))]}, "pid is a number below"),
        ({"kind": "actors", "filters": [("pid", "=", "-inf")]}, "pid is a number below"),
        ({"kind": "actors", "filters": [("pid", "=", "nan")]}, "pid is a number below"),
        ({"kind": "actors", "filters": [("pid", "=", 10**400)]}, "pid is a number below"),
        ({"kind": "actors", "filters": [("pid", "=", [1])]}, "pid is a number, not [1]"),
        ({"kind": "actors", "filters": [("state", "=", ["DEAD"])]}, "state is text, not ['DEAD']"),
        ({"kind": "workers", "filters": [("is_alive", "=", [True])]}, "is_alive is true or false"),
    ],
)
def test_bad_questions_are_told_what_is_wrong(args: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as refusal:
        query_of(args)
    assert words in str(refusal.value)


def test_a_limit_of_nothing_still_counts() -> None:
    page = ask([actor(1), actor(2, "DEAD")], ("state", "=", "DEAD"), limit=0)
    assert (page.rows, page.total, page.matched) == ([], 2, 1)


def test_a_collector_keeps_no_more_than_it_needs() -> None:
    collector = Collector(Query("actors", limit=10))
    for number in range(10_000, 0, -1):
        collector.add(actor(number))
        assert len(collector._kept) <= 2 * 10 + 16
    assert ids_of(collector.page()) == list(range(1, 11))


def test_attempts_of_a_task_are_rows_of_their_own() -> None:
    assert key_of("tasks", {"task_id": "ab", "attempt_number": 1}) < key_of(
        "tasks", {"task_id": "ab", "attempt_number": 10}
    )


def test_every_kind_has_an_id() -> None:
    assert IDS.keys() == RECORDS.keys()
    assert all(column in RECORDS[kind].columns() for kind, column in IDS.items())
