"""How far each worker's output was passed on, in a small file: a daemon that starts in another's place goes on there,
so that drivers see no line twice.

One process writes; a slot that is half written costs a line or two. Layout: 4,096 slots of 32 bytes: worker id 16, "o"
or "e", 7 unused, offset u64, little endian.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct

from noded.logs.files import worker_of

log = logging.getLogger("noded.logs")

_SLOTS = 4096
_SLOT = struct.Struct("<16sc7xQ")
_EMPTY = bytes(_SLOT.size)


class Offsets:
    """By the names of files. Those that find no slot are passed on from their start after a restart."""

    def __init__(self, path: str):
        self._memory = _map(path, _SLOTS * _SLOT.size)
        self._slots: dict[str, int] = {}
        self._free: list[int] = []
        for number in range(_SLOTS - 1, -1, -1):
            worker, kind, _ = _SLOT.unpack_from(self._memory, number * _SLOT.size)
            name = f"worker-{worker.decode(errors='replace')}.{'err' if kind == b'e' else 'out'}"
            if worker_of(name):
                self._slots[name] = number
            else:
                self._free.append(number)

    def get(self, name: str) -> int:
        number = self._slots.get(name)
        return _SLOT.unpack_from(self._memory, number * _SLOT.size)[2] if number is not None else 0

    def put(self, name: str, offset: int) -> None:
        number = self._slots.get(name)
        found = worker_of(name)
        if found is None or (number is None and not self._free):
            return
        if number is None:
            number = self._slots[name] = self._free.pop()
        worker, is_error = found
        _SLOT.pack_into(self._memory, number * _SLOT.size, worker.encode(), b"e" if is_error else b"o", offset)

    def drop(self, name: str) -> None:
        number = self._slots.pop(name, None)
        if number is not None:
            self._memory[number * _SLOT.size : (number + 1) * _SLOT.size] = _EMPTY
            self._free.append(number)

    def close(self) -> None:
        self._memory.close()


def _map(path: str, size: int) -> mmap.mmap:
    """In memory alone where the disk has no room: a hole in the file would be a SIGBUS when it is written."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)
            return mmap.mmap(fd, size)
        finally:
            os.close(fd)
    except OSError as error:
        log.warning("how far output was passed on is not kept over a restart: %s", error)
        return mmap.mmap(-1, size)
