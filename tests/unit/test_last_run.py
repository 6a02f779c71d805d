"""What `why` says of a task whose maker has ended, from what nodes know of its runs."""

from __future__ import annotations

from typing import Any

from noded.policy import deaths, reasons
from noded.policy.last_run import DIED, RAISED, RETURNED, RUNNING, told

TASK = "ab" * 16
GONE = "its maker has ended"


def run(outcome: str, start: float, error: str = "") -> dict[str, Any]:
    known = {"name": "f", "start": start, "outcome": outcome, "error": error, "worker": "w", "pid": 7}
    return {"run": known, "death": {}}


def death(kind: str, since: float) -> dict[str, Any]:
    known = {"kind": kind, "cause": kind, "reason": "it ended so", "ended_at": since + 1}
    return {"run": {}, "death": {**known, "running": [{"task": TASK, "name": "f", "since": since}]}}


def test_a_later_run_tells_more_than_a_death() -> None:
    found = told(TASK, [death(deaths.EXIT, 1.0), run(DIED, 1.0), run(RETURNED, 2.0), {}], GONE)
    assert (found["kind"], found["pid"]) == (reasons.DONE_OR_DROPPED, 7) and GONE in found["reason"]
    found = told(TASK, [death(deaths.EXIT, 1.0), run(RAISED, 2.0, "KeyError")], GONE)
    assert (found["kind"], found["cause"]) == (reasons.FAILED, reasons.RAISED) and "KeyError" in found["reason"]
    assert told(TASK, [run(RUNNING, 2.0), death(deaths.EXIT, 1.0)], GONE)["kind"] == reasons.RUNNING


def test_a_death_that_may_have_been_followed_by_another_try_is_no_end() -> None:
    for traces in ([death(deaths.EXIT, 3.0), run(RETURNED, 2.0)], [run(DIED, 3.0), death(deaths.EXIT, 3.0)]):
        found = told(TASK, traces, GONE)
        assert (found["kind"], found["state"]) == (reasons.OWNER_GONE, "lost")
        assert found["last_attempt"]["kind"] == deaths.EXIT and "it ended so" in found["reason"]
    assert told(TASK, [run(DIED, 3.0)], GONE)["last_attempt"]["kind"] == deaths.UNSEEN


def test_who_ended_with_its_maker_has_failed() -> None:
    found = told(TASK, [run(DIED, 3.0), death(deaths.JOB_ENDED, 3.0)], GONE)
    assert (found["kind"], found["state"], found["cause"]) == (reasons.FAILED, "failed", deaths.JOB_ENDED)


def test_without_a_trace_only_the_makers_end_is_known() -> None:
    assert told(TASK, [], GONE) == {"state": "lost", "kind": reasons.OWNER_GONE, "reason": GONE}
    assert told(TASK, [{"run": {}, "death": {}}], GONE)["kind"] == reasons.OWNER_GONE
