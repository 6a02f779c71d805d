"""Threaded actors: max_concurrency above one on a class without async methods."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError, TaskCancelledError

pytestmark = pytest.mark.usefixtures("cluster")


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=60)


def meeting_class() -> Any:
    @ray.remote
    class Meeting:
        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.here = 0
            self.most = 0
            self.count = 0

        def meet(self, count: int) -> int:
            """Ends once `count` calls are in it."""
            with self.lock:
                if not hasattr(self, "barrier"):
                    self.barrier = threading.Barrier(count)
            self.barrier.wait(50)
            return threading.get_ident()

        def pause(self) -> int:
            with self.lock:
                self.here += 1
                self.most = max(self.most, self.here)
            threading.Event().wait(0.02)
            with self.lock:
                self.here -= 1
            return self.most

        def add(self) -> int:
            with self.lock:
                self.count += 1
                return self.count

        def wait(self, gate: Any) -> str:
            gate.wait()
            return "waited"

        def pid(self) -> int:
            return os.getpid()

    return Meeting


def test_calls_run_at_the_same_time_in_threads_of_one_process() -> None:
    meeting = meeting_class().options(max_concurrency=4).remote()
    idents = get([meeting.meet.remote(4) for _ in range(4)])
    assert len(set(idents)) == 4
    assert len(set(get([meeting.pid.remote() for _ in range(8)]))) == 1


def test_no_more_than_max_concurrency_calls_at_once() -> None:
    meeting = meeting_class().options(max_concurrency=3).remote()
    assert max(get([meeting.pause.remote() for _ in range(12)])) == 3


def test_one_call_at_a_time_by_default() -> None:
    meeting = meeting_class().remote()
    assert max(get([meeting.pause.remote() for _ in range(5)])) == 1


def test_max_concurrency_in_the_decorator() -> None:
    @ray.remote(max_concurrency=2)
    class Pair:
        def __init__(self) -> None:
            self.barrier = threading.Barrier(2)

        def meet(self) -> bool:
            self.barrier.wait(50)
            return True

    pair = Pair.remote()
    assert get([pair.meet.remote(), pair.meet.remote()]) == [True, True]


def test_state_is_shared_by_the_threads() -> None:
    meeting = meeting_class().options(max_concurrency=4).remote()
    assert sorted(get([meeting.add.remote() for _ in range(100)])) == list(range(1, 101))


def test_a_waiting_call_does_not_hold_back_others(gate: Any) -> None:
    meeting = meeting_class().options(max_concurrency=2).remote()
    waiting = meeting.wait.remote(gate)
    assert sorted(get([meeting.add.remote() for _ in range(5)])) == [1, 2, 3, 4, 5]
    gate.open()
    assert get(waiting) == "waited"


def test_a_call_that_waits_for_its_argument_lets_later_calls_go_ahead(gate: Any) -> None:
    @ray.remote
    def late(gate: Any) -> str:
        gate.wait()
        return "late"

    @ray.remote(max_concurrency=2)
    class Echo:
        def echo(self, value: Any) -> Any:
            return value

    echo = Echo.remote()
    first = echo.echo.remote(late.remote(gate))
    assert get(echo.echo.remote("early")) == "early"
    gate.open()
    assert get(first) == "late"


def test_constructor_is_done_before_any_call(gate: Any) -> None:
    @ray.remote(max_concurrency=4)
    class Slow:
        def __init__(self, gate: Any) -> None:
            gate.wait()
            self.ready = True

        def is_ready(self) -> bool:
            return self.ready

    slow = Slow.remote(gate)
    refs = [slow.is_ready.remote() for _ in range(4)]
    assert ray.wait(refs, timeout=0.2)[0] == []
    gate.open()
    assert get(refs) == [True] * 4


def test_calls_may_use_ray_in_their_threads() -> None:
    @ray.remote
    def square(x: int) -> int:
        return x * x

    @ray.remote(max_concurrency=4)
    class Caller:
        def run(self, x: int) -> int:
            return ray.get(square.remote(x)) + ray.get(ray.put(x))

    caller = Caller.remote()
    assert get([caller.run.remote(x) for x in range(8)]) == [x * x + x for x in range(8)]


def test_runtime_context_belongs_to_the_thread() -> None:
    @ray.remote(max_concurrency=3)
    class Contextual:
        def __init__(self) -> None:
            self.barrier = threading.Barrier(3)

        def call(self) -> Any:
            before = ray.get_runtime_context().get_task_id()
            self.barrier.wait(50)
            return before, ray.get_runtime_context().get_task_id()

    contextual = Contextual.remote()
    refs = [contextual.call.remote() for _ in range(3)]
    answers = get(refs)
    assert [first for first, _ in answers] == [second for _, second in answers]
    assert [first for first, _ in answers] == [ref.task_id().hex() for ref in refs]


def test_an_actor_may_call_itself() -> None:
    @ray.remote(max_concurrency=2)
    class Recursive:
        def outer(self) -> int:
            me = ray.get_runtime_context().current_actor
            return ray.get(me.inner.remote()) + 1

        def inner(self) -> int:
            return 1

    assert get(Recursive.remote().outer.remote()) == 2


def test_error_in_one_thread_leaves_the_others(gate: Any) -> None:
    @ray.remote(max_concurrency=2)
    class Fragile:
        def fail(self) -> None:
            raise KeyError("thread")

        def wait(self, gate: Any) -> str:
            gate.wait()
            return "waited"

    fragile = Fragile.remote()
    waiting = fragile.wait.remote(gate)
    with pytest.raises(KeyError):
        get(fragile.fail.remote())
    gate.open()
    assert get(waiting) == "waited"


def test_kill_fails_the_calls_of_all_threads(gate: Any) -> None:
    meeting = meeting_class().options(max_concurrency=4).remote()
    refs = [meeting.wait.remote(gate) for _ in range(6)]
    ray.wait(refs, timeout=0.5)
    ray.kill(meeting)
    for ref in refs:
        with pytest.raises(RayActorError):
            get(ref)


def test_exit_actor_in_a_thread_ends_the_actor(gate: Any) -> None:
    @ray.remote(max_concurrency=2)
    class Quitter:
        def quit(self) -> None:
            ray.actor.exit_actor()

    with pytest.raises(RayActorError):
        get(Quitter.remote().quit.remote())


def test_cancel_of_a_call_that_waits_for_a_thread(gate: Any) -> None:
    meeting = meeting_class().options(max_concurrency=2).remote()
    running = [meeting.wait.remote(gate) for _ in range(2)]
    queued = meeting.wait.remote(gate)
    assert ray.wait([queued], timeout=0.2)[0] == []
    ray.cancel(queued)
    gate.open()
    assert get(running) == ["waited"] * 2
    with pytest.raises(TaskCancelledError):
        get(queued)


def test_generators_of_two_threads_at_once() -> None:
    @ray.remote(max_concurrency=2)
    class Streamer:
        def __init__(self) -> None:
            self.barrier = threading.Barrier(2)

        def items(self) -> Any:
            for number in range(3):
                self.barrier.wait(50)
                yield number

    streamer = Streamer.remote()
    first, second = streamer.items.remote(), streamer.items.remote()
    assert [get(ref) for ref in first] == [0, 1, 2]
    assert [get(ref) for ref in second] == [0, 1, 2]


def test_thread_locals_are_kept_by_the_thread_of_a_single_concurrency_actor() -> None:
    @ray.remote
    class Local:
        def __init__(self) -> None:
            self.local = threading.local()
            self.local.value = 1

        def bump(self) -> int:
            self.local.value += 1
            return self.local.value

    local = Local.remote()
    assert get([local.bump.remote(), local.bump.remote()]) == [2, 3]
