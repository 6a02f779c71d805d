"""Runs an async actor: many calls at once on one event loop, which is the worker's main thread.

The loop's selector is ours. When the loop wants to sleep it calls ``select``; there the worker reads its sockets and
starts the calls that came, so that reading, running and answering take no thread switch. A call's coroutine is a real
asyncio task whose first step is made at once, by hand: most calls end in it, and never wait for a turn of the loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import select
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from noded.client.context import call_now
from noded.client.refs import ObjectRef
from noded.telemetry import CALL
from noded.wire import messages as m
from noded.worker.execution import Execution
from noded.worker.inbound import Inbound
from noded.worker.streams import NamedStream

if TYPE_CHECKING:
    from noded.worker.executor import Executor, Item

DEFAULT_CONCURRENCY = 1000
_END_SECONDS = 1.0


class WorkerSelector(selectors.EpollSelector):
    """``turn(timeout)`` waits for the worker's sockets and for this selector's own, and does what came."""

    def __init__(self, turn: Callable[[float | None], None]):
        super().__init__()
        self._turn = turn
        self.hot = False
        """Something of the loop's own is ready."""

    def on_event(self, what: int) -> None:
        self.hot = True

    def is_hot(self) -> bool:
        return self.hot

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._turn(timeout if timeout is None else max(0.0, timeout))
        if not self.hot:
            return []
        # Said once when something becomes ready (see ``run``), so it is looked again until nothing is left.
        self.hot = False
        found = super().select(0)
        if found:
            self.hot = True
        return found


class Group:
    """A concurrency group: how many of its calls run, and those that wait."""

    __slots__ = ("limit", "running", "waiting")

    def __init__(self, limit: int):
        self.limit = limit
        self.running = 0
        self.waiting: deque[Item] = deque()


