"""Runs the node's daemon in this process: one at a time for a node, and again when the node starts over.

``main(config)`` is what ``noded`` runs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from dataclasses import replace

from noded.config import Config, log_dir, make_dir, make_node_dir, node_dir, start_log
from noded.daemon import Daemon, StartError
from noded.lifecycle import time_callbacks
from noded.logs.daemon import leave_stderr, setup_logging
from noded.logs.files import DAEMON_LOG
from noded.service import StartLock, running_daemon

log = logging.getLogger("noded.daemon")


def main(config: Config) -> int:
    """Run the daemon in the foreground; the exit code."""
    make_node_dir(config)
    lock = StartLock(str(node_dir(config)))
    if not lock.acquire():
        return _fail_start(
            config, f"another daemon of cluster {config.cluster!r} has been starting for a while; try again"
        )
    try:
        return _run(config, lock)
    finally:
        lock.release()


def _run(config: Config, lock: StartLock) -> int:
    background = _in_background(config)
    while True:
        daemon, code = _run_once(config, lock, background)
        if not daemon.starts_over:
            return code
        config = replace(config, ready_fd=None)


def _run_once(config: Config, lock: StartLock, background: bool) -> tuple[Daemon, int]:
    def on_ready() -> None:
        lock.release()
        if background:
            leave_stderr()

    daemon = Daemon(config, on_ready=on_ready)
    _set_up_log(config)
    pid = running_daemon(daemon.run_dir)
    if pid is not None and pid != os.getpid():
        return daemon, _fail_start(
            config,
            f"a noded daemon of cluster {config.cluster!r} runs already (pid {pid}): see `noded "
            "status`, end it with `noded stop`, or start another with --cluster NAME",
        )
    debug = bool(os.environ.get("NODED_ASYNCIO_DEBUG"))
    try:
        if debug:
            time_callbacks()
            return daemon, asyncio.run(daemon.run(), debug=True)
        import uvloop

        return daemon, uvloop.run(daemon.run())
    except StartError as error:
        log.debug("cannot start", exc_info=True)
        return daemon, _fail_start(config, str(error))


def _in_background(config: Config) -> bool:
    """`noded start` has started it."""
    try:
        return os.path.samestat(os.fstat(2), os.stat(start_log(config)))
    except OSError:
        return False


def _set_up_log(config: Config) -> None:
    """A private node's daemon has no terminal of its own: what it says is in its run directory alone."""
    directory = node_dir(config) if config.private else make_dir(log_dir(config))
    path = str(directory / ("noded.log" if config.private else DAEMON_LOG))
    setup_logging(path, config.log_level, config.log_format, stderr=not config.private)


def _fail_start(config: Config, text: str) -> int:
    if config.ready_fd is not None:
        try:
            os.write(config.ready_fd, json.dumps({"error": text}).encode() + b"\n")
        except OSError:
            pass
    if not config.private:  # the program that starts a private one raises it
        print(f"noded: {text}", file=sys.stderr)
    return 1
