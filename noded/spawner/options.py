"""Command-line options of the spawner, `--name VALUE`, and the form of ids.

argparse would be a tenth of the spawner's memory. What a value means is decided where it is used.
"""

from __future__ import annotations

HEX = frozenset("0123456789abcdef")


class OptionError(ValueError):
    """The command line cannot be used; the text says why."""


def parse(argv: list[str], known: frozenset[str]) -> dict[str, str]:
    """The value of each option that was given."""
    found: dict[str, str] = {}
    words = iter(argv)
    for word in words:
        if not word.startswith("--") or word[2:] not in known:
            names = ", ".join("--" + name for name in sorted(known))
            raise OptionError(f"unknown option {word!r}; known are {names}")
        value = next(words, None)
        if value is None:
            raise OptionError(f"{word} needs a value")
        found[word[2:]] = value
    return found


def required(found: dict[str, str], name: str) -> str:
    """The value of an option that must be given."""
    if name not in found:
        raise OptionError(f"--{name} must be given")
    return found[name]


def number(found: dict[str, str], name: str) -> int | None:
    """The value of an optional whole number."""
    if name not in found:
        return None
    if not found[name].isdecimal():
        raise OptionError(f"--{name} must be a whole number, not {found[name]!r}")
    return int(found[name])


def is_hex16(text: str) -> bool:
    """True for the form of node tags and worker ids."""
    return len(text) == 16 and HEX.issuperset(text)
