"""Pages of tasks: as ``query.py``, but what is known of one task may be spread over several nodes, and only all of it
together (``task_rows.py``) says in which state it is, where it ran and how it ended.

So a page is made in two steps. First everybody says of which ids it has a row that the filters let through
(``candidates``): a task is wanted only if one of its rows, the one that tells most, is. Then all are asked for all that
they have of these ids (``picked``), and what is put together of that is filtered (``page``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from noded.policy import task_rows
from noded.policy.query import MOST_ROWS, Filter, Page, Query, key_of, shown

Row = Mapping[str, Any]

_SAME = {"task_id", "name", "func_or_class_name"}
"""Columns that are the same whoever tells of a task."""
_OF_RUNS = {"node_id", "worker_pid", "start_time_ms", "end_time_ms"}
"""Columns of which submitters know nothing."""
_STATES = [each.casefold() for each in (*task_rows.WAITS, task_rows.SENT, "RUNNING", "FINISHED", "FAILED")]
_ABSENT = ("actor_id", "parent_task_id", "node_id", "worker_id", "error_type", "error_message")
_ZERO = ("worker_pid", "start_time_ms", "end_time_ms")


class Sought(msgspec.Struct, frozen=True):
    """What can be told of a task by whoever has a row of it, before that row is made. Empty, or ``ids`` None: any."""

    ids: frozenset[str] | None = None
    states: frozenset[str] = frozenset()
    """These, names and jobs without regard to their case, in small letters."""
    names: frozenset[str] = frozenset()
    not_names: frozenset[str] = frozenset()
    jobs: frozenset[str] = frozenset()
    ran: bool = False
    """Only what workers tell."""
    after: str = ""
    """Only ids behind this one."""


class Known(msgspec.Struct):
    """What one node has: rows, and how many tasks, those included that are not sought."""

    rows: list[dict[str, Any]] = []
    total: int = 0
    until: str = ""
    """Of ids behind this one there may be more."""
    notes: list[str] = []


class Picked(msgspec.Struct):
    """The ids of which all are asked, up to ``until``, if there are more. ``total``: tasks in all; ``count``: how many
    ids there are if all are picked, or might be; None: not known.
    """

    ids: list[str]
    until: str
    total: int
    count: int | None


def sought(query: Query) -> Sought:
    """At least what may be on the page."""
    states = frozenset(_STATES)
    for each in query.filters:
        if each.key == "state":
            states = frozenset(state for state in states if each.matches({"state": state}))
    return Sought(
        ids=_texts(query, "task_id") or None,
        states=frozenset() if len(states) == len(_STATES) else states or frozenset({""}),
        names=_texts(query, "name") or _texts(query, "func_or_class_name"),
        not_names=frozenset(str(each.value) for each in query.filters if each.key == "name" and each.op == "!="),
        jobs=_texts(query, "job_id"),
        ran=any(each.key in _OF_RUNS and not each.matches({}) for each in query.filters),
        after=_id_of(query.cursor),
    )


def candidates(query: Query, known: Known, most: int | None = MOST_ROWS) -> Page:
    """Its keys are the ids of which one row may be what the task's filters are about; it has no rows."""
    may = [_check(each) for each in query.filters]
    after, until = _id_of(query.cursor), known.until
    ids = {
        row["task_id"]
        for row in known.rows
        if row["task_id"] > after and (not until or row["task_id"] <= until) and all(check(row) for check in may)
    }
    keys = sorted(ids)
    if most is not None and len(keys) > most:
        del keys[most:]
        until = keys[-1]
    return Page(keys=keys, total=known.total, matched=len(ids), more=bool(until), cursor=until, notes=known.notes)


def picked(query: Query, parts: Iterable[Page], most: int | None = MOST_ROWS) -> Picked:
    """``parts``: of all that have rows."""
    parts = list(parts)
    # What one node has not said yet may belong to what another one tells of later ids.
    until = min((part.cursor for part in parts if part.more), default="")
    told = {key for part in parts for key in part.keys}
    ids = sorted(key for key in told if not until or key <= until)
    count = None if until or query.cursor else len(ids)
    if _certain(query):
        most = max(1, query.limit)
    if most is not None and len(ids) > most:
        del ids[most:]
        until = ids[-1]
    twice = sum(len(part.keys) for part in parts) - len(told)
    return Picked(ids, until, sum(part.total for part in parts) - twice, count)


def page(query: Query, picked: Picked, rows: Iterable[dict[str, Any]]) -> Page:
    """``rows``: all that anybody knows of what is picked."""
    tasks = [_in_rays_words(row) for row in task_rows.merge(rows)]
    wanted = [task for task in tasks if query.matches(task)]
    kept = wanted[: query.limit]
    found = Page([shown(query, task) for task in kept], [key_of("tasks", task) for task in kept], picked.total)
    found.more = bool(picked.until) or len(kept) < len(wanted)
    found.cursor = picked.until if len(kept) == len(wanted) else ""
    if _certain(query):
        found.matched = picked.count
    else:
        found.matched = None if picked.until or query.cursor else len(wanted)
    return found


def whole(query: Query, known: Known) -> Page:
    """Of what is all there is."""
    chosen = picked(query, [candidates(query, known, None)], None)
    ids = frozenset(chosen.ids)
    return page(query, chosen, (row for row in known.rows if row["task_id"] in ids))


def _id_of(cursor: str) -> str:
    return cursor.partition(".")[0]


def _texts(query: Query, column: str) -> frozenset[str]:
    return frozenset(value for value in query.wanted(column) if isinstance(value, str))


def _certain(query: Query) -> bool:
    """Whether any row of a task tells all that the filters ask for."""
    return all(each.key in _SAME for each in query.filters)


def _check(wanted: Filter) -> Callable[[Row], bool]:
    """Whether a task may match if this row of it is the one that tells most."""
    if wanted.key == "attempt_number":  # known from all rows together
        return lambda row: True
    if wanted.key == "error_type":  # the submitter knows of what it has failed, the run when and where
        return lambda row: row["state"] == "FAILED" or _matches(wanted, row)
    if wanted.key == "job_id":
        return lambda row: not row["job_id"] or _matches(wanted, row)
    return lambda row: _matches(wanted, row)


def _matches(wanted: Filter, row: Row) -> bool:
    if wanted.key in row:
        value = row[wanted.key]
        return wanted.matches({wanted.key: None if wanted.key in (*_ABSENT, *_ZERO) and not value else value})
    return wanted.matches(_in_rays_words({}))


def _in_rays_words(row: dict[str, Any]) -> dict[str, Any]:
    for name in _ABSENT:
        row[name] = row.get(name) or None
    for name in _ZERO:
        row[name] = row.get(name) or None
    row["language"] = "PYTHON"
    return row
