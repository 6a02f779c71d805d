"""Where a Redis is, as the option --redis says it; passwords are never part of it.

Forms: redis://[user@]host[:port][/db] and rediss:// (TLS), redis+sentinel://[user@]host[:port],…/service[/db] and
rediss+sentinel://; a plain host[:port] is redis://. What connects is not here: see head/storage/redis_link.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from noded.config.errors import ConfigError

FORM = (
    "redis://[user@]host[:port][/db], rediss://… for TLS, "
    "redis+sentinel://[user@]host1[:port],host2[:port]/service[/db], rediss+sentinel://…, or host:port"
)
REDIS_PORT = 6379
SENTINEL_PORT = 26379
PASSWORD = "NODED_REDIS_PASSWORD"
SENTINEL_PASSWORD = "NODED_REDIS_SENTINEL_PASSWORD"

_SCHEME = re.compile(r"redis(s?)(\+sentinel)?://")
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s/:@?#\[\],]+))(?::([0-9]{1,5}))?")
_PATH = re.compile(r"(?:/([0-9]{1,4}))?/?")
_SENTINEL_PATH = re.compile(r"/([A-Za-z0-9._-]+)(?:/([0-9]{1,4}))?/?")


class RedisUrl(msgspec.Struct, frozen=True):
    """`hosts`: the server, or the sentinels, which know the server of `service`."""

    hosts: tuple[tuple[str, int], ...]
    user: str = ""
    db: int = 0
    tls: bool = False
    service: str = ""

    def __str__(self) -> str:
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        user = f"{self.user}@" if self.user else ""
        kind = "+sentinel" if self.service else ""
        service = f"/{self.service}" if self.service else ""
        return f"redis{'s' if self.tls else ''}{kind}://{user}{hosts}{service}{f'/{self.db}' if self.db else ''}"


def parse(value: Any) -> RedisUrl:
    """Raises ValueError, or ConfigError where the text must not be shown again."""
    if isinstance(value, RedisUrl):
        return value
    text = str(value).strip()
    scheme = _SCHEME.match(text)
    if scheme is None and "://" in text:
        raise ValueError
    tls, sentinel = (bool(scheme[1]), bool(scheme[2])) if scheme is not None else (False, False)
    rest = text[scheme.end() :] if scheme is not None else text
    user, at, where = rest.rpartition("@")
    if ":" in user or "password=" in rest:
        raise ConfigError(
            f"--redis (or NODED_REDIS, or redis in the settings file) holds a password, which others could read: "
            f"give it without, and the password in {PASSWORD} or in the file --redis-password-file"
        )
    if at and not re.fullmatch(r"[^\s/?#,@]+", user):
        raise ValueError
    names, slash, path = where.partition("/")
    hosts = tuple(_host(name, SENTINEL_PORT if sentinel else REDIS_PORT) for name in names.split(","))
    if len(hosts) > 1 and not sentinel:
        raise ValueError
    found = (_SENTINEL_PATH if sentinel else _PATH).fullmatch(slash + path)
    if found is None:
        raise ValueError
    service, db = (found[1], found[2]) if sentinel else ("", found[1])
    return RedisUrl(hosts, user, int(db or 0), tls, service)


def _host(text: str, port: int) -> tuple[str, int]:
    found = _HOST.fullmatch(text)
    if found is None or int(found[3] or port) > 65535:
        raise ValueError
    return found[1] or found[2], int(found[3] or port)


def read_password(env: Mapping[str, str], file: Path | None) -> str:
    """Of the Redis: from the file, else from NODED_REDIS_PASSWORD; empty where there is none. Raises ConfigError."""
    if file is None:
        return env.get(PASSWORD, "")
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            content = opened.read(4096)
    except OSError as error:
        raise ConfigError(f"the file --redis-password-file {file} cannot be read: {error.strerror}") from None
    if mode & 0o077:
        raise ConfigError(f"the file --redis-password-file {file} is open to other users: run `chmod 600 {file}`")
    try:
        password = content.decode().strip("\r\n")
    except UnicodeDecodeError:
        raise ConfigError(f"the file --redis-password-file {file} is no text: it holds the password alone") from None
    if not password:
        raise ConfigError(f"the file --redis-password-file {file} is empty: it holds the password alone")
    return password
