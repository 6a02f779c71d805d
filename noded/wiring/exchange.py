"""Builds what is between nodes: the connection with the head, and what brings objects and leases here and there."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from noded import ids
from noded.membership import Membership
from noded.node.directory import Directory
from noded.node.head_link import HeadLink
from noded.node.lease_router import LeaseRouter
from noded.node.memory_usage import room_left
from noded.node.peer_messages import PeerMessages
from noded.node.peers import Peers
from noded.node.spilling import Spilling
from noded.node.transfer_pull import Puller
from noded.node.transfer_server import TransferServer
from noded.parts import Parts
from noded.policy.memory_room import store_stops
from noded.startup import spill_files


def build_head_link(parts: Parts, membership: Membership, guard_until: float | None) -> None:
    if parts.head is None:
        parts.link = HeadLink(
            parts.loop,
            parts.head_address,
            parts.doors.dial,
            membership,
            until=guard_until,
            head_grace=parts.config.head_grace,
            epoch=parts.head_epoch,
        )


def build_peers(parts: Parts, membership: Membership) -> None:
    parts.peers = Peers(parts.loop, parts.cluster_view, parts.doors.dial, membership.to_peer)


def build_objects(parts: Parts) -> None:
    """Objects that are elsewhere: on another node, or on the disk."""
    config = parts.config
    parts.puller = Puller(parts.arena.fd, lambda address: parts.doors.dial_now(address, "transfer"))
    parts.directory = Directory(parts.store, parts.peers, parts.cluster_view, parts.clients, parts.puller)
    parts.store.elsewhere = parts.directory
    stops = partial(store_stops, threshold=config.memory_threshold)
    parts.store.space.room = lambda: room_left(Path("/"), ["self"], stops)
    parts.memory.give_back = parts.store.space.give_back
    parts.store.spilling = parts.store.space.relief = parts.spilling = Spilling(
        parts.store,
        parts.store.space,
        spill_files(config, parts.node_id),
        parts.clients,
        parts.spawner.keep,
        threads=config.object_spilling_threads,
    )
    parts.transfers = TransferServer(parts.arena.fd, parts.directory.open_source, parts.directory.allocate)


def build_router(parts: Parts, membership: Membership) -> None:
    """Leases at other nodes, and all that nodes say to each other."""
    head = parts.head_side
    parts.router = LeaseRouter(
        parts.leases,
        parts.peers,
        parts.cluster_view,
        parts.clients,
        node_id=parts.node_id,
        address=lambda: parts.address,
        watch_group=lambda id_: head.watch_group(ids.node_prefix(parts.number), id_),
        job_config=parts.jobs.configs.get,
        take_job=parts.jobs.take,
        save=lambda client: parts.control.save(client),
        forget=lambda client: parts.control.forget(client),
        labels=lambda: parts.labels,
    )
    parts.leases.router, parts.leases.death_of = parts.router, parts.book.death_of
    parts.leases.group_gone = parts.router.group_gone
    parts.peers.handlers = PeerMessages(
        parts.cluster_view,
        parts.directory,
        parts.router,
        parts.clients,
        me=membership.to_peer,
        save=lambda client: parts.control.save(client),
        cancel=lambda client, message: parts.control.cancel_here(client, message),
        output=parts.logs.show,
        output_over=parts.logs.over_from_peer,
        need=parts.peers.need,
    )
