"""Leases across nodes: demands that this node cannot serve go to others, and others' clients are served here.

A client talks to its own daemon only. What it says about leases travels on unchanged (``ForPeer``), to the node that
the policy chose (``policy/scheduling.py``); grants, recalls and deaths come back the same way (``ForClient``). There it
is a *guest*: a client like any other, whose way is its node's connection. A demand goes out with as many leases as the
other node seems to have room for. It serves what it can at once and sends the rest back (``Reschedule``); after two
such answers, or where this node could never serve it itself, the demand queues at the other node.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from noded import ids
from noded.node.cluster_view import ClusterView
from noded.node.leases import Demand, Leases
from noded.node.peers import Peer, Peers
from noded.node.session import Client
from noded.policy import deaths, labels, scheduling
from noded.policy.nodes import NodeView
from noded.policy.reasons import NEVER, NODE_AWAY
from noded.wire import cluster_messages as c
from noded.wire import messages as m

log = logging.getLogger("noded.lease_router")

_HOPS = 2
_SHUN_SECONDS = 0.1
"""A node that has just sent a demand back is not asked again for so long."""
_PATIENCE = 0.003
"""What this node may serve itself in so many seconds is not sent away."""
_AT_ONCE = 256
_EVEN_SECONDS = 0.2
"""So long a task that is to be spread waits for the node whose turn it is."""
_GROUPS_KNOWN = 10_000


class _Sent(msgspec.Struct, eq=False):
    """What of one demand is at other nodes."""

    counts: dict[int, int] = {}
    queued: set[int] = set()
    """Nodes where it waits for room."""
    shunned: dict[int, float] = {}
    given: dict[str, int] = {}
    """Node id -> leases it has given in all, for SPREAD."""
    hops: int = 0


class _GroupPlaces(msgspec.Struct, eq=False):
    state: str = "pending"
    reason: str = ""
    nodes: list[int] = []


class GuestWay:
    """To a client of another node, over that node's connection."""

    def __init__(self, peers: Peers, number: int, prefix: bytes, address: Callable[[], str]):
        self._peers = peers
        self._number = number
        self._prefix = prefix
        self._address = address

    def send(self, message: Any, payload: bytes | memoryview = b"") -> None:
        if type(message) is m.Grant:
            message = msgspec.structs.replace(message, path="", address=self._address())
        self._peers.answer(self._number, c.ForClient(self._prefix, m.encode(message)), payload)

    def close(self) -> None:
        return None


