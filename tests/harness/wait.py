"""Wait for a condition with a deadline and a reason, instead of sleeping and hoping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(condition: Callable[[], T], reason: str | Callable[[], str], timeout: float = 10) -> T:
    """The first true value of `condition()`; when none comes, a failure that says `reason`."""
    deadline = time.monotonic() + timeout
    pause = 0.001
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            text = reason if isinstance(reason, str) else reason()
            raise AssertionError(f"waited {timeout:g} s in vain: {text}")
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
