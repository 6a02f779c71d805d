"""Fixed-point resources: exact, closed under add and subtract, and strict about what users write."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noded.resources import MAX_UNITS, UNIT, ResourceSet

NAMES = st.sampled_from(["CPU", "GPU", "memory", "disk", "accelerator_type:X"])
SETS = st.dictionaries(NAMES, st.integers(0, 2**50)).map(ResourceSet)


@given(SETS, SETS)
def test_add_then_subtract_is_identity(a: ResourceSet, b: ResourceSet) -> None:
    assert a.add(b).subtract(b) == a
    assert a.subtract_over(b).add(b) == a
    assert a.add(b) == b.add(a)


@given(SETS, SETS)
def test_fits_missing_and_subtract_agree(want: ResourceSet, have: ResourceSet) -> None:
    fits = all(have.get(name, 0) >= amount for name, amount in want.items())
    assert want.fits(have) is fits
    assert (want.missing(have) == {}) is fits
    if fits:
        assert have.subtract(want) == have.subtract_over(want)
    else:
        with pytest.raises(ValueError, match="wanted"):
            have.subtract(want)
    assert want.fits(have.add(want))


@given(SETS)
def test_round_trips(a: ResourceSet) -> None:
    assert ResourceSet.from_dict(a.to_dict()) == a
    assert hash(ResourceSet.from_dict(a.to_dict())) == hash(a)
    assert pickle.loads(pickle.dumps(a)) == a
    assert 0 not in a.values()


@given(st.dictionaries(NAMES.filter(lambda name: name != "GPU"), st.integers(0, 2**50)))
def test_floats_come_back_exactly(units: dict[str, int]) -> None:
    a = ResourceSet(units)
    assert ResourceSet.from_floats(a.to_floats()) == a


@given(st.lists(st.integers(0, 20_000), min_size=1, max_size=50))
def test_no_drift(amounts: list[int]) -> None:
    total = ResourceSet()
    for amount in amounts:
        total = total.add(ResourceSet.from_floats({"CPU": amount / UNIT}))
    assert total.get("CPU", 0) == sum(amounts)


def test_tenths_add_up() -> None:
    tenth = ResourceSet.from_floats({"CPU": 0.1})
    total = ResourceSet()
    for _ in range(10):
        total = total.add(tenth)
    assert total == ResourceSet.from_floats({"CPU": 1.0})
    assert ResourceSet.from_floats({"CPU": 0.1 + 0.2}) == ResourceSet.from_floats({"CPU": 0.3})


def test_four_decimals_are_kept_and_zeros_dropped() -> None:
    assert ResourceSet.from_floats({"CPU": 0.00014, "GPU": 0, "x": 0.00001}).to_dict() == {"CPU": 1}
    assert ResourceSet({"CPU": 0}) == ResourceSet()
    assert ResourceSet.from_floats({"CPU": 2}).subtract(ResourceSet.from_floats({"CPU": 2})).to_dict() == {}


def test_big_whole_numbers_are_exact() -> None:
    memory = 2 * 1024**4 + 1
    assert ResourceSet.from_floats({"memory": memory})["memory"] == memory * UNIT
    assert ResourceSet.from_floats({"memory": float(memory)})["memory"] == memory * UNIT


@pytest.mark.parametrize("amount", [-1, -0.0001, float("nan"), float("inf"), True, "1", None, MAX_UNITS, 1e300])
def test_bad_amounts_are_refused_by_name(amount: object) -> None:
    with pytest.raises(ValueError, match="resource CPU"):
        ResourceSet.from_floats({"CPU": amount})  # type: ignore[dict-item]


def test_gpus_are_whole_above_one() -> None:
    for good in (0.25, 1, 1.0, 2, 1.00001):
        ResourceSet.from_floats({"GPU": good})
    with pytest.raises(ValueError, match="fractional quantities only below 1"):
        ResourceSet.from_floats({"GPU": 1.5})
    ResourceSet.from_floats({"CPU": 1.5})


def test_from_dict_refuses_what_a_peer_may_make_up() -> None:
    for bad in ({"CPU": 1.5}, {"CPU": True}, {1: 1}, {"": 1}):
        with pytest.raises(ValueError, match="resource entry"):
            ResourceSet.from_dict(bad)  # type: ignore[arg-type]


def test_over_commitment_is_visible_and_blocks_grants() -> None:
    one = ResourceSet.from_floats({"CPU": 1})
    owed = ResourceSet().subtract_over(one)
    assert owed.to_floats() == {"CPU": -1.0}
    assert not one.fits(owed)
    assert one.missing(owed) == {"CPU": 2.0}
    assert owed.add(one) == ResourceSet()


def test_reads_well() -> None:
    a = ResourceSet.from_floats({"CPU": 1, "GPU": 0.5})
    assert repr(a) == "ResourceSet(CPU=1, GPU=0.5)"
    assert dict(a) == {"CPU": UNIT, "GPU": UNIT // 2}
    assert a != {"CPU": UNIT, "GPU": UNIT // 2}
    with pytest.raises(ValueError, match="CPU: 2 wanted, 1 there"):
        a.subtract(ResourceSet.from_floats({"CPU": 2}))


def test_a_pickle_does_not_carry_this_process_hash() -> None:
    a = ResourceSet.from_floats({"CPU": 1})
    hash(a)
    code = (
        "import pickle, sys; from noded.resources import ResourceSet; "
        "a = pickle.loads(sys.stdin.buffer.read()); assert a in {ResourceSet.from_floats({'CPU': 1})}"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", code], input=pickle.dumps(a), env=env, check=True, timeout=30)
