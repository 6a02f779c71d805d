"""The node's objects: who holds which id, and the regions of the arena they lie in.

Values are never read here, only the ids of refs inside them. An entry is freed when nobody holds it and no
living object contains it, and no client is left that has not re-told its holds after a daemon restart. See
``docs/architecture.md`` section 6.
"""

from __future__ import annotations

import asyncio
import bisect
import logging
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from noded import ids
from noded.node.ledger import Ledger
from noded.node.session import Client
from noded.policy.regions import RegionAllocator
from noded.shm import arena as shm
from noded.wire import messages as m
from noded.wire import value as layout

log = logging.getLogger("noded.object_store")

_REGION = struct.Struct("<I7sB")
_RESERVE_STEP = 64 << 20
_IDLE_SECONDS = 10.0
_Receivers = list[tuple[bytes, int]]
MAKERS_SECONDS = 10.0
"""After the node started over: how long a maker that is not there yet may take to come back."""
FULL_SECONDS = 10.0
"""A put that finds no room waits this long for some."""


class Entry:
    """What is known of an id: a place when sealed, else who waits for it."""

    __slots__ = ("containers", "copies", "holders", "id", "nested", "offset", "size", "waiting")

    def __init__(self, id_: bytes):
        self.id = id_
        self.offset = -1
        """Of the header; -1 while there is no value."""
        self.size = 0
        self.copies: list[int] = []
        """Offsets of the same result written again by a retried task: some may look at one, some at the other."""
        self.holders: set[bytes] = set()
        self.containers = 0
        self.nested: list[bytes] = []
        self.waiting: set[bytes] | None = None


@dataclass(eq=False)
class Region:
    start: int
    blocks: int
    prefix: bytes
    single: bool
    fresh: bool = True
    """Granted by this daemon: who has not told yet cannot know of what is in it."""
    retired: bool = False
    live: int = 0

    @property
    def offset(self) -> int:
        return self.start * shm.BLOCK

    @property
    def size(self) -> int:
        return self.blocks * shm.BLOCK


@dataclass
class _Want:
    client: Client
    message: m.RegionWant
    since: float
    start: int = -1


@dataclass
class _Cold:
    """Byte ranges of the arena without pages, as (start, end), sorted and disjoint."""

    ranges: list[tuple[int, int]] = field(default_factory=list)

    def overlaps(self, start: int, end: int) -> list[tuple[int, int]]:
        return [(max(a, start), min(b, end)) for a, b in self.ranges if a < end and b > start]

    def remove(self, start: int, end: int) -> None:
        kept: list[tuple[int, int]] = []
        for a, b in self.ranges:
            if a < start:
                kept.append((a, min(b, start)))
            if b > end:
                kept.append((max(a, end), b))
        self.ranges = [r for r in kept if r[0] < r[1]]

    def add(self, start: int, end: int) -> None:
        self.remove(start, end)
        bisect.insort(self.ranges, (start, end))


