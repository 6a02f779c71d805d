"""What tests and their tasks share without the system under test: files. A gate that one side opens and the
other waits for, and notes that all sides add to.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from harness.wait import wait_for


class Gate:
    """Closed until somebody, in whatever process, opens it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self) -> None:
        self.path.touch()

    def is_open(self) -> bool:
        return self.path.exists()

    def wait(self, timeout: float = 60) -> None:
        wait_for(self.path.exists, f"nobody opened the gate {self.path.name}", timeout)


class Notes:
    """Short lines, added at once by any process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, text: object = "") -> int:
        """The number of lines with this one."""
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(fd, f"{text}\n".encode())
        finally:
            os.close(fd)
        return len(self.all())

    def all(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []

    def wait(self, count: int, timeout: float = 60) -> list[str]:
        """All lines, once there are `count` of them."""
        wait_for(lambda: len(self.all()) >= count, lambda: f"{self.all()}, not {count} notes", timeout)
        return self.all()


GateMaker = Callable[[str], Gate]
