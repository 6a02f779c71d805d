"""Objects: get, wait, and refs wherever they go."""

from __future__ import annotations

import copy
import gc
import pathlib
import pickle
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import ray
from harness.gates import Gate, GateMaker

pytestmark = pytest.mark.usefixtures("cluster")
TIMEOUT = 60


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=TIMEOUT)


def identity_task() -> Any:
    @ray.remote
    def identity(x: Any) -> Any:
        return x

    return identity


def holding_task() -> Any:
    @ray.remote(num_cpus=0.1)
    def hold(gate: Any, value: Any = None) -> Any:
        gate.wait()
        return value

    return hold


# ---------------------------------------------------------------- get


def test_get_keeps_the_order_of_the_list() -> None:
    refs = [ray.put(n) for n in range(10)]

    assert get(refs[::-1]) == list(range(10))[::-1]
    assert get([]) == []


def test_get_takes_a_ref_more_than_once() -> None:
    ref = ray.put("x")

    assert get([ref, ref, ref]) == ["x", "x", "x"]


@pytest.mark.parametrize("wrong", [1, None, "ref", {"a": 1}], ids=repr)
def test_get_takes_refs_or_lists_of_them(wrong: Any) -> None:
    with pytest.raises(ValueError):
        ray.get(wrong)
    with pytest.raises(TypeError):
        ray.get([wrong])


def test_get_does_not_look_into_lists_of_lists() -> None:
    with pytest.raises(TypeError):
        ray.get([[ray.put(1)]])


def test_get_raises_the_first_error_of_a_list() -> None:
    @ray.remote
    def fail(kind: type[Exception]) -> None:
        raise kind("failed")

    with pytest.raises(KeyError):
        get([ray.put(1), fail.remote(KeyError), fail.remote(OSError)])


def test_a_failed_ref_fails_each_time() -> None:
    @ray.remote
    def fail() -> None:
        raise KeyError("again")

    ref = fail.remote()
    for _ in range(3):
        with pytest.raises(KeyError):
            get(ref)


@pytest.mark.parametrize("timeout", [0, 0.05, 0.2])
def test_get_times_out(timeout: float, gate: Gate) -> None:
    ref = holding_task().remote(gate, "late")

    with pytest.raises(ray.exceptions.GetTimeoutError) as caught:
        ray.get(ref, timeout=timeout)
    assert isinstance(caught.value, TimeoutError)
    gate.open()
    assert get(ref) == "late"


def test_get_without_waiting_gives_what_is_there() -> None:
    assert ray.get(ray.put(1), timeout=0) == 1


# ---------------------------------------------------------------- wait


def test_wait_gives_what_is_ready_in_the_order_of_the_list(gate: Gate) -> None:
    hold = holding_task()
    late = hold.remote(gate)
    refs = [ray.put(0), late, ray.put(1), ray.put(2)]

    ready, waiting = ray.wait(refs, num_returns=3, timeout=TIMEOUT)

    assert ready == [refs[0], refs[2], refs[3]]
    assert waiting == [late]
    gate.open()
    get(late)


def test_wait_gives_no_more_than_asked_for() -> None:
    refs = [ray.put(n) for n in range(5)]

    ready, waiting = ray.wait(refs, num_returns=2)

    assert len(ready) == 2 and len(waiting) == 3
    assert set(ready + waiting) == set(refs)
    assert len(ray.wait(refs)[0]) == 1


def test_wait_returns_less_after_its_timeout(gates: GateMaker) -> None:
    hold, gate = holding_task(), gates("gate")
    refs = [hold.remote(gate, n) for n in range(2)] + [ray.put(1)]

    start = time.monotonic()
    ready, waiting = ray.wait(refs, num_returns=2, timeout=0.2)

    assert time.monotonic() - start >= 0.15
    assert ready == refs[2:] and waiting == refs[:2]
    gate.open()
    assert get(refs[:2]) == [0, 1]


def test_wait_with_a_timeout_of_zero_only_looks(gate: Gate) -> None:
    ref = holding_task().remote(gate)

    assert ray.wait([ref], timeout=0) == ([], [ref])
    gate.open()
    get(ref)
    assert ray.wait([ref], timeout=0) == ([ref], [])


def test_wait_counts_errors_as_ready() -> None:
    @ray.remote
    def fail() -> None:
        raise KeyError

    ref = fail.remote()

    assert ray.wait([ref], timeout=TIMEOUT) == ([ref], [])


@pytest.mark.parametrize("fetch_local", [True, False])
def test_wait_with_and_without_fetching(fetch_local: bool) -> None:
    refs = [ray.put(np.zeros(200_000)), ray.put(1)]

    assert ray.wait(refs, num_returns=2, timeout=TIMEOUT, fetch_local=fetch_local) == (refs, [])


def test_wait_for_nothing() -> None:
    assert ray.wait([]) == ([], [])


