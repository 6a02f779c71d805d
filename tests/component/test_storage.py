"""The head's storage: all backends keep one contract, and SQLite keeps it through kill -9.

What is Redis's alone is in test_storage_redis.py.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from harness.redis import Server, redis_storage
from harness.wait import wait_for

from noded.head.storage import Delete, Op, Put, Storage, StorageError, Superseded
from noded.head.storage.memory import MemoryData, MemoryStorage
from noded.head.storage.sqlite import SCHEMA_VERSION, SqliteStorage, _Database

pytestmark = pytest.mark.asyncio

Opener = Callable[..., Storage]


@pytest_asyncio.fixture(params=["memory", "sqlite", "sqlite-not-durable", "redis", "redis-cluster"])
async def opener(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Opener]:
    """Makes storages over the same data; closes them at the end."""
    made: list[Storage] = []
    data = MemoryData()
    with ExitStack() as stack:
        server: Server | None = None
        if request.param == "redis":
            server = stack.enter_context(Server(tmp_path / "redis", persistent=False))
        elif request.param == "redis-cluster":
            server = stack.enter_context(Server(tmp_path / "redis", "--cluster-enabled", "yes", persistent=False))
            server.call("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            wait_for(lambda: "cluster_state:ok" in server.call("CLUSTER", "INFO"), "the cluster is not ready")

        def make(namespace: str = "default") -> Storage:
            storage: Storage
            if server is not None:
                storage = redis_storage(server, tmp_path, namespace)
            elif request.param == "memory":
                storage = MemoryStorage(namespace, data)
            else:
                storage = SqliteStorage(tmp_path / "head.db", namespace, durable=request.param == "sqlite")
            made.append(storage)
            return storage

        yield make
        for storage in made:
            await storage.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "noded-storage"]


async def test_round_trip_and_next_epoch(opener: Opener) -> None:
    first = opener()
    assert first.epoch == 0
    assert await first.open() == first.epoch == 1
    await first.write([Put("actors", "a", b"1"), Put("actors", "b", b"\0\xff"), Put("jobs", "a", b"")])
    await first.write([Put("actors", "a", b"2"), Delete("actors", "b"), Delete("actors", "never")])
    await first.write([Put("actors", "c", b"gone"), Delete("actors", "c")])
    await first.write([])
    assert await first.load("actors") == {"a": b"2"}
    await first.close()
    second = opener()
    assert await second.open() == 2
    assert await second.load("actors") == {"a": b"2"}
    assert await second.load("jobs") == {"a": b""}
    assert await second.load("nothing") == {}


async def test_namespaces_do_not_see_or_fence_each_other(opener: Opener) -> None:
    one, two = opener("one"), opener("two")
    assert await one.open() == 1
    assert await two.open() == 1
    await one.write([Put("t", "k", b"one")])
    await two.write([Put("t", "k", b"two")])
    await one.write([Delete("t", "k")])
    assert (await one.load("t"), await two.load("t")) == ({}, {"k": b"two"})


async def test_an_older_opener_is_superseded(opener: Opener) -> None:
    old, new = opener(), opener()
    await old.open()
    await old.write([Put("t", "k", b"old")])
    await new.open()
    for ops in ([Put("t", "k", b"late")], [Delete("t", "k")], []):
        with pytest.raises(Superseded, match="must exit") as caught:
            await old.write(ops)
        assert (caught.value.epoch, caught.value.current) == (1, 2)
    assert await new.load("t") == {"k": b"old"}
    await new.write([Put("t", "k", b"new")])
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.current) == (str(caught.value), 2)


async def test_a_malformed_batch_changes_nothing(opener: Opener) -> None:
    storage = opener()
    await storage.open()
    bad: list[object] = [("t", "k"), Put("t", "k", "text"), Put("t", 5, b""), Delete(None, "k")]  # type: ignore[arg-type]
    for op in bad:
        with pytest.raises(TypeError):
            await storage.write([Put("t", "good", b""), op])  # type: ignore[list-item]
    assert await storage.load("t") == {}


async def test_use_out_of_order_is_an_error_and_close_is_always_safe(opener: Opener) -> None:
    storage = opener()
    with pytest.raises(StorageError, match="call open"):
        await storage.write([])
    with pytest.raises(StorageError, match="call open"):
        await storage.load("t")
    await storage.open()
    with pytest.raises(StorageError):
        await storage.open()
    await storage.close()
    await storage.close()
    with pytest.raises(StorageError, match="call open"):
        await storage.write([Put("t", "k", b"")])
    await opener().close()


async def test_concurrent_writes_all_count_in_the_order_of_the_calls(opener: Opener) -> None:
    storage = opener()
    await storage.open()
    writes = [storage.write([Put("t", str(n), b"x"), Put("t", "last", b"%d" % n)]) for n in range(1000)]
    await asyncio.gather(*writes)
    records = await storage.load("t")
    assert len(records) == 1001
    assert records["last"] == b"999"


async def test_a_load_sees_the_writes_called_before_it(opener: Opener) -> None:
    storage = opener()
    await storage.open()
    for n in range(20):
        write = asyncio.ensure_future(storage.write([Put("t", "k", b"%d" % n)]))
        loaded = asyncio.ensure_future(storage.load("t"))
        assert await loaded == {"k": b"%d" % n}
        await write


async def test_the_callers_list_may_change_after_the_call(opener: Opener) -> None:
    storage = opener()
    await storage.open()
    ops: list[Op] = [Put("t", "k", b"x")]
    write = asyncio.ensure_future(storage.write(ops))
    await asyncio.sleep(0)
    ops.clear()
    await write
    assert await storage.load("t") == {"k": b"x"}


async def test_close_finishes_the_writes_under_way(opener: Opener) -> None:
    storage = opener()
    await storage.open()
    writes = [asyncio.ensure_future(storage.write([Put("t", str(n), b"x")])) for n in range(100)]
    await asyncio.sleep(0)
    await storage.close()
    await asyncio.gather(*writes)
    again = opener()
    await again.open()
    assert len(await again.load("t")) == 100


async def test_group_commit(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path / "head.db")
    await storage.open()
    await asyncio.gather(*(storage.write([Put("t", str(n), b"x")]) for n in range(1000)))
    assert len(await storage.load("t")) == 1000
    assert storage.commits < 50
    await storage.close()


async def test_a_batch_that_sqlite_refuses_takes_no_other_with_it(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path / "head.db")
    await storage.open()
    good, bad, after = await asyncio.gather(
        storage.write([Put("t", "good", b"")]),
        storage.write([Put("t", "half", b""), Delete("t", "good"), Put("t", "\ud800", b"")]),
        storage.write([Put("t", "after", b"")]),
        return_exceptions=True,
    )
    assert good is None
    assert after is None
    assert isinstance(bad, StorageError)
    assert await storage.load("t") == {"good": b"", "after": b""}
    with pytest.raises(StorageError, match="load of table"):
        await storage.load("\ud800")
    await storage.close()


FULL_DISK = """
    import asyncio, resource, sys
    from noded.head.storage import Health, Put, StorageError
    from noded.head.storage.sqlite import SqliteStorage

    async def main():
        storage = SqliteStorage(sys.argv[1])
        await storage.open()
        await storage.write([Put("t", "k", b"before")])
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        writes = [storage.write([Put("t", "k", b"x"), Put("t", str(n), bytes(200_000))]) for n in range(3)]
        waiting = asyncio.gather(*writes, storage.write([Put("t", "k", b"after")]))
        while storage.health.degraded_since is None:
            await asyncio.sleep(0.01)
        assert "has room" in storage.health.why and storage.health.waiting == 4, storage.health
        assert not waiting.done() and storage.ending.error is None
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        await waiting
        assert storage.health == Health("sqlite")
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        last = asyncio.ensure_future(storage.write([Put("t", "k", bytes(200_000))]))
        await asyncio.sleep(0)
        await storage.close()  # who closes it does not wait for room
        assert isinstance(last.exception(), StorageError), last

    asyncio.run(main())
