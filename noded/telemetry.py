"""What one process has submitted and run, on a page of its own that it maps: no message per task.

One process writes, a worker or a driver; anybody reads, also after its death. It has exact counters for each (kind,
name), and the last tasks it ran, those that run now among them. As a submitter a process counts every task it
submitted, and how it ended for good; as a worker every run, of which a task may have had several.

Layout, little endian: head 64 (magic 8, position u64, bytes of names u32, pid u32, job 8, actor id 16) | names 24 KB
(each: kind u8, length u8, UTF-8) | counters of 512 names, 8 of u64 each | 4,096 records of 48 bytes: task id 16, start
f64, end f64 (0: it runs), name u32, thread u32, outcome u32, name of the error u32. Times are seconds since the epoch.

A record is written where ``position`` is, which then moves on, over those that still run: so a long call is not lost
behind many short ones. Who reads looks twice at the position, and leaves out what may have changed under its eyes.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from typing import NamedTuple

RECORDS = 4096
NAMES = 512
"""Names with counters of their own; what comes later is counted as "(other)" of its kind."""
_MAGIC = b"NODEDTP1"
_HEAD = struct.Struct("<8sQII8s16s")
_POSITION = struct.Struct("<Q")
_POSITION_AT = 8
_USED = struct.Struct("<I")
_USED_AT = 16
_OWNER = struct.Struct("<8s16s")
_OWNER_AT = 24
_NAMES_AT = 64
_NAMES_SIZE = 24 << 10
_COUNTERS_AT = _NAMES_AT + _NAMES_SIZE
_WIDTH = 8
_RECORD = struct.Struct("<16sddIIII")
_RECORDS_AT = _COUNTERS_AT + NAMES * _WIDTH * 8
_END = struct.Struct("<d")
_END_AT = 24
_OUTCOME = struct.Struct("<II")
_OUTCOME_AT = 40
SIZE = _RECORDS_AT + RECORDS * _RECORD.size
_LONGEST_NAME = 200
OTHER = "(other)"
SUFFIX = ".page"

# Kinds of names.
TASK = "t"
CALL = "c"
"""A call of an actor's method."""
CREATION = "n"
"""An actor's constructor."""
ERROR = "e"
"""The class of an exception; has no counters."""
COUNTED = (TASK, CALL, CREATION)

# Places of the counters of a name, from its base.
SUBMITTED, DONE, FAILED, STARTED, FINISHED, RAISED, NANOSECONDS = range(7)

# Outcomes of a run.
RUNS, RETURNED, RAISED_ERROR, CANCELLED, DIED = range(5)
"""DIED: with its worker; written by the worker's daemon."""


def driver_page(prefix: bytes) -> str:
    """The name of the file."""
    return f"driver-{prefix.hex()}{SUFFIX}"


def worker_page(worker: str) -> str:
    return f"worker-{worker}{SUFFIX}"


class Counts(NamedTuple):
    """Of one (kind, name). Of each process alone, so of none of them what runs or waits: see ``node/task_table.py``."""

    submitted: int = 0
    done: int = 0
    """Submitted, and ended with a value."""
    failed: int = 0
    """Submitted, and ended with an error, for good."""
    started: int = 0
    finished: int = 0
    raised: int = 0
    """Runs that ended with an error, or with their worker."""
    nanoseconds: int = 0
    """Of all runs that have ended, together."""

    def __add__(self, other: tuple[int, ...]) -> Counts:  # type: ignore[override]
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))


class Record(NamedTuple):
    """One run of a task."""

    id: bytes
    kind: str
    name: str
    start: float
    end: float
    """0: it runs."""
    thread: int
    """0: the main thread."""
    outcome: int
    error: str
    """The class of the exception."""


