"""A node whose collectors do as a file says: {"gpus": "hang", …}, or {"*": "raise"} for all; changed at any time.

As a program, `faulty.py FILE ARGUMENT…`, it is `noded` with that fault in it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

if __name__ != "__main__":
    from harness.cluster import Node, noded_command

    class FaultyNode(Node):
        """`hang` seconds at most; until the file says something else."""

        def __init__(self, file: Path, *flags: str, **more: Any) -> None:
            super().__init__(*flags, **more)
            self._file = file
            self.set({})

        def set(self, faults: Mapping[str, str]) -> None:
            """`raise`, `hang` for 60 s or until it is something else, or `allocate` 1 GB, by collector."""
            draft = self._file.with_suffix(".new")
            draft.write_text(json.dumps(dict(faults)))
            draft.replace(self._file)

        def states(self) -> dict[str, str]:
            return {one["name"]: one["state"] for one in self.status()["collectors"]}

        def _in_place(self, command: list[str]) -> list[str]:
            python = noded_command()[0]
            return [python, __file__, str(self._file), *command[len(noded_command()) :]]


def main() -> None:
    file = sys.argv[1]
    sys.argv[1:] = sys.argv[2:]
    # As `python -m noded` in the working directory, and without this program's own place.
    sys.path[0] = os.getcwd()
    from noded.cli import main as noded
    from noded.node.collectors import Collectors

    add = Collectors.add

    def faulty_add(self: Any, name: str, collect: Callable[[], Any], **how: Any) -> None:
        add(self, name, lambda: faulty(file, name, collect), **how)

    Collectors.add = faulty_add  # type: ignore[method-assign]
    noded()


def fault(file: str, name: str) -> str:
    with open(file) as told:
        faults = json.load(told)
    return str(faults.get(name) or faults.get("*") or "")


def faulty(file: str, name: str, collect: Callable[[], Any]) -> Any:
    what = fault(file, name)
    if what == "raise":
        raise RuntimeError(f"{name} raises on purpose")
    if what == "hang":
        until = time.monotonic() + 60
        while time.monotonic() < until and fault(file, name) == "hang":
            time.sleep(0.1)
    if what == "allocate":
        held = [b"\1" * (1 << 20) for _ in range(1 << 10)]
        raise MemoryError(f"{name} has {len(held)} MB too many")
    return collect()


if __name__ == "__main__":
    main()
