"""The last tasks of one worker, in a file of fixed size that it maps: no message per task.

One process writes, the worker; anybody reads, also after its death. A record is written over the oldest and then
counted, so that a reader who looks twice at the count knows which records may have changed under its eyes. Times are
seconds since the epoch.

Layout, little endian: magic 8 | count u64 | bytes of names u32 | pid u32 | 40 bytes | names 16 KB (each u8 length, then
UTF-8) | 1,024 records of 48 bytes: task id 16, start f64, end f64, name u32, thread u32, failed u32, 4 unused.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from typing import NamedTuple

RECORDS = 1024
_MAGIC = b"NODEDTR1"
_HEAD = struct.Struct("<8sQII")
_COUNT = struct.Struct("<Q")
_COUNT_AT = 8
_USED = struct.Struct("<I")
_USED_AT = 16
_NAMES_AT = 64
_NAMES_SIZE = 16 << 10
_RECORD = struct.Struct("<16sddIIIxxxx")
_RECORDS_AT = _NAMES_AT + _NAMES_SIZE
SIZE = _RECORDS_AT + RECORDS * _RECORD.size
_LONGEST_NAME = 255
_OTHER = "(other)"


class TaskRecord(NamedTuple):
    id: bytes
    name: str
    start: float
    end: float
    thread: int
    failed: bool


class TaskRing:
    """The writer's side; any thread of the process may add."""

    def __init__(self, path: str):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, SIZE)
            self._memory = mmap.mmap(fd, SIZE)
        finally:
            os.close(fd)
        self._lock = threading.Lock()
        self._count = 0
        self._used = 0
        self._names: dict[str, int] = {}
        self._memory[: _HEAD.size] = _HEAD.pack(_MAGIC, 0, 0, os.getpid())
        self._name(_OTHER)

    def add(self, id_: bytes, name: str, start: float, end: float, thread: int, failed: bool) -> None:
        number = self._names.get(name)
        if number is None:
            number = self._name(name)
        with self._lock:
            count = self._count
            at = _RECORDS_AT + count % RECORDS * _RECORD.size
            _RECORD.pack_into(self._memory, at, id_, start, end, number, thread, failed)
            self._count = count + 1
            _COUNT.pack_into(self._memory, _COUNT_AT, count + 1)

    def _name(self, name: str) -> int:
        """Its number; that of "(other)" when there is no room for more names."""
        data = name.encode(errors="replace")[:_LONGEST_NAME]
        if self._used + 1 + len(data) > _NAMES_SIZE:
            return 0
        at = _NAMES_AT + self._used
        self._memory[at : at + 1 + len(data)] = bytes((len(data),)) + data
        self._used += 1 + len(data)
        _USED.pack_into(self._memory, _USED_AT, self._used)
        number = self._names[name] = len(self._names)
        return number


def read(path: str) -> list[TaskRecord]:
    """The records of a ring, oldest first; none when the file is not there, or no ring (yet)."""
    try:
        with open(path, "rb") as file:
            data = file.read(SIZE)
            file.seek(_COUNT_AT)
            later = file.read(_COUNT.size)
    except OSError:
        return []
    if len(data) < SIZE or not data.startswith(_MAGIC):
        return []
    _, count, used, _ = _HEAD.unpack_from(data)
    (written,) = _COUNT.unpack(later)
    names: list[str] = []
    at = _NAMES_AT
    while at < _NAMES_AT + min(used, _NAMES_SIZE):
        size = data[at]
        names.append(data[at + 1 : at + 1 + size].decode(errors="replace"))
        at += 1 + size
    found = []
    # What was written while we read may be half of two records; and one may be under way.
    for number in range(max(0, count - RECORDS, written + 1 - RECORDS), count):
        id_, start, end, name, thread, failed = _RECORD.unpack_from(data, _RECORDS_AT + number % RECORDS * _RECORD.size)
        found.append(TaskRecord(id_, names[name] if name < len(names) else _OTHER, start, end, thread, bool(failed)))
    return found
