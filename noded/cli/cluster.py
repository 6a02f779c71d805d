"""What a whole cluster is asked, through any of its nodes on this machine, and `noded drain`.

Each node passes such a question on to the head, wherever that is; where the head is away, so is the answer. `ask_any`
serves `noded status` as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import click

from noded.cli.control import ControlError, Refusal, request
from noded.config import NodeInfo, find_nodes

SECONDS = 5.0


def ask_any(nodes: Iterable[NodeInfo], what: str, arguments: dict[str, Any], seconds: float = SECONDS) -> Any:
    """The answer of the first that gives one. Raises ControlError: a refusal at once, else the last node's reason."""
    failure = ControlError("no node of it runs here")
    for node in nodes:
        try:
            return request(node, what, arguments, seconds)
        except Refusal:
            raise
        except ControlError as error:
            failure = error
    raise failure


def drain_node(cluster: str, env: Mapping[str, str], word: str, *, on: bool) -> None:
    told = ask(cluster, env, "drain", {"node": word, "on": on})
    node = f"node {told['node']} ({told['id']}) of cluster {cluster}"
    if not on:
        click.echo(f"{node} takes new work again")
    else:
        flag = "" if cluster == "default" else f" --cluster {cluster}"
        click.echo(f"{node} gets no new work; what runs there goes on")
        click.echo(f"undo: noded drain --undo {told['node']}{flag}")


def ask(cluster: str, env: Mapping[str, str], what: str, arguments: dict[str, Any], seconds: float = SECONDS) -> Any:
    """Of any node of it here. Raises ClickException."""
    nodes = [node for node in find_nodes(env) if node.cluster == cluster and node.alive]
    if not nodes:
        others = sorted({node.cluster for node in find_nodes(env) if node.alive} - {cluster})
        hint = f"; others run: {', '.join(others)} (--cluster NAME)" if others else ""
        raise click.ClickException(f"no node of cluster {cluster} runs here{hint}")
    try:
        return ask_any(nodes, what, arguments, seconds)
    except Refusal as refusal:
        raise click.ClickException(refusal.words) from None
    except ControlError as error:
        raise click.ClickException(f"{error} (is the head away? see `noded status`)") from None


def facts_of(told: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """One fact a line; those of a part behind its name. What is not known is left out."""
    for name, value in told.items():
        if isinstance(value, Mapping):
            yield from facts_of(value, f"{prefix}{name}.")
        elif value not in (None, "", [], {}):
            shown = json.dumps(value) if isinstance(value, (list, bool)) else value
            yield f"{prefix}{name}  {shown}"
