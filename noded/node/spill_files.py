"""Files with the values of objects, many in each, in one or more directories.

A directory is the node's own (``<parent>/<cluster>-<node>-<incarnation>``, 0700), made at first need. A lock in it is
held by a descriptor that outlives the daemon, so whoever can take the lock has found what a dead node has left, and
removes it. A file is written from its start to its end, once, and is removed when nothing in it is needed any more; see
``shm/record.py`` for what is in it. What blocks is for threads: ``open_file``, ``remove``, and the methods of files.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from noded.shm import record
from noded.shm.arena import Arena, punch
from noded.wire import value as layout

log = logging.getLogger("noded.spill")

RETRY_SECONDS = 5.0
"""A directory that failed, or was full, is tried again after so long."""
_KEEP_FREE = 20
"""One in so many bytes of a file system stays free, but not more than:"""
_KEEP_FREE_MOST = 1 << 30
PUNCH_FROM = 1 << 20
_UNTOUCHED_SECONDS = 60.0
_FULL = (errno.ENOSPC, errno.EDQUOT)


class NoRoom(Exception):
    """No directory takes so many bytes; says of each why."""


class Value(NamedTuple):
    """What is to be written: ``offset`` and ``size`` of the value in the arena."""

    id: bytes
    offset: int
    size: int


class Place(NamedTuple):
    """Where a value lies: ``offset`` is its header's."""

    file: SpillFile
    offset: int
    size: int

    @property
    def value_at(self) -> int:
        return self.offset + record.HEADER_SIZE


class SpillFile(msgspec.Struct, eq=False):
    """``live``: values in it that are needed, or being written. Methods raise OSError."""

    directory: SpillDirectory
    path: str
    size: int
    live: int = 0

    def create(self) -> None:
        """Take its whole room, so that no later write can find none."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, self.size)
        finally:
            os.close(fd)

    def write(self, values: Sequence[Value], arena: Arena, *, out: bool) -> list[Place]:
        """From the start of the file. ``out``: also out of the kernel's cache, where memory is short."""
        places = []
        at = 0
        with self.opened() as fd:
            for value in values:
                record.write(fd, at, value.id, [(0, arena.view(value.offset, value.size))], value.size)
                record.seal(fd, at)
                places.append(Place(self, at, value.size))
                at += record.footprint(value.size)
            if out:  # what is dirty cannot be taken back at once, and in a small container ends processes
                os.fdatasync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return places

    def begin(self, id_: bytes, size: int, writer: bytes) -> None:
        """One value, that a client writes (then its id is not known yet), or what pulls it."""
        with self.opened() as fd:
            record.begin(fd, 0, id_, size, writer)

    def seal(self) -> None:
        """That value is written."""
        with self.opened() as fd:
            record.seal(fd, 0)

    def contents(self) -> list[tuple[record.Record, list[bytes]]]:
        """All records, with the ids in those that are sealed."""
        with self.opened() as fd:
            return [(r, self._ids(fd, r) if r.state == record.SEALED else []) for r in record.records(fd)]

    def _ids(self, fd: int, found: record.Record) -> list[bytes]:
        try:
            return _ids_in(fd, found)
        except ValueError as error:  # who reads it is told the same
            log.error("object %s in %s: %s", found.id.hex(), self.path, error)
            return []

    def forget(self, place: Place) -> None:
        """This large value is not needed any more; its room is given back where the file system can."""
        with self.opened() as fd:
            record.free(fd, place.offset)
            with suppress(OSError):
                punch(fd, place.value_at, place.size)

    def shrink(self, size: int) -> None:
        """So much of it takes no room any more, or soon not."""
        self.size -= size
        self.directory.used -= size

    @contextmanager
    def opened(self) -> Iterator[int]:
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)


def _ids_in(fd: int, found: record.Record) -> list[bytes]:
    """They are at the beginning of the value."""
    at = found.offset + record.HEADER_SIZE
    head = os.pread(fd, min(found.size, layout.HEAD_SIZE), at)
    return layout.ids_in(memoryview(os.pread(fd, min(found.size, layout.ids_end(head)), at))) if head else []


