"""Handles to actors and their methods: ``handle.method.remote(...)``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import msgspec

from noded import exceptions as ex
from noded import ids
from noded.client import codec
from noded.client.generators import ObjectRefGenerator
from noded.client.options import retry_of, returns_of, window_of
from noded.client.refs import Token, hooks, load_pickled
from noded.client.runtime import Runtime, current
from noded.telemetry import CALL, Page
from noded.wire import messages as m

_SPECIAL = {
    "__ray_ready__": m.Method(1, 0, 0),
    "__ray_call__": m.Method(1, 1, -1),
    "__ray_terminate__": m.Method(1, 0, 0),
}
"""What every actor has: an answer as soon as it runs, a function called with its instance, its orderly end."""


class WeakToken:
    """Stands for a Token in a handle that does not keep its actor alive."""

    __slots__ = ("hold",)

    class _Hold:
        __slots__ = ("id",)

        def __init__(self, id_: bytes):
            self.id = id_

        def give_after(self, prefix: bytes, seq: int) -> None:
            """There is nothing to give."""

    def __init__(self, id_: bytes):
        self.hold = WeakToken._Hold(id_)


class ActorMethod:
    """``handle.method``: call it with ``.remote(...)``."""

    __slots__ = (
        "_actor",
        "_class_name",
        "_count",
        "_extra",
        "_limit",
        "_meta",
        "_name",
        "_page",
        "_signature",
        "_token",
        "_what",
    )

    def __init__(self, token: Any, class_name: str, name: str, meta: m.Method, limit: int):
        self._token = token
        self._actor = token.hold.id
        self._class_name = class_name
        self._name = name
        self._meta = meta
        self._limit = limit
        self._extra: m.Extra | None = None
        self._signature: inspect.Signature | None = None
        self._what = f"{class_name}.{name}"
        self._page: Page | None = None
        self._count = 0
        if meta.retry or meta.window:
            self._extra = m.Extra(window=meta.window, retry=meta.retry)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"the actor method {self._what} cannot be called directly: use .{self._name}.remote()")

    def options(
        self,
        *,
        num_returns: int | str | None = None,
        max_task_retries: int | None = None,
        retry_exceptions: Any = None,
        concurrency_group: str | None = None,
        name: str | None = None,
        _generator_backpressure_num_objects: int | None = None,
        **others: Any,
    ) -> ActorMethod:
        """The same method with other options for the calls made through the result."""
        _refuse_unknown(others)
        meta = self._meta
        changes: dict[str, Any] = {}
        if num_returns is not None:
            changes["returns"] = returns_of(num_returns)
        if max_task_retries is not None:
            changes["retries"] = whole("max_task_retries", max_task_retries, -1)
        if retry_exceptions is not None:
            changes["retry"] = retry_of(retry_exceptions)
        if _generator_backpressure_num_objects is not None:
            changes["window"] = window_of(_generator_backpressure_num_objects)
        meta = msgspec.structs.replace(meta, **changes)
        other = ActorMethod(self._token, self._class_name, self._name, meta, self._limit)
        if name or concurrency_group or other._extra is not None:
            other._extra = m.Extra(meta.window, 0, meta.retry, concurrency_group or "", name or "")
        if name:
            other._what = name  # before its first call, so before it is counted
        return other

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Queue a call behind this caller's earlier calls to the actor."""
        rt = current()
        if rt is None:
            raise ex.ActorHandleNotFoundError(
                f"the cluster of the actor of {self._what} was shut down in this process; call "
                "noded.init() and make a new actor"
            )
        meta = self._meta
        count = len(args)
        if kwargs or count < meta.fewest or (count > meta.most and meta.most >= 0):
            self._check(args, kwargs)
        if self._limit > 0 and rt.actors.pending(self._actor) >= self._limit:
            raise ex.PendingCallsLimitExceeded(
                f"{self._limit} calls to the actor {self._class_name} {self._actor.hex()} are unanswered, which is its "
                "max_pending_calls: wait for some of them first"
            )
        returns = meta.returns
        task = rt.tasks.prepare(self._what, args, kwargs, returns)
        if self._page is not rt.page:
            self._page, self._count = rt.page, rt.page.base(CALL, self._what)
        task.method, task.count = self._name, self._count
        task.retries = meta.retries
        task.extra = self._extra
        if returns == m.STREAMING:
            task.stream.window = meta.window
            generator = ObjectRefGenerator(task.stream, rt)
        rt.actors.call(self._actor, self._class_name, task, self._token)
        if rt.interrupts.pending:
            rt.interrupts.check()
        if returns == 1 or returns == m.DYNAMIC:
            return task.refs[0]
        if returns == m.STREAMING:
            return generator
        return list(task.refs) if returns else None

    def _check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Python's own error for arguments that the method does not take."""
        if self._meta.parameters is None:
            return
        if self._signature is None:
            self._signature = inspect.Signature(
                [
                    inspect.Parameter(
                        name, inspect._ParameterKind(kind), default=None if optional else inspect.Parameter.empty
                    )
                    for name, kind, optional in self._meta.parameters
                ]
            )
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as problem:
            raise TypeError(f"{self._what}: {problem}") from None


