"""`noded logs` and `noded log-level`: what workers and daemons of a cluster have written.

A node's daemon is asked, and through the head the node that has the files. Where no daemon of the cluster answers here,
as while one is started again, the files of the nodes of this machine are read without it.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import click

from noded.cli.cluster import ask, ask_any
from noded.cli.control import ControlError, Refusal
from noded.cli.memory import columns
from noded.cli.status import size
from noded.config import NodeInfo, find_nodes, home
from noded.logs.answers import LogDirectory
from noded.logs.query import ANY, Part, Wanted, files_of, list_files, read

_SECONDS = 8.0
_ID = re.compile(r"[0-9a-f]{32}")
_WORKER = re.compile(r"[0-9a-f]{16}")


def show_logs(cluster: str, env: Mapping[str, str], wanted: Wanted, *, as_json: bool) -> None:
    """Without anything that is wanted: which files there are."""
    show(_Asking(cluster, env), wanted, as_json=as_json)


def show(asking: Asking, wanted: Wanted, *, as_json: bool) -> None:
    wanted = _checked(wanted)
    everything = not any((wanted.worker, wanted.id, wanted.job, wanted.node))
    told = list_files(asking, wanted._replace(name=ANY) if everything else wanted)
    asking.tell(told)
    if everything or as_json:
        click.echo(json.dumps(told, indent=2)) if as_json else _show_list(told)
        return
    files = files_of(told)
    if not files and not wanted.follow:
        raise click.ClickException(_nothing(wanted))
    try:
        _write(read(asking, wanted, files), heads=bool(wanted.job))
    except BrokenPipeError:  # as `| head` ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        pass


def set_level(cluster: str, env: Mapping[str, str], component: str, level: str, node: str) -> None:
    """Without a level: show those that are."""
    told = ask(cluster, env, "log_level", {"component": component, "level": level, "node": node}, _SECONDS)
    for each in told:
        levels = each["levels"]
        click.echo(f"node {each['node']}: {levels.pop('all')}")
        for name, own in levels.items():
            if own != "default":
                click.echo(f"  {name.removeprefix('noded.')}  {own}")
    if not level:
        names = ", ".join(name.removeprefix("noded.") for name in told[0]["levels"])
        click.echo(f"components: {names}")


def _checked(wanted: Wanted) -> Wanted:
    given = [name for name in ("worker", "task", "actor", "job", "node") if getattr(wanted, name)]
    if len(given) > 1:
        raise click.UsageError(f"give one of {' and '.join(f'--{name}' for name in given)}")
    for name, form, digits in (("worker", _WORKER, 16), ("task", _ID, 32), ("actor", _ID, 32)):
        text = str(getattr(wanted, name)).strip().lower().removeprefix("0x")
        if text and not form.fullmatch(text):
            raise click.UsageError(f"--{name} cannot be {text!r}: give the {digits} hexadecimal digits of its id")
    plain = (getattr(wanted, name).strip().lower().removeprefix("0x") for name in ("worker", "task", "actor"))
    worker, task, actor = plain
    return wanted._replace(worker=worker, task=task, actor=actor)


def _nothing(wanted: Wanted) -> str:
    stream = "stderr (without --err: stdout)" if wanted.is_error else "stdout (with --err: stderr)"
    if wanted.worker:
        return f"worker {wanted.worker} has no file: it has written nothing, or its file was removed by age or size"
    if wanted.node:
        return f"node {wanted.node} has no log file"
    what = next(f"{name} {value}" for name, value in wanted._asdict().items() if value and name != "is_error")
    return (
        f"no file has anything that {what} has written to {stream}: it has written nothing (yet), or what it wrote was "
        "removed by age or size; `noded logs` lists the files"
    )


class Asking(Protocol):
    """Answers questions about logs."""

    def __call__(self, args: dict[str, Any]) -> Any:
        """Raises ClickException."""

    def tell(self, told: Mapping[str, Any]) -> None:
        """What is missing in this answer."""


class Files:
    """Answers from directories alone, numbered as they come."""

    def __init__(self, directories: list[LogDirectory]):
        self._directories = directories

    def __call__(self, args: dict[str, Any]) -> Any:
        found = self._directories
        try:
            if args["do"] == "list":
                return {"nodes": [each for one in found for each in one.list(args)["nodes"]]}
            if str(args.get("node")).isdecimal() and int(args["node"]) < len(found):
                return found[int(args["node"])].read(args)
        except ValueError as problem:
            raise click.ClickException(str(problem)) from None
        raise click.ClickException("no daemon of this cluster answers here (any more): try again")

    def tell(self, told: Mapping[str, Any]) -> None:
        return None


class _Asking:
    """Asks a daemon; falls back to the files of this machine's nodes when none answers."""

    def __init__(self, cluster: str, env: Mapping[str, str]):
        self._cluster = cluster
        self._env = env
        self._alone = False

    def __call__(self, args: dict[str, Any]) -> Any:
        nodes = [node for node in find_nodes(self._env) if node.cluster == self._cluster]
        if not nodes:
            return ask(self._cluster, self._env, "logs", args, _SECONDS)  # which says that there is none
        try:
            return ask_any([node for node in nodes if node.alive], "logs", args, _SECONDS)
        except Refusal as refusal:
            raise click.ClickException(refusal.words) from None
        except ControlError:
            self._alone = True
            return Files([_directory(node, number, self._env) for number, node in enumerate(nodes)])(args)

    def tell(self, told: Mapping[str, Any]) -> None:
        problems = [f"node {node['name']}: {node['problem']}" for node in told["nodes"] if node.get("problem")]
        if self._alone:
            problems.append(
                "no daemon of this cluster answers here: this is what the files of this machine's nodes have"
            )
        elif told.get("problem"):
            problems.append(str(told["problem"]))
        for problem in problems:
            click.echo(f"(noded) {problem}", err=True)


