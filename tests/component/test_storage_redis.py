"""The storage in Redis beside the contract of all storages: outages, a server that is behind, journals, purging.

The servers are real, and so are their faults.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from harness.certs import Authority
from harness.redis import SentinelTrio, Server, free_port, redis_storage
from harness.wait import wait_for

from noded.config import redis_url
from noded.head.storage import Delete, Health, Put, StorageError, Superseded
from noded.head.storage import redis_scripts as scripts
from noded.head.storage.journal import Entry, Journal, Owner, read
from noded.head.storage.purge import purge_redis
from noded.head.storage.redis import RedisStorage
from noded.head.storage.redis_link import Access, connect
from noded.head.storage.redis_scripts import Keys

pytestmark = pytest.mark.asyncio

KEYS = Keys("default")
Opener = Callable[..., RedisStorage]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "redis") as started:
        yield started


@pytest_asyncio.fixture
async def opener(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Opener]:
    """Makes storages on the test's server; closes them at the end. `host`: journals are per host."""
    made: list[RedisStorage] = []

    def make(namespace: str = "default", *, on: Server | SentinelTrio | None = None, host: str = "a") -> RedisStorage:
        on = on if on is not None else request.getfixturevalue("server")
        made.append(redis_storage(on, tmp_path / host, namespace))
        return made[-1]

    yield make
    for storage in made:
        await storage.close()


