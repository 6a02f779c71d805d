"""Storage in one SQLite file: WAL, synced at every commit, written by one thread with group commit.

The thread takes every batch that waits at the moment into one transaction, so that a thousand concurrent
writes cost a few syncs. Each batch is a savepoint of its own: one that fails takes no other with it. The
transaction begins by comparing the epoch, with the write lock held, which is the fence. A full disk, or a file that
cannot be read or written now, is a state: the writes stay in their order and are tried again until they are there,
and nobody is told before that they are. A damaged file is an error at once. With `durable=False`
nothing is synced: for clusters that end with their program; a crash of the machine may then lose the file.
The file belongs on a local disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import msgspec

from noded.head.storage import Ending, Health, Op, Put, StorageError, Superseded, check_ops
from noded.head.storage.condition import Condition

if TYPE_CHECKING:
    import sqlite3

SCHEMA_VERSION = 1
# How long to wait for another process's transaction, in seconds.
LOCK_TIMEOUT = 10.0
LOCK_RETRY = 0.01
TRY_AGAIN_SECONDS = 0.5
# Batches of one transaction: bounds the time that the first of them waits.
MAX_GROUP = 4096

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS meta ("
    " namespace TEXT NOT NULL, key TEXT NOT NULL, value INTEGER NOT NULL, PRIMARY KEY (namespace, key)"
    ") WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS records ("
    " namespace TEXT NOT NULL, tbl TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL,"
    " PRIMARY KEY (namespace, tbl, key)"
    ") WITHOUT ROWID",
)
# The version of the file is kept under the empty namespace, which no cluster can have.
_SET_META = "INSERT INTO meta VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value"
_GET_META = "SELECT value FROM meta WHERE namespace = ? AND key = ?"
_PUT = "INSERT INTO records VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value"
_DELETE = "DELETE FROM records WHERE namespace = ? AND tbl = ? AND key = ?"
_LOAD = "SELECT key, value FROM records WHERE namespace = ? AND tbl = ?"


class _Write(msgspec.Struct, frozen=True, eq=False):
    ops: Sequence[Op]
    done: asyncio.Future[None]


class _Load(msgspec.Struct, frozen=True, eq=False):
    table: str
    done: asyncio.Future[dict[str, bytes]]


class Damaged(StorageError):
    """The file is not what it was: trying again does not help."""


class Trouble(Exception):
    """The group was not written, and may be later."""

    def __init__(self, error: StorageError) -> None:
        super().__init__(str(error))
        self.error = error


def _passes(failure: Exception) -> bool:
    """A state of the machine that may end."""
    import sqlite3

    # The lower byte is the primary code.
    return getattr(failure, "sqlite_errorcode", 0) & 0xFF in (
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_NOMEM,
    )


def _is_damage(failure: Exception) -> bool:
    import sqlite3

    return getattr(failure, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class SqliteStorage:
    """A `Storage` in a file, for one open(); several namespaces and processes may share the file."""

    def __init__(self, path: str | os.PathLike[str], namespace: str = "default", *, durable: bool = True) -> None:
        if not namespace:
            raise ValueError("the storage namespace must not be empty")
        self._database = _Database(os.path.abspath(path), namespace, durable)
        # None ends the thread.
        self._jobs: SimpleQueue[_Write | _Load | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False
        self.ending = Ending()
        self._condition = Condition(self._database.path)
        self._waiting = 0
        """Writes that were called and not answered; counted on the loop."""

    @property
    def confirmed(self) -> float | None:
        return None

    @property
    def health(self) -> Health:
        return Health("sqlite", self._condition.since, 0, self._waiting, self._condition.why)

    @property
    def epoch(self) -> int:
        return self._database.epoch

    @property
    def commits(self) -> int:
        """Transactions with writes so far: how well group commit works."""
        return self._database.commits

    async def open(self) -> int:
        if self._thread is not None or self._closed:
            raise StorageError(f"{self._database.path}: this storage was opened before; make a new one")
        opened: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._thread = threading.Thread(target=self._run, args=(opened,), name="noded-storage", daemon=True)
        self._thread.start()
        return await opened

    async def write(self, ops: Sequence[Op]) -> None:
        check_ops(ops)
        self._check_open()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # A copy: the caller's list may change before the thread gets to it.
        self._jobs.put(_Write(tuple(ops), done))
        self._waiting += 1
        try:
            await done
        except StorageError as error:
            if isinstance(error, Superseded | Damaged):
                self.ending.set(error)
            raise
        finally:
            self._waiting -= 1

    async def load(self, table: str) -> dict[str, bytes]:
        self._check_open()
        done: asyncio.Future[dict[str, bytes]] = asyncio.get_running_loop().create_future()
        self._jobs.put(_Load(table, done))
        return await done

    async def close(self) -> None:
        self._closed = True
        if self._thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)

    def _check_open(self) -> None:
        if self._closed or not self._database.epoch:
            raise StorageError(f"{self._database.path}: the storage is not open; call open() first")

    def _run(self, opened: asyncio.Future[int]) -> None:
        """The thread. It alone touches the connection, and answers through the loop of `opened`."""
        loop = opened.get_loop()
        try:
            _answer(loop, [(opened, self._database.open())])
            while self._serve_group(loop):
                pass
        except Exception as failure:
            _answer(loop, [(opened, failure)])
        finally:
            self._database.close()

    def _serve_group(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Do all jobs that wait; False after the last job of all."""
        jobs = [self._jobs.get()]
        self._take_waiting(jobs)
        try:
            answers = self._do(jobs)
        except Exception as failure:  # whatever it was, nobody may wait for ever; the next group may go well
            answers = [(job.done, self._database.failed("a group", failure)) for job in jobs if job is not None]
        _answer(loop, answers)
        return None not in jobs

    def _take_waiting(self, jobs: list[_Write | _Load | None]) -> None:
        while len(jobs) < MAX_GROUP and jobs[-1] is not None and not self._jobs.empty():
            jobs.append(self._jobs.get())

    def _do(self, jobs: list[_Write | _Load | None]) -> list[_Answer]:
        """All writes in one transaction, then the loads, so that a load sees what was called before it."""
        answers: list[_Answer] = []
        writes = [job for job in jobs if isinstance(job, _Write)]
        if writes:
            while True:
                try:
                    outcomes = self._database.write_group([job.ops for job in writes])
                    break
                except Trouble as trouble:
                    error = trouble.error
                    self._condition.degrade(str(error), "writes wait until there is room or it can be read again")
                if jobs[-1] is None:  # who closes it does not wait for room
                    return [(job.done, error) for job in jobs if job is not None]
                with contextlib.suppress(Empty):
                    jobs.append(self._jobs.get(timeout=TRY_AGAIN_SECONDS))
                    self._take_waiting(jobs)
                    writes = [job for job in jobs if isinstance(job, _Write)]
            self._condition.recover(f"{len(writes)} writes that waited are there now")
            answers += [(job.done, outcome) for job, outcome in zip(writes, outcomes, strict=True)]
        answers += [(job.done, self._database.load(job.table)) for job in jobs if isinstance(job, _Load)]
        return answers


