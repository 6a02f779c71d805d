"""A real redis-server, or a primary with a replica and three sentinels, as processes of the test.

Everything is in a directory of the test's; faults are real: SIGSTOP, SIGKILL, a restart with its data or empty. A
test that needs it is skipped where there is no redis-server.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import redis as client

from harness.wait import wait_for
from noded.config import redis_url
from noded.head.storage.redis import RedisStorage
from noded.head.storage.redis_link import Access
from noded.wire.tls import TlsFiles

COMMAND = shutil.which("redis-server")


def need_redis() -> None:
    if COMMAND is None:
        pytest.skip("there is no redis-server here: apt-get install redis-server")


def free_port() -> int:
    """Of a socket that is closed again: whoever takes it meanwhile makes the start fail, and that says so."""
    while True:
        with closing(socket.socket()) as sock:
            sock.bind(("127.0.0.1", 0))
            port = int(sock.getsockname()[1])
        if port <= 55535:  # a cluster's own port is 10000 above
            return port


class Server:
    """`with Server(tmp_path) as redis:`. `persistent`: what is written is on the disk when it is acknowledged."""

    def __init__(
        self,
        directory: Path,
        *options: str,
        persistent: bool = True,
        password: str = "",
        tls: TlsFiles | None = None,
        sentinel: bool = False,
        inside: Sequence[str] = (),
    ) -> None:
        """`inside`: a command that runs another one on a host (see netns.py); the test then asks by a Unix socket."""
        need_redis()
        self.directory = directory
        self.port = free_port()
        self.password = password
        self._tls = tls
        self._sentinel = sentinel
        self._inside = list(inside)
        self._options = [*(["--appendonly", "yes", "--appendfsync", "always"] if persistent else []), *options]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"{'rediss' if self._tls else 'redis'}://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server was never started"
        return self._process.pid

    def start(self) -> Server:
        self.directory.mkdir(parents=True, exist_ok=True)
        assert COMMAND is not None
        log = self.directory / "log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command(), cwd=self.directory, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        wait_for(self._answers, lambda: f"redis-server does not answer: {log.read_text()[-2000:]}", 20)
        return self

    def _command(self) -> list[str]:
        if self._sentinel:
            return [str(COMMAND), str(self.directory / "sentinel.conf"), "--sentinel"]
        ports = ["--port", str(self.port)]
        if self._tls is not None:
            ports = ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "yes"]
            ports += ["--tls-cert-file", str(self._tls.cert), "--tls-key-file", str(self._tls.key)]
            ports += ["--tls-ca-cert-file", str(self._tls.ca)]
        secret = ["--requirepass", self.password] if self.password else []
        everything = ["--bind", "127.0.0.1", "--dir", str(self.directory), "--save", ""]
        reached = ["--unixsocket", self._socket] if self._inside else []
        return [*self._inside, str(COMMAND), *everything, *ports, *reached, *secret, *self._options]

    @property
    def _socket(self) -> str:
        return str(self.directory / "socket")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"redis-server has ended: {(self.directory / 'log').read_text()[-2000:]}"
        try:
            with self.client() as asked:
                return bool(asked.ping())
        except (client.ConnectionError, client.TimeoutError):  # also while it loads its data
            return False

    def client(self) -> Any:
        """Of redis-py, to look and to disturb with; `with` closes it."""
        tls: dict[str, Any] = {}
        if self._tls is not None:
            tls = {"ssl": True, "ssl_ca_certs": str(self._tls.ca)}
            tls |= {"ssl_certfile": str(self._tls.cert), "ssl_keyfile": str(self._tls.key)}
        place: dict[str, Any] = {"host": "127.0.0.1", "port": self.port}
        if self._inside:
            place = {"unix_socket_path": self._socket}
        return client.Redis(
            **place,
            password=self.password or None,
            socket_timeout=5,
            decode_responses=True,
            **tls,
        )

    def call(self, *command: Any) -> Any:
        with self.client() as asked:
            return asked.execute_command(*command)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill9(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def restart(self, *, empty: bool = False) -> None:
        """kill9() where it runs, then the same server again; `empty`: without what it had on its disk."""
        if self._process is not None and self._process.poll() is None:
            self.kill9()
        if empty:
            shutil.rmtree(self.directory / "appendonlydir", ignore_errors=True)
        self.start()

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self.signal(signal.SIGCONT)
            self.kill9()


def redis_storage(
    server: Server | SentinelTrio, directory: Path, namespace: str = "default", **more: Any
) -> RedisStorage:
    """Not opened yet; its journal is in the directory."""
    password = server.password if isinstance(server, Server) else ""
    access = Access(redis_url.parse(server.url), password)
    return RedisStorage(access, namespace, directory / f"journal-{namespace}", **more)


class SentinelTrio:
    """A primary, a replica, and three sentinels that fail over within a second or two; they call it `service`."""

    service = "mymaster"

    def __init__(self, directory: Path, *, patience_ms: int = 500) -> None:
        need_redis()
        # A replica follows its primary with what is in memory, and may be made to lag.
        quick = ("--repl-diskless-sync-delay", "0", "--repl-timeout", "60")
        self.primary = Server(directory / "a", *quick)
        self.replica = Server(directory / "b", *quick, "--replicaof", "127.0.0.1", str(self.primary.port))
        self.sentinels = [Server(directory / f"s{n}", sentinel=True) for n in range(3)]
        self._patience_ms = patience_ms
        self._stack = ExitStack()

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{self.service}"

    def leader(self) -> int:
        """The port of the primary, as the sentinels say."""
        found: Sequence[Any] = self.sentinels[0].call("SENTINEL", "get-master-addr-by-name", self.service)
        return int(found[1])

    def __enter__(self) -> SentinelTrio:
        try:
            self._stack.enter_context(self.primary)
            self._stack.enter_context(self.replica)
            wait_for(
                lambda: self.replica.client().info("replication")["master_link_status"] == "up",
                "the replica does not follow its primary",
            )
            for sentinel in self.sentinels:
                sentinel.directory.mkdir(parents=True)
                (sentinel.directory / "sentinel.conf").write_text(
                    f"port {sentinel.port}\nbind 127.0.0.1\ndir {sentinel.directory}\n"
                    f"sentinel monitor {self.service} 127.0.0.1 {self.primary.port} 2\n"
                    f"sentinel down-after-milliseconds {self.service} {self._patience_ms}\n"
                    f"sentinel failover-timeout {self.service} 3000\n"
                )
                self._stack.enter_context(sentinel)
            wait_for(self._know_each_other, "the sentinels do not find each other and the replica", 20)
        except BaseException:
            self._stack.close()
            raise
        return self

    def _know_each_other(self) -> bool:
        told = [sentinel.client().info("sentinel")["master0"] for sentinel in self.sentinels]
        return all(each["slaves"] == 1 and each["sentinels"] == 3 for each in told)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
