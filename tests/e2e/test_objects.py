"""Objects as a user meets them: put, get and wait, zero-copy views, refs in values, and room in the store."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.wait import wait_for

import noded
from noded.client.runtime import current
from noded.exceptions import GetTimeoutError

pytestmark = pytest.mark.usefixtures("cluster")
TIMEOUT = 30
MB = 1 << 20


def get(refs: Any) -> Any:
    return noded.get(refs, timeout=TIMEOUT)


@noded.remote
def same(value: Any) -> Any:
    return value


@noded.remote
def when(path: Path, value: Any = None) -> Any:
    wait_for(path.exists, f"the test never made {path}")
    return value


@noded.remote
def zeros(size: int) -> Any:
    return np.zeros(size, dtype=np.uint8)


@dataclass
class Box:
    ref: Any
    label: str = ""


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("size", [0, 1, 100, 99_000, 102_400, 102_401, 1 * MB, 5 * MB])
def test_values_of_every_size_come_back(size: int) -> None:
    data = os.urandom(size)

    assert get(noded.put(data)) == data
    assert get(same.remote(data)) == data
    assert get(same.remote(noded.put(bytearray(data)))) == data


def test_arrays_of_every_layout_come_back_equal() -> None:
    base = np.arange(120_000).reshape(300, 400)
    arrays = [
        base,
        base.T,
        base[::2, ::3],
        np.asfortranarray(base),
        base.astype("f4"),
        np.array(["a", "bc"]),
        np.array([{"x": 1}, None], dtype=object),
        np.zeros((0, 5)),
        np.float64(1.5),
        np.array(3),
        np.ma.masked_array([1, 2], [True, False]),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    ]

    puts, results = get([noded.put(a) for a in arrays]), get([same.remote(a) for a in arrays])
    for array, back, through in zip(arrays, puts, results, strict=True):
        for one in (back, through):
            assert type(one) is type(array) and one.dtype == array.dtype
            assert np.array_equal(one, array)


def test_many_arrays_in_one_value() -> None:
    value = {"list": [np.full(1000, i) for i in range(50)], "deep": ({"x": np.ones((300, 300))},)}
    back = get(same.remote(value))

    assert all((back["list"][i] == i).all() for i in range(50))
    assert back["deep"][0]["x"].sum() == 90_000


def test_a_put_value_is_a_copy() -> None:
    numbers = [1, 2, 3]
    array = np.zeros(200_000)
    refs = noded.put(numbers), noded.put(array)
    numbers.append(4)
    array[:] = 1

    assert get(refs[0]) == [1, 2, 3]
    assert not get(refs[1]).any()
    got = get(refs[0])
    got.append(5)
    assert get(refs[0]) == [1, 2, 3]


# ---------------------------------------------------------------- views


def test_arrays_are_read_only_views_of_the_same_memory() -> None:
    ref = noded.put(np.arange(1_000_000))
    one, two = get(ref), get(ref)

    assert one.ctypes.data == two.ctypes.data
    assert not one.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        one[0] = 1
    with pytest.raises(ValueError):
        one.setflags(write=True)


@pytest.mark.parametrize("size", [20_000, 3 * MB])
def test_the_kernel_refuses_writes_to_a_view(size: int) -> None:
    """Not only numpy's flag: the pages are mapped read-only, so a write in C ends the process that tries it."""

    def write(array: Any) -> None:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        ctypes.memset(array.ctypes.data, 1, 1)

    ref = noded.put([np.zeros(size, dtype=np.float64)])
    view = get(ref)[0]
    child = os.fork()
    if child == 0:
        try:
            write(view)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)

    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSEGV
    with pytest.raises(noded.exceptions.WorkerCrashedError, match="SIGSEGV"):
        get(noded.remote(lambda box: write(noded.get(box[0])[0])).options(max_retries=0).remote([ref]))
    assert not view.any()


def test_a_view_outlives_its_ref() -> None:
    ref = noded.put(np.full(4 * MB, 7, dtype=np.uint8))
    view = get(ref)
    part = view[MB : 2 * MB]
    del ref, view
    gc.collect()
    for _ in range(80):  # more than the store holds, so that freed room would be used again
        noded.put(np.zeros(4 * MB, dtype=np.uint8))

    assert (part == 7).all()


