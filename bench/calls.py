"""Rows for get, put, tasks and wait: the calls a driver makes, one function a row.

The shapes follow the rows of the same name in Ray's published microbenchmark, so that the numbers can be
compared with it; the code is our own. Remote functions are defined inside functions: so they travel by value
and workers need not import this package.
"""

from __future__ import annotations

from typing import Any

from bench.systems import Context
from bench.timing import Measurement, rate

BATCH = 1000
PUT_CLIENTS = 10
PUTS_PER_CLIENT = 100
TASK_CLIENTS = 4
CONTAINED_REFS = 10_000


def no_op_task(api: Any) -> Any:
    """A remote function of one CPU that returns two bytes."""

    def small_value() -> bytes:
        return b"ok"

    return api.remote(small_value)


def get_calls(context: Context) -> Measurement:
    get = context.api.get
    ref = context.api.put(0)
    return rate(lambda: get(ref), 1, context.timing)


def put_calls(context: Context) -> Measurement:
    put = context.api.put
    return rate(lambda: put(0), 1, context.timing)


def multi_client_put_calls(context: Context) -> Measurement:
    api = context.api
    puts = PUTS_PER_CLIENT

    def put_many() -> None:
        for _ in range(puts):
            api.put(0)

    client = api.remote(num_cpus=0)(put_many)

    def step() -> None:
        api.get([client.remote() for _ in range(PUT_CLIENTS)])

    return rate(step, PUT_CLIENTS * puts, context.timing)


def tasks_sync(context: Context) -> Measurement:
    api = context.api
    task = no_op_task(api)
    return rate(lambda: api.get(task.remote()), 1, context.timing)


def tasks_async(context: Context) -> Measurement:
    """Tasks a second when 1000 are submitted at once."""
    return _task_batches(context, BATCH)


def tasks_and_get_batch(context: Context) -> Measurement:
    """Batches of 1000 a second when each is fetched before the next is submitted."""
    return _task_batches(context, 1)


def _task_batches(context: Context, units: float) -> Measurement:
    api = context.api
    task = no_op_task(api)

    def step() -> None:
        api.get([task.remote() for _ in range(BATCH)])

    return rate(step, units, context.timing)


def multi_client_tasks_async(context: Context) -> Measurement:
    api = context.api
    task = no_op_task(api)

    class Client:
        def batch(self, count: int) -> None:
            api.get([task.remote() for _ in range(count)])

    remote_client = api.remote(num_cpus=0)(Client)
    clients = [remote_client.remote() for _ in range(TASK_CLIENTS)]

    def step() -> None:
        api.get([client.batch.remote(BATCH) for client in clients])

    return rate(step, TASK_CLIENTS * BATCH, context.timing)


def wait_1k_refs(context: Context) -> Measurement:
    """Loops a second: submit 1000 tasks, then take one ready ref at a time until none is left."""
    api = context.api
    task = no_op_task(api)

    def step() -> None:
        not_ready = [task.remote() for _ in range(BATCH)]
        while not_ready:
            _, not_ready = api.wait(not_ready)

    return rate(step, 1, context.timing)


def get_object_of_refs(context: Context) -> Measurement:
    api = context.api
    count = CONTAINED_REFS

    def make_refs() -> list[Any]:
        return [api.put(1) for _ in range(count)]

    container = api.remote(num_cpus=0)(make_refs).remote()

    def step() -> None:
        refs = api.get(container)
        if len(refs) != count:
            raise AssertionError(f"the container gave {len(refs)} refs instead of {count}")

    return rate(step, 1, context.timing)
