"""`noded start`: run the daemon in a session of its own and wait until it says that it is ready.

It says so, as one line of JSON or in plain words what went wrong, on the pipe whose end it gets as
--ready-fd. What it prints goes to a file in the log directory. Not here: what the daemon does.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

import click

import noded.config as settings
from noded.cli.launch import daemon_launch

READY_SECONDS = 75.0  # a head waits 60 s for its Redis, and then says what is wrong
END_SECONDS = 20.0
TAIL_BYTES = 4000


def start_node(config: settings.Config, flags: Mapping[str, Any]) -> None:
    settings.make_dir(settings.log_dir(config))
    path = settings.start_log(config)
    read_fd, write_fd = os.pipe()
    with open(path, "ab", opener=_private) as log, os.fdopen(read_fd, "rb", buffering=0) as ready:
        before = log.tell()
        try:
            daemon = _launch(flags, config.node_name, log, write_fd)
        finally:
            os.close(write_fd)
        try:
            said = _first_line(ready, daemon)
        except BaseException:  # also Ctrl-C: what is not ready does not stay
            _await_end(daemon, ending=False)
            raise
        told = _parsed(said)
        if "address" not in told:
            _await_end(daemon, ending="error" in told)
            _give_up(str(told.get("error") or said or "it ended without a word"), path, before)
    _announce(config, told, path)


def _await_end(daemon: subprocess.Popen[bytes], *, ending: bool) -> None:
    """It has said that it ends, or is told to: when we report the failure nothing of it runs."""
    if not ending:
        daemon.terminate()
    try:
        daemon.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _launch(flags: Mapping[str, Any], name: str, log: IO[bytes], ready_fd: int) -> subprocess.Popen[bytes]:
    launch = daemon_launch(flags, node_name=name, ready_fd=ready_fd)
    return subprocess.Popen(
        launch.command,
        cwd=launch.cwd,
        env=launch.env,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=[ready_fd],
        start_new_session=True,
    )


def _first_line(ready: IO[bytes], daemon: subprocess.Popen[bytes]) -> str:
    """What the daemon says, until the end of the line or of the daemon."""
    os.set_blocking(ready.fileno(), False)
    deadline = time.monotonic() + READY_SECONDS
    said = b""
    ended = os.pidfd_open(daemon.pid)
    try:
        while not said.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0:
                return f"it was not ready within {READY_SECONDS:g} s"
            readable, _, _ = select.select([ready.fileno(), ended], [], [], left)
            chunk = ready.read(65536) if readable else None
            said += chunk or b""
            # The end of the pipe, or of the daemon while a child of it holds the pipe open.
            if chunk == b"" or (chunk is None and ended in readable):
                break
    finally:
        os.close(ended)
    return said.decode(errors="replace").strip()


def _parsed(said: str) -> dict[str, Any]:
    try:
        told = json.loads(said)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _give_up(reason: str, path: Path, before: int) -> NoReturn:
    with path.open("rb") as log:
        log.seek(max(before, path.stat().st_size - TAIL_BYTES))
        tail = log.read().decode(errors="replace").strip()
    shown = f"\nits output, from {path}:\n{tail}" if tail and reason not in tail else ""
    raise click.ClickException(f"the node did not start: {reason}{shown}")


def _announce(config: settings.Config, told: Mapping[str, Any], log: Path) -> None:
    default = config.cluster == "default"
    name = f"node {config.node_name} of cluster {config.cluster}"
    click.echo(f"{name} runs at {told['address']}, pid {told.get('pid')}\n")
    if config.address is not None:
        click.echo(f"  head        {config.address}")
    click.echo(f"  connect     noded.init({'' if default else repr(config.cluster)})")
    click.echo(f"  or set      NODED_ADDRESS={told['address']}")
    if config.head:
        here = told["address"].startswith(("127.", "[::1]"))
        click.echo(
            f"  join it     noded start --address {told['address']}{'  (on this machine: see --host)' if here else ''}"
        )
    click.echo(f"  look        noded status{'' if default else f' --cluster {config.cluster}'}")
    others = "" if config.address is None else "  (and with it all nodes of this cluster on this machine)"
    click.echo(f"  stop        noded stop{'' if default else f' --cluster {config.cluster}'}{others}")
    click.echo(f"  output      {log}")
