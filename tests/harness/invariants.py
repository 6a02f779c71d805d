"""What nodes count must always add up: asked each second while things happen, and at the end, when all must be zero.

with Checker(cluster) as checker: ...
assert checker.answers and not checker.problems, checker.problems
for member in cluster.all.values(): settled(member, 30)
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any

from harness.members import Member, Members
from harness.wait import wait_for
from noded.cli.control import ControlError

MOMENT = 3.0
"""So long figures may be wrong: a node is asked while it changes."""


class Checker:
    """Asks each node each second, and keeps what must not be."""

    def __init__(self, cluster: Members) -> None:
        self.problems: list[str] = []
        self.answers = 0
        self._cluster = cluster
        self._since: dict[tuple[str, str], float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._check, name="checker", daemon=True)

    def _check(self) -> None:
        while not self._stop.wait(1.0):
            for member in list(self._cluster.all.values()):
                if not member.running or not member.ready:
                    continue
                try:
                    status = member.status()
                except (ControlError, AssertionError, OSError):
                    continue  # it has just been killed, or is on its way
                self.answers += 1
                self._look(member.name, status)

    def _look(self, name: str, status: dict[str, Any]) -> None:
        wrong = {}
        total = status["resources"]["total"]
        for resource, used in status["resources"]["used"].items():
            # Who waits lends its CPUs, perhaps to an actor or a group that stay, and has them again when it goes on.
            most = total[resource] * (2 if resource == "CPU" else 1)
            if used < 0 or used > most:
                wrong[resource] = f"{used:g} of {total[resource]:g} {resource} are in use"
        for figure in ("leases", "demands", "groups", "workers", "objects", "guests", "leases_elsewhere", "drivers"):
            if status[figure] < 0:
                wrong[figure] = f"there are {status[figure]} {figure}"
        store = status["store"]
        if not 0 <= store["used_bytes"] <= store["total_bytes"]:
            wrong["store"] = f"{store['used_bytes']} of {store['total_bytes']} bytes are in use"
        now = time.monotonic()
        for key in [key for key in self._since if key[0] == name and key[1] not in wrong]:
            del self._since[key]
        for what, text in wrong.items():
            if now - self._since.setdefault((name, what), now) > MOMENT:
                self.problems.append(f"{name}: for {MOMENT:g} s {text}")

    def __enter__(self) -> Checker:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(30)


def settled(member: Member, timeout: float) -> None:
    status = member.settle(timeout)
    wait_for(
        lambda: not left(member), lambda: f"{member} still counts {left(member)}; at first {left_in(status)}", timeout
    )


def left(member: Member) -> dict[str, Any]:
    return left_in(member.status())


def left_in(status: dict[str, Any]) -> dict[str, Any]:
    return {name: status[name] for name in ("groups", "guests", "leases_elsewhere") if status[name]}


def figures(cluster: Members) -> str:
    names = ("state", "resources", "leases", "demands", "groups", "guests", "leases_elsewhere", "workers", "actors")
    return "\n".join(
        f"{m.name}: { {name: status.get(name) for name in names} }"
        for m in cluster.all.values()
        if m.running and (status := m.status())
    )
