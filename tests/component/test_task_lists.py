"""How the head makes a page of tasks of several nodes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from noded.head import task_lists
from noded.policy import task_pages
from noded.policy.query import MOST_ROWS, Page, query_of
from noded.policy.task_pages import Known


class Cluster:
    """``nodes``: name -> its rows. Those in ``silent`` do not say more than ids."""

    def __init__(self, nodes: dict[str, list[dict[str, Any]]], silent: Iterable[str] = ()):
        self.nodes = nodes
        self.silent = set(silent)
        self.asked: list[tuple[list[str], dict[str, Any]]] = []

    async def ask(self, what: str, args: dict[str, Any], nodes: Iterable[Any], seconds: float) -> task_lists.Told:
        assert what == "state" and seconds > 0
        nodes = list(nodes)
        self.asked.append((nodes, args))
        told = [(node, self._part(node, args)) for node in nodes if not ("ids" in args and node in self.silent)]
        return told, [f"{node} is silent" for node in nodes if node not in dict(told)]

    def _part(self, node: Any, args: dict[str, Any]) -> Any:
        rows = [dict(row) for row in self.nodes[node] if row["task_id"] in args.get("ids", row["task_id"])]
        if "ids" in args:
            return Page(rows, [row["task_id"] for row in rows]).as_part()
        known = Known(rows, len({row["task_id"] for row in rows}), notes=["a note"])
        query = query_of(args)
        part = task_pages.whole(query, known) if args.get("alone") else task_pages.candidates(query, known)
        return json.loads(json.dumps(part.as_part()))

    async def page(self, **args: Any) -> dict[str, Any]:
        nodes: list[Any] = list(self.nodes)
        return (await task_lists.page(query_of({"kind": "tasks", **args}), nodes, self.ask)).answer()


def run(number: int, state: str, node: str, start: int) -> dict[str, Any]:
    known = {"name": "f", "func_or_class_name": "f", "type": "NORMAL_TASK", "job_id": "j", "error_type": ""}
    return {"task_id": f"{number:032x}", "state": state, "node_id": node, "start_time_ms": start, **known}


FAILED = [("state", "=", "FAILED")]


async def test_pages_without_rows_are_passed_over() -> None:
    """All but the last of many that failed on one node have succeeded on the other one."""
    count = MOST_ROWS + 500
    a = [run(number, "FAILED", "a", 1) for number in range(count)]
    cluster = Cluster({"a": a, "b": [run(number, "FINISHED", "b", 2) for number in range(count - 1)]})
    answer = await cluster.page(filters=FAILED)
    assert [row["task_id"] for row in answer["rows"]] == [f"{count - 1:032x}"]
    assert (answer["matched"], answer["cursor"], answer["notes"]) == (1, "", ["a note"])
    assert len(cluster.asked) == 4


async def test_a_node_that_falls_silent_is_told_of_and_not_waited_for_again() -> None:
    count = MOST_ROWS + 1
    a = [run(number, "FAILED", "a", 1) for number in range(count)]
    cluster = Cluster({"a": [], "b": a, "c": [run(0, "RUNNING", "c", 1)]}, silent=["b"])
    answer = await cluster.page(filters=FAILED)
    assert answer["problems"] == ["b is silent"] and answer["rows"] == []
    assert [nodes for nodes, _ in cluster.asked] == [["a", "b", "c"], ["a", "b", "c"], ["a", "c"]]


async def test_a_node_alone_is_asked_once_and_counts_exactly() -> None:
    cluster = Cluster({"a": [run(number, "FAILED", "a", 1) for number in range(3 * MOST_ROWS)]})
    answer = await cluster.page(filters=FAILED, limit=5)
    assert (len(answer["rows"]), answer["matched"], len(cluster.asked)) == (5, 3 * MOST_ROWS, 1)
    assert (await cluster.page(limit=0))["cursor"] == ""
