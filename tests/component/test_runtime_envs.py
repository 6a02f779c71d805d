"""Runtime environments on a node: stored, extracted once, kept while used, evicted, and whole after any end."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import random
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from harness.wait import wait_for

from noded.node.package_files import PackageFiles
from noded.node.runtime_envs import Package, RuntimeEnvError, RuntimeEnvs, pick_victim
from noded.runtime_env.prepared import Prepared, canonical, env_id

Make = Callable[..., Awaitable[RuntimeEnvs]]
LONG_AGO = 1_000_000.0
LITTLE = 10_000
"""Less than two packages need."""


def zipped(*entries: tuple[str | zipfile.ZipInfo, str]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in entries:
            archive.writestr(name, text)
    return out.getvalue()


def uri_of(data: bytes) -> str:
    return f"pkg://{hashlib.blake2b(data, digest_size=16).hexdigest()}.zip"


def package(text: str, size: int = 0) -> tuple[str, bytes]:
    """Its module `who` says `text`; on disk it has about `size` bytes."""
    filling = random.Random(text).randbytes(size // 2).hex()
    data = zipped(("who.py", text), ("sub/filling", filling))
    return uri_of(data), data


def many_files(count: int) -> tuple[str, bytes]:
    data = zipped(*((f"d{n % 100}/f{n}.txt", str(n)) for n in range(count)))
    return uri_of(data), data


def env(uri: str, **variables: str) -> str:
    return canonical({"working_dir": uri, "env_vars": variables})


def said(prepared: Prepared) -> str:
    return (Path(prepared.working_dir) / "who.py").read_text()


def drafts(directory: Path) -> list[Path]:
    return list(directory.glob("*/.*"))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "envs"


@pytest_asyncio.fixture
async def make(directory: Path) -> AsyncIterator[Make]:
    """Makes a started `RuntimeEnvs` over the same directory; stops it at the end."""
    made: list[RuntimeEnvs] = []

    async def make(load: Callable[[str], Awaitable[bytes]] | None = None, **options: Any) -> RuntimeEnvs:
        envs = RuntimeEnvs(directory, load, **options)
        made.append(envs)
        await envs.start()
        return envs

    yield make
    for envs in made:
        await envs.stop()
    assert not drafts(directory)


@pytest.fixture
def extractions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hash of every package that is extracted."""
    seen: list[str] = []
    extract = PackageFiles.extract

    def counted(self: PackageFiles, hash_: str, limit: int) -> int:
        seen.append(hash_)
        return extract(self, hash_, limit)

    monkeypatch.setattr(PackageFiles, "extract", counted)
    return seen


async def eventually(condition: Callable[[], bool], reason: str) -> None:
    await asyncio.to_thread(wait_for, condition, reason)


# --- storing and preparing -------------------------------------------------------------------------------


async def test_a_prepared_environment_has_its_files(make: Make) -> None:
    envs = await make()
    runnable = zipfile.ZipInfo("run.sh")
    runnable.create_system, runnable.external_attr = 3, (stat.S_IFREG | 0o755) << 16
    work = zipped(("main.py", "m = 1"), (runnable, "#!/bin/sh"), ("a/b/c.txt", "deep"), ("empty/", ""))
    module, other = package("module")[1], package("other")[1]
    for data in (work, module, other):
        await envs.store(uri_of(data), data)
        await envs.store(uri_of(data), data)
        assert envs.has(uri_of(data)) and await envs.read(uri_of(data)) == data
    fields = {"working_dir": uri_of(work), "py_modules": [uri_of(module), uri_of(other)], "env_vars": {"A": "$B"}}
    prepared = await envs.prepare(canonical({**fields, "worker_process_setup_hook": "main.setup"}))
    assert prepared.env_vars == {"A": "$B"} and prepared.setup_hook == "main.setup"
    first, second, directory = map(Path, prepared.sys_path)
    assert str(directory) == prepared.working_dir
    assert (first / "who.py").read_text() == "module" and (second / "who.py").read_text() == "other"
    assert (directory / "a/b/c.txt").read_text() == "deep" and (directory / "empty").is_dir()
    assert os.access(directory / "run.sh", os.X_OK) and not os.access(directory / "main.py", os.X_OK)


