"""What decisions about placement see of a node, and many nodes in order: by what they have, and by their labels."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

_KEPT = 256

_V = TypeVar("_V")

Amounts = Mapping[str, int]
"""Resource name to units, see `resources.UNIT`."""


class NodeView(msgspec.Struct, frozen=True):
    """Its mappings are never changed in place: an ``Index`` finds what it has by what it was."""

    id: str
    available: Amounts
    """May be below zero: over-committed."""
    total: Amounts
    labels: Mapping[str, str] = {}
    schedulable: bool = True
    """False: away or draining. Nothing new goes there, but what only it could hold is not hopeless."""
    draining: bool = False
    """Why it takes nothing; False: it is away."""


class _ByAmount:
    """Nodes that have some of one resource, ordered by the amount, then by id."""

    __slots__ = ("amounts", "ids")

    def __init__(self, ordered: list[tuple[int, str]]) -> None:
        self.amounts = [amount for amount, _ in ordered]
        self.ids = [id for _, id in ordered]

    def add(self, amount: int, id: str) -> None:
        place = self._place(amount, id)
        self.amounts.insert(place, amount)
        self.ids.insert(place, id)

    def remove(self, amount: int, id: str) -> None:
        place = self._place(amount, id)
        del self.amounts[place], self.ids[place]

    def _place(self, amount: int, id: str) -> int:
        first = bisect_left(self.amounts, amount)
        return bisect_left(self.ids, id, first, bisect_right(self.amounts, amount, first))


class Index:
    """Nodes by what they have of each resource; of the resource "" each has 0. Made for a resource when asked for."""

    def __init__(self, nodes: Mapping[str, NodeView], read: Callable[[NodeView], Amounts | None]) -> None:
        self._nodes = nodes
        self._read = read
        self._lists: dict[str, _ByAmount] = {}

    def of(self, name: str) -> _ByAmount:
        found = self._lists.get(name)
        if found is None:
            found = _ByAmount(sorted(self._pairs(name)))
            keep(self._lists, name, found)
        return found

    def _pairs(self, name: str) -> list[tuple[int, str]]:
        pairs = []
        for id, node in self._nodes.items():
            amount = _amount(self._read(node), name)
            if amount is not None:
                pairs.append((amount, id))
        return pairs

    def holding(self, asks: Amounts) -> tuple[list[str], int]:
        """Ids, and from where on in them: the nodes with enough of the one resource of which the fewest have enough."""
        best: tuple[list[str], int] | None = None
        for name, amount in (asks or {"": 0}).items():
            each = self.of(name)
            start = bisect_left(each.amounts, amount)
            if best is None or len(each.ids) - start < len(best[0]) - best[1]:
                best = each.ids, start
        assert best is not None
        return best

    def top(self, name: str, pool: Ids | None) -> str:
        """The one with the most; empty where no node has any."""
        return next((id for id in reversed(self.of(name).ids) if pool is None or id in pool), "")

    def change(self, id: str, old: NodeView | None, new: NodeView | None) -> None:
        before = None if old is None else self._read(old)
        after = None if new is None else self._read(new)
        for name in dict.fromkeys(("", *(before or ()), *(after or ()))):
            entries = self._lists.get(name)
            if entries is None:
                continue
            was, is_now = _amount(before, name), _amount(after, name)
            if was == is_now:
                continue
            if was is not None:
                entries.remove(was, id)
            if is_now is not None:
                entries.add(is_now, id)


class Ids:
    """A set of ids that can be gone through in order."""

    __slots__ = ("_known", "ids")

    def __init__(self) -> None:
        self.ids: list[str] = []
        self._known: set[str] = set()

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, id: str) -> bool:
        return id in self._known

    def put(self, id: str, there: bool) -> None:
        if there and id not in self._known:
            self._known.add(id)
            insort(self.ids, id)
        elif not there and id in self._known:
            self._known.remove(id)
            del self.ids[bisect_left(self.ids, id)]


def keep(table: dict[str, _V], key: str, value: _V) -> None:
    """Keep what can be made anew: the oldest goes when there are many."""
    if len(table) >= _KEPT:
        del table[next(iter(table))]
    table[key] = value


def _amount(amounts: Amounts | None, name: str) -> int | None:
    if amounts is None:
        return None
    return amounts.get(name) if name else 0
