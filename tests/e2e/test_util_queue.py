"""Queue: shared by tasks, bounded, with and without waiting, from threads and from event loops."""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import Any

import pytest

import noded
from noded.exceptions import ActorError
from noded.util.queue import Empty, Full, Queue

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.slow]


def test_first_in_first_out() -> None:
    shared = Queue()
    for value in ("a", None, [1, 2]):
        shared.put(value)
    assert (len(shared), shared.qsize(), shared.size(), shared.empty(), shared.full()) == (3, 3, 3, False, False)
    assert [shared.get() for _ in range(3)] == ["a", None, [1, 2]]
    assert shared.empty()


def test_a_bounded_queue_refuses_what_it_has_no_room_for() -> None:
    shared = Queue(maxsize=2)
    shared.put_nowait(1)
    shared.put(2, block=False)
    assert shared.full()
    for put in (shared.put_nowait, lambda item: shared.put(item, timeout=0.01)):
        with pytest.raises(Full) as caught:
            put(3)
        assert isinstance(caught.value, queue.Full)
    assert shared.get() == 1
    shared.put(3, timeout=0)
    assert [shared.get(timeout=0), shared.get_nowait()] == [2, 3]


def test_an_empty_queue_says_so() -> None:
    shared = Queue()
    for get in (shared.get_nowait, lambda: shared.get(block=False), lambda: shared.get(timeout=0.01)):
        with pytest.raises(Empty) as caught:
            get()
        assert isinstance(caught.value, queue.Empty)


def test_batches_are_all_or_nothing() -> None:
    shared = Queue(maxsize=3)
    shared.put_nowait_batch([1, 2])
    with pytest.raises(Full):
        shared.put_nowait_batch([3, 4])
    with pytest.raises(Empty):
        shared.get_nowait_batch(3)
    assert shared.get_nowait_batch(0) == []
    assert shared.get_nowait_batch(2) == [1, 2]
    shared.put_nowait_batch(str(i) for i in range(3))
    assert shared.get_nowait_batch(3) == ["0", "1", "2"]


def test_wrong_arguments_are_refused_here() -> None:
    shared = Queue()
    for refused in (lambda: shared.put(1, timeout=-1), lambda: shared.get(timeout=-1)):
        with pytest.raises(ValueError, match="timeout"):
            refused()
    with pytest.raises(TypeError, match="items"):
        shared.put_nowait_batch(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="num_items"):
        shared.get_nowait_batch("x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_items"):
        shared.get_nowait_batch(-1)


def test_tasks_share_it() -> None:
    @noded.remote
    def produce(shared: Queue, count: int) -> None:
        for number in range(count):
            shared.put(number)

    @noded.remote
    def consume(shared: Queue, count: int) -> list[int]:
        return [shared.get(timeout=30) for _ in range(count)]

    shared = Queue(maxsize=2)
    done = produce.remote(shared, 20)
    assert noded.get(consume.remote(shared, 20), timeout=60) == list(range(20))
    noded.get(done, timeout=30)


def test_a_waiting_get_is_served_and_holds_up_nobody() -> None:
    shared = Queue()
    got: list[Any] = []
    waiting = [threading.Thread(target=lambda: got.append(shared.get(timeout=30))) for _ in range(3)]
    for thread in waiting:
        thread.start()
    for number in range(3):
        shared.put(number)
    for thread in waiting:
        thread.join(30)
    assert sorted(got) == [0, 1, 2]


def test_from_an_event_loop() -> None:
    shared = Queue(maxsize=1)

    async def both() -> list[Any]:
        async def produce() -> None:
            for number in range(5):
                await shared.put_async(number)

        producing = asyncio.create_task(produce())
        got = [await shared.get_async() for _ in range(5)]
        await producing
        await shared.put_async("last")
        with pytest.raises(Full):
            await shared.put_async(1, block=False)
        with pytest.raises(Full):
            await shared.put_async(1, timeout=0.01)
        assert await shared.get_async(timeout=10) == "last"
        with pytest.raises(Empty):
            await shared.get_async(block=False)
        with pytest.raises(Empty):
            await shared.get_async(timeout=0.01)
        with pytest.raises(ValueError, match="timeout"):
            await shared.get_async(timeout=-1)
        return got

    assert asyncio.run(both()) == list(range(5))


def test_actor_options_are_its_actors() -> None:
    shared = Queue(actor_options={"name": "the shared queue"})
    shared.put(5)
    assert noded.get(noded.get_actor("the shared queue").qsize.remote()) == 1
    with pytest.raises(ValueError, match="bogus"):
        Queue(actor_options={"bogus": 1})


@pytest.mark.parametrize("force", [False, True])
def test_after_shutdown_it_is_gone(force: bool) -> None:
    shared = Queue()
    shared.put(1)
    actor = shared.actor
    shared.shutdown(force=force)
    with pytest.raises(ActorError):
        noded.get(actor.qsize.remote(), timeout=30)
    with pytest.raises(RuntimeError, match="shut down"):
        shared.put(1)
    shared.shutdown()
