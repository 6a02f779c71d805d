"""TLS for everything on the one port: a tunnel per connection, so that nobody else knows of it.

A tunnel is a small thread between a TLS connection and one end of a socketpair; its user gets the other end, a
plain socket that can be polled, given to a loop, or sent to a worker like any other. What is not yet passed on
is bounded in both directions, so a slow reader slows the writer. A stream that ends is passed on as such, also
while the other direction goes on. The tunnel lives in the process that made it and ends with it, also where
its plain end has gone to another process. Not here: who must have a certificate (`node/listener.py`).
"""

from __future__ import annotations

import errno
import mmap
import select
import socket
import ssl
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHUNK = 256 << 10
# Its user has closed the plain end and the peer takes nothing more: so long it may stand still.
LINGER_SECONDS = 10.0

_LEAST_VERSION = ssl.TLSVersion.TLSv1_2
_BROKEN = select.POLLHUP | select.POLLERR | select.POLLNVAL
_NOTHING = memoryview(b"")


class TlsError(ValueError):
    """A certificate or key that cannot be used; the text names the file and the reason."""


@dataclass(frozen=True)
class TlsFiles:
    """PEM files: a node's certificate (and what lies between it and the CA), its key, the cluster's CA."""

    cert: Path
    key: Path
    ca: Path


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """Certificates are asked for, and verified where given: browsers and health probes have none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_OPTIONAL
    # No resumption: a certificate is looked at on every connection, and nothing is written before the peer asks.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    return _load(context, files)


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """Nodes have addresses that change, so names in certificates are not compared: whoever has any certificate
    that the CA signed is trusted as a node. The CA must therefore be the cluster's own and sign nothing else.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    return _load(context, files)


def _load(context: ssl.SSLContext, files: TlsFiles) -> ssl.SSLContext:
    context.minimum_version = _LEAST_VERSION
    context.options |= ssl.OP_NO_RENEGOTIATION
    for what, path in (("certificate", files.cert), ("key", files.key), ("CA certificate", files.ca)):
        try:
            path.read_bytes()
        except OSError as error:
            raise TlsError(f"the TLS {what} {path} cannot be read: {error.strerror}") from None
    for what, path in (("certificate", files.cert), ("CA certificate", files.ca)):
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
        except ssl.SSLError:
            raise TlsError(f"the TLS {what} {path} is no certificate in PEM form") from None
    context.load_verify_locations(files.ca)
    try:
        context.load_cert_chain(files.cert, files.key, password=lambda: _no_password(files.key))
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsError(f"the TLS key {files.key} does not belong to the certificate {files.cert}") from None
        raise TlsError(
            f"the TLS key {files.key} cannot be used with the certificate {files.cert}: {_explain(error)}"
        ) from None
    return context


def _no_password(key: Path) -> str:
    raise TlsError(f"the TLS key {key} is encrypted: a node has nobody to ask for its password, give it a plain one")


def _explain(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return error.strerror or str(error)


class TlsSocket(socket.socket):
    """The plain end of a tunnel. Asked for addresses, it tells those of the TLS connection."""

    tunnel: Tunnel

    def getpeername(self) -> Any:
        return self.tunnel.peer_address

    def getsockname(self) -> Any:
        return self.tunnel.own_address


def tunnel(sock: socket.socket, context: ssl.SSLContext, *, server_side: bool, initial: bytes = b"") -> TlsSocket:
    """The plain end of TLS over ``sock``, which is the tunnel's from now on, also where this raises OSError.
    ``initial``: what was read from it already.
    """
    with suppress(OSError):
        sock.setblocking(False)
    try:
        ours, end = socket.socketpair()
    except OSError:
        sock.close()
        raise
    inner = TlsSocket(end.family, end.type, end.proto, fileno=end.detach())
    try:
        for each in (ours, inner):
            each.setblocking(False)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHUNK)
        inner.tunnel = Tunnel(sock, ours, context, server_side)
        inner.tunnel.start(initial)
    except (OSError, RuntimeError) as error:  # RuntimeError: no more threads
        for each in (sock, ours, inner):
            each.close()
        raise error if isinstance(error, OSError) else OSError(errno.EAGAIN, str(error)) from None
    return inner


