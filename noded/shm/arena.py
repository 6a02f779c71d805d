"""The object arena: one sealed memfd, mapped by every process of the node.

This module knows the layout of objects in it and maps it; it does not decide where objects go
(``policy/regions.py``, ``node/object_store.py``) nor who holds them. An object is a 64-byte header, then its
value. The header's state word is written last, so that after the death of a writer a region can be walked and
every sealed object found whole.

Reads go through a PROT_READ mapping, so that no view can change a shared value; writes through a second
mapping.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

HEADER_SIZE = 64
BLOCK = 64 << 10
"""Regions are multiples of this many bytes."""
MAGIC = 0x6A4F444E
UNSEALED, SEALED, FREED = 1, 2, 3

_HEADER = struct.Struct("<IIQ16s")
_STATE = struct.Struct("<I")
_WORD = struct.Struct("<Q")

_F_ADD_SEALS, _F_SEAL_SHRINK, _F_SEAL_GROW = 1033, 2, 4
_MADV_POPULATE_WRITE = 23
_MADV_DONTDUMP = 16
_FALLOC_KEEP_SIZE, _FALLOC_PUNCH_HOLE = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


class _PyBuffer(ctypes.Structure):
    """CPython's Py_buffer, up to the fields needed to learn an address; the tail is reserved space."""

    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = [ctypes.py_object, ctypes.POINTER(_PyBuffer), ctypes.c_int]
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = [ctypes.POINTER(_PyBuffer)]

_window_types: dict[int, Any] = {}


def _window_type(size: int) -> Any:
    """A ctypes array type of at least ``size`` bytes. Sizes are powers of two so that few types exist; a
    window is never touched as a whole.
    """
    bits = size.bit_length()
    kind = _window_types.get(bits)
    if kind is None:
        kind = _window_types[bits] = type(f"Window{bits}", (ctypes.c_char * (1 << bits),), {})
    return kind


class ObjectHeader(NamedTuple):
    offset: int
    state: int
    size: int
    id: bytes


def create(size: int) -> int:
    """A new sealed memfd of this many bytes; no page is taken yet."""
    fd = os.memfd_create("noded-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    import fcntl

    fcntl.fcntl(fd, _F_ADD_SEALS, _F_SEAL_SHRINK | _F_SEAL_GROW)
    return fd


def reserve(fd: int, offset: int, size: int) -> None:
    """Take the pages now, so that a later write can neither fail nor be charged to somebody else. Raises
    OSError.
    """
    os.posix_fallocate(fd, offset, size)


def punch(fd: int, offset: int, size: int) -> None:
    """Give the pages back to the kernel. Raises OSError."""
    if _libc.fallocate(fd, _FALLOC_KEEP_SIZE | _FALLOC_PUNCH_HOLE, offset, size):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


class Arena:
    """A process's two mappings of the arena."""

    def __init__(self, fd: int, size: int):
        self.fd = fd
        self.size = size
        self.read_address = self._map(mmap.PROT_READ)
        self.write_address = 0
        self._read_view = memoryview(_window_type(size).from_address(self.read_address)).cast("B")[:size].toreadonly()
        self._write_view: memoryview | None = None
        self._populated: set[tuple[int, int]] = set()

    def _map(self, protection: int) -> int:
        address = _libc.mmap(None, self.size, protection, mmap.MAP_SHARED, self.fd, 0)
        if address == ctypes.c_void_p(-1).value:
            error = ctypes.get_errno()
            raise OSError(error, f"cannot map the object arena of {self.size} bytes: {os.strerror(error)}")
        _libc.madvise(address, self.size, _MADV_DONTDUMP)
        return int(address)

    @property
    def writable(self) -> memoryview:
        if self._write_view is None:
            self.write_address = self._map(mmap.PROT_READ | mmap.PROT_WRITE)
            self._write_view = memoryview(_window_type(self.size).from_address(self.write_address)).cast("B")[
                : self.size
            ]
        return self._write_view

    # ------------------------------------------------------------ reading

    def view(self, offset: int, size: int) -> memoryview:
        """A read-only look that pins nothing: for use while a hold is known to exist."""
        return self._read_view[offset : offset + size]

    def pinned(self, offset: int, size: int, hold: object) -> memoryview:
        """A read-only view that keeps ``hold`` alive exactly as long as anything made from it."""
        window = _window_type(size).from_address(self.read_address + offset)
        window.hold = hold
        return memoryview(window).cast("B")[:size].toreadonly()

    def header(self, offset: int) -> ObjectHeader | None:
        magic, state, size, id_ = _HEADER.unpack_from(self._read_view, offset)
        return ObjectHeader(offset, state, size, id_) if magic == MAGIC else None

    def walk(self, offset: int, size: int) -> Iterator[ObjectHeader]:
        """The objects of a region in order, whatever their state, up to the first place where none was begun."""
        end = offset + size
        while offset + HEADER_SIZE <= end:
            found = self.header(offset)
            if found is None or offset + HEADER_SIZE + found.size > end:
                return
            yield found
            offset += footprint(found.size)

    # ------------------------------------------------------------ writing

    def begin(self, offset: int, id_: bytes, size: int, region_end: int) -> None:
        """Write the header of an object that is not sealed yet; a walk ends behind it."""
        view = self.writable
        after = offset + footprint(size)
        if after + 8 <= region_end:
            _WORD.pack_into(view, after, 0)
        _HEADER.pack_into(view, offset, 0, UNSEALED, size, id_)
        _STATE.pack_into(view, offset, MAGIC)

    def clear(self, offset: int) -> None:
        """Make a region start empty for a walk."""
        _WORD.pack_into(self.writable, offset, 0)

    def copy_in(self, offset: int, data: bytes | memoryview) -> None:
        """Copy bytes; big ones without the GIL and with their pages mapped in one call."""
        size = len(data) if isinstance(data, bytes) else data.nbytes
        if size < 65536:
            self.writable[offset : offset + size] = data if isinstance(data, bytes) else data.cast("B")
            return
        _ = self.writable
        if size >= 1 << 20 and (offset, size) not in self._populated:
            start = offset & -4096
            _libc.madvise(self.write_address + start, (offset + size - start + 4095) & -4096, _MADV_POPULATE_WRITE)
            if len(self._populated) > 4096:
                self._populated.clear()
            self._populated.add((offset, size))
        buffer = _PyBuffer()
        _get_buffer(data, buffer, 0)
        try:
            ctypes.memmove(self.write_address + offset, buffer.buf, size)
        finally:
            _release_buffer(buffer)

    def seal(self, offset: int) -> None:
        _STATE.pack_into(self.writable, offset + 4, SEALED)

    def mark_freed(self, offset: int) -> None:
        _STATE.pack_into(self.writable, offset + 4, FREED)

    def close(self, *, unmap: bool) -> None:
        """Close the descriptor; unmap only when no view can be alive."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            if unmap:
                self._read_view.release()
                _libc.munmap(self.read_address, self.size)
                if self._write_view is not None:
                    self._write_view.release()
                    self._write_view = None
                    _libc.munmap(self.write_address, self.size)


def footprint(size: int) -> int:
    """Bytes an object of this value size takes in its region."""
    return HEADER_SIZE + ((size + 63) & -64)
