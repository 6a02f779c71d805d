"""How a storage is: what it tells of itself, the log of its troubles, and what ends the head."""

from __future__ import annotations

import asyncio
import logging
import time

import msgspec

log = logging.getLogger("noded.storage")


class Health(msgspec.Struct, frozen=True):
    """`degraded_since`: unix time, None while all is well. `journalled`: writes that are durable on this host and not
    yet in the backend. `waiting`: writes that are not durable yet. `why`: what is wrong, in words.
    """

    kind: str
    degraded_since: float | None = None
    journalled: int = 0
    waiting: int = 0
    why: str = ""


class Ending:
    """Why the head cannot go on: set once, by whoever notices first; set from the loop only."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._event = asyncio.Event()

    def set(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error
            self._event.set()

    async def wait(self) -> BaseException:
        await self._event.wait()
        assert self.error is not None
        return self.error


class Condition:
    """Degraded or not; said in the log once when that begins, and once when it is over. Any one thread may use it."""

    def __init__(self, what: str) -> None:
        self._what = what
        self.since: float | None = None
        self.why = ""

    def degrade(self, why: str, meanwhile: str) -> None:
        """`meanwhile`: what becomes of writes."""
        self.why = why
        if self.since is None:
            self.since = time.time()
            log.warning("the head's storage is degraded: %s: %s; %s", self._what, why, meanwhile)

    def recover(self, done: str) -> None:
        """`done`: what had to be done for it."""
        if self.since is not None:
            log.warning(
                "the head's storage is well again after %.1f s: %s: %s", time.time() - self.since, self._what, done
            )
        self.since, self.why = None, ""
