"""The table of rows: name, group, unit, and the code that measures it on each system.

Groups: `call` are the rows of the geometric mean, `placement` is the one of placement groups, `bytes` are held
against memcpy; those are the rows of Ray's microbenchmark. `memory` is about small stores, `scale` is all else. A row
whose `cluster` is false brings its own head or needs none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from bench import actors, calls, gigabytes, memory, node, placement, pool, scale
from bench.systems import CLUSTERS, Context
from bench.timing import Measurement

GROUPS = ("call", "placement", "bytes", "memory", "scale")
DEFAULT_GROUPS = ("call", "placement", "bytes")

Run = Callable[[Context], Measurement]


@dataclass(frozen=True)
class Row:
    name: str
    group: str
    unit: str
    runs: dict[str, Run]
    higher_is_better: bool = True
    cluster: bool = True
    resources: dict[str, float] = field(default_factory=dict)
    """What the cluster has beside CPUs."""


def _row(name: str, group: str, unit: str, run: Run, lower: bool = False, cluster: bool = True, **others: Run) -> Row:
    runs = dict.fromkeys(CLUSTERS, run) | others
    return Row(name, group, unit, runs, not lower, cluster)


def _async(run: Callable[..., Measurement]) -> Run:
    return partial(run, asynchronous=True)


_CALLS = (
    _row("get calls", "call", "1/s", calls.get_calls),
    _row("put calls", "call", "1/s", calls.put_calls),
    _row("multi client put calls", "call", "1/s", calls.multi_client_put_calls),
    _row("tasks sync", "call", "1/s", calls.tasks_sync, futures=pool.tasks_sync),
    _row("tasks async", "call", "1/s", calls.tasks_async, futures=pool.tasks_async),
    _row("tasks and get batch", "call", "1/s", calls.tasks_and_get_batch, futures=pool.tasks_and_get_batch),
    _row("multi client tasks async", "call", "1/s", calls.multi_client_tasks_async),
    _row("wait 1k refs", "call", "1/s", calls.wait_1k_refs),
    _row("get object containing 10k refs", "call", "1/s", calls.get_object_of_refs),
    _row("1:1 actor calls sync", "call", "1/s", actors.one_to_one_sync),
    _row("1:1 actor calls async", "call", "1/s", actors.one_to_one_async),
    _row("1:n actor calls async", "call", "1/s", actors.one_to_n_async),
    _row("n:n actor calls async", "call", "1/s", actors.n_to_n_async),
    _row("n:n actor calls with arg async", "call", "1/s", actors.n_to_n_with_arg_async),
    _row("1:1 actor calls concurrent", "call", "1/s", actors.one_to_one_concurrent),
    _row("1:1 async-actor calls sync", "call", "1/s", _async(actors.one_to_one_sync)),
    _row("1:1 async-actor calls async", "call", "1/s", _async(actors.one_to_one_async)),
    _row("1:1 async-actor with args async", "call", "1/s", actors.one_to_one_with_args_async),
    _row("1:n async-actor calls async", "call", "1/s", _async(actors.one_to_n_async)),
    _row("n:n async-actor calls async", "call", "1/s", _async(actors.n_to_n_async)),
)

_PLACEMENT = (
    replace(
        _row("placement group create/removal", "placement", "1/s", placement.create_and_remove),
        resources=placement.RESOURCES,
    ),
)

_BYTES = (
    _row("put gigabytes", "bytes", "GB/s", gigabytes.put_gigabytes, memcpy=gigabytes.memcpy_gigabytes),
    _row(
        "multi client put gigabytes",
        "bytes",
        "GB/s",
        gigabytes.multi_client_put_gigabytes,
        memcpy=gigabytes.multi_client_memcpy_gigabytes,
    ),
)


def _put_and_get(name: str, size: int) -> Row:
    run = partial(gigabytes.put_and_get, size=size)
    return _row(f"put and get of {name}", "memory", "GB/s", run, memcpy=partial(gigabytes.memcpy_of, size=size))


_SCALE = (
    _row("60 actors at once", "scale", "actors/s", scale.actors_at_once),
    _row("actor create call kill", "scale", "ms", scale.actors_in_series, lower=True),
    _row("20k tasks", "scale", "s", scale.many_tasks, lower=True, futures=pool.many_tasks),
    _row("chain of 500 tasks", "scale", "s", scale.chain, lower=True),
    _row("tree of tasks, depth 6", "scale", "s", scale.tree, lower=True),
    _row("10k refs as arguments", "scale", "s", scale.ref_arguments, lower=True),
    _row("3k returns", "scale", "s", scale.many_returns, lower=True),
    _row("queued tasks: driver memory", "scale", "bytes/task", scale.queued_tasks, lower=True),
    _row("head start", "scale", "s", node.head_start, lower=True, cluster=False),
    _row("idle head: memory", "scale", "MB PSS", node.idle_memory, lower=True, cluster=False),
    _row("idle head: CPU", "scale", "% of a core", node.idle_cpu, lower=True, cluster=False),
    _row("import", "scale", "ms", node.import_time, lower=True, cluster=False, futures=node.import_time),
)

_MEMORY = (
    _put_and_get("1 MB", 10**6),
    _put_and_get("100 MB", 10**8),
    _row("4 GB through a store of 512 MB", "memory", "GB/s", memory.through_a_small_store, cluster=False),
    _row("shuffle of 2 GB, store of 512 MB", "memory", "s", memory.shuffle, lower=True, cluster=False),
    _row("live small refs: owner's memory", "memory", "bytes/ref", memory.live_refs, lower=True, cluster=False),
)

ROWS = {row.name: row for row in (*_CALLS, *_PLACEMENT, *_BYTES, *_MEMORY, *_SCALE)}
