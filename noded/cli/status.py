"""`noded status`: what the nodes on this machine say of themselves and of their clusters, as tables or JSON.

Each running node is asked itself; keys that one does not tell are left out, so that versions may differ. A
node whose daemon has ended is shown too: it may come back. Of each cluster, one of its nodes here is asked which
nodes it has; the head knows, wherever it is. The keys are described where the daemon makes them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from noded.cli.cluster import ask_any
from noded.cli.control import ControlError, request_status
from noded.config import NodeInfo, find_nodes

if TYPE_CHECKING:
    from rich.console import RenderableType

_BYTE_RESOURCES = ("memory", "object_store_memory")
_COUNTS = ("nodes", "workers", "actors", "objects")
# The head is one more hop away, and may be away itself: the rest is shown without it.
_HEAD_SECONDS = 2.0


def show_status(cluster: str | None, env: Mapping[str, str], as_json: bool) -> int:
    """The exit status: 0 when at least one node has answered."""
    nodes = [node for node in find_nodes(env) if cluster in (None, node.cluster)]
    reports = [_report(node) for node in nodes]
    for name in {report["cluster"]: None for report in reports}:
        _add_cluster([(n, r) for n, r in zip(nodes, reports, strict=True) if n.cluster == name])
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


def _add_cluster(of_cluster: Sequence[tuple[NodeInfo, dict[str, Any]]]) -> None:
    """Into each report of a cluster: its nodes, or why they cannot be told; asked once."""
    answering = [(node, report) for node, report in of_cluster if report["status"] is not None]
    # The head itself first, then who is connected with it.
    answering.sort(key=lambda pair: (not pair[1]["status"].get("head"), not _connected(pair[1]["status"])))
    nodes, error = None, None
    try:
        if not answering:
            error = "no node of it answers here"
        elif _is_known_away(answering[0][1]["status"]):
            error = f"its head does not answer: {answering[0][1]['status']['head_link'].get('problem') or 'it is away'}"
        else:
            nodes = ask_any([node for node, _ in answering], "cluster", {}, _HEAD_SECONDS)["nodes"]
    except (ControlError, TypeError, KeyError) as failure:
        error = f"its head does not answer: {failure}"
    for _, report in of_cluster:
        report["cluster_nodes"], report["cluster_error"] = nodes, error


def _connected(status: Mapping[str, Any]) -> bool:
    return bool((status.get("head_link") or {}).get("connected"))


def _is_known_away(status: Mapping[str, Any]) -> bool:
    """All that answer here are members without a connection: they would wait for the head."""
    return "head_link" in status and not _connected(status)


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
        last = number + 1 == len(reports) or reports[number + 1]["cluster"] != report["cluster"]
        if last and _alone(report):
            continue  # it has been said
        if last and report["cluster_nodes"] is not None:
            console.print(f"[bold]cluster {escape(report['cluster'])}[/bold]")
            console.print(_nodes_table(report["cluster_nodes"]))
            for node in report["cluster_nodes"]:
                if node.get("reason") and node.get("state") != "ALIVE":
                    console.print(f"  {escape(str(node.get('name')))}: {escape(str(node['reason']))}", style="dim")
        elif last and report["status"] is not None:
            console.print(f"[bold]cluster {escape(report['cluster'])}[/bold]")
            console.print(f"  {escape(str(report['cluster_error']))}", style="red")


def _alone(report: Mapping[str, Any]) -> bool:
    nodes = report["cluster_nodes"]
    return nodes is not None and len(nodes) == 1 and nodes[0].get("state") == "ALIVE"


def _nodes_table(nodes: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The living first."""
    from rich import box
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    shown = [name for name in ("CPU", "GPU", "memory") if any((node.get("total") or {}).get(name) for node in nodes)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim", border_style="dim")
    for column in ("node", "id", "address", "state"):
        table.add_column(column, no_wrap=True)
    for column in (*shown, "waiting"):
        table.add_column(column, justify="right", no_wrap=True)
    for node in sorted(nodes, key=lambda node: node.get("state") == "DEAD"):
        total, used = node.get("total") or {}, node.get("used") or {}
        amounts = [
            f"{_amount(name, used.get(name, 0))}/{_amount(name, total[name])}" if total.get(name) else ""
            for name in shown
        ]
        state = str(node.get("state", ""))
        table.add_row(
            Text(str(node.get("name", ""))),
            Text(str(node.get("id", ""))[:8]),
            Text(str(node.get("address", ""))),
            Text(state, "" if state == "ALIVE" else "yellow" if state in ("AWAY", "DRAINING") else "red"),
            *amounts,
            str(node.get("waiting") or ""),
        )
    return Padding(table, (0, 0, 0, 1), expand=False)


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
        yield "object store", _store_text(store)
        for disk in store.get("directories") or ():
            if disk.get("problem"):
                yield "spilling", f"nothing goes to {disk['path']} now: {disk['problem']}"
    if memory := status.get("memory"):
        yield "memory", _memory_text(memory)
    for row in status.get("demand") or ():
        yield "waiting", _demand_text(row)
    if (failures := status.get("failures")) and failures.get("by_kind"):
        yield "worker deaths", ", ".join(f"{count} by {kind}" for kind, count in failures["by_kind"].items())
        for row in failures["last"]:
            yield "", _failure_text(row)
    if (events := status.get("events")) and (events["problem"] or events["dropped"]):
        yield "events", f"{events['dropped']} were dropped: {events['problem'] or 'it is well again'}"
    if link := status.get("head_link"):
        yield "head", _link_text(link)
    if storage := status.get("storage"):
        yield "store", _storage_text(storage, time.time())
    for collector in status.get("collectors") or ():
        if collector.get("state") != "OK":
            yield "collector", _collector_text(collector, time.time())


def _memory_text(memory: Mapping[str, Any]) -> str:
    """Of the machine, or of the container; without page cache."""
    text = (
        f"{size(memory.get('used_bytes', 0))} of {size(memory.get('limit_bytes', 0))} of {memory.get('where', '')} used"
    )
    if memory.get("pressed"):
        text += ": too little is left, nothing new begins while something runs"
    if ended := memory.get("ended"):
        text += f"; ended for want of memory: {ended}"
    return text


def _store_text(store: Mapping[str, Any]) -> str:
    parts = [f"{size(store.get('used_bytes', 0))} of {size(store.get('total_bytes', 0))} used"]
    if store.get("on_disk"):
        parts.append(f"{size(store['on_disk'])} on disk")
    if store.get("withheld"):
        parts.append(f"{size(store['withheld'])} cannot be used: memory is short")
    return ", ".join(parts)


def _demand_text(row: Mapping[str, Any]) -> str:
    """So many of what, which ask for so much, and why they wait."""
    asks = ", ".join(f"{_amount(name, amount)} {name}" for name, amount in row["asks"].items())
    longest = f", {duration(row['waits_s'])} at most" if row["waits_s"] >= 1 else ""
    return f"{row['count']} × {row['name']} ({asks or 'nothing'}){longest}: {row['kind']}: {row['reason']}"


def _failure_text(row: Mapping[str, Any]) -> str:
    when = time.strftime("%H:%M:%S", time.localtime(row["end_time_ms"] / 1000))
    return f"{when} worker {row['worker_id']} (pid {row['pid']}): {row['exit_detail']}"


def _storage_text(storage: Mapping[str, Any], now: float) -> str:
    """Where the head's state is kept, and how that goes."""
    kind = storage.get("kind", "")
    if storage.get("state") != "degraded":
        return f"{storage.get('state', '')} ({kind})"
    since = float(storage.get("since", now))
    clock = time.strftime("%H:%M:%S", time.localtime(since))
    counts = [f"{storage.get('journalled', 0)} writes journalled"]
    if storage.get("waiting"):
        counts.append(f"{storage['waiting']} wait")
    text = f"degraded ({kind}) since {clock} ({duration(max(0.0, now - since))}): {storage.get('why', '')}"
    return ", ".join([text, *counts])


def _collector_text(collector: Mapping[str, Any], now: float) -> str:
    """Of one that is not well; the others need no line."""
    since = float(collector.get("since", now))
    text = f"{collector.get('name', '')}: {collector.get('state', '')} for {duration(max(0.0, now - since))}"
    if collector.get("problem"):
        text += f": {collector['problem']}"
    if collector.get("lost_threads"):
        text += f"; threads that do not come back: {collector['lost_threads']}"
    if (age := collector.get("age_s")) is not None:
        text += f"; its last values are {duration(age)} old"
    return text


def _link_text(link: Mapping[str, Any]) -> str:
    text = f"{link.get('address', '')}, {'connected' if link.get('connected') else 'not connected'}"
    if not link.get("connected") and link.get("problem"):
        text += f": {link['problem']}"
    if link.get("frozen"):
        text += "; frozen: it runs no restartable actors before it has heard of the head"
    return text


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