def test_a_view_in_a_worker_outlives_the_drivers_ref() -> None:
    @noded.remote
    class Keeper:
        def keep(self, array: Any) -> None:
            self.array = array

        def check(self) -> bool:
            return bool((self.array == 9).all())

    keeper = Keeper.remote()
    get(keeper.keep.remote(np.full(2 * MB, 9, dtype=np.uint8)))
    for _ in range(150):
        noded.put(np.zeros(2 * MB, dtype=np.uint8))

    assert get(keeper.check.remote())


def test_one_big_argument_for_many_tasks() -> None:
    array = np.arange(500_000)
    ref = noded.put(array)
    total = noded.remote(lambda a, i: int(a.sum()) + i)

    assert get([total.remote(ref, i) for i in range(20)]) == [int(array.sum()) + i for i in range(20)]
    assert get([total.remote(array, i) for i in range(5)]) == [int(array.sum()) + i for i in range(5)]


def test_big_results_pass_from_task_to_task() -> None:
    ref = zeros.remote(3 * MB)
    for _ in range(5):
        ref = same.remote(ref)

    assert get(ref).nbytes == 3 * MB


# ---------------------------------------------------------------- refs in values


def test_refs_in_dicts_objects_and_lists() -> None:
    inner = [noded.put(1), same.remote(b"x" * 200_000)]
    outer = noded.put({"box": Box(inner[0], "b"), "list": inner, "tuple": ([inner[1]],)})
    found = get(outer)

    assert get(found["box"].ref) == 1 and found["box"].label == "b"
    assert found["list"][0] is inner[0]
    assert len(get(found["tuple"][0][0])) == 200_000
    assert get(get(same.remote(Box([inner[0]]))).ref[0]) == 1


def test_nested_refs_live_as_long_as_what_contains_them() -> None:
    outer = noded.put([noded.put([noded.put(np.full(2 * MB, 5, dtype=np.uint8))])])
    gc.collect()
    for _ in range(5):
        noded.put(np.zeros(2 * MB, dtype=np.uint8))
    [[leaf]] = [get(get(outer)[0])]

    assert (get(leaf) == 5).all()


def test_refs_of_refs_through_tasks() -> None:
    @noded.remote
    def wrap(nested: list[Any]) -> Any:
        return [noded.put([nested[0]])]

    ref = wrap.remote([same.remote("deep")])
    for _ in range(2):
        ref = get(ref)[0]

    assert get(ref) == "deep"


def test_ten_thousand_refs_in_one_value() -> None:
    refs = [noded.put(i) for i in range(10_000)]
    boxed = noded.put(refs)

    @noded.remote
    def total(box: list[Any]) -> int:
        return int(sum(noded.get(noded.get(box[0]))))

    assert get(total.remote([boxed])) == sum(range(10_000))
    assert get(get(boxed)[9_999]) == 9_999


def test_thousands_of_refs_as_arguments_and_in_get() -> None:
    count = noded.remote(lambda *values: sum(values))
    refs = [same.remote(i) for i in range(2000)]

    assert get(refs) == list(range(2000))
    assert get(count.remote(*refs)) == sum(range(2000))


def test_pending_refs_travel() -> None:
    @noded.remote
    def wait_for_it(box: list[Any]) -> Any:
        return noded.get(box[0])

    @noded.remote
    def number() -> int:
        return 6

    assert get([wait_for_it.remote([number.remote()]) for _ in range(20)]) == [6] * 20


# ---------------------------------------------------------------- get and wait


def test_get_times_out_and_the_task_goes_on(tmp_path: Path) -> None:
    ref = when.remote(tmp_path / "gate", "late")

    for timeout in (0, 0.05):
        with pytest.raises(GetTimeoutError, match="1 of 1 objects are not ready") as caught:
            noded.get(ref, timeout=timeout)
        assert isinstance(caught.value, TimeoutError)
    (tmp_path / "gate").touch()
    assert get(ref) == "late"
    assert noded.get(ref, timeout=0) == "late"


