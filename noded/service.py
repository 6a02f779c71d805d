"""What a daemon has to do with the world that starts it: the service manager, and another daemon in its place."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

from noded.config import node_in, process_state

log = logging.getLogger("noded.service")


def notify_systemd(state: str) -> None:
    """Tell the service manager, if there is one."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(address)
            sock.send(state.encode())
    except OSError as error:
        log.debug("the service manager cannot be told %s: %s", state, error)


def running_daemon(run_dir: str) -> int | None:
    """The pid of a daemon that serves this directory; a stopped one does not count: it is replaced."""
    node = node_in(Path(run_dir))
    state = process_state(node.pid) if node is not None and node.alive else None
    return None if node is None or state is None or state[0] in "Tt" else node.pid
