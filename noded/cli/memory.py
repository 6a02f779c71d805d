"""`noded memory`: who holds what in a cluster, as text or JSON.

The sums come first: a person looks for who holds most. What is shown is put together by the head
(``policy/holdings.py``); docs/memory.md says what the columns mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import click

from noded.cli.cluster import ask
from noded.cli.status import duration, size

SECONDS = 8.0
_GROUPS_SHOWN = 20
_UNRECORDED = (
    "which line created a ref is not recorded: set NODED_RECORD_REF_CREATION_SITES=1 in the program's environment"
)


def show_memory(
    cluster: str, env: Mapping[str, str], question: dict[str, Any], *, stats_only: bool, as_json: bool
) -> None:
    told = ask(cluster, env, "memory", question, SECONDS)
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    for line in lines(told, stats_only=stats_only):
        click.echo(line)


def lines(told: Mapping[str, Any], *, stats_only: bool) -> Iterator[str]:
    if told.get("problem"):
        yield f"{told['problem']}\n"
    yield from _nodes(told["nodes"], biggest=stats_only)
    if stats_only:
        return
    if told["group_by"] != "node":
        yield ""
        yield from _groups(told)
    rows = told["rows"]
    if rows:
        yield ""
        yield from _rows(rows)
    if (more := told["rows_in_all"] - len(rows)) > 0:
        yield f"and {more} more (--limit)"
    if not told["recording"] and told["group_by"] == "site":
        yield f"\n{_UNRECORDED}"


def _nodes(nodes: Iterable[Mapping[str, Any]], *, biggest: bool) -> Iterator[str]:
    table = []
    problems = []
    for node in nodes:
        if "store" not in node:
            problems.append(f"node {node['name']}: {node['problem']}")
            continue
        store = node["store"]
        cells = [
            node["name"],
            size(store["used"]),
            size(store["size"]),
            size(store["on_disk"]),
            str(node["objects"]),
            size(node["bytes"]),
        ]
        if biggest:
            most = [f"{each['holder']}: {size(each['bytes'])}" for each in node["biggest"]]
            cells.append("; ".join(most))
        table.append(cells)
    heads = ["NODE", "STORE USED", "OF", "ON DISK", "OBJECTS", "THEIR BYTES", *(["HELD MOST BY"] if biggest else [])]
    yield from columns(heads, table, right={1, 2, 3, 4, 5})
    yield from problems


def _groups(told: Mapping[str, Any]) -> Iterator[str]:
    groups = told["groups"]
    by_site = told["group_by"] == "site"
    table = [
        [size(group["bytes"]), str(group["objects"]), group["site"]]
        if by_site
        else [size(group["bytes"]), str(group["objects"]), *_holder(group), group["on"], group["job"]]
        for group in groups[:_GROUPS_SHOWN]
    ]
    heads = ["BYTES", "OBJECTS", *(["CREATED AT"] if by_site else ["HELD BY", "ON NODE", "JOB"])]
    yield from columns(heads, table, right={0, 1})
    if (more := len(groups) - _GROUPS_SHOWN) > 0:
        yield f"and {more} more"


def _holder(group: Mapping[str, Any]) -> list[str]:
    return [f"{group['holder']} ({group['silent']})" if group.get("silent") else group["holder"]]


def _rows(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    sites = any(row["site"] for row in rows)
    table = []
    for row in rows:
        hold = row["hold"]
        if row["inside"]:
            hold += f": {', '.join(row['inside'])}"
        copies = [
            name for name in row["copies"] if row["where"] not in ("memory", "disk", "both") or name != row["node"]
        ]
        where = {"both": "memory and disk"}.get(row["where"], row["where"])
        if copies:
            where += f" ({'at' if row['where'] == 'elsewhere' else 'and'} {', '.join(copies)})"
        known = row["size"] or row["where"] in ("memory", "disk", "both")
        table.append(
            [
                row["id"],
                size(row["size"]) if known else "?",
                where,
                row["holder"],
                row["node"],
                duration(row["age_s"]),
                hold,
                *([row["site"] or "-"] if sites else []),
            ]
        )
    heads = ["OBJECT", "SIZE", "WHERE", "HELD BY", "ON NODE", "SINCE", "HOW", *(["CREATED AT"] if sites else [])]
    yield from columns(heads, table, right={1})


def columns(heads: Sequence[str], table: Sequence[Sequence[str]], *, right: set[int]) -> Iterator[str]:
    """Aligned, two spaces between; ``right``: numbers of those that end at the right."""
    widths = [max(len(cell) for cell in column) for column in zip(heads, *table, strict=True)]
    for line in (heads, *table):
        cells = [
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
