"""What one process has submitted and run, on a page of its own that it maps: no message per task.

One process writes, a worker or a driver; anybody reads, also after its death. It has exact counters for each (kind,
name), and the last tasks it ran, those that run now among them. As a submitter a process counts every task it
submitted, and how it ended for good; as a worker every run, of which a task may have had several.

Layout, little endian: head 64 (magic 8, position u64, bytes of names u32, pid u32, job 8, actor id 16) | names 24 KB
(each: kind u8, length u8, UTF-8) | counters of 512 names, 8 of u64 each | 4,096 records of 48 bytes: prefix 8 and seq
u64 of the id (``ids.py``), start f64, end f64 (0: it runs), name u32, thread u32, outcome u32, name of the error u32.
Times are seconds since the epoch.

A record is written where ``position`` is, which then moves on, over those that still run: so a long call is not lost
behind many short ones, and what runs can be counted. Who reads looks twice at the position, and leaves out what may
have changed under its eyes. All this is in the way of every task, so it is two function calls that do little.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from noded import ids

RECORDS = 4096
NAMES = 512
"""Names with counters of their own; what comes later is counted as "(other)" of its kind."""
_MAGIC = b"NODEDTP1"
_HEAD = struct.Struct("<8sQII8s16s")
_POSITION = struct.Struct("<Q")
_POSITION_AT = 8
_POSITION_PLACE = 1
_USED = struct.Struct("<I")
_USED_AT = 16
_OWNER = struct.Struct("<8s16s")
_OWNER_AT = 24
_NAMES_AT = 64
_NAMES_SIZE = 24 << 10
_COUNTERS_AT = _NAMES_AT + _NAMES_SIZE
_WIDTH = 8
_NAME = 0xFFFFFFFF
_RECORD = struct.Struct("<8sQddIIII")
_BEGIN = struct.Struct("<8sQd8xQ8x").pack_into
"""The same, of a run that begins, to be written faster."""
_RECORDS_AT = _COUNTERS_AT + NAMES * _WIDTH * 8
_BEGINNING = struct.Struct("<8sQ")
_SEQ = (1 << 40) - 1
_END = struct.Struct("<d")
_END_AT = 24
_OUTCOME = struct.Struct("<II")
_OUTCOME_AT = 40
_COUNTERS = struct.Struct("<7Q")
_LOOKED_AT = 64
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
SUBMITTED, DONE, FAILED, FINISHED, RAISED, _DEAD, _UNRECORDED = range(7)
"""_DEAD: runs that ended with their worker; written by ``bury``. _UNRECORDED: those that run and have no record."""
NOT_BEGUN = -1
UNRECORDED = -2
"""In place of a record, for a run among so many that there is none for it."""

# Outcomes of a run.
RETURNED, RAISED_ERROR, CANCELLED, DIED = range(4)
"""RETURNED: or it runs, while it has no end. DIED: with its worker; written by the worker's daemon."""


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
    finished: int = 0
    raised: int = 0
    """Runs that ended with an error, or with their worker."""
    running: int = 0

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
        self.lock = threading.Lock()
        """For ``begin`` and ``end``, where several threads call them."""
        self._adding = threading.Lock()
        self._position = 0
        self._used = 0
        self._names = 0
        self.numbers: dict[str, dict[str, int]] = {kind: {} for kind in (*COUNTED, ERROR)}
        """Of the names that are known already, by kind: ``number`` without a call."""
        self._memory[: _HEAD.size] = _HEAD.pack(_MAGIC, 0, 0, os.getpid(), b"", b"")
        for kind in COUNTED:
            self._add(kind, OTHER)

    def _map(self, path: str) -> None:
        if path:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, SIZE)  # a hole that the disk has no room for is a SIGBUS later
                self._memory = mmap.mmap(fd, SIZE)
            finally:
                os.close(fd)
        else:
            self._memory = mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._look()

    def _look(self) -> None:
        with memoryview(self._memory) as view:
            self.counters = view[_COUNTERS_AT:_RECORDS_AT].cast("Q")
            """``counters[base(kind, name) + SUBMITTED] += 1`` counts one; where one thread at a time does so."""
            self._ends = view[_RECORDS_AT:].cast("d")
            self._places = view[:_NAMES_AT].cast("Q")

    def move(self, path: str) -> None:
        """Go on in this file, or without one in memory, with all that is known so far; needs that nobody writes
        meanwhile. Raises OSError.
        """
        memory, views = self._memory, (self.counters, self._ends, self._places)
        self._map(path)
        self._memory[:] = memory[:]
        self.path = path
        for view in views:
            view.release()
        memory.close()

    def owner(self, job: str, actor: bytes) -> None:
        """Whose work this process does."""
        _OWNER.pack_into(self._memory, _OWNER_AT, job.encode()[:8], actor)

    def base(self, kind: str, name: str) -> int:
        """Where the counters of this name begin."""
        return self.number(kind, name) * _WIDTH

    def number(self, kind: str, name: str) -> int:
        """The one of this name, for ``begin``."""
        number = self.numbers[kind].get(name)
        if number is None:
            with self._adding:
                number = self.numbers[kind].get(name)
                if number is None:
                    number = self._add(kind, name)
        return number

    def _add(self, kind: str, name: str) -> int:
        """Its number; that of "(other)" when there is no room for more names."""
        data = name.encode(errors="replace")[:_LONGEST_NAME]
        short = data.decode(errors="replace")
        known = self.numbers[kind]
        if short != name:
            return known[short] if short in known else self._add(kind, short)
        if self._names >= NAMES or self._used + 2 + len(data) > _NAMES_SIZE:
            return known.get(OTHER, 0)
        at = _NAMES_AT + self._used
        self._memory[at : at + 2 + len(data)] = bytes((ord(kind), len(data))) + data
        self._used += 2 + len(data)
        _USED.pack_into(self._memory, _USED_AT, self._used)
        number = known[name] = self._names
        self._names += 1
        return number

    def begin(self, prefix: bytes, seq: int, number: int, start: float) -> int:
        """A run has begun, of the id with this prefix and seq: where its record is, to be given to ``end``. ``number``:
        of its name; the upper half may be that of its thread.
        """
        position = self._position
        at = position % RECORDS
        if not self._ends[at * 6 + 3] and position >= RECORDS:
            position = self._free()
            if position < 0:
                self.counters[(number & _NAME) * _WIDTH + _UNRECORDED] += 1
                return UNRECORDED
            at = position % RECORDS
        _BEGIN(self._memory, _RECORDS_AT + at * 48, prefix, seq, start, number)
        self._position = self._places[_POSITION_PLACE] = position + 1
        return at

    def _free(self) -> int:
        """The next position whose record does not run; -1: none of the next few, go on from there."""
        position = self._position
        for position in range(self._position, self._position + _LOOKED_AT):
            if self._ends[position % RECORDS * 6 + 3]:
                self._places[_POSITION_PLACE] = position  # before it is written over, see ``_records``
                return position
        self._position = self._places[_POSITION_PLACE] = position + 1
        return -1

    def end(self, at: int, number: int, end: float) -> None:
        """The run has returned. ``at``: what ``begin`` has returned, ``number``: what was said there."""
        if at >= 0:
            self._ends[at * 6 + 3] = end
        else:
            self.counters[(number & _NAME) * _WIDTH + _UNRECORDED] -= 1
        self.counters[(number & _NAME) * _WIDTH + FINISHED] += 1

    def end_badly(self, at: int, number: int, end: float, outcome: int, error: str) -> None:
        """``error``: the class of what it raised."""
        if at >= 0:
            problem = self.number(ERROR, error) if error else 0
            _OUTCOME.pack_into(self._memory, _RECORDS_AT + at * 48 + _OUTCOME_AT, outcome, problem)
            self._ends[at * 6 + 3] = end
        else:
            self.counters[(number & _NAME) * _WIDTH + _UNRECORDED] -= 1
        self.counters[(number & _NAME) * _WIDTH + RAISED] += 1


