"""The deadline after which some workers may not run: kept here, as the daemon itself may be stopped.

They are the actors that the cluster would start on another node once it believes this one dead. The daemon moves the
deadline with every word of the head; when it passes, they are stopped (SIGSTOP), and go on (SIGCONT) when the daemon
moves it again. What was decided meanwhile the daemon learns from the head, and ends them if need be.
"""

from __future__ import annotations

import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


_AGAIN = 0.05


class Guard:
    """``send(wid, signal)`` reaches a worker and all of its process group; False when there is no such worker (yet)."""

    def __init__(self, send: Callable[[str, int], bool]) -> None:
        self._send = send
        self.until: float | None = None
        """Of CLOCK_MONOTONIC; None: there is no deadline."""
        self._wids: list[str] = []
        self._stopped: set[str] = set()

    def set(self, until: float, wids: list[str]) -> None:
        self.until, self._wids = until, wids
        self.check()

    def check(self) -> None:
        """Stop or let go on what is due."""
        due = self.until is not None and time.monotonic() >= self.until
        for wid in self._wids if due else ():
            if wid not in self._stopped and self._send(wid, signal.SIGSTOP):
                self._stopped.add(wid)
        for wid in list(self._stopped):
            if not due or wid not in self._wids:
                self._stopped.discard(wid)
                self._send(wid, signal.SIGCONT)

    def deadline(self) -> float | None:
        """When to look next; None: nothing is due before the daemon says something."""
        if self.until is None or all(wid in self._stopped for wid in self._wids):
            return None
        # One that is forked right now cannot be stopped yet.
        return max(self.until, time.monotonic() + _AGAIN)
