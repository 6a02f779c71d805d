"""Follows the output files of workers in a thread of its own, and hands new lines to the event loop for the drivers.

inotify says which files have grown; nothing else is looked at, and a file is open only while it is read. What is read
is bounded (``log_pace.py``): who writes faster is behind, and when far behind skipped ahead; the files have it all, and
the driver is told. Marks in the files (``log_marks.py``) say whose lines follow.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from noded.log_files import worker_of
from noded.log_marks import MARK, pieces
from noded.node.log_caps import LogCaps
from noded.node.log_pace import Pace
from noded.wire import messages as m

log = logging.getLogger("noded.logs")

CHUNK = 128 << 10
"""Bytes that are read of a file at once."""
ROUND_SECONDS = 0.02
"""Rounds begin no faster than this, so that many small writes are one read."""
_IDLE_SECONDS = 60.0
_BEHIND_SECONDS = 0.05
_WITHOUT_INOTIFY = 0.5
_AFTER_FAULT = 1.0
_LAST_BYTES = 1 << 20
"""Of a file whose worker has ended, or whose driver leaves: so much at most is passed on at once."""
_TELL_SECONDS = 1.0
"""A driver is told of skipped lines no more often than this, for each file."""
_LINE_LIMIT = 16 << 10
_EVENT = struct.Struct("iIII")


@dataclass(eq=False)
class _Followed:
    name: str
    worker: str
    is_error: bool
    pace: Pace
    inode: int = 0
    offset: int = 0
    label: str = ""
    midline: bool = False
    """It was skipped to here: the rest of this line is left out too."""
    line_bytes: float = 80.0
    """Of a line, on average, in what was read last."""
    skipped: int = 0
    """Bytes nobody has been told of."""
    told: float = 0.0


@dataclass
class _Order:
    """What the loop wants done, in order with everything else."""

    kind: str
    workers: list[tuple[str, str, int]]
    """With their jobs and pids."""
    done: asyncio.Future[None] | None = None


class LogMonitor:
    """``who(worker)``: its (job, pid), or None when it is not known (any more); called in the thread. ``deliver`` is
    called on the loop with a job and lines, in the order in which they were written.
    """

    def __init__(
        self,
        directory: str,
        who: Callable[[str], tuple[str, int] | None],
        deliver: Callable[[str, m.LogLines], None],
        caps: LogCaps,
        *,
        living: Callable[[], list[str]],
        ip: str,
    ):
        self._directory = directory
        self._who = who
        self._deliver = deliver
        self._caps = caps
        self._living = living
        self.ip = ip
        self._files: dict[str, _Followed] = {}
        self._node_pace = Pace.of_node()
        self._behind: set[str] = set()
        """Names of files that have more than was read."""
        self._orders: deque[_Order] = deque()
        self._read: list[tuple[str, m.LogLines]] = []
        """Not handed over yet."""
        self._inotify: Any = None
        self._wake = -1
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # ------------------------------------------------------------ on the loop

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._watch()
        for worker in self._living():
            self._behind.update(_names(worker))
        self._thread = threading.Thread(target=self._run, name="log monitor", daemon=True)
        self._thread.start()

    async def stop(self, ended: list[tuple[str, str, int]]) -> None:
        """``ended``: workers that have ended by now and were not told of."""
        if self._thread is None:
            return
        await self._order("ended", ended)
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        await asyncio.to_thread(self._thread.join)
        self._thread = None
        os.close(self._wake)
        if self._inotify is not None:
            self._inotify.close()

    def ended(self, worker: str, job: str, pid: int) -> None:
        """It is gone: its last lines, the unfinished one too, then forget it. Empty files are removed."""
        self._put(_Order("ended", [(worker, job, pid)]))

    async def catch_up(self, workers: list[tuple[str, str, int]]) -> None:
        """Returns when everything that they have written so far was delivered, or skipped with a word."""
        await self._order("catch up", workers)

    async def _order(self, kind: str, workers: list[tuple[str, str, int]]) -> None:
        if self._thread is None:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._put(_Order(kind, workers, future))
        await future

    def _put(self, order: _Order) -> None:
        if self._thread is not None:
            self._orders.append(order)
            os.eventfd_write(self._wake, 1)

    def _arrived(self, read: list[tuple[str, m.LogLines]], done: list[asyncio.Future[None]]) -> None:
        for job, message in read:
            self._deliver(job, message)
        for future in done:
            if not future.done():
                future.set_result(None)

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        while not self._stopping:
            begun = time.monotonic()
            try:
                self.round()
            except Exception:
                log.exception("a round of following the workers' output has failed; the next one is in a moment")
                time.sleep(_AFTER_FAULT)
            time.sleep(max(0.0, begun + ROUND_SECONDS - time.monotonic()) if not self._orders else 0.0)

    def round(self) -> None:
        """Wait for something to do, do it, hand over what was read. Raises what went wrong with a file, at the end."""
        self._behind |= self._changed()
        orders = [self._orders.popleft() for _ in range(len(self._orders))]
        done = [order.done for order in orders if order.done is not None]
        faults: list[Exception] = []
        for name in list(self._behind):
            try:
                more = self._follow(name)
            except Exception as fault:
                more = False
                faults.append(fault)
            if not more:
                self._behind.discard(name)
        for order in orders:
            for worker, job, pid in order.workers:
                try:
                    self._finish(worker, (job, pid), ended=order.kind == "ended")
                except Exception as fault:
                    faults.append(fault)
        read, self._read = self._read, []
        if (read or done) and self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._arrived, read, done)
            except RuntimeError:  # the loop is closed: nobody is there to be told
                pass
        self._caps.look()
        if faults:  # one file's trouble is not that of others
            raise faults[0]

    def _watch(self) -> None:
        try:
            from asyncinotify import Inotify, Mask

            self._inotify = Inotify()
            self._inotify.add_watch(self._directory, Mask.MODIFY)
            os.set_blocking(self._inotify.fd, False)
        except OSError as error:
            log.warning(
                "inotify cannot be had (%s): the output of workers that live is looked at every %g s instead; see "
                "/proc/sys/fs/inotify",
                error,
                _WITHOUT_INOTIFY,
            )
            if self._inotify is not None:
                self._inotify.close()
                self._inotify = None

    def _changed(self) -> set[str]:
        """Wait until files have changed, an order came, or those that are behind may be read on; the names."""
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        seconds = _BEHIND_SECONDS if self._behind else _IDLE_SECONDS
        if self._inotify is not None:
            poller.register(self._inotify.fd, select.POLLIN)
        else:
            seconds = min(seconds, _WITHOUT_INOTIFY)
        ready = {fd for fd, _ in poller.poll(0 if self._orders else seconds * 1000)}
        if self._wake in ready:
            os.eventfd_read(self._wake)
        if self._inotify is None:
            return {name for worker in self._living() for name in _names(worker)}
        return self._events() if self._inotify.fd in ready else set()

    def _events(self) -> set[str]:
        """Raw, as there may be very many: most are of two sizes of names."""
        found: set[bytes] = set()
        lost = False
        while True:
            try:
                data = os.read(self._inotify.fd, 64 << 10)
            except BlockingIOError:
                break
            at = 0
            while at < len(data):
                _, mask, _, size = _EVENT.unpack_from(data, at)
                at += _EVENT.size
                found.add(data[at : at + size])
                lost = lost or bool(mask & 0x4000)  # IN_Q_OVERFLOW
                at += size
        names = {name.rstrip(b"\0").decode(errors="replace") for name in found}
        if lost:
            names |= {name for worker in self._living() for name in _names(worker)}
        return names

    # ------------------------------------------------------------ one file

    def _follow(self, name: str) -> bool:
        """Read on; whether there is more than may be read now."""
        found = worker_of(name)
        if found is None:
            return False
        worker, is_error = found
        try:
            fd = os.open(os.path.join(self._directory, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:  # removed by somebody
            self._files.pop(name, None)
            self._caps.forget(name)
            return False
        try:
            self._caps.note(name, fd)
            who = self._who(worker)
            if who is None or not who[0]:
                return False
            file = self._files.get(name)
            if file is None:
                file = self._files[name] = _Followed(name, worker, is_error, Pace.of_worker())
            return self._read_on(file, fd, who)
        finally:
            os.close(fd)

    def _read_on(self, file: _Followed, fd: int, who: tuple[str, int]) -> bool:
        size = self._where(file, fd)
        now = time.monotonic()
        ahead = file.pace.too_far(size - file.offset)
        if ahead:
            self._skip(file, ahead)
        left = size - file.offset
        may = min(CHUNK, left, file.pace.left(now), self._node_pace.left(now))
        if left and may < min(left, CHUNK):
            self._tell_skipped(file, who, now)
            return True  # later, and then more at once
        if left:
            taken = self._pass_on(file, os.pread(fd, may, file.offset), who, unfinished=False)
            file.pace.take(taken)
            self._node_pace.take(taken)
            left -= taken
            if not taken:
                left = 0  # the beginning of a line; its end brings us back
        self._tell_skipped(file, who, now)
        return left > 0 or file.skipped > 0

    def _where(self, file: _Followed, fd: int) -> int:
        """The file's size; it may be another file by now, or emptied."""
        stat = os.fstat(fd)
        if file.inode not in (0, stat.st_ino) or stat.st_size < file.offset:
            file.offset = 0 if file.inode != stat.st_ino else stat.st_size
        file.inode = stat.st_ino
        return stat.st_size

    def _finish(self, worker: str, who: tuple[str, int], *, ended: bool) -> None:
        """All that it has written by now, at most _LAST_BYTES of a file."""
        for name in _names(worker):
            path = os.path.join(self._directory, name)
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                self._files.pop(name, None)
                continue
            try:
                self._caps.note(name, fd)
                file = self._files.get(name) or _Followed(name, worker, name.endswith(".err"), Pace.of_worker())
                size = self._where(file, fd)
                if who[0]:
                    self._files[name] = file
                    self._read_to_end(file, fd, size, who)
            finally:
                os.close(fd)
            if ended:
                self._files.pop(name, None)
                self._behind.discard(name)
                if not size:
                    self._remove(path, name)

    def _read_to_end(self, file: _Followed, fd: int, size: int, who: tuple[str, int]) -> None:
        if size - file.offset > _LAST_BYTES:
            self._skip(file, size - file.offset - _LAST_BYTES // 2)
        while file.offset < size:
            data = os.pread(fd, CHUNK, file.offset)
            if not data or not self._pass_on(file, data, who, unfinished=file.offset + len(data) >= size):
                break
        self._tell_skipped(file, who, time.monotonic(), at_once=True)

    def _remove(self, path: str, name: str) -> None:
        try:
            os.unlink(path)
        except OSError:
            pass
        self._caps.forget(name)

    # ------------------------------------------------------------ lines

    def _pass_on(self, file: _Followed, data: bytes, who: tuple[str, int], *, unfinished: bool) -> int:
        """The bytes of ``data`` that were used: whole lines, unless ``unfinished``, or the line is very long."""
        if file.midline:
            rest = data.find(b"\n") + 1
            file.midline = not rest
            self._leave_out(file, rest or len(data))
            return rest or len(data)
        whole = data.rfind(b"\n") + 1
        if len(data) - whole > _LINE_LIMIT or (unfinished and not data[whole:].startswith(MARK)):
            whole = len(data)
        if not whole:
            return 0
        batches: list[tuple[str, int, bool, list[str]]] = []
        count = 0
        for piece in pieces(data[:whole]):
            if piece.mark is not None and piece.mark.label:
                # Without a label it is a call's end; what C code writes then is counted to that call.
                file.label = piece.mark.label
            text = piece.shown
            if text:
                lines = text.decode(errors="replace").removesuffix("\n").split("\n")
                count += len(lines)
                batches.append((file.label, who[1], file.is_error, lines))
        if count:
            file.line_bytes = whole / count
            self._read.append((who[0], m.LogLines(batches, self.ip, [file.worker] * len(batches))))
        file.offset += whole
        return whole

    def _skip(self, file: _Followed, size: int) -> None:
        self._leave_out(file, size)
        file.midline = True

    def _leave_out(self, file: _Followed, size: int) -> None:
        file.offset += size
        file.skipped += size

    def _tell_skipped(self, file: _Followed, who: tuple[str, int], now: float, *, at_once: bool = False) -> None:
        if file.skipped and (at_once or now - file.told > _TELL_SECONDS):
            file.told = now
            lines = max(1, round(file.skipped / file.line_bytes))
            one = m.Skipped(file.worker, file.label, who[1], file.skipped, lines)
            file.skipped = 0
            self._read.append((who[0], m.LogLines([], self.ip, [], [one])))


def _names(worker: str) -> tuple[str, str]:
    return f"worker-{worker}.out", f"worker-{worker}.err"
