"""Takes in tasks and actor calls and runs them, in order, on the worker's main thread.

The main thread reads the data sockets while it has nothing to run; the steward (the runtime's helper thread)
supervises it at its 5 ms tick: what is unstarted behind a task that runs long goes back to its submitter, a
blocked worker gives its CPUs back, finished replies go out. Actors that run several calls at once are run by
``threads.py`` or ``event_loop.py``; their calls come in here and are handed on (``start_call``).
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from noded.client import codec, sites
from noded.client.context import running
from noded.client.exits import IntentionalExit
from noded.client.runtime import Runtime
from noded.stack_text import own_stacks
from noded.telemetry import CALL, NOT_BEGUN, RETURNED, TASK, Page
from noded.wire import messages as m
from noded.worker import streams
from noded.worker.actor import ActorSeat, Engine
from noded.worker.answers import Answers
from noded.worker.cancels import Cancels
from noded.worker.execution import Execution
from noded.worker.inbound import Inbound, RemoteCode
from noded.worker.lent import LentNow
from noded.worker.streaming import Streaming
from noded.worker.streams import NamedStream

LONG = 0.005
"""Seconds after which nothing may wait behind a task any more."""
_CALLER_SECONDS = 120.0
_FLUSH_AT = 32
_FLUSH_SECONDS = 0.001
Item = tuple[Inbound | None, Any, Any]


class Executor:
    """``run()`` is the worker's life; messages come in through ``on_data`` and ``on_control`` under the
    runtime's lock.
    """

    def __init__(self) -> None:
        self.runtime: Runtime
        self.answers: Answers
        self.streaming: Streaming
        self.queue: deque[Item] = deque()
        self._early: list[Item] = []
        """Calls that came before the actor's constructor has run."""
        self.inbound: list[Inbound] = []
        self._sessions: dict[tuple[bytes, int], Inbound] = {}
        """Callers of other nodes, by prefix and the number of their session."""
        self.highest_lease = 0
        self.current: Execution | None = None
        """What the main thread runs."""
        self._started = 0.0
        self._blocked_since = 0.0
        self._blocked_before = 0.0
        """Seconds that the current task was blocked before, since it last lent its CPUs."""
        self._count = 0
        self._count_at_tick = 0
        self._last_flush = 0.0
        self._main = threading.get_ident()
        self._code: dict[bytes, Callable[..., Any]] = {}
        self._calls: dict[bytes, int] = {}
        """Of functions with ``max_calls``: how often they ran."""
        self.retiring = ""
        """Why this worker takes no more tasks."""
        self.lent = LentNow()
        self.page: Page | None = None
        """Where it is written down what runs; None where that cannot be."""
        self._clock = time.time() - time.monotonic()
        self.seat = ActorSeat(self)
        self.engine: Engine | None = None
        """Of an actor that runs several calls at once."""
        self.threaded = False
        """Its calls run in several threads."""
        self.exiting = ""
        self.cancels = Cancels(self, self._where_calls_wait)
        self.take_in: Callable[[socket.socket, bool], None] = lambda sock, remote: sock.close()

    def bind(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.answers = Answers(runtime)
        runtime.interrupts.install_for(self.cancels.on_signal)

    def after_attach(self) -> None:
        runtime = self.runtime
        runtime.objects.before_block = self._before_block
        runtime.tasks.current = lambda: self.current
        self.streaming = Streaming(self.answers, lambda done: runtime.objects.sleep(done, None), self._flush_one)

    # ------------------------------------------------------------ messages

    def on_data(self, inbound: Inbound, message: Any, payload: Any) -> None:
        kind = type(message)
        if kind is m.Push:
            if message.lease < self.highest_lease:
                inbound.send_locked(m.Stale([message.seq]))
                inbound.flush_locked()
                return
            self.highest_lease = message.lease
            if self._blocked_since or self.retiring:
                inbound.send_locked(m.Returned([message.seq], self._running_for(inbound), bool(self.retiring)))
                inbound.flush_locked()
                if self.retiring:
                    self._say_retiring_locked()
                return
            self.queue.append((inbound, message, payload))
        elif kind is m.Call:
            (self._early if self.seat.leaving else self.queue).append((inbound, message, payload))
        elif kind is m.Func:
            inbound.functions[message.number] = RemoteCode(message, payload)
        elif kind is m.Lent:
            inbound.lent = message
        elif kind is m.Taken:
            self.streaming.on_taken(inbound, message)
        elif kind is m.Cancel:
            self.cancels.on_cancel(inbound, message)
        elif kind is m.GiveBack:
            self._return_unstarted_locked()
        elif kind is m.Hello:
            self._on_hello(inbound, message)

    def _on_hello(self, inbound: Inbound, message: m.Hello) -> None:
        if message.version != m.DATA_VERSION:
            inbound.close_locked()
            return
        if inbound.session is None:
            inbound.prefix = message.prefix
            return
        key = message.prefix, message.session
        known = self._sessions.get(key)
        if known is None:
            inbound.prefix = message.prefix
            self._sessions[key] = inbound
            inbound.session.send_uncounted(m.GotAnswers(0 if not message.got else -1))
            inbound.flush_locked()
            return
        # The caller's connection was broken, and this is its next one.
        self.inbound.remove(inbound)
        known.resume_locked(inbound.give_up_socket(), message.got)

    def drop_lost_callers_locked(self) -> None:
        """Of other nodes, that have been away for longer than a node may be."""
        now = time.monotonic()
        for key, inbound in list(self._sessions.items()):
            session = inbound.session
            if session is None or session.closed:
                del self._sessions[key]
            elif session.suspended and now - inbound.suspended_at > _CALLER_SECONDS:
                inbound.close_locked()

    def on_closed(self, inbound: Inbound) -> None:
        """The caller is gone, or will never read: what it has queued here is its daemon's to decide; results
        would have no reader.
        """
        if inbound in self.inbound:
            self.inbound.remove(inbound)
        self.streaming.on_closed(inbound)
        self.cancels.forget(inbound)

    def on_drained(self, inbound: Inbound) -> None:
        """The caller has read its answers: what was held back for it is its turn again, in order."""
        self.queue.extend(inbound.held)
        inbound.held.clear()
        self.runtime.reader.wake()

    def on_control(self, message: Any, payload: Any) -> None:
        kind = type(message)
        if kind is m.WhatStack:
            told = {"stack": own_stacks(with_caller=False)}
            self.runtime.control.send(m.Stack(message.request), json.dumps(told).encode())
            return
        if kind is m.SetJob:
            self.runtime.job = NamedStream.job = message.job  # from now on told at an attach, entered or not
        if kind is m.SetJob or kind is m.Instantiate:
            self.queue.appendleft((None, message, payload))
        elif kind is m.Caller:
            fd = self.runtime.control.take_fd()
            if fd >= 0:
                self.take_in(socket.socket(fileno=fd), True)
        elif kind is m.Exit:
            self.exiting = message.reason or "asked to"
        self.runtime.reader.wake()

    def _running_for(self, inbound: Inbound) -> int:
        current = self.current
        return current.message.seq if current is not None and current.inbound is inbound else 0

    # ------------------------------------------------------------ main thread

    def run(self) -> None:
        queue = self.queue
        while not self.exiting:
            if queue:
                try:
                    item = queue.popleft()
                except IndexError:  # the steward gave it back meanwhile
                    continue
                self.run_one(item)
            else:
                self.flush()
                self.poll(None)
        if self.engine is not None:
            self.engine.leave()
        self.flush()

    def poll(self, timeout: float | None, *, also_exiting: bool = False, at_once: Callable[[], bool] = bool) -> None:
        """Read the sockets, unless there is something to do; only for the main thread. ``at_once`` is asked when nobody
        else reads any more: whether to look only, and not to wait.
        """
        reader = self.runtime.reader
        reader.claim()
        try:
            if also_exiting or not (self.queue or self.exiting):
                reader.poll(0.0 if at_once() else timeout)
        finally:
            reader.release()

    def run_one(self, item: Item) -> None:
        inbound, message, payload = item
        kind = type(message)
        if inbound is None:
            if kind is m.SetJob:
                self._set_job(message)
            else:
                self.seat.instantiate(message, payload)
            return
        if kind is m.Call and (not self.seat.alive or self.seat.leaving):
            self._early.append(item)
            return
        if inbound.slow():
            # This caller does not keep up with its answers: its calls wait until it does, the others' do not.
            inbound.held.append(item)
            return
        if self.engine is not None:
            self.engine.start(item)
            return
        execution = self.current = running.call = NamedStream.now = Execution(self.runtime, inbound, message)
        if self.cancels.take(inbound, message.seq):
            execution.cancelled = True
        self._started = started = time.monotonic()
        self._blocked_before = 0.0
        self._count += 1
        self.work_began()
        try:
            self.execute(execution, payload, started)
        except KeyboardInterrupt:  # a cancel that struck between user code and its answer
            execution.user_code = False
            self.answers.cancelled(execution, started)
            self.finish(execution)
        finally:
            execution.user_code = False
            self.current = running.call = None
            self._started = 0.0
        if not self.queue or len(inbound.answers) >= _FLUSH_AT or time.monotonic() - self._last_flush > _FLUSH_SECONDS:
            self.flush()

    def work_began(self) -> None:
        """The steward must look: call it once ``tick`` can see the work."""
        control = self.runtime.control
        if control._sleeping:
            control.wake()

    def execute(self, execution: Execution, payload: Any, started: float) -> None:
        """Run one call in this thread and queue its answer."""
        message = execution.message
        code: RemoteCode | None = None
        try:
            if type(message) is m.Push:
                inbound = execution.inbound
                if inbound.lent is not self.lent.now:
                    self.lent.enter(inbound.lent)
                code = inbound.functions[message.fn]
                if code.num_cpus != self.lent.omp_threads >= 0:
                    self.lent.set_omp(code.num_cpus)
                execution.function_name = code.name
                name = message.extra.name if message.extra is not None and message.extra.name else code.name
                execution.name = name
                if self.page is not None:
                    self.note_begin(self.page, execution, TASK, started)
                call = code.call or self._load(code)
            else:
                call = self.seat.method(execution)
                if self.page is not None:
                    self.note_begin(self.page, execution, CALL, started)
            if payload or message.deps or message.place is not None:
                args, kwargs = self.answers.arguments(execution, payload)
                execution.user_code = True
                if execution.cancelled:  # it came while they were loaded
                    raise KeyboardInterrupt
                result = call(*args, **kwargs)
                del args, kwargs
            else:
                execution.user_code = True
                if execution.cancelled:
                    raise KeyboardInterrupt
                result = call()
            if message.returns < 0:
                result = self._generated(execution, result)
            execution.user_code = False
        except BaseException as error:
            execution.user_code = False
            if code is not None and code.max_calls:
                self._count_call(code)
            self.answer_error(execution, error, started)
        else:
            if code is not None and code.max_calls:
                self._count_call(code)
            self.answers.result(execution, result, started)
        now = time.monotonic()
        if execution.run != NOT_BEGUN:
            self.note_end(execution, now)
        if NamedStream.said or now - started > streams.LOOK_AFTER:
            streams.call_over(execution)
        if execution.answer is not None:
            execution.inbound.answer(execution.answer)

    def finish(self, execution: Execution) -> None:
        """As at the end of ``execute``: who has the answer of a call finds it written down that it has ended."""
        if execution.run != NOT_BEGUN:
            self.note_end(execution, time.monotonic())
        if NamedStream.said:
            streams.call_over(execution)
        if execution.answer is not None:
            execution.inbound.answer(execution.answer)

    def note_begin(self, page: Page, execution: Execution, kind: str, started: float) -> None:
        """Onto the page: it runs. In the way of every call, as ``note_end`` is."""
        number = page.numbers[kind].get(execution.name)
        if number is None:
            number = page.number(kind, execution.name)
        inbound, seq = execution.inbound, execution.message.seq
        if self.threaded:
            number |= execution.thread << 32
            with page.lock:
                execution.run = page.begin(inbound.prefix, seq, number, started + self._clock)
        else:
            execution.run = page.begin(inbound.prefix, seq, number, started + self._clock)
        execution.number = number

    def note_end(self, execution: Execution, now: float) -> None:
        """Its ``run`` is not ``NOT_BEGUN``, but is then. ``now``: of the monotonic clock."""
        page, run = self.page, execution.run
        assert page is not None
        execution.run = NOT_BEGUN
        if execution.outcome != RETURNED:
            with page.lock:
                page.end_badly(run, execution.number, now + self._clock, execution.outcome, execution.error)
        elif self.threaded:
            with page.lock:
                page.end(run, execution.number, now + self._clock)
        else:
            page.end(run, execution.number, now + self._clock)

    def _generated(self, execution: Execution, result: Any) -> Any:
        if execution.message.returns == m.STREAMING:
            self.streaming.run(execution, result)
            execution.message.returns = 1
            return None
        return result

    def answer_error(self, execution: Execution, error: BaseException, started: float) -> None:
        if execution.cancelled and isinstance(error, KeyboardInterrupt):
            self.answers.cancelled(execution, started)
            return
        if self.seat.spec is not None:
            if isinstance(error, IntentionalExit):
                self.seat.exit_by_itself()
                return
            if isinstance(error, SystemExit):
                self.exiting = f"SystemExit({error.code!r}) in {execution.name}"
                self.runtime.reader.wake()
        self.answers.error(execution, error, started)

    def flush(self) -> None:
        """All answers out, as far as they go."""
        self._last_flush = time.monotonic()
        streams.flush_parts()
        with self.runtime.lock:
            for inbound in list(self.inbound):
                if inbound.answers or inbound.link.out:
                    inbound.flush_locked()

    def _flush_one(self, inbound: Inbound) -> None:
        with self.runtime.lock:
            inbound.flush_locked()

    # ------------------------------------------------------------ code and job

    def _load(self, code: RemoteCode) -> Callable[..., Any]:
        call = self._code.get(code.hash)
        if call is None:
            call, _ = codec.unpack(memoryview(code.data), self.runtime.objects.entries)
            self._code[code.hash] = call
        code.call = call
        code.data = b""
        return call

    def _count_call(self, code: RemoteCode) -> None:
        """Before the call is answered: whoever has its answer knows that this worker ends, and with it what it has of
        GPUs, so nobody takes the lease for one that is free.
        """
        count = self._calls[code.hash] = self._calls.get(code.hash, 0) + 1
        if count >= code.max_calls and not self.retiring:
            self.retiring = f"it has run {code.name} {count} times (max_calls)"
            with self.runtime.lock:
                self._return_unstarted_locked()
                # Also to callers that have nothing queued here: their leases are to end.
                for inbound in self.inbound:
                    inbound.send_locked(m.Returned([], 0, True))
                self._say_retiring_locked()

    def _say_retiring_locked(self) -> None:
        self.runtime.control.send(m.WorkerIdle(self.retiring))
        self.runtime.control.flush()

    def _set_job(self, message: m.SetJob) -> None:
        from noded.worker.job import enter_job

        failed = enter_job(self.runtime, message, self.lent)
        if self.page is not None:
            self.page.owner(message.job, b"")
        sites.record(self.runtime, os.environ)
        with self.runtime.lock:
            self.runtime.control.send(m.JobReady(message.job, failed))
            self.runtime.control.flush()

    def retell_locked(self) -> None:
        """What a new daemon could not know, or the last one was not told any more."""
        self.seat.retell_locked()
        if self.retiring:
            self._say_retiring_locked()

    def calls_may_start(self) -> None:
        """The constructor has returned: what came before it is next."""
        with self.runtime.lock:
            self.queue.extendleft(reversed(self._early))
            self._early.clear()

    def shelve_calls(self) -> None:
        """The actor ends: its calls are not run; their callers learn of the end from their daemon."""
        self._early.extend(item for item in self.queue if item[0] is not None)
        self.queue.clear()

    # ------------------------------------------------------------ blocking, giving back (steward or main)

    def _before_block(self) -> Callable[[], None] | None:
        if threading.get_ident() != self._main or self.current is None:
            return None
        with self.runtime.lock:
            self._blocked_since = time.monotonic()
            self._return_unstarted_locked()
            if any(queue.ready for queue in self.runtime.tasks.queues.values()):
                # What it waits for may need the very CPU it has: do not wait for the tick.
                self._say_blocked_locked()
        self.flush()
        return self._after_block

    def _say_blocked_locked(self) -> None:
        if not self.runtime.blocked:
            self.runtime.blocked = True
            self.runtime.control.send(m.Blocked())
            self.runtime.control.flush()

    def _after_block(self) -> None:
        with self.runtime.lock:
            self._blocked_before += time.monotonic() - self._blocked_since
            self._blocked_since = 0.0
            if self.runtime.blocked:
                self.runtime.blocked = False
                self.runtime.control.send(m.Unblocked())
                self.runtime.control.flush()

    def _return_unstarted_locked(self) -> None:
        """Everything that has not started is its submitter's again. An actor's calls stay: their order is the
        actor's.
        """
        if self.seat.spec is not None:
            return
        back: dict[Inbound, list[int]] = {}
        queue = self.queue
        for slow in self.inbound:
            queue.extendleft(reversed(slow.held))
            slow.held.clear()
        kept: list[Item] = []
        while queue:
            try:
                item = queue.pop()
            except IndexError:
                break
            inbound, message, _ = item
            if inbound is None:
                kept.append(item)
            else:
                back.setdefault(inbound, []).append(message.seq)
        queue.extend(reversed(kept))
        for inbound, seqs in back.items():
            seqs.reverse()
            inbound.send_locked(m.Returned(seqs, self._running_for(inbound), bool(self.retiring)))
            inbound.flush_locked()

    def tick(self) -> bool:
        """The steward's look; True while the main thread works."""
        now = time.monotonic()
        runtime = self.runtime
        with runtime.lock:
            started, blocked = self._started, self._blocked_since
            if started and now - started > LONG:
                if self.queue:
                    self._return_unstarted_locked()
                # In one long wait or in many short ones: a task that polls may wait for one that needs its CPU.
                if blocked and self._blocked_before + now - blocked > LONG:
                    self._blocked_before = 0.0
                    self._say_blocked_locked()
            for inbound in list(self.inbound):
                if inbound.session is not None:
                    inbound.session.acknowledge()
                if inbound.answers or inbound.link.out:
                    inbound.flush_locked()
            if self._sessions:
                self.drop_lost_callers_locked()
            busy = bool(started) or self._count != self._count_at_tick or bool(self.queue)
            self._count_at_tick = self._count
        streams.look(rests=not busy)
        return busy or (self.engine is not None and self.engine.busy())

    def _where_calls_wait(self) -> list[deque[Item] | list[Item]]:
        groups = self.engine.waiting() if self.engine is not None else []
        return [self.queue, self._early, *groups, *(inbound.held for inbound in self.inbound)]