async def until(condition: Callable[[], object], reason: str, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain: {reason}"
        await asyncio.sleep(0.01)


async def is_degraded(storage: RedisStorage) -> None:
    await until(lambda: storage.health.degraded_since, "it does not notice that Redis is away")


async def is_well(storage: RedisStorage) -> None:
    await until(lambda: storage.health == Health("redis"), f"it does not recover: {storage.health}")


def stored(server: Server, table: str = "t", keys: Keys = KEYS) -> dict[str, str]:
    found: dict[str, str] = server.call("HGETALL", keys.table(table))
    return found


def kill_as_9(storage: RedisStorage) -> None:
    """Let go of it as a killed process does: nothing is finished, nothing is given back."""
    for task in storage._tasks:
        task.cancel()
    storage._tasks.clear()
    storage._journal.close()


async def test_what_lies_where(server: Server, opener: Opener) -> None:
    storage = opener("one")
    await storage.open()
    await storage.write([Put("jobs", "a", b"1"), Put("nodes", "b", b"2")])
    await until(lambda: server.call("EXISTS", Keys("one").lease), "there is no lease")
    assert sorted(server.call("KEYS", "*")) == [
        "noded:{one}:lease",
        "noded:{one}:meta",
        "noded:{one}:t:jobs",
        "noded:{one}:t:nodes",
    ]
    host, pid, at = server.call("GET", Keys("one").lease).split()
    assert (host, pid) == (os.uname().nodename, str(os.getpid())) and abs(int(at) - time.time()) < 60
    assert 0 < server.call("PTTL", Keys("one").lease) <= scripts.LEASE_MS
    await storage.close()
    assert not server.call("EXISTS", Keys("one").lease), "who ends gives its lease back"


async def test_group_commit(server: Server, opener: Opener) -> None:
    storage = opener()
    await storage.open()
    before = server.call("INFO", "commandstats")["cmdstat_evalsha"]["calls"]
    await asyncio.gather(*(storage.write([Put("t", str(n), b"x")]) for n in range(1000)))
    assert server.call("INFO", "commandstats")["cmdstat_evalsha"]["calls"] - before < 20
    assert len(stored(server)) == 1000


async def test_a_lost_reply_is_harmless_and_scripts_are_loaded_again(server: Server, opener: Opener) -> None:
    storage = opener()
    await storage.open()
    for n in range(60):
        writes = [storage.write([Put("t", "k", b"%d" % (3 * n + i)), Put("t", str(3 * n + i), b"")]) for i in range(3)]
        waiting = asyncio.gather(*writes)
        await asyncio.sleep(0)
        server.call("CLIENT", "KILL", "TYPE", "normal")
        if n % 20 == 0:
            server.call("SCRIPT", "FLUSH")
        await waiting
    await is_well(storage)
    assert stored(server) == {"k": "179", **{str(n): "" for n in range(180)}}
    assert server.call("HGET", KEYS.meta, "seq") == "180"


async def test_the_script_is_the_fence(server: Server) -> None:
    connection = await connect(Access(redis_url.parse(server.url)))

    async def write(epoch: int, owner: str, first: int, *values: str) -> tuple[int, int]:
        ops = [x for value in values for x in (1, 2, "k", "1", value)]
        return await connection.run(
            scripts.WRITE, [KEYS.meta, KEYS.table("t")], [epoch, owner, first, len(values), "t", *ops]
        )

    try:
        assert await write(1, "me", 1, "a") == (scripts.BEHIND, 0), "there is no epoch"
        assert await connection.run(scripts.TAKE, [KEYS.meta], [1, "me"]) == (scripts.DONE, 1)
        assert await write(1, "me", 1, "a", "b") == (scripts.DONE, 2)
        assert await write(1, "me", 1, "a", "b") == (scripts.DONE, 2), "sent again"
        assert await write(1, "me", 2, "not again", "c") == (scripts.DONE, 3)
        assert await write(1, "me", 3, "not again") == (scripts.DONE, 3)
        assert stored(server) == {"k": "c"}
        assert await write(1, "me", 5, "x") == (scripts.BEHIND, 3), "a batch is missing between"
        assert await write(2, "me", 4, "x") == (scripts.BEHIND, 3), "the stored epoch is older"
        assert await write(1, "other", 4, "x") == (scripts.SUPERSEDED, 1)
        await connection.run(scripts.TAKE, [KEYS.meta], [1, "other"])
        assert await write(1, "me", 4, "x") == (scripts.SUPERSEDED, 2)
        for script, keys, arguments in (
            (scripts.LEASE, [KEYS.meta, KEYS.lease], [1, "me", 0, "v", 1000]),
            (scripts.REPLACE, [KEYS.meta], [1, "me", 9, KEYS.table(""), 1]),
            (scripts.RELEASE, [KEYS.meta, KEYS.lease], [1, "me"]),
        ):
            assert await connection.run(script, keys, arguments) == (scripts.SUPERSEDED, 2)
        assert stored(server) == {"k": "c"}
    finally:
        await connection.close()


async def test_a_newer_head_is_noticed_without_a_write(opener: Opener) -> None:
    old, new = opener(), opener(host="b")
    await old.open()
    await new.open()
    error = await asyncio.wait_for(old.ending.wait(), 5)
    assert isinstance(error, Superseded) and (error.epoch, error.current) == (1, 2)
    assert new.ending.error is None


async def test_a_stopped_redis_is_a_state(
    server: Server, opener: Opener, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = opener()
    await storage.open()
    await storage.write([Put("t", "before", b"")])
    server.signal(signal.SIGSTOP)
    await storage.write([Put("t", "during", b"1"), Delete("t", "before")])
    await storage.write([Put("t", "during", b"2")])
    assert storage.health.journalled == 2 and "does not answer" in storage.health.why
    found = read(tmp_path / "a" / "journal-default")
    assert found is not None and [entry.seq for entry in found.entries] == [2, 3], "it is durable on this host"
    assert (tmp_path / "a" / "journal-default").stat().st_mode & 0o077 == 0
    assert await storage.load("t") == {"during": b"2"}
    server.signal(signal.SIGCONT)
    await is_well(storage)
    assert stored(server) == {"during": "2"}
    assert not (tmp_path / "a" / "journal-default").exists()
    said = [r.getMessage() for r in caplog.records if r.name == "noded.storage" and r.levelno >= logging.WARNING]
    assert len(said) == 2 and "degraded" in said[0] and "2 writes of the journal are there now" in said[1], said


@pytest.mark.parametrize("empty", [False, True], ids=["with its data", "empty"])
async def test_a_redis_that_was_killed(server: Server, opener: Opener, empty: bool) -> None:
    storage = opener()
    await storage.open()
    await asyncio.gather(*(storage.write([Put("t", str(n), b"x")]) for n in range(3_000)))
    await storage.write([Put("gone", "k", b""), Put("other", "k", b"")])
    await storage.write([Delete("gone", "k")])
    server.kill9()
    await is_degraded(storage)
    await asyncio.gather(*(storage.write([Put("t", str(n), b"y")]) for n in range(2_900, 3_100)))
    assert storage.health.journalled == 200
    server.restart(empty=empty)
    await is_well(storage)
    assert stored(server) == {str(n): "x" if n < 2_900 else "y" for n in range(3_100)}
    assert (stored(server, "gone"), stored(server, "other")) == ({}, {"k": ""})
    assert server.call("TTL", KEYS.table("t")) == -1, "a draft's end is taken off"
    assert not [key for key in server.call("KEYS", "*") if ":new:" in key]
    again = opener(host="b")
    assert await again.open() == 2
    assert len(await again.load("t")) == 3_100


async def test_flushed_without_an_outage(server: Server, opener: Opener) -> None:
    storage = opener()
    await storage.open()
    await storage.write([Put("t", "k", b"v")])
    server.call("FLUSHALL")
    await until(lambda: stored(server) == {"k": "v"}, "the lease does not notice that Redis is empty")
    await is_well(storage)
    server.call("FLUSHALL")
    await storage.write([Put("t", "l", b"w")])
    await until(lambda: stored(server) == {"k": "v", "l": "w"}, "a write does not notice that Redis is empty")


async def test_what_an_older_copy_had_more_is_gone_after_the_rewrite(server: Server, opener: Opener) -> None:
    storage = opener()
    await storage.open()
    await storage.write([Put("t", "k", b"v")])
    server.call("HSET", KEYS.meta, "seq", 0, "table:old", 1)
    server.call("HSET", KEYS.table("old"), "k", "v")
    server.call("HSET", KEYS.table("t"), "stray", "v")
    await storage.write([Put("t", "l", b"w")])
    await until(lambda: stored(server) == {"k": "v", "l": "w"}, "it is not written anew")
    assert stored(server, "old") == {}


async def test_the_rewrite_is_all_or_nothing(server: Server, opener: Opener) -> None:
    """A reader sees the tables of before, none, or all of now, while it is interrupted again and again."""
    storage = opener()
    await storage.open()
    await asyncio.gather(*(storage.write([Put(table, str(n), b"x" * 200)]) for n in range(5_000) for table in "ab"))
    await is_well(storage)  # also where the machine was so busy that some of it went to the journal
    seen: set[tuple[int, int]] = set()
    ended = threading.Event()

    def watch() -> None:
        with server.client() as asked:
            while not ended.is_set():
                with asked.pipeline(transaction=True) as both:
                    seen.add(tuple(both.hlen(KEYS.table("a")).hlen(KEYS.table("b")).execute()))

    def disturb() -> None:
        for _ in range(10):
            time.sleep(0.02)
            if id_ := _client_id(server):
                server.call("CLIENT", "KILL", "ID", id_)

    watcher = asyncio.get_running_loop().run_in_executor(None, watch)
    try:
        for _ in range(2):
            server.call("FLUSHALL")
            await asyncio.to_thread(disturb)
            await until(lambda: len(stored(server, "b")) == 5_000, "it is not written anew")
            await is_well(storage)
    finally:
        ended.set()
        await watcher
    assert seen == {(0, 0), (5_000, 5_000)}


def _client_id(server: Server) -> int:
    """Of the storage's connection, if it has one now: others are left alone."""
    with server.client() as asked:
        mine = [c for c in asked.client_list() if c["cmd"] in ("hset", "expire", "evalsha", "unlink", "info")]
    return int(mine[0]["id"]) if mine else 0


async def test_no_memory_and_read_only_are_states(server: Server, opener: Opener) -> None:
    storage = opener()
    await storage.open()
    for command, word in (
        (("CONFIG", "SET", "maxmemory", "1"), "maxmemory"),
        (("REPLICAOF", "127.0.0.1", str(free_port())), "read only"),
    ):
        server.call(*command)
        await storage.write([Put("t", word, b"")])
        await until(partial(_says, storage, word), f"{word} is not said")
        server.call("CONFIG", "SET", "maxmemory", "0")
        server.call("REPLICAOF", "NO", "ONE")
        await is_well(storage)
        assert word in stored(server)


def _says(storage: RedisStorage, words: str) -> bool:
    return words in storage.health.why


async def test_a_journal_that_cannot_be_written_acknowledges_nothing(
    server: Server, opener: Opener, tmp_path: Path
) -> None:
    storage = opener()
    await storage.open()
    path = tmp_path / "a" / "journal-default"
    path.mkdir(parents=True)  # a directory in its place: it can be fixed, as a full disk can
    server.signal(signal.SIGSTOP)
    waiting = asyncio.ensure_future(storage.write([Put("t", "k", b"")]))
    await until(lambda: "cannot be written" in storage.health.why, "it does not say that the journal cannot be written")
    assert not waiting.done() and storage.health.waiting == 1 and storage.health.journalled == 0
    path.rmdir()
    await asyncio.wait_for(waiting, 5)
    assert storage.health.journalled == 1
    server.signal(signal.SIGCONT)
    await is_well(storage)
    assert stored(server) == {"k": ""}


async def test_a_head_that_starts_again_replays_its_journal(
    server: Server, opener: Opener, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = opener()
    await first.open()
    await first.write([Put("t", "k", b"0")])
    server.signal(signal.SIGSTOP)
    for n in range(1, 4):
        await first.write([Put("t", "k", b"%d" % n), Put("t", str(n), b"")])
    kill_as_9(first)
    with (tmp_path / "a" / "journal-default").open("ab") as journal:
        journal.write(b"\x50\x00\x00\x00torn")
    server.signal(signal.SIGCONT)
    second = opener()
    assert await second.open() == 2
    assert await second.load("t") == {"k": b"3", "1": b"", "2": b"", "3": b""}
    assert "3 writes in the journal" in caplog.text
    assert not (tmp_path / "a" / "journal-default").exists()
    await first.close()


async def test_a_journal_of_another_head_is_set_aside(
    server: Server, opener: Opener, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = opener()
    await first.open()
    server.signal(signal.SIGSTOP)
    await first.write([Put("t", "k", b"lost")])
    kill_as_9(first)
    server.signal(signal.SIGCONT)
    elsewhere = opener(host="b")
    await elsewhere.open()
    await elsewhere.write([Put("t", "k", b"newer")])
    await elsewhere.close()
    third = opener()
    assert await third.open() == 3
    assert await third.load("t") == {"k": b"newer"}
    aside = tmp_path / "a" / "journal-default.stale-epoch-1"
    found = read(aside)
    assert found is not None and found.entries[0].operations() == (Put("t", "k", b"lost"),)
    assert str(aside) in caplog.text and "its 1 writes are not used" in caplog.text
    await first.close()


async def test_superseded_during_an_outage(opener: Opener, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The older head sees a Redis that is away, the newer one sees it: their ways to it are different."""
    with Server(tmp_path / "redis") as server:
        gate = await asyncio.start_server(lambda r, w: _pump(server.port, r, w), "127.0.0.1", 0)
        port = gate.sockets[0].getsockname()[1]
        old = RedisStorage(Access(redis_url.parse(f"127.0.0.1:{port}")), "default", tmp_path / "old" / "journal")
        await old.open()
        gate.close()
        server.call("CLIENT", "KILL", "TYPE", "normal")
        await is_degraded(old)
        await old.write([Put("t", "k", b"old")])
        new = opener(on=server, host="b")
        await new.open()
        await new.write([Put("t", "k", b"new")])
        gate = await asyncio.start_server(lambda r, w: _pump(server.port, r, w), "127.0.0.1", port)
        assert isinstance(await asyncio.wait_for(old.ending.wait(), 10), Superseded)
        with pytest.raises(Superseded):
            await old.write([Put("t", "k", b"late")])
        assert stored(server) == {"k": "new"}
        await until(lambda: (tmp_path / "old" / "journal.stale-epoch-1").exists(), "the journal is not set aside")
        said = "1 writes of epoch 1 are not in Redis and not used"
        await until(lambda: said in caplog.text, "it does not say what is not used")
        await old.close()
        await new.close()
        gate.close()


async def _pump(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)

    async def one_way(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
        except OSError:
            pass
        target.close()

    await asyncio.gather(one_way(reader, far_writer), one_way(far_reader, writer))


async def test_close_during_an_outage_leaves_the_journal(server: Server, opener: Opener, tmp_path: Path) -> None:
    storage = opener()
    await storage.open()
    server.signal(signal.SIGSTOP)
    await is_degraded(storage)
    writes = [asyncio.ensure_future(storage.write([Put("t", str(n), b"")])) for n in range(100)]
    await asyncio.sleep(0)
    await storage.close()
    await asyncio.gather(*writes)
    server.signal(signal.SIGCONT)
    again = opener()
    await again.open()
    assert len(await again.load("t")) == 100


async def test_a_redis_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    server = Server(tmp_path / "redis")
    storage = redis_storage(server, tmp_path)
    opening = asyncio.ensure_future(storage.open())
    await asyncio.sleep(0.2)
    assert not opening.done()
    with server:
        assert await asyncio.wait_for(opening, 5) == 1
        await storage.close()


async def test_a_redis_that_does_not_come_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    server = Server(tmp_path / "redis")
    storage = redis_storage(server, tmp_path, patience=0.3)
    with pytest.raises(StorageError, match=rf"127\.0\.0\.1:{server.port}.*tried for 0\.3 s.*start that Redis, or"):
        await storage.open()
    await storage.close()


async def test_passwords_and_users(tmp_path: Path) -> None:
    with Server(tmp_path / "redis", password="open sesame") as server:
        server.call("ACL", "SETUSER", "noded", "on", ">tulip", "~noded:*", "+@all", "-@dangerous", "+info")
        for user, password, right in (
            ("", "open sesame", True),
            ("noded@", "tulip", True),
            ("", "wrong", False),
            ("", "", False),
            ("noded@", "open sesame", False),
        ):
            access = Access(redis_url.parse(f"redis://{user}127.0.0.1:{server.port}"), password)
            storage = RedisStorage(access, "n", tmp_path / "journal")
            assert not password or password not in repr(access)
            if right:
                await storage.open()
                await storage.write([Put("t", "k", b"")])
                assert await purge_redis(access, "n", force=True) == 3
            else:
                with pytest.raises(StorageError, match="NODED_REDIS_PASSWORD") as caught:
                    await storage.open()
                assert not password or password not in str(caught.value)
            await storage.close()


async def test_tls(tmp_path: Path) -> None:
    files = Authority(tmp_path / "tls").node("redis")
    stranger = Authority(tmp_path / "other").node("redis")
    with Server(tmp_path / "redis", tls=files) as server:
        access = Access(redis_url.parse(server.url), ca=files.ca, cert=files.cert, key=files.key)
        storage = RedisStorage(access, "n", tmp_path / "journal")
        assert await storage.open() == 1
        await storage.write([Put("t", "k", b"v")])
        assert stored(server, keys=Keys("n")) == {"k": "v"}
        await storage.close()
        wrong = Access(redis_url.parse(server.url), ca=stranger.ca, cert=files.cert, key=files.key)
        storage = RedisStorage(wrong, "n", tmp_path / "journal", patience=0)
        with pytest.raises(StorageError, match="certificate verify failed"):
            await storage.open()
        await storage.close()


async def test_a_newer_version_is_refused(server: Server, opener: Opener) -> None:
    storage = opener()
    await storage.open()
    await storage.close()
    server.call("HSET", KEYS.meta, "version", 2)
    with pytest.raises(StorageError, match=r"version 2, this noded reads version 1.*--storage-namespace"):
        await opener().open()


async def test_purge_is_exact_and_uses_no_keys_command(server: Server, opener: Opener) -> None:
    access = Access(redis_url.parse(server.url))
    names = ("a", "a-b", "a*", "ab", "[a]", "?")
    for name in names:
        storage = opener(name)
        await storage.open()
        await storage.write([Put("t", str(n), b"") for n in range(10)])
        await storage.close()
    server.call("SET", "somebody's", "own")
    with server.client() as looking, looking.monitor() as monitor:
        for number, name in enumerate(names, 1):
            assert await purge_redis(access, name, force=False) == 2, name
            assert await purge_redis(access, name, force=False) == 0, "it is idempotent"
            left = set(server.call("SCAN", 0, "COUNT", 10_000)[1])
            assert left == {"somebody's"} | {k for n in names[number:] for k in (Keys(n).meta, Keys(n).table("t"))}
        server.call("PING")
        commands: list[str] = []
        while "PING" not in commands:
            commands.append(monitor.next_command()["command"].split()[0].upper())
    assert "UNLINK" in commands and "KEYS" not in commands and "FLUSHDB" not in commands


async def test_purge_refuses_while_a_head_lives(server: Server, opener: Opener) -> None:
    access = Access(redis_url.parse(server.url))
    storage = opener()
    await storage.open()
    await until(lambda: server.call("EXISTS", KEYS.lease), "there is no lease")
    with pytest.raises(StorageError, match=rf"a head on {os.uname().nodename}, pid {os.getpid()}, still runs"):
        await purge_redis(access, "default", force=False)
    assert server.call("EXISTS", KEYS.meta)
    assert await purge_redis(access, "default", force=True) == 2
    await until(lambda: server.call("EXISTS", KEYS.meta), "a head that lives writes all anew")


@pytest.mark.slow
async def test_a_failover_to_a_replica_that_lagged(
    tmp_path: Path, opener: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    with SentinelTrio(tmp_path / "trio") as trio:
        storage = opener(on=trio)
        await storage.open()
        await storage.write([Put("t", "first", b"")])
        wait_for(lambda: stored(trio.replica) == {"first": ""}, "the replica does not follow")
        # From here on the replica gets nothing more of its primary.
        trio.primary.call("ACL", "SETUSER", "default", "-psync", "-sync")
        trio.primary.call("CLIENT", "KILL", "TYPE", "replica")
        await storage.write([Put("t", "not there", b"")])
        assert set(stored(trio.primary)) == {"first", "not there"}, "it is acknowledged by Redis itself"
        trio.primary.signal(signal.SIGSTOP)
        await storage.write([Put("t", "second", b"")])
        await until(lambda: trio.leader() == trio.replica.port, "the sentinels do not fail over", 30)
        await is_well(storage)
        assert stored(trio.replica) == {"first": "", "not there": "", "second": ""}
        assert "everything was written anew" in caplog.text
        assert storage.ending.error is None


@pytest.mark.slow
async def test_a_hundred_thousand_records(
    server: Server, opener: Opener, record_property: Callable[[str, Any], None]
) -> None:
    first = opener()
    await first.open()
    await first.write([Put("t", str(n), b"x" * 300) for n in range(100_000)])
    await first.close()
    again = opener()
    begun = time.perf_counter()
    await again.open()
    assert len(await again.load("t")) == 100_000
    seconds = time.perf_counter() - begun
    record_property("open with 100,000 records, s", round(seconds, 3))
    print(f"Redis: open with 100,000 records {seconds:.2f} s")


async def test_an_entry_is_what_it_was(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", Owner("n", 1, "o"))
    ops = (Put("t", "k", b"\0\xff"), Delete("t", "l"))
    journal.append([Entry.of(1, ops), Entry.of(2, ())])
    journal.close()
    found = read(tmp_path / "j")
    assert found is not None and found.owner == Owner("n", 1, "o") and found.torn == 0
    assert [(entry.seq, entry.operations()) for entry in found.entries] == [(1, ops), (2, ())]
