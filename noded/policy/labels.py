"""Conditions on the labels of nodes, and whether a node meets them.

A condition is (key, operator, values) with the operators ``in``, ``not in``, ``exists`` and ``absent``; a label that is
not there is in no list. Conditions travel as canonical JSON in ``Place.labels``: ``hard`` must all hold, ``soft`` are
wishes; where ``hard`` does not hold, one of the lists in ``else`` may hold instead. The string forms of the option
``label_selector`` are read here as well.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence

NODE_ID, RAY_NODE_ID = "noded.io/node-id", "ray.io/node-id"
"""What every node has. Programs written for Ray know the second."""
IN, NOT_IN, EXISTS, ABSENT = "in", "not in", "exists", "absent"

Condition = tuple[str, str, tuple[str, ...]]
Labels = Mapping[str, str]

_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_VALUE = re.compile(f"(?:{_WORD})?")
_KEY = re.compile(rf"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{{0,251}}[A-Za-z0-9])?/)?{_WORD}")
_LIST = re.compile(r"in\(([^()]*)\)")
_FORM = "1 to 63 letters, digits, - _ and ., the first and the last a letter or a digit"


def encode(
    hard: Sequence[Condition], soft: Sequence[Condition] = (), otherwise: Sequence[Sequence[Condition]] = ()
) -> str:
    """As they travel; the same conditions are the same text. Empty: no conditions."""
    parts = {"hard": sorted(hard), "soft": sorted(soft), "else": [sorted(each) for each in otherwise]}
    parts = {name: part for name, part in parts.items() if part}
    if "hard" not in parts:
        parts.pop("else", None)  # nothing to fall back from
    return json.dumps(parts, separators=(",", ":"), sort_keys=True) if parts else ""


def refuse(text: str, labels: Labels) -> str:
    """Why a node with these labels must not be taken; empty when it may."""
    if not text:
        return ""
    try:
        hard, _, otherwise = _decode(text)
    except (ValueError, TypeError, AttributeError):
        return f"its conditions on labels cannot be read: {text[:200]!r}"
    failed = [condition for condition in hard if not holds(condition, labels)]
    if not failed or any(all(holds(c, labels) for c in conditions) for conditions in otherwise):
        return ""
    has = ", ".join(
        f"{key}={labels[key]}" if key in labels else f"no label {key}" for key in dict.fromkeys(c[0] for c in failed)
    )
    return f"it wants {' and '.join(map(describe, failed))}, the node has {has}"


def prefers(text: str, labels: Labels) -> bool:
    """Whether all soft conditions hold."""
    return not text or all(holds(condition, labels) for condition in _decode(text)[1])


def holds(condition: Condition, labels: Labels) -> bool:
    key, operator, values = condition
    if operator == IN:
        return labels.get(key) in values
    if operator == NOT_IN:
        return labels.get(key) not in values
    return (key in labels) == (operator == EXISTS)


def describe(condition: Condition) -> str:
    key, operator, values = condition
    if operator in (EXISTS, ABSENT):
        return f"{'a' if operator == EXISTS else 'no'} label {key}"
    return f"{key} {operator} ({', '.join(values)})"


@functools.lru_cache(1024)
def _decode(text: str) -> tuple[list[Condition], list[Condition], list[list[Condition]]]:
    parts = json.loads(text)

    def read(given: list[tuple[str, str, list[str]]]) -> list[Condition]:
        return [(key, operator, tuple(values)) for key, operator, values in given]

    return read(parts.get("hard", [])), read(parts.get("soft", [])), [read(each) for each in parts.get("else", [])]


def parse_selector(selector: Mapping[str, str]) -> list[Condition]:
    """The conditions of ``{key: "v" | "!v" | "in(a,b)" | "!in(a,b)"}``. Raises TypeError, ValueError."""
    if not isinstance(selector, Mapping):
        raise TypeError(f"a label selector is a dict of label to value, not {selector!r}")
    return [_condition(key, value) for key, value in selector.items()]


def _condition(key: object, value: object) -> Condition:
    if not isinstance(key, str):
        raise TypeError(f"the keys of a label selector are strings, not {key!r}")
    if not isinstance(value, str):
        raise ValueError(f"the values of a label selector are strings, not {value!r} (of {key!r})")
    check_key(key)
    negated = value.startswith("!")
    text = value[1:] if negated else value
    found = _LIST.fullmatch(text)
    values = tuple(part.strip() for part in found.group(1).split(",")) if found else (text,)
    for each in values:
        if not _VALUE.fullmatch(each) or (found and not each):
            raise ValueError(
                f"the label selector {key!r}: {value!r} is not understood: give 'v', '!v', 'in(a,b)' or '!in(a,b)', "
                f"where each value has {_FORM}"
            )
    return key, NOT_IN if negated else IN, values


def check_own(labels: object) -> None:
    """Whether these may be the labels of a node. Raises TypeError, ValueError."""
    if not isinstance(labels, Mapping):
        raise TypeError(f"the labels of a node are a dict of strings, not {labels!r}")
    for key, value in labels.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"the labels of a node are strings, not {key!r}: {value!r}")
        check_key(key)
        check_value(key, value)
        if key.startswith("noded.io/") or key == RAY_NODE_ID:
            raise ValueError(f"the label {key} is given by noded itself: choose another name")


def check_key(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no name of a label: it has {_FORM}, and may have a prefix as in example.com/name")


def check_value(key: str, value: str) -> None:
    if not _VALUE.fullmatch(value):
        raise ValueError(f"{value!r} is no value of a label ({key}): it is empty or has {_FORM}")