"""


async def test_no_room_is_a_state_and_loses_nothing(tmp_path: Path) -> None:
    # In a process of its own, because the limit on file sizes that stands for a full disk is the process's.
    path = tmp_path / "head.db"
    await run_child(FULL_DISK, str(path))
    storage = SqliteStorage(path)
    await storage.open()
    assert await storage.load("t") == {"k": b"after", **{str(n): bytes(200_000) for n in range(3)}}
    await storage.close()


async def test_a_damaged_file_is_an_error_and_the_end(tmp_path: Path) -> None:
    path = tmp_path / "head.db"
    storage = SqliteStorage(path)
    await storage.open()
    await storage.write([Put("t", str(n), bytes(5_000)) for n in range(50)])
    await storage.close()
    storage = SqliteStorage(path)
    await storage.open()
    with path.open("r+b") as file:  # all pages but the first
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    with pytest.raises(StorageError, match=r"is damaged: .*restore the file"):
        for n in range(50):  # what is in its cache may be written yet
            await storage.write([Put("t", str(n), b"x")])
    assert isinstance(await storage.ending.wait(), StorageError)
    await storage.close()


async def test_a_cancelled_write_does_not_disturb_the_others(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path / "head.db")
    await storage.open()
    writes = [asyncio.ensure_future(storage.write([Put("t", str(n), b"x")])) for n in range(10)]
    await asyncio.sleep(0)
    writes[3].cancel()
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert [n for n, outcome in enumerate(outcomes) if outcome is not None] == [3]
    await storage.close()


async def test_a_newer_schema_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "head.db"
    storage = SqliteStorage(path)
    await storage.open()
    await storage.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE meta SET value = ? WHERE namespace = '' AND key = 'schema'", (SCHEMA_VERSION + 1,))
    connection.close()
    late = SqliteStorage(path)
    with pytest.raises(StorageError, match=r"has schema 2, this noded reads schema 1.*move the file aside"):
        await late.open()
    with pytest.raises(StorageError, match="not open"):
        await late.write([])
    await late.close()


async def test_files_that_cannot_be_opened_say_which_and_why(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.db"
    garbage.write_bytes(b"not a database " * 100)
    for path, why in (
        (garbage, "not a database"),
        (garbage / "head.db", "head.db"),
        (tmp_path, "unable to open"),
    ):
        storage = SqliteStorage(path)
        with pytest.raises(StorageError, match=why) as caught:
            await storage.open()
        assert str(path) in str(caught.value)
        await storage.close()


async def test_the_files_are_private(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "head.db"
    storage = SqliteStorage(path)
    await storage.open()
    await storage.write([Put("t", "k", b"secret")])
    files = list(path.parent.iterdir())
    assert {file.name for file in files} >= {"head.db", "head.db-wal"}
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)
    await storage.close()


@pytest.mark.parametrize(("durable", "synchronous"), [(True, 2), (False, 0)])
async def test_durable_means_a_sync_at_every_commit(tmp_path: Path, durable: bool, synchronous: int) -> None:
    database = _Database(str(tmp_path / "head.db"), "default", durable)
    database.open()
    assert database._connection is not None
    assert database._connection.execute("PRAGMA synchronous").fetchone() == (synchronous,)
    assert database._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    database.close()


# Ten times, because it is a race: SQLite's own wait does not cover the first openers of a new file.
@pytest.mark.parametrize("attempt", range(10))
async def test_many_openers_at_once_take_different_epochs(tmp_path: Path, attempt: int) -> None:
    storages = [SqliteStorage(tmp_path / "head.db") for _ in range(8)]
    epochs = await asyncio.gather(*(storage.open() for storage in storages))
    assert sorted(epochs) == list(range(1, 9))
    writes = [storage.write([Put("t", "k", b"%d" % storage.epoch)]) for storage in storages]
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert [epoch for epoch, outcome in zip(epochs, outcomes, strict=True) if outcome is None] == [8]
    for storage in storages:
        await storage.close()


async def test_sqlite_is_loaded_only_when_used() -> None:
    await run_child("""
        import sys, noded.head.storage.sqlite
        noded.head.storage.sqlite.SqliteStorage("x")
        assert "sqlite3" not in sys.modules and "_sqlite3" not in sys.modules
    """)


WRITER = """
    import asyncio, os, sys
    from noded.head.storage import Delete, Put
    from noded.head.storage.sqlite import SqliteStorage

    async def main():
        storage = SqliteStorage(sys.argv[1])
        await storage.open()
        number = int(sys.argv[2])
        while True:
            batches = []
            for _ in range(4):
                number += 1
                value = b"%d" % number
                batches.append(storage.write([
                    Put("left", str(number), value), Put("right", str(number), value),
                    Put("now", "left", value), Delete("left", str(number - 40)), Put("now", "right", value),
                ]))
            await asyncio.gather(*batches)
            os.write(1, b"%d\\n" % number)

    asyncio.run(main())
