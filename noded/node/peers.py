"""Connections between this daemon and others.

Each node that needs another dials it: over the connection that A dialed to B go A's requests to B and B's answers. So
two nodes have two connections at most, each with one side that keeps it up, and after a reconnect that side tells its
whole state anew. Which is why a message that cannot be sent now is dropped. What the messages mean is the business of
``directory.py`` (objects) and ``lease_router.py`` (leases).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec

from noded import ids
from noded.node.cluster_view import ClusterView
from noded.node.session import Client
from noded.wire import cluster_messages as c
from noded.wire.handshake import HandshakeError
from noded.wire.loop_link import LoopLink

log = logging.getLogger("noded.peers")

_PAUSES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_GREETING_SECONDS = 10.0


class Peer(msgspec.Struct, eq=False):
    """Another node, as seen from here."""

    number: int
    out: LoopLink | None = None
    """The connection that we dialed."""
    attached: bool = False
    """It has welcomed us, and was told all."""
    seq: int = 0
    """Of numbered messages to it; also of those that could not be sent, which the next telling contains."""
    read: int = 0
    inbound: LoopLink | None = None
    """The connection that it dialed."""
    node_id: str = ""
    """The start of that node that we last spoke with."""
    needed: bool = False
    dialing: asyncio.Task[None] | None = None
    dead: bool = False
    snapshot: set[bytes] | None = None
    """Holds that it has told again since it attached."""
    copies: set[bytes] | None = None
    """Objects of ours that it has told again to lie there."""
    untold: dict[bytes, int] = {}
    """Clients of ours -> how often it is yet to confirm what leases they have: until then its grants are void."""
    client: Client | None = None
    """It as a holder of objects of ours."""
    drops: set[bytes] = set()
    """Objects of ours that it was told to forget, and has not said that it has."""


class Handlers(Protocol):
    """What happens when something comes."""

    def attached(self, peer: Peer, welcome: c.PeerWelcome) -> None:
        """Our connection to it is up: tell all."""

    def from_peer(self, peer: Peer, message: Any, payload: Any) -> None:
        """On the connection that we dialed."""

    def greet(self, peer: Peer, message: c.PeerAttach) -> c.PeerWelcome:
        """It has dialed us."""

    def to_peer(self, peer: Peer, message: Any, payload: Any) -> None:
        """On the connection that it dialed."""

    def inbound_closed(self, peer: Peer) -> None: ...


class Peers:
    """``dial(address, target)`` gives a connected, authenticated socket."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        view: ClusterView,
        dial: Callable[[str, str], Awaitable[socket.socket]],
        attach: Callable[[], c.PeerAttach],
    ):
        self.handlers: Handlers
        self.peers: dict[int, Peer] = {}
        self._loop = loop
        self._view = view
        self._dial = dial
        self._attach = attach
        self._stopped = False
        self._links: set[LoopLink] = set()

    def peer(self, number: int) -> Peer:
        found = self.peers.get(number)
        if found is None:
            found = self.peers[number] = Peer(number)
        return found

    # ------------------------------------------------------------ out

    def need(self, number: int) -> Peer:
        """Connect to it, and stay connected."""
        peer = self.peer(number)
        peer.needed = True
        if peer.out is None and peer.dialing is None and not peer.dead and not self._stopped:
            peer.dialing = self._loop.create_task(self._keep_dialing(peer), name=f"dial node {number}")
        return peer

    def send(self, number: int, message: Any, payload: bytes | memoryview = b"") -> bool:
        """False when it is not connected: the next telling must contain it."""
        peer = self.need(number)
        if not peer.attached or peer.out is None:
            return False
        peer.out.send(message, payload)
        return True

    def next_seq(self, number: int) -> int:
        peer = self.peer(number)
        peer.seq += 1
        return peer.seq

    def answer(self, number: int, message: Any, payload: bytes | memoryview = b"") -> bool:
        """On the connection that it dialed."""
        peer = self.peers.get(number)
        if peer is None or peer.inbound is None:
            return False
        peer.inbound.send(message, payload)
        return True

    async def _keep_dialing(self, peer: Peer) -> None:
        attempt = 0
        try:
            while not peer.dead and not self._stopped:
                entry = self._view.entries.get(peer.number)
                if entry is not None and entry.state != "DEAD" and entry.address:
                    try:
                        await self._connect(peer, entry.address)
                        return
                    except (OSError, HandshakeError, TimeoutError, ValueError) as problem:
                        log.debug("node %s at %s cannot be reached: %s", peer.number, entry.address, problem)
                await asyncio.sleep(_PAUSES[min(attempt, len(_PAUSES) - 1)])
                attempt += 1
        finally:
            peer.dialing = None

    async def _connect(self, peer: Peer, address: str) -> None:
        sock = await self._dial(address, "peer")
        welcomed: asyncio.Future[bool] = self._loop.create_future()

        def on_message(link: LoopLink, message: Any, payload: Any) -> None:
            if peer.out is not link:
                return
            if welcomed.done():
                self.handlers.from_peer(peer, message, payload)
            elif not isinstance(message, c.PeerWelcome):
                link.close()
            elif message.refused or message.number != peer.number:
                link.close_reason = message.refused or f"it is node {message.number} now"
                link.close()
            else:
                welcomed.set_result(True)
                peer.node_id = message.node_id
                peer.attached = True
                self.handlers.attached(peer, message)

        def on_closed(link: LoopLink) -> None:
            self._links.discard(link)
            if not welcomed.done():
                welcomed.set_exception(ConnectionError(link.close_reason or "it closed the connection"))
            if peer.out is link:
                peer.out, peer.attached = None, False
                if welcomed.done() and not welcomed.cancelled() and not welcomed.exception() and peer.needed:
                    self.need(peer.number)

        link = LoopLink(self._loop, sock, c.decode_from_peer, on_message, on_closed, f"node {peer.number}")
        peer.out = link
        self._links.add(link)
        link.send(self._attach())
        try:
            await asyncio.wait_for(welcomed, _GREETING_SECONDS)
            if peer.out is not link:
                raise ConnectionError(link.close_reason or "it closed the connection")
        except BaseException:
            link.close()
            if welcomed.done() and not welcomed.cancelled():
                welcomed.exception()
            raise

    # ------------------------------------------------------------ in

    def on_socket(self, sock: socket.socket) -> None:
        """Another node has dialed us; it has proved the token."""
        if self._stopped:
            sock.close()
            return
        greeted: list[Peer] = []

        def on_message(link: LoopLink, message: Any, payload: Any) -> None:
            if greeted:
                if greeted[0].inbound is link:
                    self.handlers.to_peer(greeted[0], message, payload)
                return
            if not isinstance(message, c.PeerAttach):
                log.warning("closing the connection of a node that does not say first who it is")
                link.close()
                return
            peer = self.peer(message.number)
            welcome = self.handlers.greet(peer, message)
            if welcome.refused:
                log.warning("refusing node %s: %s", message.number, welcome.refused)
                link.send(welcome)
                link.flush()
                link.close()
                return
            link.who = f"node {message.number}"
            greeted.append(peer)
            before, peer.inbound = peer.inbound, link
            if before is not None:
                before.close()
            link.send(welcome)

        def on_closed(link: LoopLink) -> None:
            self._links.discard(link)
            if greeted and greeted[0].inbound is link:
                greeted[0].inbound = None
                self.handlers.inbound_closed(greeted[0])

        self._links.add(LoopLink(self._loop, sock, c.decode_to_peer, on_message, on_closed, "a node"))

    # ------------------------------------------------------------ ends

    def died(self, number: int) -> Peer | None:
        """The head says that this start of the node is dead."""
        peer = self.peers.pop(number, None)
        if peer is not None:
            self._end(peer)
        return peer

    def _end(self, peer: Peer) -> None:
        peer.dead, peer.needed = True, False
        if peer.dialing is not None:
            peer.dialing.cancel()
        for link in (peer.out, peer.inbound):
            if link is not None:
                link.close()

    def stop(self) -> None:
        self._stopped = True
        for peer in list(self.peers.values()):
            if peer.out is not None:
                peer.out.flush()
            self._end(peer)
        for link in list(self._links):
            link.close()

    def prefix(self, number: int) -> bytes:
        return ids.node_prefix(number)
