"""Makes room in the arena: what was unused longest goes to disk, and comes back when it is wanted.

A client that was told where an object lies may look there at any time. So before a region is given up, all who may
know a place in it are asked to forget it (``Vacate``); they answer which they look at right now, and a region with such
a one stays. What one of them has told others by then is counted in: its answer holds when those have been read so far.
Then a thread writes the region's objects to a file, but for those that lie on disk already and for copies of other
nodes' objects, which are given up; and the region is free. Which regions go is ``policy/eviction.py``'s to say.

Who wants such an object has it read back (``restore``), which goes before all that is new; where there is no room at
all the client reads the file itself. All is on the loop, but for what touches files.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import msgspec

from noded import ids
from noded.node.entry import Entry
from noded.node.session import Client
from noded.node.space import Region, Space
from noded.node.spill_files import PUNCH_FROM, NoRoom, Place, SpillFile, SpillFiles, Value
from noded.policy.eviction import Candidate, choose
from noded.shm import arena as shm
from noded.shm import record
from noded.wire import messages as m

log = logging.getLogger("noded.spilling")

THREADS = 4
BATCH = 64 << 20
"""Bytes that leave at a time, where so many can: one file."""
ANSWER_SECONDS = 0.5
"""A client that does not say which places it has forgotten keeps them: it may be stopped, or in C code."""
BUSY_SECONDS = 0.3
"""A region that somebody looks at is asked for again after so long."""
_RECENT_SECONDS = 0.5
"""What was of use just now goes only when it must."""
_READ_SECONDS = 0.002
_SILENT_MOST = 10.0
_TRIES = 16
_LOOK_SECONDS = 0.05
"""Where nothing could leave, so long nobody looks again: requests may come fast, and regions be many."""
_ROOM_FOR_CACHE = 512 << 20
_BUFFER = 1 << 20

T = TypeVar("T")


class _Unreadable(Exception):
    """It is the file's fault."""


class Store(Protocol):
    """The object store, as far as it is told of what has moved."""

    entries: dict[bytes, Entry]
    recovering: set[bytes]

    def arrived(self, entry: Entry) -> None:
        """Its value can be had again: who waits is to be told. Then what was put off (freeing it) is done."""

    def drop_copy(self, entry: Entry) -> None:
        """It has left the arena, and this node need not have it."""

    def lost_here(self, entry: Entry, reason: str) -> None:
        """It cannot be read back."""

    def adopt_file(self, found: record.Record, nested: list[bytes], place: Place, *, copy: bool = False) -> None:
        """A sealed record."""

    def is_handed_over(self, id_: bytes) -> bool:
        """A release of it waits for a receiver, which may not have told that it holds it."""

    def on_subscribe(self, client: Client, message: m.Subscribe) -> None: ...


class _Move(msgspec.Struct, eq=False):
    """Regions that are to be free, and whose word is missing."""

    regions: list[Region]
    inside: dict[int, list[Entry]]
    """By a region's start, what lies in it."""
    until: float
    asked: dict[bytes, set[bytes]] = {}
    """Client -> ids it was asked to forget."""
    waiting: set[bytes] = set()
    """Those who have not answered."""
    busy: set[bytes] = set()
    after: list[tuple[bytes, int]] = []

    @property
    def blocks(self) -> int:
        return sum(region.blocks for region in self.regions)

    @property
    def entries(self) -> Iterator[Entry]:
        for inside in self.inside.values():
            yield from inside


