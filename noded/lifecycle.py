"""What the daemon's components share: logging set-up and the probe of the loop's delays."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from typing import Protocol

_PROBE_SECONDS = 0.25


class LogConfig(Protocol):
    """What is used of the configuration."""

    @property
    def log_level(self) -> str: ...

    @property
    def log_format(self) -> str: ...

    @property
    def private(self) -> bool: ...


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        import orjson

        entry = {
            "time": record.created,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return orjson.dumps(entry).decode()


def setup_logging(config: LogConfig, run_dir: str) -> None:
    """To stderr; a private node's daemon has no terminal of its own and writes into its run directory."""
    handler: logging.Handler
    if config.private:
        os.makedirs(run_dir, mode=0o700, exist_ok=True)
        handler = logging.FileHandler(os.path.join(run_dir, "noded.log"))
    else:
        handler = logging.StreamHandler()
    if config.log_format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(config.log_level.upper())


class LoopProbe:
    """Measures how late the loop serves a timer: the longest callback, seen from outside. Also marks that the
    loop turns.
    """

    def __init__(self) -> None:
        self.longest_ms = 0.0
        self._handle: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._beat: Callable[[], None] = lambda: None
        self._due = 0.0

    def start(self, loop: asyncio.AbstractEventLoop, beat: Callable[[], None]) -> None:
        self._loop, self._beat = loop, beat
        self._arm()

    def _arm(self) -> None:
        assert self._loop is not None
        self._due = time.monotonic() + _PROBE_SECONDS
        self._handle = self._loop.call_later(_PROBE_SECONDS, self._on_timer)

    def _on_timer(self) -> None:
        late = (time.monotonic() - self._due) * 1000
        self.longest_ms = max(self.longest_ms, late)
        self._beat()
        self._arm()

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
