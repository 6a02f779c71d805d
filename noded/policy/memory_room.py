"""Whether a node has the memory to begin something, as its memory monitor last saw it (``node/memory.py``).

Above the threshold nothing new begins, until there is a little more room than just enough, or there has been just
enough for a while. What was ended for want of memory begins again when there is as much room as it had used then, and
half as much again each time that was too little; but after a minute without a further end it is tried. Where nothing
else runs, whose end could make room, one thing begins all the same. So nothing waits for ever.
"""

from __future__ import annotations

import msgspec

_MARGIN = 50
"""The pressure is over when a 50th of the memory is free below the threshold."""
_SECONDS = 5.0
"""Or after so many seconds below it."""
_TRY_AGAIN = 60.0
_MOST_KEPT = 1000

Key = tuple[bytes, int]
"""Of what waits: a client and its class of tasks, or an actor and 0."""


class MemoryRoom(msgspec.Struct):
    used: int = 0
    limit: int = 0
    threshold: int = 0
    """Bytes of ``limit``; 0: nobody watches."""
    pressed: bool = False
    needs: dict[Key, tuple[int, float]] = {}
    """Bytes that what was ended for want of memory is known to need, and until when it waits for them."""
    _above: float = 0.0
    """When it was last above the threshold."""

    @property
    def tight(self) -> bool:
        """Somebody may have to wait."""
        return self.pressed or bool(self.needs)

    @property
    def free(self) -> int:
        return self.threshold - self.used

    def seen(self, used: int, limit: int, threshold: int, now: float) -> bool:
        """What is in use now; True when that may change who waits."""
        before = self.pressed, self.free
        self.used, self.limit, self.threshold = used, limit, threshold
        if used > threshold:
            self.pressed, self._above = True, now
        elif self.free >= limit // _MARGIN or now - self._above > _SECONDS:
            self.pressed = False
        return self.pressed != before[0] or (bool(self.needs) and self.free > before[1])

    def ended(self, key: Key, used: int, now: float) -> None:
        """What this key stands for was ended when it used so much, and is to run again."""
        before, _ = self.needs.pop(key, (0, 0.0))
        self.needs[key] = max(used, before + before // 2), now + _TRY_AGAIN
        while len(self.needs) > _MOST_KEPT:
            del self.needs[next(iter(self.needs))]

    def forget(self, prefix: bytes) -> None:
        """This client has ended."""
        for key in [key for key in self.needs if key[0] == prefix]:
            del self.needs[key]

    def refuse(self, key: Key, others_run: bool, now: float) -> str:
        """Why it may not begin now, or "". ``others_run``: something whose end can make room."""
        if not others_run or not self.tight:
            return ""
        if self.pressed:
            return (
                f"the node has too little memory free: {size(self.used)} of {size(self.limit)} are in use, and above "
                f"{size(self.threshold)} nothing new begins while something runs"
            )
        need, until = self.needs.get(key, (0, 0.0))
        if need > self.free and now < until:
            return (
                f"it was ended for want of memory when it used {size(need)}, and {size(max(0, self.free))} are free "
                f"below the node's threshold of {size(self.threshold)}"
            )
        return ""


def size(amount: int) -> str:
    return f"{amount / 2**20:.0f} MiB" if amount < 10 << 30 else f"{amount / 2**30:.1f} GiB"


_FOR_PROCESSES = 256 << 20


def store_stops(limit: int, threshold: float) -> int:
    """With so many bytes in use the object store takes no more, and gives back what is beyond: before anybody is ended
    there is room for a worker or two, and for what they do.
    """
    return int(limit * threshold) - min(_FOR_PROCESSES, limit // 5)