class Reading(NamedTuple):
    """A page as it was at some moment."""

    pid: int
    job: str
    actor: bytes
    counts: dict[tuple[str, str], Counts]
    records: list[Record]
    """Those that run, and the last that have ended; by their start."""


def read(path: str) -> Reading | None:
    """None when the file is not there, or no page (yet)."""
    loaded = _load(path)
    return None if loaded is None else _reading(*loaded)


def read_runs(path: str, id_: bytes) -> Reading | None:
    """Likewise, with the runs of this task alone. None, and quick, where it is not named at all."""
    loaded = _load(path)
    if loaded is None or _BEGINNING.pack(ids.prefix_of(id_), ids.seq_of(id_)) not in loaded[0]:
        return None
    reading = _reading(*loaded)
    return reading._replace(records=[record for record in reading.records if record.id == id_])


def running(path: str) -> list[Record]:
    """What runs, by its start. Some 20 times as fast as ``read``, which is for what has ended too."""
    loaded = _load(path)
    if loaded is None:
        return []
    data, later, there = loaded
    _, position, used, *_ = _HEAD.unpack_from(data)
    return _records(data, _names(data, used), position, later, there, ended=False)


def _load(path: str) -> tuple[bytes, int, bytes] | None:
    """The page; the position and the record that is there, as they are after that."""
    try:
        with open(path, "rb") as file:
            data = file.read(SIZE)
            file.seek(_POSITION_AT)
            (later,) = _POSITION.unpack(file.read(_POSITION.size))
            file.seek(_RECORDS_AT + later % RECORDS * _RECORD.size)
            there = file.read(_RECORD.size)
    except (OSError, struct.error):
        return None
    if len(data) < SIZE or not data.startswith(_MAGIC):
        return None
    return data, later, there


def read_own(page: Page) -> Reading:
    """Of this process's page."""
    data = bytes(page._memory)
    return _reading(data, page._position, b"")


