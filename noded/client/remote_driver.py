"""A driver on a machine without a node: connected to one over the network, with no shared memory.

It holds the cluster's token and dials by itself, always to the node it is connected to, which passes what is for
workers of other nodes on. Big values go over connections of their own (``wire/chunks.py``) into and out of that node's
store; small ones travel in messages.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from noded import exceptions as ex
from noded.wire import chunks
from noded.wire.dial import dial
from noded.wire.handshake import HandshakeError

_THREADS = 4
_TRIES = 3


class Remote:
    """Where the node is, and how to get in. ``tls`` as in ``dial``."""

    def __init__(self, address: str, token: bytes, tls: ssl.SSLContext | None):
        self.address = address
        self._token = token
        self._tls = tls
        self._threads = ThreadPoolExecutor(_THREADS, "noded-remote")
        self._idle: list[socket.socket] = []
        self._lock = threading.Lock()
        self._closed = False

    def connect(self, target: str = "node", timeout: float = 5.0) -> socket.socket:
        """Blocking. Raises OSError, HandshakeError."""
        return dial(self.address, self._token, target, tls=self._tls, timeout=timeout)

    # ------------------------------------------------------------ tasks.Dialer

    def dial(self, worker: str, address: str, call: Callable[[socket.socket | None], None]) -> None:
        def run() -> None:
            try:
                sock: socket.socket | None = self.connect(f"worker/{worker}")
            except (OSError, HandshakeError):
                sock = None
            call(sock)

        self._submit(run)

    def _submit(self, run: Callable[[], None]) -> None:
        try:
            self._threads.submit(run)
        except RuntimeError:  # closed
            pass

    # ------------------------------------------------------------ objects.Uploads

    def store(self, id_: bytes, pieces: Sequence[tuple[int, Any]], size: int) -> None:
        def once(sock: socket.socket) -> None:
            chunks.store(sock, id_, pieces, size)

        try:
            self._with_connection(once)
        except chunks.Refused as refusal:
            raise ex.ObjectStoreFullError(str(refusal)) from None

    def fetch(self, id_: bytes, size: int, call: Callable[[Any], None]) -> None:
        def run() -> None:
            try:
                value: Any = self._with_connection(lambda sock: chunks.fetch(sock, id_, size))
            except chunks.Gone:
                value = ex.ObjectLostError(id_.hex(), "the node does not have it any more")
            except Exception as problem:
                value = ex.ObjectLostError(id_.hex(), f"it cannot be fetched from {self.address}: {problem}")
            call(value)

        self._submit(run)

    def _with_connection(self, work: Callable[[socket.socket], Any]) -> Any:
        problem: Exception | None = None
        for _ in range(_TRIES):
            try:
                sock = self._take()
            except (OSError, HandshakeError) as failure:
                problem = failure
                continue
            try:
                found = work(sock)
            except (OSError, chunks.Busy) as failure:
                sock.close()
                problem = failure
                continue
            except BaseException:
                sock.close()
                raise
            self._give(sock)
            return found
        raise ex.LocalDaemonDiedError(f"values cannot be exchanged with the node at {self.address}: {problem}")

    def _take(self) -> socket.socket:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self.connect("transfer")

    def _give(self, sock: socket.socket) -> None:
        with self._lock:
            if not self._closed and len(self._idle) < _THREADS:
                self._idle.append(sock)
                return
        sock.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for sock in idle:
            sock.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
