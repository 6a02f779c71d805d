"""Questions for lists of the cluster's state: which rows are wanted, and one page of them at a time.

Every process that has rows filters them and keeps the first ``limit`` behind the cursor, in the order of their keys, so
a page costs no more than a page, and the pages of many nodes merge into one. A key is unique and never changes: the
id, and what tells rows of one id apart. The cursor is the last key that was given out. Cluster events come newest
first, everything else in the order of ids.
"""

from __future__ import annotations

import heapq
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from noded.policy.state_records import StateSchema

IDS = {
    "actors": "actor_id",
    "cluster_events": "event_id",
    "jobs": "job_id",
    "nodes": "node_id",
    "objects": "object_id",
    "placement_groups": "placement_group_id",
    "runtime_envs": "node_id",
    "tasks": "task_id",
    "workers": "worker_id",
}
"""The kinds that can be listed, and the column by which each is known."""
LIMIT = 100
MOST_ROWS = 1000
"""In one answer, which is made and read on the loops of daemons: who wants more asks for the next page."""
NODE_SECONDS = 3.0
"""A node that has not answered by then is left out, and that is said."""
_WORDS = ("=", "!=")
_NUMBERS = ("<", "<=", ">", ">=")
_NEWEST_FIRST = ("cluster_events",)
_TOO_LARGE = 1 << 63
_YES, _NO = ("true", "1", "yes"), ("false", "0", "no")
Row = Mapping[str, Any]


class Filter(msgspec.Struct, frozen=True):
    key: str
    op: str
    value: Any
    """As the column has it: a number, a bool, None, or text without regard to its case."""

    def matches(self, row: Row) -> bool:
        found = row.get(self.key)
        if isinstance(found, str):
            found = found.casefold()
        if self.op == "=":
            return bool(found == self.value)
        if self.op == "!=":
            return bool(found != self.value)
        if not isinstance(found, (int, float)):
            return False
        if self.op == "<":
            return bool(found < self.value)
        if self.op == "<=":
            return bool(found <= self.value)
        return bool(found > self.value if self.op == ">" else found >= self.value)


class Query(msgspec.Struct, frozen=True):
    kind: str
    filters: tuple[Filter, ...] = ()
    limit: int = LIMIT
    cursor: str = ""
    detail: bool = False

    def matches(self, row: Row) -> bool:
        return all(each.matches(row) for each in self.filters)

    def wanted(self, column: str) -> set[Any]:
        """The only values (as filters have them) that a row may have there; empty: any. What has many rows looks at
        these first.
        """
        return {each.value for each in self.filters if each.key == column and each.op == "="}

    def arguments(self) -> dict[str, Any]:
        """The question's arguments, for another process."""
        filters = [[each.key, each.op, each.value] for each in self.filters]
        return {
            "kind": self.kind,
            "filters": filters,
            "limit": self.limit,
            "cursor": self.cursor,
            "detail": self.detail,
        }


_PARTS = ("rows", "keys", "total", "matched", "more", "notes", "cursor")


class Page(msgspec.Struct):
    """``keys``: those of the rows; ``more``: there are rows behind them; ``total`` and ``matched``: all there are, and
    all that the filters let through (None: not known); ``problems``: whose rows are missing, and why; ``notes``: what
    else there is to say of them.
    """

    rows: list[Any] = []
    keys: list[str] = []
    total: int = 0
    matched: int | None = 0
    more: bool = False
    problems: list[str] = []
    notes: list[str] = []
    cursor: str = ""
    """Where the next page begins, if not behind the last row."""

    def as_part(self) -> dict[str, Any]:
        """For the one who merges."""
        return {name: getattr(self, name) for name in _PARTS}

    def answer(self) -> dict[str, Any]:
        """For the one who has asked."""
        cursor = self.cursor or (self.keys[-1] if self.more and self.keys else "")
        return {
            "rows": self.rows,
            "total": self.total,
            "matched": self.matched,
            "cursor": cursor,
            "problems": self.problems,
            "notes": self.notes,
        }


def query_of(args: Mapping[str, Any]) -> Query:
    """The arguments of a question, checked. Raises ValueError."""
    kind = args.get("kind")
    if not isinstance(kind, str) or kind not in IDS:
        raise ValueError(f"{kind!r} cannot be listed: kinds are {', '.join(IDS)}")
    limit = args.get("limit", LIMIT)
    if type(limit) is not int or not 0 <= limit <= MOST_ROWS:
        raise ValueError(f"limit is a number from 0 to {MOST_ROWS} for one page, not {limit!r}")
    cursor, detail = args.get("cursor") or "", args.get("detail", False)
    if not isinstance(cursor, str) or type(detail) is not bool:
        raise ValueError(
            f"cursor is the text that came with the page before, detail a bool: not {cursor!r}, {detail!r}"
        )
    filters = args.get("filters") or ()
    if not isinstance(filters, (list, tuple)):
        raise ValueError(f"filters is a list of (column, operator, value), not {filters!r:.100}")
    return Query(kind, tuple(_filter(kind, each) for each in filters), limit, cursor, detail)


def _filter(kind: str, given: Any) -> Filter:
    if not isinstance(given, (list, tuple)) or len(given) != 3:
        raise ValueError(f"a filter is (column, operator, value), not {given!r:.100}")
    key, op, value = given
    record = _record(kind)
    if not isinstance(key, str) or key not in record.filterable_columns():
        names = ", ".join(name for name in record.list_columns() if name in record.filterable_columns())
        raise ValueError(f"{kind} cannot be filtered by {key!r:.100}; columns for filters are {names}")
    of = _types(kind)[key]
    numeric = of in (int, float)
    if op not in (*_WORDS, *(_NUMBERS if numeric else ())):
        valid = ", ".join([*_WORDS, *(_NUMBERS if numeric else ())])
        raise ValueError(f"{op!r:.20} is no operator for {key}, which is {_WHAT[of]}; operators are {valid}")
    wanted = _value(key, of, value)
    if wanted is None and op in _NUMBERS:
        raise ValueError(f"{key} {op} {value!r:.100} says nothing: give a number, or compare with = or !=")
    return Filter(key, op, wanted)


