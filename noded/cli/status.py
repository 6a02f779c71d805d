"""`noded status`: what the nodes on this machine say of themselves, as tables or JSON.

Each running node is asked itself; keys that one does not tell are left out, so that versions may differ. A
node whose daemon has ended is shown too: it may come back. The keys are described where the daemon makes
them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from noded.cli.control import ControlError, request_status
from noded.config import NodeInfo, find_nodes

if TYPE_CHECKING:
    from rich.console import RenderableType

_BYTE_RESOURCES = ("memory", "object_store_memory")
_COUNTS = ("nodes", "workers", "actors", "objects")


def show_status(cluster: str | None, env: Mapping[str, str], as_json: bool) -> int:
    """The exit status: 0 when at least one node has answered."""
    nodes = [node for node in find_nodes(env) if cluster in (None, node.cluster)]
    reports = [_report(node) for node in nodes]
    if as_json:
        click.echo(json.dumps(reports, indent=2))
    elif not reports:
        of_cluster = f" of cluster {cluster}" if cluster else ""
        click.echo(f"no node{of_cluster} runs here; start one with: noded start --head")
    else:
        _print(reports)
    return 0 if any(report["status"] is not None for report in reports) else 1


def _report(node: NodeInfo) -> dict[str, Any]:
    status, error = None, None
    try:
        if node.alive:
            status = request_status(node)
        else:
            error = "its daemon has ended; it may be started again, or be ended with noded stop"
    except ControlError as failure:
        error = str(failure)
    return {
        "cluster": node.cluster,
        "node": node.node,
        "pid": node.pid,
        "dir": str(node.dir),
        "private": node.private,
        "alive": node.alive,
        "status": status,
        "error": error,
    }


def _print(reports: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    for number, report in enumerate(reports):
        private = " (private)" if report["private"] else ""
        console.print(
            "\n" * (number > 0) + f"[bold]{escape(report['cluster'])} / {escape(report['node'])}[/bold]{private}"
        )
        if report["error"]:
            console.print(f"  {escape(report['error'])}", style="red")
        if report["status"] is not None:
            for part in _tables(report["status"]):
                console.print(part)


def _tables(status: Mapping[str, Any]) -> Iterator[RenderableType]:
    from rich import box
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    for name, text in _facts(status):
        yield Text.assemble((f"  {name:<14}", "dim"), text)
    resources = status.get("resources") or {}
    total, used = resources.get("total") or {}, resources.get("used") or {}
    if total:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim", border_style="dim")
        table.add_column("resource", min_width=12)
        for column in ("used", "total"):
            table.add_column(column, justify="right")
        for name in total:
            if name == "object_store_memory" and "store" in status:
                continue  # what tasks ask for of it is not what is used, which is said above
            table.add_row(Text(name), _amount(name, used.get(name, 0)), _amount(name, total[name]))
        yield Padding(table, (0, 0, 0, 1), expand=False)


def _facts(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("state", "address", "version", "pid", "epoch"):
        if name in status:
            yield name, str(status[name])
    if "uptime_s" in status:
        yield "uptime", duration(float(status["uptime_s"]))
    for name in _COUNTS:
        if name in status:
            yield name, str(status[name])
    if (gpus := status.get("gpus")) and gpus.get("unknown"):
        yield "GPUs", f"unknown: {gpus['unknown']}"
    if store := status.get("store"):
        yield (
            "object store",
            f"{size(store.get('used_bytes', 0))} of {size(store.get('total_bytes', 0))} used",
        )
    if storage := status.get("storage"):
        yield "storage", " ".join(str(storage[key]) for key in ("kind", "state") if key in storage)


def _amount(name: str, amount: float) -> str:
    return size(amount) if name in _BYTE_RESOURCES else f"{amount:g}"


def size(count: float) -> str:
    """Bytes for people: 1.5 GB."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 999.95 and len(units) > 1:
        count /= 1000
        units.pop(0)
    return f"{count:.1f}".removesuffix(".0") + f" {units[0]}"


def duration(seconds: float) -> str:
    """The two largest units, for people: 3 d 4 h, 5 min 6 s."""
    left = int(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        amount, left = divmod(left, length)
        if amount or parts:
            parts.append(f"{amount} {unit}")
    return " ".join(parts[:2]) or "0 s"
