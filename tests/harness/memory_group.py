"""A real control group with a memory limit, of version 1 or 2, for a node: where the kernel's OOM killer works.

    with MemoryGroup(400 << 20) as group, LimitedNode(group) as node: ...

Needs root and control groups that may be written to; `unavailable()` says why they are not.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from harness.cluster import Node
from harness.wait import wait_for

_TOPS = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max", "memory.swap.max"),
)
_numbers = itertools.count(1)


class MemoryGroup:
    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.path = Path()

    def __enter__(self) -> MemoryGroup:
        problems = []
        for top, limit, swap in _TOPS:
            path = top / f"noded-test-{os.getpid()}-{next(_numbers)}"
            try:
                path.mkdir()
            except OSError as error:
                problems.append(str(error))
                continue
            if (path / limit).exists():
                self.path = path
                (path / limit).write_text(str(self.limit))
                if (path / swap).exists():  # else what does not fit is swapped out, and nothing is killed
                    (path / swap).write_text("0" if swap == "memory.swap.max" else str(self.limit))
                return self
            path.rmdir()
            problems.append(f"{top} has no memory controller")
        raise OSError("; ".join(problems))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        procs = self.path / "cgroup.procs"
        wait_for(lambda: not procs.read_text(), lambda: f"still in {self.path}: {procs.read_text().split()}")
        self.path.rmdir()


def unavailable() -> str:
    """Why there can be no such group here; empty when there can."""
    try:
        with MemoryGroup(64 << 20):
            return ""
    except OSError as error:
        return f"no control group with a memory limit can be made: {error}"


class LimitedNode(Node):
    """A node all of whose processes are in the group."""

    def __init__(self, group: MemoryGroup, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._group = group

    def _in_place(self, command: list[str]) -> list[str]:
        return ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(self._group.path), *command]
