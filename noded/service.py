"""What a daemon has to do with the world that starts it: the service manager, and another daemon in its place."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
from pathlib import Path

from noded.config import node_in, process_state

log = logging.getLogger("noded.service")


class StartLock:
    """Two daemons that start at the same moment: the second waits until the first is ready, and then sees it."""

    _SECONDS = 15.0

    def __init__(self, run_dir: str):
        self._path = os.path.join(run_dir, "start.lock")
        self._fd = -1

    def acquire(self) -> bool:
        """False when another one has been starting for too long."""
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + self._SECONDS
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() > deadline:
                    self.release()
                    return False
                time.sleep(0.02)

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def watchdog_pause() -> float | None:
    """Seconds between two signs of life that the service manager wants of this process; None: it wants none."""
    try:
        limit = int(os.environ["WATCHDOG_USEC"]) / 1e6
        watched = int(os.environ.get("WATCHDOG_PID") or os.getpid())
    except (KeyError, ValueError):
        return None
    return min(limit / 3, 10.0) if limit > 0 and watched == os.getpid() else None


def notify_systemd(state: str) -> None:
    """Tell the service manager, if there is one."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)  # a manager that does not read must not stop the loop
            sock.connect(address)
            sock.send(state.encode())
    except OSError as error:
        log.debug("the service manager cannot be told %s: %s", state, error)


def running_daemon(run_dir: str) -> int | None:
    """The pid of a daemon that serves this directory; a stopped one does not count: it is replaced."""
    node = node_in(Path(run_dir))
    state = process_state(node.pid) if node is not None and node.alive else None
    return None if node is None or state is None or state[0] in "Tt" else node.pid