async def test_variables_alone_need_no_disk(make: Make, directory: Path) -> None:
    envs = await make()
    assert await envs.prepare("") == Prepared()
    assert await envs.prepare(canonical({"env_vars": {"A": "1"}})) == Prepared({"A": "1"})
    assert not list((directory / "envs").iterdir())


async def test_a_package_with_another_content_is_refused(make: Make) -> None:
    envs = await make()
    uri, data = package("x")
    with pytest.raises(RuntimeEnvError, match=f"{uri}.*content was changed"):
        await envs.store(uri, data + b"!")
    assert not envs.has(uri)
    for wrong in ("pkg://../../x.zip", "file:///etc/passwd", "/etc"):
        with pytest.raises(RuntimeEnvError, match="is no package"):
            await envs.store(wrong, data)
        with pytest.raises(RuntimeEnvError, match="is no package"):
            await envs.prepare(env(wrong))
    with pytest.raises(LookupError):
        await envs.read(uri)


async def test_a_package_that_is_not_here_is_fetched_or_named(make: Make) -> None:
    uri, data = package("fetched")
    gone, broken, _ = (package(name)[0] for name in ("gone", "broken", ""))

    async def load(wanted: str) -> bytes:
        if wanted == gone:
            raise LookupError(wanted)
        if wanted == broken:
            raise ConnectionError("node b does not answer")
        return data

    with pytest.raises(RuntimeEnvError, match=f"the package {uri} is not in this cluster.*connect again"):
        await (await make()).prepare(env(uri))
    envs = await make(load)
    with pytest.raises(RuntimeEnvError, match="connect again"):
        await envs.prepare(env(gone))
    with pytest.raises(RuntimeEnvError, match="ConnectionError: node b does not answer"):
        await envs.prepare(env(broken))
    assert said(await envs.prepare(env(uri))) == "fetched" and envs.has(uri)


# --- many at once ----------------------------------------------------------------------------------------


async def test_many_at_once_extract_once(make: Make, extractions: list[str]) -> None:
    envs = await make()
    uri, data = many_files(2000)
    await envs.store(uri, data)
    waiting = [asyncio.create_task(envs.prepare(env(uri, N=str(n)))) for n in range(100)]
    await asyncio.sleep(0)
    for task in waiting[::2]:
        task.cancel()
    done = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError) for each in done[::2])
    assert len({each.working_dir for each in done[1::2] if isinstance(each, Prepared)}) == 1
    assert len(extractions) == 1


async def test_an_extraction_that_failed_is_tried_again(make: Make) -> None:
    calls: list[str] = []
    uri, data = package("late")

    async def load(wanted: str) -> bytes:
        calls.append(wanted)
        if len(calls) == 1:
            raise ConnectionError("not yet")
        return data

    envs = await make(load)
    failed = await asyncio.gather(*(envs.prepare(env(uri)) for _ in range(10)), return_exceptions=True)
    assert all(isinstance(each, RuntimeEnvError) for each in failed) and len(calls) == 1
    assert said(await envs.prepare(env(uri))) == "late" and len(calls) == 2


async def test_a_timeout_is_told_and_ends_only_its_own_wait(make: Make) -> None:
    uri, data = package("slow")
    arrived = asyncio.Event()

    async def load(wanted: str) -> bytes:
        await arrived.wait()
        return data

    envs = await make(load)
    patient = asyncio.create_task(envs.prepare(env(uri)))
    with pytest.raises(RuntimeEnvError, match=r"setup_timeout_seconds \(1\)"):
        await envs.prepare(canonical({"working_dir": uri, "config": {"setup_timeout_seconds": 1}}))
    arrived.set()
    assert said(await patient) == "slow"


