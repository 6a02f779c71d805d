"""How a cancel finds its call, which runs, waits somewhere, or is on its way from the one to the other just now.

Cancels come in whichever thread reads, under the runtime's lock; calls begin on the main thread, without it. So each
side first says what it does and then looks at the other: a cancel that finds nothing is noted and looks once more,
a call that begins is registered and then looks for a note (``take``). A note is taken in one step: by one of the two.
"""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from noded.wire import messages as m
from noded.worker.inbound import Inbound

if TYPE_CHECKING:
    from noded.worker.executor import Executor

_NOTES = 1000
"""Most notes are of calls that have just ended; nobody takes those."""


class Cancels:
    """Made in the main thread. ``places()`` are the queues in which calls wait."""

    def __init__(self, executor: Executor, places: Callable[[], list[deque[Any] | list[Any]]]):
        self._executor = executor
        self._places = places
        self._main = threading.get_ident()
        self._notes: dict[tuple[Inbound, int], None] = {}

    def on_cancel(self, inbound: Inbound, message: m.Cancel) -> None:
        key = inbound, message.seq
        if self._strike(inbound, message) or self._withdraw(inbound, message.seq):
            return
        self._notes[key] = None
        if len(self._notes) > _NOTES:
            del self._notes[next(iter(self._notes))]
        if self._runs(inbound, message.seq) and self.take(inbound, message.seq):
            self._strike(inbound, message)

    def take(self, inbound: Inbound, seq: int) -> bool:
        """Whether a call that begins is cancelled already."""
        return bool(self._notes) and self._notes.pop((inbound, seq), self) is None

    def forget(self, inbound: Inbound) -> None:
        for key in [key for key in self._notes if key[0] is inbound]:
            del self._notes[key]

    def on_signal(self, number: int, frame: Any) -> None:
        current = self._executor.current
        if current is not None and current.user_code and current.cancelled:
            raise KeyboardInterrupt

    # ------------------------------------------------------------ where it is

    def _runs(self, inbound: Inbound, seq: int) -> bool:
        executor, current = self._executor, self._executor.current
        if current is not None and current.inbound is inbound and current.message.seq == seq:
            return True
        return executor.engine is not None and executor.engine.runs(inbound, seq)

    def _strike(self, inbound: Inbound, message: m.Cancel) -> bool:
        """Cancel it where it runs."""
        executor, current = self._executor, self._executor.current
        if current is not None and current.inbound is inbound and current.message.seq == message.seq:
            current.cancelled = True
            if message.recursive:
                executor.runtime.tasks.cancel_children_locked(current)
            if not current.asked or type(current.message) is m.Push:  # else it ends by itself
                signal.pthread_kill(self._main, signal.SIGINT)
            return True
        return executor.engine is not None and executor.engine.cancel(inbound, message.seq, message.recursive)

    def _withdraw(self, inbound: Inbound, seq: int) -> bool:
        """It waits, and never runs."""
        for place in self._places():
            for item in list(place):
                if item[0] is inbound and item[1].seq == seq:
                    try:
                        place.remove(item)
                    except ValueError:  # it leaves just now
                        return False
                    inbound.send_locked(m.Failed(seq, 0, 0, True))
                    inbound.flush_locked()
                    return True
        return False
