"""The cause of an end, from what is known of it; and when to give up on processes that fail as they start."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from noded.policy import deaths, reasons
from noded.policy.deaths import Ending, Starts, judge

MIB = 1 << 20
UNREADABLE = {"oom_before": None, "oom_after": None}
QUIET = {"oom_before": 4, "oom_after": 4}
KILLED = {"oom_before": 4, "oom_after": 5, "max_rss": 90 * MIB}


@pytest.mark.parametrize(
    ("known", "kind", "words"),
    [
        ({"code": 3}, "exit", "exited by itself with code 3"),
        ({"code": 0}, "exit", "exited by itself with code 0"),
        ({"signal": signal.SIGKILL, **QUIET}, "signal", "killed by SIGKILL, not by noded, and not by the kernel"),
        (
            {"signal": signal.SIGKILL, **UNREADABLE},
            "signal",
            "SIGKILL, not by noded; whether for want of memory cannot",
        ),
        ({"signal": signal.SIGTERM}, "signal", "killed by SIGTERM, not by noded"),
        ({"signal": 40}, "signal", "killed by signal 40, not by noded"),
        ({"signal": signal.SIGSEGV}, "crash", "crashed by SIGSEGV"),
        ({"signal": signal.SIGABRT, **KILLED}, "crash", "crashed by SIGABRT"),
        ({"signal": signal.SIGKILL, **KILLED}, "oom", "the machine had none left; it had used 90 MiB"),
        ({"signal": signal.SIGKILL, "limit": 100 * MIB, **KILLED}, "oom", "limit 100 MiB for all of its control group"),
        ({"signal": signal.SIGTERM, **KILLED}, "signal", "SIGTERM"),
        ({"code": 1, "started": False}, "start", "exited with code 1 before it was ready"),
        ({"signal": signal.SIGSEGV, "started": False}, "start", "crashed by SIGSEGV before it was ready"),
        ({"signal": signal.SIGKILL, "started": False, **QUIET}, "signal", "SIGKILL, not by noded"),
        ({"signal": signal.SIGKILL, "started": False, **KILLED}, "oom", "out of memory"),
        (
            {"signal": signal.SIGKILL, "own_limit": 70 * MIB, **KILLED},
            "memory_limit",
            "its limit (memory=), 70 MiB, and so fast that the kernel ended it; it had 90 MiB in use at most",
        ),
        ({}, "unseen", "while the daemon was away"),
        ({"signal": signal.SIGKILL, "asked": True, **QUIET}, "unseen", "the node's daemon before this one ended it"),
    ],
)
def test_what_noded_did_not_end(known: dict[str, Any], kind: str, words: str) -> None:
    found, sentence = judge(Ending(**known))

    assert found == kind and words in sentence


@pytest.mark.parametrize("kind", sorted(deaths.KINDS.keys() - {deaths.RETIRED, deaths.IDLE}))
@pytest.mark.parametrize("known", [{"code": 0}, {"code": 7}, {"signal": signal.SIGKILL, "asked": True}, {}])
def test_who_ends_it_says_why(kind: str, known: dict[str, Any]) -> None:
    assert judge(Ending(kind=kind, reason="as it was told", **known)) == (kind, "as it was told")


def test_one_that_was_to_end_later_may_die_before() -> None:
    retired = Ending(code=0, kind=deaths.RETIRED, reason="it has run f 3 times (max_calls)")

    assert judge(retired) == (deaths.RETIRED, retired.reason)
    kind, sentence = judge(replace(retired, code=5))
    assert kind == deaths.EXIT and "code 5" in sentence and retired.reason in sentence
    assert judge(replace(retired, code=None, signal=signal.SIGSEGV))[0] == deaths.CRASH
    forced = replace(retired, code=None, signal=signal.SIGKILL, asked=True)
    assert judge(forced) == (deaths.RETIRED, retired.reason)


def test_pauses_grow_and_hope_ends() -> None:
    starts = Starts(first=0.02, longest=1.0, patience=3)

    pauses = [starts.failed(deaths.START) for _ in range(10)]
    assert pauses == sorted(pauses) and pauses[0] == 0.04 and pauses[-1] == 1.0
    assert starts.hopeless
    starts.worked()
    assert not starts.hopeless and starts.failed(deaths.START) == pauses[0]


def test_what_was_killed_from_outside_says_nothing_of_the_next() -> None:
    starts = Starts(first=0.02, longest=1.0, patience=3)

    for _ in range(5):
        starts.failed(deaths.SIGNAL)
    starts.failed(deaths.START)
    starts.failed(deaths.OOM)
    assert not starts.hopeless
    starts.failed(deaths.START)
    assert starts.hopeless


def test_the_page_has_the_same_list() -> None:
    page = (Path(__file__).parents[2] / "docs/why.md").read_text()
    missing = [kind for kind in deaths.KINDS if f"`{kind}`" not in page]

    assert not missing, f"docs/why.md does not explain {missing}"


def test_the_page_has_the_reasons_of_what_waits() -> None:
    page = (Path(__file__).parents[2] / "docs/why.md").read_text()
    waits, _, ended = page.partition("## It has ended")

    assert not [kind for kind in reasons.KINDS if f"`{kind}`" not in waits]
    assert not [kind for kind in deaths.KINDS if f"`{kind}`" not in ended]
    told = set(re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", waits, re.MULTILINE))
    rows = {kind for cell in told for kind in re.findall(r"`(\w+)`", cell)}
    assert rows == set(reasons.PENDING), "the page has kinds that nobody gives, or lacks some"
