"""`noded stop`: end the nodes of one cluster on this machine, whatever state they are in.

A daemon that answers is asked and ends everything itself. One that is stopped by a signal is killed, and
where the daemon is gone its spawner is told instead, which ends the workers and all that descends from them.
It returns when no process of the node is left. Other clusters are not touched.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import click

from noded.cli.control import ControlError, request_stop
from noded.config import NodeInfo, find_nodes, process_state, remove_node_dir, run_base
from noded.spawner import protocol

# What a daemon gets for a stop in good order, and the spawner for ending what is left.
DAEMON_SECONDS = 20.0
SPAWNER_SECONDS = 10.0
KILL_SECONDS = 5.0
_CREDENTIALS = struct.Struct("3i")


@dataclass(frozen=True)
class Place:
    """A node's directory; `node` is None when its daemon never came so far as to write node.json."""

    dir: Path
    node: NodeInfo | None

    def daemon(self) -> int | None:
        """The daemon's pid while it runs."""
        return self.node.pid if self.node is not None and self.node.runs() else None

    def processes(self) -> set[int]:
        """All that runs for this node: its daemon, and what has the directory in its command."""
        found = {pid} if (pid := self.daemon()) else set()
        mark = b"\0--dir\0" + os.fsencode(self.dir) + b"\0"
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with suppress(OSError):
                    path = Path("/proc", entry)
                    # Forked workers have the command of their template; a zombie has none.
                    if mark in (path / "cmdline").read_bytes() and path.stat().st_uid == os.geteuid():
                        found.add(int(entry))
        return found

    def __str__(self) -> str:
        return f"node {self.dir.name} of cluster {self.dir.parent.name}"


def stop_cluster(cluster: str, env: Mapping[str, str], force: bool) -> None:
    nodes = find_nodes(env)
    places = {node.dir: Place(node.dir, node) for node in nodes if node.cluster == cluster}
    for path in run_base(env, cluster).glob(f"{cluster}/*/spawner.sock"):
        places.setdefault(path.parent, Place(path.parent, None))
    stopped = [place for place in places.values() if _stop(place, force)]
    for place in stopped:
        click.echo(f"stopped {place}")
    if not stopped:
        others = sorted({node.cluster for node in nodes if node.alive} - {cluster})
        hint = f"; others run: {', '.join(others)} (noded stop --cluster NAME)" if others else ""
        click.echo(f"nothing of cluster {cluster} runs here{hint}")


def _stop(place: Place, force: bool) -> bool:
    """False when nothing of it was running."""
    was_running = bool(place.processes())
    _end_daemon(place, force)
    try:
        if _stop_spawner(place.dir):
            was_running = True
    except (OSError, protocol.ProtocolError) as error:
        if not force:
            raise click.ClickException(f"the spawner of {place} did not end: {error}; use --force") from None
    if not _wait(lambda: not place.processes(), KILL_SECONDS if force else SPAWNER_SECONDS):
        if not force:
            left = ", ".join(map(str, sorted(place.processes())))
            raise click.ClickException(f"{place} has still processes: {left}; use --force")
        for pid in place.processes():
            _kill(pid)
        _wait(lambda: not place.processes(), KILL_SECONDS)
    if not place.processes():  # usually gone already; without a daemon nobody else does it
        remove_node_dir(place.dir)
    return was_running


def _end_daemon(place: Place, force: bool) -> None:
    pid = place.daemon()
    if pid is None or place.node is None:
        return
    state = process_state(pid)
    if force or (state and state[0] in "Tt"):
        _kill(pid)
        if not _wait(lambda: place.daemon() is None, KILL_SECONDS):
            raise click.ClickException(
                f"the daemon of {place}, pid {pid}, does not end by SIGKILL: it is in the kernel"
            )
        return
    try:
        request_stop(place.node)
    except ControlError as error:
        click.echo(f"{error}; sending it SIGTERM", err=True)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    if not _wait(lambda: place.daemon() is None, DAEMON_SECONDS):
        raise click.ClickException(
            f"the daemon of {place}, pid {pid}, did not end within {DAEMON_SECONDS:g} s: use --force"
        )


def _stop_spawner(directory: Path) -> bool:
    """Tell the spawner to end everything; False when there is none. Saying hello makes us its daemon."""
    path = str(directory / "spawner.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
        link.settimeout(SPAWNER_SECONDS)
        try:
            link.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        pid, _, _ = _CREDENTIALS.unpack(link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        state = process_state(pid)
        if state and state[0] in "Tt":  # only it can end everything in order
            os.kill(pid, signal.SIGCONT)
        try:
            daemon, welcome = protocol.connect(path, SPAWNER_SECONDS)
            with daemon:
                protocol.close_all(welcome.fds.values())
                protocol.send(daemon, {"t": "stop"})
                while True:
                    protocol.close_all(protocol.recv(daemon)[1])
        except (EOFError, ConnectionError):  # that is its answer, also when it was ending already
            return True


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    pause = 0.002
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 0.1)
    return True
