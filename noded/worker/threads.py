"""Runs an actor with several threads: one pool per concurrency group, fed by the main thread through a queue."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
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

    __slots__ = ("idle", "limit", "queue", "threads")

    def __init__(self, limit: int):
        self.limit = limit
        self.queue: SimpleQueue[Item | None] = SimpleQueue()
        self.threads: list[threading.Thread] = []
        self.idle = 0
        """Threads that wait, less the calls that are on their way to them: below 0 when calls wait."""


class ThreadEngine:
    """See ``Engine`` in ``actor.py``."""

    def __init__(self, executor: Executor, spec: m.ActorSpec):
        self._executor = executor
        executor.threaded = True
        self._groups = {name: Group(limit) for name, limit in spec.concurrency_groups.items()}
        self._groups[""] = Group(max(1, spec.max_concurrency))
        self._methods = spec.methods
        self._lock = threading.Lock()
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
        group.queue.put(item)
        with self._lock:
            group.idle -= 1
            if group.idle < 0 and len(group.threads) < group.limit:
                thread = threading.Thread(target=self._work, args=(group,), name=f"actor-{name or 'call'}", daemon=True)
                group.threads.append(thread)
                group.idle += 1
                thread.start()

    def _work(self, group: Group) -> None:
        while (item := group.queue.get()) is not None:
            self._run(item, group)
            del item
            with self._lock:
                group.idle += 1

    def _run(self, item: Item, group: Group) -> None:
        inbound, message, payload = item
        assert inbound is not None
        executor = self._executor
        execution = self._open[inbound, message.seq]
        started = time.monotonic()
        call_now.set(execution)
        try:
            if execution.cancelled:
                executor.answers.cancelled(execution, started)
            elif not executor.seat.leaving:
                executor.execute(execution, payload, started)
        finally:
            call_now.set(None)
            del self._open[inbound, message.seq]
        # Whoever answers last of a burst writes for all; the steward's tick is behind it.
        now = time.monotonic()
        if inbound.link.unsent >= _FLUSH_AT or group.queue.empty() or now - self._last_flush > _FLUSH_SECONDS:
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
            for _ in group.threads:
                group.queue.put(None)
        for group in self._groups.values():
            for thread in group.threads:
                if thread is not threading.current_thread():
                    thread.join(max(0.0, deadline - time.monotonic()))
