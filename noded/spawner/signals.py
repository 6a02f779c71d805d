"""The spawner's signals as one descriptor: SIGCHLD wakes it, SIGTERM is counted, the rest is ignored. With a daemon
to supervise SIGINT counts as SIGTERM: it is the process that Ctrl-C reaches.

Handlers do nothing but wake; what follows is decided in the loop (`core`), so no code runs at a surprising
moment.
"""

from __future__ import annotations

import os
import select
import signal

from noded.spawner import kernel


class Signals:
    def __init__(self, *, interrupts: bool = False) -> None:
        self.terminations = 0
        self.fd, self._write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        for number in kernel.IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_terminate)
        if interrupts:
            signal.signal(signal.SIGINT, self._on_terminate)
        # A parent may have blocked them, and a blocked mask is inherited.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT})

    def _on_terminate(self, *_: object) -> None:
        self.terminations += 1

    def drain(self) -> None:
        """Take the wake-ups that were seen."""
        try:
            while os.read(self.fd, 4096):
                pass
        except BlockingIOError:
            return

    def wait(self, seconds: float) -> None:
        """Sleep until a signal arrives, at most so long."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        poll.poll(int(seconds * 1000))
        self.drain()
