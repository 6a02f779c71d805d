"""Which node each bundle of a placement group goes to: a pure function of the bundles and the nodes.

Amounts are in fixed-point units, GPUs among them: which devices they become is decided on the node. PACK takes few
nodes and SPREAD many, as far as that is possible; STRICT_PACK wants all bundles on one node, STRICT_SPREAD each on one
of its own. ``Never`` is said only where it is proven that these nodes could not hold the bundles even if nothing were
in use. The search for PACK and SPREAD ends after ``_STEPS`` steps; a place it has not found by then is a ``Wait``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from noded.policy import labels
from noded.policy.nodes import Amounts, NodeView
from noded.resources import UNIT

STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
_STEPS = 2_000


class Assignment(msgspec.Struct, frozen=True):
    """``nodes[i]`` is the id of the node for bundle i."""

    nodes: tuple[str, ...]


class Wait(msgspec.Struct, frozen=True):
    """It would fit if less were in use; the reason says what is short."""

    reason: str


class Never(msgspec.Struct, frozen=True):
    """It does not fit these nodes even when nothing is in use; the reason has the numbers."""

    reason: str


def assign(
    bundles: Sequence[Amounts], nodes: Sequence[NodeView], strategy: str, selectors: Sequence[str] = ()
) -> Assignment | Wait | Never:
    """``selectors[i]``: what the labels of bundle i's node must be, as in ``Place.labels``."""
    if not nodes:
        return Wait("there is no node")
    problem = _Problem(bundles, nodes, [node.available for node in nodes], selectors)
    found = _solve(problem, strategy)
    if found is not None:
        return Assignment(tuple(nodes[j].id for j in found))
    if_empty = _Problem(bundles, nodes, [node.total for node in nodes], selectors)
    reason = _why_never(if_empty, strategy)
    if reason:
        return Never(reason)
    if _solve(if_empty, strategy) is None and not if_empty.gave_up:
        return Never(f"its {len(bundles)} bundles would fit one by one, but not side by side as {strategy} wants them")
    return Wait(_why_wait(problem))


class _Problem:
    """Bundles, the room on each node, and who may go where."""

    def __init__(
        self, bundles: Sequence[Amounts], nodes: Sequence[NodeView], rooms: list[Amounts], selectors: Sequence[str]
    ):
        self.bundles = bundles
        self.nodes = nodes
        self.rooms = rooms
        self.refusals = [[labels.refuse(s, node.labels) for node in nodes] for s in selectors] if any(selectors) else []
        self.gave_up = False
        """The search has ended before it had looked everywhere."""
        kinds: dict[object, int] = {}
        self.kinds = [
            kinds.setdefault((tuple(sorted(bundle.items())), selectors[i] if self.refusals else ""), len(kinds))
            for i, bundle in enumerate(bundles)
        ]
        """Bundles of the same kind may stand for each other."""

    def fits(self, bundle: int, node: int, room: Amounts) -> bool:
        return self.may(bundle, node) and _fits(self.bundles[bundle], room)

    def may(self, bundle: int, node: int) -> bool:
        return not self.refusals or not self.refusals[bundle][node]


def _fits(amounts: Amounts, room: Amounts) -> bool:
    for name, amount in amounts.items():
        if room.get(name, 0) < amount:
            return False
    return True


def _sum(bundles: Sequence[Amounts]) -> dict[str, int]:
    total: dict[str, int] = {}
    for bundle in bundles:
        for name, amount in bundle.items():
            total[name] = total.get(name, 0) + amount
    return total


def _solve(problem: _Problem, strategy: str) -> list[int] | None:
    if strategy == "STRICT_PACK":
        return _on_one(problem)
    if strategy == "STRICT_SPREAD":
        return _on_different(problem)
    if strategy == "PACK":
        return _on_one(problem) or _search(problem, _packing)
    return _on_different(problem) or _search(problem, _spreading)