class Page:
    """The writer's side; any thread of the process may write. Without a path the page is in memory only."""

    def __init__(self, path: str = ""):
        self.path = path
        self._map(path)
        self._lock = threading.Lock()
        self._position = 0
        self._used = 0
        self._numbers: dict[tuple[str, str], int] = {}
        self._memory[: _HEAD.size] = _HEAD.pack(_MAGIC, 0, 0, os.getpid(), b"", b"")
        for kind in COUNTED:
            self._add(kind, OTHER)

    def _map(self, path: str) -> None:
        if path:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(fd, SIZE)
                self._memory = mmap.mmap(fd, SIZE)
            finally:
                os.close(fd)
        else:
            self._memory = mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with memoryview(self._memory) as view:
            self.counters = view[_COUNTERS_AT:_RECORDS_AT].cast("Q")
            """``counters[base(kind, name) + SUBMITTED] += 1`` counts one; where one thread at a time does so."""
            self._ends = view[_RECORDS_AT:].cast("d")

    def close(self) -> None:
        """Let go of the file. What is still counted is counted for nobody; needs that nobody writes meanwhile."""
        memory = self._memory
        for view in (self.counters, self._ends):
            view.release()
        self._map("")
        memory.close()

    def owner(self, job: str, actor: bytes) -> None:
        """Whose work this process does."""
        _OWNER.pack_into(self._memory, _OWNER_AT, job.encode()[:8], actor)

    def base(self, kind: str, name: str) -> int:
        """Where the counters of this name begin."""
        return self._number(kind, name) * _WIDTH

    def _number(self, kind: str, name: str) -> int:
        number = self._numbers.get((kind, name))
        if number is None:
            with self._lock:
                number = self._numbers.get((kind, name))
                if number is None:
                    number = self._add(kind, name)
        return number

    def _add(self, kind: str, name: str) -> int:
        """Its number; that of "(other)" when there is no room for more names."""
        data = name.encode(errors="replace")[:_LONGEST_NAME]
        if len(self._numbers) >= NAMES or self._used + 2 + len(data) > _NAMES_SIZE:
            return self._numbers.get((kind, OTHER), 0)
        at = _NAMES_AT + self._used
        self._memory[at : at + 2 + len(data)] = bytes((ord(kind), len(data))) + data
        self._used += 2 + len(data)
        _USED.pack_into(self._memory, _USED_AT, self._used)
        number = self._numbers[kind, name] = len(self._numbers)
        return number

    def begin(self, id_: bytes, kind: str, name: str, start: float, thread: int) -> int:
        """A run has begun: where its record is, to be given to ``end``."""
        number = self._numbers.get((kind, name))
        if number is None:
            number = self._number(kind, name)
        with self._lock:
            position, ends, memory = self._position, self._ends, self._memory
            at = position % RECORDS
            if position >= RECORDS:
                for _ in range(RECORDS):
                    if ends[at * 6 + 3]:
                        break
                    position += 1
                    at = position % RECORDS
                _POSITION.pack_into(memory, _POSITION_AT, position)
            _RECORD.pack_into(memory, _RECORDS_AT + at * 48, id_, start, 0.0, number, thread, 0, 0)
            self._position = position + 1
            _POSITION.pack_into(memory, _POSITION_AT, position + 1)
            self.counters[number * _WIDTH + STARTED] += 1
        return at << 16 | number

    def end(self, run: int, seconds: float, end: float, outcome: int, error: str = "") -> None:
        """``run``: what ``begin`` has returned."""
        at, number = run >> 16, run & 0xFFFF
        problem = self._number(ERROR, error) if error else 0
        counters, base = self.counters, number * _WIDTH
        with self._lock:
            _OUTCOME.pack_into(self._memory, _RECORDS_AT + at * 48 + _OUTCOME_AT, outcome, problem)
            self._ends[at * 6 + 3] = end
            counters[base + (FINISHED if outcome == RETURNED else RAISED)] += 1
            counters[base + NANOSECONDS] += int(seconds * 1e9)


class Reading(NamedTuple):
    """A page as it was at some moment."""

    pid: int
    job: str
    actor: bytes
    counts: dict[tuple[str, str], Counts]
    records: list[Record]
    """Those that run, and the last that have ended; by their start."""


