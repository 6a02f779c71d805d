"""Reading one value of a setting, from text (flags, environment) or from what TOML makes of it.

A parser returns the value in its one form and raises one of REFUSALS for anything else. What is allowed is
told in words beside the option (`settings`), so a parser needs no message of its own.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Parser = Callable[[Any], Any]
REFUSALS = (ValueError, TypeError, KeyError, AttributeError, OverflowError)

_FLAGS = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}
_SIZE = re.compile(r"(\d+(?:\.\d*)?(?:e\+?\d{1,2})?) ?(?:([kmgt])(i?))?b?", re.IGNORECASE)
_HOST = re.compile(r"[^\s,/@]+")
_OWN_OPTION = frozenset({"CPU", "GPU", "memory", "object_store_memory"})


def flag(value: Any) -> bool:
    return value if isinstance(value, bool) else _FLAGS[value.strip().lower()]


def integer(low: int, high: int) -> Parser:
    def parse(value: Any) -> int:
        if isinstance(value, bool | float) or not low <= int(value) <= high:
            raise ValueError
        return int(value)

    return parse


def number(value: Any) -> float:
    if isinstance(value, bool) or not 0 <= float(value) < math.inf:
        raise ValueError
    return float(value)


def part(value: Any) -> float:
    if not 0 < (result := number(value)) <= 1:
        raise ValueError
    return result


def size(value: Any) -> int:
    """Bytes: decimal units with K, M, G, T, binary ones with Ki, Mi, Gi, Ti."""
    found = _SIZE.fullmatch(str(value).strip())
    if isinstance(value, bool) or found is None:
        raise ValueError
    amount, unit, binary = found.groups()
    power = " kmgt".index(unit.lower()) if unit else 0
    # Whole numbers stay exact; a float holds them up to 2**53 only.
    whole = int(amount) if amount.isdecimal() else float(amount)
    result = int(whole * (1024 if binary else 1000) ** power)
    if result >= 2**63:
        raise ValueError
    return result


def store_size(value: Any) -> int:
    """An object store below this has no room for the regions that processes write into."""
    if (result := size(value)) < 1 << 20:
        raise ValueError
    return result


def log_size(value: Any) -> int:
    """Below this there would be little between two cuts."""
    if (result := size(value)) < 64 << 10:
        raise ValueError
    return result


def matching(pattern: str) -> Parser:
    def parse(value: Any) -> str:
        if re.fullmatch(pattern, value) is None:
            raise ValueError
        return str(value)

    return parse


def resources(value: Any) -> Mapping[str, float]:
    amounts = json.loads(value) if isinstance(value, str) else dict(value)
    if not isinstance(amounts, dict) or not all(amounts) or _OWN_OPTION & amounts.keys():
        raise ValueError
    return {name: number(amount) for name, amount in amounts.items()}


def labels(value: Any) -> Mapping[str, str]:
    """From a=b,c=d, from JSON, or from a table. What names and values may look like is checked where they are used."""
    if isinstance(value, str) and not value.lstrip().startswith("{"):
        pairs = [each.split("=", 1) for each in value.split(",")]
        found = {key.strip(): text.strip() for key, text in pairs}
        if len(found) < len(pairs):
            raise ValueError
    else:
        found = json.loads(value) if isinstance(value, str) else dict(value)
    for key, text in found.items():
        if not isinstance(text, str) or not key or key.startswith("noded.io/") or key == "ray.io/node-id":
            raise ValueError
    return found


def hosts(value: Any) -> tuple[str, ...]:
    """Names from a list, each entry of which may be several with commas."""
    entries: Iterable[str] = [value] if isinstance(value, str) else value
    names = tuple(name.strip().lower() for entry in entries for name in entry.split(","))
    if not all(map(_HOST.fullmatch, names)):
        raise ValueError
    return names
