"""The layout of values: what goes in comes out, buffers are aligned, and bytes that are no value are refused."""

from __future__ import annotations

import pickle
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noded.wire import value
from noded.wire.value import ALIGN, ERROR, EXTENDED, HEAD_SIZE, Plan, assemble, ids_in, parse, plan

_IDS = st.lists(st.binary(min_size=16, max_size=16), max_size=20)
_BUFFERS = st.lists(st.binary(max_size=200), max_size=6)


def build(flags: int, data: bytes, buffers: list[bytes], ids: list[bytes]) -> Plan:
    return plan(flags, data, [memoryview(b) for b in buffers], ids)


@given(data=st.binary(max_size=300), buffers=_BUFFERS, ids=_IDS, flags=st.sampled_from([0, ERROR]))
def test_round_trip(data: bytes, buffers: list[bytes], ids: list[bytes], flags: int) -> None:
    made = build(flags, data, buffers, ids)
    whole = memoryview(assemble(made))
    assert len(whole) == made.size
    parts = parse(whole)
    assert parts.flags == flags | EXTENDED
    assert bytes(parts.pickle) == data
    assert [bytes(whole[at : at + n]) for at, n in parts.buffers] == buffers
    assert all(at % ALIGN == 0 for at, n in parts.buffers)
    assert ids_in(whole) == ids and parts.n_ids == len(ids)
    # The pieces written one by one, as into the arena, over memory that is not clean.
    dirty = bytearray(b"\xff" * made.size)
    for at, piece in made.pieces:
        dirty[at : at + len(piece)] = piece
    again = parse(memoryview(dirty))
    assert [bytes(dirty[at : at + n]) for at, n in again.buffers] == buffers


@given(data=st.binary(max_size=50), buffers=_BUFFERS, ids=_IDS, keep=st.floats(0, 1, exclude_max=True))
def test_truncated_values_are_refused(data: bytes, buffers: list[bytes], ids: list[bytes], keep: float) -> None:
    whole = assemble(build(0, data, buffers, ids))
    cut = memoryview(whole)[: max(1, int(len(whole) * keep))]
    if len(cut) == len(whole):
        return
    with pytest.raises(ValueError, match="truncated"):
        parse(cut)
    try:
        assert ids_in(cut) == ids, "all ids are there although something behind them is cut off"
    except ValueError:
        assert len(cut) < HEAD_SIZE + 16 * len(ids) + 8 * len(buffers)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_refused(data: bytes) -> None:
    view = memoryview(data)
    for read in (parse, ids_in):
        if read is parse and not data:
            continue
        try:
            read(view)
        except ValueError:
            assert data[0] & EXTENDED


def test_a_head_that_announces_billions_costs_nothing() -> None:
    """A daemon walks what a dead or hostile client has left."""
    for counts in ((2**32 - 1, 0, 0), (0, 2**32 - 1, 0), (1, 1, 2**64 - 1)):
        data = memoryview(struct.pack("<B3xIIxxxxQ", EXTENDED, *counts) + b"x" * 100)
        with pytest.raises(ValueError):
            parse(data)
        if counts[0] == 2**32 - 1 or counts[1]:
            with pytest.raises(ValueError):
                ids_in(data) if counts[2] == 0 else parse(data)


def test_ids_are_read_without_unpickling() -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return pytest.fail, ("the value was unpickled",)

    ids = [b"%016d" % i for i in range(3)]
    assert ids_in(memoryview(assemble(build(0, pickle.dumps(Bomb()), [], ids)))) == ids


def test_plain_values_have_no_ids() -> None:
    assert ids_in(memoryview(b"")) == []
    assert ids_in(memoryview(b"\0" + pickle.dumps(5))) == []
    parts = parse(memoryview(b"\x02abc"))
    assert (parts.flags, bytes(parts.pickle), parts.n_ids, parts.buffers) == (ERROR, b"abc", 0, [])


@pytest.mark.parametrize(("n", "aligned"), [(0, 0), (1, 64), (63, 64), (64, 64), (65, 128)])
def test_align(n: int, aligned: int) -> None:
    assert value.align(n) == aligned
