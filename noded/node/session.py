"""One client's control connection on the loop, and the client behind it, who outlives connections."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from noded.wire import messages as m
from noded.wire.link import FrameError, Link, LinkClosed

log = logging.getLogger("noded.session")

_PAYLOAD_LIMIT = 256 << 20
_UNSENT_LIMIT = 256 << 20
_UNSENT_PAUSE = 8 << 20
"""Who leaves this much unread is not listened to before it reads: its requests are what makes the answers."""


@dataclass(eq=False)
class Client:
    """A driver or worker. Alive until the kernel says otherwise; between connections ``session`` is None."""

    prefix: bytes
    kind: str
    pid: int
    start_time: int
    job: str = ""
    worker: str = ""
    session: Session | None = None
    seq: int = 0
    """How far its control stream has been read (numbered messages)."""
    told: bool = True
    """False after a daemon restart until it has re-told its state."""
    held: dict[bytes, int] = field(default_factory=dict)
    """Ids it holds, with the generation of the hold."""
    pidfd: int = -1
    config: m.JobConfig | None = None
    fork_pipes: dict[int, int] = field(default_factory=dict)
    detached: bool = False

    def send(self, message: Any, payload: bytes | memoryview = b"") -> None:
        """Dropped while it is not connected: it asks again when it re-attaches."""
        if self.session is not None:
            self.session.send(message, payload)


class Session:
    """``on_message(session, message, payload)``; ``on_closed(session)`` once, when the connection is over."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        on_message: Callable[[Session, Any, Any], None],
        on_closed: Callable[[Session], None],
        *,
        local: bool,
    ):
        self.link = Link(sock, m.decode_to_daemon, payload_limit=_PAYLOAD_LIMIT)
        self.client: Client | None = None
        self.local = local
        self.tool = False
        self._loop = loop
        self._on_message = on_message
        self._on_closed = on_closed
        self._writing = False
        self._deaf = False
        self._flush_soon = False
        self.pid, self.uid = self._peer(sock) if local else (0, -1)
        loop.add_reader(sock.fileno(), self._on_readable)

    @staticmethod
    def _peer(sock: socket.socket) -> tuple[int, int]:
        import struct

        pid, uid, _gid = struct.unpack("iii", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return pid, uid

    def _handle(self, message: Any, payload: Any) -> None:
        self._on_message(self, message, payload)

    def _on_readable(self) -> None:
        try:
            self.link.receive_with_fds(self._handle)
        except LinkClosed:
            self.close()
        except FrameError as error:
            log.warning("closing the control connection of pid %s: %s", self.pid, error)
            self.close()
        except Exception:
            # What follows that message may depend on it. Who attaches again tells its whole state anew.
            log.exception("closing the control connection of pid %s: one of its messages cannot be handled", self.pid)
            self.close()

    def send(self, message: Any, payload: bytes | memoryview = b"") -> None:
        """Queue; everything queued in one turn of the loop goes out in one write."""
        if self.link.closed:
            return
        self.link.send(message, payload)
        if self._writing:
            self._mind_unread()
        elif not self._flush_soon:
            self._flush_soon = True
            self._loop.call_soon(self.flush)

    def send_with_fds(self, message: Any, fds: list[int]) -> None:
        self.link.send_with_fds(message, fds)
        self.flush()

    def flush(self) -> None:
        self._flush_soon = False
        if self.link.closed:
            return
        try:
            done = self.link.flush()
        except LinkClosed:
            # It is gone, but what it said last (stop, for one) is still to be read. The end is noticed after that.
            self.link.drop_unsent()
            done = True
        if done == self._writing:
            self._writing = not done
            if done:
                self._loop.remove_writer(self.link.fileno())
            else:
                self._loop.add_writer(self.link.fileno(), self.flush)
        self._mind_unread()

    def _mind_unread(self) -> None:
        unread = self.link.unsent_bytes
        if unread > _UNSENT_LIMIT:
            # It has not read for a long time (stopped?); it re-attaches and re-asks when it goes on.
            self._loop.call_soon(self.close)
        elif self._deaf != (unread > _UNSENT_PAUSE):
            self._deaf = not self._deaf
            if self._deaf:
                self._loop.remove_reader(self.link.fileno())
            else:
                self._loop.add_reader(self.link.fileno(), self._on_readable)

    def close(self) -> None:
        if not self.link.closed:
            fd = self.link.fileno()
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)
            self.link.close()
            self._on_closed(self)
