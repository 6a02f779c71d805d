"""Packages of runtime environments on disk. Everything here blocks, and is called in threads.

``packages/<hash>.zip`` is what was uploaded, ``extracted/<hash>-<size>/`` what workers use (the size is in the name, so
that a start need not count), ``envs/<id>`` names the packages of an environment, so that a restarted daemon knows what
its workers stand on. Names that begin with a dot are unfinished, or on their way out: they mean nothing, and `open`
removes them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import threading
from contextlib import suppress
from itertools import count
from pathlib import Path

import msgspec

from noded.runtime_env.fields import PACKAGE_URI

_PACKAGE = re.compile(r"([0-9a-f]{32})\.zip")
_EXTRACTED = re.compile(r"([0-9a-f]{32})-([0-9]+)")
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


class PackageError(Exception):
    """A package that cannot be used; the text says why."""


class Stopped(Exception):
    """The daemon ends."""


class OnDisk(msgspec.Struct, frozen=True):
    size: int
    used: float
    """Seconds since the epoch."""


class Found(msgspec.Struct, frozen=True):
    packages: dict[str, OnDisk] = {}
    extracted: dict[str, OnDisk] = {}
    envs: dict[str, list[str]] = {}


class PackageFiles:
    def __init__(self, directory: Path) -> None:
        self._base = directory
        self._packages = directory / "packages"
        self._extracted = directory / "extracted"
        self._envs = directory / "envs"
        self._drafts = count()
        self._stopped = threading.Event()

    def open(self) -> Found:
        """Sweep what an earlier daemon left unfinished; what there is."""
        for each in (self._base, self._packages, self._extracted, self._envs):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in each.glob(".*"):
                _remove(path)
        self._forget_unsynced()
        found = Found()
        for path in self._packages.iterdir():
            if match := _PACKAGE.fullmatch(path.name):
                stat = path.stat()
                found.packages[match[1]] = OnDisk(stat.st_blocks * 512, stat.st_mtime)
        for path in self._extracted.iterdir():
            if match := _EXTRACTED.fullmatch(path.name):
                found.extracted[match[1]] = OnDisk(int(match[2]), path.stat().st_mtime)
        for path in self._envs.iterdir():
            uris = _read_note(path)
            if uris is None:
                path.unlink()
            else:
                found.envs[path.name] = uris
        return found

    def _forget_unsynced(self) -> None:
        """Extractions are not synced to the disk: after a crash of the machine they may be hollow."""
        boot = Path(_BOOT_ID).read_text().strip()
        mark = self._base / "boot"
        if not mark.exists() or mark.read_text() != boot:
            for path in self._extracted.iterdir():
                _remove(path)
            _write_private(mark, boot)

    def stop(self) -> None:
        """What is being extracted ends with `Stopped`."""
        self._stopped.set()

    def directory(self, hash_: str, size: int) -> str:
        return str(self._extracted / f"{hash_}-{size}")

    def write(self, hash_: str, data: bytes | memoryview) -> int:
        """Its size on disk; durable when it returns. Raises PackageError."""
        found = hashlib.blake2b(data, digest_size=16).hexdigest()
        if found != hash_:
            raise PackageError(f"its content was changed on the way: its hash is {found} now; try again")
        draft = self._draft(self._packages)
        try:
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            path = self._packages / f"{hash_}.zip"
            draft.rename(path)
            return path.stat().st_blocks * 512
        except OSError as error:
            raise PackageError(f"it cannot be stored: {self._told(error)}") from error
        finally:
            draft.unlink(missing_ok=True)

    def read(self, hash_: str) -> bytes:
        return (self._packages / f"{hash_}.zip").read_bytes()

    def extract(self, hash_: str, limit: int) -> int:
        """Its size on disk. All of it is there at once or nothing. Raises PackageError, or Stopped."""
        from noded.runtime_env import archive

        draft = self._draft(self._extracted)
        try:
            draft.mkdir(mode=0o700)
            archive.unpack(str(self._packages / f"{hash_}.zip"), str(draft), limit, self._go_on)
            size = _size(draft)
            draft.rename(self.directory(hash_, size))
            return size
        except archive.ArchiveError as error:
            raise PackageError(f"it is refused: {error}") from None
        except OSError as error:
            raise PackageError(f"it cannot be unpacked: {self._told(error)}") from error
        finally:
            if draft.exists():
                _remove(draft)

    def remove_extracted(self, hash_: str, size: int) -> None:
        self._discard(Path(self.directory(hash_, size)))

    def remove_package(self, hash_: str) -> None:
        self._discard(self._packages / f"{hash_}.zip")

    def note_env(self, env: str, uris: list[str]) -> None:
        draft = self._draft(self._envs)
        try:
            _write_private(draft, json.dumps(uris))
            draft.rename(self._envs / env)
        except OSError as error:
            raise PackageError(f"they cannot be noted: {self._told(error)}") from error
        finally:
            draft.unlink(missing_ok=True)

    def forget_env(self, env: str) -> None:
        (self._envs / env).unlink(missing_ok=True)

    def _draft(self, beside: Path) -> Path:
        return beside / f".{os.getpid()}-{next(self._drafts)}"

    def _discard(self, path: Path) -> None:
        """Gone at once by its name, however long the rest takes."""
        draft = self._draft(path.parent)
        with suppress(FileNotFoundError):
            path.rename(draft)
            _remove(draft)

    def _go_on(self) -> None:
        if self._stopped.is_set():
            raise Stopped

    def _told(self, error: OSError) -> str:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return str(error)
        free = shutil.disk_usage(self._base).free
        return (
            f"{error.strerror or error} at {self._base} ({free / 1e6:,.1f} MB free): make room there, or leave big "
            "files out with runtime_env={'excludes': [...]}"
        )


def _size(directory: Path) -> int:
    return sum(
        os.lstat(path).st_blocks * 512
        for above, _, names in os.walk(directory)
        for path in (above, *(os.path.join(above, name) for name in names))
    )


def _read_note(path: Path) -> list[str] | None:
    try:
        uris = json.loads(path.read_bytes())
    except ValueError:  # cut off by a crash of the machine
        return None
    known = isinstance(uris, list) and all(isinstance(uri, str) and PACKAGE_URI.fullmatch(uri) for uri in uris)
    return uris if known else None


def _remove(path: Path) -> None:
    """As far as it can be: what stays is tried again at the next start."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _write_private(path: Path, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(text)
