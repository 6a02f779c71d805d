"""Who holds what: what may be asked, which rows come first, and one report from those of many nodes.

A node's report is made in ``node/holdings.py``, and shown by ``cli/memory.py``.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from typing import Any

SORTS = ("size", "age", "pid")
GROUPS = ("node", "holder", "site")
ROWS = 100
MOST_ROWS = 2000
"""In one answer, which is made and read on the loops of daemons."""
MOST_GROUPS = 200
_BIGGEST = 3
NODE_SECONDS = 2.5
"""A node that has not answered by then is left out."""
MEMORY_SECONDS = 4.0

Rank = tuple[float, float]


def wanted_of(args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the question, checked. Raises ValueError."""
    sort_by, group_by, limit = args.get("sort_by", "size"), args.get("group_by", "holder"), args.get("limit", ROWS)
    if sort_by not in SORTS:
        raise ValueError(f"sort_by is one of {', '.join(SORTS)}, not {sort_by!r}")
    if group_by not in GROUPS:
        raise ValueError(f"group_by is one of {', '.join(GROUPS)}, not {group_by!r}")
    if type(limit) is not int or not 0 <= limit <= MOST_ROWS:
        raise ValueError(f"limit is a number from 0 to {MOST_ROWS}, not {limit!r}")
    return {"sort_by": sort_by, "group_by": group_by, "limit": limit}


def rank(sort_by: str, size: int, age: float, pid: int) -> Rank:
    """The highest comes first: the largest, the oldest, or the lowest pid."""
    if sort_by == "age":
        return age, size
    if sort_by == "pid":
        return -pid if pid else float("-inf"), size
    return size, age


def merge(reports: Iterable[Mapping[str, Any]], *, sort_by: str, group_by: str, limit: int) -> dict[str, Any]:
    """Of the cluster: its nodes, each with its store and who holds most; the groups; and the first rows of all."""
    found = list(reports)
    names = {report["node"]: report["name"] for report in found}
    rows: list[dict[str, Any]] = []
    groups: list[dict[str, Any]] = []
    for report in found:
        rows += report.get("rows", ())
        if group_by == "holder":
            groups += [{"on": report["name"], **_named(holder, names)} for holder in report.get("holders", ())]
        elif group_by == "site":
            groups += [{"on": report["name"], **site} for site in report.get("sites", ())]
        elif "store" in report:
            groups.append({"on": report["name"], "bytes": report["bytes"], "objects": report["objects"]})
    if group_by == "site":
        groups = _over_nodes(groups)
    _complete(rows, names)
    nodes = [
        {
            **{name: value for name, value in report.items() if name not in ("rows", "sites", "holders")},
            "biggest": [_named(holder, names) for holder in report.get("holders", ())[:_BIGGEST]],
        }
        for report in found
    ]
    first = heapq.nlargest(limit, rows, key=lambda row: rank(sort_by, row["size"], row["age_s"], row["pid"]))
    return {
        "nodes": nodes,
        "group_by": group_by,
        "groups": heapq.nlargest(MOST_GROUPS, groups, key=lambda group: (group["bytes"], group["objects"])),
        "rows": first,
        "rows_in_all": sum(node.get("holds", 0) for node in nodes),
        "recording": any(node.get("recording") for node in nodes),
    }


def _named(holder: Mapping[str, Any], names: Mapping[int, str]) -> dict[str, Any]:
    peer = holder["peer"]
    return {**holder, "holder": f"node {names.get(peer, peer)}"} if peer else dict(holder)


def _over_nodes(groups: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line of a program may have made refs on several nodes."""
    sums: dict[str, dict[str, Any]] = {}
    for group in groups:
        found = sums.setdefault(group["site"], {"site": group["site"], "bytes": 0, "objects": 0})
        found["bytes"] += group["bytes"]
        found["objects"] += group["objects"]
    return list(sums.values())


def _complete(rows: list[dict[str, Any]], names: Mapping[int, str]) -> None:
    """What one node does not know of an object another one may; and numbers of nodes become names."""
    sizes: dict[str, int] = {}
    places: dict[str, dict[int, str]] = {}
    for row in rows:
        if row["size"]:
            sizes[row["id"]] = row["size"]
        where = places.setdefault(row["id"], {})
        for number in row["copies"]:
            where.setdefault(number, "")
        if row["where"] in ("memory", "disk", "both"):
            where[row["node"]] = row["where"]
    for row in rows:
        row["size"] = row["size"] or sizes.get(row["id"], 0)
        there = places[row["id"]]
        row["copies"] = [names.get(number, str(number)) for number in sorted(there)]
        if there and row["where"] == "elsewhere":
            row["where"] = next((kind for kind in there.values() if kind), "elsewhere")
        row["node"] = names.get(row["node"], str(row["node"]))
        row["holder"] = _named(row, names)["holder"]