class EventLoopEngine:
    """See ``Engine`` in ``actor.py``."""

    def __init__(self, executor: Executor, spec: m.ActorSpec):
        self._executor = executor
        self._groups = {name: Group(limit) for name, limit in spec.concurrency_groups.items()}
        self._groups[""] = Group(spec.max_concurrency or DEFAULT_CONCURRENCY)
        self._methods = spec.methods
        self._running: dict[tuple[Inbound, int], Execution] = {}
        self._selector = WorkerSelector(self._turn)
        self._loop = asyncio.SelectorEventLoop(self._selector)
        self._step: Callable[[], None] | None = None
        self._ending = False

    def run(self, construct: Callable[[], None]) -> None:
        executor, loop = self._executor, self._loop
        runtime = executor.runtime
        runtime.tasks.current = NamedStream.ask = call_now.get
        runtime.awaiting.own_loop = loop
        runtime.reader.reserved_for = threading.get_ident()
        # Only changes: else the steward would not rest while something is ready that a busy loop does not look at.
        runtime.reader.add(self._selector.fileno(), self._selector.on_event, select.EPOLLIN | select.EPOLLET)
        asyncio.set_event_loop(loop)
        loop.call_soon(construct)
        try:
            loop.run_forever()
            self._end()
        finally:
            runtime.awaiting.own_loop = None
            runtime.reader.remove(self._selector.fileno())
            asyncio.set_event_loop(None)
            loop.close()

    # ------------------------------------------------------------ one turn

    def _turn(self, timeout: float | None) -> None:
        executor = self._executor
        queue = executor.queue
        if executor.exiting:
            over = not self._ending and (not self._running or bool(executor.seat.leaving))
            executor.flush()
            executor.poll(0.0 if over else timeout, also_exiting=True, at_once=self._selector.is_hot)
            if over:
                self._loop.stop()
            return
        if not queue:
            executor.flush()
            executor.poll(timeout, at_once=self._selector.is_hot)
        # No more than is there now: then it is the loop's turn again.
        for _ in range(len(queue)):
            try:
                item = queue.popleft()
            except IndexError:  # one was cancelled meanwhile
                break
            executor.run_one(item)

    def start(self, item: Item) -> None:
        inbound, message, payload = item
        assert inbound is not None
        group = self._group_of(message)
        if group.running >= group.limit:
            group.waiting.append(item)
            return
        executor = self._executor
        execution = Execution(executor.runtime, inbound, message)
        self._running[inbound, message.seq] = execution
        executor.work_began()
        if executor.cancels.take(inbound, message.seq):
            del self._running[inbound, message.seq]
            executor.answers.cancelled(execution, time.monotonic())
            executor.finish(execution)
            return
        group.running += 1
        context = contextvars.copy_context()
        coroutine = self._call(execution, payload, group)
        loop = self._loop
        # A new task asks its loop to make the first step soon. We make it now instead.
        loop.call_soon = self._take_step  # type: ignore[assignment]
        try:
            execution.task = asyncio.Task(coroutine, loop=loop, context=context)
        finally:
            del loop.call_soon
        step, self._step = self._step, None
        assert step is not None
        context.run(step)

    def _take_step(self, step: Callable[[], None], *, context: Any = None) -> None:
        self._step = step

    def _group_of(self, message: m.Call) -> Group:
        extra = message.extra
        name = extra.group if extra is not None else ""
        if not name and (known := self._methods.get(message.method)) is not None:
            name = known.group
        return self._groups.get(name) or self._groups[""]

    async def _call(self, execution: Execution, payload: Any, group: Group) -> None:
        executor = self._executor
        answers, message = executor.answers, execution.message
        started = time.monotonic()
        call_now.set(execution)
        execution.user_code = True
        try:
            method = executor.seat.method(execution)
            if executor.page is not None:
                executor.note_begin(executor.page, execution, CALL, started)
            if payload or message.deps or message.place is not None:
                args, kwargs = answers.arguments(execution, payload)
                result = method(*args, **kwargs)
                del args, kwargs
            else:
                result = method()
            if inspect.isawaitable(result) and type(result) is not ObjectRef:  # a ref is a value like others
                result = await result
            if message.returns == m.STREAMING:
                await executor.streaming.run_async(execution, result)
                message.returns, result = 1, None
            elif message.returns == m.DYNAMIC and hasattr(result, "__aiter__"):
                result = [item async for item in result]
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                if execution.cancelled or not self._ending:
                    answers.cancelled(execution, started)
                # else the actor ends: its daemon says so.
            else:
                executor.answer_error(execution, error, started)
        else:
            answers.result(execution, result, started)
        finally:
            executor.finish(execution)
            self._running.pop((execution.inbound, message.seq), None)
            group.running -= 1
            if group.waiting:
                executor.queue.appendleft(group.waiting.popleft())

    # ------------------------------------------------------------ cancel, end

    def cancel(self, inbound: Inbound, seq: int, recursive: bool) -> bool:
        execution = self._running.get((inbound, seq))
        if execution is None:
            return False
        execution.cancelled = True
        if recursive:
            self._executor.runtime.tasks.cancel_children_locked(execution)
        try:
            self._loop.call_soon_threadsafe(self._cancel_now, execution)
        except RuntimeError:  # the loop is closed: the actor has ended
            pass
        return True

    def _cancel_now(self, execution: Execution) -> None:
        """On the loop, where a call that has begun has its task."""
        execution.task.cancel()

    def runs(self, inbound: Inbound, seq: int) -> bool:
        return (inbound, seq) in self._running

    def waiting(self) -> list[deque[Item] | list[Item]]:
        return [group.waiting for group in self._groups.values()]

    def busy(self) -> bool:
        return bool(self._running)

    def leave(self) -> None:
        """``run`` has seen to it."""

    def _end(self) -> None:
        """The user's background tasks end with the actor."""
        self._ending, loop = True, self._loop
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=_END_SECONDS))
        loop.run_until_complete(loop.shutdown_asyncgens())
