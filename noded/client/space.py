"""Space in the arena for this process's objects.

Small objects are bump-allocated in a slab without asking anybody; an object over ``SINGLE`` gets a region of
its own. When there is no room the daemon is asked and the writer continues in a callback, so that the thread
that handles messages never waits. Every method needs the runtime's lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from noded.client.control import Control
from noded.shm.arena import footprint
from noded.wire import messages as m

SINGLE = 1 << 20
"""Objects above this many bytes have a region of their own."""


class _Slab(msgspec.Struct):
    offset: int
    end: int
    at: int


class _Order(msgspec.Struct):
    """A request to the daemon that has not been answered."""

    message: m.RegionWant
    on_space: Callable[[int, int], None]
    on_failure: Callable[[str], None]


class Space:
    """``request(size, on_space, on_failure)`` calls ``on_space(offset, region_end)`` now or later, under the
    lock.
    """

    def __init__(self, control: Control, slab_size: int):
        self._control = control
        self.slab_size = slab_size
        self.single_limit = min(SINGLE, slab_size // 4)
        self._slab: _Slab | None = None
        self._queue: deque[tuple[int, Callable[[int, int], None], Callable[[str], None]]] = deque()
        """Small requests that wait for the next slab."""
        self._orders: dict[int, _Order] = {}
        self._next = 0
        self._slab_order = 0
        self._left = False
        self._open: dict[int, int] = {}
        """Objects that are being written, counted by the end of their region."""
        self._leaving: dict[int, int] = {}
        """Regions we take no more space from but still write in: end -> offset."""

    def request(self, size: int, on_space: Callable[[int, int], None], on_failure: Callable[[str], None]) -> None:
        need = footprint(size)
        if need > self.single_limit:
            self._order(m.RegionWant(0, need, True), on_space, on_failure)
        elif self._queue or not self._bump(need, on_space):
            self._queue.append((need, on_space, on_failure))
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
            self._slab_order = self._order(m.RegionWant(0, self.slab_size, False), self._on_slab, self._on_no_slab)

    def _order(
        self, message: m.RegionWant, on_space: Callable[[int, int], None], on_failure: Callable[[str], None]
    ) -> int:
        self._next += 1
        message.request = self._next
        self._orders[self._next] = _Order(message, on_space, on_failure)
        self._control.send(message)
        self._control.flush()
        return self._next

    def _on_slab(self, offset: int, end: int) -> None:
        self._slab_order = 0
        if self._slab is not None:
            self._leave(self._slab.offset, self._slab.end)
        self._slab = _Slab(offset, end, offset)
        while self._queue:
            need, on_space, _ = self._queue[0]
            if not self._bump(need, on_space):
                self._order_slab()
                return
            self._queue.popleft()
        if self._left:
            self.leave()

    def _on_no_slab(self, reason: str) -> None:
        self._slab_order = 0
        waiting, self._queue = self._queue, deque()
        for _, _, on_failure in waiting:
            on_failure(reason)

    # ------------------------------------------------------------ from the daemon

    def on_region(self, message: m.Region) -> None:
        order = self._orders.pop(message.request, None)
        if order is None:
            self._control.send(m.RegionDone(message.offset))
            return
        end = message.offset + message.size
        order.on_space(message.offset, end)
        if order.message.single:
            self._leave(message.offset, end)

    def on_failed(self, message: m.RegionFailed) -> None:
        order = self._orders.pop(message.request, None)
        if order is not None:
            order.on_failure(message.reason)

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
