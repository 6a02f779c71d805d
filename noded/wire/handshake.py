"""The mutual handshake that comes before anything else on a TCP connection, without I/O.

    client  b"noded/1 <target>\\n"  nonce(32)
    server  nonce(32)  HMAC(token, "server" + transcript)
    client  HMAC(token, "client" + transcript)
    server  b"\\x01"

The transcript is the preamble line and both nonces, so an answer is worth nothing in another handshake. Both
sides prove the token and neither shows it. It authenticates the two ends only: it does not encrypt what
follows, and deadlines and the number of open handshakes are the caller's (see `node/listener.py`). A
handshake that is not over holds less than 200 bytes, because every part of it has its size.
"""

from __future__ import annotations

import hmac
import re
import secrets
from typing import Literal

VERSION = 1
MAX_TARGET = 128

_MAGIC = b"noded/"
_MAX_VERSION_DIGITS = 8
_NONCE = 32
_MAC = 32
_ACCEPTED = b"\x01"
_TARGET = re.compile(rb"node|peer|head|transfer|(?:node|worker)/[0-9a-f]+")

Reason = Literal["bad_preamble", "version", "bad_token", "oversize", "tls", "leftover"]
"""The last two are found by who connects (`dial`), around this handshake."""


class HandshakeError(Exception):
    """The peer is not one to talk to; close the connection."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


class _Handshake:
    """What both sides share: the bytes that wait, the end, and the memory of a failure."""

    def __init__(self, token: bytes) -> None:
        if not token:
            raise ValueError("the cluster token is empty: an empty token would let everybody in")
        self.done = False
        self.leftover = b""
        self._token = token
        self._buffer = bytearray()
        self._failure: HandshakeError | None = None

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the peer; return the bytes to send to it."""
        if self._failure is not None:
            raise self._failure
        if self.done:
            self.leftover += data
            return b""
        self._buffer += data
        try:
            return self._advance()
        except HandshakeError as failure:
            self._failure = failure
            self._buffer.clear()
            raise

    def _advance(self) -> bytes:
        raise NotImplementedError

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _finish(self) -> None:
        self.leftover = self._take(len(self._buffer))
        self.done = True

    def _mac(self, side: bytes, transcript: bytes) -> bytes:
        return hmac.digest(self._token, side + transcript, "sha256")


class ClientHandshake(_Handshake):
    """The side that connects: send `start()`, then what `feed` returns, until `done`."""

    def __init__(self, token: bytes, target: str) -> None:
        super().__init__(token)
        wanted = target.encode()
        if len(wanted) > MAX_TARGET or not _TARGET.fullmatch(wanted):
            raise ValueError(
                f"bad handshake target {target!r}: use 'node', 'peer', 'head', 'transfer', 'node/<hex id>' or "
                f"'worker/<hex id>', at most {MAX_TARGET} bytes"
            )
        self.target = target
        self._hello = _MAGIC + b"%d " % VERSION + wanted + b"\n" + secrets.token_bytes(_NONCE)
        self._proved = False

    def start(self) -> bytes:
        return self._hello

    def _advance(self) -> bytes:
        answer = b""
        if not self._proved:
            if len(self._buffer) < _NONCE + _MAC:
                return b""
            transcript = self._hello + self._take(_NONCE)
            if not hmac.compare_digest(self._take(_MAC), self._mac(b"server", transcript)):
                raise HandshakeError(
                    "bad_token",
                    "the server does not have our cluster token: check NODED_TOKEN and the address",
                )
            self._proved = True
            answer = self._mac(b"client", transcript)
        if self._buffer:
            if self._take(1) != _ACCEPTED:
                raise HandshakeError("bad_token", "the server did not accept our proof of the cluster token")
            self._finish()
        return answer


class ServerHandshake(_Handshake):
    """The side that accepts: `target` is known, and worth believing, once `done`."""

    def __init__(self, token: bytes) -> None:
        super().__init__(token)
        self.target = ""
        self._line = b""
        self._expected = b""

    def start(self) -> bytes:
        """The server speaks second: nothing to send yet."""
        return b""

    def _advance(self) -> bytes:
        answer = b""
        if not self._line:
            self._line = self._read_line()
        if self._line and not self._expected and len(self._buffer) >= _NONCE:
            nonce = secrets.token_bytes(_NONCE)
            transcript = self._line + self._take(_NONCE) + nonce
            self._expected = self._mac(b"client", transcript)
            answer = nonce + self._mac(b"server", transcript)
        if self._expected and len(self._buffer) >= _MAC:
            if not hmac.compare_digest(self._take(_MAC), self._expected):
                raise HandshakeError("bad_token", "the client does not have the cluster token: check its NODED_TOKEN")
            self.target = self._line[self._line.index(b" ") + 1 : -1].decode()
            self._finish()
            answer += _ACCEPTED
        return answer

    def _read_line(self) -> bytes:
        """The whole preamble line, or b"" while it is incomplete; refuses as early as the bytes allow."""
        buffer = self._buffer
        if not _MAGIC.startswith(buffer[: len(_MAGIC)]):
            raise HandshakeError("bad_preamble", "the peer does not speak noded: its first bytes are not 'noded/'")
        head = bytes(buffer[len(_MAGIC) : len(_MAGIC) + _MAX_VERSION_DIGITS + 1])
        version, space, _ = head.partition(b" ")
        if (version and not version.isdigit()) or (space and not version) or len(version) > _MAX_VERSION_DIGITS:
            raise HandshakeError("bad_preamble", "the peer's preamble has no protocol version after 'noded/'")
        if not space:
            return b""
        if version != b"%d" % VERSION:
            raise HandshakeError(
                "version",
                f"the peer speaks noded/{version.decode()}, this is noded/{VERSION}: use the same version",
            )
        start = len(_MAGIC) + len(version) + 1
        end = buffer.find(b"\n", start, start + MAX_TARGET + 1)
        if end < 0:
            if len(buffer) - start > MAX_TARGET:
                raise HandshakeError("oversize", f"the peer's preamble names a target over {MAX_TARGET} bytes")
            return b""
        if not _TARGET.fullmatch(bytes(buffer[start:end])):
            raise HandshakeError(
                "bad_preamble",
                f"the peer asks for {bytes(buffer[start:end])!r}, which is nothing that a node has",
            )
        return self._take(end + 1)
