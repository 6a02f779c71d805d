"""``inspect_serializability``: says what in a value cannot be pickled, and prints how it was found."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from noded.client import codec
from noded.client.inspect import parts


class FailureTuple:
    """Something that cannot be pickled: ``obj``, the names that lead to it (``path``), and what holds it."""

    def __init__(self, obj: Any, path: tuple[str, ...], parent: Any):
        self.obj = obj
        self.path = path
        self.parent = parent

    @property
    def name(self) -> str:
        return self.path[-1] if self.path else "unknown"

    def __repr__(self) -> str:
        where = " -> ".join(self.path)
        return f"FailureTuple({self.name} [path={where}, obj={self.obj!r}, parent={self.parent!r}])"


def inspect_serializability(
    base_obj: Any, name: str | None = None, depth: int = 3, print_file: Any = None
) -> tuple[bool, set[FailureTuple]]:
    """(can it be pickled, what in it cannot). ``depth``: so many steps are gone into attributes, items, closures and
    globals. The findings are printed to ``print_file``, else to stdout.
    """
    out: TextIO = print_file if print_file is not None else sys.stdout
    title = f"Checking Serializability of {base_obj!r}"
    line = "=" * min(len(title), 80)
    print(line, title, line, sep="\n", file=out)
    found: set[FailureTuple] = set()
    problem = codec.problem_of(base_obj)
    if problem is None:
        return True, found
    print(f"!!! FAIL serialization: {problem}", file=out)
    path = (name,) if name else ()
    if not _search(base_obj, path, depth, found, out, {id(base_obj)}):
        found.add(FailureTuple(base_obj, path, None))
    print(line, file=out)
    for failure in found:
        print(f"Cannot be pickled: {failure!r}", file=out)
    print(
        "Leave these out, make them where they are used (in the task, in the actor's __init__), or tell how they "
        "travel with noded.util.register_serializer().",
        line,
        sep="\n",
        file=out,
    )
    return False, found


def _search(
    value: Any, path: tuple[str, ...], depth: int, found: set[FailureTuple], out: TextIO, seen: set[int]
) -> bool:
    """Look for what is at fault below a value that is; False when nothing was found there."""
    if depth <= 0:
        return False
    indent = "    " * (len(path) + 1)
    at_fault = False
    for name, _, child in parts(value):
        if id(child) in seen:
            continue
        seen.add(id(child))
        problem = codec.problem_of(child)
        if problem is None:
            continue
        at_fault = True
        here = (*path, name)
        print(f"{indent}Serializing {name!r} {child!r:.200}...", file=out)
        print(f"{indent}!!! FAIL serialization: {problem}", file=out)
        if not _search(child, here, depth - 1, found, out, seen):
            found.add(FailureTuple(child, here, value))
    return at_fault
