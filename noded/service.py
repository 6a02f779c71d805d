"""What a daemon has to do with the world that starts it: the service manager, and another daemon in its place."""

from __future__ import annotations

import json
import logging
import os
import socket

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
    """The pid of a daemon that serves this directory and answers; a stopped or hung one does not count: it is
    replaced.
    """
    try:
        with open(os.path.join(run_dir, "node.json")) as file:
            pid = int(json.load(file)["pid"])
        with open(f"/proc/{pid}/stat") as file:
            state = file.read().rpartition(")")[2].split()[0]
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            if b"noded" not in file.read():
                return None
    except (OSError, ValueError, KeyError, IndexError):
        return None
    return None if state in "TtZX" else pid
