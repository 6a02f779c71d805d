"""The files of a log directory: which there are, and reading them in chunks, also while they are written and cut.

A worker has two, ``worker-ID.out`` and ``worker-ID.err``, with marks in them that readers never see. The daemon's own
are ``daemon.log`` and, before it, ``daemon.log.1``. What was cut off a file is a hole behind its first HEAD_KEPT bytes,
so where a byte stands never changes. Everything here reads files: not for an event loop.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from typing import NamedTuple

from noded.logs.marks import Mark, pieces

HEAD_KEPT = 4096
"""Bytes at the start of a file that stay when it is cut: they say whose it is."""
DAEMON_LOG = "daemon.log"
CHUNK = 256 << 10
"""About so many bytes are answered at once."""
_SCAN = 8 << 20
"""So many are looked through for one answer."""
_WORKER = re.compile(r"worker-([0-9a-f]{16})\.(out|err)")
_NAME = re.compile(r"worker-[0-9a-f]{16}\.(out|err)|daemon\.log(\.\d)?|noded\.log(\.\d)?")


class LogFile(NamedTuple):
    name: str
    worker: str
    """Its id; empty for the daemon's."""
    is_error: bool
    size: int
    """Bytes written."""
    on_disk: int
    """Bytes that are kept, as the disk counts them."""
    modified: float
    """Seconds since the epoch."""


class Cursor(NamedTuple):
    """Where a reader is in one file. ``mine``: the bytes there are of the call that it looks for."""

    at: int = 0
    inode: int = 0
    mine: bool = False


class Chunk(NamedTuple):
    data: bytes
    """Without marks."""
    cursor: Cursor
    at_end: bool
    """Nothing more is there now."""
    dropped: int
    """Bytes that were cut off before these, or cannot be read any more."""


def valid(name: str) -> bool:
    """Whether a log directory may have a file of this name: nobody reads another one through it."""
    return _NAME.fullmatch(name) is not None


def worker_of(name: str) -> tuple[str, bool] | None:
    """The worker whose file this is, and whether it is its stderr."""
    found = _WORKER.fullmatch(name)
    return (found[1], found[2] == "err") if found else None


def files_of(worker: str) -> tuple[str, str]:
    return f"worker-{worker}.out", f"worker-{worker}.err"


