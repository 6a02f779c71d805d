"""Removing one namespace from a storage, as `noded purge` does: exactly it, and as often as one likes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from noded.head.storage import StorageError
from noded.head.storage.redis_link import Access, Connection, Trouble, connect
from noded.head.storage.redis_scripts import Keys


async def purge_redis(access: Access, namespace: str, *, force: bool) -> int:
    """How many keys there were. Raises StorageError where a head still runs, unless `force`, or Redis cannot do it."""
    keys = Keys(namespace)
    connection: Connection | None = None
    try:
        connection = await connect(access)
        lease = await connection.execute("GET", keys.lease)
        if lease is not None and not force:
            raise StorageError(f"{_head(lease)} still runs with the storage namespace {namespace}")
        count = 0
        async for part in connection.keys_like(keys.pattern):
            count += int(await connection.execute("UNLINK", *part))
        return count
    except Trouble as trouble:
        raise StorageError(f"Redis ({access.url}) cannot be purged: {trouble}") from trouble
    finally:
        if connection is not None:
            await connection.close()


def _head(lease: bytes) -> str:
    host, pid, *_ = [*lease.decode(errors="replace").split(), "?", "?"]
    return f"a head on {host}, pid {pid},"


def purge_sqlite(path: str | os.PathLike[str], namespace: str) -> int:
    """How many records there were; none where there is no file. Raises StorageError."""
    import sqlite3

    path = Path(path)
    if not path.exists():
        return 0
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=10.0)) as connection, connection:
            count = connection.execute("DELETE FROM records WHERE namespace = ?", (namespace,)).rowcount
            connection.execute("DELETE FROM meta WHERE namespace = ?", (namespace,))
            return count
    except sqlite3.Error as error:
        raise StorageError(f"{path} cannot be purged: {error}") from error