class _Side:
    """One of the two sockets, and what waits to be written to it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.unsent = _NOTHING
        self.readable = False
        self.ended = False
        """Nothing more comes from it."""
        self.gone = False
        """Nothing more can be written to it; there may still be something to read."""
        self.shut = False
        self.polled = 0

    def receive(self, buffer: memoryview) -> int:
        try:
            got = self.sock.recv_into(buffer)
        except BlockingIOError:
            self.readable = self.gone
            return 0
        except OSError:
            got, self.gone = 0, True
        self.ended = not got
        self.readable = self.gone and not self.ended
        return got

    def flush(self) -> None:
        while self.unsent:
            try:
                self.unsent = self.unsent[self.sock.send(self.unsent) :]
            except BlockingIOError:
                return
            except OSError:
                self.lose()

    def lose(self) -> None:
        self.gone = self.readable = True
        self.unsent = _NOTHING

    def end(self) -> None:
        """Tell it that nothing more comes."""
        if not self.shut:
            self.shut = True
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)

    def watch(self, poll: select.poll, events: int) -> None:
        # Poll tells of a hang-up again and again, asked or not, so a side that is gone is not in it.
        if self.gone:
            if self.polled >= 0:
                poll.unregister(self.sock)
            self.polled = -1
        elif events != self.polled:
            poll.modify(self.sock, events)
            self.polled = events


class Tunnel:
    """What a user may want to know of it. Everything else belongs to its thread: TLS is used by one only."""

    def __init__(self, outer: socket.socket, plain: socket.socket, context: ssl.SSLContext, server_side: bool) -> None:
        self.certified = False
        """The peer has shown a certificate that the CA signed. Known before the first byte comes out."""
        self.error: OSError | None = None
        """What ended it, if not one of the two sides. Known before the plain end ends."""
        self.peer_address = outer.getpeername()
        self.own_address = outer.getsockname()
        self.thread = threading.Thread(target=self._run, name="noded-tls", daemon=True)
        self._outer = _Side(outer)
        self._plain = _Side(plain)
        self._from_peer = ssl.MemoryBIO()
        self._to_peer = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._from_peer, self._to_peer, server_side=server_side)
        self._shaken = False
        self._no_more_from_peer = False
        self._notified = False
        # Mapped, so that an idle tunnel holds only the pages that it has used.
        room = memoryview(mmap.mmap(-1, 2 * CHUNK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self._read, self._decrypted = room[:CHUNK], room[CHUNK:]

    @property
    def failure(self) -> str:
        """In words, what has gone wrong in TLS itself; "" where a side has just ended."""
        return "" if self.error is None or isinstance(self.error, ConnectionError) else _explain(self.error)

    def start(self, initial: bytes) -> None:
        self._from_peer.write(initial)
        self.thread.start()

    def _run(self) -> None:
        try:
            poll = select.poll()
            poll.register(self._outer.sock, 0)
            poll.register(self._plain.sock, 0)
            while self._turn() and self._wait(poll):
                pass
        except OSError as error:
            self.error = error
        finally:
            with suppress(OSError):
                self._flush_outer()  # the alert that tells the peer why
            self._outer.sock.close()
            self._plain.sock.close()

    def _turn(self) -> bool:
        """Pass on all that can be passed on now; False when it is over."""
        outer, plain = self._outer, self._plain
        plain.flush()
        if outer.readable and self._wants_outer():
            self._from_peer.write(self._read[: outer.receive(self._read)])
        if self._shaken or self._shake():
            self._inward()
            self._flush_outer()
            if plain.readable and self._wants_plain():
                self._encrypt(plain.receive(self._read))
            self._tell_ends()
        self._flush_outer()
        return not self._is_over()

    def _wait(self, poll: select.poll) -> bool:
        """Until there is something to do; False when there never will be."""
        outer, plain = self._outer, self._plain
        wants_outer, wants_plain = self._wants_outer(), self._wants_plain()
        outer.watch(poll, (wants_outer and select.POLLIN) | (bool(outer.unsent) and select.POLLOUT))
        plain.watch(poll, (wants_plain and select.POLLIN) | (bool(plain.unsent) and select.POLLOUT))
        timeout = LINGER_SECONDS * 1000 if plain.gone else None
        if (outer.readable and wants_outer) or (plain.readable and wants_plain):
            timeout = 0  # one that is gone and not yet read to its end
        found = poll.poll(timeout)
        for fd, events in found:
            side = outer if fd == outer.sock.fileno() else plain
            side.readable = bool(events & select.POLLIN)
            if events & _BROKEN:
                side.lose()
        return bool(found) or timeout == 0

    def _wants_outer(self) -> bool:
        outer, plain = self._outer, self._plain
        return not (outer.ended or plain.unsent or plain.gone or self._no_more_from_peer)

    def _wants_plain(self) -> bool:
        return self._shaken and not (self._plain.ended or self._outer.unsent)

    def _shake(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            if self._outer.ended:
                raise ConnectionResetError(
                    errno.ECONNRESET, "the peer ended the connection in the TLS handshake"
                ) from None
            return False
        self.certified = self._tls.getpeercert(binary_form=True) is not None
        self._shaken = True
        return True

    def _inward(self) -> None:
        """What has come from the peer, as far as the plain end takes it."""
        plain = self._plain
        while not plain.unsent and (size := self._decrypt()):
            plain.unsent = _NOTHING if plain.gone else self._decrypted[:size]
            plain.flush()

    def _decrypt(self) -> int:
        size = 0
        try:
            while size < CHUNK:
                got = self._tls.read(CHUNK - size, self._decrypted[size:])
                if not got:
                    self._no_more_from_peer = True
                    break
                size += got  # type: ignore[operator] # it is a number where there is a buffer
        except ssl.SSLWantReadError:
            if self._outer.ended:  # without a word, so it does not read any more either
                self._no_more_from_peer = True
                self._outer.lose()
        except ssl.SSLZeroReturnError:
            self._no_more_from_peer = True
        return size

    def _encrypt(self, size: int) -> None:
        at = 0
        while at < size:
            at += self._tls.write(self._read[at:size])

    def _flush_outer(self) -> None:
        outer = self._outer
        outer.flush()
        if not outer.unsent and self._to_peer.pending:
            encrypted = self._to_peer.read()
            outer.unsent = _NOTHING if outer.gone else memoryview(encrypted)
            outer.flush()

    def _tell_ends(self) -> None:
        outer, plain = self._outer, self._plain
        if self._no_more_from_peer and not plain.unsent:
            plain.end()
        # Also looks for the peer's own notice, and would stumble over data in front of it: all is read first.
        if plain.ended and not plain.unsent and not self._notified:
            self._notified = True
            with suppress(ssl.SSLError):
                self._tls.unwrap()
        self._flush_outer()
        if self._notified and not outer.unsent:
            outer.end()

    def _is_over(self) -> bool:
        outer, plain = self._outer, self._plain
        if plain.gone and (outer.gone or not self._shaken):
            return True
        out_done = self._notified and not outer.unsent
        in_done = self._no_more_from_peer and not plain.unsent
        return (in_done and (out_done or outer.gone)) or (plain.gone and out_done)
