"""`noded why` and `noded stack`: what one thing waits for, or died of, and where workers are just now.

Any node of the cluster on this machine is asked. A daemon that does not answer can still tell its own stack.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import click

from noded import stack_dump
from noded.cli.cluster import ask, facts_of
from noded.cli.control import ControlError, Refusal, request
from noded.config import NodeInfo, find_nodes, process_state

_STACK_SECONDS = 8.0
_LAST = ("stderr_tail", "last_death", "last_attempt", "waiting", "workers", "running", "actor_why", "maker")
"""Parts with lines of their own, after the numbers."""


def explain_id(cluster: str, env: Mapping[str, str], text: str, as_json: bool) -> None:
    told = ask(cluster, env, "why", {"id": text.strip()})
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    click.echo(f"{told['kind'] or told['state']}: {told['reason']}")
    plain = {name: value for name, value in told.items() if name not in ("kind", "reason", "cause", *_LAST)}
    if told.get("cause") not in (None, "", told["kind"]):
        plain = {"cause": told["cause"], **plain}
    for line in facts_of(plain):
        click.echo(f"  {line}")
    for name in _LAST[1:]:
        for line in _part(name, told.get(name)):
            click.echo(line)
    if told.get("stderr_tail"):
        click.echo("  last lines of its stderr:")
        for line in told["stderr_tail"]:
            click.echo(f"  | {line}")


def _part(name: str, value: Any) -> Iterator[str]:
    for one in value if isinstance(value, list) else [value] if value else []:
        yield f"  {name}:"
        yield from (f"    {line}" for line in facts_of(one))


def show_stacks(cluster: str, env: Mapping[str, str], id_: str, node: str, as_json: bool) -> None:
    known = next((n for n in find_nodes(env) if n.cluster == cluster and n.alive and node in (n.node, n.node_id)), None)
    told = _of_daemon(known) if known is not None else None
    if told is None:
        told = ask(cluster, env, "stack", {"id": id_.strip(), "node": node}, _STACK_SECONDS)
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    for one in told["stacks"]:
        click.echo(_title(one))
        click.echo("\n".join(f"  {line}" for line in (one.get("problem") or one["stack"]).splitlines()) + "\n")
    for problem in told["problems"]:
        click.echo(problem, err=True)
    if not told["stacks"]:
        click.echo("no worker is there")


def _of_daemon(node: NodeInfo) -> Any:
    """Of a node of this machine, whose daemon may be stuck: then it is sent the signal from here. None: ask another."""
    try:
        return request(node, "stack", {"node": node.node_id}, 1.0)
    except Refusal:
        return None
    except ControlError as error:
        state = process_state(node.pid)
        started = state[1] if state is not None else 0
        path = str(node.dir / "daemon.stack")
        dump = stack_dump.take(node.pid, path, lambda: (process_state(node.pid) or ("", -1))[1] == started)
        one = {"daemon": True, "pid": node.pid, "node": node.node_id, "node_name": node.node, "stack": dump.text}
        return {"stacks": [one | ({"problem": dump.problem} if dump.problem else {})], "problems": [str(error)]}


def _title(one: Mapping[str, Any]) -> str:
    if one.get("daemon"):
        return f"daemon of node {one['node_name']}, pid {one['pid']}"
    words = [f"worker {one['worker']}, pid {one['pid']}, node {one['node_name']}"]
    if one["actor"]:
        words.append(f"actor {one['actor']}")
    words += [f"runs {run['name']} ({run['task']}) since {time.time() - run['since']:.1f} s" for run in one["running"]]
    return ", ".join(words if one["running"] or one["actor"] else [*words, "runs no task"])
