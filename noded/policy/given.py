"""What was given away on other nodes since they reported: counted as taken, for a moment.

A node reports when what it has free has changed. What is taken and given back in between it never tells of, so nothing
given is counted for long: by then it is either in a report, or over.
"""

from __future__ import annotations

from collections.abc import Mapping

SECONDS = 0.5


class Given:
    def __init__(self) -> None:
        self._given: dict[str, list[tuple[float, Mapping[str, int]]]] = {}

    def add(self, node: str, amounts: Mapping[str, int], now: float) -> None:
        """Negative amounts: they were given back."""
        self._given.setdefault(node, []).append((now + SECONDS, amounts))

    def forget(self, node: str) -> None:
        """It has reported, or is gone."""
        self._given.pop(node, None)

    def expire(self, now: float) -> list[str]:
        """Nodes of which less is counted than before."""
        changed = [node for node, given in self._given.items() if given[0][0] <= now]
        for node in changed:
            left = [each for each in self._given[node] if each[0] > now]
            if left:
                self._given[node] = left
            else:
                del self._given[node]
        return changed

    def off(self, node: str, available: Mapping[str, int]) -> dict[str, int]:
        """What is left of these amounts."""
        left = dict(available)
        for _, amounts in self._given.get(node, ()):
            for name, amount in amounts.items():
                if name in left:
                    left[name] -= amount
        return left
