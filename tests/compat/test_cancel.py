"""ray.cancel of tasks: queued, waiting, running, with children."""

from __future__ import annotations

import time
from typing import Any

import pytest
import ray
from harness.gates import Gate, GateMaker, Notes

pytestmark = pytest.mark.usefixtures("cluster")
TIMEOUT = 30
Cancelled = ray.exceptions.TaskCancelledError


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=TIMEOUT)


def endless_task(**options: Any) -> Any:
    @ray.remote(**{"num_cpus": 1, **options})
    def endless(started: Any) -> None:
        started.open()
        while True:
            time.sleep(0.01)

    return endless


# ---------------------------------------------------------------- tasks


@pytest.mark.parametrize("force", [False, True])
def test_a_running_task_is_cancelled(force: bool, gate: Gate) -> None:
    ref = endless_task().remote(gate)
    gate.wait()

    ray.cancel(ref, force=force)

    with pytest.raises(Cancelled):
        get(ref)


def test_a_cancelled_task_is_not_tried_again(notes: Notes) -> None:
    @ray.remote(max_retries=5, retry_exceptions=True)
    def endless(notes: Any) -> None:
        notes.add()
        while True:
            time.sleep(0.01)

    for force in (False, True):
        before = len(notes.all())
        ref = endless.remote(notes)
        notes.wait(before + 1)
        ray.cancel(ref, force=force)
        with pytest.raises(Cancelled):
            get(ref)
        assert len(notes.all()) == before + 1


@pytest.mark.parametrize("force", [False, True])
def test_a_queued_task_never_runs(force: bool, gates: GateMaker, notes: Notes) -> None:
    @ray.remote(num_cpus=4)
    def first(started: Any, gate: Any) -> None:
        started.open()
        gate.wait()

    @ray.remote(num_cpus=4)
    def second(notes: Any) -> None:
        notes.add()

    started, gate = gates("started"), gates("gate")
    running = first.remote(started, gate)
    started.wait()
    queued = second.remote(notes)

    ray.cancel(queued, force=force)

    with pytest.raises(Cancelled):
        get(queued)
    gate.open()
    get(running)
    get(second.remote(notes))
    assert len(notes.all()) == 1


@pytest.mark.improves("the argument may come after the cancel; Ray's driver often dies of that")
def test_a_task_that_waits_for_its_argument_is_cancelled(gate: Gate) -> None:
    @ray.remote
    def hold(gate: Any) -> int:
        gate.wait()
        return 1

    @ray.remote
    def use(x: Any) -> Any:
        return x

    argument = hold.remote(gate)
    waiting = use.remote(argument)

    ray.cancel(waiting)

    with pytest.raises(Cancelled):
        get(waiting)
    gate.open()
    assert get(argument) == 1


def test_a_task_that_no_node_can_run_is_cancelled() -> None:
    @ray.remote(num_cpus=1000)
    def never() -> None: ...

    ref = never.remote()
    ray.cancel(ref)

    with pytest.raises(Cancelled):
        get(ref)


def test_what_depends_on_a_cancelled_task_fails_the_same_way(gate: Gate) -> None:
    @ray.remote
    def use(x: Any) -> Any:
        return x

    ref = endless_task().remote(gate)
    after = use.remote(ref)
    gate.wait()
    ray.cancel(ref)

    with pytest.raises(Cancelled):
        get(after)


def test_a_finished_task_stays_finished() -> None:
    @ray.remote
    def quick() -> int:
        return 1

    ref = quick.remote()
    get(ref)

    ray.cancel(ref)
    ray.cancel(ref, force=True)

    assert get(ref) == 1


def test_a_put_object_cannot_be_cancelled() -> None:
    ref = ray.put(1)
    ray.cancel(ref)

    assert get(ref) == 1


def test_cancel_takes_refs() -> None:
    for wrong in (1, None, "ref"):
        with pytest.raises(TypeError):
            ray.cancel(wrong)


def test_a_task_may_clean_up_when_it_is_cancelled(gates: GateMaker) -> None:
    @ray.remote
    def careful(started: Any, cleaned: Any) -> None:
        try:
            started.open()
            while True:
                time.sleep(0.01)
        finally:
            cleaned.open()

    started, cleaned = gates("started"), gates("cleaned")
    ref = careful.remote(started, cleaned)
    started.wait()
    ray.cancel(ref)

    with pytest.raises(Cancelled):
        get(ref)
    cleaned.wait(TIMEOUT)


