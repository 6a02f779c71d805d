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

from noded.wire.messages import encode

HEADER_LIMIT = 64 << 20
PAYLOAD_LIMIT = (1 << 32) - 1
_BUFFER = 256 << 10
_IOV = 512
_LENGTHS = struct.Struct("<II")
_pack = _LENGTHS.pack
_unpack_from = _LENGTHS.unpack_from


class FrameError(Exception):
    """The peer sent something that is not a frame of this protocol; the link is of no more use."""


class LinkClosed(Exception):
    """The peer has closed the connection or is gone."""


class Link:
    """Frames over one socket. ``decode`` turns header bytes into a message and raises for anything unknown."""

    __slots__ = (
        "_big",
        "_big_at",
        "_buffer",
        "_fds_out",
        "_payload_limit",
        "_start",
        "_stop",
        "_view",
        "closed",
        "decode",
        "fds",
        "out",
        "sock",
        "unsent",
        "unsent_bytes",
    )

    def __init__(self, sock: socket.socket, decode: Callable[[memoryview], Any], *, payload_limit: int = PAYLOAD_LIMIT):
        self.sock = sock
        self.decode = decode
        self.closed = False
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
        sock.setblocking(False)

    def fileno(self) -> int:
        return self.sock.fileno()

    # ------------------------------------------------------------ writing

    def send(self, message: Any, payload: bytes | memoryview = b"") -> None:
        """Queue a message; nothing is written before ``flush``."""
        header = encode(message)
        size = len(payload)
        if size:
            self.out.append(_pack(len(header), size) + header)
            self.out.append(payload)
        else:
            self.out.append(_pack(len(header), 0) + header)
        self.unsent += 1
        self.unsent_bytes += len(header) + size + 8

    def send_with_fds(self, message: Any, fds: list[int]) -> None:
        """Queue a message and descriptors, which arrive with it or earlier, in order (duplicated until then;
        64 at most wait).
        """
        self._fds_out += [os.dup(fd) for fd in fds]
        self.send(message)

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
                raise LinkClosed(str(error)) from None
            self.unsent_bytes -= sent
            self._drop(sent)
        self.unsent = 0
        self.unsent_bytes = 0
        return True

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
                raise LinkClosed(str(error)) from None
            if not got:
                raise LinkClosed("end of stream")
            if self._big is not None:
                self._big_at += got
                if self._big_at == len(self._big):
                    self._deliver_big(handle)
                continue
            self._stop += got
            self._deliver(handle)
            if got < room:
                return

    def receive_with_fds(self, handle: Callable[[Any, bytes | memoryview], None]) -> None:
        """As ``receive``, one read, keeping descriptors that come along in ``fds``."""
        if not self._buffer:
            self._buffer = bytearray(_BUFFER)
            self._view = memoryview(self._buffer)
        try:
            got, ancillary, _flags, _peer = self.sock.recvmsg_into(
                [self._view[self._stop :]], socket.CMSG_SPACE(4 * 64), socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            raise LinkClosed(str(error)) from None
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                self.fds.extend(fds)
        if not got:
            raise LinkClosed("end of stream")
        self._stop += got
        self._deliver(handle)
        while self._big is not None:
            try:
                got = self.sock.recv_into(memoryview(self._big)[self._big_at :])
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                raise LinkClosed(str(error)) from None
            if not got:
                raise LinkClosed("end of stream")
            self._big_at += got
            if self._big_at == len(self._big):
                self._deliver_big(handle)

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
                    self._big = bytearray(end - at)
                    self._big[: stop - at] = view[at:stop]
                    self._big_at = stop - at
                    at = stop
                break
            message = decode(view[at + 8 : body])
            at = end
            # The buffer is reused, so a payload is copied out; handlers may run long and re-enter, so state
            # is kept first.
            self._start = at
            handle(message, bytes(view[body:end]) if payload else b"")
        if at == stop:
            self._start = self._stop = 0
        elif at:
            rest = stop - at
            view[:rest] = bytes(view[at:stop])
            self._start, self._stop = 0, rest

    def _deliver_big(self, handle: Callable[[Any, bytes | memoryview], None]) -> None:
        whole, self._big, self._big_at = self._big, None, 0
        assert whole is not None
        header, _payload = _unpack_from(whole, 0)
        view = memoryview(whole).toreadonly()
        handle(self.decode(view[8 : 8 + header]), view[8 + header :])

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.sock.close()
            for fd in self._fds_out + self.fds:
                os.close(fd)
            self._fds_out, self.fds = [], []
            self.out.clear()
