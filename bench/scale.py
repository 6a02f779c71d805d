"""Rows about many things at once: actors, queued tasks, long chains, deep trees, wide calls.

Each is warmed by a few tasks, so that starting the first worker is not part of it. The memory row measures
this process, the driver, while every CPU is held by a task that sleeps, so that everything submitted stays
queued.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bench.calls import no_op_task
from bench.proctree import resident_bytes
from bench.systems import Context
from bench.timing import Measurement, durations

ACTORS = 60
SERIAL_ACTORS = 30
MANY_TASKS = 20_000
CHAIN = 500
DEPTH = 6
ARGUMENTS = 10_000
RETURNS = 3_000
# Ray takes minutes and gigabytes for a million; a tenth gives the same figure per task.
QUEUED = {"noded": 1_000_000, "ray": 100_000}
QUEUED_SECONDS = 60.0
SLEEP = 600


def actors_at_once(context: Context) -> Measurement:
    """Actors a second: 60 created together, until every one has answered a call."""
    api = context.api
    _warm(api)
    actor_class = _actor_class(api)
    start = time.perf_counter()
    actors = [actor_class.remote() for _ in range(ACTORS)]
    api.get([actor.ping.remote() for actor in actors])
    return Measurement(ACTORS / (time.perf_counter() - start))


def actors_in_series(context: Context) -> Measurement:
    api = context.api
    _warm(api)
    actor_class = _actor_class(api)

    def step() -> None:
        actor = actor_class.remote()
        api.get(actor.ping.remote())
        api.kill(actor)

    return durations(step, SERIAL_ACTORS, scale=1000)


def many_tasks(context: Context) -> Measurement:
    api = context.api
    task = _warm(api)
    return durations(lambda: api.get([task.remote() for _ in range(MANY_TASKS)]), 1)


def chain(context: Context) -> Measurement:
    api = context.api
    _warm(api)

    def increment(value: int) -> int:
        return value + 1

    task = api.remote(increment)

    def step() -> None:
        ref = task.remote(0)
        for _ in range(CHAIN - 1):
            ref = task.remote(ref)
        _expect(api.get(ref), CHAIN)

    return durations(step, 3)


def tree(context: Context) -> Measurement:
    """Every task above the leaves submits two children, waits for both and adds: 127 tasks."""
    api = context.api
    _warm(api)

    def count(task: Any, depth: int) -> int:
        if depth == 0:
            return 1
        left, right = api.get([task.remote(task, depth - 1) for _ in range(2)])
        return int(1 + left + right)

    task = api.remote(count)
    return durations(lambda: _expect(api.get(task.remote(task, DEPTH)), 2 ** (DEPTH + 1) - 1), 3)


def ref_arguments(context: Context) -> Measurement:
    api = context.api
    _warm(api)

    def count(*values: int) -> int:
        return len(values)

    task = api.remote(count)
    refs = [api.put(number) for number in range(ARGUMENTS)]
    return durations(lambda: _expect(api.get(task.remote(*refs)), ARGUMENTS), 3)


def many_returns(context: Context) -> Measurement:
    api = context.api
    _warm(api)

    def numbers(count: int) -> list[int]:
        return list(range(count))

    task = api.remote(num_returns=RETURNS)(numbers)
    return durations(lambda: _expect(len(api.get(task.remote(RETURNS))), RETURNS), 3)


def queued_tasks(context: Context) -> Measurement:
    """Bytes of driver memory a queued task, with the rate of submission beside it."""
    api = context.api
    task = _warm(api)
    _hold_every_cpu(context)
    wanted = QUEUED[context.system]
    refs: list[Any] = []
    before = resident_bytes()
    start = time.perf_counter()
    while len(refs) < wanted and time.perf_counter() - start < QUEUED_SECONDS:
        refs.extend([task.remote() for _ in range(1000)])
    elapsed = time.perf_counter() - start
    grown = resident_bytes() - before
    extra = {
        "submitted": float(len(refs)),
        "submitted_per_s": len(refs) / elapsed,
        "driver_mb": grown / (1 << 20),
    }
    return Measurement(grown / len(refs), extra=extra)


def _hold_every_cpu(context: Context) -> None:
    """Start one sleeping task per CPU and return when all of them run."""

    def hold(marker: str, seconds: float) -> None:
        Path(marker).touch()
        time.sleep(seconds)

    task = context.api.remote(hold)
    markers = [context.home / f"held-{index}" for index in range(context.cores)]
    # The refs are dropped on purpose: nobody wants the results, and the tasks end with the cluster.
    for marker in markers:
        task.remote(str(marker), SLEEP)
    deadline = time.monotonic() + 60
    while not all(marker.exists() for marker in markers):
        if time.monotonic() > deadline:
            raise RuntimeError("the tasks that should hold every CPU did not start in 60 s: is another cluster in use?")
        time.sleep(0.02)


def _warm(api: Any) -> Any:
    task = no_op_task(api)
    api.get([task.remote() for _ in range(100)])
    return task


def _actor_class(api: Any) -> Any:
    class Actor:
        def ping(self) -> bytes:
            return b"ok"

    return api.remote(num_cpus=0)(Actor)


def _expect(value: object, wanted: object) -> None:
    if value != wanted:
        raise AssertionError(f"the system computed {value!r} instead of {wanted!r}: its time means nothing")
