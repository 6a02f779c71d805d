"""Pages of tasks: as ``query.py``, but what is known of one task may be spread over several nodes, and only all of it
together (``task_rows.py``) says in which state it is. So a node answers with everything that it has of the tasks on its
page, and leaves out only those of which no other node can say anything that would bring them in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from noded.policy import task_rows
from noded.policy.query import MOST_ROWS, Filter, Page, Query, key_of, shown

Row = Mapping[str, Any]

_SAME = {"task_id", "name", "func_or_class_name", "type"}
"""Columns that are the same whoever tells of a task."""
_ABSENT = ("actor_id", "parent_task_id", "node_id", "worker_id", "error_type", "error_message")
_ZERO = ("worker_pid", "start_time_ms", "end_time_ms")


def wants_running(query: Query) -> bool:
    """Only tasks that run now, which are quicker found than all."""
    return query.wanted("state") == {"running"}


def part_of_node(query: Query, rows: Iterable[Row]) -> Page:
    """``rows``: all that this node knows of tasks. ``matched`` counts those that may be wanted."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["task_id"], []).append(row)
    checks = [_check(each) for each in query.filters]
    found = [id_ for id_, group in groups.items() if all(check(group) for check in checks)]
    after = _id_of(query.cursor)
    behind = sorted(id_ for id_ in found if id_ > after)
    # With filters much that is sent may be left out by the one who knows more.
    sent = behind[: MOST_ROWS if query.filters else query.limit]
    page = Page(total=len(groups), matched=len(found), more=len(sent) < len(behind))
    for id_ in sent:
        page.rows += groups[id_]
        page.keys += [id_] * len(groups[id_])
    return page


def merge(query: Query, parts: Iterable[Page]) -> Page:
    parts = list(parts)
    # What one node has left out may belong to what another one tells of later ids.
    until = min((part.keys[-1] if part.keys else _id_of(query.cursor) for part in parts if part.more), default="")
    known = [row for part in parts for key, row in zip(part.keys, part.rows, strict=True) if not until or key <= until]
    tasks = [_in_rays_words(row) for row in task_rows.merge(known)]
    wanted = [task for task in tasks if query.matches(task)]
    kept = wanted[: query.limit]
    page = Page([shown(query, task) for task in kept], [key_of("tasks", task) for task in kept])
    page.more = bool(until) or len(kept) < len(wanted)
    page.cursor = until if until and len(kept) == len(wanted) else ""
    page.notes = [note for part in parts for note in part.notes]
    ids = [id_ for part in parts for id_ in set(part.keys)]
    page.total = sum(part.total for part in parts) - (len(ids) - len(set(ids)))
    whole = not until and not query.cursor
    page.matched = len(wanted) if whole else sum(part.matched for part in parts)
    return page


def _id_of(cursor: str) -> str:
    return cursor.partition(".")[0]


def _check(wanted: Filter) -> Callable[[list[Row]], bool]:
    """Whether the tasks of such a group of rows may match."""
    if wanted.key in _SAME:
        return lambda group: wanted.matches(group[0])
    if wanted.op != "=" or wanted.value is None or wanted.key == "attempt_number":
        return lambda group: True
    if wanted.key != "state":
        return lambda group: any(not row["start_time_ms"] or wanted.matches(row) for row in group)
    value = str(wanted.value).upper()
    # A run that goes on overrules everything else, and a submitter that still waits overrules runs that failed.
    wanted_states = {value, "RUNNING", *(task_rows.WAITS if value == "FAILED" else ())}
    return lambda group: any(row["state"] in wanted_states for row in group)


def _in_rays_words(row: dict[str, Any]) -> dict[str, Any]:
    for name in _ABSENT:
        row[name] = row.get(name) or None
    for name in _ZERO:
        row[name] = row.get(name) or None
    row["language"] = "PYTHON"
    return row
