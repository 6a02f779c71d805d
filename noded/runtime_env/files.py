"""Which files of a directory belong into its package.

Left out is what ``excludes`` names, then what ignore files name (those of a deeper directory count for more), then what
nobody wants by default; ``!pattern`` brings back. All patterns are those of gitignore. Links are followed, so that a
package holds none; links that lead nowhere or back up are left out, and so are sockets, pipes and devices.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from errno import ELOOP, ENOENT, ENOTDIR
from typing import NamedTuple

from pathspec import GitIgnoreSpec

from noded.runtime_env.archive import File

DEFAULT_EXCLUDES = (".git", ".venv", "venv", "__pycache__")
IGNORE_FILES = (".gitignore", ".rayignore", ".nodedignore")
"""Of one directory the later ones count for more."""


class _Rules(NamedTuple):
    base: str
    """What of a name comes before the part that the patterns are about."""
    spec: GitIgnoreSpec


def walk(root: str, excludes: Sequence[str] = ()) -> Iterator[File]:
    """The files and directories of a package, sorted within each directory. Raises ValueError for a wrong pattern."""
    own = _Rules("", _spec(excludes, "runtime_env['excludes']"))
    defaults = _Rules("", _spec(DEFAULT_EXCLUDES, ""))
    yield from _walk(root, "", own, [defaults], [os.stat(root)])


def _walk(directory: str, prefix: str, own: _Rules, rules: list[_Rules], above: list[os.stat_result]) -> Iterator[File]:
    lines = [line for name in IGNORE_FILES for line in _lines(os.path.join(directory, name))]
    if lines:
        rules = [*rules, _Rules(prefix, _spec(lines, f"the ignore files in {directory}"))]
    for entry in sorted(os.listdir(directory)):
        path = os.path.join(directory, entry)
        try:
            found = os.stat(path)
        except OSError as error:
            if error.errno in (ENOENT, ENOTDIR, ELOOP):  # a link to nothing, or gone meanwhile
                continue
            raise
        is_directory = stat.S_ISDIR(found.st_mode)
        if not is_directory and not stat.S_ISREG(found.st_mode):
            continue
        name = f"{prefix}{entry}{'/' if is_directory else ''}"
        if _is_left_out(name, [own, *reversed(rules)]):
            continue
        if not is_directory:
            yield File(name, path, found)
        elif not any(os.path.samestat(found, each) for each in above):
            yield File(name, path, found)
            yield from _walk(path, name, own, rules, [*above, found])


def _is_left_out(name: str, rules: list[_Rules]) -> bool:
    for base, spec in rules:
        verdict = spec.check_file(name.removeprefix(base)).include
        if verdict is not None:
            return verdict
    return False


def _spec(lines: Sequence[str], source: str) -> GitIgnoreSpec:
    try:
        return GitIgnoreSpec.from_lines(lines)
    except ValueError as error:
        raise ValueError(f"{source} hold a pattern that is none: {error}") from None


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []
