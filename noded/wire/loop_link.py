"""A link on an asyncio loop: read and written when its socket is ready, bounded in what the other leaves unread."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from typing import Any

from noded.wire.link import FrameError, Link, LinkClosed, LinkSilent, ended

log = logging.getLogger("noded.link")

_PAYLOAD_LIMIT = 256 << 20
_UNSENT_LIMIT = 256 << 20
_UNSENT_PAUSE = 8 << 20
"""Who leaves this much unread is not listened to before it reads: its requests are what makes the answers."""
_LAST_READS = 1024
_SPARE = 8
_spare: list[tuple[bytearray, memoryview]] = []
"""Buffers to read into. A link has one only while a part of a frame waits in it: a head has a thousand links."""


class LoopLink:
    """``on_message(link, message, payload)``; ``on_closed(link)`` once, when the connection is over. ``who`` names the
    other side in the log.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        decode: Callable[[memoryview], Any],
        on_message: Callable[[Any, Any, Any], None],
        on_closed: Callable[[Any], None],
        who: str,
        unsent_limit: int = _UNSENT_LIMIT,
    ):
        self.link = Link(sock, decode, payload_limit=_PAYLOAD_LIMIT)
        self.who = who
        self.close_reason = ""
        self.silent = False
        """It was closed because nothing came any more, not by the other side."""
        self._loop = loop
        self._on_message = on_message
        self._on_closed = on_closed
        self._unsent_limit = unsent_limit
        self._writing = False
        self._deaf = False
        self._flush_soon = False
        loop.add_reader(sock.fileno(), self.on_readable)

    @property
    def closed(self) -> bool:
        return self.link.closed

    def _handle(self, message: Any, payload: Any) -> None:
        self._on_message(self, message, payload)

    def on_readable(self) -> None:
        link = self.link
        if not link._buffer and _spare:
            link._buffer, link._view = _spare.pop()
        try:
            link.receive_with_fds(self._handle)
            if not link.closed and (error := link.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                # uvloop stops to watch a socket once it has called for an error, also where something was still to be
                # read: there will be no other call.
                self._note(ended(OSError(error, os.strerror(error))))
                for _ in range(_LAST_READS):
                    if not link.closed:
                        link.receive_with_fds(self._handle)
                self.close()
        except LinkClosed as end:
            self._note(end)
            self.close()
        except FrameError as error:
            log.warning("closing the connection of %s: %s", self.who, error)
            self.close()
        except Exception:
            # What follows that message may depend on it. Who attaches again tells its whole state anew.
            log.exception("closing the connection of %s: one of its messages cannot be handled", self.who)
            self.close()
        if link._stop == 0 and link._buffer:
            if len(_spare) < _SPARE:
                _spare.append((link._buffer, link._view))
            link._buffer = bytearray()
            link._view = memoryview(link._buffer)

    def send(self, message: Any, payload: bytes | memoryview = b"") -> None:
        """Queue; everything queued in one turn of the loop goes out in one write."""
        if self.link.closed:
            return
        self.link.send(message, payload)
        self._soon()

    def send_frame(self, frame: bytes) -> None:
        """Queue a whole frame that was encoded once for many."""
        if self.link.closed:
            return
        self.link.send_frame(frame)
        self._soon()

    def _soon(self) -> None:
        if self._writing:
            self._mind_unread()
        elif not self._flush_soon:
            self._flush_soon = True
            self._loop.call_soon(self.flush)

    def send_with_fds(self, message: Any, fds: list[int], payload: bytes = b"") -> None:
        self.link.send_with_fds(message, fds, payload)
        self.flush()

    def flush(self) -> None:
        self._flush_soon = False
        if self.link.closed:
            return
        try:
            done = self.link.flush()
        except LinkClosed as end:
            self._note(end)
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

    def _note(self, end: LinkClosed) -> None:
        """The first reason is the right one: what follows it is an end of stream."""
        self.close_reason = self.close_reason or str(end)
        self.silent = self.silent or isinstance(end, LinkSilent)

    def _mind_unread(self) -> None:
        unread = self.link.unsent_bytes
        if unread > self._unsent_limit:
            # It has not read for a long time (stopped?); it re-attaches and re-asks when it goes on.
            self._loop.call_soon(self.close)
        elif self._deaf != (unread > _UNSENT_PAUSE):
            self._deaf = not self._deaf
            if self._deaf:
                self._loop.remove_reader(self.link.fileno())
            else:
                self._loop.add_reader(self.link.fileno(), self.on_readable)

    def close(self) -> None:
        if not self.link.closed:
            fd = self.link.fileno()
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)
            self.link.close()
            self._on_closed(self)
