"""Follows the output files of workers, off the event loop, and hands new lines to it for the drivers.

inotify says which files have grown; nothing else is looked at, and a file is open only while it is read. What is read
is bounded (``log_pace.py``): who writes faster is behind, and when far behind skipped ahead; the files have it all, and
the driver is told. Marks in the files (``logs/marks.py``) say whose lines follow.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable

import msgspec

from noded.logs.files import files_of, hole, open_file, worker_of
from noded.logs.marks import MARK, pieces
from noded.node.collectors import Collectors
from noded.node.log_caps import LogCaps
from noded.node.log_offsets import Offsets
from noded.node.log_pace import Pace, too_far
from noded.node.log_watch import Watch
from noded.wire import messages as m

log = logging.getLogger("noded.logs")

CHUNK = 64 << 10
"""Bytes that are read of a file at once."""
ROUND_SECONDS = 0.02
"""Rounds begin no faster than this."""
FLOOD_SECONDS = 0.15
"""Likewise while somebody writes more than is passed on: each round takes a CPU from others for a moment, and may be
what makes one call in a hundred slow.
"""
DEADLINE = 20.0
"""Seconds that a round may take."""
_IDLE_SECONDS = 5.0
_BUSY_SECONDS = 2.0
_CLOSE_SECONDS = 0.5
_BEHIND_SECONDS = 0.05
_LAST_BYTES = 1 << 20
"""Of a file whose worker has ended, or whose driver leaves: so much at most is passed on at once."""
_AWAY_SECONDS = 10.0
_TELL_SECONDS = 1.0
"""A driver is told of skipped lines no more often than this, for each file."""
_LINE_LIMIT = 16 << 10


class _Followed(msgspec.Struct, eq=False):
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


class _Order(msgspec.Struct):
    """What the loop wants done, in order with everything else."""

    kind: str
    workers: list[tuple[str, str, int]]
    """With their jobs and pids."""
    until: float = 0.0
    """So long a driver that is away for a moment is waited for."""
    done: asyncio.Future[None] | None = None


class LogMonitor:
    """``who(worker)``: its (job, pid), or None when it is not known (any more); ``ready(job)``: whether lines of this
    job can be delivered now, else they stay in the files; both are called in the thread. ``deliver`` is called on the
    loop with a job and lines, in the order in which they were written.
    """

    def __init__(
        self,
        directory: str,
        who: Callable[[str], tuple[str, int] | None],
        deliver: Callable[[str, m.LogLines], None],
        caps: LogCaps,
        offsets: Offsets,
        *,
        ready: Callable[[str], bool],
        living: Callable[[], list[str]],
        ip: str,
    ):
        self._directory = directory
        self._who = who
        self._deliver = deliver
        self._caps = caps
        self._offsets = offsets
        self._ready = ready
        self._living = living
        self.ip = ip
        self._files: dict[str, _Followed] = {}
        self._node_pace = Pace.of_node()
        self._behind: set[str] = set()
        """Names of files that have more than was read."""
        self._orders: deque[_Order] = deque()
        self._later: list[_Order] = []
        """Of workers that have ended while their driver is away for a moment."""
        self._passed: set[str] = set()
        """Names of files that were read since the last hand-over."""
        self._read: list[tuple[str, m.LogLines]] = []
        """Not handed over yet."""
        self._flooded = False
        self._watch: Watch | None = None
        self._busy = threading.Lock()
        """A round that was given up may still end, while the next one has begun."""
        self._loop: asyncio.AbstractEventLoop | None = None

    # ------------------------------------------------------------ on the loop

    def start(self, collectors: Collectors) -> None:
        self._loop = asyncio.get_running_loop()
        self._watch = Watch(self._directory, self._living)
        self._behind = self._watch.living()
        collectors.add("logs", self.round, deadline=DEADLINE, every=0)

    async def last_round(self, workers: list[tuple[str, str, int]], *, ended: bool) -> None:
        """When the collectors have stopped: what these have written; ``ended``: and they have ended."""
        if self._watch is not None:
            self._put(_Order("ended" if ended else "catch up", workers))
            try:
                await asyncio.to_thread(self.round, 0.0)
            except Exception:
                log.exception("the last lines of workers may be missing at their drivers; their files have them")

    def close(self) -> None:
        """After the last round."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.wake()  # else a round that waits for files to grow would have them a while longer
        if watch is not None and self._busy.acquire(timeout=_CLOSE_SECONDS):
            watch.close()
            self._offsets.close()

    def ended(self, worker: str, job: str, pid: int) -> None:
        """It is gone: its last lines, the unfinished one too, then forget it. Empty files are removed."""
        self._put(_Order("ended", [(worker, job, pid)], time.monotonic() + _AWAY_SECONDS))

    async def catch_up(self, workers: list[tuple[str, str, int]]) -> None:
        """Returns when everything that they have written so far was delivered, or skipped with a word."""
        if self._watch is not None:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._put(_Order("catch up", workers, done=future))
            await future

    def _put(self, order: _Order) -> None:
        if self._watch is not None:
            self._orders.append(order)
            self._watch.wake()

    def _arrived(self, read: list[tuple[str, m.LogLines]], done: list[asyncio.Future[None]]) -> None:
        for job, message in read:
            self._deliver(job, message)
        for future in done:
            if not future.done():
                future.set_result(None)

    # ------------------------------------------------------------ off the loop

    def round(self, seconds: float = _IDLE_SECONDS) -> dict[str, int]:
        """Wait so long for something to do, do it, hand over what was read; figures: files that are followed, and those
        of them that are behind. Raises what went wrong with a file, at the end.
        """
        if not self._busy.acquire(timeout=_BUSY_SECONDS):
            raise TimeoutError("the round before has not ended yet")
        try:
            watch = self._watch
            if watch is not None:
                begun = time.monotonic()
                self._round(watch, seconds)
                if not self._orders:  # many small writes are to be one read
                    pause = FLOOD_SECONDS if self._flooded else ROUND_SECONDS
                    watch.rest(max(0.0, begun + pause - time.monotonic()))
            return {"followed": len(self._files), "behind": len(self._behind)}
        finally:
            self._busy.release()

    def _round(self, watch: Watch, seconds: float) -> None:
        if self._behind or self._later:
            seconds = min(seconds, _BEHIND_SECONDS)
        self._behind |= watch.changed(0.0 if self._orders else seconds)
        orders = self._later + [self._orders.popleft() for _ in range(len(self._orders))]
        self._later = []
        done = [order.done for order in orders if order.done is not None]
        self._flooded = False
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
            if time.monotonic() < order.until and not all(self._ready(job) for _, job, _ in order.workers):
                self._later.append(order)
                continue
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
        for name in self._passed:
            if (file := self._files.get(name)) is not None:
                self._offsets.put(name, file.offset)
        self._passed.clear()
        self._caps.look()
        if faults:  # one file's trouble is not that of others
            raise faults[0]

    # ------------------------------------------------------------ one file

    def _follow(self, name: str) -> bool:
        """Read on; whether there is more than may be read now."""
        found = worker_of(name)
        if found is None:
            return False
        worker, is_error = found
        try:
            fd = open_file(os.path.join(self._directory, name))
        except OSError:  # removed by somebody
            self._files.pop(name, None)
            self._caps.forget(name)
            return False
        try:
            self._caps.note(name, fd)
            who = self._who(worker)
            if who is None or not who[0]:
                return False
            return not self._ready(who[0]) or self._read_on(self._file(name, worker, is_error), fd, who)
        finally:
            os.close(fd)

    def _file(self, name: str, worker: str, is_error: bool) -> _Followed:
        file = self._files.get(name)
        if file is None:
            offset = self._offsets.get(name)
            file = self._files[name] = _Followed(name, worker, is_error, Pace.of_worker(), offset=offset)
        return file

    def _read_on(self, file: _Followed, fd: int, who: tuple[str, int]) -> bool:
        size = self._where(file, fd)
        now = time.monotonic()
        may = min(file.pace.left(now), self._node_pace.left(now))
        if ahead := too_far(size - file.offset, may):
            self._skip(file, ahead)
            self._flooded = True
        left = size - file.offset
        if may < min(CHUNK, left):
            self._tell_skipped(file, who, now)
            self._flooded = True
            return True  # later, and then more at once
        may = min(CHUNK, left)
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
        """The file's size; it may be another file by now, or emptied: then all that it has is new."""
        stat = os.fstat(fd)
        emptied = self._caps.emptied(file.name)
        file.skipped += max(0, emptied - file.offset)
        if emptied or file.inode not in (0, stat.st_ino) or stat.st_size < file.offset:
            file.offset, file.midline = 0, False
        file.inode = stat.st_ino
        begin, end = hole(fd, stat.st_size)
        if begin <= file.offset < end:
            self._skip(file, end - file.offset)
        return stat.st_size

    def _finish(self, worker: str, who: tuple[str, int], *, ended: bool) -> None:
        """All that it has written by now, at most _LAST_BYTES of a file."""
        for name in files_of(worker):
            path = os.path.join(self._directory, name)
            try:
                fd = open_file(path)
            except OSError:
                self._files.pop(name, None)
                continue
            try:
                self._caps.note(name, fd)
                file = self._file(name, worker, name.endswith(".err"))
                size = self._where(file, fd)
                if who[0]:
                    self._read_to_end(file, fd, size, who)
            finally:
                os.close(fd)
            if ended:
                self._files.pop(name, None)
                self._offsets.drop(name)
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
        self._passed.add(file.name)
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