_Answer = tuple[asyncio.Future[Any], object]


def _answer(loop: asyncio.AbstractEventLoop, answers: list[_Answer]) -> None:
    """Hand results (or exceptions) to their futures: one wake-up of the loop for all."""
    # The loop is closed when its program ended without close(); then nobody waits for an answer.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(_settle, answers)


def _settle(answers: list[_Answer]) -> None:
    for future, outcome in answers:
        if future.done():  # its caller was cancelled
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


class _Database:
    """The connection and its statements, without asyncio; everything but the attributes is the thread's."""

    def __init__(self, path: str, namespace: str, durable: bool) -> None:
        self.path = path
        self.epoch = 0
        self.commits = 0
        self._namespace = namespace
        self._durable = durable
        self._connection: sqlite3.Connection | None = None

    def open(self) -> int:
        import sqlite3

        deadline = time.monotonic() + LOCK_TIMEOUT
        while True:
            try:
                self.epoch = self._take_epoch()
                return self.epoch
            except (OSError, sqlite3.Error) as failure:
                self.close()
                # SQLite does not wait by itself when several openers turn a new file to WAL at once.
                busy = getattr(failure, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
                if not busy or time.monotonic() > deadline:
                    raise StorageError(
                        f"{self.path}: the head's storage cannot be opened: {failure}; check the directory's "
                        "rights and room and that no other program holds the file; restore it, or move it "
                        "aside, if it is damaged"
                    ) from failure
            time.sleep(LOCK_RETRY)

    def write_group(self, batches: Sequence[Sequence[Op]]) -> list[Exception | None]:
        """Apply batches in one transaction; for each None, or why it was not written."""
        import sqlite3

        connection = self._connected()
        try:
            connection.execute("BEGIN IMMEDIATE")
            # The fence: with the write lock held nobody can take a newer epoch before our commit.
            current = self._current_epoch(connection)
            if current != self.epoch:
                connection.execute("ROLLBACK")
                return [Superseded(self.epoch, current) for _ in batches]
            outcomes = [self._apply(connection, ops) for ops in batches]
            connection.execute("COMMIT")
        except sqlite3.Error as failure:
            if connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
            if _passes(failure):
                raise Trouble(self.failed("write", failure)) from failure
            error = self.damaged(failure) if _is_damage(failure) else self.failed("write", failure)
            return [error for _ in batches]
        self.commits += 1
        return outcomes

    def load(self, table: str) -> dict[str, bytes] | Exception:
        import sqlite3

        try:
            return dict(self._connected().execute(_LOAD, (self._namespace, table)).fetchall())
        except (sqlite3.Error, UnicodeError) as failure:
            return self.failed(f"load of table {table!r}", failure)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def failed(self, what: str, failure: Exception) -> StorageError:
        error = StorageError(
            f"{self.path}: {what} failed: {failure}; check that the disk has room and that no other program "
            "holds the file"
        )
        error.__cause__ = failure
        return error

    def damaged(self, failure: Exception) -> Damaged:
        error = Damaged(
            f"{self.path}: the head's storage is damaged: {failure}; restore the file from a copy, or move it aside to "
            "begin an empty cluster"
        )
        error.__cause__ = failure
        return error

    def _take_epoch(self) -> int:
        """Open the connection and make its epoch the namespace's."""
        import sqlite3

        self._create_file()
        # isolation_level None: transactions begin and end where we say so.
        connection = sqlite3.connect(self.path, timeout=LOCK_TIMEOUT, isolation_level=None)
        self._connection = connection
        connection.execute(f"PRAGMA synchronous = {'FULL' if self._durable else 'OFF'}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        self._prepare_schema(connection)
        epoch = self._current_epoch(connection) + 1
        connection.execute(_SET_META, (self._namespace, "epoch", epoch))
        connection.execute("COMMIT")
        return epoch

    def _create_file(self) -> None:
        """Make the file before SQLite does, so that only its owner can read it (records hold secrets)."""
        os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
        # Only ever a new file: closing a descriptor of one in use would drop this process's locks on it.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))

    def _prepare_schema(self, connection: sqlite3.Connection) -> None:
        for statement in _SCHEMA:
            connection.execute(statement)
        row = connection.execute(_GET_META, ("", "schema")).fetchone()
        if row is None:
            connection.execute(_SET_META, ("", "schema", SCHEMA_VERSION))
        elif row[0] != SCHEMA_VERSION:
            raise StorageError(
                f"{self.path}: the head's storage has schema {row[0]}, "
                f"this noded reads schema {SCHEMA_VERSION}: start the noded that wrote it, or a newer one, "
                "or move the file aside to begin an empty cluster"
            )

    def _current_epoch(self, connection: sqlite3.Connection) -> int:
        row = connection.execute(_GET_META, (self._namespace, "epoch")).fetchone()
        return int(row[0]) if row is not None else 0

    def _apply(self, connection: sqlite3.Connection, ops: Sequence[Op]) -> Exception | None:
        connection.execute("SAVEPOINT batch")
        try:
            for op in ops:
                if isinstance(op, Put):
                    connection.execute(_PUT, (self._namespace, op.table, op.key, op.value))
                else:
                    connection.execute(_DELETE, (self._namespace, op.table, op.key))
        except Exception as failure:
            if not connection.in_transaction or _passes(failure) or _is_damage(failure):
                raise  # it is not about this batch
            connection.execute("ROLLBACK TO batch")
            connection.execute("RELEASE batch")
            return self.failed("write", failure)
        connection.execute("RELEASE batch")
        return None

    def _connected(self) -> sqlite3.Connection:
        assert self._connection is not None, "the storage thread serves only after open()"
        return self._connection