def read(path: str, *, records: bool = True) -> Reading | None:
    """None when the file is not there, or no page (yet)."""
    try:
        with open(path, "rb") as file:
            data = file.read(SIZE if records else _RECORDS_AT)
            file.seek(_POSITION_AT)
            later = file.read(_POSITION.size)
    except OSError:
        return None
    if len(data) < (SIZE if records else _RECORDS_AT) or not data.startswith(_MAGIC):
        return None
    (position,) = _POSITION.unpack(later)
    return _reading(data, position, records)


def read_own(page: Page) -> Reading:
    """Of this process's page."""
    data = bytes(page._memory)
    return _reading(data, page._position, records=True)


def _reading(data: bytes, later: int, records: bool) -> Reading:
    _, position, used, pid, job, actor = _HEAD.unpack_from(data)
    names = _names(data, used)
    counts: dict[tuple[str, str], Counts] = {}
    for number, (kind, name) in enumerate(names):
        if kind in COUNTED:
            found = struct.unpack_from("<7Q", data, _COUNTERS_AT + number * _WIDTH * 8)
            if any(found):
                counts[kind, name] = Counts(*found)
    return Reading(
        pid,
        job.rstrip(b"\0").decode(errors="replace"),
        actor if any(actor) else b"",
        counts,
        _records(data, names, position, later) if records else [],
    )


def _names(data: bytes, used: int) -> list[tuple[str, str]]:
    names: list[tuple[str, str]] = []
    at, end = _NAMES_AT, _NAMES_AT + min(used, _NAMES_SIZE)
    while at + 2 <= end:
        size = data[at + 1]
        names.append((chr(data[at]), data[at + 2 : at + 2 + size].decode(errors="replace")))
        at += 2 + size
    return names


def _records(data: bytes, names: list[tuple[str, str]], position: int, later: int) -> list[Record]:
    # What was written while we read may be half of two records; and one may be under way.
    unsure = {number % RECORDS for number in range(position, min(later + 1, position + RECORDS))}
    found = []
    count = min(position, RECORDS)
    whole = _RECORD.iter_unpack(data[_RECORDS_AT : _RECORDS_AT + count * _RECORD.size])
    for number, (id_, start, end, name, thread, outcome, error) in enumerate(whole):
        if number in unsure or not start:
            continue
        kind, text = names[name] if name < len(names) else (TASK, OTHER)
        problem = names[error][1] if 0 < error < len(names) else ""
        found.append(Record(id_, kind, text, start, end, thread, outcome, problem))
    found.sort(key=lambda record: record.start)
    return found


def bury(path: str, now: float) -> list[Record]:
    """Its process has died: what it ran then has ended, at ``now`` (seconds since the epoch), with outcome DIED. These
    records are returned. What it had submitted, and what has not ended, has failed.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        if os.fstat(fd).st_size < SIZE:
            return []
        memory = mmap.mmap(fd, SIZE)
    finally:
        os.close(fd)
    with memory:
        data = bytes(memory)
        if not data.startswith(_MAGIC):
            return []
        _, position, used, *_ = _HEAD.unpack_from(data)
        names = _names(data, used)
        died = []
        for at in range(min(position, RECORDS)):
            id_, start, end, number, thread, _, _ = _RECORD.unpack_from(data, _RECORDS_AT + at * 48)
            if start and not end and number < len(names):
                _OUTCOME.pack_into(memory, _RECORDS_AT + at * 48 + _OUTCOME_AT, DIED, 0)
                _END.pack_into(memory, _RECORDS_AT + at * 48 + _END_AT, now)
                kind, name = names[number]
                died.append(Record(id_, kind, name, start, now, thread, DIED, ""))
        for number, (kind, _) in enumerate(names):
            if kind in COUNTED:
                at = _COUNTERS_AT + number * _WIDTH * 8
                submitted, done, failed, started, finished, raised = struct.unpack_from("<6Q", data, at)
                # Not by the records: of very many that ran at once some have none.
                raised += max(0, started - finished - raised)
                failed += max(0, submitted - done - failed)
                struct.pack_into("<6Q", memory, at, submitted, done, failed, started, finished, raised)
        return died
