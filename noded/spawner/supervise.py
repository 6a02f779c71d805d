"""Keeping the daemon running, for --supervise: start it, restart it with back-off, end it on SIGTERM.

Used as a container's first process and where no systemd is. The daemon gets the spawner's environment and
standard files and a session of its own. One that fails before any daemon was there is not tried again: there is
nothing to lose, and whoever started the container should see it. Not here: the rule that ends everything when no
daemon attaches (`core`).
"""

from __future__ import annotations

import os
import signal
import time

from noded.spawner import kernel
from noded.spawner.children import spawn

FIRST_DELAY = 0.1
LONGEST_DELAY = 5.0
STEADY = 10.0  # a run this long counts as healthy: the next restart starts at FIRST_DELAY again
PATIENCE = 8.0  # what a daemon gets to end by itself; less than the 10 s that containers get
SUPERSEDED = 3  # exit code: another head has taken over, and starting again would take it back


class Supervised:
    def __init__(self, argv: list[str], oom_score: str | None) -> None:
        self._argv = argv
        self._oom_score = oom_score
        self.pid: int | None = None
        self._started = 0.0
        self._delay = FIRST_DELAY
        self.due: float | None = 0.0  # when to start it; None while it runs or must not run
        self.killed_at: float | None = None  # set once it was asked to end: when patience is over
        self.given_up = False  # it has ended and is not to be started again
        self.code = 0  # how it ended, as a shell would put it

    def start(self) -> None:
        """Start the daemon; one that cannot be started is given up."""
        self._started = time.monotonic()
        self.due = None
        try:
            self.pid = spawn(self._argv, dict(os.environ), self._oom_score)
        except OSError as error:
            self.code = 127
            self.given_up = True
            kernel.say(f"the daemon cannot be started: {error}")

    def postpone(self) -> None:
        """Somebody else's daemon is attached: look again later."""
        self.due = time.monotonic() + LONGEST_DELAY

    def reap(self, *, came: bool) -> None:
        """Take note when the daemon has ended, and plan its restart; `came`: some daemon has attached by now."""
        if self.pid is None or not kernel.is_zombie(self.pid):
            return
        code, number = kernel.code_and_signal(os.waitpid(self.pid, 0)[1])
        self.pid = None
        self.code = 128 + (number or 0) if code is None else code
        if self.killed_at is not None:
            return
        if self.code == SUPERSEDED or (self.code != 0 and not came):
            self.given_up = True
        else:
            self._retry_after(f"ended with signal {number}" if code is None else f"ended with code {code}")

    def _retry_after(self, event: str) -> None:
        now = time.monotonic()
        if now - self._started >= STEADY:
            self._delay = FIRST_DELAY
        kernel.say(f"the daemon {event}; starting it again in {self._delay:g} s")
        self.due = now + self._delay
        self._delay = min(self._delay * 2, LONGEST_DELAY)

    def terminate(self, number: int | None = signal.SIGTERM) -> None:
        """Ask the daemon to end (without a signal: it has asked itself) and do not start it again."""
        self.due = None
        if self.killed_at is None:
            self.killed_at = time.monotonic() + PATIENCE
            if self.pid is None:
                self.code = 0  # how the last one ended is of no interest any more
            elif number is not None:
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it now, for good."""
        if self.killed_at is None:
            self.killed_at = time.monotonic()
        self.due = None
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
