"""Which waiting request gets resources next: a pure function of the requests and what is free.

Rules: requests that fit are served round-robin over jobs and, within a job, in order of arrival. A request
that has waited longer than ``AGED`` seconds without fitting keeps the resources it lacks from smaller ones
behind it, so that it is not starved. While anything is over-committed nothing that needs it is granted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

AGED = 1.0


@dataclass(frozen=True)
class Request:
    """``turn``: when its job was last served (smaller = longer ago); ``since``: when it began to wait, in
    seconds.
    """

    resources: Mapping[str, int]
    turn: int
    since: float


def pick(requests: Sequence[Request], available: Mapping[str, int], now: float) -> int | None:
    """The index of the request to serve now, or None."""
    kept_back: set[str] = set()
    best: int | None = None
    for index in sorted(range(len(requests)), key=lambda i: (requests[i].since, sorted(requests[i].resources.items()))):
        request = requests[index]
        lacking = [name for name, amount in request.resources.items() if available.get(name, 0) < amount]
        if lacking:
            if now - request.since > AGED:
                kept_back.update(lacking)
            continue
        if kept_back and any(name in kept_back for name in request.resources):
            continue
        if best is None or request.turn < requests[best].turn:
            best = index
    return best


def never_fits(resources: Mapping[str, int], total: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """What can never be satisfied: name -> (asked, there is)."""
    return {name: (amount, total.get(name, 0)) for name, amount in resources.items() if amount > total.get(name, 0)}