class Spilling:
    """Implements ``space.Relief``. ``keep(name, fd)``: have somebody who outlives us keep a copy."""

    def __init__(
        self,
        store: Store,
        space: Space,
        files: SpillFiles,
        clients: dict[bytes, Client],
        keep: Callable[[str, int], None],
        *,
        threads: int = THREADS,
    ):
        self.files = files
        self._store = store
        self._space = space
        self._arena = space.arena
        self._clients = clients
        self._keep = keep
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "spill")
        self._moves: dict[int, _Move] = {}
        self._number = 0
        self._writing = 0
        self._expected: dict[str, tuple[SpillFile, bytes]] = {}
        """Files that clients write, with who does."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._counts = {"spilled_bytes": 0, "spilled_objects": 0, "restored_bytes": 0, "restored_objects": 0}
        self._silent: dict[bytes, tuple[float, float]] = {}
        """Clients that have not answered: until when they are left alone, and for how long the next time."""
        self._full = False
        """No directory takes anything: only what need not be written can leave."""
        self._look_again = 0.0
        self._stopped = False

    # ------------------------------------------------------------ which regions

    @property
    def active(self) -> bool:
        return bool(self._moves) or self._writing > 0

    @property
    def writing(self) -> bool:
        return self._writing > 0

    @property
    def spills(self) -> bool:
        return bool(self.files.directories)

    def trouble(self, size: int) -> str:
        return self.files.refusal(size)

    def relieve(self, blocks: int) -> None:
        """Begin to make room for a region of so many blocks; regions that are on their way out count."""
        now = time.monotonic()
        if self._store.recovering or self._stopped or now < self._look_again:
            return
        if len(self._moves) + self._writing >= self._threads:
            return
        under_way = sum(move.blocks for move in self._moves.values())
        if under_way >= max(blocks, BATCH // shm.BLOCK):
            return
        self._full = bool(self.files.refusal(blocks * shm.BLOCK))
        batch = 0 if self.files.refusal(BATCH) else min(BATCH, self._arena.size // 4) // shm.BLOCK
        chosen = self._choose(blocks, batch)
        if chosen:
            self._begin(*chosen)
        else:
            self._look_again = now + _LOOK_SECONDS

    def shed(self, size: int) -> None:
        """Begin to make so many bytes free, wherever, or as many as go at a time; memory is short."""
        if self._store.recovering or self._stopped or self.active:
            return
        self._full = bool(self.files.refusal(size))
        now = time.monotonic()
        left = min(size, BATCH)
        regions: list[Region] = []
        found: dict[int, list[Entry]] = {}
        for region in sorted(self._space.all(), key=lambda r: r.used):
            if left <= 0:
                break
            if not region.moving and region.busy_until <= now and region.live and self._look(region, found):
                regions.append(region)
                left -= region.size
        if regions:
            self._begin(regions, found)

    def _choose(self, blocks: int, batch: int) -> tuple[list[Region], dict[int, list[Entry]]] | None:
        """Regions that make a run so long, and more that are due, up to a batch; with all that lies in them."""
        now = time.monotonic()
        free = self._space.free_extents()
        candidates = {r.start: r for r in self._space.all() if not r.moving and r.busy_until <= now}
        found: dict[int, list[Entry]] = {}
        for _ in range(_TRIES):
            chosen = choose(free, [Candidate(r.start, r.blocks, r.used) for r in candidates.values()], blocks)
            if not chosen:
                return None
            stay = [start for start, _, _ in chosen if not self._look(candidates[start], found)]
            if not stay:
                break
            for start in stay:
                candidates.pop(start).busy_until = now + BUSY_SECONDS
        else:
            return None
        regions = [candidates.pop(start) for start, _, _ in chosen]
        room = batch - sum(region.blocks for region in regions)
        for region in sorted(candidates.values(), key=lambda r: r.used):
            if room < region.blocks or region.used > now - _RECENT_SECONDS:
                break
            if region.live and self._look(region, found):
                regions.append(region)
                room -= region.blocks
        return regions, found

    def _look(self, region: Region, found: dict[int, list[Entry]]) -> bool:
        """Whether all that lies in it can leave, as far as is known without asking."""
        if region.start not in found:
            contents = self._contents(region)
            if contents is None:
                return False
            found[region.start] = contents
        return True

    def _contents(self, region: Region) -> list[Entry] | None:
        writer = self._clients.get(region.prefix)
        if not region.retired and writer is not None and not self._answers(writer):
            return None
        contents = []
        for header in self._arena.walk(region.offset, region.size):
            if header.state == shm.FREED:
                continue
            entry = self._store.entries.get(header.id)
            if header.state == shm.UNSEALED:
                if region.retired and not ids.is_node_prefix(region.prefix):
                    continue  # given up by its writer
                return None
            if entry is None or entry.offset != header.offset or not self._may_leave(entry):
                return None
            if self._full and self._is_to_be_written(entry):
                return None
            contents.append(entry)
        return contents

    @staticmethod
    def _is_to_be_written(entry: Entry) -> bool:
        away = entry.away
        needed = entry.holders or entry.containers or (away is not None and away.pinned)
        return bool(needed) and entry.disk is None and not (away is not None and away.cached)

    def _may_leave(self, entry: Entry) -> bool:
        if entry.moving or entry.coming or entry.copies:
            return False
        for prefix in entry.holders:
            client = self._clients.get(prefix)
            # What is no client looks at it now: a transfer, a forked child.
            if client is None or (self._knows_places(client) and not self._answers(client)):
                return False
        return True

    @staticmethod
    def _knows_places(client: Client) -> bool:
        return client.kind in ("driver", "worker") and not client.remote

    def _answers(self, client: Client) -> bool:
        if client.session is None or not client.told or client.detached or client.version < m.SPILL_SINCE:
            return False
        silent = self._silent.get(client.prefix)
        return silent is None or time.monotonic() >= silent[0]

    # ------------------------------------------------------------ asking

    def _begin(self, regions: list[Region], found: dict[int, list[Entry]]) -> None:
        self._number += 1
        number = self._number
        inside = {region.start: found[region.start] for region in regions}
        move = self._moves[number] = _Move(regions, inside, time.monotonic() + ANSWER_SECONDS)
        slabs: dict[bytes, list[int]] = {}
        for region in regions:
            region.moving = True
            if not region.retired:
                if region.prefix in self._clients:
                    slabs.setdefault(region.prefix, []).append(region.offset)
                else:
                    self._space.leave_slab()
        for entry in move.entries:
            entry.moving = True
        self._ask(number, move, slabs)
        asyncio.get_running_loop().call_later(ANSWER_SECONDS + 0.01, self._look_at, number)
        self._look_at(number)

    def _ask(self, number: int, move: _Move, slabs: dict[bytes, list[int]]) -> None:
        """All who may know a place, and have not been asked."""
        asks: dict[bytes, list[bytes]] = {prefix: [] for prefix in slabs}
        for entry in move.entries:
            for prefix in entry.holders:
                client = self._clients.get(prefix)
                if client is not None and self._knows_places(client):
                    known = move.asked.setdefault(prefix, set())
                    if entry.id not in known:
                        known.add(entry.id)
                        asks.setdefault(prefix, []).append(entry.id)
        for prefix, asked in asks.items():
            move.waiting.add(prefix)
            self._clients[prefix].send(m.Vacate(number, asked, slabs.get(prefix, [])))

    def on_vacated(self, client: Client, message: m.Vacated) -> None:
        self._silent.pop(client.prefix, None)  # also when it comes too late for this one
        move = self._moves.get(message.request)
        if move is None:
            return
        move.waiting.discard(client.prefix)
        move.busy.update(message.busy)
        move.after += [(prefix, seq) for prefix, seq in message.after if not self._was_read(prefix, seq)]
        self._look_at(message.request)

    def _was_read(self, prefix: bytes, seq: int) -> bool:
        client = self._clients.get(prefix)
        return client is None or client.kind == "guest" or (client.told and client.seq >= seq)

    def _look_at(self, number: int) -> None:
        """Go on when all has been said, or it is too late for that."""
        move = self._moves.get(number)
        if move is None:
            return
        late = time.monotonic() >= move.until
        if move.waiting and not late:
            return
        move.after = [(prefix, seq) for prefix, seq in move.after if not self._was_read(prefix, seq)]
        if not late and (move.after or any(self._store.is_handed_over(entry.id) for entry in move.entries)):
            asyncio.get_running_loop().call_later(_READ_SECONDS, self._look_at, number)
            return
        if not late:
            self._ask(number, move, {})  # who has come to hold one meanwhile
            if move.waiting:
                return
        del self._moves[number]
        for prefix in move.waiting:
            _, pause = self._silent.get(prefix, (0.0, ANSWER_SECONDS))
            self._silent[prefix] = time.monotonic() + pause, min(2 * pause, _SILENT_MOST)
        unsure = bool(move.after)
        silent = {id_ for prefix in move.waiting for id_ in move.asked.get(prefix, ())}
        stay: list[Region] = []
        leave: list[Region] = []
        for region in move.regions:
            inside = move.inside[region.start]
            busy = unsure or not region.retired or any(e.id in move.busy or e.id in silent for e in inside)
            (stay if busy or any(not self._may_go_now(e, move) for e in inside) else leave).append(region)
        for region in stay:
            self._stay(region, move.inside[region.start])
        if leave:
            self._start(self._leave(leave, move), "spill")
        else:
            self._space.serve()

    def _may_go_now(self, entry: Entry, move: _Move) -> bool:
        """All who hold it now have been asked, or cannot know its place."""
        for prefix in entry.holders:
            client = self._clients.get(prefix)
            if client is None or (self._knows_places(client) and entry.id not in move.asked.get(prefix, ())):
                return False
        return not entry.copies and not self._store.is_handed_over(entry.id)

    def _stay(self, region: Region, inside: list[Entry]) -> None:
        region.moving = False
        region.busy_until = time.monotonic() + BUSY_SECONDS
        for entry in inside:
            entry.moving = False
            self._store.arrived(entry)
        self._space.free_if_empty(region)

    # ------------------------------------------------------------ leaving

    async def _leave(self, regions: list[Region], move: _Move) -> None:
        going = [e for region in regions for e in move.inside[region.start] if self._is_to_be_written(e)]
        values = [Value(entry.id, entry.offset + shm.HEADER_SIZE, entry.size) for entry in going]
        self._writing += 1
        try:
            places = await self._in_thread(self._write, values) if values else []
        except (NoRoom, OSError) as error:
            log.debug("%s objects stay in memory: %s", len(values), error)
            for region in regions:
                self._stay(region, move.inside[region.start])
            self._space.serve()
            return
        finally:
            self._writing -= 1
        self.keep_locks()
        for entry, place in zip(going, places, strict=True):
            place.file.live += 1
            if entry.disk is not None:  # it was written by others meanwhile
                self._forget_place(place)
                continue
            entry.disk = place
            self._counts["spilled_bytes"] += entry.size
            self._counts["spilled_objects"] += 1
        for region in regions:
            inside = move.inside[region.start]
            if all(self._may_go_now(entry, move) and not self._is_to_be_written(entry) for entry in inside):
                self._left(region, inside)
            else:  # somebody has come to hold one while it was written
                self._stay(region, inside)
        self._space.serve()

    def _left(self, region: Region, inside: list[Entry]) -> None:
        region.moving = False
        offsets = [entry.offset for entry in inside]
        for entry in inside:
            self._arena.mark_freed(entry.offset)
            entry.offset, entry.moving = -1, False
        for offset in offsets:
            self._space.let_go(offset)
        for entry in inside:
            if self._store.entries.get(entry.id) is entry:
                if entry.disk is None:
                    self._store.drop_copy(entry)
                self._store.arrived(entry)

    def _write(self, values: list[Value]) -> list[Place]:
        """In a thread. What a directory does not take the next one may."""
        need = sum(record.footprint(value.size) for value in values)
        while True:
            file = self.files.open_file(need)
            try:
                return file.write(values, self._arena, out=self._space.room() < _ROOM_FOR_CACHE)
            except OSError as error:
                file.directory.fail(error)
                self.files.remove(file)

    def keep_locks(self, *, again: bool = False) -> None:
        """``again``: who has kept them has ended."""
        for directory in self.files.directories:
            if directory.lock_fd >= 0 and (again or not directory.kept):
                directory.kept = True
                self._keep(directory.lock_name, directory.lock_fd)

    # ------------------------------------------------------------ coming back

    def restore(self, entry: Entry) -> None:
        """It is wanted here: bring it into the arena, or tell who waits where to read it."""
        if entry.coming or entry.moving or entry.offset >= 0 or entry.disk is None:
            return
        if shm.footprint(entry.size) > self._arena.size:
            self._tell_file(entry)
            return
        entry.coming = True

        def on_space(offset: int) -> None:
            self._start(self._restore(entry, offset), "restore")

        def on_failure(reason: str) -> None:
            entry.coming = False
            self._tell_file(entry)
            self._store.arrived(entry)

        self._space.allocate(entry.id, entry.size, on_space, on_failure, 0.0)

    async def _restore(self, entry: Entry, offset: int) -> None:
        place = entry.disk
        assert place is not None
        try:
            await self._in_thread(self._read, place, offset + shm.HEADER_SIZE)
        except _Unreadable as error:
            self._space.give_up(offset)
            entry.coming = False
            self._unreadable(entry, f"its file {place.file.path} cannot be read: {error}")
            return
        except OSError as error:
            log.warning("object %s cannot be brought back now: %s", entry.id.hex(), error)
            self._space.give_up(offset)
            entry.coming = False
            self._tell_file(entry)
            self._store.arrived(entry)
            return
        self._arena.seal(offset)
        entry.offset, entry.coming = offset, False
        self._counts["restored_bytes"] += entry.size
        self._counts["restored_objects"] += 1
        self._store.arrived(entry)

    def _read(self, place: Place, offset: int) -> None:
        """In a thread, into the arena, by a small buffer: see ``transfer.py`` why. With an offset of -1 nowhere."""
        buffer = memoryview(bytearray(min(_BUFFER, max(1, place.size))))
        fd = _opened(place)
        try:
            at = 0
            while at < place.size:
                try:
                    count = os.preadv(fd, [buffer[: min(_BUFFER, place.size - at)]], place.value_at + at)
                except OSError as error:
                    raise _Unreadable(str(error)) from error
                if not count:
                    raise _Unreadable("it ends before the value does")
                done = 0 if offset >= 0 else count
                while done < count:
                    done += os.pwrite(self._arena.fd, buffer[done:count], offset + at + done)
                at += count
        finally:
            os.close(fd)

    def _tell_file(self, entry: Entry) -> None:
        assert entry.disk is not None
        waiting, entry.waiting = entry.waiting, None
        for prefix in waiting or ():
            client = self._clients.get(prefix)
            if client is None:
                continue
            if client.remote:
                client.send(m.Value(entry.id, entry.size, False))
            elif client.version >= m.SPILL_SINCE:
                client.send(m.OnDisk([(entry.id, entry.disk.file.path, entry.disk.value_at, entry.size)]))
            else:
                client.send(m.Lost(entry.id, "lost", "there is no room for it in the object store"))

    def on_unreadable(self, client: Client, message: m.Unreadable) -> None:
        """A client could not read a file; whether that is the file's fault is looked at here."""
        entry = self._store.entries.get(message.id)
        if entry is None or not entry.here:
            self._store.on_subscribe(client, m.Subscribe([message.id]))
            return
        entry.waiting = entry.waiting or set()
        entry.waiting.add(client.prefix)
        if entry.offset >= 0 or entry.coming or entry.moving:
            self._store.arrived(entry)
        elif entry.disk is not None:
            self._start(self._look_at_file(entry, entry.disk), "look at file")

    async def _look_at_file(self, entry: Entry, place: Place) -> None:
        try:
            await self._in_thread(self._read, place, -1)
        except _Unreadable as error:
            if entry.disk is place and not entry.coming:
                self._unreadable(entry, f"its file {place.file.path} cannot be read: {error}")
            return
        except OSError as error:
            log.warning("%s: %s", place.file.path, error)
        await asyncio.sleep(BUSY_SECONDS)
        self._store.arrived(entry)

    def _unreadable(self, entry: Entry, reason: str) -> None:
        log.error("object %s: %s", entry.id.hex(), reason)
        self.forget(entry)
        self._store.lost_here(entry, reason)

    def forget(self, entry: Entry) -> None:
        """It need not be on disk any more."""
        place, entry.disk = entry.disk, None
        if place is not None:
            self._forget_place(place)

    def _forget_place(self, place: Place) -> None:
        place.file.live -= 1
        if not place.file.live:
            self._later(self.files.remove, place.file)
        elif place.size >= PUNCH_FROM:  # of smaller ones the file's end is awaited
            place.file.shrink(place.size)
            self._later(self._punch, place)

    @staticmethod
    def _punch(place: Place) -> None:
        with suppress(OSError):  # its file may go meanwhile
            place.file.forget(place)

    # ------------------------------------------------------------ files that clients write

    def give_file(self, client: Client, message: m.RegionWant) -> None:
        async def give() -> None:
            try:
                size = message.size - shm.HEADER_SIZE
                file = await self._in_thread(self._made, bytes(ids.ID_SIZE), size, client.prefix)
            except (NoRoom, OSError) as error:
                client.send(m.RegionFailed(message.request, f"it fits neither in memory nor on disk: {error}", "disk"))
                return
            self.keep_locks()
            if client.prefix in self._clients and not client.detached:
                file.live = 1
                self._expected[file.path] = file, client.prefix
                client.send(m.DiskRegion(message.request, file.path))
            else:
                self._later(self.files.remove, file)

        self._start(give(), "give file")

    def _made(self, id_: bytes, size: int, writer: bytes) -> SpillFile:
        """In a thread: a file for one value."""
        file = self.files.open_file(record.footprint(size))
        try:
            file.begin(id_, size, writer)
        except OSError:
            self.files.remove(file)
            raise
        return file

    # ------------------------------------------------------------ files that this daemon writes for others

    def take_file(
        self, id_: bytes, size: int, on_file: Callable[[SpillFile], None], on_failure: Callable[[str], None]
    ) -> None:
        """For a value that comes from another node and finds no room in the arena."""

        async def take() -> None:
            try:
                file = await self._in_thread(self._made, id_, size, b"")
            except (NoRoom, OSError) as error:
                on_failure(f"there is no room for its {size} bytes in the object store, and none on disk: {error}")
                return
            self.keep_locks()
            file.live = 1
            on_file(file)

        self._start(take(), "take file")

    def write(self, file: SpillFile, value: bytes | memoryview, *, copy: bool) -> bool:
        """A small one; False when it cannot be written."""
        try:
            with file.opened() as fd:
                record.write_all(fd, value, record.HEADER_SIZE)
        except OSError as error:
            log.error("%s: %s", file.path, error)
            self.not_written(file)
            return False
        return self.written(file, copy=copy)

    def written(self, file: SpillFile, *, copy: bool) -> bool:
        """``copy``: of what another node has. False when it cannot be ended."""
        try:
            file.seal()
        except OSError as error:
            log.error("%s: %s", file.path, error)
        self._settle(file, copy=copy)
        return file.live > 0

    def not_written(self, file: SpillFile) -> None:
        self._later(self.files.remove, file)

    # ------------------------------------------------------------ files that clients write: ready

    def on_sealed(self, client: Client, message: m.SealedOnDisk) -> None:
        file, prefix = self._expected.get(message.path, (None, b""))
        if file is None or prefix != client.prefix:
            log.error("client %s has written %s, which it was not given", client.prefix.hex(), message.path)
            return
        self._settle(file)

    def _settle(self, file: SpillFile, *, copy: bool = False) -> None:
        """Its writer is ready with it, or has ended."""
        self._expected.pop(file.path, None)
        try:
            found = file.contents()
        except OSError as error:
            log.error("%s cannot be read: %s", file.path, error)
            found = []
        file.live = 0
        for each, nested in found:
            if each.state == record.SEALED:
                file.live += 1
                self._store.adopt_file(each, nested, Place(file, each.offset, each.size), copy=copy)
        if not file.live:
            self._later(self.files.remove, file)

    def client_told(self, client: Client, files: Iterable[str]) -> None:
        """It writes these and no others."""
        writes = set(files)
        for path, (file, prefix) in list(self._expected.items()):
            if prefix == client.prefix and path not in writes:
                self._settle(file)

    def client_gone(self, client: Client) -> None:
        self._silent.pop(client.prefix, None)
        self.client_told(client, ())
        for number, move in list(self._moves.items()):
            if client.prefix in move.waiting:
                move.waiting.discard(client.prefix)
                self._look_at(number)

    # ------------------------------------------------------------ life

    def adopt(self, kept: dict[str, int]) -> None:
        """What the daemon before us has left, after the arena."""
        for file in self.files.adopt(kept):
            try:
                found = file.contents()
            except OSError as error:
                log.error("%s cannot be read: %s", file.path, error)
                found = []
            for each, nested in found:
                if each.state == record.SEALED:
                    file.live += 1
                    self._store.adopt_file(each, nested, Place(file, each.offset, each.size))
                elif each.state == record.UNSEALED and each.writer in self._clients:
                    file.live += 1
                    self._expected[file.path] = file, each.writer
            if not file.live:
                self.files.remove(file)

    async def stop(self, *, delete: bool) -> None:
        """``delete``: the node ends, nobody will want the files again."""
        self._stopped = True
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=5)
        await asyncio.to_thread(self._pool.shutdown, True, cancel_futures=True)
        await asyncio.to_thread(lambda: self.files.close(delete=delete))

    def figures(self) -> dict[str, Any]:
        return {**self._counts, "on_disk": self.files.used, "directories": self.files.figures()}

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def _later(self, function: Callable[..., None], *arguments: Any) -> None:
        """In a thread, whenever one is free."""
        if not self._stopped:
            self._pool.submit(function, *arguments)


def _opened(place: Place) -> int:
    """Raises _Unreadable when the file is not there, OSError when it is not the file's fault."""
    try:
        return os.open(place.file.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        raise _Unreadable(str(error)) from error
