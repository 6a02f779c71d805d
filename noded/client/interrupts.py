"""Ctrl-C (and soft cancel) only between our steps, never inside them.

Python raises KeyboardInterrupt between any two bytecodes of the main thread, also in the middle of a frame
being written. Our handler looks whether the main thread is inside protocol code; if so the interrupt is kept
and raised on the way out (``check``), else it goes to the handler that was there before.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any


class Interrupts:
    """``wake`` must make a sleeping main thread come back to ``check``, and the helper call ``again``. ``finalizer`` is
    code that Python runs anywhere and where an exception would only be printed.
    """

    def __init__(self, lock: Any, wake: Callable[[], None], finalizer: CodeType):
        self._lock = lock
        self._finalizer = finalizer
        self._wake = wake
        self._previous: Any = None
        self._installed = False
        self.depth = 0
        """How deep the main thread is in protocol code."""
        self.pending = False
        self.main = threading.main_thread().ident

    def install(self) -> None:
        """Only in the main thread, and only over Python's own handler: a user's handler stays the user's."""
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            self._previous = signal.signal(signal.SIGINT, self._on_signal)
            self._installed = True

    def install_for(self, handler: Callable[[int, FrameType | None], None]) -> None:
        """In a worker: SIGINT means soft cancel, and ``handler`` decides whether it is still meant."""
        self._previous = handler
        signal.signal(signal.SIGINT, self._on_signal)

    def uninstall(self) -> None:
        if self._installed and threading.current_thread() is threading.main_thread():
            if signal.getsignal(signal.SIGINT) == self._on_signal:
                signal.signal(signal.SIGINT, self._previous)
            self._installed = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.depth or self._lock._is_owned() or self._in_finalizer(frame):
            self.pending = True
            self._wake()
        else:
            self.fire()

    def _in_finalizer(self, frame: FrameType | None) -> bool:
        while frame is not None:  # this handler itself may be interrupted in one
            if frame.f_code is self._finalizer:
                return True
            frame = frame.f_back
        return False

    def again(self) -> None:
        """From the helper: an interrupt that was kept where nothing raises it afterwards is sent once more."""
        if self.pending and not self.depth and self.main is not None:
            signal.pthread_kill(self.main, signal.SIGINT)

    def fire(self) -> None:
        self.pending = False
        previous = self._previous
        if callable(previous):
            previous(signal.SIGINT, None)
        else:
            raise KeyboardInterrupt

    def check(self) -> None:
        """A place where an interrupt may be raised."""
        if self.pending and threading.get_ident() == self.main:
            self.fire()

    def __enter__(self) -> None:
        if threading.get_ident() == self.main:
            self.depth += 1

    def __exit__(self, *exc: object) -> None:
        if threading.get_ident() == self.main:
            self.depth -= 1
            if self.pending and not self.depth and exc[0] is None:
                self.fire()
