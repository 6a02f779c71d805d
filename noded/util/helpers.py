"""Iterating over the results of many tasks: ``as_completed`` and ``map_unordered``."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from noded.client.api import get, wait
from noded.client.refs import ObjectRef

DEFAULT_CHUNK_SIZE = 10
DEFAULT_BACKPRESSURE_SIZE = 100


def as_completed(
    refs: Sequence[ObjectRef[Any]],
    *,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    yield_obj_refs: bool = False,
    **kwargs: Any,
) -> Iterator[Any]:
    """The values of the refs in the order in which they are ready (or the refs, with ``yield_obj_refs``).

    They are waited for ``chunk_size`` at a time, or as many as are there after ``timeout`` seconds. Other
    arguments go to ``noded.wait``. A task's error is raised in its place.
    """
    if chunk_size < 1:
        raise ValueError("`chunk_size` must be >= 1")
    if "num_returns" in kwargs:
        raise ValueError("Use the `chunk_size` argument instead of `num_returns`.")
    left = list(refs)
    while left:
        ready, left = wait(left, num_returns=min(chunk_size, len(left)), **kwargs)
        yield from _values(ready, yield_obj_refs)


def map_unordered(
    fn: Any,
    items: Iterable[Any],
    *,
    backpressure_size: int | None = DEFAULT_BACKPRESSURE_SIZE,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    yield_obj_refs: bool = False,
    **kwargs: Any,
) -> Iterator[Any]:
    """The values of ``fn.remote(item)`` for all items, in the order in which they are ready.

    ``fn`` is a remote function or an actor's method. At most ``backpressure_size`` calls are under way (None: all
    at once); the others arguments are those of ``as_completed``.
    """
    if chunk_size < 1:
        raise ValueError("`chunk_size` must be >= 1")
    if backpressure_size is not None and backpressure_size <= 0:
        raise ValueError("backpressure_size must be positive.")
    if "num_returns" in kwargs:
        raise ValueError("Use the `chunk_size` argument instead of `num_returns`.")
    source = iter(items)
    left = [fn.remote(item) for item in islice(source, backpressure_size)]
    while left:
        ready, left = wait(left, num_returns=min(chunk_size, len(left)), **kwargs)
        given = deque(ready)
        # The places are filled before the values are handed out: the consumer may take its time.
        left += [fn.remote(item) for item in islice(source, len(given))]
        while given:
            yield from _values([given.popleft()], yield_obj_refs)


def _values(refs: list[ObjectRef[Any]], as_refs: bool) -> Iterator[Any]:
    for ref in refs:
        yield ref if as_refs else get(ref)
