"""The codec: values to bytes and back, refs beside the pickle, and errors that say what is wrong."""

from __future__ import annotations

import copyreg
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noded.client import codec, refs
from noded.client.refs import ObjectRef
from noded.exceptions import SerializationError
from noded.wire import value as layout

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner) | st.frozensets(st.integers())
    ),
    max_leaves=20,
)


@pytest.fixture(autouse=True)
def prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refs, "own_prefix", b"testing")


def entries(view: memoryview) -> list[Any]:
    return [f"ref {id_.hex()}" for id_ in layout.ids_in(view)]


def through(value: Any, **options: Any) -> Any:
    packed = codec.pack(value, "a value", **options)
    data = packed.as_bytes()
    assert len(data) == packed.size
    return codec.unpack(memoryview(data), entries)[0]


@given(_VALUES)
def test_round_trip(value: Any) -> None:
    result = through(value)
    assert result == value and type(result) is type(value)


def test_none_is_no_bytes_at_all() -> None:
    assert codec.pack(None, "a value").as_bytes() == b""
    assert codec.unpack(memoryview(b""), entries) == (None, False)


def test_error_values_say_so() -> None:
    data = codec.pack(ValueError("x"), "an error", error=True).as_bytes()
    value, failed = codec.unpack(memoryview(data), entries)
    assert failed and isinstance(value, ValueError)
    assert codec.unpack(memoryview(codec.pack(None, "an error", error=True).as_bytes()), entries) == (None, True)


@pytest.mark.parametrize("dtype", ["u1", "f8", "c16", "M8[ns]", [("a", "i4"), ("b", "f8")]])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 5), (2, 0, 4)])
def test_arrays_travel_as_aligned_buffers(dtype: Any, shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, dtype)
    for value in (array, [array, {"x": array}]):
        data = memoryview(codec.pack(value, "a value").as_bytes())
        result = codec.unpack(data, entries)[0]
        found = result if value is array else result[1]["x"]
        assert found.dtype == array.dtype and found.shape == shape
        np.testing.assert_array_equal(found, array)
        if array.size and layout.parse(data).buffers:
            assert not found.flags.writeable, "a view of shared memory is read-only"
    if value is not array and array.size:
        assert result[0] is result[1]["x"], "one array stays one array"


@pytest.mark.parametrize("order", ["F", "strided", "reversed"])
def test_arrays_that_do_not_lie_in_one_piece(order: str) -> None:
    base = np.arange(60.0).reshape(6, 10)
    array = {"F": np.asfortranarray(base), "strided": base[::2, ::3], "reversed": base[::-1]}[order]
    for value in (array, (array,)):
        result = through(value)
        np.testing.assert_array_equal(result if value is array else result[0], array)


def test_arrays_of_objects_carry_refs_and_lambdas() -> None:
    array = np.array([ObjectRef(1), lambda: 7], object)
    result = through(array)
    assert result[0].startswith("ref ") and result[1]() == 7


def test_a_buffer_may_be_pinned_where_it_lies() -> None:
    data = memoryview(codec.pack([np.arange(100), np.arange(3)], "a value").as_bytes())
    asked: list[tuple[int, int]] = []

    def buffer(at: int, size: int) -> memoryview:
        asked.append((at, size))
        return data[at : at + size].toreadonly()

    codec.unpack(data, entries, buffer)
    assert asked == layout.parse(data).buffers and len(asked) == 2


def test_refs_are_beside_the_pickle_and_counted_once() -> None:
    refs_ = [ObjectRef(i) for i in range(1, 5)]
    packed = codec.pack({"a": refs_, "again": refs_[0]}, "a value")
    assert packed.refs == refs_
    data = memoryview(packed.as_bytes())
    assert layout.ids_in(data) == [ref.binary() for ref in refs_]
    loaded = codec.unpack(data, entries)[0]
    assert loaded["again"] == loaded["a"][0] == f"ref {refs_[0].hex()}"


def test_ten_thousand_refs_are_small() -> None:
    made = [ObjectRef(i) for i in range(10_000)]
    packed = codec.pack(made, "a value")
    assert packed.size < 10_000 * (16 + 16)
    assert len(codec.unpack(memoryview(packed.as_bytes()), entries)[0]) == 10_000


def test_a_ref_pickled_by_hand_needs_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refs, "hooks", refs.Hooks())
    with pytest.raises(RuntimeError, match=r"noded.init"):
        pickle.dumps(ObjectRef(1))


def test_packing_while_packing() -> None:
    """A ``__reduce__`` that packs something itself keeps its refs apart."""
    inner, outer = ObjectRef(1), ObjectRef(2)

    class Nested:
        def __reduce__(self) -> Any:
            packed = codec.pack([inner], "inside")
            assert packed.refs == [inner]
            return len, ("four",)

    packed = codec.pack([outer, Nested(), outer], "a value")
    assert packed.refs == [outer]
    assert codec.unpack(memoryview(packed.as_bytes()), entries)[0][1] == 4


def test_threads_pack_apart() -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(200):
                made = [ObjectRef(number * 1000 + i + n) for n in range(3)]
                packed = codec.pack([made, made], "a value")
                assert packed.refs == made
                loaded = codec.unpack(memoryview(packed.as_bytes()), entries)[0]
                assert loaded[0] == [f"ref {ref.hex()}" for ref in made]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors


def _by_closure() -> Callable[[int], int]:
    base = 5
    return lambda x: x + base


def test_functions_and_local_classes_go_by_value() -> None:
    class Local:
        def value(self) -> int:
            return 3

    assert through(_by_closure())(2) == 7
    assert through(Local)().value() == 3
    assert through([Local()])[0].value() == 3


def test_what_cannot_be_pickled_is_named() -> None:
    class Holder:
        def __init__(self) -> None:
            self.fine = 1
            self.lock = threading.Lock()

    with pytest.raises(SerializationError) as caught:
        codec.pack({"key": [Holder()]}, "argument 2 of f")
    text = str(caught.value)
    assert "argument 2 of f" in text and "lock" in text and "dict" in text
    assert codec._state.entries is None and codec._state.index is None, "nothing is left of the failed attempt"


def test_what_fails_while_it_is_packed_or_loaded_leaves_no_state() -> None:
    class Interrupts:
        def __reduce__(self) -> Any:
            raise KeyboardInterrupt

    class BreaksOnLoad:
        def __reduce__(self) -> Any:
            return int, ("no number",)

    with pytest.raises(KeyboardInterrupt):
        codec.pack([Interrupts()], "a value")
    assert codec._state.entries is None
    with pytest.raises(ValueError, match="no number"):
        through([BreaksOnLoad(), ObjectRef(1)])
    assert codec._state.entries is None


@given(st.binary(max_size=100), st.integers(0, 200))
def test_damaged_values_raise(data: bytes, keep: int) -> None:
    """Never a crash, never a hang: some exception, or some value."""
    whole = codec.pack([ObjectRef(1), np.arange(3), data], "a value").as_bytes()
    cut = memoryview(whole[: min(keep, len(whole) - 1)])
    if not len(cut):
        return
    with pytest.raises(Exception):  # noqa: B017
        codec.unpack(cut, entries)


def test_user_reducers_are_respected() -> None:
    class Odd:
        def __init__(self, n: int) -> None:
            self.n = n

    copyreg.pickle(Odd, lambda odd: (Odd, (odd.n + 1,)))
    try:
        assert through(Odd(1)).n == 2
    finally:
        copyreg.dispatch_table.pop(Odd)
