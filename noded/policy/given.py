"""What was given away on other nodes since they reported: counted as taken, for a moment.

A node reports when what it has free has changed. What is taken and given back in between it never tells of, so nothing
given is counted for long: by then it is either in a report, or over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import msgspec

SECONDS = 0.5


class _OfNode(msgspec.Struct):
    until: deque[tuple[float, Mapping[str, int]]] = msgspec.field(default_factory=deque)
    """When each is not counted any more: the earliest first."""
    sums: dict[str, int] = {}

    def count(self, amounts: Mapping[str, int], sign: int) -> None:
        for name, amount in amounts.items():
            self.sums[name] = self.sums.get(name, 0) + sign * amount


class Given:
    def __init__(self) -> None:
        self._given: dict[str, _OfNode] = {}

    def add(self, node: str, amounts: Mapping[str, int], now: float) -> None:
        """Negative amounts: they were given back."""
        given = self._given.setdefault(node, _OfNode())
        given.until.append((now + SECONDS, amounts))
        given.count(amounts, 1)

    def forget(self, node: str) -> None:
        """It has reported, or is gone."""
        self._given.pop(node, None)

    def expire(self, now: float) -> list[str]:
        """Nodes of which less is counted than before."""
        changed = [node for node, given in self._given.items() if given.until[0][0] <= now]
        for node in changed:
            given = self._given[node]
            while given.until and given.until[0][0] <= now:
                given.count(given.until.popleft()[1], -1)
            if not given.until:
                del self._given[node]
        return changed

    def off(self, node: str, available: Mapping[str, int]) -> dict[str, int]:
        """What is left of these amounts."""
        left = dict(available)
        given = self._given.get(node)
        if given is not None:
            for name, amount in given.sums.items():
                if name in left:
                    left[name] -= amount
        return left