"""


def child_env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


async def run_child(code: str, *arguments: str) -> None:
    """Run Python code in a process of its own; fails when it fails."""
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    await asyncio.to_thread(subprocess.run, command, env=child_env(), check=True, timeout=30)


def write_until_killed(path: Path, number: int, acks: int) -> int:
    """Run a writer, SIGKILL it after that many acknowledgements; the last number it acknowledged."""
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(path), str(number)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=child_env()) as child:
        assert child.stdout is not None
        watchdog = threading.Timer(20, child.kill)
        watchdog.start()
        try:
            lines = [child.stdout.readline() for _ in range(acks)]
            assert all(lines), "the writer ended by itself, or hung for 20 s"
        finally:
            child.send_signal(signal.SIGKILL)
            watchdog.cancel()
        # Acknowledgements that were under way count too; the kill may have cut the last line.
        lines += [line for line in child.stdout.read().splitlines(keepends=True) if line.endswith(b"\n")]
        return int(lines[-1])


async def test_kill_9_loses_no_acknowledged_batch_and_tears_none(tmp_path: Path) -> None:
    rng = random.Random(5)
    path, number = tmp_path / "head.db", 0
    for round_number in range(1, 9):
        acked = await asyncio.to_thread(write_until_killed, path, number, rng.randint(1, 12))
        storage = SqliteStorage(path)
        assert await storage.open() == 2 * round_number
        now, left, right = [await storage.load(table) for table in ("now", "left", "right")]
        await storage.close()
        assert now["left"] == now["right"], "a batch is torn"
        number = int(now["left"])
        assert acked <= number <= acked + 4, "an acknowledged batch is lost"
        assert set(right) == {str(n) for n in range(1, number + 1)}
        assert set(left) == {str(n) for n in range(max(number - 39, 1), number + 1)}, "a batch is torn"
