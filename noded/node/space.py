"""The space of the arena: regions, which are granted to who writes objects, and freed when nothing lives in them.

A client asks for a region and writes objects into it; this daemon takes regions of its own for copies of what other
nodes have. What is granted is in the ledger, so that it survives the daemon. Whose objects lie in a region is the
object store's business: it counts them (``take`` and ``let_go``).
"""

from __future__ import annotations

import asyncio
import bisect
import logging
import struct
import time
from collections.abc import Callable, Collection
from typing import Protocol

import msgspec

from noded import ids
from noded.node.ledger import Ledger
from noded.node.session import Client
from noded.policy.regions import RegionAllocator
from noded.shm import arena as shm
from noded.wire import messages as m

log = logging.getLogger("noded.space")

_REGION = struct.Struct("<I7sB")
_RESERVE_STEP = 64 << 20
_IDLE_SECONDS = 10.0
DISK_SECONDS = 1.0
"""Who finds no room, and none is being made, waits so long before the disk is taken instead."""
FULL_SECONDS = 3.0
"""And so long before that is an error."""
_LOOK_SECONDS = 0.25
_SAY_AGAIN = 600.0
_LEAST = 16 << 20
"""So much the store keeps when memory is short."""
_OWN_SLAB = 4 << 20


class Region(msgspec.Struct, eq=False):
    start: int
    blocks: int
    prefix: bytes
    single: bool
    fresh: bool = True
    """Granted by this daemon: who has not told yet cannot know of what is in it."""
    retired: bool = False
    live: int = 0
    used: float = 0.0
    """When something in it was last of use."""
    moving: bool = False
    """What is in it is to leave."""
    busy_until: float = 0.0
    """It cannot leave before: somebody looks at it."""

    @property
    def offset(self) -> int:
        return self.start * shm.BLOCK

    @property
    def size(self) -> int:
        return self.blocks * shm.BLOCK


class _Want(msgspec.Struct):
    client: Client
    message: m.RegionWant
    since: float
    own: Callable[[Region], None] | None = None
    """The daemon itself wants it."""
    failed: Callable[[str], None] | None = None
    patience: float = DISK_SECONDS
    """Without room being made it waits so long before something else is done."""

    @property
    def waits(self) -> bool:
        return self.own is not None or (self.client.session is not None and not self.client.detached)

    def fail(self, reason: str, kind: str = "") -> None:
        if self.failed is not None:
            self.failed(reason)
        else:
            self.client.send(m.RegionFailed(self.message.request, reason, kind))


class Relief(Protocol):
    """Who makes room by writing objects to disk (``spilling.py``)."""

    @property
    def active(self) -> bool:
        """Room is being made."""

    @property
    def writing(self) -> bool:
        """That far, that something leaves."""

    @property
    def spills(self) -> bool:
        """There is a disk for it at all."""

    def relieve(self, blocks: int) -> None:
        """A region of so many blocks is wanted; ``Space.serve`` is called as regions become free."""

    def shed(self, size: int) -> None:
        """So many bytes are to become free, wherever."""

    def trouble(self, size: int) -> str:
        """Why the disk does not take so many bytes now; "" when it does."""

    def give_file(self, client: Client, message: m.RegionWant) -> None:
        """In place of a region for one object."""


class _Cold(msgspec.Struct):
    """Byte ranges of the arena without pages, as (start, end), sorted and disjoint."""

    ranges: list[tuple[int, int]] = []

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


