"""ray.cancel: queued and running tasks, actor calls of all kinds, children, streams."""

from __future__ import annotations

import asyncio
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


# ---------------------------------------------------------------- actors


def busy_actor() -> Any:
    @ray.remote
    class Worker:
        def hold(self, started: Any, gate: Any) -> None:
            started.open()
            gate.wait()

        def run(self, notes: Any, what: str) -> str:
            notes.add(what)
            return what

    return Worker.remote()


def test_a_queued_actor_call_is_cancelled(gates: GateMaker, notes: Notes) -> None:
    worker, started, gate = busy_actor(), gates("started"), gates("gate")
    running = worker.hold.remote(started, gate)
    queued, after = worker.run.remote(notes, "cancelled"), worker.run.remote(notes, "after")
    started.wait()

    ray.cancel(queued)
    gate.open()

    with pytest.raises(Cancelled):
        get(queued)
    assert get(after) == "after"
    get(running)


@pytest.mark.improves("a queued call is cancelled at once and never runs; Ray waits for the one that runs")
def test_a_queued_actor_call_is_cancelled_at_once(gates: GateMaker, notes: Notes) -> None:
    worker, started, gate = busy_actor(), gates("started"), gates("gate")
    running = worker.hold.remote(started, gate)
    queued, after = worker.run.remote(notes, "cancelled"), worker.run.remote(notes, "after")
    started.wait()

    ray.cancel(queued)

    with pytest.raises(Cancelled):
        get(queued)
    gate.open()
    assert get(after) == "after"
    get(running)
    assert notes.all() == ["after"]


def test_a_running_call_of_a_sync_actor_can_ask(gate: Gate) -> None:
    @ray.remote
    class Worker:
        def __init__(self) -> None:
            self.saw = False

        def loop(self, started: Any) -> None:
            assert not ray.get_runtime_context().is_canceled()
            started.open()
            while not ray.get_runtime_context().is_canceled():
                time.sleep(0.01)
            self.saw = True

        def saw_it(self) -> bool:
            return self.saw

    worker = Worker.remote()
    ref = worker.loop.remote(gate)
    gate.wait()

    ray.cancel(ref)

    with pytest.raises(Cancelled):
        get(ref)
    assert get(worker.saw_it.remote()) is True


def test_tasks_that_are_not_cancelled_are_told_so() -> None:
    @ray.remote
    def ask() -> bool:
        return ray.get_runtime_context().is_canceled()

    assert get(ask.remote()) is False


def test_a_running_call_of_an_async_actor_gets_a_cancelled_error(gates: GateMaker, notes: Notes) -> None:
    @ray.remote
    class Worker:
        async def sleep(self, started: Any, notes: Any) -> None:
            started.open()
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                notes.add("cancelled")
                raise

        async def ping(self) -> str:
            return "pong"

    worker, started = Worker.remote(), gates("started")
    ref = worker.sleep.remote(started, notes)
    started.wait()

    ray.cancel(ref)

    with pytest.raises(Cancelled):
        get(ref)
    assert notes.wait(1) == ["cancelled"]
    assert get(worker.ping.remote()) == "pong"


def test_other_calls_of_an_async_actor_go_on(gates: GateMaker) -> None:
    @ray.remote
    class Worker:
        async def wait(self, started: Any, gate: Any) -> str:
            started.open()
            while not gate.is_open():
                await asyncio.sleep(0.01)
            return "done"

    worker, gate = Worker.remote(), gates("gate")
    started = [gates("a"), gates("b")]
    cancelled, kept = [worker.wait.remote(one, gate) for one in started]
    for one in started:
        one.wait()

    ray.cancel(cancelled)

    with pytest.raises(Cancelled):
        get(cancelled)
    gate.open()
    assert get(kept) == "done"


def test_children_of_an_async_call_are_cancelled(gates: GateMaker) -> None:
    @ray.remote
    def child(started: Any, ended: Any) -> None:
        try:
            started.open()
            while True:
                time.sleep(0.01)
        finally:
            ended.open()

    @ray.remote
    class Worker:
        async def run(self, started: Any, ended: Any) -> None:
            await child.remote(started, ended)

    worker, started, ended = Worker.remote(), gates("started"), gates("ended")
    ref = worker.run.remote(started, ended)
    started.wait()

    ray.cancel(ref)

    with pytest.raises(Cancelled):
        get(ref)
    ended.wait(TIMEOUT)


def test_actor_calls_are_not_cancelled_by_force(gate: Gate) -> None:
    @ray.remote
    class Worker:
        def hold(self, gate: Any) -> str:
            gate.wait()
            return "done"

    worker = Worker.remote()
    ref = worker.hold.remote(gate)

    with pytest.raises(ValueError):
        ray.cancel(ref, force=True)
    gate.open()
    assert get(ref) == "done"


def test_an_actor_call_that_waits_for_its_argument_is_cancelled(gate: Gate) -> None:
    @ray.remote
    def hold(gate: Any) -> int:
        gate.wait()
        return 1

    @ray.remote
    class Worker:
        def use(self, x: int) -> int:
            return x

    worker, argument = Worker.remote(), hold.remote(gate)
    ref = worker.use.remote(argument)

    ray.cancel(ref)
    gate.open()

    with pytest.raises(Cancelled):
        get(ref)
    assert get(worker.use.remote(2)) == 2


# ---------------------------------------------------------------- streams


def test_a_stream_is_cancelled() -> None:
    @ray.remote
    def numbers() -> Any:
        n = 0
        while True:
            yield n
            n += 1
            time.sleep(0.01)

    generator = numbers.remote()
    assert get(next(generator)) == 0

    ray.cancel(generator)

    with pytest.raises(Cancelled):
        for ref in generator:
            get(ref)
    with pytest.raises(StopIteration):
        next(generator)


def test_a_stream_of_an_async_actor_is_cancelled() -> None:
    @ray.remote
    class Source:
        async def numbers(self) -> Any:
            n = 0
            while True:
                yield n
                n += 1
                await asyncio.sleep(0.01)

        async def ping(self) -> str:
            return "pong"

    source = Source.remote()
    generator = source.numbers.remote()
    assert get(next(generator)) == 0

    ray.cancel(generator)

    with pytest.raises(Cancelled):
        for ref in generator:
            get(ref)
    assert get(source.ping.remote()) == "pong"


def test_a_stream_that_has_not_started_is_cancelled(gates: GateMaker) -> None:
    @ray.remote(num_cpus=4)
    def hold(started: Any, gate: Any) -> None:
        started.open()
        gate.wait()

    @ray.remote(num_cpus=4)
    def numbers() -> Any:
        yield 1

    started, gate = gates("started"), gates("gate")
    running = hold.remote(started, gate)
    started.wait()
    generator = numbers.remote()

    ray.cancel(generator)

    with pytest.raises(Cancelled):
        for ref in generator:
            get(ref)
    gate.open()
    get(running)
