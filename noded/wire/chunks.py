"""How values of objects travel: requests and replies on a connection of their own, then raw bytes.

Integers are little endian. After the handshake, any number of requests one after another:

    GET  op u8 | id 16 | offset u64 | length u64   ->  status u8 | length u64 | the bytes, if OK
    PUT  op u8 | id 16 | size u64 | the bytes      ->  status u8 | if not OK: u16 length | text
    READ op u8                                     ->  nothing

READ says that the bytes of one more GET (the oldest, of those answered OK) have been read. The server needs to know:
it sends pages by reference (``sendfile``), so they must not be written to before then. For the same reason bytes count
as received only if the connection still stood *after* they were read: who gives up an unread reply resets the
connection first. At most ``OUTSTANDING`` GETs are under way on a connection.

Blocking, for threads; no knowledge of nodes or arenas. The two ends in a node are ``node/transfer_server.py`` and
``node/transfer_pull.py``; ``fetch`` and ``store`` are for who has no arena.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import struct
import threading
from collections.abc import Iterable

GET, PUT, READ = 1, 2, 3
OK, GONE, BUSY, REFUSED = 0, 1, 2, 3
OUTSTANDING = 2
ID_SIZE = 16
PATIENCE = 20.0
"""Seconds without a byte until a peer is given up."""

GET_REQUEST = struct.Struct("<B16sQQ")
PUT_REQUEST = struct.Struct("<B16sQ")
GET_REPLY = struct.Struct("<BQ")
TEXT_LENGTH = struct.Struct("<H")
READ_REQUEST = bytes([READ])
GET_REST = struct.Struct("<16sQQ")
"""What follows the op."""
PUT_REST = struct.Struct("<16sQ")

_TIMEVAL = struct.Struct("@ll")
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_STEP = 1 << 20
_MAPPED_FROM = 1 << 20
_ZEROS = bytes(64 << 10)


class TransferError(Exception):
    """What a peer may answer or do wrong; a lost or silent connection is an OSError."""


class Gone(TransferError):
    """The object is not there (any more)."""


class Busy(TransferError):
    """Not now; ask another, or again."""


class Refused(TransferError):
    """The value is not taken; the text says why."""


class Malformed(TransferError):
    """The peer does not speak this protocol."""


class Channel:
    """A connected, authenticated socket, used by one thread at a time; ``shutdown`` may come from any."""

    def __init__(self, sock: socket.socket, patience: float = PATIENCE):
        self.sock = sock
        self.by_reference = sock.family in (socket.AF_INET, socket.AF_INET6)
        """Whether pages may be sent without a copy: the far end of a Unix socket sees no reset."""
        self._patience = patience
        self._closing = threading.Lock()
        # Timeouts of the kernel's: a blocking call costs no poll before it, and sendfile heeds them too.
        sock.settimeout(None)
        limit = _TIMEVAL.pack(int(patience), int(patience % 1 * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        if self.by_reference:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._hang_up = select.poll()
        self._hang_up.register(sock, select.POLLRDHUP)
        self._any = select.poll()
        self._any.register(sock, select.POLLIN | select.POLLRDHUP)

    def read(self, size: int) -> bytes:
        """Exactly so many bytes, few; b"" if the connection ends before the first."""
        data = b""
        while len(data) < size:
            try:
                got = self.sock.recv(size - len(data))
            except BlockingIOError:
                raise self._silent() from None
            if not got:
                if data:
                    raise ConnectionResetError("the peer closed the connection within a message")
                break
            data += got
        return data

    def expect(self, size: int) -> bytes:
        data = self.read(size)
        if not data and size:
            raise ConnectionResetError("the peer closed the connection")
        return data

    def receive(self, view: memoryview) -> int:
        """Some bytes of a value, at least one; only such as can be relied on."""
        try:
            count = self.sock.recv_into(view)
        except BlockingIOError:
            raise self._silent() from None
        if not count or self._hang_up.poll(0):
            raise ConnectionResetError("the peer closed the connection while it sent a value")
        return count

    def send(self, data: bytes | memoryview, flags: int = 0) -> None:
        try:
            self.sock.sendall(data, flags)
        except BlockingIOError:
            raise self._silent() from None

    def send_file(self, fd: int, offset: int, count: int) -> int:
        """Send a range of a file, whose pages are not to change before they are read; less if it ends before that."""
        at, end = offset, offset + count
        while at < end:
            if self.by_reference:
                try:
                    sent = os.sendfile(self.sock.fileno(), fd, at, end - at)
                except BlockingIOError:
                    raise self._silent() from None
            else:
                data = os.pread(fd, min(end - at, _STEP), at)
                self.send(data)
                sent = len(data)
            if not sent:
                break
            at += sent
        return at - offset

    def _silent(self) -> TimeoutError:
        return TimeoutError(f"the peer was silent for {self._patience:g} s")

    def is_quiet(self) -> bool:
        """Nothing to read, not closed: fit for the next request."""
        return not self._any.poll(0)

    def shutdown(self) -> None:
        """Wake the thread that works on it; it finds the connection closed."""
        with self._closing, contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with self._closing:
            self.sock.close()

    def reset(self) -> None:
        """Close so that the peer knows at once, even if it has not read what came before."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.close()


