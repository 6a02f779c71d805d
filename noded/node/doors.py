"""Connections to other nodes, and through this one: with the token, and with TLS where that is configured."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from noded.wire.dial import dial
from noded.wire.handshake import HandshakeError

log = logging.getLogger("noded.doors")

_DIAL_SECONDS = 5.0
_SPLICE_BYTES = 256 << 10


class Doors:
    """``tls``: certificate, key and the CA's certificate. Raises TlsError."""

    def __init__(self, loop: asyncio.AbstractEventLoop, token: bytes, tls: tuple[Path, Path, Path] | None):
        self._loop = loop
        self._token = token
        self.server_tls: ssl.SSLContext | None = None
        self._client_tls: ssl.SSLContext | None = None
        if tls is not None:
            from noded.wire.tls import TlsFiles, client_context, server_context

            files = TlsFiles(*tls)
            self.server_tls, self._client_tls = server_context(files), client_context(files)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._splices: set[_Splice] = set()

    def dial_now(self, address: str, target: str) -> socket.socket:
        """Blocking, in a thread."""
        return dial(address, self._token, target, tls=self._client_tls, timeout=_DIAL_SECONDS)

    async def dial(self, address: str, target: str) -> socket.socket:
        """Connected and let in. Raises OSError, HandshakeError. A thread of its own: the loop's pool is bounded, and
        nodes that do not answer must not keep others waiting.
        """
        future: asyncio.Future[socket.socket] = self._loop.create_future()

        def settle(sock: socket.socket | None, problem: Exception | None) -> None:
            if future.done():
                if sock is not None:
                    sock.close()
            elif sock is not None:
                future.set_result(sock)
            else:
                assert problem is not None
                future.set_exception(problem)

        def run() -> None:
            sock, problem = None, None
            try:
                sock = self.dial_now(address, target)
            except (OSError, HandshakeError, ValueError) as error:
                problem = error
            try:
                self._loop.call_soon_threadsafe(settle, sock, problem)
            except RuntimeError:  # the loop is closed
                if sock is not None:
                    sock.close()

        threading.Thread(target=run, name=f"dial {address}", daemon=True).start()
        return await future

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine, name="door")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def splice(self, sock: socket.socket, address: str, target: str) -> None:
        """Connect a caller with another node, for callers that reach only this one."""

        async def connect() -> None:
            try:
                other = await self.dial(address, target)
            except (OSError, HandshakeError) as problem:
                log.info("a caller cannot be passed on to %s at %s: %s", target, address, problem)
                sock.close()
                return
            except BaseException:
                sock.close()
                raise
            splice = _Splice(sock, other, self._splices.discard)
            self._splices.add(splice)
            splice.start()

        self.spawn(connect())

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=5)
        for splice in list(self._splices):
            splice.end()


class _Splice:
    """Two sockets, each of which gets what the other says: a thread a direction."""

    def __init__(self, one: socket.socket, other: socket.socket, on_end: Any):
        self._ends = one, other
        self._on_end = on_end
        self._left = 2
        self._lock = threading.Lock()

    def start(self) -> None:
        one, other = self._ends
        for sock in self._ends:
            sock.setblocking(True)
        for source, sink in ((one, other), (other, one)):
            threading.Thread(target=self._pump, args=(source, sink), name="splice", daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        buffer = memoryview(bytearray(_SPLICE_BYTES))
        try:
            while got := source.recv_into(buffer):
                sink.sendall(buffer[:got])
        except OSError:
            pass
        self._shut(sink)
        self._shut(source)
        with self._lock:
            self._left -= 1
            last = not self._left
        if last:
            for sock in self._ends:
                sock.close()
            self._on_end(self)

    @staticmethod
    def _shut(sock: socket.socket) -> None:
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def end(self) -> None:
        for sock in self._ends:
            self._shut(sock)
