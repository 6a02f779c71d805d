"""Makes an environment ready to travel: local code becomes packages, which are uploaded, and a setup hook a pickle.

One `Resolver` belongs to one connection, because it remembers what it has uploaded. A directory that has not changed
since is looked through (names, sizes, times) but not packed again.
"""

from __future__ import annotations

import base64
import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from noded.exceptions import RuntimeEnvSetupError
from noded.runtime_env.fields import PACKAGE_URI, PICKLED, module_path
from noded.runtime_env.prepared import canonical

MAX_PACKAGE = 512 << 20
"""Bytes, packed."""
_SETTLED = 50_000_000
"""Nanoseconds: what was changed so shortly before it was looked at may change again and show the same times."""
_NAMED = 5


class _Packed(NamedTuple):
    state: bytes
    uri: str


class Resolver:
    """`upload(uri, data)` returns when the node has the package, or raises. May be used by several threads."""

    def __init__(
        self,
        upload: Callable[[str, bytes], None],
        *,
        limit: int = MAX_PACKAGE,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self._upload = upload
        self._limit = limit
        self._now = now
        self._lock = threading.Lock()
        self._packed: dict[tuple[str, str, tuple[str, ...]], _Packed] = {}
        self._uploaded: set[str] = set()

    def resolve(self, env: Mapping[str, Any]) -> str:
        """`env` must be validated. The canonical text of it (`prepared.canonical`), empty for an empty one.

        Raises RuntimeEnvSetupError for code that cannot be packed, and whatever `upload` raises.
        """
        resolved = dict(env)
        excludes = tuple(resolved.pop("excludes", ()))
        with self._lock:
            if directory := resolved.get("working_dir"):
                resolved["working_dir"] = self._uri("working_dir", directory, excludes)
            if modules := resolved.get("py_modules"):
                resolved["py_modules"] = [self._uri("py_modules", each, excludes) for each in modules]
        hook = resolved.get("worker_process_setup_hook")
        if callable(hook):
            resolved["worker_process_setup_hook"] = {PICKLED: _pickled(hook)}
        return canonical(resolved)

    def _uri(self, field: str, source: str | ModuleType, excludes: tuple[str, ...]) -> str:
        if isinstance(source, str) and PACKAGE_URI.fullmatch(source):
            return source
        named = source if isinstance(source, str) else module_path(source)
        path = os.path.abspath(named.removeprefix("file://"))
        key = field, named if named.startswith("file://") else path, excludes
        try:
            state = self._state(path, excludes)
            known = self._packed.get(key)
            if known is not None and known.state == state and known.uri in self._uploaded:
                return known.uri
            data = self._pack(field, named, path, excludes)
        except OSError as error:
            raise RuntimeEnvSetupError(
                f"runtime_env[{field!r}]: {error.filename or path} cannot be read: {error.strerror or error}; leave it "
                "out with runtime_env={'excludes': [...]} or a .nodedignore file"
            ) from error
        uri = f"pkg://{hashlib.blake2b(data, digest_size=16).hexdigest()}.zip"
        if uri not in self._uploaded:
            self._upload(uri, data)
            self._uploaded.add(uri)
        if state:
            self._packed[key] = _Packed(state, uri)
        return uri

    def _state(self, path: str, excludes: Sequence[str]) -> bytes:
        """Differs when the package would; empty when that cannot be told yet."""
        from noded.runtime_env.archive import File
        from noded.runtime_env.files import walk

        files = walk(path, excludes) if os.path.isdir(path) else [File("", path, os.stat(path))]
        state = hashlib.blake2b(digest_size=16)
        newest = 0
        for name, _, found in files:
            times = (
                "" if name.endswith("/") else f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"
            )
            state.update(f"{name}\0{found.st_mode} {times}\0".encode(errors="surrogateescape"))
            newest = max(newest, found.st_ctime_ns)
        return state.digest() if newest + _SETTLED < self._now() else b""

    def _pack(self, field: str, named: str, path: str, excludes: Sequence[str]) -> bytes:
        from noded.runtime_env import archive, sources
        from noded.runtime_env.files import walk

        try:
            if os.path.isdir(path):
                # A module is found by its directory's name, the content of a working directory by its own.
                prefix = f"{os.path.basename(path)}/" if field == "py_modules" else ""
                return archive.pack(walk(path, excludes), prefix, self._limit)
            if os.path.getsize(path) > self._limit:
                raise archive.TooBig
            return sources.from_file(field, named, path)
        except archive.TooBig:
            raise RuntimeEnvSetupError(self._too_big(field, path, excludes)) from None
        except archive.ArchiveError as error:
            raise RuntimeEnvSetupError(f"runtime_env[{field!r}]: {path} is no package: {error}") from None
        except UnicodeEncodeError as error:
            raise RuntimeEnvSetupError(
                f"runtime_env[{field!r}]: a file below {path} has a name that is not UTF-8 ({error.object!r}): rename "
                "it, or leave it out with runtime_env={'excludes': [...]}"
            ) from None

    def _too_big(self, field: str, path: str, excludes: Sequence[str]) -> str:
        from noded.runtime_env.files import walk

        text = f"runtime_env[{field!r}]: {path} makes a package of more than {_megabytes(self._limit)}"
        if not os.path.isdir(path):
            return f"{text}: put big files where the workers can read them, and pass their path"
        files = [file for file in walk(path, excludes) if not file.name.endswith("/")]
        biggest = sorted(files, key=lambda file: -file.stat.st_size)[:_NAMED]
        names = ", ".join(f"{file.name} ({_megabytes(file.stat.st_size)})" for file in biggest)
        return (
            f"{text}; its biggest files are {names}: leave out what tasks do not need, with "
            "runtime_env={'excludes': [...]} or a .nodedignore file"
        )


def resolve(env: Mapping[str, Any], upload: Callable[[str, bytes], None]) -> str:
    """For once, without a memory of what has been uploaded: see `Resolver.resolve`."""
    return Resolver(upload).resolve(env)


def _pickled(hook: Callable[[], object]) -> str:
    import cloudpickle

    try:
        return base64.b64encode(cloudpickle.dumps(hook)).decode()
    except Exception as error:
        name = getattr(hook, "__qualname__", repr(hook))
        raise RuntimeEnvSetupError(
            f"runtime_env['worker_process_setup_hook']: {name} cannot be pickled: {error}"
        ) from error


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 50_000 else f"{size:,} bytes"