def open_file(path: str) -> int:
    """A descriptor to read it. Raises OSError, also for what is no plain file: anybody may have put it there."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileNotFoundError(errno.ENOENT, "it is no plain file", path)
    return fd


def list_files(directory: str) -> list[LogFile]:
    """All of them, the one that was written last at the end. A directory that is not there has none."""
    found = []
    try:
        entries = list(os.scandir(directory))
    except OSError:
        return []
    for entry in entries:
        if not valid(entry.name) or not entry.is_file(follow_symlinks=False):
            continue
        try:
            told = entry.stat(follow_symlinks=False)
        except OSError:  # removed meanwhile
            continue
        worker, is_error = worker_of(entry.name) or ("", False)
        found.append(
            LogFile(entry.name, worker, is_error, told.st_size, told.st_blocks * 512, told.st_mtime),
        )
    return sorted(found, key=lambda file: file.modified)


def whose(path: str) -> Mark:
    """The first mark that tells the job; an empty one when there is none."""
    try:
        with open(open_file(path), "rb") as file:
            data = file.read(HEAD_KEPT)
    except OSError:
        return Mark()
    whole = data[: data.rfind(b"\n") + 1]
    return next((each.mark for each in pieces(whole) if each.mark is not None and each.mark.job), Mark())


def hole(fd: int, size: int) -> tuple[int, int]:
    """Where bytes were cut off; an empty range when none were."""
    if size <= HEAD_KEPT:
        return 0, 0
    try:
        data = os.lseek(fd, HEAD_KEPT, os.SEEK_DATA)
    except OSError:  # nothing but hole, or a file system that does not tell
        return 0, 0
    return (HEAD_KEPT, data) if data > HEAD_KEPT else (0, 0)


def read(path: str, cursor: Cursor, wanted: str = "", *, exact: bool = False, unfinished: bool = False) -> Chunk:
    """The next bytes from ``cursor`` on; with ``wanted`` only those of this task or actor. ``exact``: lines that were
    not ended stay so. ``unfinished``: also the line at the file's end that has no end yet. Raises OSError.
    """
    with open(open_file(path), "rb") as file:
        fd = file.fileno()
        told = os.fstat(fd)
        size = told.st_size
        if cursor.inode not in (0, told.st_ino) or cursor.at > size:
            cursor = Cursor()  # another file by now, or emptied by somebody
        out: list[bytes] = []
        at, mine, dropped, got = cursor.at, cursor.mine, 0, 0
        begin, end = hole(fd, size)
        scanned, at_end = 0, False
        while got < CHUNK and scanned < _SCAN and not at_end:
            data, at, lost = _lines(fd, at, size, begin, end, unfinished)
            dropped += lost
            scanned += len(data)
            for piece in pieces(data) if data else ():
                mark = piece.mark
                if mark is not None:
                    span = mark.bytes_before
                    if span is not None and wanted and mark.task == wanted and not mine:
                        start = max(span[0], end) if span[0] >= begin else span[0]
                        out.append(os.pread(fd, max(0, min(span[1] - start, _SCAN)), start))
                        got += len(out[-1])
                    mine = mark.actor == wanted if span is not None else wanted in (mark.task, mark.actor)
                if piece.text and (mine or not wanted):
                    out.append(piece.exact if exact else piece.shown)
                    got += len(out[-1])
            at += len(data)
            at_end = at >= size or not data
        return Chunk(b"".join(out), Cursor(at, told.st_ino, mine), at_end, dropped)


def _lines(fd: int, at: int, size: int, begin: int, end: int, unfinished: bool) -> tuple[bytes, int, int]:
    """Whole lines from ``at`` on, where they really begin, and how much was cut off before. A line that has no end yet
    is left for later, unless it is longer than a chunk, or ``unfinished`` ones are asked for.
    """
    lost = 0
    until = size
    if begin <= at < end:
        lost, at = end - at, end
        skipped = os.pread(fd, CHUNK, at)
        rest = skipped.find(b"\n") + 1  # the rest of a line that was cut
        lost, at = lost + rest, at + rest
    elif at < begin:
        until = begin
    data = os.pread(fd, min(CHUNK, until - at), at)
    whole = data.rfind(b"\n") + 1
    if whole:
        return data[:whole], at, lost
    if unfinished or len(data) == CHUNK or until < size:
        return data, at, lost
    return b"", at, lost


def tail(path: str, count: int) -> Cursor:
    """Where the last ``count`` lines begin, as far as they are among the last 8 MB. Raises OSError."""
    with open(open_file(path), "rb") as file:
        fd = file.fileno()
        told = os.fstat(fd)
        position, least = told.st_size, max(hole(fd, told.st_size)[1], told.st_size - _SCAN)
        block = b""
        while position > least:
            step = min(max(64 << 10, len(block)), position - least)
            position -= step
            block = os.pread(fd, step, position) + block
            starts = list(_line_starts(block, position == 0))
            if len(starts) > count or position == least:
                first = starts[-count] if len(starts) >= count > 0 else (starts[0] if starts and count else len(block))
                return Cursor(position + first, told.st_ino)
        return Cursor(position, told.st_ino)


def _line_starts(block: bytes, whole: bool) -> Iterator[int]:
    """Of lines that are no marks; the first line only when it is ``whole``."""
    at = 0 if whole else block.find(b"\n") + 1
    while at < len(block):
        if block[at] != 0x1E:
            yield at
        following = block.find(b"\n", at)
        if following < 0:
            return
        at = following + 1


def mentions(path: str, id_: str) -> bool:
    """Whether a mark in this file has this id. Raises OSError."""
    needle = b"\x1f" + id_.encode()
    with open(open_file(path), "rb") as file:
        fd = file.fileno()
        size = os.fstat(fd).st_size
        begin, end = hole(fd, size)
        at, carried = 0, b""
        while at < size:
            if begin <= at < end:
                at, carried = end, b""
            data = os.pread(fd, 1 << 20 if at >= end or not end else begin - at, at)
            if not data:
                return False
            if needle in carried + data:
                return True
            carried = data[-64:]
            at += len(data)
    return False
