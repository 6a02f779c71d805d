"""Conditions on labels: what they mean, how they are written, how they travel, and what is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noded.policy import labels
from noded.policy.labels import ABSENT, EXISTS, IN, NOT_IN, Condition, encode, holds, parse_selector, prefers, refuse
from noded.policy.where import refuse as refuse_place
from noded.wire.messages import ANYWHERE, Place

HERE = {"zone": "a", "tier": "gold"}


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (("zone", IN, ("a", "b")), True),
        (("zone", IN, ("b",)), False),
        (("none", IN, ("a",)), False),
        (("zone", NOT_IN, ("b",)), True),
        (("zone", NOT_IN, ("a", "b")), False),
        (("none", NOT_IN, ("a",)), True),
        (("zone", EXISTS, ()), True),
        (("none", EXISTS, ()), False),
        (("zone", ABSENT, ()), False),
        (("none", ABSENT, ()), True),
    ],
)
def test_operators(condition: Condition, expected: bool) -> None:
    assert holds(condition, HERE) is expected
    assert (refuse(encode([condition]), HERE) == "") is expected
    assert prefers(encode([], [condition]), HERE) is expected


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("a", ("zone", IN, ("a",))),
        ("", ("zone", IN, ("",))),
        ("!a", ("zone", NOT_IN, ("a",))),
        ("in(a,b)", ("zone", IN, ("a", "b"))),
        ("in(a, b)", ("zone", IN, ("a", "b"))),
        ("!in(a,b)", ("zone", NOT_IN, ("a", "b"))),
        ("A-1.b_c", ("zone", IN, ("A-1.b_c",))),
        ("x" * 63, ("zone", IN, ("x" * 63,))),
    ],
)
def test_selectors(text: str, condition: Condition) -> None:
    assert parse_selector({"zone": text}) == [condition]


@pytest.mark.parametrize(
    "text",
    ["a b", "in()", "in(a", "in(a),b", "in(a,,b)", "IN(a)", "! a", "!!a", "-a", "a-", "a,b", "x" * 64, "in(in(a))"],
)
def test_selectors_that_are_not_understood(text: str) -> None:
    with pytest.raises(ValueError, match="zone"):
        parse_selector({"zone": text})


@pytest.mark.parametrize("key", ["", "a b", "-a", "a/b/c", "/a", "a/", "x" * 64])
def test_keys_that_are_none(key: str) -> None:
    with pytest.raises(ValueError, match="name of a label"):
        parse_selector({key: "a"})


def test_types() -> None:
    with pytest.raises(TypeError):
        parse_selector(["zone"])  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        parse_selector({1: "a"})  # type: ignore[dict-item]
    with pytest.raises(ValueError):
        parse_selector({"zone": None})  # type: ignore[dict-item]
    assert parse_selector({"ray.io/node-id": "ab"}) == [("ray.io/node-id", IN, ("ab",))]


@pytest.mark.parametrize("text", ["{", "[]", "5", '{"hard": [["a"]]}', '{"hard": 5}', '{"else": [5], "hard": []}'])
def test_what_cannot_be_read_refuses(text: str) -> None:
    assert "cannot be read" in refuse(text, HERE)


def test_all_hard_conditions_count_and_the_reason_names_those_that_fail() -> None:
    text = encode([("zone", IN, ("a",)), ("tier", NOT_IN, ("gold",)), ("gpu", EXISTS, ())])
    assert refuse(text, HERE) == ("it wants a label gpu and tier not in (gold), the node has no label gpu, tier=gold")


def test_wishes_never_refuse_and_a_fallback_may_hold_instead() -> None:
    assert refuse(encode([], [("zone", IN, ("b",))]), HERE) == ""
    hard: list[Condition] = [("zone", IN, ("b",))]
    assert refuse(encode(hard, otherwise=[[("zone", IN, ("c",))], [("tier", EXISTS, ())]]), HERE) == ""
    assert refuse(encode(hard, otherwise=[[("zone", IN, ("c",))]]), HERE) != ""
    assert refuse(encode(hard, otherwise=[[]]), HERE) == ""


_NAME = st.from_regex(r"[a-z]([a-z._-]{0,5}[a-z])?", fullmatch=True)
_CONDITION = st.one_of(
    st.tuples(_NAME, st.sampled_from([IN, NOT_IN]), st.lists(_NAME, min_size=1, max_size=3).map(tuple)),
    st.tuples(_NAME, st.sampled_from([EXISTS, ABSENT]), st.just(())),
)


@given(hard=st.lists(_CONDITION, max_size=4), soft=st.lists(_CONDITION, max_size=4), has=st.dictionaries(_NAME, _NAME))
def test_what_travels_means_the_same(hard: list[Condition], soft: list[Condition], has: dict[str, str]) -> None:
    text = encode(hard, soft)
    assert text == encode(hard[::-1], soft[::-1])
    assert (text == "") == (not hard and not soft)
    assert text == "" or json.loads(text)
    assert (refuse(text, has) == "") == all(holds(c, has) for c in hard)
    assert prefers(text, has) == all(holds(c, has) for c in soft)


@given(values=st.lists(_NAME, min_size=1, max_size=3, unique=True), negated=st.booleans(), has=st.none() | _NAME)
def test_a_selector_says_the_same_as_in(values: list[str], negated: bool, has: str | None) -> None:
    text = f"{'!' if negated else ''}in({','.join(values)})"
    found = {} if has is None else {"key": has}
    assert (refuse(encode(parse_selector({"key": text})), found) == "") == ((has in values) != negated)


def test_values_of_nodes() -> None:
    for value in ("", "a", "A.b-c_9"):
        labels.check_value("key", value)
    for value in ("a b", "-", "x" * 64):
        with pytest.raises(ValueError, match="key"):
            labels.check_value("key", value)


# ---------------------------------------------------------------- places


def test_places() -> None:
    assert refuse_place(ANYWHERE, "n1", {}) == ""
    assert refuse_place(Place(node="n1"), "n1", {}) == ""
    assert "n2" in refuse_place(Place(node="n2"), "n1", {})
    assert refuse_place(Place(node="n2", soft=True), "n1", {}) == ""
    zone = encode(parse_selector({"zone": "b"}))
    assert "zone in (b)" in refuse_place(Place(labels=zone), "n1", HERE)
    assert "zone in (b)" in refuse_place(Place(node="n2", soft=True, labels=zone), "n1", HERE)
    assert refuse_place(Place(labels=zone), "n1", {"zone": "b"}) == ""