class SpillDirectory(msgspec.Struct, eq=False):
    """One of the node's directories. ``limit``: bytes it may use, None: all but what is to stay free."""

    path: Path
    limit: int | None
    used: int = 0
    failed: str = ""
    """Why it takes nothing now."""
    retry_at: float = 0.0
    lock_fd: int = -1
    kept: bool = False
    """Somebody who outlives us has a copy of that."""
    files: dict[str, SpillFile] = {}
    _number: int = 0

    @property
    def lock_name(self) -> str:
        """Under which its lock is kept: another one for another directory."""
        return f"spill-{zlib.crc32(os.fsencode(self.path)):08x}"

    def refusal(self, need: int) -> str:
        """Why it does not take so many bytes now; "" when it does."""
        if self.failed and time.monotonic() < self.retry_at:
            return self.failed
        if self.limit is not None and self.used + need > self.limit:
            return f"{need} bytes more than the {self.used} there would be above its limit of {self.limit}"
        free, keep = self.free()
        if free - keep < need:
            return f"{free} bytes are free, of which {keep} are to stay so, and {need} are needed"
        return ""

    def free(self) -> tuple[int, int]:
        """(bytes that are free on its file system, how many of them are not ours)."""
        try:
            stat = os.statvfs(self.path if self.path.exists() else _existing(self.path))
        except OSError as error:
            self.fail(error)
            return 0, 0
        whole = stat.f_blocks * stat.f_frsize
        return stat.f_bavail * stat.f_frsize, min(whole // _KEEP_FREE, _KEEP_FREE_MOST)

    def fail(self, error: OSError) -> None:
        reason = "it is full" if error.errno in _FULL else f"{error}"
        if reason != self.failed:
            log.warning("nothing is spilled to %s for now: %s", self.path, reason)
        self.failed, self.retry_at = reason, time.monotonic() + RETRY_SECONDS

    def works(self) -> None:
        if self.failed:
            log.info("objects are spilled to %s again", self.path)
            self.failed = ""

    def new_file(self, size: int) -> SpillFile:
        self._number += 1
        while os.path.lexists(path := str(self.path / f"{self._number}.spill")):
            self._number += 1
        file = self.files[path] = SpillFile(self, path, size)
        self.used += size
        return file

    def lock(self) -> int:
        """Make it and take its lock; the descriptor keeps it. Raises OSError."""
        while True:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.stat(self.path / "lock"), os.fstat(fd)):
                    self.lock_fd = fd
                    return fd
            except FileNotFoundError:  # somebody took it for a dead node's, before we had the lock
                pass
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)


class SpillFiles:
    """``limit``: bytes for each directory, None: all but what is to stay free there."""

    def __init__(self, parents: Sequence[Path], name: str, limit: int | None):
        self.directories = [SpillDirectory(parent / name, limit) for parent in parents]
        self._turn = 0
        self._lock = threading.Lock()

    @property
    def used(self) -> int:
        """Bytes of all files."""
        return sum(directory.used for directory in self.directories)

    def open_file(self, need: int) -> SpillFile:
        """An empty one of so many bytes. The directories take turns. Raises NoRoom."""
        with self._lock:
            reasons = []
            for _ in self.directories:
                directory = self.directories[self._turn % len(self.directories)]
                self._turn += 1
                try:
                    reason = directory.refusal(need) or self._made(directory, need)
                except OSError as error:
                    directory.fail(error)
                    reason = directory.failed
                if isinstance(reason, SpillFile):
                    return reason
                reasons.append(f"{directory.path.parent}: {reason}")
        raise NoRoom("; ".join(reasons) or "spilling is off (object_spilling_directory is none)")

    def _made(self, directory: SpillDirectory, need: int) -> SpillFile:
        if directory.lock_fd < 0:
            directory.lock()
        file = directory.new_file(need)
        try:
            file.create()
        except OSError:
            self._remove(file)
            raise
        directory.works()
        return file

    def remove(self, file: SpillFile) -> None:
        with self._lock:
            self._remove(file)

    @staticmethod
    def _remove(file: SpillFile) -> None:
        if file.directory.files.pop(file.path, None) is not None:
            file.directory.used -= file.size
            with suppress(OSError):
                os.unlink(file.path)

    def refusal(self, need: int) -> str:
        """Why no directory takes so many bytes now; "" when one does."""
        reasons = [(each.path.parent, each.refusal(need)) for each in self.directories]
        if any(not reason for _, reason in reasons):
            return ""
        return "; ".join(f"{path}: {reason}" for path, reason in reasons) or "spilling is off"

    def adopt(self, kept: dict[str, int]) -> list[SpillFile]:
        """The files of the daemon before us, by the locks that were kept; also of directories that the configuration
        does not name any more. ``live`` is for the caller to count.
        """
        for name in sorted(kept):
            fd = kept[name]
            path = Path(os.readlink(f"/proc/self/fd/{fd}")).parent
            directory = next((each for each in self.directories if each.path == path), None)
            if directory is None:
                if not path.is_dir():
                    continue
                directory = SpillDirectory(path, 0)
                self.directories.append(directory)
            directory.lock_fd, directory.kept = fd, True
            for found in path.glob("*.spill"):
                file = directory.files[str(found)] = SpillFile(directory, str(found), found.stat().st_size)
                directory.used += file.size
        return [file for directory in self.directories for file in directory.files.values()]

    def close(self, *, delete: bool) -> None:
        for directory in self.directories:
            if directory.lock_fd >= 0:
                if delete:
                    shutil.rmtree(directory.path, ignore_errors=True)
                os.close(directory.lock_fd)
                directory.lock_fd = -1

    def figures(self) -> list[dict[str, object]]:
        """For status, per directory."""
        return [
            {
                "path": str(each.path),
                "used": each.used,
                "free": each.free()[0],
                "limit": each.limit,
                "problem": each.failed if time.monotonic() < each.retry_at else "",
            }
            for each in self.directories
        ]


def sweep(parent: Path) -> None:
    """Remove what dead nodes have left there: those whose lock nobody holds."""
    try:
        found = [path for path in parent.iterdir() if path.is_dir()]
    except OSError:
        return
    for path in found:
        try:
            fd = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            with suppress(OSError):  # one that is being made has its lock in a moment
                if time.time() - path.stat().st_mtime > _UNTOUCHED_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)
            continue
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            log.info("removing %s, which a node that has ended has left", path)
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(fd)


def _existing(path: Path) -> Path:
    """The nearest directory above that exists."""
    return next(each for each in path.parents if each.exists())