async def test_stop_ends_what_is_under_way(make: Make, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    go_on = PackageFiles._go_on

    def gated(self: PackageFiles) -> None:
        gate.wait(30)
        go_on(self)

    monkeypatch.setattr(PackageFiles, "_go_on", gated)
    uri, data = package("half")
    never = package("never")[0]

    async def load(wanted: str) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError

    envs = await make(load)
    await envs.store(uri, data)
    waiting = [asyncio.create_task(envs.prepare(env(each))) for each in (uri, never)]
    await eventually(lambda: bool(drafts(directory)), "the extraction does not begin")
    stopping = asyncio.create_task(envs.stop())
    await asyncio.sleep(0)
    gate.set()
    await asyncio.wait_for(stopping, 10)
    assert not drafts(directory) and not on_disk(directory)
    for task in waiting:
        with pytest.raises(RuntimeEnvError, match="is stopping"):
            await task
    with pytest.raises(RuntimeEnvError, match="is stopping"):
        await envs.prepare(env(never))


# --- refused ---------------------------------------------------------------------------------------------


def entry(name: str, kind: int = stat.S_IFREG) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (kind | 0o644) << 16
    return info


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ([("../../evil.txt", "x")], "'../../evil.txt' leads out"),
        ([("a/../../evil.txt", "x")], "leads out"),
        ([("/tmp/evil.txt", "x")], "leads out"),
        ([(entry("link", stat.S_IFLNK), "/etc"), ("link/evil.txt", "x")], "'link' is a symbolic link"),
        ([(entry("pipe", stat.S_IFIFO), "")], "neither a file nor a directory"),
        ([("a", "file"), ("a/b", "x")], "cannot be unpacked"),
        ([("zeros", "\0" * 2_000_000)], r"unpacks to 2,000,001 bytes.*1,000,000"),
    ],
)
async def test_what_reaches_out_is_refused_and_leaves_nothing(
    entries: list[Any], text: str, make: Make, directory: Path
) -> None:
    envs = await make(limit=1_000_000)
    data = zipped(("good.txt", "x"), *entries)
    await envs.store(uri_of(data), data)
    with pytest.raises(RuntimeEnvError, match=f"the package {uri_of(data)}: it .*{text}"):
        await envs.prepare(env(uri_of(data)))
    assert not list((directory / "extracted").iterdir())
    assert not list(directory.rglob("evil.txt")) and not (directory.parent / "evil.txt").exists()


async def test_damaged_packages_are_refused(make: Make) -> None:
    envs = await make()
    whole = package("x", 10_000)[1]
    for data in (b"no zip", whole[:-30], whole[:40] + bytes(100) + whole[140:]):
        await envs.store(uri_of(data), data)
        with pytest.raises(RuntimeEnvError, match="it is refused: it cannot be read as a zip file"):
            await envs.prepare(env(uri_of(data)))


FULL_DISK = """
    import asyncio, resource, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    from test_runtime_envs import *

    async def main():
        directory = Path(sys.argv[1])
        envs = RuntimeEnvs(directory)
        await envs.start()
        small, big = package("small"), package("big", 200_000)
        zeros = zipped(("zeros", "\\0" * 200_000))
        await envs.store(uri_of(zeros), zeros)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        for attempt, text in ((envs.store(*big), "stored"), (envs.prepare(env(uri_of(zeros))), "unpacked")):
            with pytest.raises(RuntimeEnvError, match=rf"cannot be {text}: .* at {directory} .*MB free\\): make room"):
                await attempt
        await envs.store(*small)
        assert said(await envs.prepare(env(small[0]))) == "small"
        assert not envs.has(big[0]) and not drafts(directory)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        await envs.store(*big)
        assert said(await envs.prepare(env(big[0]))) == "big"
        assert (await envs.prepare(env(uri_of(zeros)))).working_dir
        await envs.stop()

    asyncio.run(main())
"""


