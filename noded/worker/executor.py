"""Runs tasks and actor calls, in order, on the worker's main thread.

The main thread reads the data sockets while it has nothing to run; the steward (the runtime's helper thread)
supervises it at its 5 ms tick: what is unstarted behind a task that runs long goes back to its submitter, a
blocked worker gives its CPUs back, finished replies go out.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from noded import exceptions as ex
from noded import ids
from noded.client import codec
from noded.client.context import running
from noded.client.objects import INLINE_LIMIT, to_raise
from noded.client.runtime import Runtime
from noded.wire import messages as m
from noded.worker import streams
from noded.worker.inbound import Inbound, RemoteCode
from noded.worker.streams import NamedStream

LONG = 0.005
"""Seconds after which nothing may wait behind a task any more."""
_FLUSH_AT = 32
_FLUSH_SECONDS = 0.001
Item = tuple[Inbound | None, Any, Any]


class Executor:
    """``run()`` is the worker's life; messages come in through ``on_data`` and ``on_control`` under the
    runtime's lock.
    """

    def __init__(self) -> None:
        self.runtime: Runtime
        self.queue: deque[Item] = deque()
        self._early: list[Item] = []
        """Calls that came before the actor's constructor has run."""
        self.inbound: list[Inbound] = []
        self.highest_lease = 0
        self.current: Any = None
        """The message of the task that runs; its identity marks what the task submits."""
        self._inbound_now: Inbound | None = None
        self._started = 0.0
        self._blocked_since = 0.0
        self._blocked_before = 0.0
        """Seconds that the current task was blocked before, since it last lent its CPUs."""
        self._count = 0
        self._count_at_tick = 0
        self._last_flush = 0.0
        self._user_code = False
        self._cancel: Any = None
        self._main = threading.get_ident()
        self._code: dict[bytes, Callable[..., Any]] = {}
        self._omp_now = -1 if "OMP_NUM_THREADS" in os.environ else 0
        """What we have set OMP_NUM_THREADS to; -1: the user has set it."""
        self.instance: Any = None
        self.actor: m.ActorSpec | None = None
        self.actor_alive = False
        self._methods: dict[str, Callable[..., Any]] = {}
        self._borrowed = False
        self.exiting = ""

    def bind(self, runtime: Runtime) -> None:
        self.runtime = runtime
        runtime.interrupts.install_for(self._on_cancel_signal)

    def after_attach(self) -> None:
        runtime = self.runtime
        runtime.objects.before_block = self._before_block
        runtime.tasks.current = lambda: self.current

    # ------------------------------------------------------------ messages

    def on_data(self, inbound: Inbound, message: Any, payload: Any) -> None:
        kind = type(message)
        if kind is m.Push:
            if message.lease < self.highest_lease:
                inbound.link.send(m.Stale([message.seq]))
                inbound.flush_locked()
                return
            self.highest_lease = message.lease
            if self._blocked_since:
                inbound.link.send(m.Returned([message.seq], self._running_for(inbound)))
                inbound.flush_locked()
                return
            self.queue.append((inbound, message, payload))
        elif kind is m.Call:
            self.queue.append((inbound, message, payload))
        elif kind is m.Func:
            inbound.functions[message.number] = RemoteCode(message, payload)
        elif kind is m.Cancel:
            self._cancel_task(inbound, message)
        elif kind is m.GiveBack:
            self._return_unstarted_locked()
        elif kind is m.Hello:
            inbound.prefix = message.prefix
            if message.version != m.PROTOCOL_VERSION:
                inbound.close_locked()

    def on_closed(self, inbound: Inbound) -> None:
        """The caller is gone, or will never read: what it has queued here is its daemon's to decide; results
        would have no reader.
        """
        self.inbound.remove(inbound)

    def on_drained(self, inbound: Inbound) -> None:
        """The caller has read its answers: what was held back for it is its turn again, in order."""
        self.queue.extend(inbound.held)
        inbound.held.clear()
        self.runtime.reader.wake()

    def on_control(self, message: Any, payload: Any) -> None:
        kind = type(message)
        if kind is m.SetJob:
            self.runtime.job = message.job  # from now on told at an attach, entered or not
        if kind is m.SetJob or kind is m.Instantiate:
            self.queue.appendleft((None, message, payload))
        elif kind is m.Exit:
            self.exiting = message.reason or "asked to"
        self.runtime.reader.wake()

    def _running_for(self, inbound: Inbound) -> int:
        return self.current.seq if self._inbound_now is inbound and self.current is not None else 0

    # ------------------------------------------------------------ main thread

    def run(self) -> None:
        reader, queue = self.runtime.reader, self.queue
        while not self.exiting:
            if queue:
                try:
                    item = queue.popleft()
                except IndexError:  # the steward gave it back meanwhile
                    continue
                self._run_one(item)
                continue
            self._flush()
            if not reader.role.acquire(blocking=False):
                reader.wanted += 1
                reader.wake()
                reader.role.acquire()
                reader.wanted -= 1
            try:
                if not queue and not self.exiting:
                    reader.poll(None)
            finally:
                reader.release()
        self._flush()

    def _run_one(self, item: Item) -> None:
        inbound, message, payload = item
        kind = type(message)
        if inbound is None:
            if kind is m.SetJob:
                self._set_job(message)
            else:
                self._instantiate(message, payload)
            return
        if kind is m.Call and not self.actor_alive:
            self._early.append(item)
            return
        if inbound.slow():
            # This caller does not keep up with its answers: its calls wait until it does, the others' do not.
            inbound.held.append(item)
            return
        self.current, self._inbound_now = message, inbound
        self._started = started = time.monotonic()
        self._blocked_before = 0.0
        self._count += 1
        control = self.runtime.control
        if control._sleeping:
            control.wake()
        try:
            self._execute(inbound, message, payload, started)
        except KeyboardInterrupt:  # a cancel that struck between user code and its answer
            self._answer_cancelled(inbound, message, started)
        finally:
            self.current = self._inbound_now = None
            self._started = 0.0
            self._user_code = False
        link = inbound.link
        if not self.queue or link.unsent >= _FLUSH_AT or time.monotonic() - self._last_flush > _FLUSH_SECONDS:
            self._flush()

    def _execute(self, inbound: Inbound, message: Any, payload: Any, started: float) -> None:
        name = "a task"
        self._borrowed = False
        try:
            if type(message) is m.Push:
                code = inbound.functions[message.fn]
                name = code.name
                if code.num_cpus != self._omp_now >= 0:
                    self._set_omp(code.num_cpus)
                call = code.call or self._load(code)
                running.task_name = NamedStream.name_now = name
            else:
                assert self.actor is not None
                name = f"{self.actor.class_name}.{message.method}"
                running.task_name = name
                call = self._methods.get(message.method) or self._method(message.method)
            running.task_id = ids.task_id(inbound.prefix, message.seq)
            if payload or message.deps or message.place is not None:
                args, kwargs = self._arguments(message, payload)
                self._user_code = True
                if self._cancel is message:  # it came while they were loaded
                    raise KeyboardInterrupt
                result = call(*args, **kwargs)
                self._user_code = False
                del args, kwargs
            else:
                self._user_code = True
                if self._cancel is message:
                    raise KeyboardInterrupt
                result = call()
                self._user_code = False
        except BaseException as error:
            self._user_code = False
            self._answer_error(inbound, message, name, error, started)
            return
        finally:
            running.task_id = b""
        self._answer(inbound, message, name, result, started)

    # ------------------------------------------------------------ code and arguments

    def _load(self, code: RemoteCode) -> Callable[..., Any]:
        call = self._code.get(code.hash)
        if call is None:
            call, _ = codec.unpack(memoryview(code.data), self.runtime.objects.entries)
            self._code[code.hash] = call
        code.call = call
        code.data = b""
        return call

    def _set_omp(self, threads: int) -> None:
        self._omp_now = threads
        os.environ["OMP_NUM_THREADS"] = str(threads)

    def _method(self, name: str) -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(self.instance, name)
        self._methods[name] = found
        return found

    def _entries(self, view: memoryview) -> list[Any]:
        self._borrowed = True
        return self.runtime.objects.entries(view)

    def _place(self, id_: bytes, offset: int, size: int) -> Any:
        self._borrowed = True
        runtime = self.runtime
        with runtime.lock:
            token = runtime.holds.take(id_)
        value, failed = runtime.objects.load_place(token.hold, offset, size)
        if failed:
            raise to_raise(value)
        return value

    def _arguments(self, message: Any, payload: Any) -> tuple[Any, dict[str, Any]]:
        view = memoryview(payload)
        if message.place is not None:
            args, kwargs = self._place(*message.place)
            at = 0
        elif message.args:
            (args, kwargs), _ = codec.unpack(view[: message.args], self._entries)
            at = message.args
        else:
            args, kwargs, at = (), {}, 0
        if message.deps:
            args = list(args)
            names = list(kwargs)
            for slot, size, offset, id_ in message.deps:
                if id_:
                    value = self._place(id_, offset, size)
                else:
                    value, failed = codec.unpack(view[at : at + size], self._entries)
                    at += size
                    if failed:
                        raise to_raise(value)
                if slot >= 0:
                    args[slot] = value
                else:
                    kwargs[names[-1 - slot]] = value
        return args, kwargs

    # ------------------------------------------------------------ answers

    def _answer(self, inbound: Inbound, message: Any, name: str, result: Any, started: float) -> None:
        runtime = self.runtime
        returns = message.returns
        us = int((time.monotonic() - started) * 1e6)
        if returns == 1 and result is None and not self._borrowed:
            with runtime.lock:
                inbound.link.send(m.Done(message.seq, us))
            return
        try:
            if returns == 1:
                values: Any = (result,)
            elif returns == 0:
                values = ()
            else:
                values = tuple(result)
                if len(values) != returns:
                    raise ValueError(f"{name} must return {returns} values (num_returns), but returned {len(values)}")
            packed = [codec.pack(value, f"the return value of {name}") for value in values]
            if returns == 1 and packed[0].size <= INLINE_LIMIT and not packed[0].refs:
                hseq = runtime.flush_refs_numbered() if self._borrowed else 0
                with runtime.lock:
                    inbound.link.send(m.Done(message.seq, us, hseq), packed[0].as_bytes())
                return
            outs: list[tuple[int, int, bytes]] = []
            pieces: list[bytes] = []
            for index, one in enumerate(packed):
                if one.size > INLINE_LIMIT or one.refs:
                    id_ = ids.object_id(inbound.prefix, message.seq, index)
                    offset, size = runtime.objects.write(id_, one)
                    outs.append((size, offset, id_))
                else:
                    data = one.as_bytes()
                    outs.append((len(data), 0, b""))
                    pieces.append(data)
        except BaseException as error:
            self._answer_error(inbound, message, name, error, started)
            return
        hseq = runtime.flush_refs_numbered()
        with runtime.lock:
            inbound.link.send(m.DoneMany(message.seq, us, hseq, outs), b"".join(pieces))

    def _answer_error(self, inbound: Inbound, message: Any, name: str, error: BaseException, started: float) -> None:
        if self._cancel is message and isinstance(error, KeyboardInterrupt):
            self._answer_cancelled(inbound, message, started)
            return
        if isinstance(error, SystemExit) and self.actor is not None:
            self.exiting = f"SystemExit({error.code!r}) in {name}"
        runtime = self.runtime
        told = ex.TaskError.from_exception(error, name, pid=os.getpid(), node=runtime.node_ip)
        try:
            packed = codec.pack(told, f"the exception of {name}", error=True)
            # What does not load here will not load there either.
            codec.unpack(memoryview(packed.as_bytes()), runtime.objects.entries)
        except Exception:
            packed = codec.pack(told.without_cause(), f"the exception of {name}", error=True)
        us = int((time.monotonic() - started) * 1e6)
        with runtime.lock:
            for entry in packed.refs:
                runtime.objects.publish_locked(entry)
        hseq = runtime.flush_refs_numbered() if self._borrowed or packed.refs else 0
        with runtime.lock:
            inbound.link.send(m.Failed(message.seq, us, hseq), packed.as_bytes())

    def _answer_cancelled(self, inbound: Inbound, message: Any, started: float) -> None:
        self._cancel = None
        us = int((time.monotonic() - started) * 1e6)
        hseq = self.runtime.flush_refs_numbered() if self._borrowed else 0
        with self.runtime.lock:
            inbound.link.send(m.Failed(message.seq, us, hseq, True))

    def _flush(self) -> None:
        self._last_flush = time.monotonic()
        streams.flush_parts()
        with self.runtime.lock:
            for inbound in list(self.inbound):
                if inbound.link.out:
                    inbound.flush_locked()

    # ------------------------------------------------------------ job and actor

    def _set_job(self, message: m.SetJob) -> None:
        from noded.worker.job import enter_job

        enter_job(self.runtime, message)
        with self.runtime.lock:
            self.runtime.control.send(m.JobReady(message.job))
            self.runtime.control.flush()

    def _instantiate(self, message: m.Instantiate, payload: Any) -> None:
        """Run the actor's constructor, once: a daemon that restarted may ask again."""
        if self.actor is not None:
            return
        spec = self.actor = message.spec
        runtime = self.runtime
        NamedStream.name_now = spec.class_name
        running.actor_id, running.actor_name, running.resources = spec.id, spec.name, spec.resources
        running.task_name = f"{spec.class_name}.__init__"
        view = memoryview(payload)
        try:
            if self._omp_now >= 0:
                self._set_omp(max(1, spec.resources.get("CPU", 0) // 10_000))
            cls, _ = codec.unpack(view[: spec.class_size], runtime.objects.entries)
            args, kwargs = self._constructor_arguments(spec, view[spec.class_size :])
            self.instance = cls(*args, **kwargs)
        except BaseException as error:
            told = ex.TaskError.from_exception(error, running.task_name, pid=os.getpid(), node=runtime.node_ip)
            try:
                data = codec.pack(told, "an exception", error=True).as_bytes()
            except Exception:
                data = codec.pack(told.without_cause(), "an exception", error=True).as_bytes()
            with runtime.lock:
                runtime.control.send(m.ActorFailed(spec.id), data)
                runtime.control.flush()
            return
        self.actor_alive = True
        runtime.flush_refs_numbered()
        with runtime.lock:
            runtime.control.send(m.ActorUp(spec.id))
            runtime.control.flush()
            self.queue.extendleft(reversed(self._early))
            self._early.clear()

    def _constructor_arguments(self, spec: m.ActorSpec, view: memoryview) -> tuple[Any, dict[str, Any]]:
        runtime = self.runtime
        if spec.args_place is not None:
            args, kwargs = self._place(*spec.args_place)
        elif len(view):
            (args, kwargs), _ = codec.unpack(view, runtime.objects.entries)
        else:
            args, kwargs = (), {}
        if spec.deps:
            refs = runtime.objects.borrow([id_ for _, _, _, id_ in spec.deps])
            values = runtime.get(refs, None)
            args, names = list(args), list(kwargs)
            for (slot, _, _, _), value in zip(spec.deps, values, strict=True):
                if slot >= 0:
                    args[slot] = value
                else:
                    kwargs[names[-1 - slot]] = value
        return args, kwargs

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
        self._flush()
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
        if self.actor is not None:
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
            inbound.link.send(m.Returned(seqs, self._running_for(inbound)))
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
                if inbound.link.out:
                    inbound.flush_locked()
            busy = bool(started) or self._count != self._count_at_tick or bool(self.queue)
            self._count_at_tick = self._count
        return busy

    # ------------------------------------------------------------ cancel

    def _cancel_task(self, inbound: Inbound, message: m.Cancel) -> None:
        if self.current is not None and self._inbound_now is inbound and self.current.seq == message.seq:
            self._cancel = self.current
            if message.recursive:
                self.runtime.tasks.cancel_children_locked(self.current)
            signal.pthread_kill(self._main, signal.SIGINT)
            return
        for item in list(self.queue):
            if item[0] is inbound and item[1].seq == message.seq:
                try:
                    self.queue.remove(item)
                except ValueError:  # it starts right now: too late for a queued one, the next cancel would reach it
                    return
                inbound.link.send(m.Failed(message.seq, 0, 0, True))
                inbound.flush_locked()
                return

    def _on_cancel_signal(self, number: int, frame: Any) -> None:
        if self._user_code and self._cancel is not None and self._cancel is self.current:
            raise KeyboardInterrupt
