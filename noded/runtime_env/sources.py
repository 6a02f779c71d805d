"""Packages from single files: a .zip, a wheel, a module that is one .py file."""

from __future__ import annotations

import os
import sys

from noded.runtime_env import archive
from noded.runtime_env.archive import File


def from_file(field: str, named: str, path: str) -> bytes:
    """Raises ArchiveError."""
    if path.endswith(".py"):
        return archive.pack([File(os.path.basename(path), path, os.stat(path))], "", sys.maxsize)
    with open(path, "rb") as file:
        data = file.read()
    if path.endswith(".whl"):
        _check_wheel(os.path.basename(path))
        return archive.checked(data, _installed)
    if named.startswith("file://"):
        return archive.checked(data, lambda names: _without_top(names, keep_package=field == "py_modules"))
    return archive.checked(data)


def _check_wheel(name: str) -> None:
    from packaging.tags import sys_tags
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    try:
        tags = parse_wheel_filename(name)[3]
    except InvalidWheelFilename as error:
        raise archive.ArchiveError(str(error)) from None
    if tags.isdisjoint(sys_tags()):
        raise archive.ArchiveError(
            f"the wheel is for {', '.join(sorted(map(str, tags)))}, and this is Python "
            f"{sys.version_info.major}.{sys.version_info.minor} on {sys.platform}"
        )


def _installed(names: list[str]) -> dict[str, str]:
    """Where an installer would put what a wheel has beside its plain content; scripts and the like are dropped."""
    changed = {}
    for name in names:
        top, _, rest = name.partition("/")
        if top.endswith(".data"):
            kind, _, inner = rest.partition("/")
            changed[name] = inner if kind in ("purelib", "platlib") else ""
    return changed


def _without_top(names: list[str], *, keep_package: bool) -> dict[str, str]:
    """Archives that others serve have all below one directory, which is not part of the content; as in Ray."""
    tops = {name.partition("/")[0] for name in names}
    if len(tops) != 1 or any("/" not in name for name in names):
        return {}
    top = tops.pop()
    if keep_package and f"{top}/__init__.py" in names:
        return {}
    return {name: name.removeprefix(f"{top}/") for name in names}
