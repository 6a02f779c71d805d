"""``Pool``: the API of ``multiprocessing.Pool`` over actors.

Differences: functions and arguments need not be importable (they are pickled as for a task), the processes may be
on any node, and a process that dies is replaced: the work it had fails with ActorDiedError.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from noded.client import discovery
from noded.client.api import cluster_resources, get, init, is_initialized, put
from noded.client.remote import remote
from noded.util.multiprocessing.crew import Chunk, Crew, PoolWorker
from noded.util.multiprocessing.results import AsyncResult, IMapIterator, OrderedIMapIterator, UnorderedIMapIterator

log = logging.getLogger("noded.pool")

Callback = Callable[[Any], None]


class Pool:
    """``with Pool(4) as pool: pool.map(f, values)``.

    ``processes``: by default as many as the cluster has CPUs. ``initializer(*initargs)`` runs first in each.
    ``maxtasksperchild``: a process is replaced after so many chunks. ``ray_address``: the cluster to connect to
    when the program has not yet. ``ray_remote_args``: options of the actors. ``context`` is ignored.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: Iterable[Any] | None = None,
        maxtasksperchild: int | None = None,
        context: Any = None,
        ray_address: str | None = None,
        ray_remote_args: dict[str, Any] | None = None,
    ):
        _check(processes, initializer, maxtasksperchild)
        if context is not None:
            log.warning("the argument context of Pool has no meaning here: its processes are actors")
        _connect(processes, ray_address)
        cpus = int(cluster_resources().get("CPU", 0))
        if processes is None:
            processes = max(1, cpus)
        elif processes > cpus:
            raise ValueError(
                f"a pool of {processes} processes cannot be made: the cluster has {cpus} CPUs; ask for fewer processes"
            )
        worker = remote(PoolWorker)
        if ray_remote_args:
            worker = worker.options(**ray_remote_args)
        arguments = initializer, tuple(initargs or ())
        self._crew = Crew(processes, lambda: worker.remote(*arguments), maxtasksperchild)
        self._closed = False
        if initializer is not None:
            try:
                get([handle.ready.remote() for handle in self._crew.handles()])
            except BaseException:
                self.terminate()
                raise

    # ------------------------------------------------------------ calls

    def apply(
        self, func: Callable[..., Any], args: Iterable[Any] | None = None, kwargs: dict[str, Any] | None = None
    ) -> Any:
        """``func(*args, **kwargs)`` in a process of the pool; waits for the result."""
        return self.apply_async(func, args, kwargs).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] | None = None,
        kwargs: dict[str, Any] | None = None,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> AsyncResult:
        """As ``apply``, without waiting. Callbacks run in a thread of the pool, before the result is ready."""
        return self._start("apply", func, [[(tuple(args or ()), dict(kwargs or {}))]], True, callback, error_callback)

    def map(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        """``[func(x) for x in iterable]``; waits for all results."""
        return list(self.map_async(func, iterable, chunksize).get())

    def map_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> AsyncResult:
        """As ``map``, without waiting. A process gets ``chunksize`` calls at once; None: a quarter of its share."""
        return self._start("one", func, self._split(iterable, chunksize), False, callback, error_callback)

    def starmap(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        """``[func(*x) for x in iterable]``; waits for all results."""
        return list(self.starmap_async(func, iterable, chunksize=chunksize).get())

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        callback: Callback | None = None,
        error_callback: Callback | None = None,
        chunksize: int | None = None,
    ) -> AsyncResult:
        """As ``starmap``, without waiting."""
        return self._start("star", func, self._split(iterable, chunksize), False, callback, error_callback)

    def imap(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = 1) -> IMapIterator:
        """As ``map``, one result after the other; the iterable is read as results are taken."""
        return OrderedIMapIterator(*self._stream(func, iterable, chunksize))

    def imap_unordered(
        self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = 1
    ) -> IMapIterator:
        """As ``imap``, whichever result comes first."""
        return UnorderedIMapIterator(*self._stream(func, iterable, chunksize))

    def _start(
        self,
        how: str,
        func: Callable[..., Any],
        parts: list[list[Any]],
        single: bool,
        callback: Callback | None,
        error_callback: Callback | None,
    ) -> AsyncResult:
        self._check_running()
        for function in (func, callback, error_callback):
            if function is not None and not callable(function):
                raise TypeError(f"{function!r} is not callable")
        result = AsyncResult(self._crew.watch, single, callback, error_callback)
        # Pickled once for all chunks.
        fn = put(func) if len(parts) > 1 else func
        chunks = [Chunk(how, fn, part, result.on_arrival) for part in parts]
        result.expect(chunks)
        self._crew.submit(chunks)
        return result

    def _stream(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None) -> tuple[Any, ...]:
        self._check_running()
        crew = self._crew
        fn = put(func)

        def submit(items: list[Any], on_arrival: Callable[[Chunk], None]) -> Chunk:
            chunk = Chunk("one", fn, items, on_arrival)
            crew.submit([chunk])
            return chunk

        return crew.watch, _chunks(iter(iterable), _size(chunksize or 1)), submit, 2 * crew.size

    def _split(self, iterable: Iterable[Any], chunksize: int | None) -> list[list[Any]]:
        items = list(iterable)
        size = -(-len(items) // (self._crew.size * 4)) if chunksize is None else _size(chunksize)
        return list(_chunks(iter(items), size or 1))

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """Take no more calls; the processes end when all are done."""
        if not self._closed:
            self._closed = True
            self._crew.close()

    def terminate(self) -> None:
        """End the processes now; what is not done fails with ActorDiedError."""
        self._closed = True
        self._crew.terminate()

    def join(self) -> None:
        """Wait until the processes have ended, after ``close`` or ``terminate``. Raises ValueError before."""
        if not self._closed:
            raise ValueError("Pool is still running")
        self._crew.join()

    def _check_running(self) -> None:
        if self._closed:
            raise ValueError("Pool not running")

    def __enter__(self) -> Pool:
        self._check_running()
        return self

    def __exit__(self, *exc: object) -> None:
        self.terminate()

    def __reduce__(self) -> Any:
        raise NotImplementedError("a Pool cannot be passed to other processes: make one there, or pass results")

    def __del__(self) -> None:
        if "_crew" in self.__dict__ and not self._closed:
            self._crew.close()


def _chunks(source: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(itertools.islice(source, size)):
        yield chunk


def _size(chunksize: int) -> int:
    if chunksize < 1:
        raise ValueError(f"chunksize must be at least 1, not {chunksize}")
    return chunksize


def _check(processes: int | None, initializer: Any, maxtasksperchild: int | None) -> None:
    for name, value in (("processes", processes), ("maxtasksperchild", maxtasksperchild)):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be a whole number or None, not {value!r}")
        if value <= 0:
            raise ValueError(f"{name} must be >0, not {value}")
    if initializer is not None and not callable(initializer):
        raise TypeError(f"the initializer must be a function, not {initializer!r}")


def _connect(processes: int | None, address: str | None) -> None:
    if is_initialized():
        return
    if address is None and processes is not None and not os.environ.get("NODED_ADDRESS"):
        if not discovery.running(os.environ):
            init(num_cpus=processes)
            return
    init(address)
