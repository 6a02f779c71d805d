"""How much of the workers' output is passed on: so many bytes a second of one file, and of all of a node's together.

A bucket that fills with time; what it does not allow stays in the file for later. Who is too far behind is skipped
ahead, so that what drivers see is new: a person reads a few lines a second, and the files have them all. The clock is
an argument.
"""

from __future__ import annotations

import msgspec

_FAR_BEHIND = 1 << 20
"""Without leave to read more."""
_HOPELESS = 8 << 20
_BEHIND_AFTER = 64 << 10


class Pace(msgspec.Struct, eq=False):
    rate: int
    """Bytes a second."""
    burst: int
    """Bytes that may come at once."""
    _tokens: float = 0.0
    _filled: float = 0.0

    @classmethod
    def of_worker(cls) -> Pace:
        return cls(256 << 10, 4 << 20)

    @classmethod
    def of_node(cls) -> Pace:
        return cls(1 << 20, 16 << 20)

    def left(self, now: float) -> int:
        """Bytes that may be read now."""
        most = float(self.burst)
        # The first time the bucket is full.
        self._tokens = min(most, self._tokens + (now - self._filled) * self.rate) if self._filled else most
        self._filled = now
        return int(self._tokens)

    def take(self, size: int) -> None:
        self._tokens -= size


def too_far(behind: int, may: int) -> int:
    """How much of it is to be left out, where ``may`` bytes may be read now."""
    return behind - _BEHIND_AFTER if behind > (_HOPELESS if may > _BEHIND_AFTER else _FAR_BEHIND) else 0
