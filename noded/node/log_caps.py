"""Keeps the log directory within its limits: files are cut at their start, and old ones of ended workers go.

A file that is written is cut by a hole behind its first bytes (``logs.files.HEAD_KEPT``): whoever writes or reads it
notices nothing. Called by the log monitor's thread alone.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import time
from collections.abc import Callable

import msgspec

from noded.logs.files import HEAD_KEPT, hole, worker_of

log = logging.getLogger("noded.logs")

SWEEP_SECONDS = 600.0
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_BLOCK = 4096
_KEPT_OF_CAP = 8
"""A cut leaves the cap less an eighth, so that there is one now and then and not all the time."""
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Limits(msgspec.Struct, frozen=True):
    worker_bytes: int
    """Of one file."""
    node_bytes: int
    """Of all together."""
    days: float
    """So long files of ended workers are kept."""


class LogCaps:
    """``alive(worker)``: whether it still writes."""

    def __init__(self, directory: str, limits: Limits, alive: Callable[[str], bool]):
        self._directory = directory
        self._limits = limits
        self._alive = alive
        self._on_disk: dict[str, int] = {}
        self._total = 0
        self._next_sweep = 0.0
        self._full_until = 0.0
        """No look for what to remove before: the last one has found too little."""
        self._emptied: dict[str, int] = {}
        """Files that had to be emptied, and how much they had: nobody was told yet."""

    def note(self, name: str, fd: int) -> None:
        """This file has grown; ``fd`` is open for reading."""
        stat = os.fstat(fd)
        used = stat.st_blocks * 512
        if used > self._limits.worker_bytes:
            used = self._cut(name, stat.st_size, used, self._limits.worker_bytes)
        self._set(name, used)

    def forget(self, name: str) -> None:
        """It was removed."""
        self._emptied.pop(name, None)
        self._total -= self._on_disk.pop(name, 0)

    def emptied(self, name: str) -> int:
        """So many bytes this file had when we emptied it; 0 when we have not, since this was asked last."""
        return self._emptied.pop(name, 0)

    def look(self) -> None:
        """At the end of a round."""
        now = time.monotonic()
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_SECONDS
            self._sweep()
        if self._total > self._limits.node_bytes and now >= self._full_until:
            self._make_room()
            if self._total > self._limits.node_bytes:
                self._full_until = now + 1.0

    def _set(self, name: str, used: int) -> None:
        self._total += used - self._on_disk.get(name, 0)
        self._on_disk[name] = used

    def _sweep(self) -> None:
        """What is there, and what is too old."""
        self._on_disk.clear()
        self._total = 0
        oldest = time.time() - self._limits.days * 86400
        try:
            entries = list(os.scandir(self._directory))
        except OSError:
            return
        for entry in entries:
            found = worker_of(entry.name)
            if found is None:
                continue
            try:
                stat = entry.stat(follow_symlinks=False)
                if not self._alive(found[0]) and (stat.st_mtime < oldest or not stat.st_size):
                    os.unlink(entry.path)
                    self._emptied.pop(entry.name, None)
                    continue
            except OSError:  # removed meanwhile
                continue
            self._set(entry.name, stat.st_blocks * 512)

    def _make_room(self) -> None:
        """Files of ended workers first, the oldest before others; then those that are written, the largest first."""
        aim = self._limits.node_bytes - self._limits.node_bytes // _KEPT_OF_CAP
        ended: list[tuple[float, str]] = []
        living: list[tuple[int, str]] = []
        for name, used in list(self._on_disk.items()):
            found = worker_of(name)
            try:
                stat = os.stat(os.path.join(self._directory, name))
            except OSError:
                self.forget(name)
                continue
            if found is not None and self._alive(found[0]):
                living.append((used, name))
            else:
                ended.append((stat.st_mtime, name))
        removed = 0
        for _, name in sorted(ended):
            if self._total <= aim:
                break
            removed += 1
            try:
                os.unlink(os.path.join(self._directory, name))
            except OSError:
                pass
            self.forget(name)
        if removed:
            log.info("%d log files of ended workers were removed: all were over %d bytes", removed, aim)
        if self._total > aim:
            each = aim // len(living) if living else 0
            for used, name in sorted(living, reverse=True):
                if self._total <= aim:
                    break
                if used > each:
                    try:
                        size = os.stat(os.path.join(self._directory, name)).st_size
                    except OSError:
                        continue
                    self._set(name, self._cut(name, size, used, each))

    def _cut(self, name: str, size: int, used: int, cap: int) -> int:
        """Leave the newest bytes; what the file has on disk then."""
        until = (size - (cap - cap // _KEPT_OF_CAP)) // _BLOCK * _BLOCK
        if until <= HEAD_KEPT:
            return used
        try:
            fd = os.open(os.path.join(self._directory, name), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return used
        try:
            if os.fstat(fd).st_size < until:
                return used  # emptied by somebody meanwhile
            begin = max(HEAD_KEPT, hole(fd, size)[1])
            if until <= begin:
                return used
            if _libc.fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, begin, until - begin):
                problem = ctypes.get_errno()
                if problem not in (errno.EOPNOTSUPP, errno.ENOSYS):
                    raise OSError(problem, os.strerror(problem))
                # Without holes there is but one way: whoever appends goes on at the new end.
                self._emptied[name] = self._emptied.get(name, 0) + os.fstat(fd).st_size
                os.ftruncate(fd, 0)
            return os.fstat(fd).st_blocks * 512
        except OSError as error:
            log.warning("the log file %s cannot be cut: %s", name, error.strerror)
            return used
        finally:
            os.close(fd)
