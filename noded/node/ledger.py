"""The node's ledger: what a restarted daemon must know, as fixed records in an mmapped memfd.

The spawner keeps the descriptor, so the bytes survive the daemon, also a SIGKILL between any two
instructions. A record is updated by writing a free slot with a higher generation, its state word last, and
then clearing the old slot; `Ledger.open` lets the higher generation win and clears what has a bad checksum.
It outlives processes, not the machine: nothing is ever synced to a disk. Records are opaque bytes (their
meaning is with the components), and a ledger has one user at a time: the spawner sees to that
(docs/architecture.md, section 1). Not thread-safe.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from typing import Final
from zlib import crc32

LAYOUT_VERSION: Final = 4
"""Of the tables, of the records in them, and of the headers in the arena (``shm/arena.py``), which belongs to it.
4: clients and workers have the version of their messages.
"""
OLDEST_LAYOUT: Final = 3

_MAGIC = b"NODEDLGR"
_PAGE = 4096
# magic, layout, unused, incarnation, epoch; the epoch is aligned, so that one store sets it.
_HEADER = struct.Struct("<8sII16sQ")
_EPOCH_WORD = 32 // 8
_TABLES = (
    ("clients", 4096, 256),
    ("workers", 8192, 2048),
    ("regions", 65536, 64),
    ("node", 16, 8192),
    ("bundles", 8192, 1024),
)
_SIZE = _PAGE + sum(slots * slot_size for _, slots, slot_size in _TABLES)

# A slot: state u32, checksum u32 | generation u64, kind u8, key length u8, payload length u16 | key, payload.
_STATE_FREE = 0
_STATE_USED = 0x44455355
_RECORD = struct.Struct("<QBBH")
_RECORD_AT = 8
_OVERHEAD = _RECORD_AT + _RECORD.size
_KIND_BYTES = 0
_KIND_INT = 1
MAX_KEY = 24

Key = bytes | int


class LedgerError(Exception):
    """The descriptor holds no ledger that this version can use."""


class LedgerFull(LedgerError):
    """A table has no room for another key."""


class Table:
    """One table of fixed-size slots; keys are up to 24 bytes, or whole numbers below 2**64."""

    def __init__(self, name: str, memory: mmap.mmap, offset: int, slots: int, slot_size: int) -> None:
        self.name = name
        self.slot_size = slot_size
        self._slots = slots
        self._memory = memory
        self._offset = offset
        self._words = memoryview(memory)[offset : offset + slots * slot_size].cast("I")
        self._stride = slot_size // 4
        self._generation = 0
        self._index: dict[Key, int] = {}
        # Slots from `_unused` on were never written; those below it that are free are in `_free`.
        self._unused = 0
        self._free: list[int] = []

    @property
    def capacity(self) -> int:
        """How many keys fit: one slot stays spare, so that a replacement never fails."""
        return self._slots - 1

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: Key) -> bool:
        return key in self._index

    def put(self, key: Key, payload: bytes) -> None:
        """Insert or replace; a crash at any point leaves the old record or the new one."""
        old = self._index.get(key)
        if old is None and len(self._index) >= self._slots - 1:
            raise LedgerFull(
                f"the ledger's table {self.name!r} is full ({self.capacity} records), {key!r} does not fit: "
                f"end some {self.name} first"
            )
        generation = self._generation + 1
        record = self._encode(key, payload, generation)
        if self._free:
            slot = self._free.pop()
        else:
            slot = self._unused
            self._unused = slot + 1
        start = self._offset + slot * self.slot_size + _RECORD_AT
        self._memory[start : start + len(record)] = record
        word = slot * self._stride
        self._words[word + 1] = crc32(record)
        self._words[word] = _STATE_USED  # from here on the record exists
        self._generation = generation
        self._index[key] = slot
        if old is not None:
            self._clear(old)

    def get(self, key: Key) -> bytes | None:
        slot = self._index.get(key)
        return None if slot is None else self._payload(slot)

    def delete(self, key: Key) -> bool:
        """Remove a record; False when there is none."""
        slot = self._index.pop(key, None)
        if slot is None:
            return False
        self._clear(slot)
        return True

    def items(self) -> Iterator[tuple[Key, bytes]]:
        """Every record; the table may change while this is consumed."""
        for key in tuple(self._index):
            slot = self._index.get(key)
            if slot is not None:
                yield key, self._payload(slot)

    def release(self) -> None:
        self._words.release()

    def rebuild(self, fd: int) -> None:
        """Fill the index from the slots, resolving what a crash left behind."""
        best: dict[Key, tuple[int, int]] = {}
        used: set[int] = set()
        for slot in self._written_slots(fd):
            found = self._decode(slot)
            if found is None:
                self._words[slot * self._stride] = _STATE_FREE
                continue
            key, generation = found
            rival = best.get(key)
            if rival is not None:
                loser = min((generation, slot), rival)[1]
                self._words[loser * self._stride] = _STATE_FREE
                used.discard(loser)
                if loser == slot:
                    continue
            best[key] = (generation, slot)
            used.add(slot)
        self._generation = max((generation for generation, _ in best.values()), default=0)
        self._index = {key: slot for key, (_, slot) in best.items()}
        self._unused = max(used, default=-1) + 1
        self._free = [slot for slot in range(self._unused - 1, -1, -1) if slot not in used]

    def _encode(self, key: Key, payload: bytes, generation: int) -> bytes:
        if isinstance(key, int):
            if not 0 <= key < 1 << 64:
                raise ValueError(f"ledger key {key} of table {self.name!r} must be in 0..2**64-1")
            kind, key_bytes = _KIND_INT, key.to_bytes(8, "little")
        else:
            if not 0 < len(key) <= MAX_KEY:
                raise ValueError(f"ledger key {key!r} of table {self.name!r} must have 1..{MAX_KEY} bytes")
            kind, key_bytes = _KIND_BYTES, key
        room = self.slot_size - _OVERHEAD - len(key_bytes)
        if len(payload) > room:
            raise ValueError(
                f"record {key!r} of ledger table {self.name!r} has {len(payload)} bytes, "
                f"at most {room} fit beside its key"
            )
        return _RECORD.pack(generation, kind, len(key_bytes), len(payload)) + key_bytes + payload

    def _decode(self, slot: int) -> tuple[Key, int] | None:
        """(key, generation) of a used slot, or None when it is damaged."""
        word = slot * self._stride
        start = self._offset + slot * self.slot_size + _RECORD_AT
        generation, kind, key_size, payload_size = _RECORD.unpack_from(self._memory, start)
        size = _RECORD.size + key_size + payload_size
        if self._words[word] != _STATE_USED or size > self.slot_size - _RECORD_AT:
            return None
        if crc32(self._memory[start : start + size]) != self._words[word + 1]:
            return None
        key = self._memory[start + _RECORD.size : start + _RECORD.size + key_size]
        return (int.from_bytes(key, "little") if kind == _KIND_INT else key), generation

    def _payload(self, slot: int) -> bytes:
        start = self._offset + slot * self.slot_size + _RECORD_AT
        _, _, key_size, payload_size = _RECORD.unpack_from(self._memory, start)
        start += _RECORD.size + key_size
        return self._memory[start : start + payload_size]

    def _clear(self, slot: int) -> None:
        self._words[slot * self._stride] = _STATE_FREE
        self._free.append(slot)

    def _written_slots(self, fd: int) -> Iterator[int]:
        """Slots whose state is not free; skips holes, which reading through the map would fill."""
        end = self._offset + self._slots * self.slot_size
        place = self._offset
        while place < end:
            try:
                data = os.lseek(fd, place, os.SEEK_DATA)
            except OSError as failed:
                if failed.errno == errno.ENXIO:  # only a hole follows
                    return
                raise
            hole = min(os.lseek(fd, data, os.SEEK_HOLE), end)
            first = max(data - self._offset, 0) // self.slot_size
            last = -(-(hole - self._offset) // self.slot_size)
            states = self._words[first * self._stride : last * self._stride : self._stride].tolist()
            for slot, state in enumerate(states, first):
                if state != _STATE_FREE:
                    yield slot
            place = max(hole, self._offset + last * self.slot_size)


class Ledger:
    """The header and the tables. It owns `fd`: `close` closes it (others may hold the bytes)."""

    def __init__(self, fd: int, memory: mmap.mmap) -> None:
        self.fd = fd
        self._memory = memory
        self._header = memoryview(memory)[:_PAGE].cast("Q")
        tables, offset = [], _PAGE
        for name, slots, slot_size in _TABLES:
            tables.append(Table(name, memory, offset, slots, slot_size))
            offset += slots * slot_size
        self.clients, self.workers, self.regions, self.node, self.bundles = self._tables = tuple(tables)

    @classmethod
    def create(cls, fd: int | None = None, *, incarnation: bytes) -> Ledger:
        """An empty ledger with epoch 0, in a new memfd or over whatever `fd` holds."""
        if len(incarnation) != 16:
            raise ValueError(f"a node incarnation has 16 bytes, not {len(incarnation)}")
        if fd is None:
            fd = os.memfd_create("noded-ledger", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(fd, _SIZE)
            # Nobody who holds the descriptor can shrink it under the map, which would be a SIGBUS.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        else:
            _empty(fd)
        ledger = cls(fd, mmap.mmap(fd, _SIZE))
        memory = ledger._memory
        memory[8 : _HEADER.size] = _HEADER.pack(_MAGIC, LAYOUT_VERSION, 0, incarnation, 0)[8:]
        memory[0:8] = _MAGIC  # last: an interrupted creation is no ledger
        return ledger

    @classmethod
    def open(cls, fd: int) -> Ledger:
        """The ledger that `fd` holds, with its tables as the last daemon left them."""
        header = os.pread(fd, _HEADER.size, 0)
        if len(header) < _HEADER.size or not header.startswith(_MAGIC):
            raise LedgerError(
                f"descriptor {fd} holds no node ledger: start the node over with `noded stop` and `noded start`"
            )
        layout = _HEADER.unpack(header)[1]
        size = os.fstat(fd).st_size
        if not OLDEST_LAYOUT <= layout <= LAYOUT_VERSION or size != _SIZE:
            older = "that of an older" if layout < OLDEST_LAYOUT else "that of a newer"
            raise LedgerError(
                f"the node's ledger has layout {layout} with {size} bytes, {older} noded; this one uses layout "
                f"{LAYOUT_VERSION} or {OLDEST_LAYOUT} with {_SIZE}. Nothing has ended: go back to the version that "
                "started the node, which takes over again, or stop it with `noded stop` and start it with this one"
            )
        ledger = cls(fd, mmap.mmap(fd, _SIZE))
        for table in ledger._tables:
            table.rebuild(fd)
        return ledger

    @property
    def incarnation(self) -> bytes:
        return self._memory[16:32]

    @property
    def epoch(self) -> int:
        return self._header[_EPOCH_WORD]

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._header[_EPOCH_WORD] = epoch

    def close(self) -> None:
        """Unmap and close the descriptor; safe to call twice."""
        if self.fd < 0:
            return
        self._header.release()
        for table in self._tables:
            table.release()
        self._memory.close()
        os.close(self.fd)
        self.fd = -1


def _empty(fd: int) -> None:
    """Make `fd` a file of zeros of the right size."""
    try:
        os.ftruncate(fd, 0)
        os.ftruncate(fd, _SIZE)
    except PermissionError as refused:
        raise LedgerError(
            f"descriptor {fd} is sealed and cannot be emptied: create the ledger in a new memfd"
        ) from refused
