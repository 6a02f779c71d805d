"""Alive, away, dead: never two copies of an actor run, whatever is lost, late or stopped; and the rules by example."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noded.policy.liveness import (
    FREEZE_AFTER,
    RESET_DEAD,
    SILENT_AWAY,
    SILENT_DEAD,
    Attention,
    Guard,
    Liveness,
    State,
)

ALIVE, AWAY, DEAD = State.ALIVE, State.AWAY, State.DEAD

# ---------------------------------------------------------------- a node and a head on one true clock

STEP = 0.5
PERIOD = 1.0


@dataclass(frozen=True)
class Phase:
    """What the world is like for a while."""

    seconds: float
    there: float | None
    """Delay of messages from the node to the head; None: they are lost."""
    back: float | None
    node_stopped: bool = False
    head_stopped: bool = False
    head_down: bool = False
    """The process is gone; its host refuses connections."""
    reset: bool = False
    """It begins with a reset, which both sides see at once, where they run; it may be that of an older connection."""
    daemon_restarts: bool = False


_DELAY = st.one_of(st.sampled_from([0.0, 0.0, 0.3, 3.0, None]), st.floats(0, 40))
_RARELY = st.sampled_from([False, False, False, True])
_PHASES = st.lists(
    st.builds(Phase, st.floats(0.5, 45), _DELAY, _DELAY, _RARELY, _RARELY, _RARELY, _RARELY, _RARELY),
    min_size=1,
    max_size=8,
)


@dataclass
class World:
    """The node tries to connect while it is not connected, and sends heartbeats while it is."""

    phases: list[Phase]
    restored_as_reset: bool
    now: float = 0.0
    seq: int = 0
    guard: Guard = field(default_factory=lambda: Guard(0.0))
    attention: Attention | None = None
    liveness: Liveness | None = None
    known: bool = False
    dead_at: float | None = None
    connected: bool = False
    tried: float = -1.0
    flying: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    to_head: list[Callable[[], None]] = field(default_factory=list)
    to_node: list[Callable[[], None]] = field(default_factory=list)
    order: itertools.count[int] = field(default_factory=itertools.count)

    def run(self) -> None:
        for phase in self.phases:
            self._begin(phase)
            end = self.now + phase.seconds
            while self.now < end:
                self._step(phase)
                self.now += STEP

    def _begin(self, phase: Phase) -> None:
        if phase.head_down:
            self.attention = self.liveness = None
            self.to_head.clear()
        if phase.reset or phase.head_down:
            self.to_head.append(self._head_sees_reset)
            self.to_node.append(self._node_sees_reset)
        if phase.daemon_restarts:  # only the deadline is left, which another process keeps
            self.guard = Guard(self.now, until=self.guard.until)
            self.connected = False

    def _step(self, phase: Phase) -> None:
        while self.flying and self.flying[0][0] <= self.now:
            heapq.heappop(self.flying)[2]()
        if not phase.node_stopped:
            self._node(phase)
        if not phase.head_down and not phase.head_stopped:
            self._head(phase)
        if self.dead_at is not None:
            assert self.guard.until <= self.dead_at, "it may still run, and its actors are started elsewhere"

    def _send(self, delay: float | None, arrives: Callable[[], None]) -> None:
        if delay is not None:
            heapq.heappush(self.flying, (self.now + delay, next(self.order), arrives))

    def _node(self, phase: Phase) -> None:
        inbox, self.to_node = self.to_node, []
        for message in inbox:
            message()
        if self.connected:
            self._beat(phase, joins=False)
        elif self.now - self.tried >= 2:
            self.tried = self.now
            self._beat(phase, joins=True)

    def _beat(self, phase: Phase, joins: bool) -> None:
        self.seq += 1
        seq, began = self.seq, self.now
        self.guard.sent(seq, began)

        def at_host() -> None:
            if self.phase_now().head_down:
                if joins:
                    self._send(phase.back, lambda: self.to_node.append(lambda: self.guard.refused(began, self.now)))
            else:
                self.to_head.append(at_head)

        def at_head() -> None:
            assert self.liveness is not None and self.attention is not None
            self.known = True
            if self.dead_at is not None:
                return
            if joins:
                self.liveness.connected(self.attention.now)
            else:
                self.liveness.heard(self.attention.now)
            self._send(phase.back, lambda: self.to_node.append(at_node))

        def at_node() -> None:
            self.guard.acked(seq, self.now)
            self.connected = self.connected or joins

        self._send(phase.there, at_host)

    def _head(self, phase: Phase) -> None:
        if self.attention is None or self.liveness is None:
            self.attention = Attention(self.now, PERIOD)
            self.liveness = Liveness(self.attention.now)
            if self.restored_as_reset:
                self.liveness.reset(self.attention.now)
        inbox, self.to_head = self.to_head, []
        for message in inbox:
            message()
        now = self.attention.tick(self.now)
        if self.known and self.dead_at is None and self.liveness.judge(now) is DEAD:
            self.dead_at = self.now

    def _head_sees_reset(self) -> None:
        if self.liveness is not None and self.attention is not None:
            self.liveness.reset(self.attention.now)

    def _node_sees_reset(self) -> None:
        self.connected = False

    def phase_now(self) -> Phase:
        start = 0.0
        for phase in self.phases:
            start += phase.seconds
            if self.now < start:
                return phase
        return self.phases[-1]


@given(phases=_PHASES, restored_as_reset=st.booleans())
def test_a_node_stops_its_actors_before_it_is_called_dead(phases: list[Phase], restored_as_reset: bool) -> None:
    World(phases, restored_as_reset).run()


FINE = Phase(20, 0.0, 0.0)


@pytest.mark.parametrize(
    "trouble",
    [
        Phase(100, None, None),
        Phase(100, 0.0, None),
        Phase(100, None, 0.0),
        Phase(100, None, None, reset=True),
        Phase(100, 0.0, 0.0, node_stopped=True),
    ],
    ids=str,
)
def test_the_world_of_that_test_kills(trouble: Phase) -> None:
    world = World([FINE, trouble], True)
    world.run()
    deaf = trouble.there is None or trouble.node_stopped
    assert (world.dead_at is not None) == deaf
    assert world.guard.frozen(world.now)


@pytest.mark.parametrize(
    "trouble",
    [
        Phase(100, 0.0, 0.0, head_stopped=True),
        Phase(100, 0.0, 0.0, head_down=True),
        Phase(1, 0.0, 0.0, reset=True),
        Phase(1, 0.0, 0.0, daemon_restarts=True),
        Phase(24, None, None),
        Phase(50, None, None, reset=True),
        Phase(24, 0.0, 0.0, node_stopped=True),
    ],
    ids=str,
)
def test_what_nobody_dies_of(trouble: Phase) -> None:
    world = World([FINE, trouble, FINE], True)
    world.run()
    assert world.dead_at is None and not world.guard.frozen(world.now)


def test_a_node_works_on_while_only_the_heads_process_is_down() -> None:
    world = World([FINE, Phase(300, 0.0, 0.0, head_down=True)], True)
    world.run()
    assert not world.guard.frozen(world.now)
    assert not world.guard.lost(world.now)
    assert world.guard.lost(world.now + 400)


# ---------------------------------------------------------------- the head


def test_silence() -> None:
    node = Liveness(0.0)
    node.heard(10.0)
    states = [node.judge(10.0 + s) for s in (0, SILENT_AWAY - 0.1, SILENT_AWAY, SILENT_DEAD - 0.1)]
    assert states == [ALIVE, ALIVE, AWAY, AWAY]
    node.heard(40.0)
    assert node.judge(40.0) is ALIVE
    assert node.judge(40.0 + SILENT_DEAD) is DEAD
    node.heard(71.0)
    node.connected(72.0)
    assert node.judge(72.0) is DEAD, "that is final"


def test_a_reset_counts_on_its_own() -> None:
    node = Liveness(0.0)
    node.heard(10.0)
    node.reset(20.0)
    node.reset(70.0)
    assert [node.judge(20.0 + s) for s in (0, SILENT_DEAD, RESET_DEAD - 0.1)] == [AWAY] * 3
    node.connected(79.9)
    assert node.judge(90.0 - 10.1 + SILENT_AWAY - 0.1) is ALIVE
    assert node.judge(79.9 + SILENT_DEAD) is DEAD
    other = Liveness(0.0)
    other.reset(1.0)
    assert other.judge(1.0 + RESET_DEAD) is DEAD


def test_what_is_heard_is_not_dead_whatever_was_reset() -> None:
    """The reset was that of an older connection: its heartbeats are acknowledged."""
    node = Liveness(0.0)
    node.connected(1.0)
    node.reset(2.0)
    node.heard(1.0 + RESET_DEAD)
    assert node.judge(2.0 + RESET_DEAD) is AWAY
    assert node.judge(1.0 + RESET_DEAD + SILENT_DEAD) is DEAD


@given(
    events=st.lists(
        st.tuples(st.floats(0, 70), st.sampled_from(["heard", "reset", "connected", "nothing"])),
        max_size=20,
    )
)
def test_judgements_against_the_history(events: list[tuple[float, str]]) -> None:
    node, now, dead = Liveness(0.0), 0.0, False
    heard, cut = 0.0, None
    for seconds, event in events:
        now += seconds
        if event == "heard":
            node.heard(now)
            heard = now
        elif event == "reset":
            node.reset(now)
            cut = now if cut is None else cut
        elif event == "connected":
            node.connected(now)
            heard, cut = now, None
        dead = dead or (now - heard >= SILENT_DEAD and (cut is None or now - cut >= RESET_DEAD))
        away = cut is not None or now - heard >= SILENT_AWAY
        assert node.judge(now) is (DEAD if dead else AWAY if away else ALIVE)


def test_the_judges_own_stops_do_not_count() -> None:
    clock = Attention(100.0, period=1.0)
    assert clock.now == 0.0
    assert clock.tick(101.0) == 1.0
    assert clock.tick(161.0) == 3.0
    assert clock.tick(162.0) == 4.0
    assert clock.tick(161.5) == 4.0
    assert clock.now == 4.0


@given(elapsed=st.lists(st.floats(0, 100), max_size=30))
def test_attended_time_is_never_ahead(elapsed: list[float]) -> None:
    clock, now = Attention(0.0, period=1.0), 0.0
    for seconds in elapsed:
        before, now = clock.now, now + seconds
        assert before <= clock.tick(now) <= min(now, before + 2.0) + 1e-9


# ---------------------------------------------------------------- the node


def test_the_deadline_counts_from_the_sending_of_what_was_acknowledged() -> None:
    guard = Guard(0.0)
    assert guard.frozen(0.0)
    for seq in range(1, 6):
        guard.sent(seq, float(seq))
    guard.acked(3, 9.0)
    assert guard.until == 3.0 + FREEZE_AFTER
    guard.acked(2, 9.5)
    guard.acked(99, 9.5)
    assert guard.until == 3.0 + FREEZE_AFTER
    assert not guard.frozen(17.9) and guard.frozen(18.0)
    guard.sent(6, 18.0)
    guard.acked(6, 18.5)
    assert not guard.frozen(18.5) and guard.until == 18.0 + FREEZE_AFTER


def test_an_acknowledgement_that_comes_too_late_thaws_nothing() -> None:
    guard = Guard(0.0)
    guard.sent(1, 0.0)
    for seq in range(2, 100):
        guard.sent(seq, float(seq))
    guard.acked(1, 99.0)
    guard.acked(50, 99.0)
    assert guard.frozen(99.0) and not guard.lost(99.0 + 600.0)
    guard.acked(99, 99.0)
    assert not guard.frozen(99.0)


def test_a_refusal_puts_the_deadline_off_but_does_not_thaw() -> None:
    guard = Guard(0.0, until=FREEZE_AFTER)
    guard.refused(tried=10.0, now=14.0)
    assert guard.until == 10.0 + FREEZE_AFTER
    guard.refused(tried=24.0, now=25.0)
    assert guard.until == 25.0 and guard.frozen(25.0)


def test_a_head_that_stays_away_is_lost_in_the_end() -> None:
    guard = Guard(0.0, head_grace=60.0)
    guard.sent(1, 1.0)
    guard.acked(1, 2.0)
    guard.refused(50.0, 50.0)
    assert not guard.lost(62.0) and guard.lost(62.1)
