"""Objects between nodes: which node holds what of whom, where copies lie, and bringing them here.

The home of an object is the node of the client that made its id. Toward a home this node tells, over the connection
that it keeps to it, what it holds (``Refs``: 0 to 1 and 1 to 0 only), and which of that home's objects lie here
(``Copies``); the home says when they are dropped. As a home it answers where objects are, so that many readers form a
chain instead of all drawing on one source: who is on the way to a copy is a source for the next already.

What is held by whom *within* the node, and the memory itself, is in ``object_store.py``; the bytes go by ``transfer``.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable
from contextlib import ExitStack
from typing import Any

import msgspec

from noded import ids
from noded.node.cluster_view import ClusterView
from noded.node.entry import Entry
from noded.node.object_store import ObjectStore
from noded.node.peers import Peer, Peers
from noded.node.session import Client
from noded.node.spill_files import SpillFile
from noded.node.transfer import NotYet, Source, Target, WriteFailed, write_all
from noded.node.transfer_pull import PullCancelled, Puller, PullFailed
from noded.shm import arena as shm
from noded.shm import record
from noded.wire import cluster_messages as c
from noded.wire import messages as m
from noded.wire.chunks import Refused

log = logging.getLogger("noded.directory")

_INLINE = 100 << 10
_BATCH = 2000
_READ_ALL = 1 << 62


class _Spread(msgspec.Struct):
    """Who draws on whom for one object of ours."""

    loads: dict[int, int] = {}
    drawing: dict[int, int] = {}
    """Node on its way to a copy -> its source."""


class _Barrier(msgspec.Struct, eq=False):
    """``HasRead`` is due when these have read so far."""

    asker: int
    token: int
    needs: dict[int, int]


class Directory:
    """Implements ``object_store.Elsewhere``. ``pull`` and ``serve`` use the transfer engine; ``client(prefix)`` finds a
    client of this node.
    """

    def __init__(
        self,
        store: ObjectStore,
        peers: Peers,
        view: ClusterView,
        clients: dict[bytes, Client],
        puller: Puller,
    ):
        self._store = store
        self._peers = peers
        self._view = view
        self._clients = clients
        self._puller = puller
        self._generation = 0
        self._held: dict[bytes, int] = {}
        """What this node holds at its home, with the generation of the hold."""
        self._outbox: defaultdict[int, _Outbox] = defaultdict(_Outbox)
        self._flushing = False
        self._hurries: dict[int, dict[int, tuple[bytes, int]]] = {}
        """Node -> token -> (client, seq) that we have asked about."""
        self._asked: dict[bytes, int] = {}
        """Receiver -> the highest seq asked about."""
        self._token = 0
        self._unread: defaultdict[bytes, list[tuple[int, int, int]]] = defaultdict(list)
        """Client of ours -> (seq, node that asks, token)."""
        self._barriers: list[_Barrier] = []
        self._spreads: dict[bytes, _Spread] = {}
        self._more: dict[bytes, asyncio.Future[list[int] | bytes]] = {}
        self._places: dict[bytes, Target] = {}
        """Where what is being brought here is written."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._serving = 0

    # ------------------------------------------------------------ told to homes

    def hold(self, id_: bytes, on: bool) -> None:
        box = self._outbox[ids.node_of(id_)]
        if on:
            self._generation += 1
            self._held[id_] = self._generation
            box.holds.append((id_, self._generation))
        else:
            generation = self._held.pop(id_, 0)
            if generation:
                box.releases.append((id_, generation))
        self._flush_soon()

    def copy(self, id_: bytes, size: int) -> None:
        box = self._outbox[ids.node_of(id_)]
        box.copies[id_] = size
        box.gone.pop(id_, None)
        self._flush_soon()

    def uncopy(self, id_: bytes) -> None:
        box = self._outbox[ids.node_of(id_)]
        box.copies.pop(id_, None)
        box.gone[id_] = None
        self._flush_soon()

    def want(self, id_: bytes) -> None:
        self._outbox[ids.node_of(id_)].wants.append(id_)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Everything that was noted goes out; to a home that is not connected with the telling when it is."""
        self._flushing = False
        boxes, self._outbox = self._outbox, defaultdict(_Outbox)
        for number, box in boxes.items():
            if self.is_dead(number):
                for id_ in box.wants:
                    self._store.on_not_found(id_, "owner", "the node where it was made is dead")
                continue
            peer = self._peers.need(number)
            if box.holds or box.releases:
                for at in range(0, max(len(box.holds), len(box.releases)), _BATCH):
                    seq = self._peers.next_seq(number)
                    message = m.Refs(seq, box.holds[at : at + _BATCH], box.releases[at : at + _BATCH])
                    self._peers.send(number, message)
            if box.copies or box.gone:
                copies, gone = list(box.copies.items()), list(box.gone)
                for at in range(0, max(len(copies), len(gone)), _BATCH):
                    seq = self._peers.next_seq(number)
                    self._peers.send(number, c.Copies(seq, copies[at : at + _BATCH], gone[at : at + _BATCH]))
            if box.wants and peer.attached:
                self._peers.send(number, c.WantObjects(box.wants))

    def is_dead(self, number: int) -> bool:
        entry = self._view.entries.get(number)
        return entry is not None and entry.state == "DEAD"

    # ------------------------------------------------------------ connected to a home

    def attached(self, peer: Peer) -> None:
        """Tell it all that concerns its objects."""
        number = peer.number
        self.flush()
        held, copies = self._store.guests(number)
        send = self._peers.send
        for at in range(0, len(held), _BATCH):
            holds = [(id_, self._held[id_]) for id_ in held[at : at + _BATCH] if id_ in self._held]
            send(number, m.Refs(self._peers.next_seq(number), holds))
        for at in range(0, len(copies), _BATCH):
            send(number, c.Copies(self._peers.next_seq(number), copies[at : at + _BATCH]))
        if not self._store.recovering_own():
            send(number, c.PeerTold(self._peers.next_seq(number)))
        wanted = self._store.wanted(number)
        wanted += [id_ for id_ in self._more if ids.node_of(id_) == number]
        for at in range(0, len(wanted), _BATCH):
            send(number, c.WantObjects(wanted[at : at + _BATCH]))
        for token, (prefix, seq) in self._hurries.get(number, {}).items():
            send(number, c.Hurry(token, prefix, seq))

    def recovered(self) -> None:
        """All clients of this node have told again what they hold: so may we, to the homes."""
        for peer in self._peers.peers.values():
            if peer.attached:
                self._peers.send(peer.number, c.PeerTold(self._peers.next_seq(peer.number)))

    def need_homes(self) -> None:
        """After a restart: what lies here, or is held, is told to its homes."""
        for entry in self._store.entries.values():
            if entry.away is not None and ids.node_of(entry.id) != self._store.node:
                self._peers.need(ids.node_of(entry.id))
        for client in self._clients.values():
            if client.kind in ("guest", "node"):  # by our dialing its node learns that we wait for its word
                self._peers.need(ids.node_of(client.prefix))

    def on_dropped(self, dropped: Iterable[bytes]) -> None:
        self._store.on_dropped(dropped)

    def on_read(self, peer: Peer, seq: int) -> None:
        peer.read = max(peer.read, seq)
        if self._barriers:
            self._look_at_barriers()

    def on_found(self, message: c.Found, payload: bytes | memoryview) -> None:
        more = self._more.get(message.id)
        if more is not None:
            if not more.done():
                more.set_result(message.nodes or bytes(payload))
            return
        self._store.on_found(message.id, message.size, message.nodes, payload)

    def on_not_found(self, message: c.NotFound) -> None:
        more = self._more.get(message.id)
        if more is not None:
            if not more.done():
                more.set_result([])
            return
        self._store.on_not_found(message.id, message.kind, message.reason)

    # ------------------------------------------------------------ as a home

    def greet(self, peer: Peer) -> None:
        """It will tell all that it holds of ours; until then what it held is held."""
        prefix = ids.node_prefix(peer.number)
        client = self._clients.get(prefix)
        if client is None:
            client = self._clients[prefix] = Client(prefix, "node", 0, 0)
        client.told = False
        peer.client, peer.snapshot, peer.copies = client, set(), set()
        self._store.recovering.add(prefix)

    def on_refs(self, peer: Peer, message: m.Refs) -> None:
        if peer.client is None:
            return
        if peer.snapshot is not None:
            peer.snapshot.update(id_ for id_, _ in message.holds)
        self._store.on_refs(peer.client, message)
        self._peers.answer(peer.number, c.PeerRead(message.seq))

    def on_copies(self, peer: Peer, message: c.Copies) -> None:
        peer.drops.difference_update(message.gone)
        if peer.copies is not None:
            peer.copies.update(id_ for id_, _ in message.objects)
            peer.copies.difference_update(message.gone)
        told_again = [id_ for id_, _ in message.objects if id_ in peer.drops]
        self._store.on_copies(peer.number, message.objects, message.gone)
        for id_, _ in message.objects:
            spread = self._spreads.get(id_)
            if spread is not None:
                self._arrived(spread, peer.number)
        if told_again:
            self._peers.answer(peer.number, c.Dropped(told_again))
        self._peers.answer(peer.number, c.PeerRead(message.seq))

    def on_told(self, peer: Peer, message: c.PeerTold) -> None:
        client, snapshot = peer.client, peer.snapshot
        if client is not None and snapshot is not None:
            peer.snapshot = None
            client.told = True
            if peer.copies is not None:  # what it gave up while it could not tell
                self._store.copies_told(peer.number, peer.copies)
                peer.copies = None
            self._store.peer_told(client, snapshot)
        self._peers.answer(peer.number, c.PeerRead(message.seq))

    def on_want(self, peer: Peer, message: c.WantObjects) -> None:
        self._store.on_want(peer.number, message.ids)

    def dropped(self, id_: bytes, nodes: Iterable[int]) -> None:
        self._spreads.pop(id_, None)
        for number in nodes:
            self._peers.peer(number).drops.add(id_)
            self._peers.answer(number, c.Dropped([id_]))

    def was_dropped(self, id_: bytes, node: int) -> bool:
        peer = self._peers.peers.get(node)
        return peer is not None and id_ in peer.drops

    def found(self, node: int, entry: Entry) -> None:
        if 0 <= entry.offset and entry.size <= _INLINE:
            value = self._store.arena.view(entry.offset + shm.HEADER_SIZE, entry.size)
            self._peers.answer(node, c.Found(entry.id, entry.size, []), bytes(value))
            return
        size = entry.size if entry.here else entry.away.size if entry.away is not None else 0
        sources = self._sources(node, entry)
        if sources:
            self._peers.answer(node, c.Found(entry.id, size, sources))
        else:
            self.not_found(node, entry.id, "lost", "no node has it any more")

    def not_found(self, node: int, id_: bytes, kind: str, reason: str) -> None:
        self._peers.answer(node, c.NotFound(id_, kind, reason))

    def _sources(self, node: int, entry: Entry) -> list[int]:
        """Where this node is to get it: the idle ones first, so that readers form a chain."""
        spread = self._spreads.setdefault(entry.id, _Spread())
        whole = [n for n in (entry.away.nodes if entry.away is not None else ()) if n != node]
        if entry.here:
            whole.append(self._store.node)
        again = node in spread.drawing
        if again:
            self._arrived(spread, node)
        partial = [] if again else [n for n in spread.drawing if n != node and n not in whole]
        load = spread.loads
        idle = [n for n in whole if not load.get(n, 0)]
        if len(idle) > 1 or again:
            return sorted(whole, key=lambda n: load.get(n, 0))
        best = min([*whole, *partial], key=lambda n: (load.get(n, 0), n in spread.drawing), default=None)
        if best is None:
            return []
        load[best] = load.get(best, 0) + 1
        spread.drawing[node] = best
        return [best]

    @staticmethod
    def _arrived(spread: _Spread, node: int) -> None:
        source = spread.drawing.pop(node, None)
        if source is not None:
            spread.loads[source] = max(0, spread.loads.get(source, 0) - 1)

    # ------------------------------------------------------------ hand-over of refs between nodes

    def hurry(self, receiver: bytes, seq: int) -> None:
        number = ids.node_of(receiver)
        if self.is_dead(number):
            asyncio.get_running_loop().call_soon(self._store.has_read, receiver, _READ_ALL)
            return
        if self._asked.get(receiver, -1) >= seq:
            return
        self._asked[receiver] = seq
        self._token += 1
        self._hurries.setdefault(number, {})[self._token] = receiver, seq
        self._peers.send(number, c.Hurry(self._token, receiver, seq))

    def on_has_read(self, peer: Peer, message: c.HasRead) -> None:
        found = self._hurries.get(peer.number, {}).pop(message.token, None)
        if found is not None:
            receiver, seq = found
            if self._asked.get(receiver) == seq:
                del self._asked[receiver]
            self._store.has_read(receiver, seq)

    def on_hurry(self, peer: Peer, message: c.Hurry) -> None:
        client = self._clients.get(message.prefix)
        if client is not None and client.kind in ("driver", "worker") and (not client.told or client.seq < message.seq):
            self._unread[message.prefix].append((message.seq, peer.number, message.token))
        else:
            self._has_read(peer.number, message.token)

    def progressed(self, client: Client) -> None:
        """Its numbered messages were read up to ``client.seq``."""
        waiting = self._unread.get(client.prefix) if self._unread else None
        if waiting and client.told:
            due = [w for w in waiting if w[0] <= client.seq]
            self._unread[client.prefix] = [w for w in waiting if w[0] > client.seq]
            for _, asker, token in due:
                self._has_read(asker, token)

    def client_died(self, prefix: bytes) -> None:
        for _, asker, token in self._unread.pop(prefix, []):
            self._has_read(asker, token)

    def _has_read(self, asker: int, token: int) -> None:
        """It was read here; what it told is to be known at the homes as well."""
        self.flush()
        needs = {p.number: p.seq for p in self._peers.peers.values() if p.read < p.seq and not p.dead}
        barrier = _Barrier(asker, token, needs)
        if not self._passed(barrier):
            self._barriers.append(barrier)

    def _passed(self, barrier: _Barrier) -> bool:
        for number, seq in list(barrier.needs.items()):
            peer = self._peers.peers.get(number)
            if peer is None or peer.dead or peer.read >= seq:
                del barrier.needs[number]
        if barrier.needs:
            return False
        self._peers.answer(barrier.asker, c.HasRead(barrier.token))
        return True

    def _look_at_barriers(self) -> None:
        self._barriers = [barrier for barrier in self._barriers if not self._passed(barrier)]

    # ------------------------------------------------------------ bringing objects here

    def pull(self, id_: bytes, size: int, nodes: list[int]) -> None:
        self._find_room(
            id_,
            size,
            lambda target: self._in_task(self._pull(id_, size, target, nodes), f"pull {id_.hex()}"),
            lambda reason: self._store.pull_failed(id_, "full", reason),
            self._store.pulled,
            copy=True,
        )

    def _find_room(
        self,
        id_: bytes,
        size: int,
        on_room: Callable[[Target], None],
        on_failure: Callable[[str], None],
        stored: Callable[[bytes], None],
        *,
        copy: bool,
    ) -> None:
        """In the arena, else on disk. ``stored(id)`` is called when the value is there, before anybody is told."""
        store = self._store

        def on_space(offset: int) -> None:
            def done() -> None:
                stored(id_)
                store.seal_own(offset)

            on_room(Target(store.arena.fd, offset + shm.HEADER_SIZE, done, lambda: store.give_up_own(offset)))

        def on_file(file: SpillFile) -> None:
            def done() -> None:
                ends.close()
                stored(id_)
                if not store.spilling.written(file, copy=copy):
                    store.pull_failed(id_, "lost", f"it cannot be written to {file.path}")

            def give_up() -> None:
                ends.close()
                store.spilling.not_written(file)

            try:
                fd = os.open(file.path, os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                store.spilling.not_written(file)
                on_failure(f"{error}")
                return
            ends = ExitStack()  # closed once, whoever comes first
            ends.callback(os.close, fd)
            on_room(Target(fd, record.HEADER_SIZE, done, give_up))

        store.space.allocate(
            id_, size, on_space, lambda reason: store.spilling.take_file(id_, size, on_file, on_failure)
        )

    def _in_task(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def unneeded(self, id_: bytes) -> None:
        """What its home forgets, too, is looked for no longer: the answer would never come."""
        more = self._more.get(id_)
        if more is not None and not more.done():
            more.set_result([])

    async def _pull(self, id_: bytes, size: int, target: Target, nodes: list[int]) -> None:
        self._places[id_] = target
        pause = 0.0

        async def none() -> list[str]:
            return []

        try:
            while True:
                try:
                    addresses = self._addresses(nodes)
                    await self._puller.pull(id_, size, target.offset, addresses, none, target.fd)
                    break
                except PullFailed as failure:
                    # Who has it may be away for a while; only the dead do not come back.
                    more = await self._other_sources(id_)
                    if isinstance(more, bytes):
                        write_all(target.fd, memoryview(more), target.offset)
                        break
                    nodes = [n for n in more if not self.is_dead(n)]
                    if not nodes:
                        raise
                    log.info("object %s cannot be brought here now: %s", id_.hex(), failure)
                    await asyncio.sleep(pause)
                    pause = min(1.0, pause + 0.1)
        except (PullFailed, PullCancelled, WriteFailed) as failure:
            target.give_up()
            log.warning("object %s cannot be brought here: %s", id_.hex(), failure)
            self._store.pull_failed(id_, "lost", f"no node that has it can be reached: {failure}")
        except BaseException:
            target.give_up()
            self._store.pull_failed(id_, "lost", "this node stopped to bring it here")
            raise
        else:
            target.done()
        finally:
            self._places.pop(id_, None)

    def _addresses(self, nodes: list[int]) -> list[str]:
        return [a for a in (self._view.address(n) for n in nodes if n != self._store.node) if a]

    async def _other_sources(self, id_: bytes) -> list[int] | bytes:
        """Other nodes, or the value itself."""
        home = ids.node_of(id_)
        if home == self._store.node:
            entry = self._store.entries.get(id_)
            await asyncio.sleep(0.2)  # the view may be about to say which of them are dead
            return list(entry.away.nodes) if entry is not None and entry.away is not None else []
        if self.is_dead(home) or not self._store.is_needed(id_):
            return []
        future: asyncio.Future[list[int] | bytes] = asyncio.get_running_loop().create_future()
        self._more[id_] = future
        try:
            self._peers.send(home, c.WantObjects([id_]))
            return await future
        finally:
            del self._more[id_]

    # ------------------------------------------------------------ giving objects out

    def open_source(self, id_: bytes) -> Source | None:
        """For the transfer server: the object, which stays until the source is closed. Raises NotYet."""
        entry = self._store.entries.get(id_)
        if entry is None:
            return None
        if entry.moving:
            raise NotYet
        incoming = None
        fd = -1
        if entry.offset >= 0:
            offset, size = entry.offset + shm.HEADER_SIZE, entry.size
            self._store.space.touch(entry.offset)
        elif entry.disk is not None:
            try:
                fd = os.open(entry.disk.file.path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                log.error("object %s cannot be read from its file: %s", id_.hex(), error)
                return None
            offset, size = entry.disk.value_at, entry.size
        else:
            incoming = self._puller.incoming(id_)
            if incoming is None or id_ not in self._places:
                if entry.away is not None and (entry.away.pulling or entry.waiting):
                    raise NotYet
                return None
            target = self._places[id_]
            offset, size = target.offset, incoming.size
            if target.fd != self._store.arena.fd:
                fd = os.dup(target.fd)
        self._serving += 1
        token = b"serve" + self._serving.to_bytes(8, "big")
        entry.holders.add(token)

        def close() -> None:
            if fd >= 0:
                os.close(fd)
            self._store.drop_holder(token, [id_])

        return Source(offset, size, close, incoming, fd)

    async def allocate(self, id_: bytes, size: int) -> Target:
        """Room for a value that a driver without shared memory sends. Raises Refused."""
        future: asyncio.Future[Target] = asyncio.get_running_loop().create_future()

        def on_failure(reason: str) -> None:
            if not future.done():
                future.set_exception(Refused(reason))

        def on_room(target: Target) -> None:
            if future.done():
                target.give_up()
            else:
                future.set_result(target)

        client = self._clients.get(ids.prefix_of(id_))
        if client is None or not client.remote:
            raise Refused("only a driver of this node that has no shared memory may store values this way")
        self._find_room(id_, size, on_room, on_failure, lambda id_: None, copy=False)
        return await future

    # ------------------------------------------------------------ ends

    def node_died(self, entry: c.NodeEntry, peer: Peer | None) -> None:
        number = entry.number
        self._hurries.pop(number, None)
        for receiver in [r for r in self._asked if ids.node_of(r) == number]:
            del self._asked[receiver]
        for spread in self._spreads.values():
            self._arrived(spread, number)
        for id_ in [i for i in self._held if ids.node_of(i) == number]:
            del self._held[id_]
        for id_, more in self._more.items():
            if ids.node_of(id_) == number and not more.done():
                more.set_result([])
        client = self._clients.pop(ids.node_prefix(number), None)
        if client is not None:
            self._store.client_died(client)
        self._store.node_died(number, entry.reason or "it was declared dead")
        self._look_at_barriers()

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=5)


class _Outbox(msgspec.Struct):
    holds: list[tuple[bytes, int]] = []
    releases: list[tuple[bytes, int]] = []
    copies: dict[bytes, int] = {}
    gone: dict[bytes, None] = {}
    wants: list[bytes] = []