class Space:
    """``evict(bytes)`` gives up what nobody needs here, True when there was any; ``biggest()`` names in words what
    takes most. ``node``: this node's number.
    """

    def __init__(
        self, arena: shm.Arena, ledger: Ledger, node: int, evict: Callable[[int], bool], biggest: Callable[[], str]
    ):
        self.arena = arena
        self._ledger = ledger
        self._evict = evict
        self._biggest = biggest
        self._allocator = RegionAllocator(arena.size // shm.BLOCK)
        self._regions: dict[int, Region] = {}
        self._starts: list[int] = []
        self._wants: list[_Want] = []
        self._cold = _Cold([(0, arena.size)])
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_change = time.monotonic()
        self._serving = False
        self._slab: tuple[Region, int] | None = None
        """Where this daemon puts small copies, and how far it is used."""
        self.relief: Relief
        self.room: Callable[[], int] = lambda: arena.size
        """Bytes of memory that may still be taken: there may be less than the arena has."""
        self._short_told = -_SAY_AGAIN
        self._giving = False
        self._reserving = 0
        """Bytes whose pages are being taken."""
        self._withheld: list[tuple[int, int]] = []
        """Free extents that have no pages and get none now, as (first block, blocks)."""
        self._freed_at = 0.0
        self._look: asyncio.TimerHandle | None = None
        self._daemon = Client(ids.node_prefix(node), "daemon", 0, 0)
        """The writer of copies; no client of ours, so that after a restart its regions are closed ones."""

    def restore(self, clients: Collection[bytes]) -> None:
        """The regions of the previous daemon; those of others than ``clients`` are closed."""
        for start, payload in self._ledger.regions.items():
            assert isinstance(start, int)
            blocks, prefix, single = _REGION.unpack(payload)
            self._allocator.reserve(start, blocks)
            self._add(Region(start, blocks, prefix, bool(single), fresh=False, retired=prefix not in clients))
            self._cold.remove(start * shm.BLOCK, (start + blocks) * shm.BLOCK)

    # ------------------------------------------------------------ regions

    def all(self) -> list[Region]:
        return list(self._regions.values())

    def of(self, prefix: bytes) -> list[Region]:
        """What this writer was granted."""
        return [region for region in self._regions.values() if region.prefix == prefix]

    def waits_of(self, prefix: bytes) -> list[tuple[int, float]]:
        """What this writer waits for: (bytes, since when on the monotonic clock)."""
        return [(want.message.size, want.since) for want in self._wants if want.client.prefix == prefix]

    def at(self, offset: int) -> Region | None:
        found = bisect.bisect_right(self._starts, offset // shm.BLOCK) - 1
        if found < 0:
            return None
        region = self._regions[self._starts[found]]
        return region if offset < region.offset + region.size else None

    def take(self, offset: int) -> Region | None:
        """One more object lies at ``offset``, or is about to."""
        region = self.at(offset)
        if region is not None:
            region.live += 1
        return region

    def let_go(self, offset: int) -> None:
        """One less."""
        region = self.at(offset)
        if region is not None:
            region.live -= 1
            if not region.live and self._slab is not None and self._slab[0] is region:
                self.leave_slab()
            self.free_if_empty(region)

    def retire(self, region: Region) -> None:
        """Nothing more is written into it."""
        region.retired = True
        self.free_if_empty(region)

    def free_if_empty(self, region: Region) -> None:
        if region.live or not region.retired or self._regions.get(region.start) is not region:
            return
        del self._regions[region.start]
        self._starts.remove(region.start)
        self._ledger.regions.delete(region.start)
        self._allocator.free(region.start, region.blocks, region.prefix)
        self._last_change = self._freed_at = time.monotonic()
        self.serve()

    def free_extents(self) -> list[tuple[int, int]]:
        """(first block, blocks)."""
        return list(self._allocator.free_extents())

    def touch(self, offset: int) -> None:
        """What lies there is of use now."""
        region = self.at(offset)
        if region is not None:
            region.used = time.monotonic()

    def _add(self, region: Region) -> None:
        self._regions[region.start] = region
        bisect.insort(self._starts, region.start)

    # ------------------------------------------------------------ grants

    def on_want(self, client: Client, message: m.RegionWant) -> None:
        want = _Want(client, message, time.monotonic())
        if message.size > self.arena.size:
            if not self._give_file(want):
                want.fail(self._too_large(message.size), self._lacks)
            return
        self._wants.append(want)
        self.serve()

    def _too_large(self, size: int) -> str:
        return (
            f"an object of {size} bytes fits neither into the object store of {self.arena.size} bytes nor on disk: "
            f"{self.relief.trouble(size)}. Free some there, name other directories with --object-spilling-directory, "
            f"or store the value in parts. Biggest here: {self._biggest()}"
        )

    def _give_file(self, want: _Want) -> bool:
        """In place of a region; False when there can be none."""
        if want.own is not None or not want.message.single or want.client.version < m.SPILL_SINCE:
            return False
        if self.relief.trouble(want.message.size):
            return False
        self.relief.give_file(want.client, want.message)
        return True

    def on_done(self, client: Client, message: m.RegionDone) -> None:
        region = self._regions.get(message.offset // shm.BLOCK)
        if region is not None and region.prefix == client.prefix:
            self.retire(region)

    def forget_wants(self, client: Client) -> None:
        self._wants = [want for want in self._wants if want.client is not client]

    def serve(self) -> None:
        """Those of this daemon first, for whom readers wait; else in order of arrival, so that a large request is not
        starved by small ones.
        """
        if self._serving:
            return  # what is freed for the first in the queue is that one's
        self._serving = True
        try:
            while self._wants and self._serve_first():
                pass
        finally:
            self._serving = False
        self._look_later()

    def _serve_first(self) -> bool:
        want = self._wants[0]
        if want.waits:  # else it asks again when it re-attaches
            blocks = -(-want.message.size // shm.BLOCK)
            start = self._alloc(blocks, want.client.prefix)
            if start is None and self._evict(blocks * shm.BLOCK):
                start = self._alloc(blocks, want.client.prefix)
            if start is None:
                self.relief.relieve(blocks)
                if self.relief.active or want.patience >= DISK_SECONDS:
                    return False
                self._wants.pop(0)
                want.fail("there is no room in the object store")
                return True
            self._wants.pop(0)
            self._grant(want, start, blocks)
        else:
            self._wants.pop(0)
        return True

    def _alloc(self, blocks: int, owner: bytes) -> int | None:
        """A run of free blocks, for which there is memory."""
        start = self._allocator.alloc(blocks, owner)
        while start is not None:
            cold = sum(b - a for a, b in self._cold.overlaps(start * shm.BLOCK, (start + blocks) * shm.BLOCK))
            if not cold or cold <= self.room() - self._reserving:
                return start
            self._allocator.free(start, blocks)
            if not self._withhold():
                return None
            start = self._allocator.alloc(blocks, owner)
        return None

    def _withhold(self) -> bool:
        """Memory is short: what has no pages is not used; True when that was any. What lies in the rest makes way."""
        now = time.monotonic()
        if now - self._short_told > _SAY_AGAIN:
            self._short_told = now
            log.warning(
                "the object store stays at %s of its %s bytes: the machine, or the container, has no more memory for "
                "it. Give it more, or start the node with a smaller --object-store-memory",
                self.warm_bytes(),
                self.arena.size,
            )
        found = []
        for start, blocks in self.free_extents():
            for a, b in self._cold.overlaps(start * shm.BLOCK, (start + blocks) * shm.BLOCK):
                first, last = -(-a // shm.BLOCK), b // shm.BLOCK
                if last > first:
                    found.append((first, last - first))
        for start, blocks in found:
            self._allocator.reserve(start, blocks)
        self._withheld += found
        return bool(found)

    def release_withheld(self) -> None:
        """There may be memory again."""
        if self._withheld and not self._giving and self.room() > _LEAST:
            withheld, self._withheld = self._withheld, []
            for start, blocks in withheld:
                self._allocator.free(start, blocks)
            self.serve()

    def _look_later(self) -> None:
        if self._look is None and self._wants:
            self._look = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look_at_wants)

    def _look_at_wants(self) -> None:
        """Nothing may have become free: who has waited long enough is given a file instead, or told so."""
        self._look = None
        now = time.monotonic()
        if self.relief.writing:
            self._freed_at = now
        for want in list(self._wants):
            waited = now - max(want.since, self._freed_at)
            if want.waits and waited >= want.patience and self._instead(want, waited >= FULL_SECONDS):
                self._wants.remove(want)
        self.serve()
        self._look_later()

    @property
    def _lacks(self) -> str:
        """What there is too little of, for RegionFailed."""
        return "disk" if self.relief.spills else ""

    def _instead(self, want: _Want, give_up: bool) -> bool:
        """What is had without room in the arena; False: it waits on."""
        size = want.message.size
        if self._give_file(want):
            return True
        trouble = self.relief.trouble(size)
        if not trouble:
            if want.own is not None:
                want.fail("there is no room in the object store")
                return True
            if not want.message.single and want.client.version >= m.SPILL_SINCE:
                want.fail("", "slab")
                return True
        if give_up:
            want.fail(self._full(size, trouble), self._lacks)
        return give_up

    def _full(self, size: int, trouble: str) -> str:
        disk = f", and the disk takes none of it: {trouble}" if trouble else ""
        return (
            f"the object store is full: {self.used_bytes()} of {self.arena.size} bytes are in use by objects that are "
            f"still referenced{disk}; {size} more did not become free within {FULL_SECONDS:g} s. Drop refs, start the "
            f"node with a larger --object-store-memory, or give it more disk with --object-spilling-directory. "
            f"Biggest: {self._biggest()}"
        )

    def _grant(self, want: _Want, start: int, blocks: int) -> None:
        region = Region(start, blocks, want.client.prefix, want.message.single)
        self._last_change = self._freed_at = region.used = time.monotonic()
        self._ledger.regions.put(start, _REGION.pack(blocks, region.prefix, region.single))
        self._add(region)
        if self._cold.overlaps(region.offset, region.offset + region.size):
            self._reserve(want, region)
        else:
            self._tell(want, region)

    def _tell(self, want: _Want, region: Region) -> None:
        if self._regions.get(region.start) is not region:
            return  # given up while its pages were taken: its client has died, or has asked anew
        if want.own is not None:
            self.arena.clear(region.offset)
            want.own(region)
            return
        if want.client.detached:  # it will not write any more, nor give it back
            self.retire(region)
            return
        self.arena.clear(region.offset)
        want.client.send(m.Region(want.message.request, region.offset, region.size))

    def _reserve(self, want: _Want, region: Region) -> None:
        """Take the pages before the grant: off the loop, because the kernel clears them."""
        # The pages behind a small region are taken along in growing steps, so that a busy client finds them
        # there.
        ahead = min(
            _RESERVE_STEP, max(region.size, self.warm_bytes()), (self.room() - self._reserving) // 2 & -shm.BLOCK
        )
        end = min(self.arena.size, max(region.offset + region.size, region.offset + ahead))
        ranges = self._cold.overlaps(region.offset, end)
        self._cold.remove(region.offset, end)
        size = sum(b - a for a, b in ranges)
        self._reserving += size

        async def reserve() -> None:
            try:
                for a, b in ranges:
                    await asyncio.to_thread(shm.reserve, self.arena.fd, a, b - a)
            except OSError as error:
                for a, b in ranges:
                    self._cold.add(a, b)
                want.fail(f"no memory for {region.size} bytes of the object store: {error}")
                self.retire(region)
                return
            finally:
                self._reserving -= size
            self._tell(want, region)

        task = asyncio.get_running_loop().create_task(reserve(), name="reserve")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------ what this daemon writes

    def allocate(
        self,
        id_: bytes,
        size: int,
        on_space: Callable[[int], None],
        on_failure: Callable[[str], None],
        patience: float = DISK_SECONDS,
    ) -> None:
        """Room for an object that this daemon writes: ``on_space(offset of its header)``, where it is begun already,
        and taken until ``let_go``. With less ``patience`` than usual it fails when no room is being made.
        """
        need = shm.footprint(size)
        slab = min(_OWN_SLAB, self.arena.size // 16)
        single = need > slab // 4
        if not single and self._slab is not None:
            region, at = self._slab
            if at + need <= region.offset + region.size:
                self._slab = region, at + need
                self._begin(region, at, id_, size)
                on_space(at)
                return
        if need > self.arena.size:
            on_failure(f"it has {size} bytes, and the object store of this node {self.arena.size}")
            return

        def got(region: Region) -> None:
            at = region.offset
            self._begin(region, at, id_, size)
            if single:
                region.retired = True
            else:
                before, self._slab = self._slab, (region, at + need)
                if before is not None:
                    self.retire(before[0])
            on_space(at)

        blocks = -(-need // shm.BLOCK) if single else max(1, slab // shm.BLOCK)
        message = m.RegionWant(0, blocks * shm.BLOCK, single)
        first = next((at for at, want in enumerate(self._wants) if want.own is None), len(self._wants))
        self._wants.insert(first, _Want(self._daemon, message, time.monotonic(), got, on_failure, patience))
        self.serve()

    def _begin(self, region: Region, at: int, id_: bytes, size: int) -> None:
        self.arena.begin(at, id_, size, region.offset + region.size)
        region.live += 1

    def give_up(self, offset: int) -> None:
        """What was begun there will not be."""
        self.arena.mark_freed(offset)
        self.let_go(offset)

    def leave_slab(self) -> None:
        """The next small copy takes another."""
        if self._slab is not None:
            (region, _), self._slab = self._slab, None
            self.retire(region)

    # ------------------------------------------------------------ pages

    async def trim(self) -> None:
        """Give free pages back to the kernel once nothing has moved for a while."""
        self.release_withheld()
        if time.monotonic() - self._last_change < _IDLE_SECONDS:
            return
        since = self._last_change
        for start, blocks in list(self._allocator.free_extents()):
            if self._last_change != since:
                return  # these extents are of before
            a, b = start * shm.BLOCK, (start + blocks) * shm.BLOCK
            if self._cold.ranges and self._cold.overlaps(a, b) == [(a, b)]:
                continue
            # Nobody is given these blocks while the thread works on them.
            try:
                self._allocator.reserve(start, blocks)
            except ValueError:  # they were withheld meanwhile
                continue
            try:
                await asyncio.to_thread(shm.punch, self.arena.fd, a, b - a)
                self._cold.add(a, b)
            except OSError as error:
                log.warning("cannot give back %s bytes of the arena: %s", b - a, error)
            finally:
                self._allocator.free(start, blocks)
                self.serve()

    def give_back(self, size: int) -> bool:
        """Memory is short by so many bytes: whether some is being given back."""
        if self._giving or self.relief.writing:
            return True
        if self.warm_bytes() <= _LEAST:
            return False
        if any(self._warm_parts(start, blocks) for start, blocks in self.free_extents()):
            self._giving = True
            task = asyncio.get_running_loop().create_task(self._give_free(), name="give back")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return True
        self.relief.shed(size)
        return self.relief.active

    def _warm_parts(self, start: int, blocks: int) -> bool:
        a, b = start * shm.BLOCK, (start + blocks) * shm.BLOCK
        return self._cold.overlaps(a, b) != [(a, b)]

    async def _give_free(self) -> None:
        """The pages of what is free; it is not used until there is memory again."""
        try:
            for start, blocks in self.free_extents():
                try:
                    self._allocator.reserve(start, blocks)
                except ValueError:
                    continue  # somebody was given it meanwhile
                self._withheld.append((start, blocks))
                a, b = start * shm.BLOCK, (start + blocks) * shm.BLOCK
                await asyncio.to_thread(shm.punch, self.arena.fd, a, b - a)
                self._cold.add(a, b)
        except OSError as error:
            log.warning("cannot give memory of the arena back: %s", error)
        finally:
            self._giving = False

    def used_bytes(self) -> int:
        return (self._allocator.blocks - self._allocator.free_blocks) * shm.BLOCK - self.withheld_bytes()

    def withheld_bytes(self) -> int:
        """For which there is no memory now."""
        return sum(blocks for _, blocks in self._withheld) * shm.BLOCK

    def warm_bytes(self) -> int:
        return self.arena.size - sum(b - a for a, b in self._cold.ranges)

    def figures(self) -> dict[str, int]:
        """Bytes unless said otherwise."""
        return {
            "size": self.arena.size,
            "used": self.used_bytes(),
            "resident": self.warm_bytes(),
            "withheld": self.withheld_bytes(),
            "regions": len(self._regions),
            "waiting": len(self._wants),
        }
