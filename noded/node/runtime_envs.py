"""Makes runtime environments ready on this node: keeps their packages, extracts each once, and evicts what nobody uses.

What is in use is counted by environment and never evicted; `acquire` before `prepare`, so that nothing comes between.
Counts are soft state: after a restart whoever finds the workers acquires again, before anything is prepared. Each
package has a lock for many readers (nodes that fetch it) and one writer (who stores, extracts or evicts it); what it
says about itself changes before the disk does when something goes, and after when something comes. The disk is in
`package_files.py`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

import msgspec
from aiorwlock import RWLock

from noded.node.package_files import PackageError, PackageFiles, Stopped
from noded.runtime_env.fields import PACKAGE_URI
from noded.runtime_env.prepared import Prepared, env_id, package_uris, parse, setup_hook, setup_timeout

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger("noded.runtime_envs")

LIMIT = 10 * 10**9
"""Bytes of packages and extractions together, beyond which what is unused goes."""
_FRESH = 600.0
"""Seconds that an upload is kept at least: what was uploaded for a task is on its way to be used."""
_THREADS = 2
_STOPPING = "this node is stopping"
_REMEMBERED = 1000
"""Environments without users whose packages we still know."""


class RuntimeEnvError(Exception):
    """An environment cannot be made ready; the text says why and what to do."""


class Package(msgspec.Struct, eq=False):
    uri: str
    stored: int = 0
    """Bytes on disk of the zip; 0: it is not here. Likewise ``extracted``."""
    extracted: int = 0
    used: float = 0.0
    lock: RWLock = msgspec.field(default_factory=RWLock)
    making: asyncio.Task[None] | None = None

    @property
    def hash(self) -> str:
        return self.uri[len("pkg://") : -len(".zip")]


def pick_victim(packages: Iterable[Package], in_use: set[str], limit: int, now: float) -> Package | None:
    """What is to go next: the extraction unused for longest; then, as nobody else may have them, zips likewise."""
    packages = list(packages)
    if sum(package.stored + package.extracted for package in packages) <= limit:
        return None
    free = [package for package in packages if package.uri not in in_use and package.making is None]
    some = [package for package in free if package.extracted]
    some = some or [package for package in free if package.stored and package.used + _FRESH < now]
    return min(some, key=lambda package: package.used, default=None)


class RuntimeEnvs:
    """``load_package(uri)`` fetches a package that this node has not been given; LookupError: nobody has it."""

    def __init__(
        self, directory: Path, load_package: Callable[[str], Awaitable[bytes]] | None = None, *, limit: int = LIMIT
    ) -> None:
        self._files = PackageFiles(directory)
        self._load = load_package
        self._limit = limit
        self._packages: dict[str, Package] = {}
        self._envs: dict[str, list[str]] = {}
        """Environment -> its packages; of those in use, and of some others."""
        self._noted: set[str] = set()
        self._noting = asyncio.Lock()
        self._uses: Counter[str] = Counter()
        self._idle: OrderedDict[str, None] = OrderedDict()
        self._threads: ThreadPoolExecutor | None = None
        self._started = asyncio.Event()
        """Who asks earlier waits: what is on the disk is not known yet."""
        self._evictor: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        """Only once no other daemon can be at work in the directory any more. Raises RuntimeEnvError."""
        self._threads = ThreadPoolExecutor(_THREADS, "runtime-envs")
        try:
            found = await self._run(self._files.open)
        except OSError as error:
            raise RuntimeEnvError(f"there is no place for packages of runtime environments: {error}") from error
        for hash_, stored in found.packages.items():
            package = self._package(f"pkg://{hash_}.zip")
            package.stored, package.used = stored.size, stored.used
        for hash_, extracted in found.extracted.items():
            package = self._package(f"pkg://{hash_}.zip")
            package.extracted, package.used = extracted.size, max(package.used, extracted.used)
        self._envs = found.envs
        self._noted = set(found.envs)
        self._idle = OrderedDict.fromkeys(env for env in found.envs if not self._uses[env])
        self._started.set()

    async def stop(self) -> None:
        self._stopping = True
        self._files.stop()
        tasks = [package.making for package in self._packages.values() if package.making is not None]
        if self._evictor is not None:
            tasks.append(self._evictor)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._threads is not None:
            await asyncio.to_thread(self._threads.shutdown)

    # ------------------------------------------------------------ packages

    def has(self, uri: str) -> bool:
        package = self._packages.get(uri)
        return package is not None and package.stored > 0

    async def store(self, uri: str, data: bytes | memoryview) -> None:
        """A package that a client has uploaded; storing it twice is harmless. Raises RuntimeEnvError."""
        await self._started.wait()
        package = self._package(uri)
        async with package.lock.writer:
            await self._store(package, data)
        self._make_room()

    async def read(self, uri: str) -> bytes:
        """For another node that needs it. Raises LookupError."""
        await self._started.wait()
        if uri not in self._packages:
            raise LookupError(uri)
        package = self._packages[uri]
        async with package.lock.reader:
            if not package.stored:
                raise LookupError(uri)
            return await self._run(self._files.read, package.hash)

    async def _store(self, package: Package, data: bytes | memoryview) -> None:
        if not package.stored:
            try:
                package.stored = await self._run(self._files.write, package.hash, data)
            except PackageError as error:
                raise RuntimeEnvError(f"the package {package.uri}: {error}") from None
        package.used = time.time()

    def _package(self, uri: str) -> Package:
        package = self._packages.get(uri)
        if package is None:
            if PACKAGE_URI.fullmatch(uri) is None:
                raise RuntimeEnvError(f"{uri!r} is no package: runtime environments are resolved by who submits")
            package = self._packages[uri] = Package(uri)
        return package

    # ------------------------------------------------------------ environments

    def acquire(self, env: str) -> None:
        """One more user (a worker, a client that asks for it) of the environment with this id."""
        self._uses[env] += 1
        self._idle.pop(env, None)

    def release(self, env: str) -> None:
        if self._uses[env] <= 0:
            raise ValueError(f"the runtime environment {env} was released more often than acquired")
        self._uses[env] -= 1
        if self._uses[env]:
            return
        del self._uses[env]
        if env in self._envs:
            self._idle[env] = None
            for uri in self._envs[env]:
                self._package(uri).used = time.time()
            self._make_room()

    async def prepare(self, resolved: str) -> Prepared:
        """What a worker needs to enter the environment. Raises RuntimeEnvError."""
        await self._started.wait()
        env = parse(resolved)
        uris = package_uris(env)
        packages = [self._package(uri) for uri in uris]
        if packages:
            limit = setup_timeout(env)
            id_ = env_id(resolved)
            self.acquire(id_)
            try:
                async with asyncio.timeout(limit):
                    await self._make_ready(id_, packages)
            except TimeoutError:
                raise RuntimeEnvError(
                    f"the runtime environment was not ready within its setup_timeout_seconds ({limit:g}): set a longer "
                    "one in runtime_env['config']"
                ) from None
            finally:
                self.release(id_)
        directories = [self._files.directory(package.hash, package.extracted) for package in packages]
        return Prepared(
            env.get("env_vars", {}), directories[-1] if env.get("working_dir") else "", directories, *setup_hook(env)
        )

    async def _make_ready(self, env: str, packages: list[Package]) -> None:
        self._envs[env] = [package.uri for package in packages]
        for package in packages:  # all at once
            self._begin(package)
        for package in packages:
            await self._ready(package)
        async with self._noting:
            if env not in self._noted:
                try:
                    await self._run(self._files.note_env, env, self._envs[env])
                except PackageError as error:
                    raise RuntimeEnvError(f"the packages of a runtime environment: {error}") from None
                self._noted.add(env)

    async def _ready(self, package: Package) -> None:
        package.used = time.time()
        making = self._begin(package)
        if making is None:
            return
        try:
            await asyncio.shield(making)  # others wait for it as well: who stops waiting does not stop it
        except asyncio.CancelledError:
            if making.cancelled():
                raise RuntimeEnvError(_STOPPING) from None
            raise

    def _begin(self, package: Package) -> asyncio.Task[None] | None:
        if package.making is None and not package.extracted:
            if self._stopping:
                raise RuntimeEnvError(_STOPPING)
            package.making = asyncio.create_task(self._make(package), name=f"extract {package.uri}")
            package.making.add_done_callback(lambda task: self._made(package, task))
        return package.making

    def _made(self, package: Package, task: asyncio.Task[None]) -> None:
        package.making = None
        if not task.cancelled():
            task.exception()  # has been raised where somebody waited
        self._make_room()

    async def _make(self, package: Package) -> None:
        async with package.lock.writer:
            if package.extracted:
                return
            if not package.stored:
                await self._store(package, await self._fetch(package.uri))
            try:
                package.extracted = await self._run(self._files.extract, package.hash, self._limit)
            except PackageError as error:
                raise RuntimeEnvError(f"the package {package.uri}: {error}") from None
            except Stopped:
                raise RuntimeEnvError(_STOPPING) from None

    async def _fetch(self, uri: str) -> bytes:
        try:
            if self._load is None:
                raise LookupError(uri)
            return await self._load(uri)
        except LookupError:
            reason = "is not in this cluster (any more): connect again with init(), so that it is uploaded again"
        except Exception as error:
            reason = f"cannot be fetched: {type(error).__name__}: {error}; try again"
        raise RuntimeEnvError(f"the package {uri} {reason}")

    # ------------------------------------------------------------ eviction

    def _make_room(self) -> None:
        if self._evictor is not None or self._stopping:
            return
        if len(self._idle) > _REMEMBERED or self._next_victim() is not None:
            self._evictor = asyncio.create_task(self._evict(), name="evict packages")

    def _next_victim(self) -> Package | None:
        in_use = {uri for env in self._uses for uri in self._envs.get(env, ())}
        return pick_victim(self._packages.values(), in_use, self._limit, time.time())

    async def _evict(self) -> None:
        try:
            while len(self._idle) > _REMEMBERED:
                await self._forget(next(iter(self._idle)))
            while not self._stopping and (victim := self._next_victim()) is not None:
                async with victim.lock.writer:
                    if victim is self._next_victim():  # it may be in use by now
                        await self._remove(victim)
        except OSError as error:
            log.error("packages of runtime environments cannot be removed: %s", error)
        finally:
            # Not in a callback of the task: whoever comes before that would believe that somebody makes room.
            self._evictor = None

    async def _remove(self, victim: Package) -> None:
        what = "extracted package" if victim.extracted else "package"
        log.info("removing the %s %s: nobody uses it, and there is little room", what, victim.uri)
        if victim.extracted:
            size, victim.extracted = victim.extracted, 0
            await self._run(self._files.remove_extracted, victim.hash, size)
        else:
            victim.stored = 0
            await self._run(self._files.remove_package, victim.hash)

    async def _forget(self, env: str) -> None:
        del self._idle[env], self._envs[env]
        async with self._noting:
            if env in self._noted and env not in self._envs:
                self._noted.discard(env)
                await self._run(self._files.forget_env, env)

    async def _run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        assert self._threads is not None, "start() comes first"
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: call(*args, **kwargs))