async def test_a_full_disk_is_told_with_the_place(directory: Path) -> None:
    # In a process of its own, because the limit on file sizes that stands for a full disk is the process's.
    here = Path(__file__).parent
    argv = [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(directory), str(here)]
    path = os.pathsep.join(map(str, (here.parents[1], here.parent)))
    done = await asyncio.to_thread(
        subprocess.run, argv, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


# --- eviction --------------------------------------------------------------------------------------------


def on_disk(directory: Path) -> set[str]:
    return {path.name.partition("-")[0] for path in (directory / "extracted").iterdir() if path.name[0] != "."}


def hashes(*uris: str) -> set[str]:
    return {uri[6:-4] for uri in uris}


def test_the_victim_is_what_was_unused_for_longest() -> None:
    old, new, busy, fresh = (Package(f"pkg://{n:032}.zip", 100, 100, float(n)) for n in range(4))
    everything = [new, old, busy, fresh]
    now, in_use = 10_000.0, {busy.uri}

    def pick(limit: int) -> Package | None:
        return pick_victim(everything, in_use, limit, now)

    assert pick(800) is None and pick(799) is old
    old.extracted = 0
    assert pick(600) is new
    new.extracted = fresh.extracted = 0
    fresh.used = now - 1
    assert pick(400) is old  # its zip
    old.stored = 0
    assert pick(300) is new
    new.stored = 0
    assert pick(1) is None  # in use, or just uploaded
    assert pick_victim(everything, set(), 1, now) is busy


async def test_unused_extractions_make_room_and_used_ones_stay(
    make: Make, directory: Path, extractions: list[str]
) -> None:
    envs = await make(limit=700_000)
    (a, _), (b, _), (c, _) = packages = [package(name, 200_000) for name in "abc"]
    for each in packages:
        await envs.store(*each)
    for uri in (a, b):
        envs.acquire(env_id(env(uri)))
        await envs.prepare(env(uri))
    envs.release(env_id(env(b)))
    envs.acquire(env_id(env(c)))
    await envs.prepare(env(c))
    await eventually(lambda: on_disk(directory) == hashes(a, c), "the unused package is not removed")
    # Everything is in use: over the limit is better than under a worker's feet.
    envs.acquire(env_id(env(b)))
    assert said(await envs.prepare(env(b))) == "b"
    await asyncio.sleep(0)
    assert on_disk(directory) == hashes(a, b, c)
    envs.release(env_id(env(a)))
    await eventually(lambda: on_disk(directory) == hashes(b, c), "what was released is not removed")
    assert all(envs.has(uri) for uri in (a, b, c))
    assert extractions == [*(uri[6:-4] for uri in (a, b, c, b))]
    with pytest.raises(ValueError, match="released more often"):
        envs.release(env_id(env(a)))


async def test_two_environments_share_a_package(make: Make, directory: Path) -> None:
    envs = await make(limit=LITTLE)
    uri, data = package("shared")
    await envs.store(uri, data)
    ids = []
    for number in "12":
        resolved = env(uri, N=number)
        ids.append(env_id(resolved))
        envs.acquire(ids[-1])
        await envs.prepare(resolved)
    envs.release(ids[0])
    await asyncio.sleep(0)
    assert on_disk(directory) == hashes(uri)
    envs.release(ids[1])
    await eventually(lambda: not on_disk(directory), "the package is not removed")


async def test_old_zips_go_last(make: Make, directory: Path) -> None:
    first = await make()
    old, new = package("old"), package("new")
    for each in (old, new):
        await first.store(*each)
    await first.stop()
    os.utime(directory / "packages" / f"{old[0][6:-4]}.zip", (LONG_AGO, LONG_AGO))
    second = await make(limit=LITTLE)
    await second.prepare(env(new[0]))
    await eventually(lambda: not second.has(old[0]), "the old zip stays")
    await eventually(lambda: not on_disk(directory), "the extraction stays")
    assert second.has(new[0])  # has come just now
    with pytest.raises(RuntimeEnvError, match="connect again"):
        await second.prepare(env(old[0]))


class Gate:
    """Holds up a method of PackageFiles in its thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        method = getattr(PackageFiles, name)

        def gated(files: PackageFiles, *args: Any) -> Any:
            self.reached.set()
            self.open.wait(30)
            return method(files, *args)

        monkeypatch.setattr(PackageFiles, name, gated)


async def turns() -> None:
    """Enough of the loop's turns for all that does not wait for somebody."""
    for _ in range(20):
        await asyncio.sleep(0.001)


async def test_what_is_on_its_way_out_is_awaited_and_made_again(
    make: Make, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    envs = await make(limit=LITTLE)
    gate = Gate(monkeypatch, "remove_extracted")
    uri, data = package("again")
    await envs.store(uri, data)
    await envs.prepare(env(uri))
    await eventually(gate.reached.is_set, "the package is not evicted")
    envs.acquire(env_id(env(uri)))
    again = asyncio.create_task(envs.prepare(env(uri)))
    await turns()
    assert not again.done()
    gate.open.set()
    assert said(await again) == "again"
    await turns()
    assert on_disk(directory) == hashes(uri)


async def test_a_package_that_is_read_is_not_removed_meanwhile(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    envs = await make(limit=LITTLE)
    gate = Gate(monkeypatch, "read")
    uri, data = package("read", 50_000)
    await envs.store(uri, data)
    reader = asyncio.create_task(envs.read(uri))
    await eventually(gate.reached.is_set, "nobody reads")
    monkeypatch.setattr("noded.node.runtime_envs._FRESH", -1.0)
    await envs.store(*package("new"))
    await turns()
    assert envs.has(uri)
    gate.open.set()
    assert await reader == data
    await eventually(lambda: not envs.has(uri), "the package is not removed after it was read")


async def test_a_release_right_after_the_evictor_was_done_is_seen(
    make: Make, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    envs = await make(limit=60_000)
    ids = []
    for name in "ab":
        uri, data = package(name, 50_000)
        await envs.store(uri, data)
        ids.append(env_id(env(uri)))
        envs.acquire(ids[-1])
        await envs.prepare(env(uri))
    next_victim = envs._next_victim

    def spied() -> Package | None:
        victim = next_victim()
        if victim is None and len(ids) == 1:  # the evictor's last look: its task ends in this turn
            asyncio.get_running_loop().call_soon(envs.release, ids.pop())
        return victim

    monkeypatch.setattr(envs, "_next_victim", spied)
    envs.release(ids.pop())
    await eventually(lambda: not on_disk(directory), "what was released at that moment stays")
    assert not ids


async def test_use_and_eviction_at_the_same_time(make: Make, directory: Path) -> None:
    envs = await make(limit=300_000)
    packages = [package(str(n), 50_000) for n in range(6)]
    for each in packages:
        await envs.store(*each)
    chance = random.Random(1)

    async def worker() -> None:
        for _ in range(20):
            number = chance.randrange(len(packages))
            resolved = env(packages[number][0], N=str(chance.randrange(3)))
            envs.acquire(env_id(resolved))
            try:
                prepared = await envs.prepare(resolved)
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0.001)
                    assert said(prepared) == str(number)
                    assert len((Path(prepared.working_dir) / "sub/filling").read_text()) == 50_000
            finally:
                envs.release(env_id(resolved))

    await asyncio.gather(*(worker() for _ in range(8)))
    zips = sum(path.stat().st_blocks * 512 for path in (directory / "packages").iterdir())

    def size() -> int:
        return zips + sum(int(path.name.partition("-")[2]) for path in (directory / "extracted").glob("[!.]*"))

    await eventually(lambda: size() <= max(300_000, zips), "more stays than there is room for")


async def test_environments_nobody_uses_are_forgotten_in_time(
    make: Make, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("noded.node.runtime_envs._REMEMBERED", 5)
    envs = await make()
    uri, data = package("one")
    await envs.store(uri, data)
    for number in range(20):
        await envs.prepare(env(uri, N=str(number)))
    await eventually(lambda: len(list((directory / "envs").iterdir())) <= 5, "notes of unused environments stay")


# --- after an end ----------------------------------------------------------------------------------------


async def test_what_is_extracted_is_found_again_and_protected(
    make: Make, directory: Path, extractions: list[str]
) -> None:
    first = await make()
    (a, _), (b, _) = packages = [package(name, 200_000) for name in "ab"]
    for each in packages:
        await first.store(*each)
        await first.prepare(env(each[0]))
    await first.stop()
    second = await make(limit=LITTLE)
    second.acquire(env_id(env(a)))  # a worker that lived on
    second.acquire(env_id(env(b)))
    second.release(env_id(env(b)))
    await eventually(lambda: on_disk(directory) == hashes(a), "the unused package stays")
    assert said(await second.prepare(env(a))) == "a"
    assert len(extractions) == 2


KILLED = """
    import asyncio, sys
    from pathlib import Path
    from noded.node.runtime_envs import RuntimeEnvs

    async def main():
        envs = RuntimeEnvs(Path(sys.argv[1]))
        await envs.start()
        data = Path(sys.argv[2]).read_bytes()
        await envs.store(sys.argv[3], data)
        await envs.prepare(sys.argv[4])

    asyncio.run(main())
"""


async def test_a_kill_in_the_middle_leaves_nothing_half(make: Make, directory: Path, tmp_path: Path) -> None:
    uri, data = many_files(6_000)
    (tmp_path / "data.zip").write_bytes(data)
    argv = [sys.executable, "-c", textwrap.dedent(KILLED), str(directory), str(tmp_path / "data.zip"), uri, env(uri)]

    def kill_while_it_extracts() -> None:
        with subprocess.Popen(argv) as process:
            wait_for(lambda: list((directory / "extracted").glob(".*/d*")), "the extraction does not begin", 60)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL

    await asyncio.to_thread(kill_while_it_extracts)
    assert drafts(directory) and not on_disk(directory)
    (directory / "packages" / ".unfinished").write_bytes(b"half")
    envs = await make()
    assert not drafts(directory) and envs.has(uri)
    prepared = await envs.prepare(env(uri))
    found = list(Path(prepared.working_dir).rglob("*.txt"))
    assert len(found) == 6_000 and all(path.stem == f"f{path.read_text()}" for path in found[::100])


async def test_extractions_of_an_earlier_boot_are_not_trusted(make: Make, directory: Path) -> None:
    uri, data = package("x")
    first = await make()
    await first.store(uri, data)
    prepared = await first.prepare(env(uri))
    await first.stop()
    (Path(prepared.working_dir) / "who.py").write_text("")  # as a crash of the machine may leave it
    (directory / "boot").write_text("another boot")
    (directory / "envs" / "0123456789abcdef").write_text('["pkg://')
    second = await make()
    assert said(await second.prepare(env(uri))) == "x"
    assert not (directory / "envs" / "0123456789abcdef").exists()


async def test_who_asks_before_the_disk_is_known_waits(make: Make, directory: Path) -> None:
    uri, data = package("early")
    first = await make()
    await first.store(uri, data)
    await first.stop()
    second = RuntimeEnvs(directory)
    early = asyncio.create_task(second.prepare(env(uri)))
    await asyncio.sleep(0)
    await second.start()
    assert said(await early) == "early"
    await second.stop()


async def test_a_directory_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    envs = RuntimeEnvs(tmp_path / "file" / "envs")
    with pytest.raises(RuntimeEnvError, match=r"no place for packages.*file"):
        await envs.start()
    await envs.stop()
    await RuntimeEnvs(tmp_path / "never-started").stop()
