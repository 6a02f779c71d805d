"""The one TCP port of a node: tells HTTP from noded by the first bytes, and hands the sockets to the loop.

An acceptor thread owns the listening socket, so that a busy loop neither refuses nor delays anybody: it
answers /healthz itself with the age of the loop's last turn (`beat`), takes noded connections through the
handshake, and holds an HTTP connection until the head of its first request is complete. Who has not come that
far is bounded: 256 connections, 5 seconds and 4 KB each; further ones wait in the kernel's backlog. With TLS
there is nothing else: a connection gets a tunnel, whose plain end is then a guest like any other. Not here:
HTTP (`http/`), the control protocol, TLS itself (`wire/tls.py`). See docs/architecture.md, section 10.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from noded.wire.dial import set_options
from noded.wire.handshake import HandshakeError, ServerHandshake

if TYPE_CHECKING:
    import ssl

    from noded.wire.tls import Tunnel

MAX_GUESTS = 256
GUEST_SECONDS = 5.0
GUEST_BYTES = 4096
# A loop that has not turned for so long is reported as not healthy.
STALLED_SECONDS = 10.0

_BACKLOG = 1024
_ACCEPTS_PER_TURN = 64
# Out of descriptors, or full: look again after this time, as nothing tells when there is room.
_PAUSE = 0.1
_SECONDS_BETWEEN_LOGS = 10.0
_METHODS = tuple(method + b" " for method in b"GET HEAD POST PUT DELETE PATCH OPTIONS".split())
_PREAMBLE = b"noded/"
_TLS_RECORD = b"\x16"
_NO_TLS_HERE = "it speaks TLS, which is not configured here: use http:// or noded's own protocol"
_TLS_REQUIRED = (
    "it does not speak TLS, which this node requires: use https://, or give --tls-cert, --tls-key and --tls-ca there"
)
_HEAD_END = b"\r\n\r\n"
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

OnHttp = Callable[[socket.socket, bytes], None]
OnControl = Callable[[socket.socket, str, bytes], None]
Kind = Literal["unsure", "http", "noded", "tls", "unknown"]

log = logging.getLogger(__name__)


class ListenError(Exception):
    """The address cannot be listened on; the text says why and what to do."""


class PortInUse(ListenError):
    """Somebody else listens there."""


class Listener:
    """Callbacks run in the loop's thread and own the (non-blocking) socket from then on. With `tls`, noded's own
    protocol needs a certificate that the cluster's CA signed; HTTP does not.
    """

    def __init__(
        self,
        sock: socket.socket,
        token: bytes,
        on_http: OnHttp,
        on_control: OnControl,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._sock = sock
        self._token = token
        self._on_http = on_http
        self._on_control = on_control
        self._tls = tls
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._wake_fd = -1
        self._last_turn = 0.0
        self._guests: dict[int, _Guest] = {}
        # Handed over, not yet taken by the loop. Filled by the thread, emptied by the loop.
        self._waiting: set[socket.socket] = set()
        self._refusals = _SparseLog()

    @property
    def port(self) -> int:
        return int(self._sock.getsockname()[1])

    def beat(self) -> None:
        """Tell that the loop turns; to be called there every few seconds."""
        self._last_turn = time.monotonic()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.beat()
        self._sock.setblocking(False)
        read_fd, self._wake_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread = threading.Thread(target=self._serve, args=(read_fd,), name="noded-acceptor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop accepting, close what nobody has taken; the thread has ended afterwards."""
        if self._thread is not None:
            os.close(self._wake_fd)
            self._thread.join()
            self._thread = None
        self._sock.close()
        while self._waiting:
            self._waiting.pop().close()

    # Below: the acceptor thread, apart from _take.

    def _serve(self, wake_fd: int) -> None:
        poll = select.epoll()
        try:
            poll.register(wake_fd, select.EPOLLIN)
            poll.register(self._sock, 0)
            self._turn_until_woken(poll, wake_fd)
        finally:
            for guest in self._guests.values():
                guest.sock.close()
            self._guests.clear()
            poll.close()
            os.close(wake_fd)

    def _turn_until_woken(self, poll: select.epoll, wake_fd: int) -> None:
        listening, paused_until = False, 0.0
        while True:
            now = time.monotonic()
            self._end_expired(poll, now)
            wanted = self._has_room() and now >= paused_until
            if wanted != listening:
                poll.modify(self._sock, select.EPOLLIN if wanted else 0)
                listening = wanted
            for fd, _ in poll.poll(self._patience(now, listening)):
                if fd == wake_fd:  # its other end is closed: that is the sign
                    return
                if fd == self._sock.fileno():
                    if not self._accept(poll):
                        paused_until = time.monotonic() + _PAUSE
                elif guest := self._guests.get(fd):
                    self._hear(poll, guest)

    def _has_room(self) -> bool:
        return len(self._guests) + len(self._waiting) < MAX_GUESTS

    def _patience(self, now: float, listening: bool) -> float | None:
        oldest = next(iter(self._guests.values()), None)
        left = None if oldest is None else max(0.0, oldest.deadline - now)
        if listening:
            return left
        return _PAUSE if left is None else min(left, _PAUSE)

    def _end_expired(self, poll: select.epoll, now: float) -> None:
        # In order of arrival, so the first that has time left ends the search.
        for guest in list(self._guests.values()):
            if guest.deadline > now:
                break
            self._refuse(poll, guest, f"it did not say within {GUEST_SECONDS:g} s who it is")

    def _accept(self, poll: select.epoll) -> bool:
        """False when the machine is short of something, and trying again at once would spin."""
        for _ in range(_ACCEPTS_PER_TURN):
            if not self._has_room():
                break
            try:
                sock, address = self._sock.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno not in _SHORTAGES:
                    continue  # that connection failed before it was accepted
                self._refusals.warn(f"cannot accept connections: {error}; raise the limit of open files")
                return False
            sock.setblocking(False)
            set_options(sock)
            self._guests[sock.fileno()] = _Guest(sock, address, time.monotonic() + GUEST_SECONDS)
            poll.register(sock, select.EPOLLIN)
        return True

    def _hear(self, poll: select.epoll, guest: _Guest) -> None:
        try:
            chunk = guest.sock.recv(GUEST_BYTES - len(guest.data))
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            return self._on_end(poll, guest)
        guest.data += chunk
        if self._tls is not None and guest.tunnel is None:
            return self._on_outer(poll, guest, self._tls)
        kind = "noded" if guest.handshake else kind_of(guest.data)
        if kind == "http":
            self._on_request(poll, guest)
        elif kind == "noded" and guest.tunnel is not None and not guest.tunnel.certified:
            self._refuse(poll, guest, "it gave no certificate that the cluster's CA signed")
        elif kind == "noded":
            self._on_handshake(poll, guest, chunk)
        elif kind == "tls" and guest.tunnel is None:
            self._refuse(poll, guest, _NO_TLS_HERE)
        elif kind in ("unknown", "tls"):
            self._refuse(poll, guest, f"its first bytes {bytes(guest.data[:16])!r} are neither HTTP nor noded")

    def _on_end(self, poll: select.epoll, guest: _Guest) -> None:
        if guest.tunnel is not None and guest.tunnel.failure:
            self._refuse(poll, guest, f"TLS failed: {guest.tunnel.failure}")
        else:
            self._end(poll, guest)

    def _on_outer(self, poll: select.epoll, guest: _Guest, context: ssl.SSLContext) -> None:
        """The first bytes, where TLS is required: from here on the plain end of a tunnel is the guest."""
        from noded.wire.tls import tunnel  # only where it is used: it brings in OpenSSL

        if kind_of(guest.data) != "tls":
            return self._refuse(poll, guest, _TLS_REQUIRED)
        fd = guest.sock.fileno()
        poll.unregister(fd)
        try:
            inner = tunnel(guest.sock, context, server_side=True, initial=bytes(guest.data))
        except OSError as error:
            del self._guests[fd]
            self._refusals.warn(f"closed the connection from {guest.peer()}: no TLS for it: {error}")
            return
        guest.sock, guest.tunnel = inner, inner.tunnel
        guest.data.clear()
        # In its place, as they are in order of their deadlines.
        self._guests = {(inner.fileno() if each is guest else at): each for at, each in self._guests.items()}
        poll.register(inner, select.EPOLLIN)

    def _on_request(self, poll: select.epoll, guest: _Guest) -> None:
        if _HEAD_END in guest.data:
            if _asks_for_health(guest.data):
                guest.send(self._health(with_body=not guest.data.startswith(b"HEAD")))
                self._end(poll, guest)
            else:
                self._hand_over(poll, guest, self._on_http, bytes(guest.data))
        elif len(guest.data) >= GUEST_BYTES:
            guest.send(_response("431 Request Header Fields Too Large", {"error": "the request's head is too long"}))
            self._refuse(poll, guest, f"the head of its request has over {GUEST_BYTES} bytes")

    def _on_handshake(self, poll: select.epoll, guest: _Guest, chunk: bytes) -> None:
        if guest.handshake is None:
            guest.handshake = ServerHandshake(self._token)
            chunk = bytes(guest.data)
            guest.send(guest.handshake.start())
        handshake = guest.handshake
        try:
            answer = handshake.feed(chunk)
        except HandshakeError as error:
            return self._refuse(poll, guest, f"handshake failed ({error.reason}): {error}")
        if not guest.send(answer):
            self._end(poll, guest)
        elif handshake.done:
            self._hand_over(poll, guest, self._on_control, handshake.target, handshake.leftover)
        elif len(guest.data) >= GUEST_BYTES:
            self._refuse(poll, guest, f"it sent over {GUEST_BYTES} bytes before the handshake was over")

    def _health(self, with_body: bool) -> bytes:
        age = time.monotonic() - self._last_turn
        stalled = age > STALLED_SECONDS
        return _response(
            "503 Service Unavailable" if stalled else "200 OK",
            {"status": "stalled" if stalled else "ok", "loop_age_ms": round(age * 1000)},
            with_body,
        )

    def _hand_over(self, poll: select.epoll, guest: _Guest, taker: Callable[..., None], *words: object) -> None:
        assert self._loop is not None
        self._forget(poll, guest)
        self._waiting.add(guest.sock)
        try:
            self._loop.call_soon_threadsafe(self._take, guest.sock, taker, *words)
        except RuntimeError:  # the loop is closed: stop() is next, and closes it
            return

    def _take(self, sock: socket.socket, taker: Callable[..., None], *words: object) -> None:
        """In the loop's thread: pass the socket on, unless stop() came first."""
        if sock in self._waiting:
            self._waiting.remove(sock)
            try:
                taker(sock, *words)
            except BaseException:
                sock.close()
                raise

    def _refuse(self, poll: select.epoll, guest: _Guest, reason: str) -> None:
        self._refusals.warn(f"closed the connection from {guest.peer()}: {reason}")
        self._end(poll, guest)

    def _end(self, poll: select.epoll, guest: _Guest) -> None:
        self._forget(poll, guest)
        guest.sock.close()

    def _forget(self, poll: select.epoll, guest: _Guest) -> None:
        del self._guests[guest.sock.fileno()]
        poll.unregister(guest.sock)


