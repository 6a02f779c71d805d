"""Finding which part of a value cannot be pickled. Only runs after a failure, so it may be slow, but it is
bounded.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from noded.client import codec

_LIMIT = 200


class Part(NamedTuple):
    """Something that a value contains or refers to."""

    name: str
    step: str
    """From the value to it, for a path."""
    value: Any


def parts(value: Any) -> list[Part]:
    if isinstance(value, dict):
        return [Part(f"[{k!r}]", f"[{k!r}]", v) for k, v in list(value.items())[:_LIMIT]]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [Part(f"[{i}]", f"[{i}]", v) for i, v in enumerate(list(value)[:_LIMIT])]
    found: list[Part] = []
    closure = getattr(value, "__closure__", None)
    if closure:
        names = value.__code__.co_freevars
        for name, cell in zip(names, closure, strict=True):
            try:
                found.append(Part(name, f" (closure variable {name})", cell.cell_contents))
            except ValueError:
                continue
    code = getattr(value, "__code__", None)
    if code is not None:
        scope = getattr(value, "__globals__", {})
        found += [Part(name, f" (global {name})", scope[name]) for name in code.co_names if name in scope]
    if isinstance(value, type):
        found += [Part(name, f".{name}", member) for name, member in vars(value).items() if callable(member)]
    elif hasattr(value, "__dict__") and not _reduces_itself(type(value)):
        found += [Part(name, f".{name}", member) for name, member in list(vars(value).items())[:_LIMIT]]
    return found


def _reduces_itself(kind: Any) -> bool:
    """It decides what of it is pickled; its attributes say nothing."""
    return kind.__reduce__ is not object.__reduce__


def find_fault(value: Any, path: str = "", depth: int = 6) -> str:
    """The path to the innermost unpicklable part, as ``.conn._lock (a _thread.lock)``; empty if none is
    found.
    """
    for _, step, child in parts(value) if depth else []:
        if codec.problem_of(child) is not None:
            return (
                find_fault(child, path + step, depth - 1)
                or f"{path}{step} (a {type(child).__module__}.{type(child).__qualname__})"
            )
    return f"{path} (a {type(value).__module__}.{type(value).__qualname__})" if path else ""
