"""ray.cancel of actor calls of all kinds, and of streams."""

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
