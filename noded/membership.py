"""A node as one of its cluster: what it tells the head and the other nodes of itself, and what it does when the head or
a node has news for it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time

from noded import ids
from noded.head.head import Head
from noded.node.head_link import HeadLink, JoinError
from noded.parts import Parts
from noded.policy.liveness import FREEZE_AFTER
from noded.startup import Standing
from noded.version import __version__
from noded.wire import cluster_messages as c

log = logging.getLogger("noded.daemon")


class Membership:
    """Implements ``node.head_link.Node``."""

    def __init__(self, parts: Parts):
        self._parts = parts
        self._guarded: tuple[float, list[str]] = (0.0, [])
        self._own_until = 0.0

    # ------------------------------------------------------------ identity

    def read_standing(self) -> None:
        parts = self._parts
        standing = Standing.read(parts.run_dir, head=parts.config.head)
        parts.number, parts.cluster_id, parts.head_epoch = standing.number, standing.cluster_id, standing.head_epoch

    def write_standing(self) -> None:
        parts = self._parts
        Standing(parts.number, parts.cluster_id, parts.head_epoch).write(parts.run_dir)

    async def be_numbered(self) -> None:
        """A member's first start: nothing of it can have a name before the head has given it a number."""
        parts = self._parts
        if parts.number:
            return
        link = HeadLink(parts.loop, parts.head_address, parts.doors.dial, self, until=None, head_grace=0.0)

        def wait(problem: str) -> None:
            log.warning("waiting for the head at %s: %s", parts.head_address, problem)

        asking = asyncio.ensure_future(link.obtain_number(parts.config.node_name, parts.config.cluster, wait))
        stopping = asyncio.ensure_future(parts.ending.asked.wait())
        try:
            await asyncio.wait({asking, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise JoinError(f"stopped while waiting for the head at {parts.head_address}")
            told = asking.result()
        finally:
            asking.cancel()
            stopping.cancel()
        parts.number, parts.cluster_id = int(told["number"]), str(told["cluster_id"])
        self.write_standing()

    def me(self) -> c.Register:
        """This node, without what it has."""
        parts = self._parts
        total, available = parts.leases.capacity.own()
        return c.Register(
            version=c.CLUSTER_VERSION,
            noded=__version__,
            python=parts.python,
            cluster=parts.config.cluster,
            cluster_id=parts.cluster_id,
            number=parts.number,
            node_id=parts.node_id,
            epoch=parts.epoch,
            name=parts.config.node_name,
            address=parts.address,
            node_ip=parts.node_ip,
            hostname=socket.gethostname(),
            run_dir=parts.run_dir,
            pid=os.getpid(),
            total=total,
            available=available,
            labels=parts.labels,
        )

    def to_peer(self) -> c.PeerAttach:
        """This node, as another one is told."""
        parts = self._parts
        return c.PeerAttach(c.CLUSTER_VERSION, parts.cluster_id, parts.number, parts.node_id, parts.epoch)

    # ------------------------------------------------------------ a member and its head: node.head_link.Node

    def register(self) -> c.Register:
        parts = self._parts
        parts.host.forget_waiting()
        parts.orders.forget_waiting()
        message = self.me()
        message.actors, message.groups = parts.host.told(), parts.orders.held_groups()
        message.jobs = parts.jobs.driven()
        message.deaths, message.left = parts.book.of_actors(), parts.book.jobs_left()
        return message

    def on_registered(self, message: c.Registered) -> None:
        """What the head was not told while it was away, it is told now."""
        parts = self._parts
        if message.epoch != parts.head_epoch:
            parts.head_epoch = message.epoch
            self.write_standing()
        self.claim_actors(message.actors)
        parts.jobs.on_registered(message.jobs)
        parts.control.retell()
        parts.router.watch_groups_again()
        parts.leases.kick()

    def on_declared_dead(self, reason: str) -> None:
        log.error("the head has declared this node dead (%s): all work here ends, and it starts over", reason)
        self._parts.ending.starts_over = True
        self._parts.ending.ask(f"it was declared dead: {reason}")

    def on_head_lost(self, reason: str) -> None:
        log.error("the head has been away for %g s (%s): this node ends", self._parts.config.head_grace, reason)
        self._parts.ending.exit_code = 1
        self._parts.ending.ask("the head is lost")

    def amounts(self) -> tuple[dict[str, int], dict[str, int], int]:
        total, available = self._parts.leases.capacity.own()
        return total, available, self._parts.view.waiting()

    def guard(self, until: float) -> None:
        wids = self._parts.host.restartable()
        if (until, wids) != self._guarded:
            self._guarded = until, wids
            self._parts.spawner.send({"t": "guard", "until": until, "wids": wids})

    def claim_actors(self, made_here: list[bytes]) -> None:
        """Of clients of this node: the head has them, so that they have holders to wait for."""
        store = self._parts.store
        for id_ in made_here:
            if id_ not in store.entries:
                store.await_holders(id_)
        store.settle()

    # ------------------------------------------------------------ the head's own node

    def guard_own(self, head: Head) -> None:
        """Where another head may take over elsewhere, and would start this node's actors there: they may run only as
        long as that is not so. A storage that is away proves nothing, but then members that are there do.
        """
        storage = self._parts.storage
        assert storage is not None
        if storage.confirmed is None:
            return
        since: float | None = storage.confirmed
        if storage.health.degraded_since is not None:
            since = time.monotonic() if head.nodes.alone or head.nodes.connected() else None
        if since is not None:
            self._own_until = max(self._own_until, since + FREEZE_AFTER)
        self.guard(self._own_until)

    def refresh_own(self) -> None:
        """The head's own node, as decisions are to see it."""
        head = self._parts.head
        assert head is not None
        total, available, waiting = self.amounts()
        head.nodes.own_amounts(head.own, total, available, waiting)

    # ------------------------------------------------------------ other nodes

    def on_nodes_changed(self) -> None:
        self._parts.leases.kick()
        self._parts.metrics.on_nodes_changed()

    def on_node_dead(self, entry: c.NodeEntry) -> None:
        parts = self._parts
        if entry.number == parts.number:
            return
        log.info("node %s (%s) is dead: %s", entry.name, entry.id, entry.reason)
        peer = parts.peers.died(entry.number)
        parts.control.forget_node(entry.number)
        parts.router.node_died(entry)
        parts.directory.node_died(entry, peer)

    def forget_strangers(self) -> None:
        """After a restart: nodes that had something here and were forgotten meanwhile, so long are they dead."""
        parts = self._parts
        known = parts.cluster_view.entries
        for number in {ids.node_of(x.prefix) for x in parts.clients.values() if x.kind in ("node", "guest")}:
            if number not in known and number != parts.number:
                reason = "the head does not know it any more"
                self.on_node_dead(c.NodeEntry(number, "", f"node {number}", "", "DEAD", {}, {}, {}, "", reason))