def test_a_task_may_catch_its_cancellation(gate: Gate) -> None:
    @ray.remote
    def stubborn(started: Any) -> str:
        try:
            started.open()
            while True:
                time.sleep(0.01)
        except KeyboardInterrupt:
            return "caught"

    ref = stubborn.remote(gate)
    gate.wait()
    ray.cancel(ref)

    assert get(ref) == "caught"


def test_cancelling_twice(gate: Gate) -> None:
    ref = endless_task().remote(gate)
    gate.wait()
    for _ in range(2):
        ray.cancel(ref)

    with pytest.raises(Cancelled):
        get(ref)


def test_a_task_that_waits_in_get_is_cancelled(gates: GateMaker) -> None:
    endless = endless_task()

    @ray.remote
    def parent(started: Any) -> None:
        ray.get(endless.remote(started))

    gate = gates("child")
    ref = parent.remote(gate)
    gate.wait()
    ray.cancel(ref)

    with pytest.raises(Cancelled):
        get(ref)


def test_all_results_of_a_task_are_cancelled(gate: Gate) -> None:
    @ray.remote(num_returns=2)
    def endless(started: Any) -> None:
        started.open()
        while True:
            time.sleep(0.01)

    first, second = endless.remote(gate)
    gate.wait()
    ray.cancel(second)

    for ref in (first, second):
        with pytest.raises(Cancelled):
            get(ref)


def test_the_cluster_is_free_after_a_cancel(gate: Gate) -> None:
    refs = [endless_task(num_cpus=4).remote(gate) for _ in range(3)]
    gate.wait()
    for ref in refs:
        ray.cancel(ref)

    @ray.remote(num_cpus=4)
    def after() -> str:
        return "ran"

    assert get(after.remote()) == "ran"
    for ref in refs:
        with pytest.raises(Cancelled):
            get(ref)


# ---------------------------------------------------------------- children


def test_children_are_cancelled_with_their_parent(gates: GateMaker) -> None:
    @ray.remote
    def child(started: Any, ended: Any) -> None:
        try:
            started.open()
            while True:
                time.sleep(0.01)
        finally:
            ended.open()

    @ray.remote
    def parent(started: Any, ended: Any) -> None:
        ray.get(child.remote(started, ended))

    started, ended = gates("started"), gates("ended")
    ref = parent.remote(started, ended)
    started.wait()

    ray.cancel(ref, recursive=True)

    with pytest.raises(Cancelled):
        get(ref)
    ended.wait(TIMEOUT)


def test_children_may_be_spared(gates: GateMaker, notes: Notes) -> None:
    @ray.remote
    def child(started: Any, gate: Any, notes: Any) -> None:
        started.open()
        gate.wait()
        notes.add("done")

    @ray.remote
    def parent(started: Any, gate: Any, notes: Any) -> None:
        ray.get(child.remote(started, gate, notes))

    started, gate = gates("started"), gates("gate")
    ref = parent.remote(started, gate, notes)
    started.wait()

    ray.cancel(ref, recursive=False)

    with pytest.raises(Cancelled):
        get(ref)
    gate.open()
    assert notes.wait(1) == ["done"]


def test_grandchildren_are_cancelled_as_well(gates: GateMaker) -> None:
    @ray.remote(num_cpus=0.5)
    def down(depth: int, started: Any, ended: Any) -> None:
        if depth:
            ray.get(down.remote(depth - 1, started, ended))
            return
        try:
            started.open()
            while True:
                time.sleep(0.01)
        finally:
            ended.open()

    started, ended = gates("started"), gates("ended")
    ref = down.remote(2, started, ended)
    started.wait()
    ray.cancel(ref)

    with pytest.raises(Cancelled):
        get(ref)
    ended.wait(TIMEOUT)


def test_a_task_can_cancel_its_own_child(gate: Gate) -> None:
    endless = endless_task()

    @ray.remote
    def parent(started: Any) -> str:
        ref = endless.remote(started)
        started.wait()
        ray.cancel(ref)
        try:
            ray.get(ref, timeout=20)
        except ray.exceptions.TaskCancelledError:
            return "cancelled"
        return "not cancelled"

    assert get(parent.remote(gate)) == "cancelled"
