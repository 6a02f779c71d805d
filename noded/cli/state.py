"""`noded list`, `get`, `summary` and `timeline`: what there is in a cluster, or was: `noded history` asks the files
that a cluster has left instead of its nodes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from noded.cli import render
from noded.cli.cluster import ask
from noded.cli.memory import columns
from noded.policy.query import IDS, MOST_ROWS
from noded.policy.state_records import RECORDS

Ask = Callable[[str, dict[str, Any]], Any]
"""(question, arguments): its answer. Raises ClickException."""

_SECONDS = 10.0
_FILTER = re.compile(r"(\w+)\s*(!=|<=|>=|=|<|>)(.*)", re.DOTALL)
_ALSO = {"events": "cluster_events", "pgs": "placement_groups"}
KINDS = sorted(RECORDS)
SUMMARIES = ("tasks", "actors", "objects")


def of_cluster(cluster: str, env: Mapping[str, str]) -> Ask:
    return lambda what, arguments: ask(cluster, env, what, arguments, _SECONDS)


def kind_of(word: str) -> str:
    """Of what a person writes: `tasks`, `task`, `placement-groups`, `events`. Raises UsageError."""
    plain = word.lower().replace("-", "_")
    for each in (plain, f"{plain}s"):
        if (found := _ALSO.get(each, each)) in RECORDS:
            return found
    raise click.UsageError(f"{word!r} cannot be listed: kinds are {', '.join(KINDS)}")


def filter_of(text: str) -> list[str]:
    """Raises UsageError."""
    found = _FILTER.fullmatch(text)
    if found is None:
        raise click.UsageError(f"{text!r} is no filter: write column=value or column!=value; of numbers also < <= > >=")
    return [found[1], found[2], found[3].strip()]


def show_list(
    ask: Ask, kind: str, filters: Iterable[str], limit: int, cursor: str, *, detail: bool, output: str
) -> None:
    wanted = {"kind": kind, "filters": [filter_of(each) for each in filters], "detail": detail}
    found: list[dict[str, Any]] = []
    first: dict[str, Any] = {}
    while True:
        answer = ask("state", {**wanted, "limit": min(MOST_ROWS, limit - len(found)), "cursor": cursor})
        found += answer["rows"]
        first = first or answer
        cursor = answer["cursor"]
        if not cursor or len(found) >= limit:
            break
    for line in render.rows(found, RECORDS[kind].list_columns(detail), output, upright=detail):
        click.echo(line)
    for line in _remarks({**answer, "matched": first["matched"]}, len(found), kind):
        click.echo(line, err=True)


def _remarks(answer: Mapping[str, Any], count: int, kind: str) -> Iterator[str]:
    """What is no row: for a person, not for who reads the output."""
    yield from answer["problems"]
    yield from answer["notes"]
    what = kind.replace("_", " ")
    if answer["cursor"]:
        known = "" if answer["matched"] is None else f" of {answer['matched']}"
        yield f"{count}{known} {what}; the next ones: --cursor {answer['cursor']}, or a higher --limit"
    elif not count:
        yield f"no {what}" if not answer["total"] else f"none of {answer['total']} {what} matches"


def show_one(ask: Ask, kind: str, id_: str, output: str) -> None:
    question = {"kind": kind, "filters": [[IDS[kind], "=", id_]], "limit": MOST_ROWS, "detail": True}
    answer = ask("state", question)
    if not answer["rows"]:
        why = "".join(f"; {problem}" for problem in answer["problems"])
        raise click.ClickException(f"there is no {IDS[kind]} {id_} among the {kind.replace('_', ' ')}{why}")
    for line in render.rows(answer["rows"], RECORDS[kind].list_columns(), output, upright=True):
        click.echo(line)
    for problem in answer["problems"]:
        click.echo(problem, err=True)


def show_summary(ask: Ask, kind: str, output: str) -> None:
    answer = ask("state_summary", {"kind": kind})
    problems = [*answer.pop("problems"), *answer.pop("notes", ())]
    lines = render.one(answer, output) if output != "table" else _summary(kind, answer)
    for line in lines:
        click.echo(line)
    for problem in problems:
        click.echo(problem, err=True)


def _summary(kind: str, told: Mapping[str, Any]) -> Iterator[str]:
    entries = told["summary"]
    if kind == "objects":
        yield f"{told['total_objects']} references, {told['total_size_mb']:.1f} MiB"
        table = [
            [
                str(each["total_objects"]),
                f"{each['total_size_mb']:.1f}",
                str(each["total_num_workers"]),
                str(each["total_num_nodes"]),
                _counts(each["ref_type_counts"]),
                site if told["callsite_enabled"] else "(not recorded)",
            ]
            for site, each in sorted(entries.items(), key=lambda item: -item[1]["total_size_mb"])
        ]
        heads = ["REFERENCES", "MIB", "PROCESSES", "NODES", "HOW", "CREATED AT"]
        right = {0, 1, 2, 3}
    elif kind == "actors":
        yield f"{told['total_actors']} actors"
        table = [[name, _counts(each["state_counts"])] for name, each in sorted(entries.items())]
        heads, right = ["CLASS", "STATES"], set()
    else:
        calls, made = told["total_actor_tasks"], told["total_actor_scheduled"]
        yield f"{told['total_tasks']} tasks, {calls} calls of actors, {made} actors made"
        table = [
            [each["func_or_class_name"], each["type"], _counts(each["state_counts"])]
            for each in sorted(entries.values(), key=lambda each: -sum(each["state_counts"].values()))
        ]
        heads, right = ["NAME", "TYPE", "STATES"], set()
    if table:
        yield ""
        yield from columns(heads, table, right=right)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items(), key=lambda item: -item[1]))


def save_timeline(ask: Ask, path: str | None) -> None:
    events = ask("timeline", {})
    if path is None:
        click.echo(json.dumps(events))
        return
    try:
        Path(path).write_text(json.dumps(events))
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}") from None
    click.echo(f"{len(events)} runs written to {path}: open it in chrome://tracing or ui.perfetto.dev")