def _on_one(problem: _Problem) -> list[int] | None:
    """All on the node that they fill most."""
    wanted = _sum(problem.bundles)
    count = len(problem.bundles)
    fitting = [
        j
        for j, room in enumerate(problem.rooms)
        if _fits(wanted, room) and all(problem.may(i, j) for i in range(count))
    ]
    if not fitting:
        return None
    best = min(fitting, key=lambda j: sum(_left(problem.rooms[j], wanted)))
    return [best] * count


def _left(room: Amounts, wanted: Amounts) -> list[float]:
    """What of the node remains, by name, as parts of what there is of it."""
    return [1 - amount / room[name] for name, amount in wanted.items() if room.get(name, 0) > 0]


def _on_different(problem: _Problem) -> list[int] | None:
    """Each on a node of its own: a matching, which is found when there is one."""
    count = len(problem.bundles)
    if count > len(problem.rooms):
        return None
    holder: dict[int, int] = {}
    node_of = [-1] * count
    for first in range(count):
        if not _settle(problem, first, holder, node_of):
            return None
    return node_of


def _settle(problem: _Problem, first: int, holder: dict[int, int], node_of: list[int]) -> bool:
    """Give it a node; where all that suit it are taken, by moving others on: an augmenting path, searched breadth first
    (H. W. Kuhn, "The Hungarian method for the assignment problem", 1955).
    """
    taker: dict[int, int] = {}
    """Node -> the bundle that would have it."""
    seekers = deque([first])
    looked: set[int] = set()
    """Kinds of bundles."""
    while seekers:
        bundle = seekers.popleft()
        if problem.kinds[bundle] in looked:
            continue
        looked.add(problem.kinds[bundle])
        for j, room in enumerate(problem.rooms):
            if j in taker or not problem.fits(bundle, j, room):
                continue
            taker[j] = bundle
            if j in holder:
                seekers.append(holder[j])
                continue
            node = j
            while node >= 0:
                mover = taker[node]
                holder[node] = mover
                node_of[mover], node = node, node_of[mover]
            return True
    return False


_Order = Callable[[_Problem, list[dict[str, int]], list[int], Sequence[int]], list[int]]


def _packing(problem: _Problem, rooms: list[dict[str, int]], used: list[int], rest: Sequence[int]) -> list[int]:
    """Nodes that have bundles already, then those that could take most of the rest."""

    known: dict[tuple[int, ...], int] = {}
    names = list(_sum([problem.bundles[bundle] for bundle in rest]))

    def takes(node: int) -> int:
        if problem.refusals:
            return count(node)
        key = tuple([rooms[node].get(name, 0) for name in names])
        found = known.get(key)
        if found is None:
            found = known[key] = count(node)
        return found

    def count(node: int) -> int:
        room, count = dict(rooms[node]), 0
        for bundle in rest:
            if problem.fits(bundle, node, room):
                count += 1
                for name, amount in problem.bundles[bundle].items():
                    room[name] -= amount
        return count

    return sorted(range(len(rooms)), key=lambda j: (not used[j], -takes(j)))


def _spreading(problem: _Problem, rooms: list[dict[str, int]], used: list[int], rest: Sequence[int]) -> list[int]:
    """Nodes with the fewest bundles first."""
    return sorted(range(len(rooms)), key=lambda j: used[j])


