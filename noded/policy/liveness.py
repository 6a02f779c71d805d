"""Whether a node is alive, as the head judges it, and when a node that hears nothing must stop its restartable actors.

What holds, whatever is lost, late or stopped: before the head says DEAD, and may start a node's actors elsewhere, the
node's own deadline (``Guard.until``) has passed, and it never moves past that moment again. For the head counts from
the arrival of a heartbeat, the node from its sending, and the node's time is shorter. The node's deadline has to be
kept by a process that does not stop with the daemon. All times are seconds of CLOCK_MONOTONIC; the head's are those of
its ``Attention``, which never runs ahead of it.
"""

from __future__ import annotations

from enum import Enum

SILENT_AWAY = 5.0
RESET_DEAD = 60.0
SILENT_DEAD = 30.0
FREEZE_AFTER = 15.0
HEAD_GRACE = 600.0


class State(Enum):
    ALIVE = "alive"
    AWAY = "away"
    DEAD = "dead"


class Attention:
    """The judge's own clock: while it was stopped, or too busy to tick, it did not listen, so that does not count."""

    def __init__(self, now: float, period: float) -> None:
        self._last = now
        self._most = 2 * period
        self.now = 0.0
        """Attended seconds at the last tick; what arrives between two ticks arrives now."""

    def tick(self, now: float) -> float:
        """Attended seconds. Call it every period, after all that has arrived was read; then judge."""
        self.now += min(max(now - self._last, 0.0), self._most)
        self._last = now
        return self.now


class Liveness:
    """One incarnation of a node, as its head sees it; times are attended seconds.

    A head that has restarted makes one for each node in its storage that is not DEAD there, and says ``reset``. A reset
    of a connection that another has already replaced is none.
    """

    def __init__(self, now: float) -> None:
        self._heard = now
        self._reset: float | None = None
        self._dead = False

    def heard(self, now: float) -> None:
        self._heard = max(self._heard, now)

    def reset(self, now: float) -> None:
        """Its connection is closed."""
        if self._reset is None:
            self._reset = now

    def connected(self, now: float) -> None:
        self._reset = None
        self.heard(now)

    def judge(self, now: float) -> State:
        """DEAD is final: write it down before anything acts on it, and acknowledge none of its heartbeats any more."""
        # Never while it may have had an acknowledgement lately, also where a reset was reported that was none.
        silent = now - self._heard >= SILENT_DEAD
        if silent and (self._reset is None or now - self._reset >= RESET_DEAD):
            self._dead = True
        if self._dead:
            return State.DEAD
        return State.AWAY if self._reset is not None or now - self._heard >= SILENT_AWAY else State.ALIVE


class Guard:
    """A node's view of its head. A request to join is a heartbeat too: it is sent, and the welcome acknowledges it.

    ``until``: the deadline that holds already, when the daemon comes back to a node that has one. Without it the node
    is frozen until its first heartbeat is acknowledged.
    """

    def __init__(self, now: float, head_grace: float = HEAD_GRACE, until: float | None = None) -> None:
        self._grace = head_grace
        self._met = now
        self._sent: dict[int, float] = {}
        self._until = now if until is None else until

    def sent(self, seq: int, now: float) -> None:
        """A heartbeat; no number is used twice."""
        while self._sent and next(iter(self._sent.values())) <= now - FREEZE_AFTER:
            del self._sent[next(iter(self._sent))]  # its acknowledgement would come too late to mean anything
        self._sent[seq] = now

    def acked(self, seq: int, now: float) -> None:
        self._met = now
        sent = self._sent.pop(seq, None)
        if sent is not None:
            self._until = max(self._until, sent + FREEZE_AFTER)

    def refused(self, tried: float, now: float) -> None:
        """ECONNREFUSED at ``now``, of an attempt begun at ``tried``: since then the head's process was not there.

        So it has not judged, and whoever follows it begins to count later. What is frozen stays so: the head may have
        said DEAD before it ended.
        """
        if not self.frozen(now):
            self._until = max(self._until, tried + FREEZE_AFTER)

    @property
    def until(self) -> float:
        """When restartable actors must have stopped. Tell it to who keeps it, before anything relies on it."""
        return self._until

    def frozen(self, now: float) -> bool:
        return now >= self._until

    def lost(self, now: float) -> bool:
        """The head was away for too long: the node ends. Ask after all that has arrived was read."""
        return now - self._met > self._grace