class LeaseRouter:
    """``watch_group(id)`` has the head tell where a placement group is (``on_group_at``). ``job_config(job)`` is known
    for every job that has a client here; ``take_job(job, config)`` learns of another.
    """

    def __init__(
        self,
        leases: Leases,
        peers: Peers,
        view: ClusterView,
        clients: dict[bytes, Client],
        *,
        node_id: str,
        address: Callable[[], str],
        watch_group: Callable[[bytes], None],
        job_config: Callable[[str], m.JobConfig | None],
        take_job: Callable[[str, m.JobConfig], None],
        save: Callable[[Client], None],
        forget: Callable[[Client], None],
        labels: Callable[[], dict[str, str]],
    ):
        self._leases = leases
        self._peers = peers
        self._view = view
        self._clients = clients
        self._node_id = node_id
        self._address = address
        self._watch_group = watch_group
        self._job_config = job_config
        self._take_job = take_job
        self._save = save
        self._forget = forget
        self._labels = labels
        self._sent: dict[tuple[bytes, int], _Sent] = {}
        self._remote: dict[int, dict[int, tuple[bytes, str, int]]] = {}
        """Node -> lease -> (client of ours, worker, class; 0: not known any more)."""
        self._guests_at: dict[int, set[bytes]] = {}
        """Node -> clients of ours that it knows."""
        self._groups: dict[bytes, _GroupPlaces] = {}
        self._rng = random.Random()

    # ------------------------------------------------------------ our clients' demands

    @property
    def alone(self) -> bool:
        return not self._view.by_id or (len(self._view.by_id) == 1 and self._node_id in self._view.by_id)

    def chooses(self, where: m.Place) -> bool:
        """Whether another node may be the right one even while this one has room for it."""
        if where.group:
            return False
        return (
            where.spread
            or (where.soft and where.node not in ("", self._node_id))
            or where.near not in (0, self._view.number)
            or not labels.prefers(where.labels, self._labels())
        )

    def here(self) -> None:
        """Decisions see this node as it is now."""
        total, available = self._leases.capacity.own()
        now = self._view.cluster.get(self._node_id)
        draining = self._leases.draining or self._leases.room.pressed
        if now is None or now.available != available or now.total != total or now.schedulable == draining:
            self._view.cluster.update(
                NodeView(self._node_id, available, total, self._labels(), not draining, self._leases.draining)
            )

    def route(self, demands: Iterable[Demand], now: float) -> None:
        """Nothing more fits here: send away what others can serve."""
        self.here()
        self._view.expire(now)
        for demand in demands:
            if demand.client.kind == "guest":
                continue
            if demand.where.group:
                self._route_to_group(demand, now)
            elif now - demand.since > _PATIENCE or self.chooses(demand.where) or not self._leases.could_run(demand):
                self._route(demand, now)

    def _route(self, demand: Demand, now: float) -> None:
        sent = self._sent.setdefault((demand.client.prefix, demand.cls), _Sent())
        if not demand.where.spread:
            demand.permits = 0  # there was no room here after all: choose again
        demand.permits = min(demand.permits, demand.count)
        spare = min(demand.count, _AT_ONCE) - sum(sent.counts.values()) - demand.permits
        if spare < 0:
            self._take_back(demand, sent, -spare)
        near = demand.where.near
        nearby = {self._view.entries[near].id: 1} if near and near in self._view.entries else {}
        shares = self._shares(demand, sent) if demand.where.spread else {}
        while spare > 0:
            shunned = {self._id(n) for n, until in sent.shunned.items() if until > now}
            answer = self._view.cluster.pick(
                demand.resources,
                demand.where,
                local=self._node_id,
                near=nearby,
                visited=shunned,
                given=shares,
                rng=self._rng,
            )
            if isinstance(answer, scheduling.Never):
                if self._view.unknown:
                    demand.why = NODE_AWAY, "nodes that were there before the head started are not back yet"
                    return
                demand.why = NEVER, answer.reason
                if now - demand.since > self._leases.give_up:
                    self._leases.refuse_demand(demand, answer.reason)
                return
            if isinstance(answer, scheduling.Wait):
                demand.why = answer.kind, answer.reason
                if not self._leases.could_run(demand) or demand.where.node not in ("", self._node_id):
                    self._queue_elsewhere(demand, sent, spare)
                return
            demand.why = "", ""
            if demand.where.spread:
                if shares.get(answer.node, 0) > min(shares.values()) and now - demand.since < _EVEN_SECONDS:
                    return  # one that has been given less will have room in a moment
                sent.given[answer.node] = sent.given.get(answer.node, 0) + 1
                shares = self._shares(demand, sent)
            if answer.node == self._node_id:
                if not self.chooses(demand.where):
                    return
                demand.permits += 1
                self._view.take_here(self._node_id, demand.resources)
                self._leases.kick()
                spare -= 1
                continue
            number = self._view.by_id.get(answer.node)
            if number is None:
                return
            count = 1 if demand.where.spread else min(spare, self._fitting(answer.node, demand.resources))
            self._view.take(answer.node, {n: a * count for n, a in demand.resources.items()}, now)
            self._send_demand(demand, sent, number, sent.counts.get(number, 0) + count, wait=sent.hops >= _HOPS)
            spare -= count

    def _shares(self, demand: Demand, sent: _Sent) -> dict[str, int]:
        """Of a class that is to be spread: what each node that could run it was given, for what it can hold at once."""
        shares = {}
        for node in self._view.cluster:
            slots = min((node.total.get(n, 0) // a for n, a in demand.resources.items() if a), default=1)
            if node.schedulable and slots and not self._leases.refuse_elsewhere(demand.where, node.id, node.labels):
                shares[node.id] = sent.given.get(node.id, 0) * 1000 // slots
        return shares or {self._node_id: 0}

    def _fitting(self, node_id: str, resources: dict[str, int]) -> int:
        node = self._view.cluster.get(node_id)
        if node is None:
            return 1
        fits = [node.available.get(name, 0) // amount for name, amount in resources.items() if amount]
        return max(1, min(fits, default=4))

    def _queue_elsewhere(self, demand: Demand, sent: _Sent, count: int) -> None:
        """No node has room, and this one never will, or is not asked: wait at one that could."""
        if sent.queued:
            return
        able = [
            n
            for e in self._view.others()
            if e.state == "ALIVE"
            and (n := e.number)
            and demand.where.node in ("", e.id)
            and all(e.total.get(name, 0) >= amount for name, amount in demand.resources.items())
            and not self._leases.refuse_elsewhere(demand.where, e.id, e.labels)
        ]
        if able:
            number = self._rng.choice(able)
            self._send_demand(demand, sent, number, count, wait=True)

    def _route_to_group(self, demand: Demand, now: float) -> None:
        """Bundles are where they are: each node that has one the demand may use is asked for all of it."""
        id_ = demand.where.group
        places = self._groups.get(id_)
        if places is None:
            self._know_group(id_)
            return
        if places.state == "removed":
            self._leases.refuse_demand(demand, "its placement group was removed", "removed")
            return
        nodes = places.nodes
        if demand.where.bundle >= 0:
            nodes = nodes[demand.where.bundle : demand.where.bundle + 1]
        sent = self._sent.setdefault((demand.client.prefix, demand.cls), _Sent())
        for number in dict.fromkeys(nodes):
            if number != self._view.number and sent.counts.get(number, 0) != demand.count:
                self._send_demand(demand, sent, number, demand.count, wait=True)

    def _know_group(self, id_: bytes) -> _GroupPlaces:
        found = self._groups.get(id_)
        if found is None:
            found = self._groups[id_] = _GroupPlaces()
            if len(self._groups) > _GROUPS_KNOWN:
                del self._groups[next(iter(self._groups))]
            self._watch_group(id_)
        return found

    def on_group_at(self, message: m.GroupAt) -> None:
        places = self._groups.setdefault(message.id, _GroupPlaces())
        places.state, places.reason, places.nodes = message.state, message.reason, message.nodes
        self._leases.kick()

    def group_gone(self, id_: bytes) -> bool:
        """It was removed, or nobody will make it."""
        return self._know_group(id_).state == "removed"

    def group_nodes(self, id_: bytes) -> list[int]:
        return self._know_group(id_).nodes

    def watch_groups_again(self) -> None:
        """The head has started anew."""
        for id_, places in self._groups.items():
            if places.state != "removed":
                self._watch_group(id_)

    def _send_demand(self, demand: Demand, sent: _Sent, number: int, count: int, *, wait: bool = False) -> None:
        peer = self._peers.need(number)
        sent.counts[number] = count
        if wait:
            sent.queued.add(number)
        prefix = demand.client.prefix
        if not peer.attached:
            return  # it is sent when it is
        self._introduce(peer, demand.client)
        self._forward(peer, prefix, demand.definition)
        self._forward(peer, prefix, m.Demand(demand.cls, count, wait))

    def _take_back(self, demand: Demand, sent: _Sent, count: int) -> None:
        for number in sorted(sent.counts, key=lambda n: -sent.counts[n]):
            if count <= 0:
                return
            less = min(count, sent.counts[number])
            count -= less
            self._set_count(demand.client.prefix, demand.cls, sent, number, sent.counts[number] - less)

    def _set_count(self, prefix: bytes, cls: int, sent: _Sent, number: int, count: int) -> None:
        if count:
            sent.counts[number] = count
        else:
            sent.counts.pop(number, None)
            sent.queued.discard(number)
        peer = self._peers.peers.get(number)
        if peer is not None and peer.attached:
            self._forward(peer, prefix, m.Demand(cls, count, number in sent.queued))

    def demand_changed(self, client: Client, cls: int, count: int) -> None:
        """It wants fewer now, or was given some here: others are to know."""
        sent = self._sent.get((client.prefix, cls))
        if sent is None:
            return
        group = (known := self._leases.class_of(client, cls)) is not None and bool(known.where.group)
        for number, there in list(sent.counts.items()):
            keep = min(there, count)
            if keep != there:
                self._set_count(client.prefix, cls, sent, number, keep)
            if not group:
                count -= keep
        if not sent.counts and not sent.given:
            del self._sent[client.prefix, cls]

    # ------------------------------------------------------------ answers of others

    def on_for_client(self, peer: Peer, message: c.ForClient, payload: Any) -> None:
        """A message for a client of ours, from the node that serves it."""
        client = self._clients.get(message.prefix)
        inner: Any = m.decode_to_client(memoryview(message.header))
        if client is None:
            return  # the other node is told at its end
        kind = type(inner)
        if kind is m.Grant:
            if not client.told or message.prefix in peer.untold:
                return  # what it is about to say, or has said meanwhile, ends this lease
            self._remote.setdefault(peer.number, {})[inner.lease] = client.prefix, inner.worker, inner.cls
            sent = self._sent.get((client.prefix, inner.cls))
            if sent is not None and sent.counts.get(peer.number):
                sent.counts[peer.number] -= 1
                if not sent.counts[peer.number]:
                    del sent.counts[peer.number]
                    sent.queued.discard(peer.number)
                sent.hops = 0
            self._leases.granted_elsewhere(client, inner.cls)
        elif kind is m.WorkerDied:
            self._remote.get(peer.number, {}).pop(inner.lease, None)
        elif kind is m.Unschedulable:
            self.demand_changed(client, inner.cls, 0)
            self._leases.forget_demand(client, inner.cls)
        client.send(inner, payload)

    def on_reschedule(self, peer: Peer, message: c.Reschedule) -> None:
        sent = self._sent.get((message.prefix, message.cls))
        if sent is None:
            return
        self._set_count(message.prefix, message.cls, sent, peer.number, 0)  # also of a demand that has crossed this
        sent.shunned[peer.number] = time.monotonic() + _SHUN_SECONDS
        sent.hops += 1
        self._leases.kick()

    # ------------------------------------------------------------ what our clients say about leases elsewhere

    def elsewhere(self, worker: str) -> int:
        """The number of the other node that a lease's worker is on, 0: of this one."""
        number = ids.node_of_worker(worker) if worker else 0
        return 0 if number == self._view.number else number

    def forward(self, number: int, client: Client, message: m.LeaseDone | m.KillTask) -> None:
        if type(message) is m.LeaseDone:
            self._over(number, client, message.lease)
        peer = self._peers.peers.get(number)
        if peer is not None and peer.attached:
            self._forward(peer, client.prefix, message)
        # Else: its leases are told again when we are connected, and what is not claimed then is over.

    def _over(self, number: int, client: Client, lease: int) -> None:
        """A lease of ours ends there: its room is free before the node has reported it."""
        _, _, cls = self._remote.get(number, {}).pop(lease, (b"", "", 0))
        definition = self._leases.class_of(client, cls)
        entry = self._view.entries.get(number)
        if definition is not None and entry is not None and not definition.where.group:
            given = {name: -amount for name, amount in definition.resources.items()}
            self._view.take(entry.id, given, time.monotonic())
            self._leases.kick()

    def client_told(self, client: Client, claimed: list[tuple[int, str]]) -> None:
        """After its attach: the leases that it has at other nodes are these."""
        for leases in self._remote.values():
            for lease in [x for x, (prefix, _, _) in leases.items() if prefix == client.prefix]:
                del leases[lease]
        for key in [k for k in self._sent if k[0] == client.prefix]:
            del self._sent[key]  # it demands anew
        for lease, worker in claimed:
            number = ids.node_of_worker(worker)
            entry = self._view.entries.get(number)
            if entry is not None and entry.state == "DEAD":
                client.send(m.WorkerDied(lease, _lost(entry, worker)))
                continue
            self._remote.setdefault(number, {})[lease] = client.prefix, worker, 0
            self._guests_at.setdefault(number, set()).add(client.prefix)
            self._peers.need(number)
        for number, known in self._guests_at.items():
            peer = self._peers.peers.get(number)
            if client.prefix in known and peer is not None and peer.attached:
                self._tell_leases(peer, client)

    def _tell_leases(self, peer: Peer, client: Client) -> None:
        self._introduce(peer, client)
        leases = [(x, w) for x, (p, w, _) in self._remote.get(peer.number, {}).items() if p == client.prefix]
        peer.untold[client.prefix] = peer.untold.get(client.prefix, 0) + 1
        self._forward(peer, client.prefix, m.Told(0, leases, [], []))

    def on_guest_told(self, peer: Peer, message: c.GuestTold) -> None:
        left = peer.untold.pop(message.prefix, 0) - 1
        if left > 0:
            peer.untold[message.prefix] = left

    def client_died(self, client: Client) -> None:
        for key in [k for k in self._sent if k[0] == client.prefix]:
            del self._sent[key]
        for number, known in self._guests_at.items():
            if client.prefix in known:
                known.discard(client.prefix)
                self._peers.send(number, c.PeerClientGone(client.prefix))
        for leases in self._remote.values():
            for lease in [x for x, (prefix, _, _) in leases.items() if prefix == client.prefix]:
                del leases[lease]

    def cancel_elsewhere(self, client: Client, message: m.CancelRef) -> bool:
        """To the home of the ref; False when that is this node."""
        number = ids.node_of(message.id)
        if number == self._view.number:
            return False
        peer = self._peers.need(number)
        if peer.attached:
            self._introduce(peer, client)
            self._forward(peer, client.prefix, message)
        else:
            asyncio.get_running_loop().call_later(0.2, self._cancel_again, client, message, 50)
        return True

    def _cancel_again(self, client: Client, message: m.CancelRef, tries: int) -> None:
        peer = self._peers.need(ids.node_of(message.id))
        if peer.attached:
            self._introduce(peer, client)
            self._forward(peer, client.prefix, message)
        elif tries and not peer.dead:
            asyncio.get_running_loop().call_later(0.2, self._cancel_again, client, message, tries - 1)

    # ------------------------------------------------------------ connections

    def _introduce(self, peer: Peer, client: Client) -> None:
        self._guests_at.setdefault(peer.number, set()).add(client.prefix)

    def _forward(self, peer: Peer, prefix: bytes, message: Any) -> None:
        client = self._clients.get(prefix)
        job = client.job if client is not None else ""
        config = self._job_config(job) if type(message) is m.ClassDef else None
        if peer.out is not None:
            peer.out.send(c.ForPeer(prefix, m.encode(message), job, config))

    def attached(self, peer: Peer, welcome: c.PeerWelcome) -> None:
        """We are connected to it (again): what it knows of our clients may be old."""
        peer.untold.clear()
        known = self._guests_at.setdefault(peer.number, set())
        known.update(welcome.clients)
        for prefix in list(known):
            client = self._clients.get(prefix)
            if client is None:
                known.discard(prefix)
                self._peers.send(peer.number, c.PeerClientGone(prefix))
            elif client.told:
                self._tell_leases(peer, client)
        for (prefix, cls), sent in list(self._sent.items()):
            count = sent.counts.get(peer.number, 0)
            client = self._clients.get(prefix)
            definition = self._leases.class_of(client, cls) if client is not None else None
            if count and client is not None and definition is not None:
                self._introduce(peer, client)
                self._forward(peer, prefix, definition)
                self._forward(peer, prefix, m.Demand(cls, count, peer.number in sent.queued))

    def node_died(self, entry: c.NodeEntry) -> None:
        """Its leases have ended, and its clients as well."""
        number = entry.number
        for lease, (prefix, worker, _) in self._remote.pop(number, {}).items():
            client = self._clients.get(prefix)
            if client is not None:
                client.send(m.WorkerDied(lease, _lost(entry, worker)))
        self._guests_at.pop(number, None)
        for sent in self._sent.values():
            sent.counts.pop(number, None)
            sent.queued.discard(number)
            sent.shunned.pop(number, None)
        home = ids.node_prefix(number)[: ids.NODE_SIZE]
        for client in [x for x in self._clients.values() if x.kind == "guest" and x.prefix.startswith(home)]:
            self.guest_gone(client.prefix)
        self._leases.kick()

    # ------------------------------------------------------------ guests

    def guests_of(self, number: int) -> list[Client]:
        home = ids.node_prefix(number)[: ids.NODE_SIZE]
        return [x for x in self._clients.values() if x.kind == "guest" and x.prefix.startswith(home)]

    def greet(self, number: int) -> list[bytes]:
        """Their node is connected again: whom we know."""
        for client in self.guests_of(number):
            client.session = GuestWay(self._peers, number, client.prefix, self._address)
            client.told = False
        return [client.prefix for client in self.guests_of(number)]

    def inbound_closed(self, number: int) -> None:
        for client in self.guests_of(number):
            client.session = None
            self._leases.forget_demands(client)
        self.forget_guests()

    def forget_guests(self) -> None:
        """Who has nothing here, and whose node is not connected: it need not come back to say that they have ended."""
        having = {lease.client.prefix for lease in self._leases.leases.values()}
        for client in [x for x in self._clients.values() if x.kind == "guest" and x.session is None]:
            if client.prefix not in having:
                self.guest_gone(client.prefix)

    def on_for_peer(self, peer: Peer, message: c.ForPeer, on_cancel: Callable[[Client, m.CancelRef], None]) -> None:
        inner: Any = m.decode_to_daemon(memoryview(message.header))
        kind = type(inner)
        client = self._clients.get(message.prefix)
        if kind is m.Told:
            self._peers.answer(peer.number, c.GuestTold(message.prefix))
        if client is None:
            client = Client(message.prefix, "guest", 0, 0, message.job)
            client.session = GuestWay(self._peers, peer.number, message.prefix, self._address)
            if kind is m.CancelRef:
                on_cancel(client, inner)
                return
            if kind is not m.ClassDef and not (kind is m.Told and inner.leases):
                return  # it has ended, and this was on its way
            self._clients[client.prefix] = client
            self._save(client)
        if message.job_config is not None:
            client.job = message.job
            self._take_job(message.job, message.job_config)
        if kind is m.ClassDef:
            self._leases.on_class(client, inner)
        elif kind is m.Demand:
            self._leases.on_demand(client, inner)
        elif kind is m.LeaseDone:
            self._leases.on_lease_done(client, inner.lease, inner.retiring)
        elif kind is m.KillTask:
            self._leases.kill_task(client, inner)
        elif kind is m.Told:
            client.told = True
            self._leases.client_told(client, inner.leases)
        elif kind is m.CancelRef:
            on_cancel(client, inner)

    def send_back(self, demand: Demand) -> None:
        """A guest's demand that cannot be served now."""
        client = demand.client
        self._peers.answer(ids.node_of(client.prefix), c.Reschedule(client.prefix, demand.cls))

    def guest_gone(self, prefix: bytes) -> None:
        client = self._clients.get(prefix)
        if client is not None and client.kind == "guest":
            del self._clients[prefix]
            self._forget(client)
            self._leases.client_died(client)

    # ------------------------------------------------------------ questions

    def figures(self) -> dict[str, Any]:
        return {
            "leases_elsewhere": sum(len(x) for x in self._remote.values()),
            "guests": sum(1 for x in self._clients.values() if x.kind == "guest"),
        }

    def where_sent(self, prefix: bytes, cls: int) -> dict[str, int]:
        sent = self._sent.get((prefix, cls))
        return {self._id(n): count for n, count in sent.counts.items()} if sent is not None else {}

    def _id(self, number: int) -> str:
        entry = self._view.entries.get(number)
        return entry.id if entry is not None else str(number)


def _lost(entry: c.NodeEntry, worker: str) -> m.Death:
    why = entry.reason or "it was declared dead"
    return m.Death(
        worker, reason=f"its node {entry.name} ({entry.id}) is lost: {why}", node=entry.id, kind=deaths.NODE_LOST
    )
