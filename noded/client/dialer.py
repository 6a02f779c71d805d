"""Being connected to workers of other nodes: by the daemon, which passes the socket on, so that no secret is here."""

from __future__ import annotations

import socket
from collections.abc import Callable

from noded.client.control import Control
from noded.wire import messages as m

Call = Callable[[socket.socket | None], None]


class DaemonDialer:
    """For clients of a daemon on this machine. Methods need the runtime's lock."""

    def __init__(self, control: Control):
        self._control = control
        self._open: dict[str, tuple[m.Dial, Call]] = {}

    def dial(self, worker: str, address: str, call: Call) -> None:
        message = m.Dial(worker, address)
        self._open[worker] = message, call
        self._control.send(message)
        self._control.flush()

    def on_dialed(self, message: m.Dialed) -> None:
        fd = self._control.take_fd() if not message.error else -1
        found = self._open.pop(message.worker, None)
        sock = socket.socket(fileno=fd) if fd >= 0 else None
        if found is not None:
            found[1](sock)
        elif sock is not None:
            sock.close()

    def retell_locked(self) -> None:
        for message, _ in self._open.values():
            self._control.send(message)