def _value(key: str, of: type, value: Any) -> Any:
    """Values often come as text, from a command line."""
    if value is None or (of is not str and isinstance(value, str) and value.casefold() in ("none", "null")):
        return None
    if of is bool:
        text = str(value).casefold()
        if text not in (*_YES, *_NO):
            raise ValueError(f"{key} is true or false, not {value!r:.100}")
        return text in _YES
    if of in (int, float):
        try:
            number = _number(value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{key} is a number, not {value!r:.100}") from None
        if not abs(number) < _TOO_LARGE:  # nor is nan
            raise ValueError(f"{key} is a number below {_TOO_LARGE}, not {value!r:.100}")
        return number
    if not isinstance(value, (str, int, float)):
        raise ValueError(f"{key} is text, not {value!r:.100}")
    return str(value).casefold()


def _number(value: Any) -> int | float:
    """As exact as it is given: 2.5 is not 2, also where a column has whole numbers only."""
    if not isinstance(value, str):
        return value if type(value) is int else float(value)
    try:
        return int(value)
    except ValueError:
        return float(value)


_WHAT = {int: "a number", float: "a number", bool: "true or false", str: "text"}


@cache
def _types(kind: str) -> dict[str, type]:
    """Of each column that may be filtered by: what its values are, None aside. What is neither number nor bool is
    compared as text.
    """
    found = {}
    hints = typing.get_type_hints(_record(kind))
    for name in _record(kind).columns():
        hint = hints[name]
        parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        found[name] = next((each for each in parts if each in (bool, int, float)), str)
    return found


def _record(kind: str) -> type[StateSchema]:
    # Late: these classes take long to make, and a daemon needs none before it is asked for a list.
    from noded.policy.state_records import RECORDS

    return RECORDS[kind]


@cache
def _columns(kind: str, detail: bool) -> list[str]:
    return _record(kind).list_columns(detail)


def key_of(kind: str, row: Row) -> str:
    """Of a row whose id tells it from all others, but for attempts of one task."""
    id_ = str(row[IDS[kind]])
    return f"{id_}.{row['attempt_number']:08d}" if kind == "tasks" else id_


def shown(query: Query, row: Row) -> dict[str, Any]:
    """Its columns as far as they were asked for."""
    return {name: row.get(name) for name in _columns(query.kind, query.detail)}


class Collector:
    """Takes rows one by one and keeps those of one page. ``keep(row)``: what is kept of one instead of what is shown,
    where that is dear to make.
    """

    def __init__(self, query: Query, keep: Callable[[Row], Any] | None = None):
        self.query = query
        self.total = 0
        self.matched = 0
        self._beyond = 0
        columns = _columns(query.kind, query.detail)
        self._keep = keep or (lambda row: {name: row.get(name) for name in columns})
        self._newest = query.kind in _NEWEST_FIRST
        self._kept: list[tuple[str, Any]] = []
        self._room = 2 * query.limit + 16
        self._last: str | None = None
        """What comes behind this key is not on the page."""

    def add(self, row: Row, key: str = "") -> None:
        """``key``: where `key_of` does not do."""
        self.total += 1
        if self.query.matches(row):
            self.take(row, key)

    def skip(self, count: int) -> None:
        """So many more that do not match."""
        self.total += count

    def take(self, row: Row, key: str = "") -> None:
        """One that matches, and was counted."""
        self.matched += 1
        key = key or key_of(self.query.kind, row)
        cursor = self.query.cursor
        if cursor and not (key < cursor if self._newest else key > cursor):
            return
        self._beyond += 1
        if self._last is not None and (key < self._last if self._newest else key > self._last):
            return
        self._kept.append((key, self._keep(row)))
        if len(self._kept) >= self._room:
            self._prune()

    def _prune(self) -> None:
        self._kept.sort(key=lambda each: each[0], reverse=self._newest)
        del self._kept[self.query.limit :]
        if self._kept:
            self._last = self._kept[-1][0]

    def page(self) -> Page:
        self._prune()
        return Page(
            [row for _, row in self._kept],
            [key for key, _ in self._kept],
            self.total,
            self.matched,
            self._beyond > len(self._kept),
        )


def page_of(query: Query, rows: Iterable[Row]) -> Page:
    collector = Collector(query)
    for row in rows:
        collector.add(row)
    return collector.page()


def merge(query: Query, parts: Iterable[Page]) -> Page:
    """One page from those that several nodes have made for the same query."""
    parts = list(parts)
    paired = [list(zip(part.keys, part.rows, strict=True)) for part in parts]
    merged = list(heapq.merge(*paired, key=lambda each: each[0], reverse=query.kind in _NEWEST_FIRST))
    kept = merged[: query.limit]
    return Page(
        [row for _, row in kept],
        [key for key, _ in kept],
        sum(part.total for part in parts),
        sum(part.matched or 0 for part in parts),
        len(merged) > len(kept) or any(part.more for part in parts),
        notes=[note for part in parts for note in part.notes],
    )


def part_of(told: Mapping[str, Any]) -> Page:
    """What another process made by ``as_part``."""
    return Page(**told)
