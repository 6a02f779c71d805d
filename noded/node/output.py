"""Follows the output files of workers and passes new lines on to their job's driver.

Woken by inotify; files of ended workers are read to their end once and then forgotten. Marks in the files
(see ``worker/streams.py``) say whose lines follow.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from noded.wire import messages as m

log = logging.getLogger("noded.output")

_MARK = b"\x1e"
_CHUNK = 256 << 10
_LINE_LIMIT = 16 << 10


@dataclass(eq=False)
class _Followed:
    path: str
    worker: str
    is_error: bool
    offset: int = 0
    name: str = ""
    rest: bytes = b""


class OutputMonitor:
    """``who(worker)`` -> (job, pid) or None; ``deliver(job, message)`` sends to the job's driver."""

    def __init__(
        self,
        log_dir: str,
        who: Callable[[str], tuple[str, int] | None],
        deliver: Callable[[str, m.LogLines], None],
        *,
        keep: bool,
    ):
        self._dir = log_dir
        self._who = who
        self._deliver = deliver
        self._keep = keep
        self._files: dict[str, _Followed] = {}
        self._task: asyncio.Task[None] | None = None
        self._inotify: Any = None
        self._last_who: dict[str, tuple[str, int]] = {}

    def start(self) -> None:
        from asyncinotify import Inotify, Mask

        self._inotify = Inotify()
        self._inotify.add_watch(self._dir, Mask.MODIFY)
        self._task = asyncio.get_running_loop().create_task(self._follow(), name="output")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._inotify.close()
            self._task = None

    async def _follow(self) -> None:
        async for event in self._inotify:
            if event.path is not None:
                self._read(str(event.path))

    def _followed(self, path: str) -> _Followed | None:
        found = self._files.get(path)
        if found is None:
            name = os.path.basename(path)
            if not name.startswith("worker-") or name[-4:] not in (".out", ".err"):
                return None
            found = self._files[path] = _Followed(path, name[7:-4], name.endswith(".err"))
        return found

    def _read(self, path: str) -> None:
        followed = self._followed(path)
        if followed is None:
            return
        who = self._who(followed.worker) or self._last_who.get(followed.worker)
        if who is None or not who[0]:
            return
        self._last_who[followed.worker] = who
        while True:
            try:
                with open(path, "rb") as file:
                    file.seek(followed.offset)
                    data = file.read(_CHUNK)
            except OSError:
                return
            if not data:
                return
            followed.offset += len(data)
            self._pass_on(followed, data, who)
            if len(data) < _CHUNK:
                return

    def _pass_on(self, followed: _Followed, data: bytes, who: tuple[str, int]) -> None:
        *lines, rest = (followed.rest + data).split(b"\n")
        if len(rest) > _LINE_LIMIT:
            lines.append(rest)
            rest = b""
        followed.rest = rest
        job, pid = who
        batches: list[tuple[str, int, bool, list[str]]] = []
        current: list[str] = []
        for line in lines:
            if line.startswith(_MARK):
                if current:
                    batches.append((followed.name, pid, followed.is_error, current))
                    current = []
                # Without a name it is a task's end; what C code writes then is counted to that task.
                followed.name = line[1:].decode(errors="replace") or followed.name
            else:
                current.append(line.decode(errors="replace"))
        if current:
            batches.append((followed.name, pid, followed.is_error, current))
        if batches:
            self._deliver(job, m.LogLines(batches))

    def died(self, worker: str, job: str, pid: int) -> None:
        """Pass on what it has written, also of one that nobody knows any more and whose files were never looked at."""
        if job:
            self._last_who.setdefault(worker, (job, pid))
        self.catch_up(worker)

    def catch_up(self, worker: str, *, unfinished: bool = False) -> None:
        """Pass on everything this worker has written so far; a line without its end only when asked to."""
        for suffix in (".out", ".err"):
            path = os.path.join(self._dir, f"worker-{worker}{suffix}")
            self._read(path)
            followed = self._files.get(path)
            if unfinished and followed is not None and followed.rest and worker in self._last_who:
                self._pass_on(followed, b"\n", self._last_who[worker])

    def ended(self, worker: str) -> None:
        """The worker is gone: its last lines, the unfinished one too, then forget it."""
        self.catch_up(worker, unfinished=True)
        for suffix in (".out", ".err"):
            path = os.path.join(self._dir, f"worker-{worker}{suffix}")
            self._files.pop(path, None)
            try:
                if not self._keep or not os.path.getsize(path):
                    os.unlink(path)
            except OSError:
                pass
        self._last_who.pop(worker, None)
