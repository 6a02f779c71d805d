"""While the daemon is dead, somebody has to say so: who connects to its port would wait in vain.

The spawner keeps the listening socket, so that a daemon that is started again soon refuses nobody. One that stays away
longer is as if its host were silent, and then the nodes of a head stop what may not run twice (``guard``). So after a
while the spawner takes the connections itself, says one line, and closes them. It knows the death from the kernel.
"""

from __future__ import annotations

import os
import select
import socket

from noded.spawner import protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from noded.spawner.daemons import Watch


class Absence:
    """``set``: of which listening socket, and after how many seconds without a daemon."""

    def __init__(self) -> None:
        self.name = ""
        self.after = 0.0

    def set(self, name: str, after: float) -> None:
        self.name, self.after = name, after

    def watch(self, kept: dict[str, int], alone_since: float | None, now: float) -> Watch | None:
        fd = kept.get(self.name)
        if fd is None or alone_since is None or now < alone_since + self.after:
            return None
        return fd, select.POLLIN, lambda: self._answer(fd)

    def deadline(self, alone_since: float | None, now: float) -> float | None:
        """When to look next."""
        if not self.name or alone_since is None or now >= alone_since + self.after:
            return None
        return alone_since + self.after

    @staticmethod
    def _answer(fd: int) -> None:
        with socket.socket(fileno=os.dup(fd)) as listener:
            listener.setblocking(False)
            try:
                sock, _ = listener.accept()
            except OSError:
                return  # it has gone again
        with sock:
            sock.setblocking(False)
            try:
                sock.send(protocol.AWAY)
            except OSError:
                pass
