"""How `noded memory` shows what the head has put together, and how that is put together."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from noded.cli.memory import columns, lines
from noded.client.refs import HoldTable, ObjectRef
from noded.client.sites import Sites, wanted
from noded.policy.holdings import merge, rank, wanted_of


def row(id_: str, size: int, **more: Any) -> dict[str, Any]:
    return {
        "id": id_,
        "size": size,
        "where": "memory",
        "copies": [1],
        "kind": "driver",
        "holder": "driver pid 7",
        "pid": 7,
        "node": 1,
        "peer": 0,
        "job": "01",
        "hold": "local reference",
        "inside": [],
        "age_s": 61.0,
        "site": "",
        **more,
    }


def report(number: int, name: str, rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    holder = {"holder": "driver pid 7", "kind": "driver", "pid": 7, "job": "01", "peer": 0}
    return {
        "node": number,
        "name": name,
        "id": f"id{number}",
        "store": {"used": 2_000_000, "size": 10_000_000, "on_disk": 0},
        "objects": len(rows),
        "bytes": sum(r["size"] for r in rows),
        "holds": len(rows),
        "holders": [{**holder, "bytes": sum(r["size"] for r in rows), "objects": len(rows), "silent": ""}],
        "rows": rows,
        "recording": False,
        **more,
    }


def merged(*reports: dict[str, Any], **question: Any) -> dict[str, Any]:
    return merge(reports, **wanted_of(question))


def test_what_may_be_asked() -> None:
    assert wanted_of({}) == {"sort_by": "size", "group_by": "holder", "limit": 100}
    for wrong in ({"sort_by": "name"}, {"group_by": "x"}, {"limit": -1}, {"limit": 10**6}, {"limit": True}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            wanted_of(wrong)


def test_the_order() -> None:
    things = [(5, 1.0, 30), (9, 2.0, 0), (7, 3.0, 10)]
    order = {by: sorted(things, key=lambda t: rank(by, *t), reverse=True) for by in ("size", "age", "pid")}
    assert [size for size, _, _ in order["size"]] == [9, 7, 5]
    assert [age for _, age, _ in order["age"]] == [3.0, 2.0, 1.0]
    assert [pid for _, _, pid in order["pid"]] == [10, 30, 0], "without a pid last"


def test_nodes_complete_each_other() -> None:
    home = report(1, "head", [row("aa", 500, kind="node", holder="node 2", peer=2, pid=0, hold="held by another node")])
    other = report(2, "n1", [row("aa", 0, node=2, where="elsewhere", copies=[])])
    told = merged(home, other, limit=5)
    assert [(r["holder"], r["size"], r["where"], r["copies"], r["node"]) for r in told["rows"]] == [
        ("node n1", 500, "memory", ["head"], "head"),
        ("driver pid 7", 500, "memory", ["head"], "n1"),
    ]
    assert told["rows_in_all"] == 2 and len(merged(home, other, limit=1)["rows"]) == 1


def test_sites_are_summed_over_nodes() -> None:
    site = {"site": "a.py:1 in f", "bytes": 10, "objects": 1}
    told = merged(report(1, "head", [], sites=[site]), report(2, "n1", [], sites=[site]), group_by="site")
    assert told["groups"] == [{"site": "a.py:1 in f", "bytes": 20, "objects": 2}]


def test_as_text() -> None:
    rows = [
        row("aa" * 16, 1_500_000, site="/x/app.py:3 in main"),
        row("bb" * 16, 0, where="pending", copies=[], hold="inside another object", inside=["cc" * 16]),
        row("dd" * 16, 2_000, where="both", copies=[1, 2]),
    ]
    away = {"node": 2, "name": "n1", "id": "id2", "problem": "it is away: cut off"}
    shown = list(lines(merged({**report(1, "head", rows), "holds": 9}, away), stats_only=False))
    assert shown == [
        "NODE  STORE USED     OF  ON DISK  OBJECTS  THEIR BYTES",
        "head        2 MB  10 MB      0 B        3       1.5 MB",
        "node n1: it is away: cut off",
        "",
        " BYTES  OBJECTS  HELD BY       ON NODE  JOB",
        "1.5 MB        3  driver pid 7  head     01",
        "",
        f"{'OBJECT':32}    SIZE  WHERE                     HELD BY       ON NODE  SINCE      {'HOW':55}  CREATED AT",
        f"{'aa' * 16}  1.5 MB  memory                    driver pid 7  head     1 min 1 s  "
        f"{'local reference':55}  /x/app.py:3 in main",
        f"{'dd' * 16}    2 kB  memory and disk (and n1)  driver pid 7  head     1 min 1 s  {'local reference':55}  -",
        f"{'bb' * 16}       ?  pending                   driver pid 7  head     1 min 1 s  "
        f"inside another object: {'cc' * 16}  -",
        "and 6 more (--limit)",
    ]
    stats = list(lines(merged(report(1, "head", rows), limit=0), stats_only=True))
    assert stats[1].endswith("driver pid 7: 1.5 MB") and len(stats) == 2


def test_columns_without_rows() -> None:
    assert list(columns(["A", "LONG"], [], right={1})) == ["A  LONG"]


def test_a_site_is_kept_as_long_as_the_object_is_held() -> None:
    assert wanted({"NODED_RECORD_REF_CREATION_SITES": "1"}) and not wanted({"NODED_RECORD_REF_CREATION_SITES": "0"})
    holds, seqs = HoldTable(), iter(range(1, 100))

    def put(value: Any) -> ObjectRef[Any]:
        return ObjectRef(next(seqs), 0, 2, value)

    objects = SimpleNamespace(put=put, _make_remote=lambda id_, token: ObjectRef(1, 0, 5, None, token, None, id_))
    tasks = SimpleNamespace(prepare=lambda: SimpleNamespace(refs=[put(0), put(1)], place=None))
    sites = Sites(SimpleNamespace(holds=holds, objects=objects, tasks=tasks))  # type: ignore[arg-type]
    plain, held = objects.put(1), objects.put(2)
    token = holds.take(held.binary())
    token.hold.ref = weakref.ref(held)
    task = tasks.prepare()
    id_ = held.binary()
    assert sites.of(id_).endswith(f"{__name__.rpartition('.')[2]}.py:{put_line()} in {put_name()}")
    assert len(sites) == 4 and len({sites.of(ref.binary()) for ref in task.refs}) == 1
    del plain, task, held
    assert len(sites) == 1 and sites.of(id_), "a view holds it"
    del token
    holds.collect()
    assert len(sites) == 0 and not sites.of(id_)


def put_name() -> str:
    return "test_a_site_is_kept_as_long_as_the_object_is_held"


def put_line() -> int:
    with open(__file__) as file:
        return next(at for at, line in enumerate(file, 1) if "plain, held = objects.put(1)" in line)
