"""The task rows on concurrent.futures.ProcessPoolExecutor: the nearest thing in the standard library.

It has no objects, actors or nested tasks, so only the plain task rows exist. One worker process per core,
default start method.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

from bench.calls import BATCH
from bench.scale import MANY_TASKS
from bench.systems import Context
from bench.timing import Measurement, durations, rate


def _small_value() -> bytes:
    return b"ok"


def tasks_sync(context: Context) -> Measurement:
    with ProcessPoolExecutor(context.cores) as pool:
        return rate(lambda: pool.submit(_small_value).result(), 1, context.timing)


def tasks_async(context: Context) -> Measurement:
    with ProcessPoolExecutor(context.cores) as pool:
        return rate(lambda: _burst(pool, BATCH), BATCH, context.timing)


def tasks_and_get_batch(context: Context) -> Measurement:
    with ProcessPoolExecutor(context.cores) as pool:
        return rate(lambda: _burst(pool, BATCH), 1, context.timing)


def many_tasks(context: Context) -> Measurement:
    with ProcessPoolExecutor(context.cores) as pool:
        _burst(pool, 100)
        return durations(lambda: _burst(pool, MANY_TASKS), 1)


def _burst(pool: ProcessPoolExecutor, count: int) -> None:
    for future in [pool.submit(_small_value) for _ in range(count)]:
        future.result()
