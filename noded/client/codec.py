"""User values to bytes and back: pickle protocol 5 with out-of-band buffers, cloudpickle for what plain
pickle does not carry.

Refs and actor handles inside a value are not pickled themselves: the pickle says "entry i of the table", the
ids travel beside it. So a daemon can see them without unpickling, and a list of 10,000 refs loads as fast as
a list of 10,000 numbers. This module keeps no state but the table of the (un)pickling that runs in the
current thread; who holds a ref is ``refs.py``'s business.
"""

from __future__ import annotations

import io
import operator
import pickle
import sys
import threading
import types
from collections.abc import Callable
from typing import Any, NamedTuple

from noded.exceptions import SerializationError
from noded.wire import value as layout

_ATOMS = frozenset({int, float, str, bytes, bool, type(None), complex})
"""Exact types that cannot hold a ref, a local class or anything mutable."""


class _State(threading.local):
    entries: list[Any] | None = None
    """While pickling: the refs met so far; while unpickling: the refs to hand out."""
    index: dict[bytes, int] | None = None


_state = _State()


class Packed(NamedTuple):
    """A serialised value: inline bytes, or a plan still to be written; and the refs in it."""

    inline: bytes | None
    plan: layout.Plan | None
    refs: list[Any]
    size: int

    def as_bytes(self) -> bytes:
        if self.inline is not None:
            return self.inline
        assert self.plan is not None
        return layout.assemble(self.plan)


class _Table:
    """Stands for the table inside a pickle; memoised, so that it costs one opcode per ref."""

    def __reduce__(self) -> Any:
        return _current_table, ()


_TABLE = _Table()


def _current_table() -> list[Any]:
    if _state.entries is None:
        raise SerializationError("a pickled ref can only be loaded by noded, inside a value that noded carried")
    return _state.entries


def reduce_entry(entry: Any, id_: bytes) -> Any:
    """What a ref's or handle's ``__reduce__`` returns while a value is being packed; None outside of that."""
    entries, index = _state.entries, _state.index
    if entries is None or index is None:
        return None
    at = index.get(id_)
    if at is None:
        at = index[id_] = len(entries)
        entries.append(entry)
    return operator.getitem, (_TABLE, at)


_reducers: dict[type, Callable[[Any], Any]] = {}
"""How values of these exact types are taken apart, before anything else is tried."""


def register(kind: type, reducer: Callable[[Any], Any]) -> None:
    """``reducer(value)`` gives what ``__reduce__`` would: also for types that cannot be pickled."""
    _reducers[kind] = reducer


def unregister(kind: type) -> None:
    _reducers.pop(kind, None)


def is_atom(value: Any) -> bool:
    return type(value) in _ATOMS


_pickler_type: Any = None


def _cloud_pickler() -> Any:
    """cloudpickle's pickler class, imported at first need: it costs more than the rest of the client."""
    global _pickler_type
    if _pickler_type is None:
        from collections import ChainMap

        import cloudpickle

        reduce_code = cloudpickle.Pickler.dispatch_table[types.CodeType]

        def reduce_code_with_file(code: types.CodeType) -> Any:
            """cloudpickle leaves out since 3.1.2 in which file it is; tracebacks are to show the user's lines."""
            make, args, *rest = reduce_code(code)
            return make, tuple(code.co_filename if a == "<dynamic-code>" else a for a in args), *rest

        class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
            dispatch_table = ChainMap(
                _reducers, {types.CodeType: reduce_code_with_file}, cloudpickle.Pickler.dispatch_table
            )

        _pickler_type = Pickler
    if "torch" in sys.modules:
        from noded.client import tensors

        tensors.register_once()
    return _pickler_type


def problem_of(value: Any) -> Exception | None:
    """What pickling the value raises; None when it can travel."""
    outer = _state.entries, _state.index
    _state.entries, _state.index = [], {}
    try:
        _cloud_pickler()(io.BytesIO(), protocol=5, buffer_callback=lambda buffer: None).dump(value)
    except Exception as problem:
        return problem
    finally:
        _state.entries, _state.index = outer
    return None


def pack(value: Any, what: str, *, error: bool = False) -> Packed:
    """Serialise a value. ``what`` names it in errors: "argument 2 of f". Raises SerializationError."""
    flags = layout.ERROR if error else 0
    kind = type(value)
    if kind in _ATOMS:
        if value is None and not flags:
            return Packed(b"", None, [], 0)
        inline = bytes((flags,)) + pickle.dumps(value, 5)
        return Packed(inline, None, [], len(inline))
    buffers: list[pickle.PickleBuffer] = []
    entries: list[Any] = []
    outer = _state.entries, _state.index
    _state.entries, _state.index = entries, {}
    try:
        if kind.__module__ == "numpy" and kind.__name__ == "ndarray" and not value.dtype.hasobject:
            data = pickle.dumps(value, 5, buffer_callback=buffers.append)
        else:
            file = io.BytesIO()
            _cloud_pickler()(file, protocol=5, buffer_callback=buffers.append).dump(value)
            data = file.getvalue()
    except Exception as problem:
        raise _explain(value, what, problem) from problem
    finally:
        _state.entries, _state.index = outer
    if not buffers and not entries:
        inline = bytes((flags,)) + data
        return Packed(inline, None, [], len(inline))
    views = []
    for buffer in buffers:
        try:
            views.append(buffer.raw())
        except BufferError:  # not contiguous: the pickler asked for it all the same
            views.append(memoryview(memoryview(buffer).tobytes()))
    plan = layout.plan(flags, data, views, [e.binary() for e in entries])
    return Packed(None, plan, entries, plan.size)


def _explain(value: Any, what: str, problem: Exception) -> SerializationError:
    from noded.client.inspect import find_fault

    fault = find_fault(value)
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    where = f"; the part that cannot be pickled is {fault}" if fault else ""
    return SerializationError(f"cannot serialise {what} (a {kind}): {type(problem).__name__}: {problem}{where}")


def unpack(
    view: memoryview,
    entry_of: Callable[[memoryview], list[Any]],
    buffer_of: Callable[[int, int], memoryview] | None = None,
) -> tuple[Any, bool]:
    """Load a value: (value, is it an error value).

    ``entry_of`` makes the refs for the ids in the view; ``buffer_of(offset, size)`` gives pinned buffers; without it
    slices of the view are used.
    """
    if not len(view):
        return None, False
    flags = view[0]
    if not flags & layout.EXTENDED:
        return pickle.loads(view[1:]), bool(flags & layout.ERROR)
    parts = layout.parse(view)
    if buffer_of is None:
        buffers = [view[at : at + n].toreadonly() for at, n in parts.buffers]
    else:
        buffers = [buffer_of(at, n) for at, n in parts.buffers]
    outer = _state.entries, _state.index
    _state.entries, _state.index = (entry_of(view) if parts.n_ids else []), None
    try:
        return pickle.loads(parts.pickle, buffers=buffers), bool(flags & layout.ERROR)
    finally:
        _state.entries, _state.index = outer


def dumps_code(obj: Any, what: str) -> tuple[bytes, list[Any]]:
    """A function or class as a value: by value where it must be (``__main__``, closures), by reference where
    it can be; and the refs in it.
    """
    packed = pack(obj, what)
    return packed.as_bytes(), packed.refs
