"""A link between nodes that survives its connection: what was sent is kept until the other side has said that it came.

A network may break a connection while both ends live. Who dialed dials again, and both say how many frames of the
session have arrived; the rest is sent again, in order. So each frame is handled exactly once, and what is above knows
nothing of it. The words of the session itself (Hello, GotCalls, GotAnswers) are not counted.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from noded.wire.link import Link, LinkClosed
from noded.wire.messages import encode

_ACK_FRAMES = 32
_ACK_BYTES = 1 << 20


class SessionLink(Link):
    """``ack(count)`` makes the message that says how many frames have arrived; ``is_ack(message)`` tells the other
    side's. While ``suspended`` there is no connection: sending keeps, reading and writing do nothing.
    """

    def __init__(
        self,
        sock: socket.socket,
        decode: Callable[[memoryview], Any],
        ack: Callable[[int], Any],
        is_ack: Callable[[Any], bool],
        is_uncounted: Callable[[Any], bool] = lambda message: False,
    ):
        super().__init__(sock, decode)
        self.suspended = False
        self.received = 0
        self._acked = 0
        """How many of the other side's frames we have told it of."""
        self._bytes_since = 0
        self._kept: deque[tuple[Any, bytes | memoryview, int]] = deque()
        self._first_kept = 0
        """The number of frames before the first kept one."""
        self._resuming = False
        self._ack = ack
        self._is_ack = is_ack
        self._is_uncounted = is_uncounted
        self.lost = False
        """The other side does not know the session any more."""

    @property
    def resuming(self) -> bool:
        """Connected again, and the other side has not said yet how much has arrived."""
        return self._resuming

    def fileno(self) -> int:
        return -1 if self.suspended else self.sock.fileno()

    def send(self, message: Any, payload: bytes | memoryview = b"") -> None:
        header = encode(message)
        self._kept.append((header, payload, len(header) + len(payload) + 8))
        if self.suspended or self._resuming:
            self.unsent_bytes += len(header) + len(payload) + 8
            self.unsent += 1
        else:
            self.send_encoded(header, payload)

    def send_uncounted(self, message: Any) -> None:
        if not self.suspended:
            super().send(message)

    def flush(self) -> bool:
        if self.suspended:
            return True
        done = super().flush()
        if done and self._resuming:
            self.unsent_bytes = sum(size for _, _, size in self._kept)
        return done

    def receive(self, handle: Callable[[Any, bytes | memoryview], None], *, rounds: int = 8) -> None:
        if self.suspended:
            return

        def counted(message: Any, payload: bytes | memoryview) -> None:
            if self._is_ack(message):
                self.on_ack(message.count)
            elif self._is_uncounted(message):
                handle(message, payload)
            else:
                self.received += 1
                self._bytes_since += len(payload)
                handle(message, payload)

        super().receive(counted, rounds=rounds)
        if self.lost:
            raise LinkClosed("the other side does not know this session any more")
        if self.received - self._acked >= _ACK_FRAMES or self._bytes_since > _ACK_BYTES:
            self.acknowledge()

    def acknowledge(self) -> None:
        """Say how much has arrived; it goes out with the next flush."""
        if self.received != self._acked:
            self._acked, self._bytes_since = self.received, 0
            self.send_uncounted(self._ack(self.received))

    def on_ack(self, count: int) -> None:
        """So many of our frames have arrived there."""
        if count < self._first_kept:
            self.lost = self.lost or count < 0 or self._resuming
            return
        while self._kept and self._first_kept < count:
            self._kept.popleft()
            self._first_kept += 1
        if self._resuming:
            self._resuming = False
            self.unsent_bytes = self.unsent = 0
            for header, payload, _ in self._kept:
                self.send_encoded(header, payload)

    # ------------------------------------------------------------ connections

    def suspend(self) -> None:
        """The connection is broken."""
        if not self.suspended and not self.closed:
            self.suspended = True
            self.sock.close()
            self.reset()
            self.unsent = len(self._kept)
            self.unsent_bytes = sum(size for _, _, size in self._kept)

    def resume(self, sock: socket.socket, first: Any) -> None:
        """On this connection now. ``first``: our first word on it."""
        if not self.suspended:
            self.suspend()
        self.sock = sock
        sock.setblocking(False)
        self.suspended, self._resuming = False, True
        self._acked = self.received  # that is what the first word says
        super().send(first)

    def close(self) -> None:
        if self.suspended and not self.closed:
            self.closed = True
            self._kept.clear()
        else:
            super().close()