def test_a_loop_over_wait_sees_each_ref_once() -> None:
    identity = identity_task()
    waiting, seen = [identity.remote(n) for n in range(20)], []
    while waiting:
        (ready,), waiting = ray.wait(waiting, timeout=TIMEOUT)
        seen.append(get(ready))

    assert sorted(seen) == list(range(20))


def test_wait_refuses_what_it_cannot_wait_for() -> None:
    ref = ray.put(1)
    for wrong in (ref, (ref,), 1, None):
        with pytest.raises(TypeError):
            ray.wait(wrong)
    with pytest.raises(TypeError):
        ray.wait([1])
    with pytest.raises(ValueError):
        ray.wait([ref, ref])
    for count in (0, -1, 2):
        with pytest.raises(ValueError):
            ray.wait([ref], num_returns=count)
    with pytest.raises(ValueError):
        ray.wait([ref], timeout=-1)


# ---------------------------------------------------------------- refs


@pytest.mark.may_leak("what a pickled ref names is kept for as long as the program runs")
def test_refs_are_compared_by_their_object() -> None:
    first, second = ray.put(1), ray.put(1)
    again = ray.cloudpickle.loads(ray.cloudpickle.dumps(first))

    assert first == again and hash(first) == hash(again) and len({first, again, second}) == 2
    assert first != second and first != 1
    assert first.hex() == again.hex() and bytes.fromhex(first.hex()) == first.binary()


def test_refs_are_no_containers_and_have_no_order() -> None:
    ref: Any = ray.put([1, 2])

    assert bool(ref)
    with pytest.raises(TypeError):
        iter(ref)
    with pytest.raises(TypeError):
        _ = ref < ref


def test_refs_can_be_annotated() -> None:
    assert ray.ObjectRef[int] is not None


@pytest.mark.may_leak("what a pickled ref names is kept for as long as the program runs")
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda ref: pickle.loads(pickle.dumps(ref))])
def test_copies_of_refs_hold_their_object(copied: Any) -> None:
    ref = ray.put(np.arange(100_000))
    other = copied([ref])
    del ref
    gc.collect()

    assert get(other[0])[-1] == 99_999


def test_refs_inside_any_structure() -> None:
    @dataclass
    class Box:
        ref: Any

    @ray.remote
    def total(structure: Any) -> int:
        return sum(ray.get([structure["list"][0], structure["tuple"][0][0], structure["box"].ref]))

    one, two, three = ray.put(1), ray.put(2), ray.put(3)

    assert get(total.remote({"list": [one], "tuple": ((two,),), "box": Box(three)})) == 6


@pytest.mark.may_leak("workers keep functions, and functions what they close over")
def test_refs_in_a_closure() -> None:
    ref = ray.put(np.arange(100_000))

    @ray.remote
    def last() -> int:
        return int(ray.get(ref)[-1])

    assert get(last.remote()) == 99_999


def test_refs_inside_put_values_hold_their_objects() -> None:
    outer = ray.put({"inner": ray.put(np.arange(200_000))})
    gc.collect()

    assert get(get(outer)["inner"])[-1] == 199_999


def test_unfinished_refs_inside_values(gate: Gate) -> None:
    hold = holding_task()
    outer = ray.put([hold.remote(gate, "late")])

    @ray.remote
    def open_and_read(gate: Any, refs: Any) -> Any:
        gate.open()
        return ray.get(refs[0])

    assert get(open_and_read.remote(gate, [get(outer)[0]])) == "late"


def test_refs_kept_by_an_actor_hold_their_objects() -> None:
    @ray.remote
    class Keeper:
        def keep(self, box: Any) -> None:
            self.box = box

        def read(self) -> int:
            return int(ray.get(self.box[0])[-1])

    keeper = Keeper.remote()
    ref = ray.put(np.arange(300_000))
    get(keeper.keep.remote([ref]))
    del ref
    gc.collect()

    assert get(keeper.read.remote()) == 299_999


def test_refs_that_a_task_returns_inside_a_value() -> None:
    @ray.remote
    def make() -> Any:
        return {"refs": [ray.put(np.full(100_000, n)) for n in range(2)]}

    box = get(make.remote())

    assert [int(array[0]) for array in get(box["refs"])] == [0, 1]


@pytest.mark.may_leak("what a pickled ref names is kept for as long as the program runs")
def test_refs_pickled_out_of_band(tmp_path: pathlib.Path) -> None:
    ref = ray.put("through a file")
    path = tmp_path / "ref"
    path.write_bytes(ray.cloudpickle.dumps({"ref": ref}))

    @ray.remote
    def read(path: Any) -> str:
        return ray.get(pickle.loads(path.read_bytes())["ref"])

    assert get(read.remote(path)) == "through a file"


def test_many_tasks_share_one_object() -> None:
    @ray.remote
    def total(array: Any) -> int:
        return int(array.sum())

    ref = ray.put(np.ones(1_000_000))

    assert get([total.remote(ref) for _ in range(12)]) == [1_000_000] * 12


def test_dropped_objects_make_room() -> None:
    for _ in range(20):  # 800 MB through a store of 256 MB
        ray.put(np.zeros(5_000_000))
