"""The joblib backend: a batch of joblib's calls is a task.

Big arguments (the data that every call of a grid search gets) are stored once per ``Parallel`` call and read from
shared memory by all tasks; arrays arrive read-only, as with joblib's own memory mapping.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from joblib._parallel_backends import AutoBatchingMixin, FallbackToBackend, ParallelBackendBase, SequentialBackend

from noded.client.api import cluster_resources, put
from noded.client.codec import is_atom
from noded.client.refs import ObjectRef
from noded.util.executor import NodedExecutor, NodedFuture

BIG = 100 << 10
"""Bytes from which an argument is stored once."""


class NodedBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """``parallel_config("noded", ray_remote_args={"num_cpus": 2})``: options of the tasks are possible."""

    supports_retrieve_callback = True

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        ray_remote_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads, **kwargs)
        self._options = ray_remote_args
        self._executor: NodedExecutor | None = None
        self._n_jobs = 1
        self._stored: dict[int, tuple[Any, ObjectRef[Any]]] = {}
        """By the id of an object, which is kept here so that the id stays its own."""

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many calls run at once: negative numbers count from the cluster's CPUs, None means one."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        if n_jobs < 0:
            return max(1, int(cluster_resources().get("CPU", 1)) + 1 + n_jobs)
        return n_jobs

    def configure(
        self, n_jobs: int | None = 1, parallel: Any = None, prefer: Any = None, require: Any = None, **kwargs: Any
    ) -> int:
        self._n_jobs = self.effective_n_jobs(n_jobs)
        if self._n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self._executor = NodedExecutor(self._n_jobs, task_options=self._options)
        self.parallel = parallel
        return self._n_jobs

    def submit(self, func: Any, callback: Callable[[Any], None] | None = None) -> NodedFuture:
        assert self._executor is not None, "joblib submits to a backend that it has configured"
        batch, refs = self._without_big_parts(func)
        future = self._executor.submit(_run, batch, *refs)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: NodedFuture) -> Any:
        return out.result()

    def terminate(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None
        self._stored.clear()
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        if self._executor is not None:
            self._executor.abort()
        self._stored.clear()
        if ensure_ready:
            self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel)

    def _without_big_parts(self, batch: Any) -> tuple[Any, list[ObjectRef[Any]]]:
        """A copy of the batch with places instead of big arguments, and the refs of these."""
        refs: dict[int, tuple[int, ObjectRef[Any]]] = {}

        def light(value: Any) -> Any:
            if is_atom(value) or not _is_big(value):
                return value
            stored = self._stored.get(id(value))
            if stored is None:
                stored = self._stored[id(value)] = value, put(value)
            place, _ = refs.setdefault(id(value), (len(refs), stored[1]))
            return _Stored(place)

        made = copy.copy(batch)
        made.items = [
            (func, tuple([light(a) for a in args]), {k: light(a) for k, a in kwargs.items()})
            for func, args, kwargs in batch.items
        ]
        return made, [ref for _, ref in refs.values()]


class _Stored(NamedTuple):
    """Stands for the big argument number ``place``."""

    place: int


def _is_big(value: Any) -> bool:
    size = getattr(value, "nbytes", None)
    return (size if isinstance(size, int) else sys.getsizeof(value, 0)) >= BIG


def _run(batch: Any, *big: Any) -> Any:
    def whole(value: Any) -> Any:
        return big[value.place] if type(value) is _Stored else value

    batch.items = [
        (func, tuple([whole(a) for a in args]), {k: whole(a) for k, a in kwargs.items()})
        for func, args, kwargs in batch.items
    ]
    return batch()
