"""Values through the store and through tasks; arrays without copies."""

from __future__ import annotations

import collections
import datetime
import decimal
import fractions
import gc
import math
import pathlib
import re
import uuid
from typing import Any

import numpy as np
import pytest
import ray

pytestmark = pytest.mark.usefixtures("cluster")
TIMEOUT = 60


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=TIMEOUT)


def identity_task() -> Any:
    @ray.remote
    def identity(x: Any) -> Any:
        return x

    return identity


# ---------------------------------------------------------------- values


VALUES = [
    None,
    True,
    0,
    -1,
    2**100,
    1.5,
    math.inf,
    1 + 2j,
    "",
    "text",
    "\u00e9\u4e2d\U0001f600\x00",
    b"",
    b"bytes",
    (),
    (1, "two", None),
    [],
    [[1], [2, [3]]],
    {},
    {"a": {"b": [1, 2]}, 3: None, (1, 2): "tuple"},
    {1, 2, 3},
    frozenset([1, 2]),
    range(0, 10, 3),
    slice(1, 2),
    ...,
    int,
    len,
    datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.UTC),
    datetime.timedelta(days=1),
    decimal.Decimal("1.10"),
    fractions.Fraction(1, 3),
    uuid.UUID(int=5),
    pathlib.PurePosixPath("/a/b"),
    re.compile("a+"),
    collections.OrderedDict(b=1, a=2),
    collections.Counter("abca"),
    collections.deque([1, 2], maxlen=3),
    collections.defaultdict(list, a=[1]),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:30].encode("unicode_escape").decode())
def test_values_come_back_equal_and_of_their_type(value: Any) -> None:
    through_task = get(identity_task().remote(value))
    through_store = get(ray.put(value))

    for found in (through_task, through_store):
        assert type(found) is type(value)
        assert found == value


@pytest.mark.improves("a bytearray stays one; Ray makes it bytes")
def test_bytearrays_stay_bytearrays() -> None:
    assert get(ray.put(bytearray(b"abc"))) == bytearray(b"abc")
    assert type(get(identity_task().remote(bytearray(b"abc")))) is bytearray


def test_values_that_contain_themselves() -> None:
    loop: list[Any] = [1]
    loop.append(loop)

    found = get(ray.put(loop))

    assert found[1] is found


@pytest.mark.improves("values are pickled whole: what is shared inside stays so. On Ray it depends on the types")
def test_what_is_shared_inside_a_value_stays_shared() -> None:
    inner = [1]

    first, second = get(ray.put([inner, inner]))

    assert first is second


def test_each_get_gives_a_value_of_its_own() -> None:
    ref = ray.put([1])
    get(ref).append(2)

    assert get(ref) == [1]


def test_a_put_value_is_a_copy() -> None:
    value = [1]
    ref = ray.put(value)
    value.append(2)

    assert get(ref) == [1]


def test_functions_and_classes_are_values() -> None:
    base = 10

    def add(x: int) -> int:
        return x + base

    class Thing:
        kind = "thing"

    function, cls = get(ray.put((add, Thing)))

    assert function(1) == 11
    assert cls.kind == "thing"


def test_what_cannot_be_pickled_cannot_be_put() -> None:
    with pytest.raises(TypeError):
        ray.put(i for i in range(3))


def test_refs_and_generators_are_not_values_of_their_own() -> None:
    with pytest.raises(TypeError):
        ray.put(ray.put(1))


# ---------------------------------------------------------------- arrays


@pytest.mark.parametrize("dtype", ["i1", "i8", "f4", "f8", "c16", "?", "U5", "M8[s]"])
def test_arrays_of_many_types(dtype: str) -> None:
    array = np.arange(40_000).astype(dtype).reshape(200, 200)

    for found in (get(ray.put(array)), get(identity_task().remote(array))):
        assert found.dtype == array.dtype and found.shape == array.shape
        assert (found == array).all()


@pytest.mark.parametrize("length", [10, 1_000_000])
def test_arrays_are_read_only(length: int) -> None:
    array = np.zeros(length)

    for found in (get(ray.put(array)), get(identity_task().remote(array))):
        assert not found.flags.writeable
        with pytest.raises(ValueError):
            found[0] = 1
        assert found.copy().flags.writeable


def test_arrays_are_read_only_in_tasks_as_well() -> None:
    @ray.remote
    def write(array: Any) -> bool:
        try:
            array[0] = 1
        except ValueError:
            return False
        return True

    assert get(write.remote(ray.put(np.zeros(100_000)))) is False


def test_big_arrays_are_not_copied() -> None:
    ref = ray.put({"deep": [np.arange(1_000_000)]})

    first, second = get(ref)["deep"][0], get(ref)["deep"][0]

    assert np.shares_memory(first, second)


def test_arrays_outlive_their_refs() -> None:
    arrays = [get(ray.put(np.full(500_000, n))) for n in range(5)]
    gc.collect()
    for n in range(5, 15):
        get(ray.put(np.full(500_000, n)))

    assert [int(array.sum()) for array in arrays] == [n * 500_000 for n in range(5)]


def test_arrays_of_any_layout() -> None:
    base = np.arange(120_000).reshape(300, 400)
    arrays = [base.T, base[::2, ::3], np.asfortranarray(base), np.zeros((0, 5)), np.array(3), np.float32(1.5)]

    for array, found in zip(arrays, get(ray.put(arrays)), strict=True):
        assert found.shape == array.shape and (found == array).all()


def test_arrays_of_objects() -> None:
    array = np.array([{"x": 1}, None, "text"], dtype=object)

    assert list(get(ray.put(array))) == [{"x": 1}, None, "text"]


def test_pandas_frames() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": range(50_000), "b": [str(n) for n in range(50_000)]})

    assert get(identity_task().remote(frame)).equals(frame)


def test_arrow_tables() -> None:
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table({"a": list(range(50_000)), "b": [str(n) for n in range(50_000)]})

    assert get(identity_task().remote(table)).equals(table)
