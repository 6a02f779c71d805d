"""``@noded.remote``: remote functions, actor classes, actor handles, and the check of their options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from noded import exceptions as ex
from noded import ids
from noded.client import codec
from noded.client.options import ActorOptions, TaskOptions
from noded.client.refs import ObjectRef, Token
from noded.client.runtime import Runtime, current
from noded.client.submission import Function, TaskQueue, pack_arguments
from noded.wire import messages as m

_auto_init: Callable[[], Runtime] | None = None


def set_auto_init(init: Callable[[], Runtime]) -> None:
    """The API's ``init()``: the first remote call starts a private node, as users expect."""
    global _auto_init
    _auto_init = init


def runtime() -> Runtime:
    found = current()
    if found is None:
        assert _auto_init is not None
        found = _auto_init()
    return found


class Arity:
    """How many positional arguments a callable takes: a fast check, and Python's own error when it fails."""

    __slots__ = ("fewest", "most", "signature")

    def __init__(self, function: Callable[..., Any], *, bound: bool = False):
        self.signature: inspect.Signature | None
        try:
            self.signature = inspect.signature(function)
        except (TypeError, ValueError):  # some builtins have none
            self.signature = None
            self.fewest, self.most = 0, -1
            return
        parameters = list(self.signature.parameters.values())
        if bound and parameters:
            parameters = parameters[1:]
            self.signature = self.signature.replace(parameters=parameters)
        self.fewest, self.most = 0, 0
        for p in parameters:
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
                self.most += 1 if self.most >= 0 else 0
                self.fewest += p.default is p.empty
            elif p.kind is p.VAR_POSITIONAL:
                self.most = -1
            elif p.kind is p.KEYWORD_ONLY and p.default is p.empty:
                self.fewest = max(self.fewest, 1 << 30)  # always the slow check

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        count = len(args)
        if kwargs or count < self.fewest or (count > self.most and self.most >= 0):
            if self.signature is not None:
                self.signature.bind(*args, **kwargs)


class RemoteFunction:
    """A function that runs as a task: ``f.remote(...)`` returns its ObjectRef(s) at once."""

    def __init__(self, function: Callable[..., Any], options: TaskOptions):
        self._function = function
        self._options = options
        self._name = options.name or getattr(function, "__qualname__", None) or repr(function)
        self._arity = Arity(function)
        self._runtime: Runtime | None = None
        self._ready: tuple[Function, TaskQueue]
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
        other._twin = self
        return other

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Submit a task. Returns one ObjectRef, a list of ``num_returns`` of them, or None for 0."""
        rt = current() or runtime()
        if rt is not self._runtime:
            self._refuse_streaming()
            self._prepare(rt)
        arity = self._arity
        count = len(args)
        if kwargs or count < arity.fewest or (count > arity.most and arity.most >= 0):
            arity.check(args, kwargs)
        fn, queue = self._ready
        options = self._options
        returns = options.num_returns
        task = rt.tasks.prepare(self._name, args, kwargs, returns)
        task.fn = fn
        task.retries = options.max_retries
        rt.tasks.submit(task, queue)
        if rt.interrupts.pending:
            rt.interrupts.check()
        if returns == 1:
            return task.refs[0]
        return list(task.refs) if returns else None

    def _refuse_streaming(self) -> None:
        """A generator function with one return streams its items, in Ray."""
        if self._options.num_returns == 1 and (
            inspect.isgeneratorfunction(self._function) or inspect.isasyncgenfunction(self._function)
        ):
            raise NotImplementedError(
                f"{self._name} is a generator: streaming its items is not supported by this version of noded yet; "
                "return a list, or set num_returns to the number of items"
            )

    def _prepare(self, rt: Runtime) -> None:
        options = self._options
        twin = self._twin
        if twin is not None:
            if twin._runtime is not rt:
                twin._prepare(rt)
            base = twin._ready[0]
            fn = Function(self._name, base.hash, base.data, base.refs, options.omp_threads())
        else:
            fn = rt.tasks.make_function(self._function, self._name, options.omp_threads())
        with rt.lock:
            for entry in fn.refs:
                rt.objects.publish_locked(entry)
        self._ready = fn, rt.tasks.queue_for(options.resources(), self._name)
        self._runtime = rt


class ActorMethod:
    """``handle.method``: call it with ``.remote(...)``."""

    __slots__ = ("_actor", "_arity", "_class_name", "_name", "_retries", "_returns", "_token", "_what")

    def __init__(self, token: Token, class_name: str, name: str, meta: tuple[int, int, int, int]):
        self._token = token
        self._actor = token.hold.id
        self._class_name = class_name
        self._name = name
        self._returns = meta[0]
        self._arity = meta[1], meta[2]
        self._retries = meta[3]
        self._what = f"{class_name}.{name}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"the actor method {self._what} cannot be called directly: use .{self._name}.remote()")

    def options(
        self, *, num_returns: int | None = None, max_task_retries: int | None = None, name: str | None = None
    ) -> ActorMethod:
        returns = self._returns if num_returns is None else _whole("num_returns", num_returns, 0)
        retries = self._retries if max_task_retries is None else _whole("max_task_retries", max_task_retries, -1)
        other = ActorMethod(self._token, self._class_name, self._name, (returns, *self._arity, retries))
        if name:
            other._what = name
        return other

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Queue a call behind this caller's earlier calls to the actor."""
        rt = current()
        if rt is None:
            raise ex.NodedSystemError(
                f"the cluster of the actor of {self._what} was shut down in this process; call "
                "noded.init() and make a new actor"
            )
        fewest, most = self._arity
        count = len(args)
        if not kwargs and (count < fewest < 1 << 30 or (count > most and most >= 0)):
            raise TypeError(f"{self._what} takes {_range(fewest, most)} positional arguments, {count} given")
        returns = self._returns
        task = rt.tasks.prepare(self._what, args, kwargs, returns)
        task.method = self._name
        task.retries = self._retries
        rt.actors.call(self._actor, self._class_name, task, self._token)
        if rt.interrupts.pending:
            rt.interrupts.check()
        if returns == 1:
            return task.refs[0]
        return list(task.refs) if returns else None


