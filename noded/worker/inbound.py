"""A caller's data connection, seen from the worker."""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from noded.client.reader import Reader
from noded.wire import messages as m
from noded.wire.link import FrameError, Link, LinkClosed
from noded.wire.session_link import SessionLink

_UNSENT_LIMIT = 8 << 20


class RemoteCode:
    """A function as it came over this connection; loaded at first use, in the thread that runs tasks."""

    __slots__ = ("call", "data", "hash", "max_calls", "name", "num_cpus")

    def __init__(self, message: m.Func, data: Any):
        self.name = message.name
        self.hash = message.hash
        self.num_cpus = message.num_cpus
        self.max_calls = message.max_calls
        self.data = data
        self.call: Callable[..., Any] | None = None


class Inbound:
    """``on_message(inbound, message, payload)`` and ``on_closed(inbound)`` run in whichever thread reads,
    under the runtime's lock.
    """

    def __init__(
        self,
        sock: Any,
        lock: Any,
        reader: Reader,
        on_message: Callable[[Inbound, Any, Any], None],
        on_closed: Callable[[Inbound], None],
        on_drained: Callable[[Inbound], None],
        *,
        remote: bool = False,
    ):
        self.session: SessionLink | None = None
        """Of a caller on another node: what survives its connections."""
        if remote:
            self.session = SessionLink(
                sock,
                m.decode_to_worker,
                m.GotAnswers,
                lambda message: type(message) is m.GotCalls,
                lambda message: type(message) is m.Hello,
            )
        self.link: Link = self.session if self.session is not None else Link(sock, m.decode_to_worker)
        self.suspended_at = 0.0
        self.prefix = b""
        self.functions: dict[int, RemoteCode] = {}
        self.lent: m.Lent | None = None
        """What came with the lease that its pushes are under."""
        self.held: deque[Any] = deque()
        """What it asked for that waits until it has read its answers."""
        self._lock = lock
        self._reader = reader
        self._on_message = on_message
        self._on_closed = on_closed
        self._on_drained = on_drained
        self._writing = False
        self.answers: deque[tuple[Any, bytes]] = deque()
        """Queued without the lock, and not on the link yet: threads that wait for it after each call are slow."""
        self.answer: Callable[[tuple[Any, bytes]], None] = self.answers.append
        """Queue a message with its payload, from any thread."""
        reader.add(sock.fileno(), self._on_event)

    def _on_event(self, what: int) -> None:
        with self._lock:
            if self.link.closed:
                return
            try:
                if what & 4:
                    self.flush_locked()
                if what & ~4:
                    self.link.receive(self._handle)
            except (LinkClosed, FrameError):
                if self.session is not None and self.prefix:
                    self.suspend_locked()
                else:
                    self.close_locked()

    def _handle(self, message: Any, payload: Any) -> None:
        self._on_message(self, message, payload)

    def send_locked(self, message: Any) -> None:
        """Queue it behind all answers."""
        answers, send = self.answers, self.link.send
        while answers:
            send(*answers.popleft())
        send(message)

    def flush_locked(self) -> None:
        """Write what goes; the rest when the socket says so. A caller that is gone is noticed by reading."""
        answers, send = self.answers, self.link.send
        if self.link.closed:
            answers.clear()
            return
        while answers:
            send(*answers.popleft())
        try:
            done = self.link.flush()
        except LinkClosed:
            if self.session is not None:
                self.suspend_locked()
                return
            self.link.out.clear()
            self.link.unsent = self.link.unsent_bytes = 0
            return
        if done == self._writing:
            self._writing = not done
            self._reader.want_write(self.link.fileno(), not done)
        if self.held and self.link.unsent_bytes < _UNSENT_LIMIT // 2:
            self._on_drained(self)

    def slow(self) -> bool:
        """More of its answers than is reasonable are still unsent."""
        return self.link.unsent_bytes > _UNSENT_LIMIT and not self.link.closed

    def suspend_locked(self) -> None:
        """The connection to another node is broken; its caller may come back on another."""
        assert self.session is not None
        if not self.session.suspended:
            self._reader.remove(self.session.fileno())
            self.session.suspend()
            self._writing = False
            self.suspended_at = time.monotonic()

    def resume_locked(self, sock: socket.socket, got: int) -> None:
        """It is back, and has had so many of our answers."""
        assert self.session is not None
        self.suspend_locked()
        self.session.resume(sock, m.GotAnswers(self.session.received))
        self._reader.add(sock.fileno(), self._on_event)
        self.session.on_ack(got)
        self.flush_locked()

    def give_up_socket(self) -> socket.socket:
        """Its socket belongs to a session that was here before."""
        self._reader.remove(self.link.fileno())
        return self.link.sock

    def close_locked(self) -> None:
        if not self.link.closed:
            self._reader.remove(self.link.fileno())
            self.link.close()
            self._on_closed(self)
