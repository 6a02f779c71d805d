"""The commands that show the state of a cluster, and what is left of one. What they do is in `state.py`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from noded.cli.options import wrong_settings_are_usage_errors
from noded.config import chosen_cluster

Command = Callable[..., Any]
_OUTPUTS = click.Choice(["table", "json", "yaml"])


def _output(command: Command) -> Command:
    return click.option("-o", "--output", type=_OUTPUTS, default="table", show_default=True, help="How it is printed.")(
        command
    )


def _cluster(command: Command) -> Command:
    help_ = "The cluster to ask.  [default: NODED_CLUSTER, else default]"
    return click.option("--cluster", metavar="NAME", help=help_)(command)


def _to_file(command: Command) -> Command:
    help_ = "Write it there.  [default: standard output]"
    return click.option("-o", "--output", "path", metavar="FILE", help=help_)(command)


def _listing(command: Command) -> Command:
    for option in (
        click.option("--detail", is_flag=True, help="All that is known of each."),
        click.option("--cursor", default="", metavar="TEXT", help="Go on where a list before has ended."),
        click.option("--limit", type=click.IntRange(0), default=100, show_default=True, help="So many at most."),
        click.option(
            "-f",
            "--filter",
            "filters",
            multiple=True,
            metavar="COLUMN=VALUE",
            help="Only those for which this holds; also != and, of numbers, < <= > >=. All of several must hold.",
        ),
        _output,
    ):
        command = option(command)
    return command


def _of(cluster: str | None) -> Any:
    from noded.cli.state import of_cluster

    return of_cluster(chosen_cluster({"cluster": cluster}, os.environ), os.environ)


@click.command("list")
@click.argument("kind")
@_listing
@_cluster
def list_command(
    kind: str, filters: tuple[str, ...], limit: int, cursor: str, detail: bool, output: str, cluster: str | None
) -> None:
    """List what there is of a KIND.

    KIND: actors, cluster-events, jobs, nodes, objects, placement-groups, runtime-envs, tasks, workers.
    """
    from noded.cli.state import kind_of, show_list

    with wrong_settings_are_usage_errors():
        show_list(_of(cluster), kind_of(kind), filters, limit, cursor, detail=detail, output=output)


@click.command("get")
@click.argument("kind")
@click.argument("id_", metavar="ID")
@_output
@_cluster
def get_command(kind: str, id_: str, output: str, cluster: str | None) -> None:
    """Show all that is known of one thing.

    KIND as of `noded list`; ID as that shows it.
    """
    from noded.cli.state import kind_of, show_one

    with wrong_settings_are_usage_errors():
        show_one(_of(cluster), kind_of(kind), id_, output)


@click.command("summary")
@click.argument("kind", type=click.Choice(["tasks", "actors", "objects"]))
@_output
@_cluster
def summary_command(kind: str, output: str, cluster: str | None) -> None:
    """Count tasks, actors or objects by name and state.

    Counts are exact, also of what no list shows any more.
    """
    from noded.cli.state import show_summary

    with wrong_settings_are_usage_errors():
        show_summary(_of(cluster), kind, output)


@click.command("timeline")
@_to_file
@_cluster
def timeline_command(path: str | None, cluster: str | None) -> None:
    """Write the last runs of all workers as a Chrome trace.

    chrome://tracing and ui.perfetto.dev show it.
    """
    from noded.cli.state import save_timeline

    with wrong_settings_are_usage_errors():
        save_timeline(_of(cluster), path)


@click.group("history")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.pass_context
def history_command(context: click.Context, directory: Path) -> None:
    """Show what a cluster that is gone has left.

    DIRECTORY: the logs of a node, or the directory of a cluster with those of all its nodes, or a copy of either.
    """
    context.obj = directory


def _left_in(context: click.Context) -> Any:
    from noded.cli.history import of_directory

    return of_directory(context.obj)


@history_command.command("list")
@click.argument("kind")
@_listing
@click.pass_context
def history_list(
    context: click.Context,
    kind: str,
    filters: tuple[str, ...],
    limit: int,
    cursor: str,
    detail: bool,
    output: str,
) -> None:
    """List what there was of a KIND.

    KIND: actors, events, jobs, nodes, placement-groups, tasks, workers.
    """
    from noded.cli.state import kind_of, show_list

    show_list(_left_in(context), kind_of(kind), filters, limit, cursor, detail=detail, output=output)


@history_command.command("get")
@click.argument("kind")
@click.argument("id_", metavar="ID")
@_output
@click.pass_context
def history_get(context: click.Context, kind: str, id_: str, output: str) -> None:
    """Show all that is known of one thing."""
    from noded.cli.state import kind_of, show_one

    show_one(_left_in(context), kind_of(kind), id_, output)


@history_command.command("summary")
@click.argument("kind", type=click.Choice(["tasks", "actors"]))
@_output
@click.pass_context
def history_summary(context: click.Context, kind: str, output: str) -> None:
    """Count tasks or actors by name and state."""
    from noded.cli.state import show_summary

    show_summary(_left_in(context), kind, output)


@history_command.command("timeline")
@_to_file
@click.pass_context
def history_timeline(context: click.Context, path: str | None) -> None:
    """Write the last runs of all workers as a Chrome trace."""
    from noded.cli.state import save_timeline

    save_timeline(_left_in(context), path)


@history_command.command("logs")
@click.option("--worker", default="", metavar="ID", help="What this worker has written.")
@click.option("--task", default="", metavar="ID", help="What this task or actor call has written, to the byte.")
@click.option("--actor", default="", metavar="ID", help="What this actor has written, in all its lives.")
@click.option("--job", default="", metavar="ID", help="What the workers of this program have written.")
@click.option("-n", "--tail", type=click.IntRange(0, 1_000_000), help="Only the last lines, so many of each file.")
@click.option("--err", is_flag=True, help="stderr; without it stdout.")
@click.pass_context
def history_logs(
    context: click.Context, worker: str, task: str, actor: str, job: str, tail: int | None, err: bool
) -> None:
    """Show what workers have written; without a choice, which files there are."""
    from noded.cli.history import show_logs
    from noded.logs.query import Wanted

    show_logs(context.obj, Wanted(worker=worker, task=task, actor=actor, job=job, is_error=err, tail=tail))


COMMANDS = (list_command, get_command, summary_command, timeline_command, history_command)
