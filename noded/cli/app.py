"""The commands and their flags.

`noded --head` runs a node in the foreground; `noded start`, `stop` and `status` have modules of their own,
which are imported when they run. A wrong flag or setting is one line and status 2.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from noded.cli import state_commands
from noded.cli.options import SETTINGS_HELP, given, node_options, some_options, wrong_settings_are_usage_errors
from noded.config import OPTIONS, Config, chosen_cluster


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from noded.version import __version__

        click.echo(f"noded {__version__}")
        context.exit()


def _load(flags: dict[str, Any]) -> Config:
    with wrong_settings_are_usage_errors():
        config = Config.load(flags, os.environ)
    if not config.head and not config.address:
        raise click.UsageError(
            "say which node this is: `noded --head` runs the head of a cluster, `noded --address HOST:PORT` a node "
            "that joins one; `noded start …` does so in the background"
        )
    return config


@click.group(
    invoke_without_command=True,
    epilog=SETTINGS_HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@node_options
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version.",
)
@click.pass_context
def command(context: click.Context, /, **flags: Any) -> None:
    """One small daemon per machine that turns machines into one pool of CPUs, GPUs and memory for Python.

    Without a command, noded runs a node in the foreground until it is told to stop: `noded --head`, or
    `noded --address HOST:PORT` to join a cluster.
    """
    if context.invoked_subcommand is None:
        config = _load(flags)
        from noded.cli.supervise import supervise, wanted

        if wanted(config):
            with wrong_settings_are_usage_errors():
                supervise(config, flags)
        from noded.foreground import main

        sys.exit(main(config))
    if early := given(flags):
        flag = "--" + next(iter(early)).replace("_", "-")
        raise click.UsageError(f"{flag} belongs behind the command: noded {context.invoked_subcommand} {flag} ...")


@command.command(epilog=SETTINGS_HELP)
@node_options
def start(**flags: Any) -> None:
    """Run a node in the background."""
    config = _load(flags)
    if config.supervise:
        raise click.UsageError(
            "--supervise (or NODED_SUPERVISE, or supervise in the settings file) keeps a node running in the "
            "foreground: use `noded --head --supervise`, or `noded start` without it"
        )
    from noded.cli.background import start_node

    with wrong_settings_are_usage_errors():
        start_node(config, flags)


@command.command()
@click.option("--cluster", metavar="NAME", help="The cluster to stop.  [default: NODED_CLUSTER, else default]")
@click.option("--force", is_flag=True, help="Do not ask: end its processes at once.")
def stop(cluster: str | None, force: bool) -> None:
    """Stop a cluster's nodes here, with all their work.

    Other clusters, and the private ones of running programs, are not touched.
    """
    from noded.cli.stop import stop_cluster

    with wrong_settings_are_usage_errors():
        stop_cluster(chosen_cluster({"cluster": cluster}, os.environ), os.environ, force)


@command.command()
@click.option("--cluster", metavar="NAME", help="Only this cluster.  [default: all on this machine]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(cluster: str | None, as_json: bool) -> None:
    """Show the nodes that run here, and what they have.

    Ends with status 1 when no node answers.
    """
    from noded.cli.status import show_status

    with wrong_settings_are_usage_errors():
        sys.exit(show_status(cluster, os.environ, as_json))


@command.command()
@click.argument("node")
@click.option("--undo", is_flag=True, help="Let it take new work again.")
@click.option("--cluster", metavar="NAME", help="The node's cluster.  [default: NODED_CLUSTER, else default]")
def drain(node: str, undo: bool, cluster: str | None) -> None:
    """Give a node no new work; what runs there goes on.

    NODE is its name, its id or the beginning of it, its number or its address: see `noded status`. Run it on any
    machine that has a node of the cluster.
    """
    from noded.cli.cluster import drain_node

    with wrong_settings_are_usage_errors():
        drain_node(chosen_cluster({"cluster": cluster}, os.environ), os.environ, node, on=not undo)


@command.command(epilog=SETTINGS_HELP)
@some_options("cluster", "storage_namespace", *(option.name for option in OPTIONS if option.name.startswith("redis")))
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Although a head may still run.")
def purge(yes: bool, force: bool, **flags: Any) -> None:
    """Remove the state of a cluster from the storage, when its head has ended for good.

    With --redis (or its variable, or the settings file) from there, else from the file on this machine. The settings
    are those of the head: other clusters are not touched.
    """
    from noded.cli.purge import purge as remove

    with wrong_settings_are_usage_errors():
        remove(Config.load({**flags, "head": True}, os.environ), os.environ, yes=yes, force=force)


@command.command()
@click.argument("id_", metavar="ID")
@click.option("--cluster", metavar="NAME", help="The cluster to ask.  [default: NODED_CLUSTER, else default]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def why(id_: str, cluster: str | None, as_json: bool) -> None:
    """Say why something waits, or what became of it.

    ID is the hexadecimal id of a task, an object, an actor or a placement group, as refs, handles and errors print it,
    that of a worker or a job, or the id, name or number of a node.
    """
    from noded.cli.why import explain_id

    with wrong_settings_are_usage_errors():
        explain_id(chosen_cluster({"cluster": cluster}, os.environ), os.environ, id_, as_json)


@command.command()
@click.argument("id_", metavar="[ID]", default="")
@click.option("--node", default="", metavar="NODE", help="The daemon of this node: its id, name or number.")
@click.option("--cluster", metavar="NAME", help="The cluster to ask.  [default: NODED_CLUSTER, else default]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def stack(id_: str, node: str, cluster: str | None, as_json: bool) -> None:
    """Show the Python stacks of all threads of workers, also of one that is stuck.

    ID is that of a worker, a task, a call or an actor, or a pid; a job's is for all its workers; without one it is for
    all workers of the cluster.
    """
    from noded.cli.why import show_stacks

    with wrong_settings_are_usage_errors():
        show_stacks(chosen_cluster({"cluster": cluster}, os.environ), os.environ, id_, node, as_json)


@command.command()
@click.option("--cluster", metavar="NAME", help="The cluster to ask.  [default: NODED_CLUSTER, else default]")
@click.option("--sort-by", type=click.Choice(["size", "age", "pid"]), default="size", show_default=True)
@click.option(
    "--group-by",
    type=click.Choice(["node", "holder", "site"]),
    default="holder",
    show_default=True,
    help="What the sums are for; a site is the line that created the ref.",
)
@click.option("-n", "--limit", type=click.IntRange(0, 2000), default=100, show_default=True, help="So many rows.")
@click.option("--stats-only", is_flag=True, help="The nodes' stores, and who holds most; no rows.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def memory(cluster: str | None, sort_by: str, group_by: str, limit: int, stats_only: bool, as_json: bool) -> None:
    """Say who holds which objects, and how much.

    For a whole cluster: how each object is held, since when, how big it is and where.

    With NODED_RECORD_REF_CREATION_SITES=1 in the environment of a program (or of the nodes), also which line created
    each ref.
    """
    from noded.cli.memory import show_memory

    with wrong_settings_are_usage_errors():
        show_memory(
            chosen_cluster({"cluster": cluster}, os.environ),
            os.environ,
            {"sort_by": sort_by, "group_by": group_by, "limit": 0 if stats_only else limit},
            stats_only=stats_only,
            as_json=as_json,
        )


@command.command()
@click.option("--worker", default="", metavar="ID", help="What this worker has written.")
@click.option("--task", default="", metavar="ID", help="What this task or actor call has written, to the byte.")
@click.option("--actor", default="", metavar="ID", help="What this actor has written, in all its lives.")
@click.option("--job", default="", metavar="ID", help="What the workers of this program have written.")
@click.option("--node", default="", metavar="NODE", help="The log of this node's daemon: its name, id or number.")
@click.option("-f", "--follow", is_flag=True, help="Go on as more comes.")
@click.option("-n", "--tail", type=click.IntRange(0, 1_000_000), help="Only the last lines, so many of each file.")
@click.option("--err", is_flag=True, help="stderr; without it stdout.")
@click.option("--cluster", metavar="NAME", help="The cluster to ask.  [default: NODED_CLUSTER, else default]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: which files there are.")
def logs(
    worker: str,
    task: str,
    actor: str,
    job: str,
    node: str,
    follow: bool,
    tail: int | None,
    err: bool,
    cluster: str | None,
    as_json: bool,
) -> None:
    """Show what workers and daemons have written, also ended ones.

    Without an ID: the files of all nodes. Run it on any machine that has a node of the cluster.
    """
    from noded.cli.logs import show_logs
    from noded.logs.query import Wanted

    with wrong_settings_are_usage_errors():
        wanted = Wanted(worker, task, actor, job, node, "", err, tail, follow)
        show_logs(chosen_cluster({"cluster": cluster}, os.environ), os.environ, wanted, as_json=as_json)


@command.command("log-level")
@click.argument("component", required=False, default="")
@click.argument("level", required=False, default="")
@click.option("--node", default="", metavar="NODE", help="Of this node: its name, id or number.  [default: one here]")
@click.option("--cluster", metavar="NAME", help="The cluster to ask.  [default: NODED_CLUSTER, else default]")
def log_level(component: str, level: str, node: str, cluster: str | None) -> None:
    """Show, or change while it runs, what a daemon logs.

    COMPONENT is one of those that it shows without arguments, such as leases; left out, the level is for all that
    have none of their own. LEVEL is debug, info, warning or error, and for a component also default. A daemon that is
    started again begins with --log-level.
    """
    from noded.cli.logs import set_level

    if component and not level:
        component, level = "", component
    with wrong_settings_are_usage_errors():
        set_level(chosen_cluster({"cluster": cluster}, os.environ), os.environ, component, level, node)


@command.command(context_settings={"allow_interspersed_args": False}, options_metavar="[--as-ray] [-m]")
@click.option("--as-ray", is_flag=True, help="In it, and in all it starts, `import ray` means noded.")
@click.option("-m", "as_module", is_flag=True, help="PROGRAM is the name of a module.")
@click.argument("program")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(as_ray: bool, as_module: bool, program: str, arguments: tuple[str, ...]) -> None:
    """Run a Python program, as python does.

    With --as-ray one that was written for Ray Core runs unmodified.
    """
    from noded.cli.run import run_program

    run_program([program, *arguments], as_module=as_module, as_ray=as_ray)


for each in state_commands.COMMANDS:
    command.add_command(each)