class _Guest:
    """A connection that has not yet shown what it is."""

    def __init__(self, sock: socket.socket, address: Any, deadline: float) -> None:
        self.sock = sock
        self.address = address
        self.deadline = deadline
        self.data = bytearray()
        self.handshake: ServerHandshake | None = None
        self.tunnel: Tunnel | None = None

    def send(self, data: bytes) -> bool:
        """A few bytes, which a fresh connection's buffer has room for; False when it is broken."""
        try:
            return self.sock.send(data) == len(data) if data else True
        except OSError:
            return False

    def peer(self) -> str:
        return f"{self.address[0]} port {self.address[1]}"


class _SparseLog:
    """Warnings that strangers can cause: one line in a while, with the number of those left out."""

    def __init__(self) -> None:
        self._next = 0.0
        self._left_out = 0

    def warn(self, text: str) -> None:
        now = time.monotonic()
        if now < self._next:
            self._left_out += 1
            return
        also = f" (and {self._left_out} more such lines)" if self._left_out else ""
        self._next, self._left_out = now + _SECONDS_BETWEEN_LOGS, 0
        log.warning("%s%s", text, also)


def kind_of(data: bytes | bytearray) -> Kind:
    """What the first bytes of a connection say about it."""
    if data.startswith(_TLS_RECORD):
        return "tls"
    if data.startswith(_PREAMBLE):
        return "noded"
    if data.startswith(_METHODS):
        return "http"
    starts = (_PREAMBLE, *_METHODS)
    return "unsure" if any(start.startswith(data) for start in starts) else "unknown"