def _reading(data: bytes, later: int, there: bytes) -> Reading:
    _, position, used, pid, job, actor = _HEAD.unpack_from(data)
    names = _names(data, used)
    records = _records(data, names, position, later, there)
    running = Counter((record.kind, record.name) for record in records if not record.end)
    counts: dict[tuple[str, str], Counts] = {}
    for number, name in enumerate(names):
        found = _COUNTERS.unpack_from(data, _COUNTERS_AT + number * _WIDTH * 8)
        if any(found) or name in running:
            submitted, done, failed, finished, raised, dead, unrecorded = found
            counts[name] = Counts(submitted, done, failed, finished, raised + dead, running[name] + unrecorded)
    return Reading(
        pid,
        job.rstrip(b"\0").decode(errors="replace"),
        actor if any(actor) else b"",
        counts,
        records,
    )


def _names(data: bytes, used: int) -> list[tuple[str, str]]:
    names: list[tuple[str, str]] = []
    at, end = _NAMES_AT, _NAMES_AT + min(used, _NAMES_SIZE)
    while at + 2 <= end and len(names) < NAMES:
        size = data[at + 1]
        names.append((chr(data[at]), data[at + 2 : at + 2 + size].decode(errors="replace")))
        at += 2 + size
    return names


def _id(kind: str, prefix: bytes, seq: int) -> bytes:
    make = ids.actor_id if kind == CREATION else ids.task_id
    return make(prefix[: ids.PREFIX_SIZE], seq & _SEQ)


def _records(
    data: bytes, names: list[tuple[str, str]], position: int, later: int, there: bytes, *, ended: bool = True
) -> list[Record]:
    """``there``: the record at ``later``, as it was after all others were read."""
    # What was written while we read may be half of two records; and one may be under way. But what runs stays where it
    # is, until the position has moved over it.
    unsure = {number % RECORDS for number in range(position, min(later + 1, position + RECORDS))}
    at = _RECORDS_AT + later % RECORDS * _RECORD.size
    if data[at : at + _RECORD.size] == there and not _RECORD.unpack(there)[3]:
        unsure.discard(later % RECORDS)
    found = []
    count = min(position, RECORDS)
    whole: Iterable[Any] = enumerate(_RECORD.iter_unpack(data[_RECORDS_AT : _RECORDS_AT + count * _RECORD.size]))
    if not ended:
        ends = memoryview(data)[_RECORDS_AT:].cast("d")[_END_AT // 8 :: _RECORD.size // 8].tolist()
        whole = [(i, _RECORD.unpack_from(data, _RECORDS_AT + i * _RECORD.size)) for i in range(count) if not ends[i]]
    for number, (prefix, seq, start, end, name, thread, outcome, error) in whole:
        if number in unsure or not start:
            continue
        kind, text = names[name] if name < len(names) else (TASK, OTHER)
        problem = names[error][1] if 0 < error < len(names) else ""
        found.append(Record(_id(kind, prefix, seq), kind, text, start, end, thread, outcome, problem))
    found.sort(key=lambda record: record.start)
    return found


def bury(path: str, now: float) -> list[Record]:
    """Its process has died: what it ran then has ended, at ``now`` (seconds since the epoch), with outcome DIED. These
    records are returned. What it had submitted, and what has not ended, has failed. May be repeated, also where it was
    killed in between. Raises OSError when the disk is full or fails.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return []
    try:
        data = os.pread(fd, SIZE, 0)
        if len(data) < SIZE or not data.startswith(_MAGIC):
            return []
        _, position, used, *_ = _HEAD.unpack_from(data)
        names = _names(data, used)
        died: dict[int, Record] = {}
        dead: Counter[int] = Counter()
        for at in range(min(position, RECORDS)):
            prefix, seq, start, end, number, thread, outcome, _ = _RECORD.unpack_from(data, _RECORDS_AT + at * 48)
            if start and number < len(names) and (not end or outcome == DIED):
                dead[number] += 1
                if not end:
                    kind, name = names[number]
                    died[at] = Record(_id(kind, prefix, seq), kind, name, start, now, thread, DIED, "")
        # Not by a map: a hole that the disk has no room for would be a SIGBUS. Totals first, and as such, not added to.
        counters = bytearray(data[_COUNTERS_AT:_RECORDS_AT])
        for number, (kind, _) in enumerate(names):
            if kind in COUNTED:
                at = number * _WIDTH * 8
                submitted, done, failed, finished, raised, _, lost = _COUNTERS.unpack_from(counters, at)
                failed = max(failed, submitted - done)
                _COUNTERS.pack_into(counters, at, submitted, done, failed, finished, raised + lost, dead[number], 0)
        if counters != data[_COUNTERS_AT:_RECORDS_AT]:
            os.pwrite(fd, counters, _COUNTERS_AT)
        for at in died:
            os.pwrite(fd, _OUTCOME.pack(DIED, 0), _RECORDS_AT + at * 48 + _OUTCOME_AT)
            os.pwrite(fd, _END.pack(now), _RECORDS_AT + at * 48 + _END_AT)
        return list(died.values())
    finally:
        os.close(fd)
