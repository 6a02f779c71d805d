"""Space in the arena for this process's objects.

Small objects are bump-allocated in a slab without asking anybody; an object over ``SINGLE`` gets a region of
its own. When there is no room the daemon is asked and the writer continues in a callback, so that the thread
that handles messages never waits. Where the arena has no room the daemon gives a file for one object. Every method
needs the runtime's lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from noded import exceptions as ex
from noded.client.control import Control
from noded.shm.arena import footprint
from noded.wire import messages as m

SINGLE = 1 << 20
"""Objects above this many bytes have a region of their own."""


class _Slab(msgspec.Struct):
    offset: int
    end: int
    at: int


class _Request(msgspec.Struct):
    """One of them is called, once."""

    need: int
    on_space: Callable[[int, int], None]
    on_failure: Callable[[Exception], None]
    on_file: Callable[[str], None]


class _Order(msgspec.Struct):
    """What the daemon has not answered yet; ``request`` is None of a slab."""

    message: m.RegionWant
    request: _Request | None


class Space:
    """``request()`` calls ``on_space(offset, region_end)``, ``on_file(path)`` or ``on_failure(error)``, now or later,
    under the lock.
    """

    def __init__(self, control: Control, slab_size: int):
        self._control = control
        self.slab_size = slab_size
        self.single_limit = min(SINGLE, slab_size // 4)
        self._slab: _Slab | None = None
        self._queue: deque[_Request] = deque()
        """Small requests that wait for the next slab."""
        self._orders: dict[int, _Order] = {}
        self._next = 0
        self._slab_order = 0
        self._left = False
        self._open: dict[int, int] = {}
        """Objects that are being written, counted by the end of their region."""
        self._leaving: dict[int, int] = {}
        """Regions we take no more space from but still write in: end -> offset."""
        self._files: dict[str, None] = {}
        """Files that we write to."""

    def request(
        self,
        size: int,
        on_space: Callable[[int, int], None],
        on_failure: Callable[[Exception], None],
        on_file: Callable[[str], None],
    ) -> None:
        request = _Request(footprint(size), on_space, on_failure, on_file)
        if request.need > self.single_limit:
            self._order_one(request)
        elif self._queue or not self._bump(request.need, on_space):
            self._queue.append(request)
            self._order_slab()

    def _bump(self, need: int, on_space: Callable[[int, int], None]) -> bool:
        slab = self._slab
        if slab is None or slab.at + need > slab.end:
            return False
        at = slab.at
        slab.at += need
        on_space(at, slab.end)
        return True

    def _order_slab(self) -> None:
        if not self._slab_order:
            self._slab_order = self._order(m.RegionWant(0, self.slab_size, False), None)

    def _order_one(self, request: _Request) -> None:
        self._order(m.RegionWant(0, request.need, True), request)

    def _order(self, message: m.RegionWant, request: _Request | None) -> int:
        self._next += 1
        message.request = self._next
        self._orders[self._next] = _Order(message, request)
        self._control.send(message)
        self._control.flush()
        return self._next

    def _on_slab(self, offset: int, end: int) -> None:
        self._slab_order = 0
        if self._slab is not None:
            self._leave(self._slab.offset, self._slab.end)
        self._slab = _Slab(offset, end, offset)
        while self._queue:
            request = self._queue[0]
            if not self._bump(request.need, request.on_space):
                self._order_slab()
                return
            self._queue.popleft()
        if self._left:
            self.leave()

    def _on_no_slab(self, failed: m.RegionFailed) -> None:
        self._slab_order = 0
        waiting, self._queue = self._queue, deque()
        for request in waiting:
            if failed.kind == "slab":
                self._order_one(request)
            else:
                request.on_failure(_error(failed))

    # ------------------------------------------------------------ from the daemon

    def on_region(self, message: m.Region) -> None:
        order = self._orders.pop(message.request, None)
        if order is None:
            self._control.send(m.RegionDone(message.offset))
            return
        end = message.offset + message.size
        if order.request is None:
            self._on_slab(message.offset, end)
        else:
            order.request.on_space(message.offset, end)
            self._leave(message.offset, end)

    def on_file(self, message: m.DiskRegion) -> None:
        order = self._orders.pop(message.request, None)
        if order is None or order.request is None:
            self.file_written(message.path, b"")
            return
        self._files[message.path] = None
        order.request.on_file(message.path)

    def on_failed(self, message: m.RegionFailed) -> None:
        order = self._orders.pop(message.request, None)
        if order is None:
            return
        if order.request is None:
            self._on_no_slab(message)
        else:
            order.request.on_failure(_error(message))

    def recall(self, offset: int) -> None:
        """The node needs the room of this slab; what is being written there is finished first."""
        slab = self._slab
        if slab is not None and slab.offset == offset:
            self._slab = None
            self._leave(slab.offset, slab.end)

    # ------------------------------------------------------------ writers

    def begun(self, end: int) -> None:
        """Somebody writes an object in the region that ends there, without the lock."""
        self._open[end] = self._open.get(end, 0) + 1

    def written(self, end: int) -> None:
        """The object is sealed, or given up."""
        left = self._open.pop(end, 0) - 1
        if left > 0:
            self._open[end] = left
        elif end in self._leaving:
            self._control.send(m.RegionDone(self._leaving.pop(end)))

    def _leave(self, offset: int, end: int) -> None:
        """A region goes back when nobody writes in it any more: to the daemon, one without sealed objects is free."""
        if end in self._open:
            self._leaving[end] = offset
        else:
            self._control.send(m.RegionDone(offset))

    def leave(self) -> None:
        """Give the slab back; another that is on its way goes back as it comes."""
        self._left = True
        if self._slab is not None:
            self._leave(self._slab.offset, self._slab.end)
            self._slab = None

    def file_written(self, path: str, id_: bytes) -> None:
        """The object is in this file; with an empty id it will not be."""
        self._files.pop(path, None)
        self._control.send(m.SealedOnDisk(self._control.next_seq(), id_, path))

    def files_in_use(self) -> list[str]:
        return list(self._files)

    def in_use(self) -> list[int]:
        return list(self._leaving.values()) + ([self._slab.offset] if self._slab is not None else [])

    def retell(self) -> None:
        for order in self._orders.values():
            self._control.send(order.message)

    def forget(self) -> None:
        """The arena is a new one."""
        self._slab = None
        self._open.clear()
        self._leaving.clear()
        self._files.clear()


def _error(failed: m.RegionFailed) -> Exception:
    return ex.OutOfDiskError(failed.reason) if failed.kind == "disk" else ex.ObjectStoreFullError(failed.reason)
