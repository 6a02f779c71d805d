"""Actor classes: ``C.remote(...)`` makes an actor in a worker of its own; and finding actors by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from noded import exceptions as ex
from noded import ids
from noded.client import codec
from noded.client.actor_handle import ActorHandle, handle_of, whole
from noded.client.arity import Arity
from noded.client.context import where_now
from noded.client.options import ActorOptions, retry_of, returns_of, window_of
from noded.client.refs import ObjectRef
from noded.client.runtime import Runtime, current, runtime
from noded.client.submission import pack_arguments
from noded.wire import messages as m

_PLACE_AT = 1 << 20
"""Constructor arguments of so many bytes go through the arena."""


class ActorClass:
    """A class whose instances live in workers of their own: ``C.remote(...)`` returns a handle at once."""

    def __init__(self, cls: type, options: ActorOptions):
        self._cls = cls
        self._options = options
        self._name = cls.__name__
        self._runtime: Runtime | None = None
        self._packed: tuple[bytes, bytes, list[Any]]
        self._arity = Arity(cls)
        self._is_async = any(
            inspect.iscoroutinefunction(f) or inspect.isasyncgenfunction(f)
            for _, f in inspect.getmembers(cls, callable)
        )
        overlaps = self._is_async or (options.max_concurrency or 1) > 1
        self._unordered = (
            overlaps if options.allow_out_of_order_execution is None else bool(options.allow_out_of_order_execution)
        )
        if overlaps and not self._unordered:
            raise ValueError(
                f"calls to {self._name} overlap (it is async, or max_concurrency is above 1), so they have no order to "
                "keep: leave allow_out_of_order_execution=False away"
            )
        groups = dict(options.concurrency_groups)
        self._methods = _methods_of(cls, options)
        for name, method in self._methods.items():
            if method.group and method.group not in groups:
                raise ValueError(
                    f"{self._name}.{name} is of the concurrency group {method.group!r}, which the actor class does not "
                    f"define; its groups are {sorted(groups) or 'none'}"
                )
        self.__doc__ = cls.__doc__
        self.__name__ = cls.__name__
        self.__qualname__ = cls.__qualname__
        self.__module__ = cls.__module__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"the actor class {self._name} cannot be instantiated directly: use {self._name}.remote()")

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        raise TypeError(
            f"the actor class {self._name} cannot be a base class: derive from the plain class, and decorate the result"
        )

    def __getattr__(self, name: str) -> Any:
        # What the class itself has, for code that looks at it: its static methods, its constants.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.__dict__["_cls"], name)

    def __getstate__(self) -> dict[str, Any]:
        return {"cls": self._cls, "options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ActorClass.__init__(self, state["cls"], state["options"])

    def options(self, **options: Any) -> ActorClass:
        """The same class with other options for the actors made through the result."""
        if "concurrency_groups" in options:
            raise ValueError("concurrency_groups belong to the class: give them to remote(), not to options()")
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
                return _by_name(rt, options.name, namespace, weak=False)
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
            if payload.size > _PLACE_AT:
                ref: ObjectRef[Any] = ObjectRef(rt.next_seq())
                rt.objects.store(ref, payload)
                place = ref.binary(), -1, ref._value[1]  # it may have moved by the time that the actor starts
                keep.append(ref)
                payload = b""
            else:
                payload = payload.as_bytes()
        spec = self._spec(rt, namespace)
        spec.class_hash, spec.class_size = digest, len(data)
        spec.deps = [(slot, 0, 0, ref.binary()) for slot, ref in deps or ()]
        spec.args_place = place
        with rt.interrupts:
            with rt.lock:
                for entry in keep:
                    rt.objects.publish_locked(entry)
                token = rt.actors.create_locked(m.CreateActor(spec, rt.next_seq()), data + payload, keep)
            if options.name:
                # A taken name is an error here and now, as in Ray.
                taken = rt.ask("await_actor", None, id=spec.id.hex())
                if taken:
                    with rt.lock:
                        rt.actors.actors.pop(spec.id, None)
                    if not options.get_if_exists:
                        raise ex.ActorAlreadyExistsError(taken)
                    return _by_name(rt, options.name, namespace, weak=False)  # somebody else was a moment faster
        return ActorHandle(token, self._name, self._methods, options.max_pending_calls)

    def _spec(self, rt: Runtime, namespace: str) -> m.ActorSpec:
        options = self._options
        return m.ActorSpec(
            id=ids.actor_id(rt.prefix, rt.next_seq()),
            class_name=self._name,
            class_hash=b"",
            class_size=0,
            methods=self._methods,
            resources=options.resources(),
            placement=options.placement(),
            name=options.name or "",
            namespace=namespace,
            detached=options.lifetime == "detached",
            max_restarts=options.max_restarts,
            max_task_retries=options.max_task_retries,
            job=rt.job,
            is_async=self._is_async,
            max_concurrency=options.max_concurrency or 0,
            concurrency_groups=dict(options.concurrency_groups),
            max_pending_calls=options.max_pending_calls,
            env=rt.environments.resolve(options.runtime_env),
            where=options.place(where_now()),
            unordered=self._unordered,
        )


_MAKERS = {"__new__", "__init__", "__del__", "__init_subclass__"}
"""Called by Python itself; other dunder methods are callable if they are the user's own."""


