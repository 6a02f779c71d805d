"""One client's control connection on the loop, and the client behind it, who outlives connections."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from noded import ids
from noded.wire import messages as m
from noded.wire.loop_link import LoopLink


class Way(Protocol):
    """How messages get to a client: its own connection, or that of its node."""

    def send(self, message: Any, payload: bytes | memoryview = b"") -> None: ...

    def close(self) -> None: ...


class Client(msgspec.Struct, eq=False):
    """Who has leases, or holds objects. Alive until the kernel says otherwise, or, of another node's, that node does;
    between connections ``session`` is None.
    """

    prefix: bytes
    kind: str
    """``driver`` or ``worker``; ``guest``: a client of another node, which has leases here; ``node``: a whole node,
    which holds objects for its clients.
    """
    pid: int
    start_time: int
    job: str = ""
    worker: str = ""
    session: Way | None = None
    version: int = 0
    """Of the control messages it speaks; 0: it has not attached here."""
    seq: int = 0
    """How far its control stream has been read (numbered messages)."""
    told: bool = True
    """False after a daemon restart until it has re-told its state."""
    held: dict[bytes, int] = {}
    """Ids it holds, with the generation of the hold."""
    pidfd: int = -1
    config: m.JobConfig | None = None
    fork_pipes: dict[int, int] = {}
    detached: bool = False
    remote: bool = False
    """A driver on a host without a node: it has no shared memory, and ends when it stays away."""
    last_told: m.Told | None = None
    """After a daemon restart, or its own reconnect: what it waited for then."""
    queued: frozenset[int] = frozenset()
    """Of these nobody had begun then."""

    def may_hold(self, id_: bytes) -> bool:
        """Whether a result that turns up for it now may be one that it knows, or waits for."""
        told = self.last_told
        if told is None or not self.told:
            return True
        seq = ids.seq_of(id_)
        if seq > told.top or seq in self.queued:
            return True
        return seq in told.pending and ids.index_of(id_) >= dict(told.streams).get(seq, 0)

    def send(self, message: Any, payload: bytes | memoryview = b"") -> None:
        """Dropped while it is not connected: it asks again when it re-attaches."""
        if self.session is not None:
            self.session.send(message, payload)


class Session(LoopLink):
    """``on_message(session, message, payload)``; ``on_closed(session)`` once, when the connection is over. ``local``:
    over the Unix socket, else a driver of another host.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        on_message: Callable[[Session, Any, Any], None],
        on_closed: Callable[[Session], None],
        *,
        local: bool,
    ):
        self.client: Client | None = None
        self.local = local
        self.tool = False
        self.pid, self.uid = _peer(sock) if local else (0, -1)
        who = f"pid {self.pid}" if local else "a driver of another host"
        super().__init__(loop, sock, m.decode_to_daemon, on_message, on_closed, who)


def _peer(sock: socket.socket) -> tuple[int, int]:
    pid, uid, _gid = struct.unpack("iii", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid
