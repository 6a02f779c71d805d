"""A non-blocking stream socket that carries frames.

Frame: ``u32 header length | u32 payload length | header | payload``, little endian. The header is a message
of ``messages.py``, the payload opaque. A Link never blocks and has no thread, loop or lock of its own: its
user decides when to ``flush`` and ``receive``, and waits for writability when ``flush`` says that something
is left. It is not thread-safe by itself.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

import msgspec

from noded.wire.messages import encode, for_oldest

HEADER_LIMIT = 64 << 20
PAYLOAD_LIMIT = (1 << 32) - 1
_BUFFER = 256 << 10
_READ = 64 << 10
"""What ``receive_with_fds`` takes at once: its users have a loop with others on it."""
_BIG_STEP = 16 << 20
"""A message over the buffer's size gets room as it arrives, at most this much ahead: its header may lie."""
_IOV = 512
FDS_LIMIT = 64
"""Descriptors that may wait on one link, in either direction."""
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_LENGTHS = struct.Struct("<II")
_pack = _LENGTHS.pack
_unpack_from = _LENGTHS.unpack_from


class FrameError(Exception):
    """The peer sent something that is not a frame of this protocol; the link is of no more use."""


class LinkClosed(Exception):
    """The peer has closed the connection or is gone."""


class LinkSilent(LinkClosed):
    """What was sent has not been answered for so long that the kernel gave up: nothing is known of the peer."""


def frame_of(message: Any, payload: bytes = b"") -> bytes:
    """A whole frame, for what goes to many."""
    header = encode(message)
    return _pack(len(header), len(payload)) + header + payload


class Link:
    """Frames over one socket. ``decode`` turns header bytes into a message and raises for anything unknown."""

    __slots__ = (
        "_big",
        "_big_at",
        "_big_size",
        "_buffer",
        "_fds_out",
        "_payload_limit",
        "_start",
        "_stop",
        "_view",
        "closed",
        "decode",
        "fds",
        "older",
        "out",
        "sock",
        "unsent",
        "unsent_bytes",
    )

    def __init__(self, sock: socket.socket, decode: Callable[[memoryview], Any], *, payload_limit: int = PAYLOAD_LIMIT):
        self.sock = sock
        self.decode = decode
        self.closed = False
        self.older = False
        """The other side has the control messages of OLDEST_PROTOCOL."""
        self.out: list[bytes | memoryview] = []
        self.unsent = 0
        self.unsent_bytes = 0
        self.fds: list[int] = []
        self._fds_out: list[int] = []
        self._payload_limit = payload_limit
        self._buffer = bytearray()
        self._view = memoryview(self._buffer)
        self._start = 0
        self._stop = 0
        self._big: bytearray | None = None
        self._big_at = 0
        self._big_size = 0
        sock.setblocking(False)

    def fileno(self) -> int:
        return self.sock.fileno()

    # ------------------------------------------------------------ writing

    def send(self, message: Any, payload: bytes | memoryview = b"") -> None:
        """Queue a message; nothing is written before ``flush``."""
        header = encode(message)
        if self.older and not (header := for_oldest(header)):
            return
        size = len(payload)
        if size:
            self.out.append(_pack(len(header), size) + header)
            self.out.append(payload)
        else:
            self.out.append(_pack(len(header), 0) + header)
        self.unsent += 1
        self.unsent_bytes += len(header) + size + 8

    def send_encoded(self, header: bytes, payload: bytes | memoryview) -> None:
        """As ``send``, of a message that is encoded already."""
        if self.older and not (header := for_oldest(header)):
            return
        size = len(payload)
        self.out.append(_pack(len(header), size) + header)
        if size:
            self.out.append(payload)
        self.unsent += 1
        self.unsent_bytes += len(header) + size + 8

    def send_frame(self, frame: bytes) -> None:
        """Queue a frame that is encoded already (``frame_of``)."""
        self.out.append(frame)
        self.unsent += 1
        self.unsent_bytes += len(frame)

    def send_with_fds(self, message: Any, fds: list[int], payload: bytes = b"") -> None:
        """Queue a message and descriptors, which arrive with it or earlier, in order (duplicated until then;
        64 at most wait).
        """
        self._fds_out += [os.dup(fd) for fd in fds]
        self.send(message, payload)

    def flush(self) -> bool:
        """Write what the socket takes now. True when nothing is left. Raises LinkClosed."""
        out = self.out
        while out:
            try:
                if self._fds_out:
                    sent = self._send_fds()
                elif len(out) == 1:
                    sent = self.sock.send(out[0])
                else:
                    sent = (
                        self.sock.sendmsg(out[:_IOV])
                        if len(out[0]) + len(out[1]) > 4096
                        else self.sock.send(self._joined())
                    )
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as error:
                raise ended(error) from None
            self.unsent_bytes -= sent
            self._drop(sent)
        self.unsent = 0
        self.unsent_bytes = 0
        return True

    def drop_unsent(self) -> None:
        self.out.clear()
        for fd in self._fds_out:
            os.close(fd)
        self._fds_out = []
        self.unsent = self.unsent_bytes = 0

    def _joined(self) -> bytes | memoryview:
        """Many small pieces go out as one: joining them is cheaper than an iovec each."""
        out = self.out
        size = count = 0
        for piece in out:
            size += len(piece)
            if size > 65536:
                break
            count += 1
        if count > 1:
            out[:count] = [b"".join(out[:count])]
        return out[0]

    def _drop(self, sent: int) -> None:
        out = self.out
        done = 0
        while sent:
            size = len(out[done])
            if sent < size:
                out[done] = memoryview(out[done])[sent:]
                break
            sent -= size
            done += 1
        del out[:done]

    def _send_fds(self) -> int:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", self._fds_out))]
        sent = self.sock.sendmsg(self.out[:1], rights)
        for fd in self._fds_out:
            os.close(fd)
        self._fds_out = []
        return sent

    # ------------------------------------------------------------ reading

    def receive(self, handle: Callable[[Any, bytes | memoryview], None], *, rounds: int = 8) -> None:
        """Read what is there and pass each message to ``handle(message, payload)``. Raises LinkClosed,
        FrameError.
        """
        if not self._buffer:
            self._buffer = bytearray(_BUFFER)
            self._view = memoryview(self._buffer)
        if self._start:  # a handler has raised: what came behind its message is still to be delivered
            self._deliver(handle)
        recv_into = self.sock.recv_into
        for _ in range(rounds):
            try:
                if self._big is not None:
                    got = recv_into(memoryview(self._big)[self._big_at :])
                    room = 0
                else:
                    room = _BUFFER - self._stop
                    got = recv_into(self._view[self._stop :])
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                raise ended(error) from None
            if not got:
                raise LinkClosed("end of stream")
            if self._big is not None:
                self._grow_big(got, handle)
            else:
                self._stop += got
                self._deliver(handle)
                if got < room and self._big is None:
                    return
            if self.closed:
                return

    def receive_with_fds(self, handle: Callable[[Any, bytes | memoryview], None], *, rounds: int = 8) -> None:
        """As ``receive``, keeping descriptors that come along in ``fds``; one read, but for a big message."""
        if not self._buffer:
            self._buffer = bytearray(_BUFFER)
            self._view = memoryview(self._buffer)
        if self._start:
            self._deliver(handle)
        for _ in range(rounds):
            big = self._big
            try:
                got, ancillary, _flags, _peer = self.sock.recvmsg_into(
                    [self._view[self._stop : self._stop + _READ] if big is None else memoryview(big)[self._big_at :]],
                    socket.CMSG_SPACE(4 * FDS_LIMIT),
                    socket.MSG_CMSG_CLOEXEC,
                )
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                raise ended(error) from None
            for level, kind, data in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds = array.array("i")
                    fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                    self.fds.extend(fds)
            if not got:
                raise LinkClosed("end of stream")
            if len(self.fds) > FDS_LIMIT:
                raise FrameError(f"over {FDS_LIMIT} descriptors came that no message has asked for")
            if big is not None:
                self._grow_big(got, handle)
            else:
                self._stop += got
                self._deliver(handle)
            if self._big is None or self.closed:
                return

    def _check(self, header: int, payload: int) -> None:
        if not header or header > HEADER_LIMIT or payload > self._payload_limit:
            raise FrameError(
                f"frame of {header} + {payload} bytes is over the limit of {HEADER_LIMIT} + "
                f"{self._payload_limit} or empty"
            )

    def _deliver(self, handle: Callable[[Any, bytes | memoryview], None]) -> None:
        view, decode = self._view, self.decode
        at, stop = self._start, self._stop
        while stop - at >= 8:
            header, payload = _unpack_from(view, at)
            if header > 65536 or payload > 65536 or not header:
                self._check(header, payload)
            body = at + 8 + header
            end = body + payload
            if end > stop:
                if end - at > _BUFFER:
                    self._big = bytearray(min(end - at, 2 * _BUFFER))
                    self._big[: stop - at] = view[at:stop]
                    self._big_at = stop - at
                    self._big_size = end - at
                    at = stop
                break
            try:
                message = decode(view[at + 8 : body])
            except _UNREADABLE as error:
                raise FrameError(f"a message that is none: {error}") from None
            at = end
            # The buffer is reused, so a payload is copied out; a handler may raise or close the link, so
            # state is kept first.
            self._start = at
            handle(message, bytes(view[body:end]) if payload else b"")
            if self.closed:
                return
        if at == stop:
            self._start = self._stop = 0
        elif at:
            rest = stop - at
            view[:rest] = bytes(view[at:stop])
            self._start, self._stop = 0, rest

    def _grow_big(self, got: int, handle: Callable[[Any, bytes | memoryview], None]) -> None:
        """More of a big message is there: make room for what comes, or deliver it."""
        big = self._big
        assert big is not None
        self._big_at += got
        if self._big_at < len(big):
            return
        if self._big_at < self._big_size:
            big.extend(bytes(min(len(big), _BIG_STEP, self._big_size - len(big))))
            return
        self._big, self._big_at = None, 0
        header, _payload = _unpack_from(big, 0)
        view = memoryview(big).toreadonly()
        try:
            message = self.decode(view[8 : 8 + header])
        except _UNREADABLE as error:
            raise FrameError(f"a message that is none: {error}") from None
        handle(message, view[8 + header :])

    def reset(self) -> None:
        """Forget what was to be written, and what was read in part."""
        self.drop_unsent()
        self._start = self._stop = 0
        self._big, self._big_at = None, 0

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.sock.close()
            for fd in self._fds_out + self.fds:
                os.close(fd)
            self._fds_out, self.fds = [], []
            self.out.clear()


def ended(error: OSError) -> LinkClosed:
    """What an error of the socket says of the peer."""
    return LinkClosed(str(error)) if isinstance(error, ConnectionError) else LinkSilent(str(error))
