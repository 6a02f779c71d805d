"""Rows of the cluster's state as a table, JSON or YAML.

The YAML is made here: what is shown is nothing but dicts, lists, text and numbers, of which every scalar is written as
JSON has it, and YAML takes all of JSON. That is a few lines; a library for it would be one more dependency.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from noded.cli.memory import columns
from noded.cli.status import size

OUTPUTS = ("table", "json", "yaml")
_NUMBERS = {"pid", "worker_pid", "attempt_number", "object_size", "ref_cnt", "num_restarts"}
_LONGEST = 120
"""Characters of a cell of a table."""


def rows(found: Sequence[Mapping[str, Any]], names: Sequence[str], output: str, *, upright: bool) -> Iterator[str]:
    """Lines. ``upright``: as a table each row has a paragraph of its own, a line for each column."""
    if output == "json":
        yield json.dumps(list(found), indent=2)
    elif output == "yaml":
        yield from yaml(list(found)) if found else ["[]"]
    elif upright:
        for number, row in enumerate(found):
            if number:
                yield ""
            width = max(len(name) for name in names)
            for name in names:
                if row.get(name) not in (None, "", {}, []):
                    yield f"{name.ljust(width)}  {_cell(name, row[name], 0)}"
    elif found:
        cells = [[_cell(name, row.get(name), _LONGEST) for name in names] for row in found]
        right = {at for at, name in enumerate(names) if name in _NUMBERS}
        yield from columns([name.upper() for name in names], cells, right=right)


def one(found: Mapping[str, Any], output: str) -> Iterator[str]:
    """A single answer as JSON or YAML."""
    if output == "json":
        yield json.dumps(found, indent=2)
    else:
        yield from yaml(found)


def _cell(name: str, value: Any, longest: int) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, (dict, list)):
        text = json.dumps(value)
    elif name == "object_size":
        text = size(value) if value >= 0 else "?"
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, int) and (name.endswith("_time_ms") or name in ("start_time", "end_time")):
        seconds, milliseconds = divmod(value, 1000)
        text = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(seconds))}.{milliseconds:03d}"
    else:
        text = str(value)
    if longest:
        text = " ".join(text.split("\n"))
        if len(text) > longest:
            text = text[: longest - 1] + "…"
    return text


def yaml(value: Any, indent: str = "") -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _entry(f"{indent}{_scalar(key)}:", inner, indent + "  ")
    elif isinstance(value, list) and value:
        for inner in value:
            if isinstance(inner, (Mapping, list)) and inner:
                first, *rest = yaml(inner, indent + "  ")
                yield f"{indent}- {first.lstrip()}"
                yield from rest
            else:
                yield f"{indent}- {_scalar(inner)}"
    else:
        yield f"{indent}{_scalar(value)}"


def _entry(head: str, inner: Any, indent: str) -> Iterator[str]:
    if isinstance(inner, (Mapping, list)) and inner:
        yield head
        yield from yaml(inner, indent)
    else:
        yield f"{head} {_scalar(inner)}"


def _scalar(value: Any) -> str:
    plain = isinstance(value, str) and value.isidentifier() and value.lower() not in _WORDS
    return value if plain else json.dumps(value)


_WORDS = {"true", "false", "null", "none", "yes", "no", "on", "off", "y", "n", "inf", "nan"}
"""What YAML, some version of it, takes for something else than text."""
