"""Who comes to this node through its port, and whom its clients want to reach elsewhere: each gets its socket."""

from __future__ import annotations

import logging
import socket

from noded import ids
from noded.node.control import REMOTE_GRACE
from noded.node.session import Client
from noded.parts import Parts
from noded.shm import arena as shm
from noded.version import __version__
from noded.wire import messages as m
from noded.wire.handshake import HandshakeError

log = logging.getLogger("noded.daemon")

_SLAB = 4 << 20


class Entrance:
    def __init__(self, parts: Parts):
        self._parts = parts

    def on_http(self, sock: socket.socket, data: bytes) -> None:
        self._parts.gateway.on_http(sock, data)

    def on_door(self, sock: socket.socket, target: str, leftover: bytes) -> None:
        """Somebody has proved the token, and says whom it wants to talk to."""
        parts = self._parts
        kind, _, word = target.partition("/")
        if leftover:
            log.warning("closing a connection for %s that says more than it should before it is let in", target)
            sock.close()
        elif target == "peer":
            parts.peers.on_socket(sock)
        elif target == "transfer":
            parts.transfers.serve(sock)
        elif target == "head" and parts.head is not None:
            parts.head.server.on_socket(sock)
        elif target == "node" or (kind == "node" and word == parts.node_id):
            parts.control.on_remote(sock)
        elif kind == "worker":
            self._on_caller(sock, word)
        else:
            log.warning("closing a connection for %s, which is not here", target)
            sock.close()

    def _on_caller(self, sock: socket.socket, wid: str) -> None:
        """Somebody elsewhere wants to talk to a worker: it gets the socket. If it is not ours, its node does."""
        parts = self._parts
        number = ids.node_of_worker(wid) if len(wid) == 16 else 0
        if number != parts.number:
            address = parts.cluster_view.address(number)
            if address:
                parts.doors.splice(sock, address, f"worker/{wid}")
                return
        worker = parts.pool.workers.get(wid)
        if worker is None or worker.client is None or worker.client.session is None or worker.dead:
            log.info("closing a connection for worker %s, which is not here (any more)", wid)
        else:
            worker.client.session.send_with_fds(m.Caller(), [sock.fileno()])  # type: ignore[attr-defined]
        sock.close()

    def on_dial(self, client: Client, message: m.Dial) -> None:
        """A client of ours wants to talk to a worker elsewhere: it gets the connected socket."""
        doors = self._parts.doors

        async def dial() -> None:
            try:
                sock = await doors.dial(message.address, f"worker/{message.worker}")
            except (OSError, HandshakeError, TimeoutError, ValueError) as problem:
                client.send(m.Dialed(message.worker, f"{problem}" or type(problem).__name__))
                return
            if client.session is not None and hasattr(client.session, "send_with_fds"):
                client.session.send_with_fds(m.Dialed(message.worker), [sock.fileno()])
            sock.close()

        doors.spawn(dial())

    def welcome(self, client: Client) -> m.Welcome:
        parts = self._parts
        return m.Welcome(
            m.PROTOCOL_VERSION,
            parts.epoch,
            parts.ledger.incarnation,
            parts.node_id,
            client.job,
            parts.arena.size,
            max(shm.BLOCK, min(_SLAB, parts.arena.size // 16 & -shm.BLOCK)),
            parts.run_dir,
            parts.address,
            parts.node_ip,
            parts.config.cluster,
            parts.config.daemon_grace if not client.remote else REMOTE_GRACE,
            parts.number,
            parts.config.head,
            tls=parts.doors.server_tls is not None,
            noded=__version__,
            pages="" if client.remote or parts.config.no_telemetry else parts.pages.directory,
        )
