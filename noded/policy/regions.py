"""Which blocks of the arena a region gets: a pure allocator over block numbers.

It keeps the free extents, coalesced, and the regions that were freed last. A client gets back the region it
freed last when the size is the same, because its page tables still map those blocks (first touch costs ten
times a copy); then the region of that size that anybody freed last; else best fit, the lowest address on
ties. It knows no bytes, no file and no clock, and not who holds which region: see `node/ledger.py`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import TypeVar

# Warm regions remembered; older ones are cold by then. They are only hints, so forgetting is harmless.
MAX_WARM = 4096

_K = TypeVar("_K", bound=Hashable)


class RegionAllocator:
    """Hands out runs of blocks 0..blocks-1. Not thread-safe."""

    def __init__(self, blocks: int) -> None:
        if blocks <= 0:
            raise ValueError(f"an arena needs at least one block, not {blocks}")
        self._blocks = blocks
        self._free = blocks
        self._high_water = 0
        # Free extents three ways: by start, the sizes, and (size, start) for best fit.
        self._starts = [0]
        self._sizes = {0: blocks}
        self._by_size = [(blocks, 0)]
        self._warm = _Warm()

    @property
    def blocks(self) -> int:
        return self._blocks

    @property
    def free_blocks(self) -> int:
        return self._free

    @property
    def largest_free(self) -> int:
        return self._by_size[-1][0] if self._by_size else 0

    @property
    def high_water(self) -> int:
        """The highest block ever allocated or reserved, plus one."""
        return self._high_water

    def free_extents(self) -> Iterator[tuple[int, int]]:
        """(start, blocks) of every free extent in address order; no two of them touch."""
        return ((start, self._sizes[start]) for start in tuple(self._starts))

    def alloc(self, n: int, owner: Hashable | None = None) -> int | None:
        """The first block of a run of `n`, or None when no run is that long."""
        if n <= 0:
            raise ValueError(f"a region needs at least one block, not {n}")
        start = self._warm.find(n, owner)
        if start is None:
            place = bisect_left(self._by_size, (n, 0))
            if place == len(self._by_size):
                return None
            start = self._by_size[place][1]
        self._take(start, n)
        return start

    def reserve(self, start: int, n: int) -> None:
        """Mark a given run as used, while rebuilding from the ledger."""
        self._check_range(start, n)
        extent = self._extent_at(start)
        if extent is None or extent + self._sizes[extent] < start + n:
            raise ValueError(f"blocks {start}..{start + n - 1} are not all free: two regions claim the same blocks")
        self._take(start, n)

    def free(self, start: int, n: int, owner: Hashable | None = None) -> None:
        """Give a run back; ValueError when any block of it is free already."""
        self._check_range(start, n)
        # The only extents that can overlap or touch are the one before `start` and the next one.
        place = bisect_right(self._starts, start)
        before = self._starts[place - 1] if place else None
        after = self._starts[place] if place < len(self._starts) else None
        if (before is not None and before + self._sizes[before] > start) or (after is not None and after < start + n):
            raise ValueError(f"double free: of blocks {start}..{start + n - 1} some are free already")
        self._free += n
        self._warm.add(start, n, owner)
        first, size = start, n
        if after is not None and after == start + n:
            size += self._drop_extent(after)
        if before is not None and before + self._sizes[before] == start:
            first = before
            size += self._drop_extent(before)
        self._add_extent(first, size)

    def _check_range(self, start: int, n: int) -> None:
        if n <= 0 or start < 0 or start + n > self._blocks:
            raise ValueError(f"{n} blocks from block {start} are not a run inside 0..{self._blocks - 1}")

    def _extent_at(self, block: int) -> int | None:
        """The start of the free extent that contains `block`."""
        place = bisect_right(self._starts, block)
        if not place:
            return None
        start = self._starts[place - 1]
        return start if block < start + self._sizes[start] else None

    def _take(self, start: int, n: int) -> None:
        """Cut a run that is known to be free out of its extent."""
        extent = self._extent_at(start)
        assert extent is not None, f"block {start} is not free"
        size = self._drop_extent(extent)
        if extent < start:
            self._add_extent(extent, start - extent)
        if start + n < extent + size:
            self._add_extent(start + n, extent + size - start - n)
        self._free -= n
        self._high_water = max(self._high_water, start + n)
        self._warm.drop_overlapping(start, n)

    def _add_extent(self, start: int, size: int) -> None:
        insort(self._starts, start)
        self._sizes[start] = size
        insort(self._by_size, (size, start))

    def _drop_extent(self, start: int) -> int:
        size = self._sizes.pop(start)
        del self._starts[bisect_left(self._starts, start)]
        del self._by_size[bisect_left(self._by_size, (size, start))]
        return size


class _Warm:
    """The regions freed last. They are disjoint and wholly free: an allocation over one removes it."""

    def __init__(self) -> None:
        self._regions: OrderedDict[int, tuple[int, Hashable | None]] = OrderedDict()
        self._starts: list[int] = []
        # Stacks as dicts (last inserted = top), so that one can be removed from the middle.
        self._of_owner: dict[tuple[Hashable | None, int], dict[int, None]] = {}
        self._of_size: dict[int, dict[int, None]] = {}

    def find(self, n: int, owner: Hashable | None) -> int | None:
        """The start of the region of `n` blocks freed last, the owner's own before all others."""
        stack = (self._of_owner.get((owner, n)) if owner is not None else None) or self._of_size.get(n)
        return next(reversed(stack)) if stack else None

    def add(self, start: int, n: int, owner: Hashable | None) -> None:
        if len(self._regions) >= MAX_WARM:
            self._drop(next(iter(self._regions)))
        self._regions[start] = (n, owner)
        insort(self._starts, start)
        self._of_owner.setdefault((owner, n), {})[start] = None
        self._of_size.setdefault(n, {})[start] = None

    def drop_overlapping(self, start: int, n: int) -> None:
        place = bisect_right(self._starts, start)
        if place and self._starts[place - 1] + self._regions[self._starts[place - 1]][0] > start:
            place -= 1
        for region in self._starts[place : bisect_left(self._starts, start + n)]:
            self._drop(region)

    def _drop(self, start: int) -> None:
        n, owner = self._regions.pop(start)
        del self._starts[bisect_left(self._starts, start)]
        _remove(self._of_owner, (owner, n), start)
        _remove(self._of_size, n, start)


def _remove(stacks: dict[_K, dict[int, None]], key: _K, start: int) -> None:
    stack = stacks[key]
    del stack[start]
    if not stack:
        del stacks[key]
