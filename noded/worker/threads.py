"""Runs an actor with several threads: one pool per concurrency group, fed by the main thread through a queue.

To wake a thread costs more than a short call. So at most one is on its way at a time, and who takes a call while more
wait wakes the next: a burst of short calls is done by the few that are awake, and long ones get a thread each.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from noded.client.context import call_now
from noded.wire import messages as m
from noded.worker.execution import Execution
from noded.worker.inbound import Inbound
from noded.worker.streams import NamedStream

if TYPE_CHECKING:
    from noded.worker.executor import Executor, Item

_END_SECONDS = 4.0
_FLUSH_AT = 32
_FLUSH_SECONDS = 0.001


class Group:
    """A concurrency group: its threads are started as they are needed."""

    def __init__(self, name: str, limit: int, run: Callable[[Item, Group, int], None]):
        self.calls: deque[Item] = deque()
        """Those that no thread has taken yet."""
        self._name = name
        self._limit = limit
        self._run = run
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._sleepers: list[threading.Lock] = []
        """Of each thread that waits, what it waits for."""
        self._waking = False
        """A thread is on its way."""
        self._ending = False

    def put(self, item: Item) -> None:
        self.calls.append(item)
        self._wake()

    def _may_wake(self) -> bool:
        return not self._waking and (bool(self._sleepers) or len(self._threads) < self._limit)

    def _wake(self) -> None:
        """One more, if there is one, and none is on its way."""
        if not self._may_wake():
            return
        with self._lock:
            if not self._may_wake():  # by now
                return
            self._waking = True
            if self._sleepers:
                self._sleepers.pop().release()
            else:
                name = f"actor-{self._name or 'call'}"
                self._threads.append(threading.Thread(target=self._work, name=name, daemon=True))
                self._threads[-1].start()

    def _work(self) -> None:
        awake = threading.Lock()
        awake.acquire()
        self._waking = False
        calls, thread = self.calls, threading.get_native_id()
        while True:
            # Without the lock: who waits for it, and not for Python's, makes each call a switch between threads.
            try:
                item = calls.popleft()
            except IndexError:
                if not self._sleep(awake):
                    return
                continue
            if calls:
                self._wake()
            self._run(item, self, thread)
            del item

    def _sleep(self, awake: threading.Lock) -> bool:
        """Until it is woken; at once if a call has come meanwhile. False: it ends."""
        with self._lock:
            self._sleepers.append(awake)  # from now on who puts a call wakes it
            if self.calls or self._ending:
                self._sleepers.remove(awake)
                return bool(self.calls)
        awake.acquire()
        self._waking = False
        return True

    def end(self) -> None:
        """Its threads end after what is there by now."""
        with self._lock:
            self._ending = True
            while self._sleepers:
                self._sleepers.pop().release()

    def join(self, deadline: float) -> None:
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))


class ThreadEngine:
    """See ``Engine`` in ``actor.py``."""

    def __init__(self, executor: Executor, spec: m.ActorSpec):
        self._executor = executor
        executor.threaded = True
        limits = {**spec.concurrency_groups, "": max(1, spec.max_concurrency)}
        self._groups = {name: Group(name, limit, self._run) for name, limit in limits.items()}
        self._methods = spec.methods
        self._open: dict[tuple[Inbound, int], Execution] = {}
        """Handed over and not answered yet."""
        self._last_flush = 0.0
        executor.runtime.tasks.current = NamedStream.ask = call_now.get
        executor.runtime.reader.reserved_for = threading.get_ident()

    def run(self, construct: Callable[[], None]) -> None:
        construct()

    def start(self, item: Item) -> None:
        inbound, message, _ = item
        assert inbound is not None
        extra = message.extra
        name = extra.group if extra is not None else ""
        if not name and (known := self._methods.get(message.method)) is not None:
            name = known.group
        group = self._groups.get(name) or self._groups[""]
        self._open[inbound, message.seq] = Execution(self._executor.runtime, inbound, message)
        self._executor.work_began()
        if self._executor.cancels.take(inbound, message.seq):
            self._open[inbound, message.seq].cancelled = True
        group.put(item)

    def _run(self, item: Item, group: Group, thread: int) -> None:
        inbound, message, payload = item
        assert inbound is not None
        executor = self._executor
        execution = self._open[inbound, message.seq]
        execution.thread = thread
        started = time.monotonic()
        call_now.set(execution)
        try:
            if execution.cancelled:
                executor.answers.cancelled(execution, started)
                executor.finish(execution)
            elif not executor.seat.leaving:
                executor.execute(execution, payload, started)
        finally:
            call_now.set(None)
            del self._open[inbound, message.seq]
        # Whoever answers last of a burst writes for all; the steward's tick is behind it.
        now = time.monotonic()
        if len(inbound.answers) >= _FLUSH_AT or not group.calls or now - self._last_flush > _FLUSH_SECONDS:
            self._last_flush = now
            with executor.runtime.lock:
                inbound.flush_locked()

    def cancel(self, inbound: Inbound, seq: int, recursive: bool) -> bool:
        """One that waits never runs; one that runs can only look (``is_canceled``): threads are not interrupted."""
        execution = self._open.get((inbound, seq))
        if execution is None:
            return False
        execution.cancelled = True
        if recursive:
            self._executor.runtime.tasks.cancel_children_locked(execution)
        return True

    def runs(self, inbound: Inbound, seq: int) -> bool:
        return (inbound, seq) in self._open

    def waiting(self) -> list[deque[Item] | list[Item]]:
        return []

    def busy(self) -> bool:
        return bool(self._open)

    def leave(self) -> None:
        if self._executor.seat.leaving:
            return
        deadline = time.monotonic() + _END_SECONDS
        for group in self._groups.values():
            group.end()
        for group in self._groups.values():
            group.join(deadline)
