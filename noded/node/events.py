"""What happened on this node, and on the head to the whole cluster: appended to files beside the logs by a thread.

``emit`` may be called at any time: it costs a few microseconds, and what becomes of the event is no business
of its caller. Where the disk is full, or slower than what happens, events are dropped and counted, and the next one
that can be written says so. The files are bounded by size and age. Their format, and reading them: ``event_files.py``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from noded.node import event_files
from noded.node.event_files import Event
from noded.policy.query import Collector, Page, Query, shown

log = logging.getLogger("noded.events")

FILES = 8
FILE_SIZE = 4 << 20
"""Bytes, after which the next file begins."""
DAYS = 30.0
"""Files that nothing was written to for so long go when the next one begins."""
_QUEUE = 10_000
_BATCH = 500
_PAUSE = 1.0
"""Seconds after a write that failed, in which nothing is tried."""
_STOP_SECONDS = 2.0
_LONGEST = 4000
"""Characters of a message."""


class EventLog:
    """``node``: this node's number, ``node_id`` its id. Nothing is opened before the first event. ``emit`` is for one
    thread, the daemon's.
    """

    def __init__(
        self, directory: str, *, node: int, node_id: str, files: int = FILES, file_size: int = FILE_SIZE
    ) -> None:
        self._directory = directory
        self._node = node
        self._node_id = node_id
        self._files = files
        self._file_size = file_size
        self._queue: queue.SimpleQueue[tuple[float, str, str, str, dict[str, Any]] | threading.Event | None] = (
            queue.SimpleQueue()
        )
        self._thread: threading.Thread | None = None
        self._stopped = False
        self.dropped = 0
        self.problem = ""
        """Why nothing can be written now."""
        self._told = 0
        """Dropped events that an event tells of."""
        self._fd = -1
        self._number = 0
        self._size = 0
        self._time = 0
        """Microseconds of the last event."""
        self._again = 0.0

    # ------------------------------------------------------------ for everybody

    def emit(self, source: str, message: str, severity: str = "INFO", **fields: Any) -> None:
        """``fields``: what JSON takes; None is left out."""
        if self._stopped or self._queue.qsize() >= _QUEUE:
            self.dropped += 1
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_all, name="noded-events", daemon=True)
            self._thread.start()
        self._queue.put((time.time(), source, severity, message, fields))

    def figures(self) -> dict[str, Any]:
        return {"problem": self.problem, "dropped": self.dropped, "waiting": self._queue.qsize()}

    async def stop(self) -> None:
        """What was emitted is written, unless the disk hangs."""
        self._stopped = True
        if self._thread is not None:
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join, _STOP_SECONDS)

    # ------------------------------------------------------------ reading: in any thread

    def page(self, query: Query) -> Page:
        """Those that are on disk, newest first."""
        self._await_written()
        collector = Collector(query, keep=lambda row: row["custom_fields"])
        sources, severities = query.wanted("source_type"), query.wanted("severity")
        for event in event_files.read(self._directory):
            if (sources and event.source.casefold() not in sources) or (
                severities and event.severity.casefold() not in severities
            ):
                collector.skip(1)
            else:
                collector.add({**event.row(), "custom_fields": event})
        page = collector.page()
        for at, event in enumerate(page.rows):
            known = {"node_id": event.node, **event.known()}
            page.rows[at] = shown(query, {**event.row(), "custom_fields": known})
        return page

    def _await_written(self) -> None:
        if self._thread is not None and self._thread.is_alive() and not self._stopped:
            written = threading.Event()
            self._queue.put(written)
            written.wait(1.0)

    # ------------------------------------------------------------ writing: in the thread

    def _write_all(self) -> None:
        try:
            while self._write_next():
                pass
        finally:
            self._close()

    def _write_next(self) -> bool:
        """Wait for what there is, and write it; False: it was the last."""
        lines: list[bytes] = []
        waiting: list[threading.Event] = []
        goes_on = True
        for item in self._taken():
            if item is None:
                goes_on = False
                break
            if isinstance(item, threading.Event):
                waiting.append(item)
            else:
                lines.append(self._line(*item))
        if lines:
            self._append(lines)
        for each in waiting:
            each.set()
        return goes_on

    def _taken(self) -> Iterator[tuple[float, str, str, str, dict[str, Any]] | threading.Event | None]:
        yield self._queue.get()
        for _ in range(_BATCH):
            try:
                yield self._queue.get_nowait()
            except queue.Empty:
                return

    def _line(self, when: float, source: str, severity: str, message: str, fields: dict[str, Any]) -> bytes:
        if not self._time:
            self._time = self._last_time()
        self._time = max(self._time + 1, int(when * 1e6))
        known = {name: value for name, value in fields.items() if value is not None}
        event = Event(
            event_files.id_of(self._time, self._node),
            when,
            severity,
            source,
            message[:_LONGEST],
            self._node_id,
            msgspec.Raw(msgspec.json.encode(known)),
        )
        return event_files.encode(event) + b"\n"

    def _last_time(self) -> int:
        """Of the daemon before us: the clock may have been set back since."""
        found = event_files.numbers(self._directory)
        last = event_files.last(self._directory, found[-1]) if found else None
        return event_files.microseconds_of(last.id) if last is not None else 0

    def _append(self, lines: list[bytes]) -> None:
        if self.problem and time.monotonic() < self._again:
            self.dropped += len(lines)
            return
        after, dropped = b"", self.dropped
        if dropped > self._told:
            count = dropped - self._told
            text = f"{count} events were dropped: {self.problem or 'more happened than could be written'}"
            after = self._line(time.time(), "NODE", "WARNING", text, {"dropped": count})
        data = b"".join(lines) + after
        try:
            if self._fd < 0 or self._size >= self._file_size:
                self._next_file()
            if os.write(self._fd, data) < len(data):
                os.ftruncate(self._fd, self._size)
                raise OSError("the disk is full")
        except OSError as error:
            self._failed(error, len(lines))
            return
        if self.problem:
            log.info("events are written to %s again", self._directory)
        self.problem, self._told = "", dropped
        self._size += len(data)

    def _failed(self, error: OSError, count: int) -> None:
        reason = f"{self._directory}: {error.strerror or error}"
        if not self.problem:
            log.error("what happens on this node cannot be written down: %s", reason)
        self.problem, self._again = reason, time.monotonic() + _PAUSE
        self.dropped += count
        self._close()

    def _next_file(self) -> None:
        """Go on with the last one that there is, or begin another; those that are too many or too old go."""
        known = event_files.numbers(self._directory)
        full = self._fd >= 0
        self._close()
        self._number = known[-1] if known else 1
        if full:
            self._number += 1
        path = event_files.path_of(self._directory, self._number)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size
        if self._size and not full:
            self._mend(path)
        for number in known:
            old = event_files.path_of(self._directory, number)
            if number <= self._number - self._files or (number < self._number and _age(old) > DAYS * 86400):
                Path(old).unlink(missing_ok=True)

    def _mend(self, path: str) -> None:
        """A line that its writer could not end is ended."""
        with open(path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                self._size += os.write(self._fd, b"\n")

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _age(path: str) -> float:
    try:
        return time.time() - os.stat(path).st_mtime
    except OSError:
        return 0.0
