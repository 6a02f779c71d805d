"""How rows are printed, summaries put together, and filters written."""

from __future__ import annotations

import json

import click
import pytest

from noded.cli.render import one, rows, yaml
from noded.cli.state import filter_of, kind_of
from noded.policy.summary import Objects, checked, merge, of_actors, of_tasks
from noded.util.state.common import ActorState, StateResource


def test_yaml_of_all_that_there_is() -> None:
    value = {
        "name": "f",
        "text": "two words: here",
        "no": "yes",
        "empty": [],
        "none": None,
        "number": 1.5,
        "list": [{"a": 1, "b": [True, "x"]}, "plain", [1]],
        "inner": {"key with space": {}},
    }
    assert list(yaml(value)) == [
        "name: f",
        'text: "two words: here"',
        '"no": "yes"',
        "empty: []",
        '"none": null',
        "number: 1.5",
        "list:",
        "  - a: 1",
        "    b:",
        "      - true",
        "      - x",
        "  - plain",
        "  - - 1",
        "inner:",
        '  "key with space": {}',
    ]


def test_a_table_has_a_line_for_each_row_and_cuts_what_is_long() -> None:
    found = [{"pid": 5, "name": "a\nb"}, {"pid": 12345, "name": "x" * 500}]
    head, first, second = rows(found, ["pid", "name"], "table", upright=False)
    assert head.split() == ["PID", "NAME"] and first == "    5  a b" and second.endswith("x…") and len(second) < 140
    upright = list(rows(found, ["pid", "name", "gone"], "table", upright=True))
    assert upright[:3] == ["pid   5", "name  a\nb", ""] and upright[4] == "name  " + "x" * 500
    assert json.loads("".join(rows(found, ["pid"], "json", upright=False))) == found
    assert list(rows([], ["pid"], "yaml", upright=False)) == ["[]"]
    assert list(one({"a": 1}, "yaml")) == ["a: 1"]


def test_filters_and_kinds_as_people_write_them() -> None:
    assert filter_of("state=RUNNING") == ["state", "=", "RUNNING"]
    assert filter_of("name!=a=b") == ["name", "!=", "a=b"]
    assert filter_of("pid >= 5") == ["pid", ">=", "5"]
    with pytest.raises(click.UsageError, match="no filter"):
        filter_of("state")
    assert [kind_of(word) for word in ("task", "Tasks", "placement-groups", "events", "pg")] == [
        "tasks", "tasks", "placement_groups", "cluster_events", "placement_groups",
    ]  # fmt: skip
    with pytest.raises(click.UsageError, match="kinds are actors"):
        kind_of("planets")


def test_summaries_of_nodes_are_added_up() -> None:
    told = merge(
        "tasks",
        [
            {"counts": [["NORMAL_TASK", "f", 9, 6, 1, 0, 0, 0], ["ACTOR_TASK", "A.f", 1, 1, 0, 1, 0, 0]]},
            {"counts": [["NORMAL_TASK", "f", 0, 0, 0, 6, 1, 1], ["ACTOR_CREATION_TASK", "A", 0, 0, 0, 1, 0, 0]]},
        ],
    )
    assert told["summary"]["f"] == {
        "func_or_class_name": "f",
        "type": "NORMAL_TASK",
        "state_counts": {"FINISHED": 6, "FAILED": 1, "RUNNING": 1, "PENDING": 1},
    }
    assert told["summary"]["A"]["state_counts"] == {"FINISHED": 1}
    assert (told["total_tasks"], told["total_actor_tasks"], told["total_actor_scheduled"]) == (9, 1, 1)
    both = of_tasks([("NORMAL_TASK", "f", 1, 1, 0, 1, 0, 0), ("ACTOR_TASK", "f", 2, 0, 2, 0, 2, 0)])
    assert {entry["type"] for entry in both["summary"].values()} == {"NORMAL_TASK", "ACTOR_TASK"}
    actors = of_actors([{"class_name": "A", "state": "ALIVE"}, {"class_name": "A", "state": "DEAD"}])
    assert actors["summary"]["A"]["state_counts"] == {"ALIVE": 1, "DEAD": 1} and actors["total_actors"] == 2
    with pytest.raises(ValueError, match="kinds are tasks, actors, objects"):
        checked({"kind": "nodes"})


def test_objects_are_added_up_by_line() -> None:
    parts = []
    for pid in (5, 6):
        found = Objects()
        for size in (1 << 20, -1):
            found.add(
                {
                    "call_site": "here",
                    "task_status": "FINISHED",
                    "attempt_number": 1,
                    "reference_type": "LOCAL_REFERENCE",
                    "object_size": size,
                    "pid": pid,
                }
            )
        parts.append(json.loads(json.dumps(found.told())))
    told = merge("objects", parts)
    here = told["summary"]["here"]
    assert (here["total_objects"], here["total_size_mb"]) == (4, 2.0)
    assert (here["total_num_workers"], here["total_num_nodes"]) == (2, 2)
    assert here["ref_type_counts"] == {"LOCAL_REFERENCE": 4} and told["total_objects"] == 4


def test_records_have_items_as_well_as_attributes() -> None:
    record = ActorState("id", "A", "ALIVE", "job", "name", None, 5, "space")
    assert record["state"] == record.state == record.get("state") == "ALIVE"
    assert record.get("nothing", 7) == 7 and record.asdict()["pid"] == 5
    with pytest.raises(KeyError):
        record["UNFILTERED"]
    assert StateResource("actors") is StateResource.ACTORS
