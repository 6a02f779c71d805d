"""Where bundles go, against trying out everything."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noded.policy import labels
from noded.policy.bundles import STRATEGIES, Assignment, Never, Wait, assign
from noded.policy.nodes import NodeView
from noded.resources import UNIT

Bundle = dict[str, int]


def amounts(**floats: float) -> Bundle:
    return {name: round(amount * UNIT) for name, amount in floats.items()}


def node(id_: str, total: Bundle, free: Bundle | None = None, **tags: str) -> NodeView:
    return NodeView(id_, total if free is None else free, total, tags)


def holds(bundles: Sequence[Bundle], rooms: Sequence[Bundle], places: Sequence[int], strategy: str) -> bool:
    if strategy == "STRICT_PACK" and len(set(places)) > 1:
        return False
    if strategy == "STRICT_SPREAD" and len(set(places)) < len(places):
        return False
    used: list[Bundle] = [{} for _ in rooms]
    for bundle, place in zip(bundles, places, strict=True):
        for name, amount in bundle.items():
            used[place][name] = used[place].get(name, 0) + amount
    return all(room.get(n, 0) >= a for room, sums in zip(rooms, used, strict=True) for n, a in sums.items())


def possible(bundles: Sequence[Bundle], rooms: Sequence[Bundle], strategy: str) -> list[tuple[int, ...]]:
    everything = itertools.product(range(len(rooms)), repeat=len(bundles))
    return [places for places in everything if holds(bundles, rooms, places, strategy)]


_AMOUNT = st.integers(1, 4)
_BUNDLES = st.lists(
    st.dictionaries(st.sampled_from(["CPU", "GPU"]), _AMOUNT, min_size=1, max_size=2), min_size=1, max_size=4
)
_ROOM = st.fixed_dictionaries({"CPU": st.integers(-1, 6), "GPU": st.integers(0, 3)})
_NODES = st.lists(st.tuples(_ROOM, _ROOM), min_size=1, max_size=4)


@given(bundles=_BUNDLES, given_nodes=_NODES, strategy=st.sampled_from(STRATEGIES))
def test_the_answer_is_that_of_trying_everything(
    bundles: list[Bundle], given_nodes: list[tuple[Bundle, Bundle]], strategy: str
) -> None:
    # What is free is at most what there is.
    nodes = [
        node(str(i), {n: max(a[n], b[n], 0) for n in a}, {n: min(a[n], b[n]) for n in a})
        for i, (a, b) in enumerate(given_nodes)
    ]
    answer = assign(bundles, nodes, strategy)
    now = possible(bundles, [dict(n.available) for n in nodes], strategy)
    ever = possible(bundles, [dict(n.total) for n in nodes], strategy)
    if isinstance(answer, Assignment):
        places = [int(id_) for id_ in answer.nodes]
        assert tuple(places) in now
        distinct = {len(set(p)) for p in now}
        if strategy == "PACK" and 1 in distinct:
            assert len(set(places)) == 1
        if strategy == "SPREAD" and len(bundles) in distinct:
            assert len(set(places)) == len(bundles)
    elif isinstance(answer, Wait):
        assert not now and ever and answer.reason
    else:
        assert not ever and answer.reason


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_many_bundles_that_fit_exactly(strategy: str) -> None:
    count = 1 if strategy == "STRICT_PACK" else 64
    nodes = [node(f"n{i}", amounts(CPU=64 / count)) for i in range(count)]
    answer = assign([amounts(CPU=1)] * 64, nodes, strategy)
    assert isinstance(answer, Assignment)
    assert len(set(answer.nodes)) == (1 if strategy == "STRICT_PACK" else 64)


def test_what_no_search_can_finish_is_a_wait_and_ends_soon() -> None:
    # 12 bundles that fill 3 nodes to the brim in sum, and in no way in parts.
    bundles = [{"CPU": 1000 + 7 * i, "GPU": 900 - 5 * i, "disk": 500 + 3 * i * i} for i in range(12)]
    room = {name: sum(b[name] for b in bundles) // 3 for name in ("CPU", "GPU", "disk")}
    nodes = [NodeView(str(i), room, room) for i in range(3)]
    assert isinstance(assign(bundles, nodes, "PACK"), (Wait, Never))


def test_pack_takes_the_node_that_it_fills_most() -> None:
    nodes = [node("big", amounts(CPU=16)), node("small", amounts(CPU=2)), node("tiny", amounts(CPU=1))]
    assert assign([amounts(CPU=1)] * 2, nodes, "PACK") == Assignment(("small", "small"))
    assert assign([amounts(CPU=1)] * 2, nodes, "STRICT_PACK") == Assignment(("small", "small"))


def test_pack_takes_few_nodes_where_one_is_not_enough() -> None:
    nodes = [node("a", amounts(CPU=1)), node("b", amounts(CPU=3)), node("c", amounts(CPU=1))]
    answer = assign([amounts(CPU=1)] * 4, nodes, "PACK")
    assert isinstance(answer, Assignment) and len(set(answer.nodes)) == 2


def test_spread_doubles_up_only_where_it_must() -> None:
    nodes = [node("a", amounts(CPU=4)), node("b", amounts(CPU=4))]
    answer = assign([amounts(CPU=1)] * 4, nodes, "SPREAD")
    assert isinstance(answer, Assignment) and sorted(answer.nodes) == ["a", "a", "b", "b"]


def test_no_node_is_a_wait() -> None:
    assert isinstance(assign([amounts(CPU=1)], [], "PACK"), Wait)


@pytest.mark.parametrize(
    ("bundles", "strategy", "words"),
    [
        ([amounts(CPU=1), amounts(CPU=8)], "PACK", ["bundle 1", "CPU: asks 8", "at most 4"]),
        ([amounts(disk=1)], "SPREAD", ["bundle 0", "disk: asks 1", "at most 0"]),
        ([amounts(CPU=3)] * 2, "STRICT_PACK", ["STRICT_PACK", "CPU: asks 6", "at most 4"]),
        ([amounts(CPU=1)] * 3, "STRICT_SPREAD", ["wants 3 nodes", "there are 2"]),
        ([amounts(CPU=3)] * 4, "PACK", ["CPU: asks 12", "has 8"]),
        ([amounts(CPU=3)] * 3, "SPREAD", ["CPU: asks 9", "has 8"]),
    ],
)
def test_never_says_what_is_asked_and_what_there_is(bundles: list[Bundle], strategy: str, words: list[str]) -> None:
    nodes = [node("a", amounts(CPU=4), amounts(CPU=1)), node("b", amounts(CPU=4))]
    answer = assign(bundles, nodes, strategy)
    assert isinstance(answer, Never)
    assert all(word in answer.reason for word in words), answer.reason


def test_wait_says_what_is_short() -> None:
    answer = assign([amounts(CPU=3)], [node("a", amounts(CPU=4), amounts(CPU=1.5))], "PACK")
    assert answer == Wait("not enough is free: CPU: asks 3, free are 1.5")


def test_bundles_go_where_their_labels_want_them() -> None:
    nodes = [node("a", amounts(CPU=4), zone="x"), node("b", amounts(CPU=4), zone="y")]
    want = [labels.encode(labels.parse_selector({"zone": zone})) for zone in ("y", "!y")]
    for strategy in ("PACK", "SPREAD", "STRICT_SPREAD"):
        assert assign([amounts(CPU=1)] * 2, nodes, strategy, want) == Assignment(("b", "a"))
    answer = assign([amounts(CPU=1)] * 2, nodes, "STRICT_PACK", want)
    assert isinstance(answer, Never)
    answer = assign([amounts(CPU=1)], nodes, "PACK", [labels.encode(labels.parse_selector({"zone": "z"}))])
    assert isinstance(answer, Never) and "zone in (z)" in answer.reason
