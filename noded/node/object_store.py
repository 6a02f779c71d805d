"""The node's objects: who holds which id, and where its value is (the room for it: ``space.py``).

Values are never read here, only the ids of refs inside them. An entry is freed when nobody holds it and no
living object contains it, and no client is left that has not re-told its holds after a daemon restart. Of an object
whose home is another node the home decides: what is held here is held there by this node (``Elsewhere``), and a result
that was made here stays until the home says that it is dropped. See ``docs/architecture.md`` section 6.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from noded import ids
from noded.node.entry import Away, Entry
from noded.node.ledger import Ledger
from noded.node.session import Client
from noded.node.space import Space
from noded.node.spill_files import Place, SpillFile
from noded.node.spilling import Spilling
from noded.shm import arena as shm
from noded.shm import record
from noded.wire import messages as m
from noded.wire import value as layout

log = logging.getLogger("noded.object_store")

_Receivers = list[tuple[bytes, int]]
MAKERS_SECONDS = 10.0
"""After the node started over: how long a maker that is not there yet may take to come back."""
_EVICT_SECONDS = 0.05
"""Where no copy could go, so long nobody looks again."""
_INLINE = 100 << 10
"""Values up to this many bytes travel inside messages."""


class Elsewhere(Protocol):
    """The other nodes, as far as objects go (``directory.py``)."""

    def hold(self, id_: bytes, on: bool) -> None:
        """This node holds an object whose home is another node, or does not any more."""

    def copy(self, id_: bytes, size: int) -> None:
        """Such an object lies here now."""

    def uncopy(self, id_: bytes) -> None: ...

    def want(self, id_: bytes) -> None:
        """Somebody here waits for such an object; answered by ``on_found`` or ``on_not_found``."""

    def pull(self, id_: bytes, size: int, nodes: list[int]) -> None:
        """Bring it here; answered by ``pulled`` or ``pull_failed``."""

    def unneeded(self, id_: bytes) -> None:
        """It is being brought here, and nobody needs it any more."""

    def found(self, node: int, entry: Entry) -> None:
        """Tell a node, which has asked, where this object of ours is."""

    def not_found(self, node: int, id_: bytes, kind: str, reason: str) -> None: ...

    def dropped(self, id_: bytes, nodes: Iterable[int]) -> None:
        """Nobody needs this object of ours any more: these nodes are to forget their copies."""

    def was_dropped(self, id_: bytes, node: int) -> bool:
        """That node was told so, and has not answered."""

    def is_dead(self, node: int) -> bool: ...

    def hurry(self, receiver: bytes, seq: int) -> None:
        """Answered with ``has_read`` when this client of another node was read so far and what it told is known."""


class ObjectStore:
    """``on_actor_free(id)`` is told when nobody holds an actor any more. ``node``: this node's number."""

    def __init__(
        self,
        arena: shm.Arena,
        ledger: Ledger,
        clients: dict[bytes, Client],
        on_actor_free: Callable[[bytes], None],
        node: int,
    ):
        self.elsewhere: Elsewhere
        self.node = node
        self._own = ids.node_prefix(node)[: ids.NODE_SIZE]
        self.arena = arena
        self.space = Space(arena, ledger, node, self._evict, self._biggest)
        self.spilling: Spilling
        self.entries: dict[bytes, Entry] = {}
        self.recovering: set[bytes] = set()
        """Clients that have not re-told their state yet."""
        self.ready_count = 0
        self._evict_again = 0.0
        self._makers_until = 0.0
        self._clients = clients
        self._on_actor_free = on_actor_free
        self._after: defaultdict[bytes, list[tuple[int, bytes, bytes, int, _Receivers]]] = defaultdict(list)
        """Releases that wait until their receiver was read up to a seq: (seq, releaser, id, generation, receivers that
        are to be looked at then).
        """
        self._handed_over: Counter[bytes] = Counter()
        """Ids in those."""
        self._doubtful: defaultdict[bytes, list[tuple[int, bytes]]] = defaultdict(list)
        """Objects that a worker of another node says it has stored there, of which that node has not told: by worker,
        with its position.
        """
        self._copies: dict[bytes, object] = {}
        """Of objects that other nodes have, and that may go when there is no room."""
        self._copies_bytes = 0
        self._evicted = {"evicted_bytes": 0, "evicted_objects": 0}
        self._deferred: set[bytes] = set()
        self._unfreed: list[bytes] = []
        self._freeing = False

    # ------------------------------------------------------------ holds

    def entry(self, id_: bytes) -> Entry:
        found = self.entries.get(id_)
        if found is None:
            found = self.entries[id_] = Entry(id_)
        return found

    def on_refs(self, client: Client, message: m.Refs) -> None:
        held, prefix, own = client.held, client.prefix, self._own
        for id_, generation in message.holds:
            held[id_] = generation
            found = self.entry(id_)
            found.holders.add(prefix)
            if not id_.startswith(own):
                self._hold_there(found)
        for id_, generation in message.releases:
            self._release(client, id_, generation)
        for id_, generation, receiver, seq in message.after:
            self._release_after(client, id_, generation, [(receiver, seq)])
        for id_, generation, receivers in message.after_all:
            self._release_after(client, id_, generation, receivers)

    def _release_after(self, client: Client, id_: bytes, generation: int, receivers: _Receivers) -> None:
        """Release when all of them have been read so far; of one that has not re-told, that is at its Told."""
        for at, (receiver, seq) in enumerate(receivers):
            if not receiver.startswith(self._own):
                self._handed_over[id_] += 1
                self._after[receiver].append((seq, client.prefix, id_, generation, receivers[at + 1 :]))
                self.elsewhere.hurry(receiver, seq)
                return
            other = self._clients.get(receiver)
            if other is not None and (not other.told or other.seq < seq):
                due = seq if other.told else 0
                self._handed_over[id_] += 1
                self._after[receiver].append((due, client.prefix, id_, generation, receivers[at + 1 :]))
                return
        self._release(client, id_, generation)

    def _release(self, client: Client, id_: bytes, generation: int) -> None:
        if client.held.get(id_) == generation:
            del client.held[id_]
            found = self.entries.get(id_)
            if found is not None:
                found.holders.discard(client.prefix)
                if found.waiting:
                    found.waiting.discard(client.prefix)
                if found.away is not None and found.away.watching:
                    found.away.watching.discard(client.prefix)
                self._maybe_free(found)

    def progressed(self, client: Client) -> None:
        """The client's numbered messages have been applied up to ``client.seq``."""
        if not client.told:
            return  # what it had written before its daemon died is only found at its Told
        waiting = self._after.get(client.prefix)
        if waiting:
            due = [w for w in waiting if w[0] <= client.seq]
            if due:
                rest = [w for w in waiting if w[0] > client.seq]
                if rest:
                    self._after[client.prefix] = rest
                else:
                    del self._after[client.prefix]
                self._apply_after(due)

    def has_read(self, receiver: bytes, seq: int) -> None:
        """A client of another node was read so far, or is dead (then ``seq`` is above all)."""
        waiting = self._after.pop(receiver, [])
        rest = [w for w in waiting if w[0] > seq]
        if rest:
            self._after[receiver] = rest
        self._apply_after([w for w in waiting if w[0] <= seq])
        if self._doubtful:
            self._look_at_doubts(receiver, seq)

    def _apply_after(self, due: Iterable[tuple[int, bytes, bytes, int, _Receivers]]) -> None:
        for _, releaser, id_, generation, others in due:
            self._handed_over[id_] -= 1
            if not self._handed_over[id_]:
                del self._handed_over[id_]
            client = self._clients.get(releaser)
            if client is not None:
                self._release_after(client, id_, generation, others)

    def is_handed_over(self, id_: bytes) -> bool:
        """A release of it waits for a receiver, which may not have told that it holds it."""
        return id_ in self._handed_over

    def hold_for_fork(self, token: bytes, held: list[bytes]) -> None:
        """A pseudo-client that stands for the forked children of one."""
        for id_ in held:
            found = self.entry(id_)
            found.holders.add(token)
            if not id_.startswith(self._own):
                self._hold_there(found)

    def drop_holder(self, token: bytes, held: Iterable[bytes]) -> None:
        for id_ in list(held):
            found = self.entries.get(id_)
            if found is not None:
                found.holders.discard(token)
                self._maybe_free(found)

    def _maybe_free(self, entry: Entry) -> None:
        if entry.holders or entry.containers or entry.moving or entry.coming:
            return
        if self.recovering and not self._is_fresh(entry):
            self._deferred.add(entry.id)
            return
        # Not recursive: a list of lists of lists may be deeper than Python's stack.
        self._unfreed.append(entry.id)
        if self._freeing:
            return
        self._freeing = True
        try:
            while self._unfreed:
                found = self.entries.get(self._unfreed.pop())
                if found is not None and not (found.holders or found.containers or found.moving or found.coming):
                    if found.away is None or self._let_go(found):
                        self._free(found)
        finally:
            self._freeing = False

    def is_needed(self, id_: bytes) -> bool:
        """Somebody here holds it, waits for it, or has an object that contains it."""
        entry = self.entries.get(id_)
        if entry is None or entry.holders or entry.containers:
            return entry is not None
        waiting = (entry.waiting or set()) | (entry.away.watching or set() if entry.away is not None else set())
        return not waiting.isdisjoint(self._clients)

    def _let_go(self, entry: Entry) -> bool:
        """Nobody here needs an object that concerns other nodes: True when nothing keeps it here."""
        away = entry.away
        assert away is not None
        if entry.id.startswith(self._own):
            if away.nodes:
                self.elsewhere.dropped(entry.id, list(away.nodes))
            return True
        if away.held_there:
            away.held_there = False
            self.elsewhere.hold(entry.id, False)
        if entry.here and (away.pinned or (away.cached and entry.offset >= 0)):
            away.used = time.monotonic()
            return False
        if away.pulling and not self.is_needed(entry.id):
            self.elsewhere.unneeded(entry.id)
        return not away.pulling

    def _free(self, entry: Entry) -> None:
        del self.entries[entry.id]
        self._no_copy(entry)
        if ids.is_actor_id(entry.id):
            if entry.id.startswith(self._own):
                self._on_actor_free(entry.id)
            return
        if not entry.here:
            return
        if not entry.id.startswith(self._own):
            self.elsewhere.uncopy(entry.id)
        for offset in (entry.offset, *entry.copies):
            if offset >= 0:
                self.arena.mark_freed(offset)
                self.space.let_go(offset)
        self.spilling.forget(entry)
        self._is_gone(entry)

    def _is_gone(self, entry: Entry) -> None:
        """Its value is not on this node any more, nor does it contain anything here."""
        self.ready_count -= 1
        nested, entry.nested = entry.nested, []
        for id_ in nested:
            inner = self.entries.get(id_)
            if inner is not None:
                inner.containers -= 1
                self._maybe_free(inner)

    def _is_fresh(self, entry: Entry) -> bool:
        if entry.offset < 0:
            return False
        regions = [self.space.at(offset) for offset in (entry.offset, *entry.copies)]
        return all(region is not None and region.fresh for region in regions)

    # ------------------------------------------------------------ values

    def on_sealed(self, client: Client, message: m.Sealed) -> None:
        for id_, offset in message.objects:
            header = self.arena.header(offset)
            if header is None or header.id != id_ or header.state != shm.SEALED:
                log.error(
                    "client %s sealed %s at %s, where there is no such object", client.prefix.hex(), id_.hex(), offset
                )
                continue
            self._adopt(header)

    def _adopt(self, header: shm.ObjectHeader, *, told: bool = False) -> None:
        """A sealed object: known from now on, held by its owner if that lives; but if that has ``told`` whether it
        holds it, so.
        """
        entry = self.entry(header.id)
        if entry.offset == header.offset or header.offset in entry.copies:
            return
        region = self.space.take(header.offset)
        if region is not None:
            region.used = time.monotonic()
        nested = self._ids_in(header)
        if entry.here:
            if entry.offset < 0 and not entry.coming:
                entry.offset = header.offset
            else:
                entry.copies.append(header.offset)
            self._contains(entry, nested)
            self._tell_ready(entry)
            return
        entry.offset = header.offset
        self._is_here(entry, header.size, nested, region is None or not ids.is_node_prefix(region.prefix), told=told)

    def adopt_file(self, found: record.Record, nested: list[bytes], place: Place, *, copy: bool = False) -> None:
        """A sealed object in a file: written there by a client, or before the daemon has started anew. ``copy``: of
        what another node has.
        """
        entry = self.entry(found.id)
        if entry.disk is not None:  # a retried task has made it again
            place.file.live -= 1
            return
        known, entry.disk = entry.here, place
        if not known:
            self._is_here(entry, found.size, nested, not copy)
        elif entry.away is not None and not found.id.startswith(self._own):
            entry.away.pinned = True  # else it had not been written there
            self._keep(entry)
            self._tell_ready(entry)

    def _contains(self, entry: Entry, nested: list[bytes]) -> None:
        for id_ in nested:
            inner = self.entry(id_)
            inner.containers += 1
            if not id_.startswith(self._own):
                self._hold_there(inner)
        entry.nested = entry.nested + nested

    def _is_here(self, entry: Entry, size: int, nested: list[bytes], original: bool, *, told: bool = False) -> None:
        """Its value is on this node now. ``original``: it is no copy of what another node has."""
        entry.size = size
        self._contains(entry, nested)
        if entry.away is not None:
            entry.away.lost, entry.away.rebuilding, entry.away.final = "", False, False
        self.ready_count += 1
        if not entry.id.startswith(self._own):
            self._adopted_guest(entry, original)
        elif not told and (
            entry.away is None or not entry.away.nodes
        ):  # else its maker has been told, and counted, before
            owner = self._clients.get(ids.prefix_of(entry.id))
            if owner is not None:
                owner.held.setdefault(entry.id, 0)
                entry.holders.add(owner.prefix)
        self._tell_ready(entry)
        self._maybe_free(entry)

    def arrived(self, entry: Entry) -> None:
        """It has left the arena, is back there, or stays: go on with what had to wait for that."""
        if entry.here:
            self._tell_ready(entry)
        self._maybe_free(entry)

    def _tell_ready(self, entry: Entry) -> None:
        """The value is here: tell who waits for it, here and elsewhere."""
        if entry.waiting and not entry.moving:
            if entry.offset >= 0:
                waiting, entry.waiting = entry.waiting, None
                for prefix in waiting:
                    if (waiter := self._clients.get(prefix)) is not None:
                        self._send_ready(waiter, [entry])
            else:
                self.spilling.restore(entry)
        away = entry.away
        if away is None:
            return
        watching, away.watching = away.watching, None
        for prefix in watching or ():
            if (waiter := self._clients.get(prefix)) is not None:
                if entry.offset >= 0 and not entry.moving:
                    self._send_ready(waiter, [entry])
                else:
                    waiter.send(m.Exists([(entry.id, entry.size, self.node)]))
        asking, away.asking = away.asking, set()
        for node in asking:
            self.elsewhere.found(node, entry)

    def _send_ready(self, client: Client, entries: list[Entry]) -> None:
        for entry in entries:
            self.space.touch(entry.offset)
        if not client.remote:
            client.send(m.Ready([(e.id, e.offset + shm.HEADER_SIZE, e.size) for e in entries]))
            return
        for entry in entries:
            inline = entry.size <= _INLINE
            payload = bytes(self.arena.view(entry.offset + shm.HEADER_SIZE, entry.size)) if inline else b""
            client.send(m.Value(entry.id, entry.size, inline), payload)

    def _ids_in(self, header: shm.ObjectHeader) -> list[bytes]:
        try:
            return layout.ids_in(self.arena.view(header.offset + shm.HEADER_SIZE, header.size)) if header.size else []
        except ValueError as error:  # who reads it is told the same
            log.error("object %s: %s", header.id.hex(), error)
            return []

    def on_pending(self, client: Client, message: m.Pending) -> None:
        for id_ in message.ids:
            self.entry(id_)

    def on_subscribe(self, client: Client, message: m.Subscribe) -> None:
        ready: list[Entry] = []
        for id_ in message.ids:
            entry = self.entry(id_)
            if entry.offset >= 0 and not entry.moving:
                ready.append(entry)
                continue
            if entry.here:
                if message.pull:
                    entry.waiting = entry.waiting or set()
                    entry.waiting.add(client.prefix)
                    self.spilling.restore(entry)
                else:
                    client.send(m.Exists([(id_, entry.size, self.node)]))
                continue
            if id_.startswith(self._own):
                away = entry.away
                if away is not None and away.rebuilding and message.at and not self.elsewhere.is_dead(message.at):
                    away.lost, away.rebuilding = "", False  # it was made again, there
                if away is None or not (away.nodes or away.lost):
                    if message.at:
                        away = entry.away = away or Away()
                        self._doubt(entry, message)
                    elif not self._may_come(ids.prefix_of(id_)):
                        client.send(m.Lost(id_, "owner", "the process that was to make it has ended"))
                        continue
                elif away.final:
                    client.send(m.Lost(id_, "lost", away.lost))
                    continue
                elif away.lost:
                    self._wait_for(entry, client, message.pull)
                    self._rebuild(entry)
                    continue
                elif not message.pull:
                    client.send(m.Exists([(id_, away.size, next(iter(away.nodes)))]))
                    continue
            self._wait_for(entry, client, message.pull)
            if entry.away is not None and entry.away.lost:
                self._rebuild(entry)
        if ready:
            self._send_ready(client, ready)

    def _wait_for(self, entry: Entry, client: Client, pull: bool) -> None:
        away = entry.away
        foreign = not entry.id.startswith(self._own)
        if foreign and away is None:
            away = entry.away = Away()
        if pull:
            if entry.waiting is None:
                entry.waiting = set()
            entry.waiting.add(client.prefix)
        else:
            if away is None:
                away = entry.away = Away()
            if away.watching is None:
                away.watching = set()
            away.watching.add(client.prefix)
        if foreign:
            assert away is not None
            if not away.pulling:
                self.elsewhere.want(entry.id)
        elif pull and away is not None and away.nodes:
            self._pull(entry, list(away.nodes))

    def _doubt(self, entry: Entry, message: m.Subscribe) -> None:
        """By the word of its maker alone it lies on another node. That node may not have told yet; or it has lost it
        meanwhile, and will never tell.
        """
        assert entry.away is not None
        entry.away.seen_at = message.at
        if self.elsewhere.is_dead(message.at):
            entry.away.lost = "the node that had it is dead"
        elif message.maker and message.at != self.node:
            # When that node has read what the maker said of it, and its telling has come here, it is known.
            self._doubtful[message.maker].append((message.seq, entry.id))
            self.elsewhere.hurry(message.maker, message.seq)

    def _look_at_doubts(self, maker: bytes, seq: int) -> None:
        doubts = self._doubtful.pop(maker, [])
        rest = [doubt for doubt in doubts if doubt[0] > seq]
        if rest:
            self._doubtful[maker] = rest
        for at, id_ in doubts:
            entry = self.entries.get(id_)
            if at <= seq and entry is not None:
                self._look_whether_lost(entry, "the node that had it has started over, or given it up")

    def _may_come(self, maker: bytes) -> bool:
        return maker in self._clients or bool(self.recovering) or time.monotonic() < self._makers_until

    # ------------------------------------------------------------ objects of other homes, at this node

    def _hold_there(self, entry: Entry) -> None:
        """It is held here now: its home is to know."""
        if entry.away is None:
            entry.away = Away()
        if not entry.away.held_there:
            entry.away.held_there = True
            self.elsewhere.hold(entry.id, True)

    def _adopted_guest(self, entry: Entry, original: bool) -> None:
        """The value of an object whose home is elsewhere lies here now: made here, or a copy."""
        away = entry.away
        if away is None:
            away = entry.away = Away()
        if original:
            away.pinned = True
        else:
            away.cached = True
            if entry.id not in self._copies:
                self._copies[entry.id] = None
                self._copies_bytes += entry.size
            away.used = time.monotonic()
        self.elsewhere.copy(entry.id, entry.size)

    def drop_copy(self, entry: Entry) -> None:
        """It has left the arena; another node has it."""
        self._count_evicted(entry)
        self._keep(entry)
        if not entry.id.startswith(self._own):
            self.elsewhere.uncopy(entry.id)
        self._is_gone(entry)
        self._want_again(entry)

    def _keep(self, entry: Entry) -> None:
        """It is no copy that may go any more."""
        self._no_copy(entry)
        if entry.away is not None:
            entry.away.cached = False

    def _no_copy(self, entry: Entry) -> None:
        if self._copies.pop(entry.id, self) is None:
            self._copies_bytes -= entry.size

    def _count_evicted(self, entry: Entry) -> None:
        self._evicted["evicted_bytes"] += entry.size
        self._evicted["evicted_objects"] += 1

    def lost_here(self, entry: Entry, reason: str) -> None:
        """Its file cannot be read. Another node may have a copy; else it may be made again."""
        if entry.copies:
            entry.offset = entry.copies.pop()
            self.arrived(entry)
            return
        self._is_gone(entry)
        away = entry.away = entry.away or Away()
        if entry.id.startswith(self._own):
            if away.nodes and entry.waiting:
                self._pull(entry, list(away.nodes))
            self._look_whether_lost(entry, reason)
        else:
            away.pinned = False
            self.elsewhere.uncopy(entry.id)
            self._want_again(entry)
        self._maybe_free(entry)

    def _want_again(self, entry: Entry) -> None:
        if entry.waiting:
            self.elsewhere.want(entry.id)

    def guests(self, node: int) -> tuple[list[bytes], list[tuple[bytes, int]]]:
        """For the home with this number, all of its objects: those held here, and those that lie here."""
        home = ids.node_prefix(node)[: ids.NODE_SIZE]
        mine = [e for e in self.entries.values() if e.away is not None and e.id.startswith(home)]
        held = [e.id for e in mine if e.away is not None and e.away.held_there]
        return held, [(e.id, e.size) for e in mine if e.here]

    def wanted(self, node: int) -> list[bytes]:
        """Those that somebody waits for, of that home."""
        home = ids.node_prefix(node)[: ids.NODE_SIZE]
        return [
            e.id
            for e in self.entries.values()
            if e.away is not None
            and e.id.startswith(home)
            and not e.here
            and not e.away.pulling
            and (e.waiting or e.away.watching)
        ]

    def on_found(self, id_: bytes, size: int, nodes: list[int], value: bytes | memoryview) -> None:
        """Its home says where it is, or what."""
        entry = self.entries.get(id_)
        if entry is None or entry.away is None or entry.here:
            return
        away = entry.away
        if not nodes:
            if entry.waiting or away.watching:
                self._copy_in(entry, value)
            return
        watching, away.watching = away.watching, None
        for prefix in watching or ():
            if (watcher := self._clients.get(prefix)) is not None:
                watcher.send(m.Exists([(id_, size, nodes[0])]))
        if entry.waiting:
            away.size = size
            self._pull(entry, nodes)

    def on_not_found(self, id_: bytes, kind: str, reason: str) -> None:
        entry = self.entries.get(id_)
        if entry is not None and not entry.here:
            self._tell_lost(entry, kind, reason)

    def _tell_lost(self, entry: Entry, kind: str, reason: str) -> None:
        waiting, entry.waiting = set(entry.waiting or ()), None
        if entry.away is not None:
            waiting |= entry.away.watching or set()
            entry.away.watching = None
            for node in entry.away.asking:
                self.elsewhere.not_found(node, entry.id, kind, reason)
            entry.away.asking = set()
        for prefix in waiting:
            if (client := self._clients.get(prefix)) is not None:
                client.send(m.Lost(entry.id, kind, reason))

    def on_dropped(self, dropped: Iterable[bytes]) -> None:
        """Their home says that nobody needs these any more."""
        for id_ in dropped:
            entry = self.entries.get(id_)
            if entry is None:
                self.elsewhere.uncopy(id_)  # it may have forgotten that we have said so
            elif entry.away is not None:
                entry.away.pinned = False
                self._keep(entry)
                self._maybe_free(entry)

    # ------------------------------------------------------------ pulling

    def _pull(self, entry: Entry, nodes: list[int]) -> None:
        away = entry.away
        assert away is not None
        if not away.pulling:
            away.pulling = True
            self.elsewhere.pull(entry.id, away.size, nodes)

    def _copy_in(self, entry: Entry, value: bytes | memoryview) -> None:
        """A small value that came in a message."""

        assert entry.away is not None
        if not entry.away.pulling:
            entry.away.pulling = True
            self._write_small(entry.id, value, self.pulled, copy=True)

    def pulled(self, id_: bytes) -> None:
        """Its value is about to be adopted."""
        entry = self.entries.get(id_)
        if entry is not None and entry.away is not None:
            entry.away.pulling = False

    def pull_failed(self, id_: bytes, kind: str, reason: str) -> None:
        entry = self.entries.get(id_)
        if entry is not None and entry.away is not None:
            entry.away.pulling = False
            if kind == "lost" and id_.startswith(self._own) and not entry.away.nodes:
                self._look_whether_lost(entry, reason)
            else:
                self._tell_lost(entry, kind, reason)
            self._maybe_free(entry)

    def put_for(self, id_: bytes, value: bytes | memoryview) -> None:
        """A small object of a driver that cannot write here itself."""

        self._write_small(id_, value, lambda id_: None, copy=False)

    def _write_small(
        self, id_: bytes, value: bytes | memoryview, stored: Callable[[bytes], None], *, copy: bool
    ) -> None:
        """Into the arena, else to disk."""

        def on_space(offset: int) -> None:
            self.arena.copy_in(offset + shm.HEADER_SIZE, value)
            stored(id_)
            self.seal_own(offset, told=not copy)

        def on_file(file: SpillFile) -> None:
            stored(id_)
            if not self.spilling.write(file, value, copy=copy):
                self._tell_lost(self.entry(id_), "full", f"it cannot be written to {file.path}")

        def on_failure(reason: str) -> None:
            log.error("object %s cannot be stored: %s", id_.hex(), reason)
            stored(id_)
            self._tell_lost(self.entry(id_), "full", reason)

        self.space.allocate(
            id_, len(value), on_space, lambda reason: self.spilling.take_file(id_, len(value), on_file, on_failure)
        )

    def seal_own(self, offset: int, *, told: bool = False) -> None:
        """What was begun at ``offset`` is written."""
        self.arena.seal(offset)
        header = self.arena.header(offset)
        assert header is not None
        self._adopt(header, told=told)
        self.space.let_go(offset)

    def give_up_own(self, offset: int) -> None:
        self.space.give_up(offset)

    def _evict(self, size: int) -> bool:
        """Give up copies that nobody here uses, the longest unused first; True when any were."""
        now = time.monotonic()
        if now < self._evict_again:
            return False
        found = [self.entries[id_] for id_ in self._copies]
        unused = [
            e for e in found if e.offset >= 0 and not (e.holders or e.containers or e.moving or e.coming) and e.away
        ]
        unused.sort(key=lambda e: e.away.used if e.away is not None else 0.0)
        freed = 0
        for entry in unused:
            if freed >= size:
                break
            freed += shm.footprint(entry.size)
            self._count_evicted(entry)
            self._keep(entry)
            self._maybe_free(entry)
        if not freed:
            self._evict_again = now + _EVICT_SECONDS
        return freed > 0

    # ------------------------------------------------------------ objects of this home, at other nodes

    def on_copies(self, node: int, objects: Iterable[tuple[bytes, int]], gone: Iterable[bytes]) -> None:
        """Objects whose home is here lie there now, or not any more."""
        for id_, size in objects:
            if self.elsewhere.was_dropped(id_, node):
                continue  # it is told again
            entry = self.entry(id_)
            away = entry.away
            if away is None:
                away = entry.away = Away()
            known = bool(away.nodes) or entry.here
            away.nodes.setdefault(node, 0)
            away.size = size
            away.lost, away.rebuilding, away.final = "", False, False
            if not known:
                owner = self._clients.get(ids.prefix_of(id_))
                if owner is not None and owner.may_hold(id_):
                    owner.held.setdefault(id_, 0)
                    entry.holders.add(owner.prefix)
                self._tell_exists(entry)
            self._maybe_free(entry)
        for id_ in gone:
            found = self.entries.get(id_)
            if found is not None and found.away is not None:
                found.away.nodes.pop(node, None)
                self._look_whether_lost(found, "the last copy of it was given up")

    def copies_told(self, node: int, copies: set[bytes]) -> None:
        """These are all the objects of this home that lie there."""
        gone = [
            e.id
            for e in self.entries.values()
            if e.away is not None and node in e.away.nodes and e.id.startswith(self._own) and e.id not in copies
        ]
        self.on_copies(node, [], gone)

    def _tell_exists(self, entry: Entry) -> None:
        away = entry.away
        assert away is not None
        watching, away.watching = away.watching, None
        for prefix in watching or ():
            if (watcher := self._clients.get(prefix)) is not None:
                watcher.send(m.Exists([(entry.id, away.size, next(iter(away.nodes)))]))
        asking, away.asking = away.asking, set()
        for node in asking:
            self.elsewhere.found(node, entry)
        if entry.waiting:
            self._pull(entry, list(away.nodes))

    def on_want(self, node: int, wanted: Iterable[bytes]) -> None:
        """Another node asks for objects whose home is here."""
        for id_ in wanted:
            entry = self.entry(id_)
            away = entry.away
            if entry.here or (away is not None and away.nodes):
                self.elsewhere.found(node, entry)
            elif away is not None and away.final:
                self.elsewhere.not_found(node, id_, "lost", away.lost)
            elif away is not None and away.lost:
                away.asking.add(node)
                self._rebuild(entry)
            elif not self._may_come(ids.prefix_of(id_)):
                self.elsewhere.not_found(node, id_, "owner", "the process that was to make it has ended")
            else:
                if away is None:
                    away = entry.away = Away()
                away.asking.add(node)

    def _look_whether_lost(self, entry: Entry, reason: str) -> None:
        away = entry.away
        if away is None or away.nodes or entry.here or away.lost:
            return
        away.lost = reason
        if entry.waiting or away.watching or away.asking:  # else it is made again when somebody wants it
            self._rebuild(entry)

    def _rebuild(self, entry: Entry) -> None:
        """There is no copy of it any more, and it is wanted: have its maker make it again."""
        away = entry.away
        assert away is not None
        maker = self._clients.get(ids.prefix_of(entry.id))
        older = maker is not None and 0 < maker.version < m.REBUILD_SINCE
        if maker is None or maker.detached or older:
            why = f"{away.lost}; the process that could make it again {'has an older noded' if older else 'has ended'}"
            self._tell_lost(entry, "lost", why)
        elif away.final:
            self._tell_lost(entry, "lost", away.lost)
        elif not away.rebuilding:
            away.rebuilding = True
            log.info("object %s is lost, and is made again: %s", entry.id.hex(), away.lost)
            maker.send(m.Rebuild([entry.id], away.lost))

    def on_gone(self, client: Client, message: m.Gone) -> None:
        """Of an object's maker."""
        for id_ in message.ids:
            entry = self.entries.get(id_)
            if entry is None or entry.here or ids.prefix_of(id_) != client.prefix:
                continue
            away = entry.away = entry.away or Away()
            if away.nodes:
                continue  # a copy has turned up
            away.lost, away.final = message.reason, message.final
            if message.final or entry.waiting or away.watching or away.asking:
                self._rebuild(entry)

    def node_died(self, node: int, reason: str) -> None:
        """It will not come back as what it was: what it held is free, what it had is gone."""
        number = ids.node_prefix(node)
        for receiver in [r for r in self._after if r.startswith(number[: ids.NODE_SIZE])]:
            self.has_read(receiver, 1 << 62)
        home = number[: ids.NODE_SIZE]
        for id_ in list(self._copies):
            found = self.entries[id_]
            if found.holders or found.containers:
                self._keep(found)  # it may have been the dead node that had the other one
        for entry in list(self.entries.values()):
            away = entry.away
            if away is None:
                continue
            away.asking.discard(node)
            if entry.id.startswith(home):
                away.held_there = away.pinned = False
                if not entry.here and not away.pulling:
                    self._tell_lost(entry, "owner", f"the node where it was made is dead: {reason}")
                self._maybe_free(entry)
            elif away.nodes.pop(node, None) is not None:
                self._look_whether_lost(entry, f"the node that had it is dead: {reason}")
            elif away.seen_at == node:
                self._look_whether_lost(entry, f"the node that had it is dead, and had told nobody yet: {reason}")

    def expect_makers(self) -> None:
        """A client of an incarnation before this one is back: the makers of what it waits for may follow it."""
        self._makers_until = time.monotonic() + MAKERS_SECONDS
        asyncio.get_running_loop().call_later(MAKERS_SECONDS + 0.01, self.settle)

    def on_stream_over(self, client: Client, message: m.StreamOver) -> None:
        """Give up what its holder was never told of."""
        for id_ in [i for i, generation in client.held.items() if not generation and ids.prefix_of(i) == client.prefix]:
            if ids.seq_of(id_) == message.seq and message.count <= ids.index_of(id_) < ids.STREAM_END:
                self._release(client, id_, 0)

    # ------------------------------------------------------------ deaths

    def client_died(self, client: Client) -> None:
        """Adopt what it had sealed, free the rest, drop its holds, fail what only it could have made."""
        prefix = client.prefix
        for region in self.space.of(prefix):
            for header in self.arena.walk(region.offset, region.size):
                if header.state == shm.SEALED:
                    self._adopt(header)
            self.space.retire(region)
        self.spilling.client_gone(client)
        self.recovering.discard(prefix)
        self.drop_holder(prefix, client.held)
        client.held.clear()
        self._apply_after(self._after.pop(prefix, []))
        self.space.forget_wants(client)
        for entry in list(self.entries.values()):
            if (
                not entry.here
                and ids.prefix_of(entry.id) == prefix
                and not ids.is_actor_id(entry.id)
                and not (entry.away is not None and entry.away.nodes)
            ):
                self._tell_lost(entry, "owner", "the process that was to make it ended before it was there")
        self.settle()

    # ------------------------------------------------------------ daemon restart

    def restore(self, kept: dict[str, int]) -> None:
        """Read the regions and the files of the previous daemon; nothing is freed before every client has re-told its
        holds. ``kept``: the locks of the files' directories.
        """
        # Guests have leases here, and hold nothing: their nodes do.
        self.recovering = {c.prefix for c in self._clients.values() if not c.told and c.kind != "guest"}
        self.space.restore(self._clients)
        for region in self.space.all():
            for header in self.arena.walk(region.offset, region.size):
                if header.state == shm.SEALED:
                    self._adopt(header)
        self.spilling.adopt(kept)
        for client in self._clients.values():
            if client.detached:
                self._hold_all(client)
        for region in self.space.all():
            self.space.free_if_empty(region)
        self.settle()

    def _hold_all(self, client: Client) -> None:
        """A driver that has left will not tell what it still looks at, so until it ends it holds what there is."""
        for entry in self.entries.values():
            if entry.here:
                client.held.setdefault(entry.id, 0)
                entry.holders.add(client.prefix)
                if not entry.id.startswith(self._own):
                    self._hold_there(entry)

    def await_holders(self, id_: bytes) -> None:
        """An actor of before the restart: if nobody tells that it holds it, it has been dropped meanwhile."""
        self.entry(id_)
        self._deferred.add(id_)

    def client_told(self, client: Client, snapshot: set[bytes], message: m.Told) -> None:
        """Its holds are exactly ``snapshot``, and the results of tasks it still waits for."""
        pending, regions, arrived = set(message.pending), set(message.regions), dict(message.streams)
        own = client.prefix
        for region in self.space.of(own):
            for header in self.arena.walk(region.offset, region.size):
                if header.state == shm.SEALED:
                    self._adopt(header)
            if region.offset not in regions and not region.retired:
                self.space.retire(region)
        self.spilling.client_told(client, message.files)
        for id_ in [i for i in client.held if i not in snapshot]:
            seq = ids.seq_of(id_)
            if ids.prefix_of(id_) == own and seq in pending and not ids.is_actor_id(id_):
                if ids.index_of(id_) >= arrived.get(seq, 0):  # else it has arrived, and was dropped
                    continue
            generation = client.held[id_]
            self._release(client, id_, generation)
        self.recovering.discard(own)
        for entry in self.entries.values():
            if entry.away is not None and entry.away.rebuilding and ids.prefix_of(entry.id) == own:
                client.send(m.Rebuild([entry.id], entry.away.lost))  # it may not have heard of it
        self.settle()

    def recovering_own(self) -> bool:
        """A client of this node has not told yet what it holds."""
        return any(p.startswith(self._own) and not ids.is_node_prefix(p) for p in self.recovering)

    def peer_told(self, client: Client, snapshot: set[bytes]) -> None:
        """The holds of another node's clients are exactly ``snapshot``."""
        for id_ in [i for i in client.held if i not in snapshot]:
            self._release(client, id_, client.held[id_])
        self.recovering.discard(client.prefix)
        self.settle()

    def settle(self) -> None:
        """Decide what had to wait until every client has re-told its state."""
        if self.recovering:
            return
        deferred, self._deferred = self._deferred, set()
        for id_ in deferred:
            found = self.entries.get(id_)
            if found is not None:
                self._maybe_free(found)
        for entry in list(self.entries.values()):
            away = entry.away
            if entry.here or not entry.id.startswith(self._own) or (away is not None and away.nodes):
                continue
            if entry.waiting or (away is not None and (away.watching or away.asking)):
                if not self._may_come(ids.prefix_of(entry.id)):
                    self._tell_lost(entry, "owner", "the process that was to make it has ended")

    # ------------------------------------------------------------ figures

    def figures(self) -> dict[str, Any]:
        """For status: bytes unless said otherwise."""
        return {
            **self.space.figures(),
            **self.spilling.figures(),
            **self._evicted,
            "copies_bytes": self._copies_bytes,
            "objects": self.ready_count,
            "ids": len(self.entries),
            "recovering": len(self.recovering),
        }

    def _biggest(self, count: int = 5) -> str:
        top = sorted((e for e in self.entries.values() if e.offset >= 0), key=lambda e: -e.size)[:count]
        return ", ".join(f"{e.id.hex()} {e.size} bytes, {self._held_by(e)}" for e in top) or "none"

    def _held_by(self, entry: Entry) -> str:
        names = []
        for prefix in sorted(entry.holders)[:3]:
            client = self._clients.get(prefix)
            names.append(f"{client.kind} pid {client.pid}" if client is not None and client.pid else "a node")
        more = f" and {len(entry.holders) - 3} more" if len(entry.holders) > 3 else ""
        return (
            f"held by {', '.join(names)}{more}" if names else "held by what contains it" if entry.containers else "free"
        )