def test_wait_returns_what_is_ready_in_order(tmp_path: Path) -> None:
    slow = [when.remote(tmp_path / f"gate{i}", i) for i in range(2)]
    fast = [noded.put("a"), noded.put("b")]

    assert noded.wait([slow[0], fast[0], slow[1]], timeout=0) == ([fast[0]], [slow[0], slow[1]])
    assert noded.wait([slow[0], *fast], num_returns=1) == ([fast[0]], [slow[0], fast[1]])
    assert noded.wait([slow[0], *fast], num_returns=3, timeout=0.05) == (fast, [slow[0]])
    (tmp_path / "gate1").touch()
    assert noded.wait(slow, timeout=TIMEOUT) == ([slow[1]], [slow[0]])
    (tmp_path / "gate0").touch()
    assert noded.wait(slow, num_returns=2, timeout=TIMEOUT) == (slow, [])
    assert noded.wait(slow, num_returns=2, timeout=0, fetch_local=False) == (slow, [])


def test_wait_counts_failed_tasks_as_ready() -> None:
    def fail() -> None:
        raise ValueError

    ref = noded.remote(fail).remote()

    assert noded.wait([ref], timeout=TIMEOUT) == ([ref], [])


def test_wait_on_thousands_until_all_are_taken() -> None:
    left = [same.remote(i) for i in range(1500)]
    seen = []
    while left:
        ready, left = noded.wait(left, num_returns=min(100, len(left)), timeout=TIMEOUT)
        seen += get(ready)

    assert sorted(seen) == list(range(1500))


def test_wait_with_timeout_zero_on_borrowed_refs() -> None:
    """A ref of another process needs the daemon's word; with no time it may be called not ready, but later it is."""

    @noded.remote
    class Owner:
        def refs(self) -> Any:
            return [noded.put(1)]

    owner = Owner.remote()
    [ref] = get(owner.refs.remote())

    wait_for(lambda: noded.wait([ref], timeout=0)[0], "a borrowed ref that has its value never became ready")
    assert noded.get(ref, timeout=0) == 1


# ---------------------------------------------------------------- room


def test_the_store_is_empty_after_drops(node_status: Callable[[], dict[str, Any]]) -> None:
    at_first = node_status()["store"]["used_bytes"]
    puts = [noded.put(np.zeros(2 * MB, dtype=np.uint8)) for _ in range(10)]
    results = [zeros.remote(2 * MB) for _ in range(10)]
    views = get(puts + results)

    assert node_status()["store"]["used_bytes"] >= at_first + 40 * MB
    del puts, results
    gc.collect()
    assert node_status()["store"]["used_bytes"] >= at_first + 40 * MB
    del views
    gc.collect()
    wait_for(
        lambda: node_status()["store"]["used_bytes"] <= at_first, lambda: f"not given back: {node_status()['store']}"
    )
    assert node_status()["store"]["objects"] == 0


def test_dropped_room_is_used_again() -> None:
    """In all four times the store, without a pause in which it could be cleaned up."""
    for i in range(64):
        value = get(noded.put(np.full(16 * MB, i, dtype=np.uint8)))
        assert value[0] == value[-1] == i
        del value


def test_results_nobody_wants_leave_nothing() -> None:
    for _ in range(40):
        zeros.remote(8 * MB)
    assert get(same.remote("after")) == "after"


def test_a_put_waits_for_room_that_becomes_free() -> None:
    import threading

    full = [noded.put(np.zeros(100 * MB, dtype=np.uint8)), noded.put(np.zeros(100 * MB, dtype=np.uint8))]
    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(noded.put(np.ones(100 * MB, dtype=np.uint8))))
    thread.start()
    try:
        assert not made
        full.pop()
        thread.join(TIMEOUT)
        assert made and get(made[0])[-1] == 1
    finally:
        full.clear()
        thread.join(TIMEOUT)


def test_a_dropped_object_is_given_up_though_nothing_else_happens(cluster: Any) -> None:
    """Writing into a slab brings no message that would wake the helper: the first hold must."""
    runtime = current()
    assert runtime is not None
    for _ in range(5):
        wait_for(lambda: runtime.control._for_good, "the helper does not come to rest")
        ref = noded.put(np.zeros(20_000))
        del ref
        wait_for(lambda: not runtime.holds.dead and not runtime.holds.holds, "a dropped object is still held")
