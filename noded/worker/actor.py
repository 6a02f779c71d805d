"""The actor of this worker: its constructor, its methods, its end, and which engine runs its calls.

Most actors run one call at a time on the main thread (the executor itself). One with async methods gets an event
loop (``event_loop.py``), one with ``max_concurrency`` or concurrency groups threads (``threads.py``).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from noded import ids
from noded.client import codec
from noded.client.context import running
from noded.client.exits import IntentionalExit
from noded.telemetry import CREATION, RAISED_ERROR, RETURNED
from noded.wire import messages as m
from noded.worker.answers import pack_error
from noded.worker.execution import Execution
from noded.worker.inbound import Inbound
from noded.worker.streams import Author, NamedStream

if TYPE_CHECKING:
    from noded.worker.executor import Executor, Item


class Engine(Protocol):
    """Runs calls of an actor, several at once."""

    def run(self, construct: Callable[[], None]) -> None:
        """Called once on the main thread: construct the actor; an event loop returns at the worker's end."""

    def start(self, item: Item) -> None:
        """Take a call over; on the main thread."""

    def cancel(self, inbound: Inbound, seq: int, recursive: bool) -> bool:
        """False when it does not run; under the runtime's lock."""

    def runs(self, inbound: Inbound, seq: int) -> bool:
        """Whether this call was taken over and is not answered."""

    def waiting(self) -> list[deque[Item] | list[Item]]:
        """Calls that wait in here and may be withdrawn."""

    def busy(self) -> bool:
        """Any call runs or waits in here."""

    def leave(self) -> None:
        """Let what runs finish; nothing new comes."""


class ActorSeat:
    """``spec`` is None in a worker that runs tasks."""

    def __init__(self, executor: Executor):
        self._executor = executor
        self.spec: m.ActorSpec | None = None
        self.instance: Any = None
        self.alive = False
        self.leaving = ""
        """Why the actor ends by its own wish; then no call starts any more."""
        self._failed = b""
        """The error of its constructor."""
        self._methods: dict[str, Callable[..., Any]] = {}

    # ------------------------------------------------------------ constructor

    def instantiate(self, message: m.Instantiate, payload: Any) -> None:
        """Run the actor's constructor, once: a daemon that restarted may ask again."""
        if self.spec is not None:
            return
        spec = self.spec = message.spec
        executor = self._executor
        NamedStream.now = Author(spec.class_name, "", spec.id.hex())
        running.actor_id, running.actor_name = spec.id, spec.name
        running.class_name, running.restarted = spec.class_name, message.restarted
        executor.lent.take(spec.resources, message.gpus, spec.where)
        if executor.lent.omp_threads >= 0:
            executor.lent.set_omp(max(1, spec.resources.get("CPU", 0) // 10_000))

        def construct() -> None:
            self._construct(spec, payload)

        if spec.is_async:
            from noded.worker.event_loop import EventLoopEngine

            executor.engine = EventLoopEngine(executor, spec)
            executor.engine.run(construct)
        elif spec.max_concurrency > 1 or spec.concurrency_groups:
            from noded.worker.threads import ThreadEngine

            executor.engine = ThreadEngine(executor, spec)
            executor.engine.run(construct)
        else:
            construct()

    def _construct(self, spec: m.ActorSpec, payload: Any) -> None:
        runtime = self._executor.runtime
        name = f"{spec.class_name}.__init__"
        running.task_name = name
        view = memoryview(payload)
        page = self._executor.page
        if page is not None:
            page.owner(runtime.job, spec.id)
            number = page.number(CREATION, name)
            run = page.begin(ids.prefix_of(spec.id), ids.seq_of(spec.id), number, time.time())
        outcome, problem = RETURNED, ""
        try:
            cls, _ = codec.unpack(view[: spec.class_size], runtime.objects.entries)
            args, kwargs = self._arguments(spec, view[spec.class_size :])
            self.instance = cls(*args, **kwargs)
        except BaseException as error:
            if isinstance(error, IntentionalExit):
                self.exit_by_itself()
                return
            outcome, problem = RAISED_ERROR, type(error).__name__
            self._failed = pack_error(runtime, error, name).as_bytes()
            with runtime.lock:
                self.retell_locked()
            return
        finally:
            running.task_name = ""
            if page is not None and outcome == RETURNED:
                page.end(run, number, time.time())
            elif page is not None:
                page.end_badly(run, number, time.time(), outcome, problem)
        self.alive = True
        runtime.flush_refs_numbered()
        with runtime.lock:
            self.retell_locked()
        self._executor.calls_may_start()

    def _arguments(self, spec: m.ActorSpec, view: memoryview) -> tuple[Any, dict[str, Any]]:
        runtime = self._executor.runtime
        if spec.args_place is not None:
            id_, _, size = spec.args_place  # the place is one of when it was asked for
            args, kwargs = self._executor.answers.placed(None, id_, -1, size)
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

    # ------------------------------------------------------------ methods

    def method(self, execution: Execution) -> Callable[..., Any]:
        """What the call is for; sets the execution's name."""
        assert self.spec is not None
        message = execution.message
        extra = message.extra
        execution.function_name = name = f"{self.spec.class_name}.{message.method}"
        execution.name = extra.name if extra is not None and extra.name else name
        if extra is not None and extra.group and extra.group not in self.spec.concurrency_groups:
            groups = ", ".join(self.spec.concurrency_groups) or "none"
            raise ValueError(f"{name} was called in the concurrency group {extra.group!r}; the actor's are: {groups}")
        return self._methods.get(message.method) or self._find(message.method)

    def _find(self, name: str) -> Callable[..., Any]:
        found: Callable[..., Any]
        if name == "__ray_ready__":
            found = _true
        elif name == "__ray_call__":
            found = self._call_with_instance
        elif name == "__ray_terminate__":
            found = _terminate
        else:
            found = getattr(self.instance, name)
        self._methods[name] = found
        return found

    def _call_with_instance(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return function(self.instance, *args, **kwargs)

    # ------------------------------------------------------------ end

    def exit_by_itself(self) -> None:
        """Tell the daemon, and wait for its word: it must not be taken for a crash, nor made again."""
        executor = self._executor
        with executor.runtime.lock:
            self.leaving = "it called exit_actor()"
            executor.shelve_calls()
            self.retell_locked()

    def retell_locked(self) -> None:
        """What has become of the actor; each time that changes, and again to a daemon that restarted."""
        if self.spec is None:
            return
        control = self._executor.runtime.control
        if self.leaving:
            control.send(m.ActorLeaves(self.spec.id, self.leaving))
        elif self._failed:
            control.send(m.ActorFailed(self.spec.id), self._failed)
        elif self.alive:
            control.send(m.ActorUp(self.spec.id))
        control.flush()


def _true() -> bool:
    return True


def _terminate() -> None:
    raise IntentionalExit(0)
