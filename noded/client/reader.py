"""The reader role: who reads the data sockets.

One lock, one epoll. A thread that waits takes the role and reads the sockets itself, which saves two thread
switches per call; when nobody waits the helper thread takes it at its tick. Threads that wait while another
reads sleep on a lock of their own and are woken after every batch that brought something.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from typing import Any

IN, OUT = select.EPOLLIN, select.EPOLLOUT


class Reader:
    """The role, the epoll, and the threads that wait for either."""

    def __init__(self) -> None:
        self.role = threading.Lock()
        self.epoll = select.epoll()
        self.handlers: dict[int, Callable[[int], None]] = {}
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.last_read = 0.0
        self.wanted = 0
        """Threads that want the role while somebody has it."""
        self.reserved_for = 0
        """The only thread, beside the helper, that reads: of an actor with several threads or coroutines its main
        thread, which is to start the calls that come.
        """
        self._claimed = False
        """Who runs tasks wants the role back from a thread that waits."""
        self._sleepers: list[threading.Lock] = []
        self._guard = threading.Lock()
        self.add(self.wake_fd, self._on_wake)

    def add(self, fd: int, handler: Callable[[int], None], events: int = IN) -> None:
        self.handlers[fd] = handler
        self.epoll.register(fd, events)

    def remove(self, fd: int) -> None:
        if self.handlers.pop(fd, None) is not None:
            try:
                self.epoll.unregister(fd)
            except OSError:  # the descriptor is closed already
                pass

    def want_write(self, fd: int, wanted: bool) -> None:
        if fd in self.handlers:
            self.epoll.modify(fd, IN | OUT if wanted else IN)

    def _on_wake(self, events: int) -> None:
        try:
            os.eventfd_read(self.wake_fd)
        except BlockingIOError:
            pass

    def wake(self) -> None:
        """Make the thread that polls look around."""
        try:
            os.eventfd_write(self.wake_fd, 1)
        except OSError:  # closed at shutdown
            pass

    def poll(self, timeout: float | None) -> int:
        """Read what is there; only for the holder of the role. Returns the number of sockets that had
        something.
        """
        events = self.epoll.poll(timeout, 64)
        handlers = self.handlers
        for fd, what in events:
            handler = handlers.get(fd)
            if handler is not None:
                handler(what)
        self.last_read = time.monotonic()
        if self._sleepers and events:
            self.wake_sleepers()
        return len(events)

    def wake_sleepers(self) -> None:
        with self._guard:
            sleepers, self._sleepers = self._sleepers, []
        for lock in sleepers:
            lock.release()

    def release(self) -> None:
        """Give up the role and let somebody who waits take it."""
        self.role.release()
        if self._sleepers:
            self.wake_sleepers()

    def claim(self) -> None:
        """Take the role, from whoever waits with it; for the thread that runs tasks."""
        if not self.role.acquire(blocking=False):
            self._claimed = True
            self.wanted += 1
            self.wake()
            self.role.acquire()
            self.wanted -= 1
            self._claimed = False

    def _gives_way(self) -> bool:
        return self._claimed

    def notify(self) -> None:
        """Something changed outside of the data sockets (a message of the daemon): let all who wait look."""
        self.wake_sleepers()
        self.wake()

    def wait(self, done: Callable[[], Any], deadline: float | None, pause: Callable[[], None]) -> bool:
        """Wait until ``done()``; False at the deadline. ``pause`` runs before each sleep and may raise
        (interrupts).
        """
        role = self.role
        barred = bool(self.reserved_for) and self.reserved_for != threading.get_ident()
        asked = barred
        while not done():
            pause()
            timeout = None if deadline is None else deadline - time.monotonic()
            if timeout is not None and timeout <= 0:
                self._look_once()
                return bool(done())
            if not barred and not self._gives_way() and role.acquire(blocking=False):
                try:
                    # Whoever had the role until now may have read what we wait for: look before the first poll.
                    while not done():
                        if self._gives_way():
                            break
                        self.poll(timeout)
                        if done():
                            return True
                        pause()
                        if deadline is not None:
                            timeout = deadline - time.monotonic()
                            if timeout <= 0:
                                return bool(done())
                    else:
                        return True
                finally:
                    self.release()
            else:
                sleeper = threading.Lock()
                sleeper.acquire()
                with self._guard:
                    self._sleepers.append(sleeper)
                if done():
                    return True
                self.wanted += not barred
                try:
                    # Once: whoever polls wakes us in turn, and several who wait would keep each other busy.
                    if not asked:
                        asked = True
                        self.wake()
                    # Bounded, so that a lost hand-over costs a moment and not for ever.
                    sleeper.acquire(timeout=0.1 if timeout is None else min(0.1, timeout))
                finally:
                    self.wanted -= not barred
        return True

    def _look_once(self) -> None:
        """A wait of no length still sees what has arrived."""
        if self.role.acquire(blocking=False):
            try:
                self.poll(0)
            finally:
                self.release()

    def close(self) -> None:
        self.handlers.clear()
        self.epoll.close()
        os.close(self.wake_fd)
