"""What a daemon needs before it has components: the token, who it is, the head's storage, memory, sockets, an address.

Memory and sockets outlive the daemon: its spawner keeps their descriptors, and gives them to the next one.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from noded.config import (
    SENTINEL_PASSWORD,
    Config,
    ConfigError,
    cluster_dir,
    load_or_create_token,
    read_password,
    read_token,
    storage_namespace,
)
from noded.head.storage import Storage
from noded.node.ledger import Ledger
from noded.node.listener import bind
from noded.node.spawner_link import SpawnerLink
from noded.node.spill_files import SpillFiles, sweep
from noded.shm import arena as shm
from noded.wire.dial import split_address

if TYPE_CHECKING:
    from noded.head.storage.redis_link import Access


class StartError(Exception):
    """The daemon cannot start; the text says why and what to do."""


def find_token(config: Config) -> bytes:
    """Raises ConfigError where a member has none."""
    if config.head:
        return load_or_create_token(config.home)
    found = read_token(config.home, os.environ)
    if found is None:
        raise ConfigError(
            f"there is no token here to join a cluster with: copy the head's ({config.home}/token there) to "
            "NODED_TOKEN, to the file NODED_TOKEN_FILE, or to the same place here with mode 600"
        )
    return found


class Standing(msgspec.Struct):
    """Which node of which cluster this is; number 0: it has not been told yet."""

    number: int
    cluster_id: str
    head_epoch: int = 0
    """The highest of a head that it has joined."""

    @classmethod
    def read(cls, run_dir: str, *, head: bool) -> Standing:
        """What a daemon in this directory was, for as long as the directory is there."""
        try:
            told = json.loads((Path(run_dir) / "identity.json").read_text())
            return cls(int(told["number"]), str(told["cluster_id"]), int(told.get("head_epoch", 0)))
        except (OSError, ValueError, KeyError, TypeError):
            return cls(0, secrets.token_hex(8) if head else "")

    def write(self, run_dir: str) -> None:
        draft = Path(run_dir) / f"identity.{os.getpid()}"
        draft.write_text(json.dumps(msgspec.structs.asdict(self)))
        draft.replace(Path(run_dir) / "identity.json")


async def open_storage(config: Config, run_dir: str, token: bytes) -> Storage:
    """Raises StorageError, ConfigError."""
    storage: Storage
    namespace = storage_namespace(config, token)
    place = Path(run_dir) if config.private else cluster_dir(config)
    if config.storage == "memory":
        from noded.head.storage.memory import MemoryStorage

        storage = MemoryStorage(namespace)
    elif config.redis is not None:
        from noded.head.storage.redis import RedisStorage

        storage = RedisStorage(redis_access(config, os.environ), namespace, place / "journal")
    else:
        from noded.head.storage.sqlite import SqliteStorage

        storage = SqliteStorage(place / "head.db", namespace, durable=not config.private)
    try:
        await storage.open()
    except BaseException:
        await storage.close()
        raise
    return storage


def redis_access(config: Config, env: Mapping[str, str]) -> Access:
    """Raises ConfigError."""
    from noded.head.storage.redis_link import Access

    assert config.redis is not None
    return Access(
        config.redis,
        read_password(env, config.redis_password_file),
        env.get(SENTINEL_PASSWORD, ""),
        ca=config.redis_ca,
        cert=config.redis_cert,
        key=config.redis_key,
    )


def adopt_memory(kept: dict[str, int]) -> tuple[Ledger, shm.Arena]:
    """Those of the daemon before this one."""
    ledger = Ledger.open(kept.pop("ledger"))
    fd = kept.pop("arena")
    return ledger, shm.Arena(fd, os.fstat(fd).st_size)


def new_memory(size: int, epoch: int, spawner: SpawnerLink) -> tuple[Ledger, shm.Arena]:
    ledger = Ledger.create(incarnation=os.urandom(16))
    ledger.epoch = max(epoch, int(time.time()))  # above every lease of an earlier incarnation
    size &= -shm.BLOCK
    arena = shm.Arena(shm.create(size), size)
    spawner.keep("ledger", ledger.fd)
    spawner.keep("arena", arena.fd)
    return ledger, arena


def spill_files(config: Config, node_id: str) -> SpillFiles:
    """The directories of this incarnation of the node, of which none is made yet."""
    name = f"{config.cluster}-{config.node_name}-{node_id[:16]}"
    return SpillFiles(_spill_parents(config), name, config.object_spilling_limit)


async def sweep_spill(config: Config) -> None:
    """Remove what nodes that have ended have left there."""
    for parent in _spill_parents(config):
        await asyncio.to_thread(sweep, parent)


def _spill_parents(config: Config) -> list[Path]:
    default = config.home / "spill"
    # One that others use as well gets a directory for each user.
    return [
        path if path == default else path / f"noded-spill-{os.getuid()}" for path in config.object_spilling_directory
    ]


def open_sockets(config: Config, run_dir: str, kept: dict[str, int], spawner: SpawnerLink) -> list[socket.socket]:
    """The one TCP port, and the socket of this node's clients."""
    if "tcp" in kept and "control" in kept:
        return [socket.socket(fileno=kept.pop("tcp")), socket.socket(fileno=kept.pop("control"))]
    tcp = bind(config.host, config.port)
    path = os.path.join(run_dir, "control.sock")
    if os.path.exists(path):
        os.unlink(path)
    control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    control.bind(path)
    control.listen(4096)
    spawner.keep("tcp", tcp.fileno())
    spawner.keep("control", control.fileno())
    return [tcp, control]


def address_of(config: Config, tcp: socket.socket) -> str:
    """The "host:port" that other nodes reach this one by."""
    host, port = tcp.getsockname()[:2]
    if config.advertise:
        name, _, given = config.advertise.rpartition(":")
        return config.advertise if given.isdigit() and name else f"{config.advertise}:{port}"
    if config.node_ip_address:
        host = config.node_ip_address
    elif host in ("0.0.0.0", "::"):
        host = _outside_host(host, config.address)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _outside_host(host: str, head: str | None) -> str:
    """Of a node that listens on all: the host that others reach it by, most likely."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    target = ("2001:db8::1", 9) if ":" in host else ("192.0.2.1", 9)
    if head:
        try:
            found = socket.getaddrinfo(*split_address(head), type=socket.SOCK_DGRAM)
            family, target = found[0][0], (str(found[0][4][0]), int(found[0][4][1]))
        except OSError:
            pass
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # sends nothing: it only says which address would be used
            return str(probe.getsockname()[0])
    except OSError:
        return "::1" if ":" in host else "127.0.0.1"
