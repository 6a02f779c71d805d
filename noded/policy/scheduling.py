"""Which node a task's lease or an actor goes to: a pure function of the request, the nodes and a random generator.

By default (hybrid) the local node while it stays at or below a threshold of use, then the first by id that does, then
the least used; nodes with many bytes of the arguments come before all. ``Place`` may ask for spreading, for one node,
or for labels. Placement groups are not looked at here, see `bundles.py`, except that the resources of a bundle have
names of their own.

``Cluster`` answers without looking at all nodes: it keeps the nodes ordered by what they have of each resource that
was ever asked for. Where more than ``EXACT`` nodes may fit, it compares about ``LOOKS`` of them, evenly spaced in that
order from a random start, and goes through all of them only when none of these fits.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Protocol

import msgspec

from noded.policy import labels, where
from noded.policy.nodes import Amounts, Ids, Index, NodeView, keep
from noded.policy.reasons import LABELS_BUSY, NO_NODES, NODE_AWAY, NODE_BUSY, NODE_DRAINING, RESOURCES_BUSY
from noded.resources import UNIT

REASONS = (RESOURCES_BUSY, NODE_BUSY, LABELS_BUSY, NODE_AWAY, NODE_DRAINING, NO_NODES)
"""Why something waits for a node, see ``reasons.py``."""

EXACT = 100
LOOKS = 32
_INDEXED = (
    256  # resources, and texts of labels, that are kept in order; the oldest goes and is made anew when asked for
)


class Wish(where.Wish, Protocol):
    """What is read of a ``Place``."""

    @property
    def spread(self) -> bool: ...


class Go(msgspec.Struct, frozen=True):
    node: str


class Wait(msgspec.Struct, frozen=True):
    """It would fit if less were in use, or if a node came back; ``kind`` is one of ``REASONS``."""

    kind: str
    reason: str


class Never(msgspec.Struct, frozen=True):
    """It does not fit these nodes even when nothing is in use and all are back; the reason has the numbers."""

    reason: str


def pick(
    resources: Amounts,
    place: Wish,
    nodes: Sequence[NodeView],
    *,
    local: str,
    near: Mapping[str, int] = {},
    visited: Collection[str] = (),
    given: Mapping[str, int] = {},
    threshold: float = 0.5,
    rng: random.Random,
) -> Go | Wait | Never:
    """``Cluster.pick`` for one question: who asks often keeps a ``Cluster``."""
    return Cluster(nodes).pick(
        resources, place, local=local, near=near, visited=visited, given=given, threshold=threshold, rng=rng
    )


class _Request(msgspec.Struct, frozen=True):
    asks: Amounts
    local: str
    near: Mapping[str, int]
    visited: Collection[str]
    given: Mapping[str, int]
    threshold: float
    rng: random.Random


class Cluster:
    """The nodes, indexed. What it answers depends on their present views alone, not on how they came about."""

    def __init__(self, nodes: Iterable[NodeView] = ()) -> None:
        self._nodes = {node.id: node for node in nodes}
        self._free = Index(self._nodes, lambda node: node.available if node.schedulable else None)
        self._whole = Index(self._nodes, lambda node: node.total)
        self._matching: dict[str, tuple[Ids, Ids]] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[NodeView]:
        return iter(self._nodes.values())

    def get(self, id: str) -> NodeView | None:
        return self._nodes.get(id)

    def update(self, node: NodeView) -> None:
        """A new node, or a new view of one."""
        old = self._nodes.get(node.id)
        self._nodes[node.id] = node
        self._free.change(node.id, old, node)
        self._whole.change(node.id, old, node)
        if old is None or old.labels != node.labels:
            for text, (hard, soft) in self._matching.items():
                _sort_in(text, node, hard, soft)

    def remove(self, id: str) -> None:
        old = self._nodes.pop(id, None)
        if old is None:
            return
        self._free.change(id, old, None)
        self._whole.change(id, old, None)
        for hard, soft in self._matching.values():
            hard.put(id, False)
            soft.put(id, False)

    def pick(
        self,
        resources: Amounts,
        place: Wish,
        *,
        local: str,
        near: Mapping[str, int] = {},
        visited: Collection[str] = (),
        given: Mapping[str, int] = {},
        threshold: float = 0.5,
        rng: random.Random,
    ) -> Go | Wait | Never:
        """``near``: bytes of its arguments by node. ``given``: how many of its class each node was given (for spread).

        ``visited``: nodes that have sent it on. It is never sent back to one of them, so it comes to rest after as many
        steps as there are nodes; what has waited starts afresh, with none. The local node is the exception: it is
        taken when no other fits.
        """
        if not self._nodes:
            return Wait(NO_NODES, "there is no node")
        asks = {name: amount for name, amount in resources.items() if amount > 0}
        request = _Request(asks, local, near, set(visited) if visited else (), given, threshold, rng)
        if place.node:
            answer = self._of_one_node(request, place)
            if answer is not None:
                return answer
        hard, soft = self._with_labels(place.labels)
        for pool in (hard,) if hard is None or soft is None or len(soft) == len(hard) else (soft, hard):
            chosen = self._spread(request, pool) if place.spread else self._hybrid(request, pool)
            if chosen:
                return Go(chosen)
        if self._has_room(request, local, hard):
            return Go(local)
        return self._why_not(request, place.labels, hard)

    # ---------------------------------------------------------------- policies

    def _of_one_node(self, request: _Request, place: Wish) -> Go | Wait | Never | None:
        """None: anywhere."""
        node = self._nodes.get(place.node)
        if node is None:
            return None if place.soft else Never(where.refuse(place, "", {}))
        refusal = where.refuse(place, node.id, node.labels)
        possible = not refusal and _fits(request.asks, node.total)
        if place.soft:
            sent_on = node.id in request.visited and node.id != request.local
            if not possible or not node.schedulable or sent_on:
                return None
        name = f"the node that it is for, {_short(node.id)},"
        if refusal:
            return Never(f"{name} has not the labels that it asks for: {refusal}")
        if not possible:
            return Never(f"{name} can never satisfy it ({_numbers(request.asks, node.total, 'it has')}); ask for less")
        if not node.schedulable:
            kind, state = _absence(node)
            return Wait(kind, f"{name} takes nothing now: it is {state}")
        if not _fits(request.asks, node.available):
            return Wait(NODE_BUSY, f"{name} is full: {_numbers(request.asks, node.available, 'free are')}")
        return Go(node.id)

    def _hybrid(self, request: _Request, pool: Ids | None) -> str:
        local, use = request.local, self._use
        nearby = [id for id, size in request.near.items() if size > 0 and self._may(request, id, pool)]
        if nearby:
            most = max(request.near[id] for id in nearby)
            best = [id for id in nearby if request.near[id] == most]
            return local if local in best else min(best, key=lambda id: (use(request.asks, id), id))
        local_may = self._may(request, local, pool)
        if local_may and use(request.asks, local) <= request.threshold:
            return local
        found = self._look(request, pool)
        if not found:
            return ""
        uses = [(use(request.asks, id), id) for id in ([*found, local] if local_may else found)]
        low = [id for used, id in uses if used <= request.threshold]
        if low:
            return min(low)
        least = min(uses)[0]
        ties = [id for used, id in uses if used == least]
        return local if local in ties else request.rng.choice(ties)

    def _spread(self, request: _Request, pool: Ids | None) -> str:
        given, found = request.given, []
        if len(given) < len(self._nodes):  # then one that was given none, if any fits
            found = self._look(request, pool, given)
        found = found or self._look(request, pool)
        if not found:
            return ""
        return min(found, key=lambda id: (given.get(id, 0), self._use(request.asks, id), id))

    def _look(self, request: _Request, pool: Ids | None, given: Mapping[str, int] = {}) -> list[str]:
        """Some that may be taken and were given none; all where they are few; empty only when there is none."""
        ids, start = _fewest(self._free, request.asks, pool)
        count = len(ids) - start
        if count > EXACT:
            step = count // LOOKS
            some = ids[start + request.rng.randrange(step) :: step]
            found = [id for id in some if not given.get(id) and self._may(request, id, pool)]
            if found:
                return found
        return [id for id in islice(ids, start, None) if not given.get(id) and self._may(request, id, pool)]

    def _may(self, request: _Request, id: str, pool: Ids | None) -> bool:
        return id not in request.visited and self._has_room(request, id, pool)

    def _has_room(self, request: _Request, id: str, pool: Ids | None) -> bool:
        if pool is not None and id not in pool:
            return False
        node = self._nodes.get(id)
        return node is not None and node.schedulable and _fits(request.asks, node.available)

    def _use(self, asks: Amounts, id: str) -> float:
        """The part of the node in use with this on it, of what it asks for or, if that is nothing, of the CPUs."""
        node = self._nodes[id]
        highest = 0.0
        for name, amount in (asks or {"CPU": 0}).items():
            total = node.total.get(name, 0)
            used = (total - node.available.get(name, 0) + amount) / total if total > 0 else 1.0
            if used > highest:
                highest = used
        return highest

    def _with_labels(self, text: str) -> tuple[Ids | None, Ids | None]:
        """The nodes that it may have by their labels, and those of them that it prefers. None: all."""
        if not text:
            return None, None
        found = self._matching.get(text)
        if found is None:
            found = Ids(), Ids()
            for node in self._nodes.values():
                _sort_in(text, node, *found)
            keep(self._matching, text, found)
        return found

    # ---------------------------------------------------------------- reasons

    def _why_not(self, request: _Request, text: str, pool: Ids | None) -> Wait | Never:
        asks = request.asks
        if pool is not None and not pool:
            node = self._nodes[min(self._nodes)]
            return Never(
                f"no node has the labels that it asks for (of {_short(node.id)}: {labels.refuse(text, node.labels)}); "
                "change them, or start a node that has them"
            )
        holder = self._holder(asks, pool)
        if holder is None:
            return Never(self._why_never(asks, pool))
        if not holder.schedulable:
            kind, state = _absence(holder)
            those = f"{_short(holder.id)}, which is {state}"
            return Wait(kind, f"only nodes that are away or draining could hold {_amounts(asks)}, as {those}")
        kind, those = RESOURCES_BUSY, "one node"
        if pool is not None:
            kind, those = LABELS_BUSY, f"one of the {len(pool)} nodes that have its labels"
        back = [id for id in request.visited if self._has_room(request, id, pool)]
        if back:
            return Wait(
                kind, f"only nodes that have sent it on seem to have {_amounts(asks)} free: {_short(min(back))}"
            )
        most = {}
        for name in asks:
            top = self._free.top(name, pool)
            most[name] = self._nodes[top].available[name] if top else 0
        if _fits(asks, most):
            return Wait(kind, f"{_amounts(asks)} are free, but not all on {those}")
        return Wait(kind, f"not enough is free: {_numbers(asks, most, f'the most free on {those} is')}")

    def _holder(self, asks: Amounts, pool: Ids | None) -> NodeView | None:
        """A node that has enough in all, one that takes work before one that does not."""
        away = None
        ids, start = _fewest(self._whole, asks, pool)
        for id in islice(ids, start, None):
            node = self._nodes[id]
            if (pool is None or id in pool) and _fits(asks, node.total):
                if node.schedulable:
                    return node
                away = away or node
        return away

    def _why_never(self, asks: Amounts, pool: Ids | None) -> str:
        ids = self._whole.of("").ids if pool is None else pool.ids
        some = ids if len(ids) <= EXACT else ids[:: len(ids) // LOOKS]
        tops = [top for name in asks if (top := self._whole.top(name, pool))]
        best = min((self._nodes[id] for id in (*some, *tops)), key=lambda node: (_lack(asks, node.total), node.id))
        numbers = _numbers(asks, best.total, f"the node that comes closest, {_short(best.id)}, has")
        others = "" if len(asks) == 1 else f"; in all it asks for {_amounts(asks)}"
        whose = "no node" if pool is None else f"none of the {len(pool)} nodes with its labels"
        return f"{whose} can ever satisfy it ({numbers}{others}); ask for less, or start a node that has it"


# ---------------------------------------------------------------- the index


def _sort_in(text: str, node: NodeView, hard: Ids, soft: Ids) -> None:
    may = not labels.refuse(text, node.labels)
    hard.put(node.id, may)
    soft.put(node.id, may and labels.prefers(text, node.labels))


def _fewest(index: Index, asks: Amounts, pool: Ids | None) -> tuple[list[str], int]:
    """The shorter way through the nodes that may do: by resources or by labels. Neither has checked the other."""
    ids, start = index.holding(asks)
    return (pool.ids, 0) if pool is not None and len(pool) < len(ids) - start else (ids, start)


def _absence(node: NodeView) -> tuple[str, str]:
    """Of one that takes nothing."""
    return (NODE_DRAINING, "draining") if node.draining else (NODE_AWAY, "away")


# ---------------------------------------------------------------- amounts


def _fits(asks: Amounts, room: Amounts) -> bool:
    for name, amount in asks.items():
        if room.get(name, 0) < amount:
            return False
    return True


def _lack(asks: Amounts, room: Amounts) -> float:
    return sum(max(amount - room.get(name, 0), 0) / amount for name, amount in asks.items())


def _short(id: str) -> str:
    return id if len(id) <= 8 else f"{id[:8]}…"


def _amounts(asks: Amounts) -> str:
    return ", ".join(f"{name} {amount / UNIT:g}" for name, amount in asks.items()) or "it"


def _numbers(asks: Amounts, there: Amounts, has: str) -> str:
    return ", ".join(
        f"{name}: asks {amount / UNIT:g}, {has} {max(there.get(name, 0), 0) / UNIT:g}"
        for name, amount in asks.items()
        if there.get(name, 0) < amount
    )
