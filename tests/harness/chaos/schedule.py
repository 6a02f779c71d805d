"""Which faults come when: a pure function of a seed, so that a run can be repeated, and a file to repeat it from.

Faults come in bursts; between bursts it is quiet, and sometimes calm for so long that whatever waits must go on. What
may not happen together (`conflict`) is never planned together:

- A node that is lost (`node-crash`: daemon and spawner at once) is lost alone: what the promise needs is a copy, or a
  home, that lives. Meanwhile only workers die on other nodes, and visitors come.
- A daemon or a spawner is not touched while another fault of the node's daemon or spawner lasts, or its restart does:
  together they are the loss of a node.
- A link has one fault at a time; so have Redis, and a worker that is stopped.
- Nobody is silent for 15 s, so no actor is frozen and no node declared dead: test_partitions.py is about these.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

HEAD = "head"
KINDS = {
    "worker-kill": 10,
    "worker-stop": 5,
    "daemon-kill": 8,
    "daemon-stop": 4,
    "spawner-kill": 4,
    "spawner-stop": 3,
    "node-crash": 4,
    "link-down": 3,
    "link-in": 2,
    "link-out": 2,
    "link-both": 2,
    "redis-kill": 4,
    "redis-stop": 3,
}
"""How often, beside each other. `spawner-kill` takes the node's workers along."""
VISIT, VISIT_KILLED = "visit", "visit-killed"
"""A driver that comes, works, and ends or is killed."""
KILLS_WORKERS = frozenset({"worker-kill", "spawner-kill", "node-crash"})
LOSES_A_NODE = frozenset({"node-crash"})
OF_REDIS = frozenset({"redis-kill", "redis-stop"})
"""Where the head keeps its state, if the run is on Redis; it runs on the head's host."""

RECOVERY = 15.0
"""Seconds after a fault's end in which things may still wait for its consequences."""
_SETTLE = {"daemon-kill": 3.0, "spawner-kill": 6.0, "node-crash": 15.0, "redis-kill": 2.0}
"""Seconds after a fault's end in which its place is not touched again: the restart itself takes some."""


@dataclass(frozen=True)
class Fault:
    """`at`: seconds after the start; `seconds`: how long it lasts, or the pause before a restart; `pick`: which of
    several processes, as a part of 1.
    """

    number: int
    at: float
    kind: str
    node: str
    seconds: float
    pick: float

    def __str__(self) -> str:
        return f"#{self.number} {self.kind} of {self.node} at {self.at:.1f} s for {self.seconds:.1f} s"


def plan(seed: int, seconds: float, nodes: Sequence[str], *, redis: bool = False) -> list[Fault]:
    """Faults of a run of so many seconds, in order of time. `nodes` are names; one of them is the head."""
    rng = random.Random(seed)
    kinds = {kind: weight for kind, weight in KINDS.items() if redis or kind not in OF_REDIS}
    planned: list[Fault] = []
    now = 5.0
    bursts = 0
    while True:
        bursts += 1
        last = now
        for _ in range(rng.choice([1, 1, 2, 2, 3, 4])):
            kind = rng.choices(list(kinds), list(kinds.values()))[0]
            fault = _one(rng, len(planned), now + 3 * rng.random(), kind, nodes)
            if fault.at + fault.seconds < seconds - 5 and not any(conflict(fault, other) for other in planned):
                planned.append(fault)
                last = max(last, fault.at + fault.seconds)
        calm = bursts % 4 == 0
        now = last + (RECOVERY + 10 * rng.random() + 5 if calm else 2 + 6 * rng.random())
        if now >= seconds - 5:
            break
    planned += _visits(rng, seconds, nodes, len(planned))
    return sorted(planned, key=lambda fault: fault.at)


def conflict(one: Fault, other: Fault) -> bool:
    """Whether they may not happen together, where they overlap in time."""
    if one.at >= _end(other) or other.at >= _end(one) or {one.kind, other.kind} & {VISIT, VISIT_KILLED}:
        return False
    if one.kind in LOSES_A_NODE or other.kind in LOSES_A_NODE:
        rest = other if one.kind in LOSES_A_NODE else one
        return _subject(rest) != "worker" or one.node == other.node
    return one.node == other.node and _subject(one) == _subject(other)


def write(path: Path, faults: Sequence[Fault]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(asdict(fault)) + "\n" for fault in faults))


def read(path: Path) -> list[Fault]:
    return [Fault(**json.loads(line)) for line in path.read_text().splitlines()]


def _one(rng: random.Random, number: int, at: float, kind: str, nodes: Sequence[str]) -> Fault:
    subject, _, deed = kind.partition("-")
    # Drawn in any case, so that one kind's needs do not move the choices of those after it.
    node, part, pick = rng.choice(nodes), rng.random(), rng.random()
    if deed == "stop":
        seconds = 0.2 + 7.8 * part**2
    elif subject == "link":
        seconds = 0.5 + 9.5 * part**2
    elif kind == "worker-kill":
        seconds = 0.0
    else:
        seconds = 0.0 if kind == "spawner-kill" else 10 * part**3
    return Fault(number, round(at, 2), kind, HEAD if kind in OF_REDIS else node, round(seconds, 2), round(pick, 4))


def _visits(rng: random.Random, seconds: float, nodes: Sequence[str], number: int) -> list[Fault]:
    found = []
    at = 8.0
    while at < seconds - 25:
        kind = rng.choice([VISIT, VISIT, VISIT_KILLED])
        fault = Fault(
            number, round(at, 2), kind, rng.choice(nodes), round(2 + 6 * rng.random(), 2), round(rng.random(), 4)
        )
        found.append(fault)
        number += 1
        at += 15 + 15 * rng.random()
    return found


def _subject(fault: Fault) -> str:
    subject = fault.kind.partition("-")[0]
    return "daemon" if subject == "spawner" else subject


def _end(fault: Fault) -> float:
    return fault.at + fault.seconds + _SETTLE.get(fault.kind, 0.5)