def _methods_of(cls: type, options: ActorOptions) -> dict[str, m.Method]:
    found: dict[str, m.Method] = {}
    for name, member in inspect.getmembers(cls, callable):
        if name.startswith("__") and (name in _MAKERS or not inspect.isfunction(member)):
            continue
        static = inspect.getattr_static(cls, name)
        bound = not isinstance(static, (staticmethod, classmethod))
        arity = Arity(member, bound=bound)
        marked = getattr(member, "__noded_method__", {})
        streams = inspect.isgeneratorfunction(member) or inspect.isasyncgenfunction(member)
        found[name] = m.Method(
            returns=marked.get("returns", m.STREAMING if streams else 1),
            fewest=arity.fewest,
            most=arity.most,
            parameters=arity.parameters(),
            retries=marked.get("retries", options.max_task_retries),
            retry=marked.get("retry", b""),
            group=marked.get("group", ""),
            window=marked.get("window", options.window),
        )
    return found


def method(
    *,
    num_returns: int | str | None = None,
    concurrency_group: str | None = None,
    max_task_retries: int | None = None,
    retry_exceptions: Any = None,
    enable_task_events: bool | None = None,
    _generator_backpressure_num_objects: int | None = None,
    **others: Any,
) -> Callable[[Any], Any]:
    """Options of an actor's method: ``@noded.method(num_returns=2)``."""
    unknown = sorted(set(others) - {"tensor_transport", "_tensor_transport"})
    if unknown:
        raise ValueError(f"unknown option {unknown[0]!r} of an actor method")
    marked: dict[str, Any] = {}
    if num_returns is not None:
        marked["returns"] = returns_of(num_returns)
    if concurrency_group is not None:
        marked["group"] = concurrency_group
    if max_task_retries is not None:
        marked["retries"] = whole("max_task_retries", max_task_retries, -1)
    if retry_exceptions is not None:
        marked["retry"] = retry_of(retry_exceptions)
    if _generator_backpressure_num_objects is not None:
        marked["window"] = window_of(_generator_backpressure_num_objects)

    def mark(function: Any) -> Any:
        function.__noded_method__ = marked
        return function

    return mark


def get_actor(name: str, namespace: str | None = None) -> ActorHandle:
    """The handle of a named actor, which does not keep it alive. Raises ValueError when there is none."""
    rt = runtime()
    if not isinstance(name, str) or not name:
        raise ValueError(f"an actor's name is a non-empty string, not {name!r}")
    if namespace == "":
        raise ValueError("namespace must not be empty; None means the namespace of this program")
    return _by_name(rt, name, rt.namespace if namespace is None else namespace, weak=True)


def _by_name(rt: Runtime, name: str, namespace: str, *, weak: bool) -> ActorHandle:
    return handle_of(rt, rt.ask("get_actor", None, name=name, namespace=namespace), weak=weak)
