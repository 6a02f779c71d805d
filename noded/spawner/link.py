"""One non-blocking packet connection of the spawner, with its queue of packets that could not be sent yet.

A peer that does not read (a stopped daemon) fills the queue, never stalls the spawner; at LIMIT the
connection is dropped, because everything a daemon must know is told again when it re-attaches. Not here:
what packets mean.
"""

from __future__ import annotations

import os
import select
from collections import deque

from noded.spawner import protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from noded.spawner.protocol import Packet, Received

LIMIT = 4 << 20
BATCH = 256  # packets per read, so that one peer cannot keep the spawner from its other work


class Link:
    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.open = True
        self.dropped = False  # this side ended it: the peer did not take its packets or sent a wrong one
        self._deaf = False  # the peer takes nothing any more; what it sent before is still to be read
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._queued_bytes = 0

    def mask(self) -> int:
        """What to poll this connection for."""
        return select.POLLIN | (select.POLLOUT if self._queue else 0)

    def send(self, packet: Packet, fds: Sequence[int] = ()) -> None:
        """Send or queue; a peer that is gone is noticed by the next read."""
        if not self.open or self._deaf:
            return
        data = protocol.encode(packet)
        if not self._queue and self._sent(data, fds):
            return
        try:
            # Queued descriptors are copies: the caller may close its own before they leave.
            self._queue.append((data, [os.dup(fd) for fd in fds]))
        except OSError:
            return self._drop()
        self._queued_bytes += len(data)
        if self._queued_bytes > LIMIT:
            self._drop()

    def flush(self) -> None:
        """Send what is queued as far as the peer takes it."""
        while self.open and self._queue:
            data, fds = self._queue[0]
            if not self._sent(data, fds):
                return
            protocol.close_all(fds)
            self._queue.popleft()
            self._queued_bytes -= len(data)

    def _sent(self, data: bytes, fds: Sequence[int]) -> bool:
        """True when the packet is dealt with: taken, or of no use to anybody."""
        try:
            protocol.send_bytes(self.sock, data, fds)
        except BlockingIOError:
            return False
        except OSError:
            self._deaf = True
        return True

    def read(self, limit: int = BATCH) -> list[Received]:
        """What has arrived. Closes the link at its end and at a packet that cannot be understood."""
        received: list[Received] = []
        while self.open and len(received) < limit:
            try:
                received.append(protocol.recv(self.sock))
            except BlockingIOError:
                break
            except ConnectionResetError:
                continue  # it ended with packets of ours unread: said once, before its own last packets
            except EOFError:
                self.close()
            except protocol.ProtocolError as error:
                self.refuse(str(error))
        return received

    def refuse(self, reason: str) -> None:
        """Say why and end the connection."""
        self.send({"t": "refused", "reason": reason})
        self._drop()

    def _drop(self) -> None:
        self.dropped = True
        self.close()

    def close(self) -> None:
        if self.open:
            self.open = False
            self.sock.close()
            for _, fds in self._queue:
                protocol.close_all(fds)
            self._queue.clear()
