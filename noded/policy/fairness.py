"""Which waiting request gets resources next: a pure function of the requests and what each of them lacks.

Rules: requests that fit are served round-robin over jobs and, within a job, in order of arrival. A request
that has waited longer than ``AGED`` seconds without fitting keeps the resources it lacks from smaller ones
behind it, so that it is not starved. While anything is over-committed nothing that needs it is granted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

AGED = 1.0


class Request(msgspec.Struct, frozen=True):
    """``turn``: when its job was last served (smaller = longer ago); ``since``: when it began to wait, in
    seconds; ``lacking``: the names of what is not free for it now.
    """

    resources: Mapping[str, int]
    turn: int
    since: float
    lacking: tuple[str, ...] = ()


def pick(requests: Sequence[Request], now: float) -> int | None:
    """The index of the request to serve now, or None."""
    kept_back: set[str] = set()
    best: int | None = None
    for index in sorted(range(len(requests)), key=lambda i: (requests[i].since, sorted(requests[i].resources.items()))):
        request = requests[index]
        if request.lacking:
            if now - request.since > AGED:
                kept_back.update(request.lacking)
            continue
        if kept_back and any(name in kept_back for name in request.resources):
            continue
        if best is None or request.turn < requests[best].turn:
            best = index
    return best
