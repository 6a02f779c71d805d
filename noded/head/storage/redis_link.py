"""Connections to a Redis: a server, the one that sentinels name, or a cluster; nothing here knows what is stored.

Each `connect` begins anew: names are resolved, sentinels asked, the server asked whether it is a cluster. Whatever goes
wrong is a `Trouble`; the caller drops the connection and connects again when it wants to.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import redis.asyncio as redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, NoScriptError, RedisError

from noded.config import RedisUrl
from noded.head.storage.redis_scripts import READ, Script

T = TypeVar("T")

CALL_SECONDS = 2.0
"""A server that does not answer for so long is away."""
_SENTINEL_SECONDS = 1.0
_SCAN_COUNT = 5_000
_LENGTH = struct.Struct("<I")


class Trouble(Exception):
    """Redis did not do it, or did it and the answer is lost. `permanent`: it will not by itself get better."""

    def __init__(self, text: str, *, permanent: bool = False) -> None:
        super().__init__(text)
        self.permanent = permanent


@dataclass(frozen=True)
class Access:
    """How to reach a Redis; passwords are shown nowhere."""

    url: RedisUrl
    password: str = field(default="", repr=False)
    sentinel_password: str = field(default="", repr=False)
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def _tls(self) -> dict[str, Any]:
        if not self.url.tls:
            return {}
        files = {"ssl_ca_certs": self.ca, "ssl_certfile": self.cert, "ssl_keyfile": self.key}
        return {
            "ssl": True,
            "ssl_check_hostname": True,
            **{name: str(path) for name, path in files.items() if path is not None},
        }

    def server(self) -> dict[str, Any]:
        """Arguments of a client of the server itself."""
        return {
            "username": self.url.user or None,
            "password": self.password or None,
            "socket_timeout": CALL_SECONDS,
            "socket_connect_timeout": CALL_SECONDS,
            # Who calls decides what to do, and needs to know that something is wrong.
            "retry": Retry(NoBackoff(), 0),
            **self._tls(),
        }

    def sentinel(self) -> dict[str, Any]:
        limits = {"socket_timeout": _SENTINEL_SECONDS, "socket_connect_timeout": _SENTINEL_SECONDS}
        return {
            **limits,
            "password": self.sentinel_password or None,
            "retry": Retry(NoBackoff(), 0),
            **self._tls(),
        }


class Connection:
    """One client; `where` is the server that it talks to."""

    def __init__(self, client: Any, where: str) -> None:
        self._client = client
        self.where = where

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Any]) -> tuple[int, int]:
        """The script's code and number."""
        answer = await self._evaluate(script, keys, arguments)
        return int(answer[0]), int(answer[1])

    async def _evaluate(self, script: Script, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        try:
            return await self.execute("EVALSHA", script.sha, len(keys), *keys, *arguments)
        except _NotLoaded:
            return await self.execute("EVAL", script.source, len(keys), *keys, *arguments)

    async def execute(self, *command: Any) -> Any:
        return await _call(self.where, self._client.execute_command(*command))

    async def hash_of(self, key: str) -> dict[bytes, bytes]:
        """All fields, in parts: a big one does not stop the server."""
        found: dict[bytes, bytes] = {}
        cursor = 0
        while True:
            answer = await self._evaluate(READ, [key], [cursor, _SCAN_COUNT])
            cursor, texts = int(answer[0]), _texts(answer[1])
            found.update(zip(texts, texts, strict=True))
            if not cursor:
                return found

    async def keys_like(self, pattern: str) -> AsyncIterator[list[bytes]]:
        """In parts, by SCAN; a key may come twice."""
        if isinstance(self._client, RedisCluster):
            found = self._client.scan_iter(match=pattern, count=_SCAN_COUNT, target_nodes=RedisCluster.PRIMARIES)
            async for key in found:
                yield [key]
            return
        cursor = 0
        while True:
            cursor, part = await _call(self.where, self._client.scan(cursor, match=pattern, count=_SCAN_COUNT))
            if part:
                yield part
            if not cursor:
                return

    async def close(self) -> None:
        await _close(self._client)


async def connect(access: Access) -> Connection:
    """Raises Trouble."""
    url = access.url
    host, port = url.hosts[0]
    if url.service:
        host, port = await _ask_sentinels(access)
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    client = redis.Redis(host=host, port=port, db=url.db, single_connection_client=True, **access.server())
    try:
        if not await _is_cluster(client, where):
            return Connection(client, where)
    except BaseException:
        await _close(client)
        raise
    await _close(client)
    if url.db:
        raise Trouble(f"Redis at {where} is a cluster and has no database {url.db}: leave it away", permanent=True)
    cluster = RedisCluster(host=host, port=port, **access.server())
    try:
        await _call(where, cluster.initialize())
    except BaseException:
        await _close(cluster)
        raise
    return Connection(cluster, where)


async def _ask_sentinels(access: Access) -> tuple[str, int]:
    sentinel = Sentinel(list(access.url.hosts), sentinel_kwargs=access.sentinel())  # type: ignore[no-untyped-call]
    names = ", ".join(f"{host}:{port}" for host, port in access.url.hosts)
    try:
        # Each of them may have to be waited for.
        limit = CALL_SECONDS + _SENTINEL_SECONDS * len(access.url.hosts)
        asked = sentinel.discover_master(access.url.service)
        host, port = await _call(f"the sentinels {names}", asked, limit)
        return str(host), int(port)
    finally:
        for client in sentinel.sentinels:
            await _close(client)


async def _is_cluster(client: Any, where: str) -> bool:
    try:
        told = await _call(where, client.info("cluster"))
    except Trouble as trouble:
        if isinstance(trouble.__cause__, NoPermissionError):
            return False  # who may not ask it has no cluster, or says so by its errors
        raise
    return bool(told.get("cluster_enabled"))


def _texts(packed: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(packed):
        start = at + _LENGTH.size
        at = start + _LENGTH.unpack_from(packed, at)[0]
        yield packed[start:at]


class _NotLoaded(Exception):
    """The server does not have the script."""


async def _call(where: str, asked: Awaitable[T], limit: float = CALL_SECONDS) -> T:
    try:
        async with asyncio.timeout(limit):
            return await asked
    except NoScriptError:
        raise _NotLoaded from None
    except TimeoutError as error:
        raise Trouble(f"{where} does not answer within {limit:g} s") from error
    except (AuthenticationError, AuthorizationError, NoPermissionError) as error:
        raise Trouble(f"{where} refuses: {error}", permanent=True) from error
    except (RedisError, OSError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise Trouble(text if where in text else f"{where}: {text}", permanent=_is_password(text)) from error


def _is_password(text: str) -> bool:
    """Errors of it have classes of their own in some versions of the client only."""
    return any(word in text for word in ("NOAUTH", "WRONGPASS", "invalid password", "Authentication required"))


async def _close(client: Any) -> None:
    with contextlib.suppress(RedisError, OSError, TimeoutError):
        async with asyncio.timeout(CALL_SECONDS):
            await client.aclose()