def _directory(node: NodeInfo, number: int, env: Mapping[str, str]) -> LogDirectory:
    base = home(env) / "clusters" / node.cluster
    directory = (
        node.dir / "logs" if node.private else (base if node.node == "head" else base / "nodes" / node.node) / "logs"
    )
    about = {"number": number, "name": node.node, "id": node.node_id, "ip": node.host}
    return LogDirectory(str(directory), str(node.dir if node.private else directory), about, alive=lambda worker: False)


def _write(parts: Iterator[Part], *, heads: bool) -> None:
    out = sys.stdout.buffer
    last = ""
    for part in parts:
        name = part.file["name"]
        if heads and name != last:
            about = f"{part.file['label'] or 'worker'} pid={part.file['pid']}, node {part.file['node_name']}"
            out.write(f"==> {name} ({about}) <==\n".encode())
        last = name
        if part.dropped:
            out.flush()
            click.echo(
                f"(noded) {part.dropped:,} bytes of {name} before this are not kept (--log-worker-max-bytes and "
                "--log-node-max-bytes of its node)",
                err=True,
            )
        out.write(part.data)
        out.flush()


def _show_list(told: Mapping[str, Any]) -> None:
    rows = []
    for node in told["nodes"]:
        for file in sorted(node["files"], key=lambda file: -file["modified"]):
            if file["worker"] and not file["size"]:
                continue
            rows.append(
                [
                    file["name"],
                    node["name"],
                    size(file["size"]),
                    size(min(file["size"], file["on_disk"])),
                    "now" if file["alive"] else _age(file["modified"]),
                    file["label"] or ("" if file["worker"] else "(the daemon)"),
                    str(file["pid"] or ""),
                    file["job"],
                ]
            )
        if node["files_left"]:
            rows.append([f"and {node['files_left']} older", node["name"], "", "", "", "", "", ""])
    heads = ["FILE", "NODE", "SIZE", "KEPT", "ENDED", "FIRST WRITTEN BY", "PID", "JOB"]
    for line in columns(heads, rows, right={2, 3, 6}):
        click.echo(line)
    click.echo("\nread one: noded logs --worker ID [--err], where ID is the part of its name after worker-")


def _age(modified: float) -> str:
    seconds = max(0, round(time.time() - modified))
    return f"{datetime.timedelta(seconds=seconds)} ago"
