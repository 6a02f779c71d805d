"""Where requests go, against looking at every node."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given as examples
from hypothesis import strategies as st
from msgspec.structs import replace

from noded.policy import labels, scheduling
from noded.policy.nodes import NodeView
from noded.policy.scheduling import (
    LABELS_BUSY,
    NO_NODES,
    NODE_AWAY,
    NODE_BUSY,
    NODE_DRAINING,
    REASONS,
    RESOURCES_BUSY,
    Cluster,
    Go,
    Never,
    Wait,
    pick,
)
from noded.resources import UNIT
from noded.wire.messages import ANYWHERE, Place

SPREAD = Place(spread=True)


def amounts(**floats: float) -> dict[str, int]:
    return {name: round(amount * UNIT) for name, amount in floats.items()}


def node(id_: str, total: dict[str, int], free: dict[str, int] | None = None, up: bool = True, **tags: str) -> NodeView:
    return NodeView(id_, total if free is None else free, total, tags, up)


def ask(
    resources: Mapping[str, int], nodes: Sequence[NodeView], place: Place = ANYWHERE, local: str = "", **more: Any
) -> Go | Wait | Never:
    return pick(resources, place, nodes, local=local, rng=more.pop("rng", random.Random(0)), **more)


def selector(hard: str = "", soft: str = "") -> Place:
    conditions = [labels.parse_selector({"zone": each}) if each else [] for each in (hard, soft)]
    return Place(labels=labels.encode(*conditions))


# ---------------------------------------------------------------- everything, against looking at every node

_IDS = ["a", "b", "c", "d", "e", "f"]
_ID = st.sampled_from(_IDS)
_ASKS = st.dictionaries(st.sampled_from(["CPU", "GPU"]), st.integers(0, 4), max_size=2)
_ROOM = st.dictionaries(st.sampled_from(["CPU", "GPU"]), st.integers(0, 5), max_size=2)


@st.composite
def _node(draw: st.DrawFn, id_: str) -> NodeView:
    total = draw(_ROOM)
    free = {name: draw(st.integers(-1, amount)) for name, amount in total.items()}
    tags = draw(st.sampled_from([{}, {"zone": "x"}, {"zone": "y"}]))
    return NodeView(id_, free, total, tags, draw(st.sampled_from([True, True, True, False])))


@st.composite
def _nodes(draw: st.DrawFn) -> list[NodeView]:
    return [draw(_node(id_)) for id_ in draw(st.lists(_ID, max_size=6, unique=True))]


_PLACES = st.builds(
    lambda place, node_id, soft: replace_place(place, node_id, soft),
    st.sampled_from([ANYWHERE, SPREAD, selector("x"), selector("", "x"), selector("!x", "y"), selector("x", "y")]),
    st.sampled_from(["", "", *_IDS]),
    st.booleans(),
)
_SITUATION = {
    "asks": _ASKS,
    "nodes": _nodes(),
    "place": _PLACES,
    "local": _ID,
    "near": st.dictionaries(_ID, st.integers(0, 3), max_size=3),
    "visited": st.sets(_ID, max_size=3),
    "given": st.dictionaries(_ID, st.integers(0, 3), max_size=6),
    "seed": st.integers(0, 3),
    "few": st.booleans(),
}


def replace_place(place: Place, node_id: str, soft: bool) -> Place:
    return Place(node=node_id, soft=soft, spread=place.spread, labels=place.labels)


def fits(asks: Mapping[str, int], room: Mapping[str, int]) -> bool:
    return all(room.get(name, 0) >= amount for name, amount in asks.items() if amount)


def use(asks: Mapping[str, int], view: NodeView) -> float:
    names = {name: amount for name, amount in asks.items() if amount} or {"CPU": 0}
    return max(
        (view.total[n] - view.available[n] + a) / view.total[n] if view.total.get(n) else 1.0 for n, a in names.items()
    )


def target(asks: Mapping[str, int], place: Place, nodes: Sequence[NodeView], local: str, visited: set[str]) -> str:
    """The one node that counts, if only one does."""
    if not place.soft:
        return place.node
    for view in nodes:
        if (
            view.id == place.node
            and view.schedulable
            and fits(asks, view.total)
            and not labels.refuse(place.labels, view.labels)
            and (view.id == local or view.id not in visited)
        ):
            return view.id
    return ""


@examples(**_SITUATION)
def test_it_goes_where_it_may_and_waits_only_where_it_must(
    asks: dict[str, int],
    nodes: list[NodeView],
    place: Place,
    local: str,
    near: dict[str, int],
    visited: set[str],
    given: dict[str, int],
    seed: int,
    few: bool,
) -> None:
    rng = random.Random(seed)
    with patch.multiple(scheduling, EXACT=2 if few else 100, LOOKS=1 if few else 32):
        answer = ask(asks, nodes, place, local, near=near, visited=visited, given=given, rng=rng)
    only = target(asks, place, nodes, local, visited)
    allowed = [v for v in nodes if not labels.refuse(place.labels, v.labels) and only in ("", v.id)]
    room = [v for v in allowed if v.schedulable and fits(asks, v.available)]
    fresh = [v for v in room if v.id not in visited or v.id == only]
    if isinstance(answer, Never):
        assert nodes and not any(fits(asks, view.total) for view in allowed)
    elif isinstance(answer, Wait):
        assert answer.kind in REASONS and answer.reason
        assert not fresh and local not in [v.id for v in room]
        if answer.kind == NO_NODES:
            assert not nodes
        elif answer.kind == NODE_BUSY:
            assert only and any(fits(asks, view.total) and view.schedulable for view in allowed)
        elif answer.kind == NODE_AWAY:
            assert any(fits(asks, v.total) and not v.schedulable for v in allowed)
            assert not any(fits(asks, v.total) and v.schedulable for v in allowed)
        else:
            assert any(fits(asks, v.total) and v.schedulable for v in allowed)
            assert answer.kind == (LABELS_BUSY if place.labels else RESOURCES_BUSY)
    else:
        chosen = next(view for view in room if view.id == answer.node)
        assert chosen in fresh or (chosen.id == local and not fresh)
        best = [v for v in fresh if labels.prefers(place.labels, v.labels)] or fresh
        if chosen not in fresh or only:
            return
        assert chosen in best
        if place.spread:
            if any(v.id not in given for v in best) and len(given) < len(nodes):
                assert not given.get(chosen.id)
            if not few:
                assert chosen == min(best, key=lambda v: (given.get(v.id, 0), use(asks, v), v.id))
            return
        most = max(near.get(v.id, 0) for v in best)
        low = [v.id for v in best if use(asks, v) <= 0.5]
        if most:
            assert near.get(chosen.id) == most
            assert local not in [v.id for v in best if near.get(v.id) == most] or chosen.id == local
        elif local in low:
            assert chosen.id == local
        elif not few:
            assert chosen.id == min(low) if low else use(asks, chosen) == min(use(asks, v) for v in best)


@examples(
    changes=st.lists(st.one_of(_ID, _ID.flatmap(_node)), max_size=25),
    questions=st.lists(st.tuples(_ASKS, _PLACES, _ID), min_size=1, max_size=4),
    start=_nodes(),
)
def test_a_cluster_that_has_changed_answers_as_a_new_one(
    changes: list[str | NodeView], questions: list[tuple[dict[str, int], Place, str]], start: list[NodeView]
) -> None:
    cluster, views = Cluster(start), {view.id: view for view in start}
    with patch.multiple(scheduling, EXACT=2, LOOKS=1):
        for number, change in enumerate(["none", *changes]):
            if isinstance(change, NodeView):
                cluster.update(change)
                views[change.id] = change
            else:
                cluster.remove(change)
                views.pop(change, None)
            assert {view.id: view for view in cluster} == views and len(cluster) == len(views)
            for asks, place, local in questions:
                rng, again = random.Random(number), random.Random(number)
                answer = cluster.pick(asks, place, local=local, rng=rng)
                assert answer == pick(asks, place, list(views.values())[::-1], local=local, rng=again)


@examples(
    asks=_ASKS,
    place=_PLACES,
    views=st.lists(st.tuples(*map(_node, _IDS)), min_size=1, max_size=8),
    near=st.dictionaries(_ID, st.integers(0, 3)),
)
def test_a_request_that_is_sent_on_comes_to_rest(
    asks: dict[str, int], place: Place, views: list[tuple[NodeView, ...]], near: dict[str, int]
) -> None:
    """Whatever each node believes of the others."""
    at, visited = "a", set[str]()
    for step in range(len(_IDS) + 2):
        answer = ask(asks, views[step % len(views)], place, at, near=near, visited=visited)
        if not isinstance(answer, Go) or answer.node == at:
            return
        visited.add(at)
        at = answer.node
    pytest.fail(f"it goes on and on: {visited}")


# ---------------------------------------------------------------- the rules by example


def test_local_until_the_threshold_then_the_first_by_id_then_the_least_used() -> None:
    def at(*free: float) -> list[NodeView]:
        return [node(id_, amounts(CPU=4), amounts(CPU=each)) for id_, each in zip("abc", free, strict=True)]

    one = amounts(CPU=1)
    assert ask(one, at(4, 4, 4), local="b") == Go("b")
    assert ask(one, at(4, 3, 4), local="b") == Go("b"), "half is not over the threshold"
    assert ask(one, at(3, 2, 4), local="b") == Go("a")
    assert ask(one, at(1, 2, 4), local="b") == Go("c")
    assert ask(one, at(1, 1, 2), local="b") == Go("c"), "all are over it"
    assert ask(one, at(2, 2, 1), local="b") == Go("b"), "nothing is won by moving"
    assert {ask(one, at(2, 1, 2), local="b", rng=random.Random(i)) for i in range(20)} == {Go("a"), Go("c")}
    assert ask(one, at(4, 1, 4), local="b", threshold=1.0) == Go("b")
    assert ask(one, at(4, 1, 4), local="not a node") == Go("a")


def test_the_scarcest_of_what_it_asks_for_counts() -> None:
    nodes = [node("a", amounts(CPU=8, GPU=2), amounts(CPU=8, GPU=1)), node("b", amounts(CPU=8, GPU=2))]
    assert ask(amounts(CPU=1, GPU=1), nodes, local="a") == Go("b")
    assert ask(amounts(CPU=1), nodes, local="a") == Go("a")


def test_nothing_asked_counts_cpus_and_needs_no_room() -> None:
    over = [node("a", amounts(CPU=2), amounts(CPU=-1)), node("b", amounts(CPU=2), amounts(CPU=1))]
    assert ask({}, over, local="a") == Go("b")
    assert ask({"CPU": 0}, over[:1], local="a") == Go("a")
    assert ask({}, [node("a", {}), node("b", amounts(CPU=1))], local="a") == Go("b"), "a head without CPUs"


def test_bytes_of_arguments_come_before_the_order_but_not_before_what_fits() -> None:
    nodes = [node(id_, amounts(CPU=4)) for id_ in "abc"]
    one = amounts(CPU=1)
    assert ask(one, nodes, local="a", near={"b": 10, "c": 20}) == Go("c")
    assert ask(one, nodes, local="c", near={"b": 10, "c": 10}) == Go("c")
    assert ask(one, nodes, local="a", near={"gone": 99, "b": 1}) == Go("b")
    nodes[2] = node("c", amounts(CPU=4), amounts(CPU=0.5))
    assert ask(one, nodes, local="a", near={"b": 10, "c": 20}) == Go("b")


def test_spread_goes_round() -> None:
    nodes = [node(id_, amounts(CPU=4)) for id_ in "abc"]
    given: dict[str, int] = {}
    for _ in range(7):
        answer = ask(amounts(CPU=1), nodes, SPREAD, "a", given=given)
        assert isinstance(answer, Go)
        given[answer.node] = given.get(answer.node, 0) + 1
    assert sorted(given.values()) == [2, 2, 3]
    nodes[1] = node("b", amounts(CPU=4), amounts(CPU=2))
    assert ask(amounts(CPU=1), nodes, SPREAD, "b", given={"a": 1, "b": 0}) == Go("c"), "the least used of two"


def test_spread_over_many_leaves_none_out() -> None:
    cluster = Cluster([node(f"n{i:04}", amounts(CPU=4)) for i in range(500)])
    given: dict[str, int] = {}
    for _ in range(500):
        answer = cluster.pick(amounts(CPU=1), SPREAD, local="n0000", given=given, rng=random.Random(1))
        assert isinstance(answer, Go)
        given[answer.node] = given.get(answer.node, 0) + 1
    assert len(given) == 500


@pytest.mark.parametrize("at", [0, 250, 499])
def test_the_only_one_of_many_that_fits_is_found(at: int) -> None:
    """Neither resource alone says which."""
    free = [amounts(CPU=4, GPU=0) if i % 2 else amounts(CPU=0, GPU=4) for i in range(500)]
    free[at] = amounts(CPU=1, GPU=1)
    nodes = [node(f"n{i:04}", amounts(CPU=4, GPU=4), each) for i, each in enumerate(free)]
    assert ask(amounts(CPU=1, GPU=1), nodes, local="n0001") == Go(f"n{at:04}")


def test_only_one_node() -> None:
    nodes = [node("a", amounts(CPU=4)), node("b", amounts(CPU=4), amounts(CPU=0)), node("c", amounts(CPU=4), up=False)]
    one = amounts(CPU=1)
    hard = {id_: ask(one, nodes, Place(node=id_), "a", visited=["a"]) for id_ in "abcd"}
    assert hard["a"] == Go("a")
    assert hard["b"] == Wait(NODE_BUSY, "the node that it is for, b, is full: CPU: asks 1, free are 0")
    assert hard["c"] == Wait(NODE_AWAY, "the node that it is for, c, takes nothing now: it is away")
    draining = [NodeView("d", amounts(CPU=4), amounts(CPU=4), schedulable=False, draining=True)]
    wait = ask(one, draining, Place(node="d"), "a")
    assert wait == Wait(NODE_DRAINING, "the node that it is for, d, takes nothing now: it is draining")
    gone = hard["d"]
    assert isinstance(gone, Never) and "is not in this cluster" in gone.reason
    never = ask(amounts(CPU=5), nodes, Place(node="b"), "a")
    assert isinstance(never, Never) and "CPU: asks 5, it has 4" in never.reason


def test_rather_one_node() -> None:
    """Waited for while it is there and could hold it."""
    nodes = [node("a", amounts(CPU=8)), node("b", amounts(CPU=4), amounts(CPU=0)), node("c", amounts(CPU=4), up=False)]
    answer = ask(amounts(CPU=1), nodes, Place(node="b", soft=True), "a")
    assert isinstance(answer, Wait) and answer.kind == NODE_BUSY
    assert ask(amounts(CPU=5), nodes, Place(node="b", soft=True), "a") == Go("a")
    assert ask(amounts(CPU=1), nodes, Place(node="c", soft=True), "a") == Go("a")
    assert ask(amounts(CPU=1), nodes, Place(node="d", soft=True), "a") == Go("a")


def test_labels() -> None:
    nodes = [
        node("a", amounts(CPU=4)),
        node("b", amounts(CPU=4), amounts(CPU=1), zone="x"),
        node("c", amounts(CPU=4), zone="y"),
    ]
    one, two = amounts(CPU=1), amounts(CPU=2)
    assert ask(one, nodes, selector("x"), "a") == Go("b")
    assert ask(one, nodes, selector("", "y"), "a") == Go("c")
    assert ask(two, nodes, selector("", "x"), "a") == Go("a"), "a wish only, and it is full"
    assert ask(two, nodes, selector("x"), "a") == Wait(
        LABELS_BUSY,
        "not enough is free: CPU: asks 2, the most free on one of the 1 nodes that have its labels is 1",
    )
    never = ask(one, nodes, selector("z"), "a")
    assert isinstance(never, Never) and "zone in (z)" in never.reason
    never = ask(amounts(CPU=5), nodes, selector("x"), "a")
    assert isinstance(never, Never) and "CPU: asks 5, the node that comes closest, b, has 4" in never.reason
    unread = ask(one, nodes, Place(labels="{"), "a")
    assert isinstance(unread, Never) and "cannot be read" in unread.reason


def test_what_has_been_sent_on_is_not_sent_back() -> None:
    nodes = [node("a", amounts(CPU=4)), node("b", amounts(CPU=4), amounts(CPU=0))]
    answer = ask(amounts(CPU=1), nodes, local="b", visited=["a"])
    assert answer == Wait(RESOURCES_BUSY, "only nodes that have sent it on seem to have CPU 1 free: a")
    assert ask(amounts(CPU=1), nodes, local="a", visited=["a"]) == Go("a")


@pytest.mark.parametrize(
    ("asks", "answer"),
    [
        (
            amounts(CPU=3),
            Wait(RESOURCES_BUSY, "not enough is free: CPU: asks 3, the most free on one node is 2"),
        ),
        (
            amounts(CPU=2, GPU=1),
            Wait(RESOURCES_BUSY, "CPU 2, GPU 1 are free, but not all on one node"),
        ),
        (
            amounts(CPU=8),
            Wait(NODE_AWAY, "only nodes that are away or draining could hold CPU 8, as cccccccc…, which is away"),
        ),
        (
            amounts(GPU=4),
            Never(
                "no node can ever satisfy it (GPU: asks 4, the node that comes closest, aaaaaaaa…, has 2); "
                "ask for less, or start a node that has it"
            ),
        ),
        (
            amounts(CPU=2, disk=0.5),
            Never(
                "no node can ever satisfy it (disk: asks 0.5, the node that comes closest, aaaaaaaa…, has 0; in all it "
                "asks for CPU 2, disk 0.5); ask for less, or start a node that has it"
            ),
        ),
    ],
)
def test_reasons_have_the_numbers(asks: dict[str, int], answer: Wait | Never) -> None:
    nodes = [
        node("a" * 32, amounts(CPU=4, GPU=2), amounts(CPU=1, GPU=1)),
        node("b" * 32, amounts(CPU=4), amounts(CPU=2)),
        node("c" * 32, amounts(CPU=16), up=False),
    ]
    assert ask(asks, nodes, local="a" * 32) == answer


def test_no_nodes() -> None:
    assert ask({}, []) == Wait(NO_NODES, "there is no node")


def test_a_resource_that_comes_and_goes() -> None:
    cluster = Cluster([node("a", amounts(CPU=1))])
    rng = random.Random(0)
    assert isinstance(cluster.pick(amounts(disk=1), ANYWHERE, local="a", rng=rng), Never)
    cluster.update(node("a", amounts(CPU=1, disk=1)))
    assert cluster.pick(amounts(disk=1), ANYWHERE, local="a", rng=rng) == Go("a")
    view = cluster.get("a")
    assert view is not None
    cluster.update(replace(view, available=amounts(CPU=1)))
    assert isinstance(cluster.pick(amounts(disk=1), ANYWHERE, local="a", rng=rng), Wait)
    cluster.remove("a")
    assert cluster.get("a") is None
    for i in range(600):  # more resources than are kept in order
        assert not isinstance(cluster.pick({f"r{i}": 1}, ANYWHERE, local="a", rng=rng), Go)
        cluster.update(node("b", {f"r{i}": 1}))
        assert cluster.pick({f"r{i}": 1}, ANYWHERE, local="a", rng=rng) == Go("b")