def _search(problem: _Problem, order: _Order) -> list[int] | None:
    """Try nodes in this order for the bundles, the largest first, and go back where that leads nowhere."""
    bundles = problem.bundles
    whole = _sum(problem.rooms)
    if not _fits(_sum(bundles), whole) or _at_most(problem) < len(bundles):
        return None
    by_size = sorted(
        range(len(bundles)),
        key=lambda i: -max((a / max(whole.get(n, 0), 1) for n, a in bundles[i].items()), default=0.0),
    )
    names = sorted({name for bundle in bundles for name in bundle})
    rooms = [dict(room) for room in problem.rooms]
    used = [0] * len(rooms)
    chosen: dict[int, int] = {}
    dead_ends: set[tuple[int, ...]] = set()
    stack: list[tuple[tuple[int, ...], list[int]]] = []
    for _ in range(_STEPS):
        if len(chosen) == len(bundles):
            return [chosen[i] for i in range(len(bundles))]
        at = len(chosen)
        bundle = by_size[at]
        if len(stack) == at:  # a new state
            now = at, *(room.get(name, 0) for room in rooms for name in names)
            fitting = [
                j
                for j in ([] if now in dead_ends else order(problem, rooms, used, by_size[at:]))
                if problem.fits(bundle, j, rooms[j])
            ]
            stack.append((now, fitting[::-1]))
        state, left = stack[-1]
        if left:
            _put(rooms, used, left[-1], bundles[bundle], 1)
            chosen[bundle] = left.pop()
        elif at == 0:
            return None
        else:
            dead_ends.add(state)
            stack.pop()
            last = by_size[at - 1]
            _put(rooms, used, chosen.pop(last), bundles[last], -1)
    problem.gave_up = True
    return None


def _at_most(problem: _Problem) -> int:
    """No more bundles than this fit, were they all as small as the smallest, by each name."""
    bundles = problem.bundles
    least = {name: min(bundle.get(name, 0) for bundle in bundles) for name in bundles[0]}
    asked = [(name, amount) for name, amount in least.items() if amount]
    if not asked:
        return len(bundles)
    return sum(min(room.get(name, 0) // amount for name, amount in asked) for room in problem.rooms)


def _put(rooms: list[dict[str, int]], used: list[int], node: int, bundle: Amounts, sign: int) -> None:
    used[node] += sign
    for name, amount in bundle.items():
        rooms[node][name] = rooms[node].get(name, 0) - sign * amount


# ---------------------------------------------------------------- reasons


def _why_never(problem: _Problem, strategy: str) -> str:
    """A proof that the rooms cannot hold the bundles, in words; empty where this finds none."""
    count, nodes = len(problem.bundles), len(problem.rooms)
    for i, bundle in enumerate(problem.bundles):
        allowed = [room for j, room in enumerate(problem.rooms) if problem.may(i, j)]
        if not allowed:
            return f"no node has the labels for bundle {i}: {problem.refusals[i][0]}"
        if not any(_fits(bundle, room) for room in allowed):
            return f"bundle {i} fits no node: {_numbers(bundle, _most(allowed))}"
    if strategy == "STRICT_SPREAD" and count > nodes:
        return (
            f"STRICT_SPREAD wants {count} nodes, one for each bundle, and there {'is' if nodes == 1 else 'are'} {nodes}"
        )
    wanted = _sum(problem.bundles)
    if strategy == "STRICT_PACK" and not any(_fits(wanted, room) for room in problem.rooms):
        return f"STRICT_PACK wants all bundles on one node: {_numbers(wanted, _most(problem.rooms))}"
    there = _sum(problem.rooms)
    if not _fits(wanted, there):
        return f"it is more than there is: {_numbers(wanted, there, 'the cluster has')}"
    return ""


def _why_wait(problem: _Problem) -> str:
    wanted = _sum(problem.bundles)
    there = _sum(problem.rooms)
    if not _fits(wanted, there):
        return f"not enough is free: {_numbers(wanted, there, 'free are')}"
    return "what is free is on too many nodes, or too few"


def _most(rooms: Sequence[Amounts]) -> dict[str, int]:
    most: dict[str, int] = {}
    for room in rooms:
        for name, amount in room.items():
            most[name] = max(most.get(name, 0), amount)
    return most


def _numbers(wanted: Amounts, there: Amounts, has: str = "a node has at most") -> str:
    short = {n: a for n, a in wanted.items() if there.get(n, 0) < a} or wanted
    return ", ".join(
        f"{name}: asks {amount / UNIT:g}, {has} {there.get(name, 0) / UNIT:g}" for name, amount in short.items()
    )
