"""How much of the workers' output is passed on: so many bytes a second of one file, and of all of a node's together.

A bucket that fills with time; what it does not allow stays in the file for later. Who is too far behind is skipped
ahead, so that what drivers see is new. The clock is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass

_WORKER_RATE = 1 << 20
_NODE_RATE = 4 << 20
_BURST_SECONDS = 2
_FAR_BEHIND = 8 << 20
_BEHIND_AFTER = 256 << 10


@dataclass(eq=False)
class Pace:
    rate: int
    """Bytes a second."""
    _tokens: float = 0.0
    _filled: float = 0.0

    @classmethod
    def of_worker(cls) -> Pace:
        return cls(_WORKER_RATE)

    @classmethod
    def of_node(cls) -> Pace:
        return cls(_NODE_RATE)

    def left(self, now: float) -> int:
        """Bytes that may be read now."""
        most = float(self.rate * _BURST_SECONDS)
        # The first time the bucket is full.
        self._tokens = min(most, self._tokens + (now - self._filled) * self.rate) if self._filled else most
        self._filled = now
        return int(self._tokens)

    def take(self, size: int) -> None:
        self._tokens -= size

    @staticmethod
    def too_far(behind: int) -> int:
        """How much of it is to be left out."""
        return behind - _BEHIND_AFTER if behind > _FAR_BEHIND else 0
