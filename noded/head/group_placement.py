"""Where the bundles of placement groups are: the head's choice of nodes, and the reservation on all of them or none.

An attempt asks each chosen node to reserve its bundles; when all have, the group is created, when one has not, all give
back and the group waits again. Nodes tell which bundles they keep when they register, and what the head does not want
is given back; so nothing need be written between. A group that has waited long is tried on nodes that could hold it if
tasks and leases made way: there its bundles queue like everything else, which is how they get their turn. One group at
a time does that, so that two never wait for each other's halves.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Collection
from itertools import islice

import msgspec

from noded.head.nodes import NodeRecord, NodeTable
from noded.policy import bundles as policy
from noded.policy import labels, reasons, scheduling
from noded.policy.nodes import NodeView
from noded.wire import cluster_messages as c
from noded.wire import messages as m

log = logging.getLogger("noded.group_placement")

_AGED = 1.0
_QUEUE_SECONDS = 10.0
"""A group that queues on its nodes and is not there by then is tried elsewhere."""
_LOOK_SECONDS = 0.1
_LOOK_PART = 0.1
"""At most this part of the time is spent looking whether there is room now."""
_CHEAP = 0.002
_LOOKED_AT = 32
_SAMPLE = 200
"""Where there are many more nodes, one of so many is taken, if it can hold all that is to be on one."""


class Plan(msgspec.Struct, eq=False):
    """One group, as far as its place goes."""

    spec: m.GroupSpec
    on_created: Callable[[list[int]], None]
    on_infeasible: Callable[[str], None]
    on_lost: Callable[[], None]
    nodes: list[int] = []
    """Of each bundle; 0: none."""
    attempt: int = 0
    asked: dict[int, list[int]] = {}
    """Nodes that have not answered the present attempt, with their bundles."""
    reserved: dict[int, list[int]] = {}
    queued_until: float = 0.0
    since: float = msgspec.field(default_factory=time.monotonic)
    created: bool = False
    releasing: set[int] | None = None
    on_released: Callable[[], None] | None = None
    why: tuple[str, str] = ("", "")
    adopting: bool = False
    """Which nodes have it is not known: they tell."""
    alone: bool = False
    """It was asked for when there was one node only, where it waits as long as it takes."""

    @property
    def id(self) -> bytes:
        return self.spec.id

    @property
    def bundles(self) -> list[dict[str, int]]:
        return self.spec.bundles

    def missing(self) -> list[int]:
        return [index for index, node in enumerate(self.nodes) if not node]


class GroupPlacement:
    """Implements ``placement_groups.GroupHost`` over the nodes."""

    def __init__(self, nodes: NodeTable):
        self._nodes = nodes
        self.plans: dict[bytes, Plan] = {}
        self.waiting: dict[bytes, Plan] = {}
        self._queued: dict[bytes, Plan] = {}
        """Those that may be queueing on their nodes."""
        self._next_look = 0.0
        self._turn = 0
        self._sampled = 0
        self._rng = random.Random()
        self._timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------ the table's wishes

    def reserve_group(
        self,
        spec: m.GroupSpec,
        on_created: Callable[[list[int]], None],
        on_infeasible: Callable[[str], None],
        on_lost: Callable[[], None],
    ) -> None:
        """``on_created(nodes of the bundles)``; ``on_infeasible(reason)`` may be followed by it; ``on_lost()`` when a
        node that has some of it is dead: then ``on_created`` comes again.
        """
        plan = self.plans[spec.id] = Plan(spec, on_created, on_infeasible, on_lost, [0] * len(spec.bundles))
        # Where others wait and looking costs much, it takes its turn among them.
        if (self.waiting and time.monotonic() < self._next_look) or not self._try(plan):
            self.waiting[spec.id] = plan
            self._look_later()

    def restore_group(
        self,
        spec: m.GroupSpec,
        nodes: list[int],
        on_created: Callable[[list[int]], None],
        on_infeasible: Callable[[str], None],
        on_lost: Callable[[], None],
    ) -> None:
        """After a restart of the head: it was created on these nodes; 0: those that say so."""
        plan = self.plans[spec.id] = Plan(spec, on_created, on_infeasible, on_lost, list(nodes))
        plan.created = all(nodes)
        plan.adopting = not plan.created

    def release_group(self, id: bytes, on_released: Callable[[], None]) -> None:
        """End what runs in it, or stop waiting; then give the resources back."""
        plan = self.plans.get(id)
        if plan is None:
            on_released()
            return
        self.waiting.pop(id, None)
        plan.on_released = on_released
        plan.releasing = {*filter(None, plan.nodes), *plan.asked, *plan.reserved}
        for number in list(plan.releasing):
            self._release_at(plan, number, removed=True)
        self._look_whether_released(plan)

    def _release_at(self, plan: Plan, number: int, *, removed: bool) -> None:
        node = self._nodes.records.get(number)
        if node is None or node.state == "DEAD":
            if plan.releasing is not None:
                plan.releasing.discard(number)
        elif node.api is not None:  # else when it registers
            node.api.release_group(c.ReleaseGroup(plan.id, plan.attempt, removed))

    def _look_whether_released(self, plan: Plan) -> None:
        if plan.releasing is not None and not plan.releasing and self.plans.get(plan.id) is plan:
            del self.plans[plan.id]
            if plan.on_released is not None:
                plan.on_released()
            self.kick()

    # ------------------------------------------------------------ choosing

    def _try(self, plan: Plan) -> bool:
        """False: it waits."""
        if plan.asked:
            return True
        plan.why = "", ""
        if self._nodes.alone:
            own = next((r for r in self._nodes.records.values() if r.local), None)
            if own is None or own.api is None:
                return False
            reason = self._never_on(own, plan)
            if reason:
                self._infeasible(plan, reason)
                return False
            if not any(plan.nodes):
                self._ask(plan, [own.number] * len(plan.missing()), wait=True)
                return True
            # Else it waits here: were it to give up waiting there, what it has there would go as well.
        if plan.missing() != list(range(len(plan.bundles))) and plan.spec.strategy == "STRICT_PACK":
            self._give_back(plan)
        self._nodes.refresh()
        self._nodes.expire()
        views = [node for node in self._nodes.cluster if node.schedulable]
        found = self._assign(plan, views)
        if isinstance(found, policy.Never):
            if not self._nodes.waiting_for_nodes:
                self._infeasible(plan, found.reason)
            plan.why = reasons.INFEASIBLE, found.reason
            return False
        if isinstance(found, policy.Wait):
            plan.why = reasons.RESOURCES_BUSY, found.reason
            if self._may_queue(plan):
                freed = self._assign(plan, self._without_groups())
                numbers = self._numbers(freed) if isinstance(freed, policy.Assignment) else []
                if numbers and not {*numbers} & {*plan.nodes}:  # as above
                    self._ask(plan, numbers, wait=True)
                    return True
            return False
        self._ask(plan, self._numbers(found), wait=False)
        return True

    @staticmethod
    def _never_on(own: NodeRecord, plan: Plan) -> str:
        """Why the only node cannot hold it, amounts aside: those are its own business."""
        count = len(plan.bundles)
        if plan.spec.strategy == "STRICT_SPREAD" and count > 1:
            return f"STRICT_SPREAD needs {count} nodes, one for each bundle, and there is one"
        for index, text in enumerate(plan.spec.labels):
            if refusal := labels.refuse(text, own.labels):
                return f"no node has the labels for bundle {index}: {refusal}"
        return ""

    def _assign(self, plan: Plan, views: list[NodeView]) -> policy.Assignment | policy.Wait | policy.Never:
        """Nodes for the bundles that have none, beside those that have one."""
        missing = plan.missing()
        if len(missing) < len(plan.bundles) and plan.spec.strategy == "STRICT_SPREAD":
            used = {r.id for n in plan.nodes if n and (r := self._nodes.records.get(n))}
            views = [view for view in views if view.id not in used]
        selectors = [plan.spec.labels[index] for index in missing] if plan.spec.labels else ()
        bundles = [plan.bundles[index] for index in missing]
        if len(views) > 2 * _SAMPLE and not selectors:
            for bundle in {tuple(sorted(bundle.items())): bundle for bundle in bundles}.values():
                answer = self._nodes.cluster.pick(bundle, m.ANYWHERE, local="", rng=self._rng)
                if isinstance(answer, scheduling.Wait):  # found without looking at all nodes, as it mostly is
                    return policy.Wait(answer.reason)
        if len(views) > 2 * _SAMPLE and plan.spec.strategy in ("PACK", "STRICT_PACK"):
            start = self._sampled = (self._sampled + _SAMPLE) % len(views)
            sample = (views[start:] + views[:start])[:_SAMPLE]
            found = policy.assign(bundles, sample, "STRICT_PACK", selectors)
            if isinstance(found, policy.Assignment):
                return found
        return policy.assign(bundles, views, plan.spec.strategy, selectors)

    def _may_queue(self, plan: Plan) -> bool:
        now = time.monotonic()
        if now - plan.since < _AGED or any(p.queued_until > now for p in self._queueing()):
            return False
        return plan is next((p for p in self.waiting.values() if p.why[0] != reasons.INFEASIBLE), plan)

    def _numbers(self, found: policy.Assignment) -> list[int]:
        return [node.number if (node := self._nodes.by_id(id_)) is not None else 0 for id_ in found.nodes]

    def _without_groups(self) -> list[NodeView]:
        """What the nodes could give if all but the groups on them made way."""
        alive = [r for r in self._nodes.alive() if r.state == "ALIVE" and not r.draining]
        left = {r.number: dict(r.total) for r in alive}
        for plan in self.plans.values():
            for number, bundle in zip(plan.nodes, plan.bundles, strict=True):
                room = left.get(number)
                if room is not None:
                    for name, amount in bundle.items():
                        room[name] = room.get(name, 0) - amount
        return [NodeView(r.id, left[r.number], r.total, r.labels, True) for r in alive]

    def _infeasible(self, plan: Plan, reason: str) -> None:
        plan.why = reasons.INFEASIBLE, reason
        plan.on_infeasible(reason)

    def _ask(self, plan: Plan, numbers: list[int], *, wait: bool) -> None:
        plan.attempt += 1
        plan.alone = wait and self._nodes.alone
        plan.queued_until = time.monotonic() + _QUEUE_SECONDS if wait and not plan.alone else 0.0
        if plan.queued_until:
            self._queued[plan.id] = plan
        plan.asked, plan.reserved = {}, {}
        missing = plan.missing()
        for index, number in zip(missing, numbers, strict=True):
            plan.asked.setdefault(number, []).append(index)
        for number, indices in list(plan.asked.items()):
            node = self._nodes.records.get(number)
            if node is None or node.api is None:
                self._answered(plan, number, False)
                return
            bundles = {index: plan.bundles[index] for index in indices}
            if not plan.alone:
                for bundle in bundles.values():
                    self._nodes.take(node, bundle)
            node.api.reserve_group(c.ReserveGroup(plan.spec, plan.attempt, bundles, wait))
            if not plan.asked and not plan.reserved:  # it has answered no, and all is given back
                return

    def kick(self) -> None:
        """There may be room now. Looked at at once, or soon where a look costs much."""
        now = time.monotonic()
        if now < self._next_look:
            self._look_later()
            return
        for plan in self._queueing():
            if now > plan.queued_until:
                self._fail(plan)
        # Those that have waited longest, and where there are many the others in turn.
        half = _LOOKED_AT // 2
        self._turn = self._turn + half if self._turn + half < len(self.waiting) else half
        for id_ in [*islice(self.waiting, half), *islice(self.waiting, self._turn, self._turn + half)]:
            found = self.waiting.get(id_)
            if found is not None and self._try(found) and (found.asked or found.created):
                self.waiting.pop(id_, None)  # else it has been refused at once, and waits again
        ended = time.monotonic()
        cost = ended - now
        self._next_look = ended + (cost / _LOOK_PART if cost > _CHEAP else 0.0)
        self._look_later()

    def _queueing(self) -> list[Plan]:
        if self._queued:
            self._queued = {
                id_: p for id_, p in self._queued.items() if self.plans.get(id_) is p and p.queued_until and p.asked
            }
        return list(self._queued.values())

    def _look_later(self) -> None:
        if (self.waiting or self._queueing()) and self._timer is None:
            pause = max(_LOOK_SECONDS, self._next_look - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(pause, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        self.kick()

    # ------------------------------------------------------------ the nodes' answers

    def reserved(self, node: NodeRecord, message: c.GroupReserved) -> None:
        plan = self.plans.get(message.id)
        if plan is None or plan.attempt != message.attempt or node.number not in plan.asked:
            if message.ok and node.api is not None and (plan is None or node.number not in plan.nodes):
                node.api.release_group(c.ReleaseGroup(message.id, message.attempt, plan is None))
            return
        if not message.ok and plan.alone:
            self._infeasible(plan, message.reason)  # it waits there
            return
        self._answered(plan, node.number, message.ok)

    def _answered(self, plan: Plan, number: int, ok: bool) -> None:
        indices = plan.asked.pop(number)
        if not ok:
            self._fail(plan)
            return
        plan.reserved[number] = indices
        if plan.asked or plan.releasing is not None:
            return
        for node, taken in plan.reserved.items():
            for index in taken:
                plan.nodes[index] = node
        plan.reserved, plan.queued_until = {}, 0.0
        if plan.missing():  # a node that had others has died meanwhile
            self._wait(plan)
            return
        plan.created = True
        self.waiting.pop(plan.id, None)
        plan.on_created(list(plan.nodes))

    def _wait(self, plan: Plan) -> None:
        self.waiting.setdefault(plan.id, plan)
        self._look_later()

    def _fail(self, plan: Plan) -> None:
        """The attempt has failed: all give back, and it waits again."""
        asked, reserved = plan.asked, plan.reserved
        plan.asked, plan.reserved, plan.queued_until = {}, {}, 0.0
        for number in {*asked, *reserved}:
            if number in plan.nodes:  # it has other bundles of the group: those go as well
                plan.nodes = [0 if node == number else node for node in plan.nodes]
            self._release_at(plan, number, removed=False)
        if plan.releasing is None:
            self._wait(plan)

    def _give_back(self, plan: Plan) -> None:
        for number in {*filter(None, plan.nodes)}:
            self._release_at(plan, number, removed=False)
        plan.nodes = [0] * len(plan.bundles)

    def released(self, node: NodeRecord, id_: bytes) -> None:
        plan = self.plans.get(id_)
        if plan is not None and plan.releasing is not None:
            plan.releasing.discard(node.number)
            self._look_whether_released(plan)
        else:
            if plan is not None and plan.alone and node.number in plan.asked:
                self._fail(plan)  # it was refused there as long as that ended
            self.kick()

    # ------------------------------------------------------------ nodes come and go

    def registered(self, node: NodeRecord, held: list[c.HeldGroup]) -> None:
        """A node is there (again), and keeps these bundles."""
        kept = {group.id: group for group in held}
        for group in held:
            plan = self.plans.get(group.id)
            if plan is not None and plan.adopting:
                self._adopt(plan, node.number, group)
            wanted = self._wanted(plan, node.number) if plan is not None else []
            if plan is not None:
                plan.attempt = max(plan.attempt, group.attempt)  # of a head before us
                if plan.releasing is None and set(group.bundles) < set(wanted):
                    self._lose(plan, node.number, set(wanted) - set(group.bundles))
                    continue
            if plan is None or plan.releasing is not None or not set(group.bundles) <= set(wanted):
                assert node.api is not None
                node.api.release_group(
                    c.ReleaseGroup(group.id, group.attempt, plan is None or plan.releasing is not None)
                )
                if plan is not None and plan.releasing is None and wanted:
                    self._lose(plan, node.number)
        for plan in list(self.plans.values()):
            if plan.releasing is not None and node.number in plan.releasing and plan.id not in kept:
                plan.releasing.discard(node.number)
                self._look_whether_released(plan)
            elif node.number in plan.asked or node.number in plan.reserved or (plan.asked and plan.alone):
                # It may not have heard of it, or was just told to give it back; or it waits where alone it could, and
                # there is another node now.
                self._fail(plan)
            elif plan.releasing is None and node.number in plan.nodes and plan.id not in kept:
                self._lose(plan, node.number)
        self._end_adoptions()
        self.kick()

    def _adopt(self, plan: Plan, number: int, group: c.HeldGroup) -> None:
        for index in group.bundles:
            if index < len(plan.nodes) and not plan.nodes[index]:
                plan.nodes[index] = number
        if not plan.missing():
            plan.adopting, plan.created = False, True
            plan.on_created(list(plan.nodes))

    def _end_adoptions(self) -> None:
        """When no node of before is awaited any more: what none of them has is placed anew."""
        if self._nodes.waiting_for_nodes:
            return
        for plan in [p for p in self.plans.values() if p.adopting and p.releasing is None]:
            plan.adopting = False
            self._wait(plan)

    @staticmethod
    def _wanted(plan: Plan, number: int) -> list[int]:
        return [index for index, node in enumerate(plan.nodes) if node == number]

    def node_died(self, node: NodeRecord) -> None:
        for plan in list(self.plans.values()):
            if plan.releasing is not None:
                plan.releasing.discard(node.number)
                self._look_whether_released(plan)
            elif node.number in plan.asked or node.number in plan.reserved:
                self._fail(plan)
                if node.number in plan.nodes:
                    self._lose(plan, node.number)
            elif node.number in plan.nodes:
                self._lose(plan, node.number)
        self._end_adoptions()
        self.kick()

    def _lose(self, plan: Plan, number: int, bundles: Collection[int] | None = None) -> None:
        """What a dead node had of it (these bundles, or all) is placed anew."""
        plan.nodes = [
            0 if node == number and (bundles is None or index in bundles) else node
            for index, node in enumerate(plan.nodes)
        ]
        if plan.created:
            plan.created = False
            plan.since = time.monotonic()
            plan.on_lost()
        if not plan.adopting:
            self._wait(plan)

    def restored(self) -> None:
        """After a restart of the head: what is on nodes that are dead, or not known, is placed anew."""
        for plan in list(self.plans.values()):
            for number in {*filter(None, plan.nodes)}:
                node = self._nodes.records.get(number)
                if node is None or node.state == "DEAD":
                    self._lose(plan, number)

    def nodes_of(self, id_: bytes) -> list[int] | None:
        """None while it is not created; empty: there is none."""
        plan = self.plans.get(id_)
        if plan is None or plan.releasing is not None:
            return []
        return list(plan.nodes) if plan.created else None

    def why(self, id_: bytes) -> tuple[str, str] | None:
        """None: it does not wait."""
        plan = self.plans.get(id_)
        if plan is None or plan.created:
            return None
        if plan.asked:
            numbers = ", ".join(f"{len(indices)} on node {number}" for number, indices in plan.asked.items())
            return reasons.RESERVING, f"its bundles are being reserved: {numbers}"
        if plan.adopting:
            return reasons.NODE_AWAY, "nodes that had bundles of it before the head's start are not back yet"
        if plan.why[0] == reasons.INFEASIBLE:
            return self._absent(plan) or plan.why
        return plan.why if plan.why[0] else (reasons.RESERVING, "nodes for its bundles are being chosen")

    def asked(self, id_: bytes) -> list[int]:
        """The nodes that are reserving bundles of it."""
        plan = self.plans.get(id_)
        return list(plan.asked) if plan is not None else []

    def _absent(self, plan: Plan) -> tuple[str, str] | None:
        """It could be held, if nodes that take nothing now did."""
        if any(record.state == "AWAY" and not record.total for record in self._nodes.alive()):
            return reasons.NODE_AWAY, "nodes that were there before the head started are not back yet"
        views = list(self._nodes.cluster)
        if all(view.schedulable for view in views):
            return None
        whole = [NodeView(view.id, view.total, view.total, view.labels) for view in views]
        if isinstance(self._assign(plan, whole), policy.Never):
            return None
        away = [view.id for view in views if not view.schedulable and not view.draining]
        if away:
            return reasons.NODE_AWAY, f"only with nodes that are away, as {away[0]}, can it be held"
        return reasons.NODE_DRAINING, "only with nodes that are draining can it be held"
