"""Storage in Redis: the head may start again on another host, and go on while Redis is away.

**Order and the fence.** Every batch has a number. One task has one script in flight, which takes all batches that wait
and is conditional on our epoch and owner: the owner is drawn at `open`, because a failover may have lost the newest
epoch, and then two heads have the same one. What is sent again after a lost reply is skipped by its number.

**Redis is away.** Then the storage is degraded: batches go to a journal on this host (`journal`) and their `write`
returns. Redis is tried again, by a new connection each time; what waited is sent in order, and the journal removed.

**Redis is behind**: emptied, restored, or a replica that lagged. All tables are also here, so they are written anew:
into keys of their own, which one script puts in place of what was there.

**A lease** is written each second, so that an outage and a newer head are noticed without writes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from noded.head.storage import Delete, Ending, Health, Op, Put, StorageError, Superseded, check_ops
from noded.head.storage import journal as files
from noded.head.storage import redis_scripts as scripts
from noded.head.storage.condition import Condition
from noded.head.storage.journal import Entry, Journal, Owner
from noded.head.storage.redis_link import Access, Connection, Trouble, connect
from noded.head.storage.redis_scripts import Keys

log = logging.getLogger("noded.storage")

OPEN_SECONDS = 60.0
"""So long is a Redis waited for at the start."""
_SAY_SECONDS = 10.0
_LEASE_SECONDS = 1.0
_CLOSE_SECONDS = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
_JOURNAL_PAUSE = 0.5
# Of one call: they bound how long the server is busy with it.
_GROUP_BATCHES, _GROUP_BYTES = 2_000, 4 << 20
_DRAFT_FIELDS, _DRAFT_BYTES = 2_000, 1 << 20
_DRAFT_SECONDS = 600
"""A draft whose writer has ended disappears."""


@dataclass(eq=False, slots=True)
class _Batch:
    seq: int
    ops: tuple[Op, ...]
    size: int
    done: asyncio.Future[None] | None = field(default=None)

    def settle(self, error: Exception | None = None) -> None:
        if self.done is not None and not self.done.done():
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(error)


class RedisStorage:
    """A `Storage` for one open(). `journal`: a path on a local disk; nobody else writes there."""

    def __init__(
        self, access: Access, namespace: str, journal: str | os.PathLike[str], *, patience: float = OPEN_SECONDS
    ) -> None:
        self.ending = Ending()
        self._access = access
        self._keys = Keys(namespace)
        self._path = Path(journal)
        self._patience = patience
        self._owner = secrets.token_hex(16)
        self._lease_value = f"{socket.gethostname()} {os.getpid()}"
        self._condition = Condition(f"Redis ({access.url})")
        self._epoch = 0
        self._opened = self._closed = False
        self._connection: Connection | None = None
        self._tables: dict[str, dict[str, bytes]] = {}
        """Everything, with all batches that were called."""
        self._seq = 0
        self._there = 0
        """The last batch that Redis is known to have."""
        self._journalled: deque[_Batch] = deque()
        self._fresh: deque[_Batch] = deque()
        """What Redis does not have yet: first what is in the journal, then what is nowhere."""
        self._must_replace = False
        self._answers = True
        """Redis did at the last call: what waits needs no journal."""
        self._caught_up = 0
        self._replaced = False
        self._journal: Journal
        self._journal_lock = asyncio.Lock()
        self._journal_problem = ""
        self._to_send = asyncio.Event()
        self._to_journal = asyncio.Event()
        self._next_lease = 0.0
        self._confirmed = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    # ------------------------------------------------------------ what it tells

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def confirmed(self) -> float | None:
        return self._confirmed

    @property
    def health(self) -> Health:
        why = self._condition.why
        if self._journal_problem:
            why += f"; the journal {self._path} cannot be written: {self._journal_problem}, so writes wait"
        return Health("redis", self._condition.since, len(self._journalled), len(self._fresh), why)

    # ------------------------------------------------------------ open

    async def open(self) -> int:
        if self._opened or self._closed:
            raise StorageError(f"the storage in {self._access.url} was opened before; make a new one")
        self._opened = True
        begun = said = time.monotonic()
        pause = _FIRST_PAUSE
        while True:
            try:
                await self._open_once()
                break
            except Trouble as trouble:
                await self._disconnect()
                now = time.monotonic()
                if trouble.permanent or now - begun >= self._patience:
                    raise StorageError(self._cannot_open(trouble)) from trouble
                if now - said >= _SAY_SECONDS:
                    said = now
                    log.warning("waiting for Redis (%s): %s", self._access.url, trouble)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        self._journal = Journal(self._path, Owner(self._keys.namespace, self._epoch, self._owner))
        for work, name in ((self._keep_sending, "redis"), (self._keep_journalling, "redis journal")):
            self._tasks.append(asyncio.create_task(work(), name=name))
        return self._epoch

    def _cannot_open(self, trouble: Trouble) -> str:
        if trouble.permanent:
            return (
                f"the head's storage in Redis ({self._access.url}) cannot be opened: {trouble}; check --redis, its "
                "user, and NODED_REDIS_PASSWORD or --redis-password-file"
            )
        return (
            f"the head's storage in Redis ({self._access.url}) cannot be opened, it was tried for "
            f"{self._patience:g} s: {trouble}; start that Redis, or correct --redis"
        )

    async def _open_once(self) -> None:
        connection = await self._connected()
        version, epoch, owner, seq = await connection.execute(
            "HMGET", self._keys.meta, "version", "epoch", "owner", "seq"
        )
        if version is not None and int(version) != scripts.VERSION:
            raise StorageError(
                f"the storage namespace {self._keys.namespace!r} in Redis ({self._access.url}) has version "
                f"{int(version)}, this noded reads version {scripts.VERSION}: start the noded that wrote it, or "
                "a newer one, or give another --storage-namespace to begin an empty cluster"
            )
        stored = Owner(self._keys.namespace, int(epoch or 0), (owner or b"").decode())
        await self._replay_journal(connection, stored, int(seq or 0))
        self._confirmed = time.monotonic()
        _, self._epoch = await connection.run(scripts.TAKE, [self._keys.meta], [scripts.VERSION, self._owner])
        self._tables = {}
        for name in await connection.execute("HKEYS", self._keys.meta):
            if name.startswith(b"table:"):
                table = name.decode().removeprefix("table:")
                records = await connection.hash_of(self._keys.table(table))
                self._tables[table] = {key.decode(): value for key, value in records.items()}

    async def _replay_journal(self, connection: Connection, stored: Owner, seq: int) -> None:
        """Of the head before us on this host, if it was the last one of all: before we take over."""
        try:
            found = await asyncio.to_thread(files.read, self._path)
        except OSError as error:
            raise StorageError(f"the journal {self._path} cannot be read: {error}; move it aside to go on") from error
        if found is None:
            self._path.unlink(missing_ok=True)  # what was torn before anything was durable in it
            return
        if found.owner != stored:
            return await self._set_aside(found)
        if found.entries and found.entries[0].seq > seq + 1:
            log.warning(
                "Redis (%s) has lost writes before those in the journal %s: %d are missing, or more",
                self._access.url, self._path, found.entries[0].seq - seq - 1,
            )  # fmt: skip
        for group in _groups([_Batch(e.seq, e.operations(), _size(e.operations())) for e in found.entries]):
            last = group[-1].seq
            if last <= seq:
                continue
            keys, arguments = _arguments(self._keys, stored, group, numbered_from=group[0].seq)
            code, number = await connection.run(scripts.WRITE, keys, arguments)
            if code == scripts.BEHIND:  # nothing else knows what is missing: what there is counts
                keys, arguments = _arguments(self._keys, stored, group, numbered_from=number + 1)
                code, number = await connection.run(scripts.WRITE, keys, arguments)
            if code != scripts.DONE:
                return await self._set_aside(found)
            seq = number
        await asyncio.to_thread(self._path.unlink)
        log.warning("%d writes in the journal %s are in Redis now", len(found.entries), self._path)

    async def _set_aside(self, found: files.Found) -> None:
        target = await asyncio.to_thread(files.set_aside, self._path, found.owner.epoch)
        log.error(
            "the journal of epoch %d of namespace %s is not that of the last head: its %d writes are not used, they "
            "are in %s now", found.owner.epoch, found.owner.namespace, len(found.entries), target,
        )  # fmt: skip

    # ------------------------------------------------------------ calls

    async def write(self, ops: Sequence[Op]) -> None:
        check_ops(ops)
        self._check_open()
        if self.ending.error is not None:
            raise self._cannot_write()
        batch = self._take(tuple(ops))
        self._to_send.set()
        if self._condition.since is not None:
            self._to_journal.set()
        assert batch.done is not None
        await batch.done

    def _take(self, ops: tuple[Op, ...]) -> _Batch:
        try:
            size = _size(ops)
        except UnicodeEncodeError as error:
            raise StorageError(f"a batch for Redis ({self._access.url}) is refused: {error}") from error
        self._seq += 1
        for op in ops:
            records = self._tables.setdefault(op.table, {})
            if isinstance(op, Put):
                records[op.key] = op.value
            else:
                records.pop(op.key, None)
        batch = _Batch(self._seq, ops, size, asyncio.get_running_loop().create_future())
        self._fresh.append(batch)
        return batch

    async def load(self, table: str) -> dict[str, bytes]:
        self._check_open()
        return dict(self._tables.get(table, {}))

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._to_send.set()
        if self._tasks:
            sender, keeper = self._tasks
            await asyncio.wait([sender], timeout=_CLOSE_SECONDS)
            self._to_journal.set()
            await asyncio.wait([keeper], timeout=_CLOSE_SECONDS)
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
            await asyncio.to_thread(self._journal.close)
        if self._journalled:
            log.warning("%d writes stay in the journal %s for the next head", len(self._journalled), self._path)
        left = StorageError(f"the storage was closed before this was written: {self.health.why or 'it took too long'}")
        for batch in self._fresh:
            batch.settle(left)
        if self._connection is not None and self.ending.error is None and self._condition.since is None:
            try:
                await self._connection.run(
                    scripts.RELEASE, [self._keys.meta, self._keys.lease], [self._epoch, self._owner]
                )
            except Trouble as trouble:  # then it runs out
                log.info("the lease could not be given back: %s", trouble)
        await self._disconnect()

    def _check_open(self) -> None:
        if self._closed or not self._tasks:
            raise StorageError(f"the storage in Redis ({self._access.url}) is not open: call open() first")

    def _cannot_write(self) -> Exception:
        error = self.ending.error
        if isinstance(error, Superseded):
            return Superseded(error.epoch, error.current)
        return StorageError(f"the storage in Redis ({self._access.url}) has ended: {error}")

    # ------------------------------------------------------------ to Redis

    async def _keep_sending(self) -> None:
        pause = _FIRST_PAUSE
        try:
            while not (self._closed and (self._condition.since is not None or not self._waiting())):
                try:
                    await self._step()
                    pause = _FIRST_PAUSE
                except Trouble as trouble:
                    await self._disconnect()
                    self._answers = False
                    self._degrade(str(trouble))
                    await self._sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
        except Superseded as superseded:
            await self._end(superseded)
        except Exception as error:  # a bug: whoever waits is told, and the daemon ends
            log.critical("the storage has failed", exc_info=error)
            await self._end(error)

    async def _step(self) -> None:
        """One call, or none when there is nothing to say."""
        connection = await self._connected()
        if self._must_replace:
            await self._replace(connection)
        if time.monotonic() >= self._next_lease or (self._condition.since is not None and not self._waiting()):
            await self._renew(connection)
        elif self._waiting():
            await self._send(connection)
        else:
            await self._sleep(self._next_lease - time.monotonic())
            return
        if self._condition.since is not None and not self._must_replace:
            self._answers = True
            if not self._journalled:
                await self._recover()

    def _waiting(self) -> bool:
        return bool(self._journalled or self._fresh)

    async def _sleep(self, seconds: float) -> None:
        """Shorter when something is to be sent; of a Redis that is away only the end of all is."""
        if self._closed or (self._fresh and self._condition.since is None):
            return
        self._to_send.clear()
        if self._condition.since is not None and not self._answers:
            deadline = time.monotonic() + seconds
            while not self._closed and (left := deadline - time.monotonic()) > 0:
                await _wait(self._to_send, left)
                self._to_send.clear()
        else:
            await _wait(self._to_send, seconds)

    async def _send(self, connection: Connection) -> None:
        group = next(_groups(chain(self._journalled, self._fresh)))
        mine = Owner(self._keys.namespace, self._epoch, self._owner)
        keys, arguments = _arguments(self._keys, mine, group, numbered_from=group[0].seq)
        code, number = await connection.run(scripts.WRITE, keys, arguments)
        if self._judge(code, number):
            self._has(group[-1].seq)

    async def _renew(self, connection: Connection) -> None:
        value = f"{self._lease_value} {int(time.time())}"
        began = time.monotonic()
        code, number = await connection.run(
            scripts.LEASE,
            [self._keys.meta, self._keys.lease],
            [self._epoch, self._owner, self._there, value, scripts.LEASE_MS],
        )
        self._next_lease = time.monotonic() + _LEASE_SECONDS
        self._judge(code, number)
        self._confirmed = began

    def _judge(self, code: int, number: int) -> bool:
        """True: it is done."""
        if code == scripts.SUPERSEDED:
            raise Superseded(self._epoch, number)
        if code == scripts.BEHIND:
            self._must_replace, self._answers = True, False
            self._degrade(
                f"Redis has batch {number} and had {self._there} already: it was emptied or restored, or a replica "
                "that lagged has taken over; everything is written anew"
            )
        return code == scripts.DONE

    async def _replace(self, connection: Connection) -> None:
        """Write all tables anew, as they are now."""
        seq = self._seq
        tables = {name: list(records.items()) for name, records in self._tables.items()}
        for name, records in tables.items():
            draft = self._keys.draft(self._owner, name)
            await connection.execute("UNLINK", draft)
            for part in _parts(records):
                await connection.execute("HSET", draft, *chain.from_iterable(part))
                await connection.execute("EXPIRE", draft, _DRAFT_SECONDS)
        keys = [self._keys.draft(self._owner, name) for name in tables] + [self._keys.table(name) for name in tables]
        counts = chain.from_iterable((name, len(records)) for name, records in tables.items())
        code, number = await connection.run(
            scripts.REPLACE,
            [self._keys.meta, *keys],
            [self._epoch, self._owner, seq, self._keys.table(""), scripts.VERSION, *counts],
        )
        if self._judge(code, number):
            self._must_replace, self._replaced = False, True
            self._has(seq)

    def _has(self, seq: int) -> None:
        """Redis has all up to this one."""
        self._there = max(self._there, seq)
        for queue in (self._journalled, self._fresh):
            while queue and queue[0].seq <= seq:
                if queue is self._journalled:
                    self._caught_up += 1
                queue.popleft().settle()

    async def _recover(self) -> None:
        async with self._journal_lock:
            if self._journalled:  # more has come while we waited for the lock
                return
            try:
                await asyncio.to_thread(self._journal.clear)
            except OSError as error:
                # Harmless: Redis skips by their numbers what it has, and the next head sets the rest aside.
                log.error("the journal %s, which is not needed any more, cannot be removed: %s", self._path, error)
            how = "everything was written anew" if self._replaced else "nothing was lost"
            self._condition.recover(f"{self._caught_up} writes of the journal are there now; {how}")
            self._caught_up, self._replaced, self._journal_problem = 0, False, ""

    async def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = await connect(self._access)
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    # ------------------------------------------------------------ to the journal

    def _degrade(self, why: str) -> None:
        self._condition.degrade(why, f"writes go to the journal {self._path}")
        self._to_journal.set()

    async def _keep_journalling(self) -> None:
        while True:
            await self._to_journal.wait()
            self._to_journal.clear()
            async with self._journal_lock:
                if self._condition.since is None or self._answers or self.ending.error is not None:
                    fine = True
                else:
                    fine = await self._journal_all()
            if self._closed:
                return
            if not fine:
                await asyncio.sleep(_JOURNAL_PAUSE)
                self._to_journal.set()

    async def _journal_all(self) -> bool:
        """What waits now; False when the journal cannot be written either."""
        while self._fresh:
            batches = list(islice(self._fresh, _GROUP_BATCHES))
            try:
                await asyncio.to_thread(self._journal.append, [Entry.of(batch.seq, batch.ops) for batch in batches])
            except OSError as error:
                if not self._journal_problem:
                    log.error("the journal %s cannot be written, so writes wait: %s", self._path, error)
                self._journal_problem = error.strerror or str(error)
                return False
            self._journal_problem = ""
            while self._fresh and self._fresh[0].seq <= batches[-1].seq:
                batch = self._fresh.popleft()
                batch.settle()
                self._journalled.append(batch)
        return True

    # ------------------------------------------------------------ the end

    async def _end(self, error: Exception) -> None:
        self.ending.set(error)
        async with self._journal_lock:
            count = len(self._journalled)
            aside = await asyncio.to_thread(self._journal.set_aside) if isinstance(error, Superseded) else None
        if aside is not None:
            log.error("%d writes of epoch %d are not in Redis and not used, they are in %s", count, self._epoch, aside)
        for batch in self._fresh:
            batch.settle(self._cannot_write())
        self._fresh.clear()
        self._journalled.clear()


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            await event.wait()
    except TimeoutError:
        pass


def _size(ops: Sequence[Op]) -> int:
    """Bytes on the wire, about. Raises UnicodeEncodeError for what Redis's client could not send."""
    return sum(
        len(op.table.encode()) + len(op.key.encode()) + (len(op.value) if isinstance(op, Put) else 0) for op in ops
    )


