"""The side that connects: address, TCP, TLS where there is any, handshake. Blocks; what it returns does not.

A ConnectionRefusedError means that no process listens there. Another OSError, or a peer that ends the
connection in the handshake, may pass; a HandshakeError does not by itself: it is not one to talk to.
"""

from __future__ import annotations

import errno
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from noded.wire.handshake import ClientHandshake, HandshakeError

if TYPE_CHECKING:
    import ssl

_UNANSWERED_MS = 10_000
# Where nothing is sent that would tell: who waits for an answer notices after 5 s that the other side has lost the
# connection (its own half of it was reset), and after 15 s that its machine is gone.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 6))


def dial(
    address: str, token: bytes, target: str, *, tls: ssl.SSLContext | None = None, timeout: float = 5.0
) -> socket.socket:
    """A non-blocking socket on which frames may follow, to "host:port" or "[v6]:port"."""
    handshake = ClientHandshake(token, target)
    deadline = time.monotonic() + timeout
    sock = _connect(address, deadline)
    try:
        if tls is not None:
            from noded.wire.tls import tunnel  # only where it is used: it brings in OpenSSL

            sock = tunnel(sock, tls, server_side=False)
        _shake(sock, handshake, deadline, address)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def says(address: str, line: bytes, timeout: float = 2.0) -> bool:
    """Whether who listens there says this line at once to whoever connects. Blocks."""
    deadline = time.monotonic() + timeout
    heard = b""
    try:
        with _connect(address, deadline) as sock:
            while line.startswith(heard) and len(heard) < len(line):
                sock.settimeout(max(0.01, deadline - time.monotonic()))
                data = sock.recv(len(line) - len(heard))
                if not data:
                    break
                heard += data
    except OSError:
        return False
    return heard == line


def set_options(sock: socket.socket) -> None:
    """For every TCP connection between nodes, on both sides."""
    with suppress(OSError):  # it may be gone already, which reading will tell
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        # What is under way when a network is cut is sent again ever more rarely: a new connection is there sooner.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNANSWERED_MS)


def split_address(address: str) -> tuple[str, int]:
    """Host and port of "host:port" or "[v6]:port"."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} is no address: give host:port, or [address]:port for IPv6")
    if ":" in host and not bracketed:
        raise ValueError(f"{address!r} is ambiguous: put the IPv6 address in brackets, as in [::1]:8265")
    return host[1:-1] if bracketed else host, int(port)


def _connect(address: str, deadline: float) -> socket.socket:
    host, port = split_address(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise OSError(errno.EHOSTUNREACH, f"{host} cannot be resolved: {error.strerror}") from None
    failures: list[OSError] = []
    for family, kind, protocol, _, where in found:
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:  # a family that this machine does not have
            failures.append(error)
            continue
        try:
            sock.settimeout(_left(deadline, address))
            sock.connect(where)
            set_options(sock)
            return sock
        except TimeoutError:
            sock.close()
            raise TimeoutError(errno.ETIMEDOUT, f"{address} did not answer in time") from None
        except OSError as error:
            sock.close()
            failures.append(error)
    # Refused means that nobody listens, so only if all say so.
    worst = next((each for each in failures if not isinstance(each, ConnectionRefusedError)), failures[0])
    raise OSError(worst.errno, f"cannot connect to {address}: {worst.strerror}") from None


def _shake(sock: socket.socket, handshake: ClientHandshake, deadline: float, address: str) -> None:
    try:
        answer = handshake.start()
        while True:
            sock.settimeout(_left(deadline, address))
            sock.sendall(answer)
            if handshake.done:
                break
            sock.settimeout(_left(deadline, address))
            received = sock.recv(4096)
            if not received:
                raise ConnectionResetError(errno.ECONNRESET, "")
            answer = handshake.feed(received)
    except TimeoutError:
        raise TimeoutError(errno.ETIMEDOUT, f"{address} did not answer in time") from None
    except OSError as error:
        raise _what_ended(sock, error, address) from None
    if handshake.leftover:
        raise HandshakeError("leftover", f"{address} sent more than the handshake before it was asked for anything")


def _what_ended(sock: socket.socket, error: OSError, address: str) -> Exception:
    tunnel = getattr(sock, "tunnel", None)
    if tunnel is not None and tunnel.error is not None:
        if tunnel.failure:
            return HandshakeError("tls", f"no TLS with {address}: {tunnel.failure}")
        return OSError(errno.ECONNRESET, f"{address} ended the connection in the TLS handshake: does it speak TLS?")
    if not isinstance(error, ConnectionError):
        return error
    hint = "its log says why; it may require TLS, or be of another version" if tunnel is None else "its log says why"
    return OSError(errno.ECONNRESET, f"{address} ended the connection in the handshake: {hint}")


def _left(deadline: float, address: str) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError(errno.ETIMEDOUT, f"{address} did not answer in time")
    return left