def check_get_reply(reply: bytes, length: int) -> None:
    """Raise unless the next ``length`` bytes are the ones asked for."""
    status, count = GET_REPLY.unpack(reply)
    if status == GONE:
        raise Gone("it does not have the object (any more)")
    if status == BUSY:
        raise Busy("it cannot send the object just now")
    if status != OK or count != length:
        raise Malformed(f"status {status} and {count} bytes in answer to a request for {length}")


def fetch(sock: socket.socket, id_: bytes, size: int, *, patience: float = PATIENCE) -> memoryview:
    """The whole value in private memory. Raises Gone, Busy, Malformed, OSError; of use again after Gone and Busy."""
    channel = Channel(sock, patience)
    channel.send(GET_REQUEST.pack(GET, id_, 0, size))
    check_get_reply(channel.expect(GET_REPLY.size), size)
    value = memoryview(mmap.mmap(-1, size) if size >= _MAPPED_FROM else bytearray(size))
    at = 0
    while at < size:
        at += channel.receive(value[at : at + _STEP])
    channel.send(READ_REQUEST)
    return value


def store(
    sock: socket.socket,
    id_: bytes,
    pieces: Iterable[tuple[int, bytes | bytearray | memoryview]],
    size: int,
    *,
    patience: float = PATIENCE,
) -> None:
    """Store the value that has these pieces at these offsets, and zeros between. Raises Refused (then the connection
    is to be closed), Malformed, OSError.
    """
    channel = Channel(sock, patience)
    channel.send(PUT_REQUEST.pack(PUT, id_, size))
    at = 0
    for offset, piece in sorted(pieces, key=lambda p: (p[0], memoryview(p[1]).nbytes)):
        data = memoryview(piece).cast("B")
        if offset < at or offset + len(data) > size:
            raise ValueError(f"a piece of {len(data)} bytes at {offset} of {size} overlaps another or the end")
        _send_zeros(channel, offset - at)
        for start in range(0, len(data), _STEP):
            _mind_refusal(channel)
            channel.send(data[start : start + _STEP])
        at = offset + len(data)
    _send_zeros(channel, size - at)
    _read_put_reply(channel)


def _send_zeros(channel: Channel, count: int) -> None:
    while count > 0:
        _mind_refusal(channel)
        step = min(count, len(_ZEROS))
        channel.send(memoryview(_ZEROS)[:step])
        count -= step


def _mind_refusal(channel: Channel) -> None:
    """An answer before the end is a refusal: do not send the rest."""
    if not channel.is_quiet():
        _read_put_reply(channel)
        raise Malformed("the value was accepted before it was sent")


def _read_put_reply(channel: Channel) -> None:
    status = channel.expect(1)[0]
    if status == OK:
        return
    if status not in (BUSY, REFUSED):
        raise Malformed(f"status {status} in answer to a value")
    (length,) = TEXT_LENGTH.unpack(channel.expect(TEXT_LENGTH.size))
    raise Refused(channel.expect(length).decode(errors="replace"))


def put_refusal(text: str) -> bytes:
    data = text.encode()[:65535]
    return bytes([REFUSED]) + TEXT_LENGTH.pack(len(data)) + data