def _asks_for_health(request: bytes | bytearray) -> bool:
    method, target, _ = (*bytes(request).split(b"\r\n", 1)[0].split(b" "), b"", b"")[:3]
    return method in (b"GET", b"HEAD") and target.partition(b"?")[0] == b"/healthz"


def _response(status: str, content: dict[str, object], with_body: bool = True) -> bytes:
    body = json.dumps(content).encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (body if with_body else b"")


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one."""
    where = f"port {port} of {host}"
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise ListenError(f"cannot listen on {host}: {error.strerror}; give an address of this machine") from None
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"{where} is in use{_holder(port)}: stop that, or take another port (0: any free one)"
            ) from None
        raise ListenError(f"cannot listen on {where}: {error.strerror}; give another --host or --port") from None
    return sock


def _holder(port: int) -> str:
    """ " by pid 7 (its command)", as far as this user may know."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError), open(table) as lines:
            for words in map(str.split, lines):
                if words[3] == "0A" and int(words[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{words[9]}]")
    for process in Path("/proc").glob("[0-9]*") if inodes else ():
        with suppress(OSError):
            if any(os.readlink(fd) in inodes for fd in process.joinpath("fd").iterdir()):
                command = process.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                return f" by pid {process.name} ({command.strip()[:80]})"
    return ""
