"""The long chaos run's schedule, rules and checks: what they would let pass, and what not."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from harness.chaos import schedule
from harness.chaos.logs import check_calls, check_once
from harness.chaos.promises import RECOVERY, Happening, calm_seconds, happened, verdict
from harness.chaos.schedule import LOSES_A_NODE, OF_REDIS, Fault, conflict, plan
from hypothesis import given
from hypothesis import strategies as st

NODES = ("head", "n1", "n2", "n3")


def fault(kind: str, node: str = "n1", at: float = 10.0, seconds: float = 1.0) -> Fault:
    return Fault(0, at, kind, node, seconds, 0.5)


@given(st.integers(0, 1 << 30), st.floats(30, 300))
def test_a_plan_keeps_its_rules_and_its_time(seed: int, seconds: float) -> None:
    faults = plan(seed, seconds, NODES)
    assert faults == plan(seed, seconds, NODES)
    assert [each.at for each in faults] == sorted(each.at for each in faults)
    assert all(each.at + each.seconds < seconds for each in faults)
    assert len({each.number for each in faults}) == len(faults)
    assert not [pair for pair in combinations(faults, 2) if conflict(*pair)]


def test_a_long_plan_has_everything_and_calms() -> None:
    faults = plan(1, 1200, NODES)
    assert {each.kind for each in faults} == {*schedule.KINDS, "visit", "visit-killed"} - OF_REDIS
    on_redis = plan(1, 1200, NODES, redis=True)
    assert {each.kind for each in on_redis} >= OF_REDIS
    assert {each.node for each in on_redis if each.kind in OF_REDIS} == {"head"}
    happened = [Happening(each.kind, each.node, each.at, each.at + each.seconds) for each in faults]
    no_visits = [each for each in happened if not each.kind.startswith("visit")]
    assert calm_seconds(no_visits, 0, 1200) > 60, "what hangs would not be found"


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    faults = plan(2, 300, NODES)
    schedule.write(tmp_path / "schedule", faults)
    assert schedule.read(tmp_path / "schedule") == faults


@pytest.mark.parametrize(
    "one, other, expected",
    [
        (fault("node-crash"), fault("node-crash", "n2"), True),
        (fault("node-crash"), fault("link-down", "n2"), True),
        (fault("node-crash"), fault("worker-kill", "n2"), False),
        (fault("node-crash"), fault("worker-kill"), True),
        (fault("node-crash"), fault("visit"), False),
        (fault("daemon-kill"), fault("spawner-kill"), True),
        (fault("daemon-kill"), fault("spawner-kill", "n2"), False),
        (fault("daemon-kill"), fault("link-in"), False),
        (fault("link-in"), fault("link-down"), True),
        (fault("spawner-kill"), fault("daemon-kill", at=14.0), True),
        (fault("spawner-kill"), fault("daemon-kill", at=30.0), False),
        (fault("redis-kill", "head"), fault("redis-stop", "head"), True),
        (fault("redis-kill", "head"), fault("daemon-kill", "head"), False),
        (fault("redis-kill", "head"), fault("node-crash", "head"), True),
    ],
)
def test_what_may_not_happen_together(one: Fault, other: Fault, expected: bool) -> None:
    assert conflict(one, other) is conflict(other, one) is expected


def error(
    op: str,
    name: str,
    since: float = 100.0,
    seen: float = 110.0,
    home: str = "head",
    kind: str = "",
    pid: int | None = None,
) -> dict[str, Any]:
    return {"op": op, "error": name, "since": since, "seen": seen, "home": home, "kind": kind, "pid": pid}


KILL = Happening("worker-kill", "n1", 105, 105, 77)
CRASH = Happening("node-crash", "n1", 104, 107)
STOP = Happening("daemon-kill", "n1", 104, 107)


@pytest.mark.parametrize(
    "what, history, right",
    [
        (error("once", "WorkerCrashedError"), [KILL], True),
        (error("once", "WorkerCrashedError"), [STOP], False),
        (error("once", "WorkerCrashedError", since=120, seen=130), [KILL], False),
        (error("once", "WorkerCrashedError", kind="signal", pid=77), [KILL], True),
        (error("once", "WorkerCrashedError", kind="signal", pid=78), [KILL, CRASH], False),
        (error("once", "WorkerCrashedError", kind="exit", pid=77), [KILL], False),
        (error("once", "WorkerNodeDiedError", kind="node_lost"), [KILL, CRASH], True),
        (error("once", "WorkerNodeDiedError", kind="node_lost"), [KILL], False),
        (error("plain", "ActorDiedError", kind="spawner", pid=77), [KILL], False),
        (error("once", "ObjectLostError"), [CRASH], False),
        (error("task", "WorkerCrashedError"), [KILL, CRASH], False),
        (error("plain", "ActorDiedError"), [KILL], True),
        (error("plain", "ActorUnavailableError"), [KILL], False),
        (error("plain", "ActorDiedError"), [STOP], False),
        (error("counter", "ActorUnavailableError"), [KILL], True),
        (error("counter", "ActorDiedError"), [CRASH], False),
        (error("counter", "ActorDiedError"), [Happening("node-crash", "head", 104, 107)], True),
        (error("retried", "ActorUnavailableError"), [KILL], False),
        (error("put", "ObjectLostError", home="n1"), [CRASH], True),
        (error("put", "ObjectLostError", home="n2"), [CRASH], False),
        (error("put", "ObjectLostError", home="n1"), [KILL, STOP], False),
        (error("result", "ObjectLostError", home="n1"), [CRASH], False),
        (error("get_actor", "GetTimeoutError", since=100, seen=131), [STOP], True),
        (error("get_actor", "GetTimeoutError", since=150, seen=181), [STOP], False),
    ],
)
def test_verdicts(what: dict[str, Any], history: list[Happening], right: bool) -> None:
    assert (verdict(what, history) == "") is right, verdict(what, history)


def test_what_goes_on_has_happened() -> None:
    assert happened([Happening("node-crash", "n1", 50)], LOSES_A_NODE, 100, 110)
    assert not happened([Happening("node-crash", "n1", 111)], LOSES_A_NODE, 100, 110)


def test_calm_is_what_is_left_between_faults_and_their_recovery() -> None:
    assert calm_seconds([], 10, 30) == 20
    assert calm_seconds([KILL], 100, 105 + RECOVERY + 4) == 5 + 4
    assert calm_seconds([KILL, STOP], 100, 107 + RECOVERY + 4) == 4 + 4
    assert calm_seconds([Happening("node-crash", "n1", 104)], 100, 200) == 4
    assert calm_seconds([KILL], 110, 110 + RECOVERY) == RECOVERY - (105 + RECOVERY - 110)


@pytest.mark.parametrize(
    "calls, answers, again, problem",
    [
        (["1 a", "1 b", "2 c"], [("a", 1, 1), ("c", 2, 1)], False, ""),
        (["1 a", "2 a"], [("a", 2, 1)], True, ""),
        (["1 a", "2 a"], [("a", 2, 1)], False, "ran twice"),
        (["1 a", "1 a"], [], True, "ran call a twice"),
        (["1 a", "2 b", "1 c"], [], True, "after instance 2 had begun"),
        (["1 a"], [("a", 1, 2)], True, "was nothing"),
        (["1 a", "1 b"], [("b", 1, 1)], True, "was a"),
    ],
)
def test_call_logs(calls: list[str], answers: list[tuple[str, int, int]], again: bool, problem: str) -> None:
    found = check_calls("actor", calls, answers, may_repeat=again)
    assert (problem in "\n".join(found)) if problem else not found, found


def test_at_most_once_logs() -> None:
    assert check_once(["a 1", "b 2"], ["a"]) == []
    assert "ran twice" in check_once(["a 1", "a 2"], [])[0]
    assert "never ran" in check_once(["a 1"], ["b"])[0]
