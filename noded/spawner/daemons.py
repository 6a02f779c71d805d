"""The connections on spawner.sock: at most one daemon, its replacement, and strangers without a hello.

A hello with the right protocol makes its sender the daemon. The one before is killed through the pidfd
taken when it was accepted, which also ends a stopped process, and only its end lets the new one in: a
superseded daemon can never act again. A daemon whose process has ended is gone even if a child of it still
holds the connection open. Not here: what its packets do, and what happens when it is away (`core`).
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
from functools import partial

from noded.spawner import kernel, protocol
from noded.spawner.link import Link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from noded.spawner.protocol import Received

    Watch = tuple[int, int, Callable[[], None]]

MAX_STRANGERS = 16
CREDENTIALS = struct.Struct("3i")


class Peer:
    """One connection, with the process that made it."""

    def __init__(self, link: Link, pid: int, pidfd: int) -> None:
        self.link = link
        self.pid = pid
        self.pidfd = pidfd

    def close(self) -> None:
        self.link.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class Daemons:
    def __init__(
        self,
        listener: socket.socket,
        welcome: Callable[[int, Link], None],
        received: Callable[[Received, Link], bool],
    ) -> None:
        self._listener = listener
        self._welcome = welcome
        self._received = received
        self.current: Peer | None = None
        self.epoch = 0
        self.protocol = protocol.PROTOCOL
        """Of the daemon that came last."""
        self._next: Peer | None = None
        self._strangers: list[Peer] = []
        self._dying: list[Peer] = []

    @property
    def link(self) -> Link | None:
        """The connection of the daemon, if there is one."""
        return self.current.link if self.current else None

    @property
    def expected(self) -> bool:
        """True while there is a daemon or one waits for its predecessor's end."""
        return self.current is not None or self._next is not None

    def living(self) -> bool:
        """A daemon is connected and its process has not ended."""
        for peer in (self.current, self._next):
            if peer is not None:
                poller = select.poll()
                poller.register(peer.pidfd, select.POLLIN)
                if not poller.poll(0):
                    return True
        return False

    def watches(self) -> Iterator[Watch]:
        """What to poll for, and what to call then."""
        if self._listener.fileno() >= 0:
            yield self._listener.fileno(), select.POLLIN, self._accept
        for peer in self._strangers:
            yield peer.link.sock.fileno(), peer.link.mask(), partial(self._on_stranger, peer)
        for peer in self._dying:
            yield peer.pidfd, select.POLLIN, partial(self._on_dead, peer)
        if self._next:
            yield self._next.pidfd, select.POLLIN, self._on_next_ended
        if self.current:
            yield self.current.link.sock.fileno(), self.current.link.mask(), self._on_daemon
            yield self.current.pidfd, select.POLLIN, self._on_daemon_ended

    def tidy(self) -> None:
        """Forget connections that were closed during this turn."""
        for peer in [each for each in self._strangers if not each.link.open]:
            self._strangers.remove(peer)
            peer.close()
        if self.current and not self.current.link.open:
            self.current.close()
            self.current = None

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return  # it went away again, or descriptors are short: the next turn tries once more
        link = Link(sock)
        pid, uid, _ = CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
        if uid not in (os.geteuid(), 0):
            return link.refuse(f"this spawner belongs to user {os.geteuid()}, not {uid}")
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            return link.refuse(f"cannot watch process {pid} ({error}): run the daemon where the spawner runs")
        peer = Peer(link, pid, pidfd)
        if kernel.hung_up(sock.fileno()):
            return peer.close()  # it ended before the pidfd was taken, which may be a stranger's
        self._strangers.append(peer)
        if len(self._strangers) > MAX_STRANGERS:
            self._strangers.pop(0).close()

    def _on_stranger(self, peer: Peer) -> None:
        for packet, fds in peer.link.read(limit=1):
            protocol.close_all(fds)
            if packet["t"] != "hello":
                peer.link.refuse(f"the first packet must be hello, not {packet['t']!r}")
            elif reason := protocol.strange(packet.get("protocol")):
                peer.link.refuse(reason)
            else:
                self._strangers.remove(peer)
                self.protocol = packet["protocol"]
                self._replace_by(peer, packet.get("epoch"))

    def _replace_by(self, peer: Peer, epoch: object) -> None:
        if isinstance(epoch, int):
            self.epoch = max(self.epoch, epoch)
        for older in (self.current, self._next):
            if older is None:
                continue
            older.link.close()
            if older.pid == peer.pid or kernel.ended(older.pidfd):
                older.close()
                continue
            kernel.say(f"process {peer.pid} is the daemon now: killing daemon {older.pid}")
            try:
                signal.pidfd_send_signal(older.pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self._dying.append(older)
        self.current = None
        self._next = peer
        self._promote()

    def _promote(self) -> None:
        if self._next and not self._dying:
            self.current, self._next = self._next, None
            self.epoch += 1
            self._welcome(self.epoch, self.current.link)

    def _on_dead(self, peer: Peer) -> None:
        if peer in self._dying:
            self._dying.remove(peer)
            peer.close()
            self._promote()

    def _on_next_ended(self) -> None:
        if self._next and kernel.ended(self._next.pidfd):
            self._next.close()
            self._next = None

    def _on_daemon(self) -> None:
        if (peer := self.current) is None:
            return
        peer.link.flush()
        self._deliver(peer.link)

    def _deliver(self, link: Link) -> bool:
        """Hand over what has arrived; False when there was nothing, or a packet was refused."""
        batch = link.read()
        for at, received in enumerate(batch):
            if not self._received(received, link):
                for _, fds in batch[at + 1 :]:
                    protocol.close_all(fds)
                return False
        return bool(batch)

    def _on_daemon_ended(self) -> None:
        peer = self.current
        if peer is None or not kernel.ended(peer.pidfd):
            return
        while self._deliver(peer.link):
            pass
        peer.link.close()

    def stop_listening(self) -> None:
        """Take no further daemon."""
        self._listener.close()

    def close(self) -> None:
        """End all connections."""
        self.stop_listening()
        for peer in (self.current, self._next, *self._strangers, *self._dying):
            if peer:
                peer.close()
        self.current = self._next = None
        self._strangers.clear()
        self._dying.clear()
