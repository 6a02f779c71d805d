"""Which message of another node is whose business. Decides only whether a node may attach at all."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from noded import ids
from noded.node.cluster_view import ClusterView
from noded.node.directory import Directory
from noded.node.lease_router import LeaseRouter
from noded.node.peers import Peer
from noded.node.session import Client
from noded.wire import cluster_messages as c
from noded.wire import messages as m

log = logging.getLogger("noded.peers")


class PeerMessages:
    """Implements ``peers.Handlers``. ``me()``: what this node says of itself when it attaches."""

    def __init__(
        self,
        view: ClusterView,
        directory: Directory,
        router: LeaseRouter,
        clients: dict[bytes, Client],
        *,
        me: Callable[[], c.PeerAttach],
        save: Callable[[Client], None],
        cancel: Callable[[Client, m.CancelRef], None],
        output: Callable[[str, m.LogLines], None],
        output_over: Callable[[int, str], None],
        need: Callable[[int], Peer],
    ):
        self._view = view
        self._directory = directory
        self._router = router
        self._clients = clients
        self._me = me
        self._save = save
        self._cancel = cancel
        self._output = output
        self._output_over = output_over
        self._need = need

    # ------------------------------------------------------------ on connections that we dialed

    def attached(self, peer: Peer, welcome: c.PeerWelcome) -> None:
        self._directory.attached(peer)
        self._router.attached(peer, welcome)

    def from_peer(self, peer: Peer, message: Any, payload: Any) -> None:
        kind = type(message)
        if kind is c.ForClient:
            self._router.on_for_client(peer, message, payload)
        elif kind is c.PeerRead:
            self._directory.on_read(peer, message.seq)
        elif kind is c.Found:
            self._directory.on_found(message, payload)
        elif kind is c.Dropped:
            self._directory.on_dropped(message.ids)
        elif kind is c.HasRead:
            self._directory.on_has_read(peer, message)
        elif kind is c.NotFound:
            self._directory.on_not_found(message)
        elif kind is c.Reschedule:
            self._router.on_reschedule(peer, message)
        elif kind is c.GuestTold:
            self._router.on_guest_told(peer, message)

    # ------------------------------------------------------------ on connections that dialed us

    def greet(self, peer: Peer, message: c.PeerAttach) -> c.PeerWelcome:
        me = self._me()
        welcome = c.PeerWelcome(c.CLUSTER_VERSION, me.number, me.node_id, me.epoch)
        entry = self._view.entries.get(message.number)
        if message.version != c.CLUSTER_VERSION or message.cluster_id != me.cluster_id:
            welcome.refused = "it is of another cluster, or of another version of noded"
        elif entry is not None and entry.state == "DEAD" and entry.id == message.node_id:
            welcome.refused = f"it was declared dead: {entry.reason}"
        else:
            welcome.clients = self._router.greet(message.number)
            # It may have something of ours from before it, or we, started anew: then it waits for our word.
            self._need(message.number)
            self._directory.greet(peer)
            client = self._clients[ids.node_prefix(message.number)]
            self._save(client)
        return welcome

    def to_peer(self, peer: Peer, message: Any, payload: Any) -> None:
        kind = type(message)
        if kind is m.Refs:
            self._directory.on_refs(peer, message)
        elif kind is c.Copies:
            self._directory.on_copies(peer, message)
        elif kind is c.WantObjects:
            self._directory.on_want(peer, message)
        elif kind is c.ForPeer:
            self._router.on_for_peer(peer, message, self._cancel)
        elif kind is c.Hurry:
            self._directory.on_hurry(peer, message)
        elif kind is c.PeerTold:
            self._directory.on_told(peer, message)
        elif kind is c.PeerClientGone:
            self._router.guest_gone(message.prefix)
        elif kind is c.Output:
            self._output(message.job, message.lines)
        elif kind is c.OutputOver:
            self._output_over(peer.number, message.token)

    def inbound_closed(self, peer: Peer) -> None:
        self._router.inbound_closed(peer.number)
        if not peer.dead:
            # Its daemon may start anew, and not know that it has something here: by our dialing it learns.
            self._need(peer.number)