def _range(fewest: int, most: int) -> str:
    if most < 0:
        return f"at least {fewest}"
    return str(fewest) if fewest == most else f"{fewest} to {most}"


class ActorHandle:
    """A handle to an actor. As long as one is around anywhere the actor lives (unless it is killed)."""

    def __init__(self, token: Token, class_name: str, methods: Mapping[str, tuple[int, int, int, int]]):
        self._token = token
        self._class_name = class_name
        self._methods = methods

    def __getattr__(self, name: str) -> ActorMethod:
        meta = self.__dict__.get("_methods", {}).get(name)
        if meta is None:
            raise AttributeError(f"the actor class {self.__dict__.get('_class_name')} has no method {name!r}")
        method = ActorMethod(self._token, self._class_name, name, tuple(meta))
        # Methods keep the token, not the handle: so that there is no cycle and the actor ends with its last
        # handle.
        self.__dict__[name] = method
        return method

    def __dir__(self) -> list[str]:
        return sorted(self._methods)

    @property
    def _actor_id(self) -> str:
        return self._token.hold.id.hex()

    def binary(self) -> bytes:
        return self._token.hold.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorHandle) and other.binary() == self.binary()

    def __hash__(self) -> int:
        return hash(self.binary())

    def __repr__(self) -> str:
        return f"Actor({self._class_name}, {self._actor_id})"

    def __reduce__(self) -> Any:
        found = codec.reduce_entry(self, self.binary())
        if found is None:
            raise TypeError(
                f"{self!r} can only be pickled inside a value that noded carries (an argument, a return value, a put)"
            )
        return _rebuild_handle, (_Entry(found), self._class_name, dict(self._methods))


class _Entry:
    """Pickles as "entry i of the table" (see codec)."""

    def __init__(self, reduced: Any):
        self._reduced = reduced

    def __reduce__(self) -> Any:
        return self._reduced


def _rebuild_handle(token: Token, class_name: str, methods: dict[str, tuple[int, int, int, int]]) -> ActorHandle:
    return ActorHandle(token, class_name, methods)