def _refuse_unknown(others: dict[str, Any]) -> None:
    ignored = {"enable_task_events", "tensor_transport", "_tensor_transport"}
    unknown = sorted(set(others) - ignored)
    if unknown:
        raise ValueError(
            f"unknown option {unknown[0]!r} of an actor method; known are num_returns, max_task_retries, "
            "retry_exceptions, concurrency_group, name"
        )


def whole(name: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return value


class ActorHandle:
    """A handle to an actor. As long as one is around anywhere the actor lives (unless it is killed); but one from
    ``get_actor`` does not count.
    """

    def __init__(self, token: Any, class_name: str, methods: Mapping[str, m.Method], limit: int = -1):
        self._token = token
        self._class_name = class_name
        self._methods = methods
        self._limit = limit

    def __getattr__(self, name: str) -> ActorMethod:
        meta = self.__dict__.get("_methods", {}).get(name) or _SPECIAL.get(name)
        if meta is None:
            raise AttributeError(f"the actor class {self.__dict__.get('_class_name')} has no method {name!r}")
        method = ActorMethod(self._token, self._class_name, name, meta, self._limit)
        # Methods keep the token, not the handle: so that there is no cycle and the actor ends with its last
        # handle.
        self.__dict__[name] = method
        return method

    def __dir__(self) -> list[str]:
        return sorted(self._methods)

    @property
    def _actor_id(self) -> ids.HexId:
        return ids.HexId(self._id.hex())

    _ray_actor_id = _actor_id

    @property
    def _id(self) -> bytes:
        found: bytes = self._token.hold.id
        return found

    def binary(self) -> bytes:
        return self._id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorHandle) and other.binary() == self.binary()

    def __hash__(self) -> int:
        return hash(self.binary())

    def __repr__(self) -> str:
        return f"Actor({self._class_name}, {self._actor_id})"

    def __reduce__(self) -> Any:
        found = codec.reduce_entry(self, self.binary())
        rest = self._class_name, dict(self._methods), self._limit
        if found is None:  # pickled by the user: the actor is kept as long as this process
            hooks.pin(self)
            return _load_pickled, (self.binary(), *rest)
        return _rebuild, (_Entry(found), *rest)


class _Entry:
    """Pickles as "entry i of the table" (see codec)."""

    def __init__(self, reduced: Any):
        self._reduced = reduced

    def __reduce__(self) -> Any:
        return self._reduced


def _rebuild(token: Token, class_name: str, methods: dict[str, m.Method], limit: int) -> ActorHandle:
    return ActorHandle(token, class_name, methods, limit)


def _load_pickled(id_: bytes, class_name: str, methods: dict[str, m.Method], limit: int) -> ActorHandle:
    return ActorHandle(load_pickled(id_), class_name, methods, limit)


def handle_of(rt: Runtime, answer: dict[str, Any], *, weak: bool) -> ActorHandle:
    """From the daemon's description of an actor."""
    import base64

    id_ = bytes.fromhex(answer["id"])
    methods = msgspec.msgpack.decode(base64.b64decode(answer["methods"]), type=dict[str, m.Method])
    token: Any
    if weak:
        token = WeakToken(id_)
    else:
        with rt.lock:
            token = rt.holds.take(id_)
            rt.flush_refs_numbered()
    return ActorHandle(token, answer["class_name"], methods, answer["max_pending_calls"])
