"""ray.util.queue.Queue: a queue that processes share."""

from __future__ import annotations

import asyncio
import queue as standard
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError
from ray.util.queue import Empty, Full, Queue

pytestmark = pytest.mark.usefixtures("cluster")


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=60)


@pytest.fixture
def make() -> Iterator[Callable[..., Queue]]:
    made = []

    def make(*args: Any, **options: Any) -> Queue:
        made.append(Queue(*args, **options))
        return made[-1]

    yield make
    for queue in made:
        queue.shutdown(force=True)


def test_first_in_first_out(make: Any) -> None:
    queue = make()
    for item in range(10):
        queue.put(item)
    assert [queue.get() for _ in range(10)] == list(range(10))


def test_size_empty_and_full(make: Any) -> None:
    queue = make(maxsize=2)
    assert queue.empty() and not queue.full() and queue.qsize() == len(queue) == queue.size() == 0
    queue.put("a")
    queue.put("b")
    assert not queue.empty() and queue.full() and queue.qsize() == 2


def test_get_of_an_empty_queue(make: Any) -> None:
    queue = make()
    with pytest.raises(Empty):
        queue.get(block=False)
    with pytest.raises(Empty):
        queue.get_nowait()
    with pytest.raises(Empty):
        queue.get(timeout=0.05)


def test_put_into_a_full_queue(make: Any) -> None:
    queue = make(1)
    queue.put(1)
    with pytest.raises(Full):
        queue.put(2, block=False)
    with pytest.raises(Full):
        queue.put_nowait(2)
    with pytest.raises(Full):
        queue.put(2, timeout=0.05)
    assert queue.get() == 1


def test_errors_are_those_of_the_standard_library() -> None:
    assert issubclass(Empty, standard.Empty)
    assert issubclass(Full, standard.Full)


def test_negative_timeouts_are_value_errors(make: Any) -> None:
    queue = make()
    with pytest.raises(ValueError):
        queue.get(timeout=-1)
    with pytest.raises(ValueError):
        queue.put(1, timeout=-1)


def test_get_waits_for_a_put_by_another_process(make: Any, gate: Any) -> None:
    queue = make()

    @ray.remote
    def put_later(queue: Any, gate: Any) -> None:
        gate.wait()
        queue.put("late")

    done = put_later.remote(queue, gate)
    gate.open()
    assert queue.get(timeout=30) == "late"
    get(done)


def test_put_waits_for_a_get_by_another_process(make: Any) -> None:
    queue = make(1)

    @ray.remote
    def take(queue: Any, count: int) -> list[int]:
        return [queue.get() for _ in range(count)]

    taken = take.remote(queue, 5)
    for item in range(5):
        queue.put(item, timeout=30)
    assert get(taken) == [0, 1, 2, 3, 4]


def test_batches(make: Any) -> None:
    queue = make(4)
    queue.put_nowait_batch([1, 2, 3])
    with pytest.raises(Full):
        queue.put_nowait_batch([4, 5])
    assert queue.qsize() == 3
    with pytest.raises(Empty):
        queue.get_nowait_batch(4)
    assert queue.get_nowait_batch(2) == [1, 2]
    assert queue.get_nowait_batch(1) == [3]


def test_batches_take_only_lists_and_counts(make: Any) -> None:
    queue = make()
    with pytest.raises(TypeError):
        queue.put_nowait_batch(5)
    with pytest.raises((TypeError, ValueError)):
        queue.get_nowait_batch(-1)


def test_many_producers_and_consumers(make: Any) -> None:
    queue = make(5)

    @ray.remote(num_cpus=0.5)
    def produce(queue: Any, first: int) -> None:
        for item in range(first, first + 10):
            queue.put(item)

    @ray.remote(num_cpus=0.5)
    def consume(queue: Any) -> list[int]:
        return [queue.get() for _ in range(10)]

    producing = [produce.remote(queue, 10 * i) for i in range(3)]
    consumed = get([consume.remote(queue) for _ in range(3)])
    get(producing)
    assert sorted(item for items in consumed for item in items) == list(range(30))


def test_async_put_and_get(make: Any) -> None:
    queue = make(2)

    async def main() -> list[int]:
        async def produce() -> None:
            for item in range(5):
                await queue.put_async(item)

        producer = asyncio.create_task(produce())
        taken = [await queue.get_async() for _ in range(5)]
        await producer
        return taken

    assert asyncio.run(main()) == [0, 1, 2, 3, 4]


def test_async_timeouts_and_no_waiting(make: Any) -> None:
    queue = make(1)

    async def main() -> None:
        with pytest.raises(Empty):
            await queue.get_async(block=False)
        with pytest.raises(Empty):
            await queue.get_async(timeout=0.05)
        await queue.put_async(1)
        with pytest.raises(Full):
            await queue.put_async(2, block=False)
        with pytest.raises(Full):
            await queue.put_async(2, timeout=0.05)
        assert await queue.get_async() == 1

    asyncio.run(main())


def test_async_use_in_an_async_actor(make: Any) -> None:
    queue = make()

    @ray.remote
    class Reader:
        async def read(self, queue: Any, count: int) -> list[Any]:
            return [await queue.get_async() for _ in range(count)]

    reading = Reader.remote().read.remote(queue, 3)
    for item in "abc":
        queue.put(item)
    assert get(reading) == ["a", "b", "c"]


@pytest.mark.may_leak("an actor whose handle was pickled is known for as long as the program runs")
def test_pickled_queue_is_the_same_queue(make: Any) -> None:
    queue = make()
    again = ray.cloudpickle.loads(ray.cloudpickle.dumps(queue))
    again.put(1)
    assert queue.get() == 1


def test_refs_as_items(make: Any) -> None:
    queue = make()
    queue.put([ray.put("inside")])
    assert get(queue.get()[0]) == "inside"


def test_none_and_exceptions_as_items(make: Any) -> None:
    queue = make()
    queue.put(None)
    queue.put(KeyError("item"))
    assert queue.get() is None
    item = queue.get()
    assert isinstance(item, KeyError) and item.args == ("item",)


def test_actor_options(make: Any) -> None:
    make(actor_options={"name": "queue actor", "num_cpus": 0.5})
    assert ray.get_actor("queue actor") is not None


def test_shutdown_ends_the_queue() -> None:
    queue = Queue()
    queue.put(1)
    copy = get(ray.put(queue))
    queue.shutdown()
    with pytest.raises(RayActorError):
        copy.put(2)


def test_forced_shutdown_fails_those_who_wait() -> None:
    queue = Queue()

    @ray.remote
    def take(queue: Any) -> Any:
        return queue.get()

    taking = take.remote(queue)
    assert ray.wait([taking], timeout=0.3)[0] == []
    queue.shutdown(force=True)
    with pytest.raises(RayActorError):
        get(taking)