class ActorClass:
    """A class whose instances live in workers of their own: ``C.remote(...)`` returns a handle at once."""

    def __init__(self, cls: type, options: ActorOptions):
        self._cls = cls
        self._options = options
        self._name = cls.__qualname__
        self._runtime: Runtime | None = None
        self._packed: tuple[bytes, bytes, list[Any]]
        self._arity = Arity(cls)
        self._methods = _methods_of(cls, options.max_task_retries)
        self.__doc__ = cls.__doc__
        self.__name__ = cls.__name__
        self.__module__ = cls.__module__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"the actor class {self._name} cannot be instantiated directly: use {self._name}.remote()")

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        raise TypeError(
            f"the actor class {self._name} cannot be a base class: derive from the plain class, and decorate the result"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"cls": self._cls, "options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ActorClass.__init__(self, state["cls"], state["options"])

    def options(self, **options: Any) -> ActorClass:
        other = ActorClass(self._cls, self._options.changed(options))
        if self._runtime is not None:
            other._runtime, other._packed = self._runtime, self._packed
        return other

    def remote(self, *args: Any, **kwargs: Any) -> ActorHandle:
        """Create an actor."""
        rt = current() or runtime()
        self._arity.check(args, kwargs)
        options = self._options
        namespace = options.namespace or rt.namespace
        if options.get_if_exists:
            if not options.name:
                raise ValueError("the option get_if_exists needs the option name")
            try:
                return get_actor(options.name, namespace)
            except ValueError:
                pass
        if rt is not self._runtime:
            import hashlib

            packed = codec.pack(self._cls, f"the class {self._name}")
            data = packed.as_bytes()
            self._packed = data, hashlib.blake2b(data, digest_size=16).digest(), packed.refs
            self._runtime = rt
        data, digest, class_refs = self._packed
        payload, deps = pack_arguments(args, kwargs, f"the arguments of {self._name}")
        keep: list[Any] = [*class_refs, *(ref for _, ref in deps or ())]
        place: tuple[bytes, int, int] | None = None
        if type(payload) is not bytes:
            keep += payload.refs
            if payload.size > 1 << 20:
                ref: ObjectRef[Any] = ObjectRef(rt.next_seq())
                rt.objects.store(ref, payload)
                place = (ref.binary(), *ref._value)
                keep.append(ref)
                payload = b""
            else:
                payload = payload.as_bytes()
        id_ = ids.actor_id(rt.prefix, rt.next_seq())
        spec = m.ActorSpec(
            id=id_,
            class_name=self._name,
            class_hash=digest,
            class_size=len(data),
            methods=self._methods,
            resources=options.resources(),
            placement=options.placement(),
            name=options.name or "",
            namespace=namespace,
            detached=options.lifetime == "detached",
            max_restarts=options.max_restarts,
            max_task_retries=options.max_task_retries,
            job=rt.job,
            deps=[(slot, 0, 0, ref.binary()) for slot, ref in deps or ()],
            args_place=place,
        )
        with rt.interrupts:
            with rt.lock:
                for entry in keep:
                    rt.objects.publish_locked(entry)
                request = m.CreateActor(spec, rt.next_seq())
                token = rt.actors.create_locked(request, data + payload, keep)
            if options.name:
                # A taken name is an error here and now, as in Ray.
                taken = rt.ask("await_actor", id=id_.hex())
                if taken:
                    with rt.lock:
                        rt.actors.actors.pop(id_, None)
                    if not options.get_if_exists:
                        raise ValueError(taken)
                    return get_actor(options.name, namespace)  # somebody else was a moment faster
        return ActorHandle(token, self._name, self._methods)


def _methods_of(cls: type, retries: int) -> dict[str, tuple[int, int, int, int]]:
    found: dict[str, tuple[int, int, int, int]] = {}
    for name, member in inspect.getmembers(cls, callable):
        if name.startswith("__") and name != "__call__":
            continue
        static = inspect.getattr_static(cls, name)
        if inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member):
            raise NotImplementedError(
                f"{cls.__qualname__}.{name} is async: async actors are not supported by this version of noded yet; "
                "make it a plain method (asyncio.run inside works)"
            )
        bound = not isinstance(static, (staticmethod, classmethod))
        arity = Arity(member, bound=bound)
        marked = getattr(member, "__noded_method__", {})
        returns, own = marked.get("num_returns"), marked.get("max_task_retries")
        found[name] = 1 if returns is None else returns, arity.fewest, arity.most, retries if own is None else own
    return found


def _whole(name: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return value


def method(*, num_returns: int | None = None, max_task_retries: int | None = None) -> Callable[[Any], Any]:
    """Options of an actor's method: ``@noded.method(num_returns=2)``."""
    marked = {
        "num_returns": None if num_returns is None else _whole("num_returns", num_returns, 0),
        "max_task_retries": None if max_task_retries is None else _whole("max_task_retries", max_task_retries, -1),
    }

    def mark(function: Any) -> Any:
        function.__noded_method__ = marked
        return function

    return mark


def get_actor(name: str, namespace: str | None = None) -> ActorHandle:
    """The handle of a named actor. Raises ValueError when there is none."""
    rt = runtime()
    if not isinstance(name, str) or not name:
        raise ValueError(f"an actor's name is a non-empty string, not {name!r}")
    if namespace == "":
        raise ValueError("namespace must not be empty; None means the namespace of this program")
    answer = rt.ask("get_actor", name=name, namespace=rt.namespace if namespace is None else namespace)
    with rt.lock:
        token = rt.holds.take(bytes.fromhex(answer["id"]))
        rt.flush_refs_numbered()
    return ActorHandle(token, answer["class_name"], {k: tuple(v) for k, v in answer["methods"].items()})


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