class ObjectStore:
    """``on_actor_free(id)`` is told when nobody holds an actor any more."""

    def __init__(
        self, arena: shm.Arena, ledger: Ledger, clients: dict[bytes, Client], on_actor_free: Callable[[bytes], None]
    ):
        self.arena = arena
        self.entries: dict[bytes, Entry] = {}
        self.recovering: set[bytes] = set()
        """Clients that have not re-told their state yet."""
        self.ready_count = 0
        self._makers_until = 0.0
        self._ledger = ledger
        self._clients = clients
        self._on_actor_free = on_actor_free
        self._allocator = RegionAllocator(arena.size // shm.BLOCK)
        self._regions: dict[int, Region] = {}
        self._starts: list[int] = []
        self._wants: list[_Want] = []
        self._after: defaultdict[bytes, list[tuple[int, bytes, bytes, int, _Receivers]]] = defaultdict(list)
        """Releases that wait until their receiver was read up to a seq: (seq, releaser, id, generation, receivers that
        are to be looked at then).
        """
        self._deferred: set[bytes] = set()
        self._unfreed: list[bytes] = []
        self._freeing = False
        self._cold = _Cold([(0, arena.size)])
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_change = time.monotonic()

    # ------------------------------------------------------------ holds

    def entry(self, id_: bytes) -> Entry:
        found = self.entries.get(id_)
        if found is None:
            found = self.entries[id_] = Entry(id_)
        return found

    def on_refs(self, client: Client, message: m.Refs) -> None:
        held, prefix = client.held, client.prefix
        for id_, generation in message.holds:
            held[id_] = generation
            self.entry(id_).holders.add(prefix)
        for id_, generation in message.releases:
            self._release(client, id_, generation)
        for id_, generation, receiver, seq in message.after:
            self._release_after(client, id_, generation, [(receiver, seq)])
        for id_, generation, receivers in message.after_all:
            self._release_after(client, id_, generation, receivers)

    def _release_after(self, client: Client, id_: bytes, generation: int, receivers: _Receivers) -> None:
        """Release when all of them have been read so far; of one that has not re-told, that is at its Told."""
        for at, (receiver, seq) in enumerate(receivers):
            other = self._clients.get(receiver)
            if other is not None and (not other.told or other.seq < seq):
                due = seq if other.told else 0
                self._after[receiver].append((due, client.prefix, id_, generation, receivers[at + 1 :]))
                return
        self._release(client, id_, generation)

    def _release(self, client: Client, id_: bytes, generation: int) -> None:
        if client.held.get(id_) == generation:
            del client.held[id_]
            found = self.entries.get(id_)
            if found is not None:
                found.holders.discard(client.prefix)
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

    def _apply_after(self, due: Iterable[tuple[int, bytes, bytes, int, _Receivers]]) -> None:
        for _, releaser, id_, generation, others in due:
            client = self._clients.get(releaser)
            if client is not None:
                self._release_after(client, id_, generation, others)

    def hold_for_fork(self, token: bytes, held: list[bytes]) -> None:
        """A pseudo-client that stands for the forked children of one."""
        for id_ in held:
            self.entry(id_).holders.add(token)

    def drop_holder(self, token: bytes, held: Iterable[bytes]) -> None:
        for id_ in list(held):
            found = self.entries.get(id_)
            if found is not None:
                found.holders.discard(token)
                self._maybe_free(found)

    def _maybe_free(self, entry: Entry) -> None:
        if entry.holders or entry.containers:
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
                if found is not None and not found.holders and not found.containers:
                    self._free(found)
        finally:
            self._freeing = False

    def _free(self, entry: Entry) -> None:
        del self.entries[entry.id]
        if ids.is_actor_id(entry.id):
            self._on_actor_free(entry.id)
            return
        if entry.offset < 0:
            return
        self.ready_count -= 1
        for offset in (entry.offset, *entry.copies):
            self.arena.mark_freed(offset)
            region = self._region_at(offset)
            if region is not None:
                region.live -= 1
                self._maybe_free_region(region)
        for id_ in entry.nested:
            inner = self.entries.get(id_)
            if inner is not None:
                inner.containers -= 1
                self._maybe_free(inner)

    def _is_fresh(self, entry: Entry) -> bool:
        if entry.offset < 0:
            return False
        regions = [self._region_at(offset) for offset in (entry.offset, *entry.copies)]
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

    def _adopt(self, header: shm.ObjectHeader) -> None:
        """A sealed object: known from now on, held by its owner if that lives."""
        entry = self.entry(header.id)
        if entry.offset == header.offset or header.offset in entry.copies:
            return
        region = self._region_at(header.offset)
        if region is not None:
            region.live += 1
        nested = self._ids_in(header)
        for id_ in nested:
            self.entry(id_).containers += 1
        if entry.offset >= 0:
            entry.copies.append(header.offset)
            entry.nested = entry.nested + nested
            return
        entry.offset, entry.size, entry.nested = header.offset, header.size, nested
        self.ready_count += 1
        owner = self._clients.get(ids.prefix_of(header.id))
        if owner is not None:
            owner.held.setdefault(header.id, 0)
            entry.holders.add(owner.prefix)
        waiting, entry.waiting = entry.waiting, None
        for prefix in waiting or ():
            if (waiter := self._clients.get(prefix)) is not None:
                waiter.send(m.Ready([(header.id, header.offset + shm.HEADER_SIZE, header.size)]))
        self._maybe_free(entry)

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
        ready: list[tuple[bytes, int, int]] = []
        for id_ in message.ids:
            entry = self.entry(id_)
            if entry.offset >= 0:
                ready.append((id_, entry.offset + shm.HEADER_SIZE, entry.size))
                continue
            if not self._may_come(ids.prefix_of(id_)):
                client.send(m.Lost(id_, "owner", "the process that was to make it has ended"))
                continue
            if entry.waiting is None:
                entry.waiting = set()
            entry.waiting.add(client.prefix)
        if ready:
            client.send(m.Ready(ready))

    def _may_come(self, maker: bytes) -> bool:
        return maker in self._clients or bool(self.recovering) or time.monotonic() < self._makers_until

    def expect_makers(self) -> None:
        """A client of an incarnation before this one is back: the makers of what it waits for may follow it."""
        self._makers_until = time.monotonic() + MAKERS_SECONDS
        asyncio.get_running_loop().call_later(MAKERS_SECONDS + 0.01, self.settle)

    def on_stream_over(self, client: Client, message: m.StreamOver) -> None:
        """Give up what its holder was never told of."""
        for id_ in [i for i, generation in client.held.items() if not generation and ids.prefix_of(i) == client.prefix]:
            if ids.seq_of(id_) == message.seq and message.count <= ids.index_of(id_) < ids.STREAM_END:
                self._release(client, id_, 0)

    # ------------------------------------------------------------ regions

    def _region_at(self, offset: int) -> Region | None:
        at = bisect.bisect_right(self._starts, offset // shm.BLOCK) - 1
        if at < 0:
            return None
        region = self._regions[self._starts[at]]
        return region if offset < region.offset + region.size else None

    def on_region_want(self, client: Client, message: m.RegionWant) -> None:
        if message.size > self.arena.size:
            client.send(
                m.RegionFailed(
                    message.request,
                    f"an object of {message.size} bytes cannot fit into the object store of {self.arena.size} bytes: "
                    "start the node with a larger --object-store-memory, or store the value in parts",
                )
            )
            return
        self._wants.append(_Want(client, message, time.monotonic()))
        self._serve_wants()

    def _serve_wants(self) -> None:
        """In order of arrival, so that a large request is not starved by small ones."""
        while self._wants:
            want = self._wants[0]
            if want.client.session is None or want.client.detached:
                self._wants.pop(0)  # it asks again when it re-attaches
                continue
            blocks = -(-want.message.size // shm.BLOCK)
            start = self._allocator.alloc(blocks, want.client.prefix)
            if start is None:
                asyncio.get_running_loop().call_later(FULL_SECONDS + 0.01, self._expire_wants)
                return
            self._wants.pop(0)
            self._grant(want, start, blocks)

    def _expire_wants(self) -> None:
        now = time.monotonic()
        kept: list[_Want] = []
        for want in self._wants:
            if now - want.since < FULL_SECONDS:
                kept.append(want)
            else:
                used = (self._allocator.blocks - self._allocator.free_blocks) * shm.BLOCK
                want.client.send(
                    m.RegionFailed(
                        want.message.request,
                        f"the object store is full: {used} of {self.arena.size} bytes are in use by "
                        "objects that are still referenced, and "
                        f"{want.message.size} more did not become free within {FULL_SECONDS:g} s; "
                        "drop refs, or start the node with a larger "
                        f"--object-store-memory. Biggest: {self.biggest()}",
                    )
                )
        self._wants = kept
        self._serve_wants()

    def biggest(self, count: int = 5) -> str:
        top = sorted((e for e in self.entries.values() if e.offset >= 0), key=lambda e: -e.size)[:count]
        return ", ".join(f"{e.id.hex()} {e.size} bytes" for e in top) or "none"

    def _grant(self, want: _Want, start: int, blocks: int) -> None:
        region = Region(start, blocks, want.client.prefix, want.message.single)
        self._last_change = time.monotonic()
        self._ledger.regions.put(start, _REGION.pack(blocks, region.prefix, region.single))
        self._add_region(region)
        if self._cold.overlaps(region.offset, region.offset + region.size):
            self._reserve(want, region)
        else:
            self._tell_region(want, region)

    def _add_region(self, region: Region) -> None:
        self._regions[region.start] = region
        bisect.insort(self._starts, region.start)

    def _tell_region(self, want: _Want, region: Region) -> None:
        if want.client.detached:  # it will not write any more, nor give it back
            region.retired = True
            self._maybe_free_region(region)
            return
        self.arena.clear(region.offset)
        want.client.send(m.Region(want.message.request, region.offset, region.size))

    def _reserve(self, want: _Want, region: Region) -> None:
        """Take the pages before the grant: off the loop, because the kernel clears them."""
        # The pages behind a small region are taken along in growing steps, so that a busy client finds them
        # there.
        ahead = min(_RESERVE_STEP, max(region.size, self.warm_bytes()))
        end = min(self.arena.size, max(region.offset + region.size, region.offset + ahead))
        ranges = self._cold.overlaps(region.offset, end)
        self._cold.remove(region.offset, end)

        async def reserve() -> None:
            try:
                for a, b in ranges:
                    await asyncio.to_thread(shm.reserve, self.arena.fd, a, b - a)
            except OSError as error:
                for a, b in ranges:
                    self._cold.add(a, b)
                want.client.send(
                    m.RegionFailed(
                        want.message.request, f"no memory for {region.size} bytes of the object store: {error}"
                    )
                )
                region.retired = True
                self._maybe_free_region(region)
                return
            self._tell_region(want, region)

        task = asyncio.get_running_loop().create_task(reserve(), name="reserve")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def on_region_done(self, client: Client, message: m.RegionDone) -> None:
        region = self._regions.get(message.offset // shm.BLOCK)
        if region is not None and region.prefix == client.prefix:
            region.retired = True
            self._maybe_free_region(region)

    def _maybe_free_region(self, region: Region) -> None:
        if region.live or not region.retired or self._regions.get(region.start) is not region:
            return
        del self._regions[region.start]
        self._starts.remove(region.start)
        self._ledger.regions.delete(region.start)
        self._allocator.free(region.start, region.blocks, region.prefix)
        self._last_change = time.monotonic()
        if self._wants:
            self._serve_wants()

    async def trim(self) -> None:
        """Give free pages back to the kernel once nothing has moved for a while."""
        if time.monotonic() - self._last_change < _IDLE_SECONDS:
            return
        for start, blocks in list(self._allocator.free_extents()):
            a, b = start * shm.BLOCK, (start + blocks) * shm.BLOCK
            if self._cold.ranges and self._cold.overlaps(a, b) == [(a, b)]:
                continue
            # Nobody is given these blocks while the thread works on them.
            self._allocator.reserve(start, blocks)
            try:
                await asyncio.to_thread(shm.punch, self.arena.fd, a, b - a)
                self._cold.add(a, b)
            except OSError as error:
                log.warning("cannot give back %s bytes of the arena: %s", b - a, error)
            finally:
                self._allocator.free(start, blocks)
                if self._wants:
                    self._serve_wants()

    # ------------------------------------------------------------ deaths

    def client_died(self, client: Client) -> None:
        """Adopt what it had sealed, free the rest, drop its holds, fail what only it could have made."""
        prefix = client.prefix
        for region in [r for r in self._regions.values() if r.prefix == prefix]:
            for header in self.arena.walk(region.offset, region.size):
                if header.state == shm.SEALED:
                    self._adopt(header)
            region.retired = True
            self._maybe_free_region(region)
        self.recovering.discard(prefix)
        self.drop_holder(prefix, client.held)
        client.held.clear()
        self._apply_after(self._after.pop(prefix, []))
        self._wants = [w for w in self._wants if w.client is not client]
        for entry in list(self.entries.values()):
            if (
                entry.offset < 0
                and entry.waiting
                and ids.prefix_of(entry.id) == prefix
                and not ids.is_actor_id(entry.id)
            ):
                waiting, entry.waiting = entry.waiting, None
                for waiter in waiting:
                    if (found := self._clients.get(waiter)) is not None:
                        found.send(
                            m.Lost(entry.id, "owner", "the process that was to make it ended before it was there")
                        )
        self.settle()

    # ------------------------------------------------------------ daemon restart

    def restore(self) -> None:
        """Read the regions of the previous daemon; nothing is freed before every client has re-told its
        holds.
        """
        self.recovering = {c.prefix for c in self._clients.values() if not c.told}
        for start, payload in self._ledger.regions.items():
            assert isinstance(start, int)
            blocks, prefix, single = _REGION.unpack(payload)
            self._allocator.reserve(start, blocks)
            retired = prefix not in self._clients
            self._add_region(Region(start, blocks, prefix, bool(single), fresh=False, retired=retired))
            self._cold.remove(start * shm.BLOCK, (start + blocks) * shm.BLOCK)
        for region in list(self._regions.values()):
            for header in self.arena.walk(region.offset, region.size):
                if header.state == shm.SEALED:
                    self._adopt(header)
        for client in self._clients.values():
            if client.detached:
                self._hold_all(client)
        for region in list(self._regions.values()):
            self._maybe_free_region(region)
        self.settle()

    def _hold_all(self, client: Client) -> None:
        """A driver that has left will not tell what it still looks at, so until it ends it holds what there is."""
        for entry in self.entries.values():
            if entry.offset >= 0:
                client.held.setdefault(entry.id, 0)
                entry.holders.add(client.prefix)

    def await_holders(self, id_: bytes) -> None:
        """An actor of before the restart: if nobody tells that it holds it, it has been dropped meanwhile."""
        self.entry(id_)
        self._deferred.add(id_)

    def client_told(self, client: Client, snapshot: set[bytes], message: m.Told) -> None:
        """Its holds are exactly ``snapshot``, and the results of tasks it still waits for."""
        pending, regions, arrived = set(message.pending), set(message.regions), dict(message.streams)
        own = client.prefix
        for region in [r for r in self._regions.values() if r.prefix == own]:
            for header in self.arena.walk(region.offset, region.size):
                if header.state == shm.SEALED:
                    self._adopt(header)
            if region.offset not in regions and not region.retired:
                region.retired = True
                self._maybe_free_region(region)
        for id_ in [i for i in client.held if i not in snapshot]:
            seq = ids.seq_of(id_)
            if ids.prefix_of(id_) == own and seq in pending and not ids.is_actor_id(id_):
                if ids.index_of(id_) >= arrived.get(seq, 0):  # else it has arrived, and was dropped
                    continue
            generation = client.held[id_]
            self._release(client, id_, generation)
        self.recovering.discard(own)
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
            if entry.offset < 0 and entry.waiting and not self._may_come(ids.prefix_of(entry.id)):
                waiting, entry.waiting = entry.waiting, None
                for waiter in waiting:
                    if (client := self._clients.get(waiter)) is not None:
                        client.send(m.Lost(entry.id, "owner", "the process that was to make it has ended"))

    # ------------------------------------------------------------ figures

    def used_bytes(self) -> int:
        return (self._allocator.blocks - self._allocator.free_blocks) * shm.BLOCK

    def warm_bytes(self) -> int:
        return self.arena.size - sum(b - a for a, b in self._cold.ranges)

    def figures(self) -> dict[str, int]:
        """For status: bytes unless said otherwise."""
        return {
            "size": self.arena.size,
            "used": self.used_bytes(),
            "resident": self.warm_bytes(),
            "objects": self.ready_count,
            "ids": len(self.entries),
            "regions": len(self._regions),
            "waiting": len(self._wants),
            "recovering": len(self.recovering),
        }
