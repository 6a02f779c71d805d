"""Taking exceptions apart and putting them together again, with any class and without its constructor.

Pickle restores an exception by calling its class with `args`, which fails for every class whose __init__
takes something else. So the parts are carried, and __init__ is never called. Also here: the texts
that tell of an exception or of the end of a process. The errors themselves are in `exceptions.py`.
"""

from __future__ import annotations

import contextlib
import copyreg
import os
import types
import weakref
from collections.abc import Sequence
from typing import Any

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: the class was made by a class statement, not in C
_set_args = vars(BaseException)["args"].__set__  # not by assignment: the class may be frozen
_DESCRIPTORS = (types.MemberDescriptorType, types.GetSetDescriptorType)

Parts = tuple[type[BaseException], tuple[Any, ...], dict[str, Any], dict[str, Any]]


class Alias:
    """Another name for an attribute of an error. An attribute of that name that a user's own error has wins."""

    def __init__(self, name: str):
        self._name = name

    def __get__(self, error: Any, cls: type | None = None) -> Any:
        return self if error is None else getattr(error, self._name)


def parts(error: BaseException) -> Parts:
    """Class, args, what C structs and __slots__ hold, and attributes."""
    members: dict[str, Any] = {}
    for cls in type(error).__mro__:
        if cls is BaseException or not issubclass(cls, BaseException):
            continue
        for name, descriptor in vars(cls).items():
            if not isinstance(descriptor, _DESCRIPTORS) or name.startswith("__") or name in members:
                continue
            if cls is AttributeError and name == "obj":
                continue  # the object that lacked the attribute: any size, often not picklable
            try:
                value = descriptor.__get__(error, cls)
            except AttributeError:
                continue
            # None in a C struct mostly stands for "not set"; setting it would show ("No such file: None").
            if value is not None or cls.__flags__ & _HEAP_TYPE:
                members[name] = value
    return type(error), error.args, members, dict(error.__dict__)


def rebuild(
    cls: type[BaseException], args: tuple[Any, ...], members: dict[str, Any], attributes: dict[str, Any]
) -> BaseException:
    base = next(c for c in cls.__mro__ if not c.__flags__ & _HEAP_TYPE)  # the one that knows the layout
    needed = args if issubclass(base, BaseExceptionGroup) else ()
    error = base.__new__(cls, *needed)
    _set_args(error, args)
    for name, value in members.items():
        owner = next((c for c in cls.__mro__ if isinstance(vars(c).get(name), _DESCRIPTORS)), None)
        if owner is not None:
            with contextlib.suppress(AttributeError):  # read-only: __new__ has set it
                vars(owner)[name].__set__(error, value)
    error.__dict__.update(attributes)  # nor here; and it may have properties
    return error


# A class refers to its bases, so only weak values let a user's class go again.
_combined: weakref.WeakValueDictionary[tuple[type, type], type[BaseException]] = weakref.WeakValueDictionary()


def combine(first: type[BaseException], second: type[BaseException]) -> type[BaseException] | None:
    """The class "first(second)", derived from both, or None where Python allows none."""
    known = _combined.get((first, second))
    if known is not None:
        return known
    name = f"{first.__name__}({second.__name__})"
    names = {"__module__": first.__module__, "__qualname__": name, "__doc__": second.__doc__}
    try:
        made = types.new_class(name, (first, second), {}, lambda body: body.update(names))
    except Exception:  # final or conflicting; or the user's __init_subclass__ or metaclass refused
        return None
    _combined[first, second] = made
    return made


def pickles_itself(cls: type[BaseException]) -> bool:
    """Whether the class, or one above it that is not a builtin, says how it is pickled."""
    special = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__getnewargs__")
    own = (name in vars(c) for c in cls.__mro__ if c.__flags__ & _HEAP_TYPE for name in special)
    return cls in copyreg.dispatch_table or any(own)


def type_name(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def safe_str(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:  # the user's own __str__ may raise anything
        return f"<its text is not available: {type(broken).__name__} in {type(error).__name__}.__str__>"


def remote_traceback(error: BaseException) -> str:
    """The traceback as Python prints it, chain included, without the frames of noded's own files."""
    import traceback  # only a process in which something failed pays for it

    story = traceback.TracebackException.from_exception(error)
    todo: list[traceback.TracebackException | None] = [story]
    while todo:
        part = todo.pop()
        if part is None:
            continue
        theirs = [frame for frame in part.stack if not frame.filename.startswith(_PACKAGE)]
        if theirs:  # an error wholly inside noded is our bug: keep its frames
            part.stack[:] = theirs
        todo += [part.__cause__, part.__context__, *(part.exceptions or ())]
    return "".join(story.format())


def named(identifier: str) -> str:
    return f" {identifier}" if identifier else ""


def sentence(message: str, default: str, ending: str) -> str:
    return f"{message} ({ending})" if message else default


def ending(pid: int | None, exit_code: int | None, signal: str, max_rss: int | None, node: str = "") -> str:
    where = [f"pid {pid}"] if pid is not None else []
    where += [f"node {node}"] if node else []
    process = f"its process ({', '.join(where)})" if where else "its process"
    if signal:
        ended = f"{process} was ended by {signal}"
    elif exit_code is not None:
        ended = f"{process} exited with code {exit_code}"
    else:
        ended = f"{process} ended"
    return ended if max_rss is None else f"{ended}; it had used {max_rss / 2**20:.0f} MiB at most"


def tail_text(stderr_tail: Sequence[str]) -> str:
    if not stderr_tail:
        return ""
    return "\nlast lines of its stderr:\n" + "\n".join(f"  | {line.rstrip()}" for line in stderr_tail)
