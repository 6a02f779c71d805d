"""Packages as bytes: zip files that are made from equal files in equal form, and unpacked with suspicion.

A package has regular files and directories only: a link could lead out of the directory that it is unpacked into.
What is checked before an upload is checked again where it is unpacked.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

_CHUNK = 1 << 20
_EPOCH = (1980, 1, 1, 0, 0, 0)
_BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, RuntimeError, EOFError, ValueError)
"""What zipfile raises for a damaged or encrypted file."""
_SPEED = 1
"""Most packages travel to the same machine: compressing well costs more than it saves."""


class File(NamedTuple):
    name: str
    """Relative to the root, with / between; that of a directory ends with one."""
    path: str
    stat: os.stat_result


class ArchiveError(Exception):
    """A zip file that cannot be a package."""


class TooBig(Exception):
    """The package is over the limit."""


def pack(files: Iterable[File], prefix: str, limit: int) -> bytes:
    """`prefix` goes before all names. Equal names, contents and permissions make equal bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=_SPEED) as archive:
        for file in files:
            info = zipfile.ZipInfo(prefix + file.name, _EPOCH)
            info.create_system = 3  # Unix: the mode counts
            info.compress_type = zipfile.ZIP_DEFLATED
            if file.name.endswith("/"):
                info.external_attr = (stat.S_IFDIR | 0o755) << 16 | 0x10
                archive.writestr(info, b"")
                continue
            info.external_attr = (stat.S_IFREG | stat.S_IMODE(file.stat.st_mode) & 0o777) << 16
            info.file_size = file.stat.st_size  # so that a big one gets the wide header
            with open(file.path, "rb") as source, archive.open(info, "w") as target:
                while chunk := source.read(_CHUNK):
                    target.write(chunk)
                    if out.tell() > limit:
                        raise TooBig
    if out.tell() > limit:
        raise TooBig
    return out.getvalue()


def checked(data: bytes, rename: Callable[[list[str]], dict[str, str]] | None = None) -> bytes:
    """A zip file made elsewhere, as a package. `rename` gets its names and says which change."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = _entries(archive)
            changed = rename([name for name, _ in entries]) if rename is not None else {}
            if not changed:
                return data
            out = io.BytesIO()
            with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=_SPEED) as renamed:
                for name, info in entries:
                    if to := changed.get(name, name):
                        copy = zipfile.ZipInfo(to, _EPOCH)
                        copy.create_system, copy.external_attr = info.create_system, info.external_attr
                        renamed.writestr(copy, archive.read(info), zipfile.ZIP_DEFLATED, _SPEED)
            return out.getvalue()
    except _BROKEN as error:
        raise ArchiveError(f"it cannot be read as a zip file: {error}") from None


def unpack(path: str, directory: str, limit: int, go_on: Callable[[], None] = lambda: None) -> None:
    """Into an empty directory of ours. `limit`: bytes, unpacked. `go_on` is called often, and may raise.

    Raises ArchiveError for what is refused, OSError for what the disk does; what is unpacked by then stays.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
            if size > limit:
                raise ArchiveError(f"it unpacks to {size:,} bytes, and all environments together may have {limit:,}")
            for name, info in _entries(archive):
                target = os.path.join(directory, name)
                if name.endswith("/"):
                    os.makedirs(target, exist_ok=True)
                    continue
                os.makedirs(os.path.dirname(target), exist_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
                with archive.open(info) as source, open(os.open(target, flags, 0o600), "wb") as out:
                    while chunk := source.read(_CHUNK):
                        out.write(chunk)
                        go_on()
                    os.fchmod(out.fileno(), _mode(info))
                go_on()
    except _BROKEN as error:
        raise ArchiveError(f"it cannot be read as a zip file: {error}") from None


def _entries(archive: zipfile.ZipFile) -> list[tuple[str, zipfile.ZipInfo]]:
    """What is in it, by safe names: below the directory, and that of a directory ends with /."""
    named = [(_safe_name(info), info) for info in archive.infolist()]
    return [(name, info) for name, info in named if name]


def _safe_name(info: zipfile.ZipInfo) -> str:
    parts = info.filename.split("/")
    if info.filename.startswith("/") or ".." in parts:
        raise ArchiveError(f"its entry {info.filename!r} leads out of it")
    kind = stat.S_IFMT(info.external_attr >> 16) if info.create_system == 3 else 0
    if kind == stat.S_IFLNK:
        raise ArchiveError(f"its entry {info.filename!r} is a symbolic link: put the file itself in")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ArchiveError(f"its entry {info.filename!r} is neither a file nor a directory")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ArchiveError(f"its entry {info.filename!r} is compressed in an unusual way: use plain deflate")
    name = "/".join(part for part in parts if part not in ("", "."))
    return name + "/" if name and info.is_dir() else name


def _mode(info: zipfile.ZipInfo) -> int:
    """Always readable: a worker may run as nobody but us."""
    given = info.external_attr >> 16 & 0o777 if info.create_system == 3 else 0
    return given | 0o400 if given else 0o644
