"""``stack(id)``: where workers are just now. ``log_once(key)``: True the first time, so that a message is not repeated;
per process.
"""

from __future__ import annotations

import time
from typing import Any

from noded.client.runtime import runtime
from noded.util.identify import id_of

PERIOD = 60.0
"""Seconds after which everything may be logged again, once ``enable_periodic_logging`` was called."""

_seen: set[str] = set()
_disabled = False
_periodic = False
_last_cleared = 0.0


def log_once(key: str) -> bool:
    """Whether this is the first call with this key (of the last minute, with ``enable_periodic_logging``)."""
    global _last_cleared
    if _disabled:
        return False
    if key not in _seen:
        _seen.add(key)
        return True
    if _periodic and time.monotonic() - _last_cleared > PERIOD:
        _seen.clear()
        _last_cleared = time.monotonic()
    return False


def reset_log_once(key: str | None = None) -> None:
    """Forget one key, or all."""
    if key is None:
        _seen.clear()
    else:
        _seen.discard(key)


def disable_log_once_globally() -> None:
    """From now on ``log_once`` is always False, in this process."""
    global _disabled
    _disabled = True


def enable_periodic_logging() -> None:
    """From now on every key counts as new again after a minute."""
    global _periodic, _last_cleared
    if not _periodic:
        _periodic, _last_cleared = True, time.monotonic()


def stack(id: Any = None) -> list[dict[str, Any]]:
    """The Python stacks of all threads of workers, now, also while they are in C code: of the worker that runs this
    task or call, has this actor, or has this id or pid; of all workers of a job; of all of the cluster (None). Each is
    a dict with ``stack`` (text), ``worker``, ``pid``, ``node``, ``running`` (tasks, with ``name`` and ``since``), and
    ``problem`` where it cannot tell. Raises ValueError where there is no such worker.
    """
    told: dict[str, Any] = runtime().ask("stack", id="" if id is None else id_of(id))
    stacks: list[dict[str, Any]] = told["stacks"]
    return stacks
