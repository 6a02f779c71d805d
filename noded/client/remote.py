"""``@noded.remote``: remote functions, and which classes and functions become what."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from noded.client.actor_class import ActorClass
from noded.client.arity import Arity
from noded.client.context import running
from noded.client.generators import ObjectRefGenerator
from noded.client.options import ActorOptions, TaskOptions
from noded.client.runtime import Runtime, current, runtime
from noded.client.submission import Function, TaskQueue
from noded.telemetry import TASK
from noded.wire import messages as m


class RemoteFunction:
    """A function that runs as a task: ``f.remote(...)`` returns its ObjectRef(s) at once."""

    def __init__(self, function: Callable[..., Any], options: TaskOptions):
        self._function = function
        self._options = options
        self._name = getattr(function, "__qualname__", None) or repr(function)
        self._arity = Arity(function)
        self._runtime: Runtime | None = None
        self._place: m.Place | None = None
        self._function_now: Function
        self._queue: TaskQueue
        self._count = 0
        returns = options.num_returns
        if returns is None:
            streams = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
            returns = m.STREAMING if streams else 1
        self._returns = returns
        self._extra = None
        if options.window or options.retry or options.name:
            self._extra = m.Extra(window=options.window, retry=options.retry, name=options.name or "")
        self._twin: RemoteFunction | None = None
        """The function this one was made from by ``options``: its pickled form is shared."""
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"the remote function {self._name} cannot be called directly: use {self._name}.remote()")

    def __getstate__(self) -> dict[str, Any]:
        return {"function": self._function, "options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        RemoteFunction.__init__(self, state["function"], state["options"])

    def options(self, **options: Any) -> RemoteFunction:
        """The same function with other options for the calls made through the result."""
        other = RemoteFunction(self._function, self._options.changed(options))
        other._twin = self._twin or self
        return other

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Submit a task. Returns an ObjectRef, a list of ``num_returns`` (None for 0), or an ObjectRefGenerator."""
        rt = current() or runtime()
        if rt is not self._runtime or running.where is not self._place:
            self._prepare(rt)
        arity = self._arity
        count = len(args)
        if kwargs or count < arity.fewest or (count > arity.most and arity.most >= 0):
            arity.check(args, kwargs)
        options = self._options
        returns = self._returns
        task = rt.tasks.prepare(self._name, args, kwargs, returns)
        task.fn = self._function_now
        task.count = self._count
        task.retries = options.max_retries
        task.extra = self._extra
        if returns == m.STREAMING:
            task.stream.window = options.window
            generator = ObjectRefGenerator(task.stream, rt)
        rt.tasks.submit(task, self._queue)
        if rt.interrupts.pending:
            rt.interrupts.check()
        if returns == 1 or returns == m.DYNAMIC:
            return task.refs[0]
        if returns == m.STREAMING:
            return generator
        return list(task.refs) if returns else None

    def _prepare(self, rt: Runtime) -> None:
        options = self._options
        if rt is not self._runtime:
            self._function_now = fn = self._make_function(rt)
            with rt.lock:
                for entry in fn.refs:
                    rt.objects.publish_locked(entry)
        self._count = rt.page.base(TASK, options.name or self._name)
        place = running.where
        where, env = options.place(place), rt.environments.resolve(options.runtime_env)
        self._queue = rt.tasks.queue_for(options.resources(), self._name, env, where, options.max_retries != 0)
        self._runtime, self._place = rt, place

    def _make_function(self, rt: Runtime) -> Function:
        options, twin = self._options, self._twin
        if twin is None:
            return rt.tasks.make_function(self._function, self._name, options.omp_threads(), options.calls())
        if twin._runtime is not rt:
            twin._prepare(rt)
        base = twin._function_now
        return Function(self._name, base.hash, base.data, base.refs, options.omp_threads(), options.calls())


def remote(*args: Any, **kwargs: Any) -> Any:
    """Make a function remote, or a class an actor class: ``@noded.remote`` or ``@noded.remote(num_cpus=2,
    …)``.
    """
    if len(args) == 1 and not kwargs and (callable(args[0]) or isinstance(args[0], type)):
        return _make(args[0], {})
    if args or not kwargs:
        raise TypeError(
            "use @noded.remote on a function or class, without parentheses, or with keyword options "
            "only: @noded.remote(num_cpus=2)"
        )
    return lambda target: _make(target, kwargs)


def _make(target: Any, options: dict[str, Any]) -> RemoteFunction | ActorClass:
    if isinstance(target, type):
        return ActorClass(target, ActorOptions().changed(options))
    if isinstance(target, (RemoteFunction, ActorClass)):
        raise TypeError(f"{target._name} is remote already; use .options() to change its options")
    if not callable(target):
        raise TypeError(f"@noded.remote needs a function or a class, not {target!r}")
    if inspect.iscoroutinefunction(target):
        raise ValueError(
            f"{target!r} is a coroutine function: only methods of actors may be async; run it with "
            "asyncio.run inside a task"
        )
    return RemoteFunction(target, TaskOptions().changed(options))