def _groups(batches: Iterable[_Batch]) -> Iterator[list[_Batch]]:
    """For one call each: without a gap in the numbers, bounded in count and bytes."""
    group: list[_Batch] = []
    size = 0
    for batch in batches:
        full = len(group) >= _GROUP_BATCHES or size + batch.size > _GROUP_BYTES
        if group and (full or batch.seq != group[-1].seq + 1):
            yield group
            group, size = [], 0
        group.append(batch)
        size += batch.size
    if group:
        yield group


def _arguments(
    keys: Keys, mine: Owner, group: Sequence[_Batch], *, numbered_from: int
) -> tuple[list[str], list[str | bytes | int]]:
    """Of the script WRITE."""
    places: dict[str, int] = {}
    body: list[str | bytes | int] = []
    for batch in group:
        body.append(len(batch.ops))
        for op in batch.ops:
            place = places.setdefault(op.table, len(places) + 2)
            if isinstance(op, Delete):
                body += (place, op.key, b"0")
            else:
                body += (place, op.key, b"1", op.value)
    head: list[str | bytes | int] = [mine.epoch, mine.owner, numbered_from, len(group), *places]
    return [keys.meta, *(keys.table(name) for name in places)], head + body


def _parts(records: Sequence[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    """For one HSET each."""
    part: list[tuple[str, bytes]] = []
    size = 0
    for key, value in records:
        if part and (len(part) >= _DRAFT_FIELDS or size + len(value) > _DRAFT_BYTES):
            yield part
            part, size = [], 0
        part.append((key, value))
        size += len(key) + len(value)
    if part:
        yield part
