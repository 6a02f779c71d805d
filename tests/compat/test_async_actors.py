"""Async actors: calls that overlap on one event loop, their errors, cancels and contexts."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import Any

import pytest
import ray
from harness.wait import wait_for
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError, TaskCancelledError

pytestmark = pytest.mark.usefixtures("cluster")


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=60)


def meeting_class() -> Any:
    """wait() ends once `count` calls wait at the same time."""

    @ray.remote
    class Meeting:
        def __init__(self) -> None:
            self.here = 0
            self.most = 0
            self.all_here = asyncio.Event()

        async def wait(self, count: int) -> int:
            self.here += 1
            self.most = max(self.most, self.here)
            if self.here >= count:
                self.all_here.set()
            await self.all_here.wait()
            self.here -= 1
            return self.most

        async def pause(self) -> int:
            self.here += 1
            self.most = max(self.most, self.here)
            for _ in range(5):
                await asyncio.sleep(0.005)
            self.here -= 1
            return self.most

        async def release(self) -> None:
            self.all_here.set()

    return Meeting


# ---------------------------------------------------------------- overlap


def test_async_method_returns_its_value() -> None:
    @ray.remote
    class Async:
        async def double(self, x: int) -> int:
            await asyncio.sleep(0)
            return 2 * x

    assert get([Async.remote().double.remote(i) for i in range(2)]) == [0, 2]


def test_calls_overlap_at_their_awaits() -> None:
    meeting = meeting_class().remote()
    get([meeting.wait.remote(10) for _ in range(10)])


def test_a_later_call_can_release_an_earlier_one() -> None:
    meeting = meeting_class().remote()
    waiting = meeting.wait.remote(1000)
    assert ray.wait([waiting], timeout=0.2) == ([], [waiting])
    get(meeting.release.remote())
    assert get(waiting) == 1


def test_max_concurrency_is_1000_by_default() -> None:
    meeting = meeting_class().remote()
    refs = [meeting.wait.remote(1000) for _ in range(1000)]
    assert max(get(refs)) == 1000


def test_no_more_than_1000_calls_overlap_by_default() -> None:
    meeting = meeting_class().remote()
    refs = [meeting.wait.remote(1001) for _ in range(1001)]
    assert len(ray.wait(refs, num_returns=1, timeout=1)[0]) == 0
    ray.kill(meeting)
    for ref in refs[-1:]:
        with pytest.raises(RayActorError):
            get(ref)


def test_max_concurrency_limits_the_overlap() -> None:
    meeting = meeting_class().options(max_concurrency=3).remote()
    assert max(get([meeting.pause.remote() for _ in range(12)])) == 3


def test_max_concurrency_of_one_is_one_after_the_other() -> None:
    meeting = meeting_class().options(max_concurrency=1).remote()
    assert max(get([meeting.pause.remote() for _ in range(5)])) == 1


@pytest.mark.improves("the calls of one caller start in the order in which they were made")
def test_calls_start_in_the_order_of_submission() -> None:
    @ray.remote
    class Log:
        def __init__(self) -> None:
            self.started: list[int] = []

        async def add(self, number: int) -> None:
            self.started.append(number)
            await asyncio.sleep(0)

        async def all(self) -> list[int]:
            return self.started

    log = Log.remote()
    get([log.add.remote(number) for number in range(100)])
    assert get(log.all.remote()) == list(range(100))


def test_code_between_awaits_is_not_interrupted() -> None:
    @ray.remote
    class Counter:
        def __init__(self) -> None:
            self.value = 0

        async def add(self) -> int:
            before = self.value
            self.value = before + 1
            await asyncio.sleep(0)
            return self.value

    counter = Counter.remote()
    get([counter.add.remote() for _ in range(200)])
    assert get(counter.add.remote()) == 201


def test_one_async_method_makes_all_methods_run_on_the_loop() -> None:
    @ray.remote
    class Mixed:
        def __init__(self) -> None:
            self.go = asyncio.Event()

        async def wait(self) -> str:
            await self.go.wait()
            return "went"

        def plain(self) -> int:
            self.go.set()
            return threading.get_ident()

        async def ident(self) -> int:
            return threading.get_ident()

    mixed = Mixed.remote()
    waiting = mixed.wait.remote()
    assert get(mixed.plain.remote()) == get(mixed.ident.remote())
    assert get(waiting) == "went"


def test_async_constructors_are_not_needed_and_the_loop_runs_in_methods() -> None:
    @ray.remote
    class Looper:
        async def running(self) -> bool:
            return asyncio.get_running_loop().is_running()

    assert get(Looper.remote().running.remote()) is True


def test_background_tasks_of_the_loop_run_between_calls(notes: Any) -> None:
    @ray.remote
    class Ticker:
        async def start(self, notes: Any) -> None:
            async def tick() -> None:
                for number in range(3):
                    notes.add(number)
                    await asyncio.sleep(0.001)

            self.task = asyncio.create_task(tick())

    ticker = Ticker.remote()
    get(ticker.start.remote(notes))
    assert notes.wait(3) == ["0", "1", "2"]
    del ticker


# ---------------------------------------------------------------- shared asyncio primitives


def test_lock_shared_by_calls() -> None:
    @ray.remote
    class Locked:
        def __init__(self) -> None:
            self.lock = asyncio.Lock()
            self.inside = 0
            self.most = 0

        async def enter(self) -> None:
            async with self.lock:
                self.inside += 1
                self.most = max(self.most, self.inside)
                await asyncio.sleep(0.001)
                self.inside -= 1

        async def most_inside(self) -> int:
            return self.most

    locked = Locked.remote()
    get([locked.enter.remote() for _ in range(20)])
    assert get(locked.most_inside.remote()) == 1


def test_queue_shared_by_producers_and_consumers() -> None:
    @ray.remote
    class Pipe:
        def __init__(self) -> None:
            self.queue: asyncio.Queue[int] = asyncio.Queue(maxsize=2)

        async def put(self, item: int) -> None:
            await self.queue.put(item)

        async def get(self) -> int:
            return await self.queue.get()

    pipe = Pipe.remote()
    taken = [pipe.get.remote() for _ in range(10)]
    for number in range(10):
        pipe.put.remote(number)
    assert sorted(get(taken)) == list(range(10))


# ---------------------------------------------------------------- errors


def test_error_of_an_async_method() -> None:
    @ray.remote
    class Fragile:
        async def fail(self) -> None:
            await asyncio.sleep(0)
            raise KeyError("async")

        async def fine(self) -> str:
            return "fine"

    fragile = Fragile.remote()
    with pytest.raises(KeyError, match="async") as caught:
        get(fragile.fail.remote())
    assert isinstance(caught.value, RayTaskError)
    assert get(fragile.fine.remote()) == "fine"


def test_error_of_the_constructor_of_an_async_actor() -> None:
    @ray.remote
    class Broken:
        def __init__(self) -> None:
            raise ValueError("no good start")

        async def call(self) -> None: ...

    with pytest.raises(ActorDiedError, match="no good start"):
        get(Broken.remote().call.remote())


def test_kill_fails_all_calls_that_overlap() -> None:
    meeting = meeting_class().remote()
    refs = [meeting.wait.remote(1000) for _ in range(5)]
    get(meeting.pause.remote())
    ray.kill(meeting)
    for ref in refs:
        with pytest.raises(RayActorError):
            get(ref)


def test_retries_of_an_async_method(notes: Any) -> None:
    @ray.remote(max_task_retries=2)
    class Failing:
        @ray.method(retry_exceptions=True)
        async def later(self, notes: Any) -> int:
            if notes.add() < 3:
                raise ValueError("not yet")
            return len(notes.all())

    assert get(Failing.remote().later.remote(notes)) == 3


# ---------------------------------------------------------------- cancel


def test_cancel_of_a_running_async_call() -> None:
    @ray.remote
    class Sleeper:
        def __init__(self) -> None:
            self.events: list[str] = []

        async def sleep(self) -> None:
            self.events.append("started")
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                self.events.append("cancelled")
                raise

        async def all(self) -> list[str]:
            return self.events

    sleeper = Sleeper.remote()
    ref = sleeper.sleep.remote()
    wait_for(lambda: get(sleeper.all.remote()), "the call does not start")
    ray.cancel(ref)
    with pytest.raises(TaskCancelledError):
        get(ref)
    assert wait_for(lambda: len(get(sleeper.all.remote())) == 2, "the call did not see its cancel")
    assert get(sleeper.all.remote()) == ["started", "cancelled"]


def test_cancel_of_a_call_that_waits_for_its_turn() -> None:
    meeting = meeting_class().options(max_concurrency=1).remote()
    first = meeting.wait.remote(1000)
    second = meeting.wait.remote(1000)
    ray.wait([first], timeout=0.2)
    ray.cancel(second)
    with pytest.raises(TaskCancelledError):
        get(second)
    ray.cancel(first)
    with pytest.raises(TaskCancelledError):
        get(first)


def test_cancel_reaches_the_tasks_that_the_call_awaits(gate: Any, notes: Any) -> None:
    @ray.remote
    def wait(gate: Any, notes: Any) -> None:
        notes.add("started")
        gate.wait()
        notes.add("ended")

    @ray.remote
    class Caller:
        async def call(self, gate: Any, notes: Any) -> None:
            await wait.remote(gate, notes)

    caller = Caller.remote()
    ref = caller.call.remote(gate, notes)
    notes.wait(1)
    ray.cancel(ref)
    with pytest.raises(TaskCancelledError):
        get(ref)
    gate.open()


def test_cancel_of_one_call_leaves_the_others() -> None:
    meeting = meeting_class().remote()
    refs = [meeting.wait.remote(1000) for _ in range(3)]
    get(meeting.pause.remote())
    ray.cancel(refs[1])
    with pytest.raises(TaskCancelledError):
        get(refs[1])
    get(meeting.release.remote())
    assert get([refs[0], refs[2]])


# ---------------------------------------------------------------- context


def test_context_variables_belong_to_the_call() -> None:
    @ray.remote
    class Contextual:
        def __init__(self) -> None:
            self.user = contextvars.ContextVar("user", default="nobody")
            self.here = 0
            self.all_here = asyncio.Event()

        async def call(self, name: str) -> tuple[str, str]:
            before = self.user.get()
            self.user.set(name)
            self.here += 1
            if self.here == 3:
                self.all_here.set()
            await self.all_here.wait()
            return before, self.user.get()

    contextual = Contextual.remote()
    names = ["a", "b", "c"]
    assert get([contextual.call.remote(name) for name in names]) == [("nobody", name) for name in names]


def test_runtime_context_of_overlapping_calls() -> None:
    @ray.remote
    class Contextual:
        def __init__(self) -> None:
            self.here = 0
            self.all_here = asyncio.Event()

        async def call(self) -> tuple[Any, Any, Any]:
            before = ray.get_runtime_context().get_task_id()
            self.here += 1
            if self.here == 3:
                self.all_here.set()
            await self.all_here.wait()
            context = ray.get_runtime_context()
            return before, context.get_task_id(), context.get_actor_id()

    contextual = Contextual.remote()
    refs = [contextual.call.remote() for _ in range(3)]
    answers = get(refs)
    assert [before for before, _, _ in answers] == [after for _, after, _ in answers]
    assert [after for _, after, _ in answers] == [ref.task_id().hex() for ref in refs]
    assert {actor for _, _, actor in answers} == {contextual._actor_id.hex()}
