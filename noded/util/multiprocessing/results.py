"""What a pool's asynchronous methods return: ``AsyncResult``, and the iterators of ``imap``."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import TimeoutError
from typing import Any

from noded.client.watch import Watch
from noded.util.failures import original
from noded.util.multiprocessing.crew import Chunk

log = logging.getLogger("noded.pool")


def outcomes(watch: Watch, chunk: Chunk) -> list[tuple[bool, Any]]:
    """(worked, result or exception) for each call of a chunk that has arrived."""
    try:
        if chunk.error is not None:
            raise chunk.error
        assert chunk.ref is not None
        results, errors = watch.load(chunk.ref)
    except Exception as problem:
        return [(False, original(problem))] * chunk.size
    return [(False, original(errors[at])) if at in errors else (True, result) for at, result in enumerate(results)]


class AsyncResult:
    """The result of ``apply_async`` (``single``) or ``map_async``: that of the chunks, in order."""

    def __init__(
        self,
        watch: Watch,
        single: bool,
        callback: Callable[[Any], None] | None,
        error_callback: Callable[[BaseException], None] | None,
    ):
        self._watch = watch
        self._single = single
        self._callback = callback
        self._error_callback = error_callback
        self._chunks: list[Chunk] = []
        self._left = 0
        self._over = False
        self._loading = threading.Lock()
        self._value: Any = None
        self._error: BaseException | None = None

    def expect(self, chunks: list[Chunk]) -> None:
        """Before they are submitted. Without chunks the result is there at once."""
        self._chunks = chunks
        self._left = len(chunks)
        if not chunks:
            self._value = []
            self._finish()

    def on_arrival(self, chunk: Chunk) -> Callable[[], None] | None:
        """Under the crew's lock. Callbacks run before the result counts as ready, as in the standard library."""
        self._left -= 1
        if self._left:
            return None
        if self._callback is None and self._error_callback is None:
            self._over = True
            return None
        return self._finish

    def _finish(self) -> None:
        self._load()
        callback: Any = self._callback if self._error is None else self._error_callback
        try:
            if callback is not None:
                callback(self._value if self._error is None else self._error)
        except Exception:
            log.exception("a callback of a pool raised")
        self._over = True
        self._watch.look_again()

    def _load(self) -> None:
        with self._loading:
            if not self._chunks:
                return
            found = [outcome for chunk in self._chunks for outcome in outcomes(self._watch, chunk)]
            failed = [result for worked, result in found if not worked]
            if failed:
                self._error = failed[0]
            else:
                values = [result for _, result in found]
                self._value = values[0] if self._single else values
            self._chunks = []

    def ready(self) -> bool:
        """Whether the result, or the error, is there."""
        return self._over

    def successful(self) -> bool:
        """Whether there is a result and not an error. Raises ValueError before it is known."""
        if not self._over:
            raise ValueError(f"{self!r} not ready")
        self._load()
        return self._error is None

    def wait(self, timeout: float | None = None) -> None:
        """Until it is ready, or ``timeout`` seconds."""
        self._watch.wait_until(self.ready, timeout)

    def get(self, timeout: float | None = None) -> Any:
        """The result, or the call's own exception raised; multiprocessing.TimeoutError after ``timeout`` seconds.

        With several errors that of the first argument is raised.
        """
        if not self._watch.wait_until(self.ready, timeout):
            raise TimeoutError(f"no result after {timeout:g} s")
        self._load()
        if self._error is not None:
            raise self._error
        return self._value


class IMapIterator:
    """Results one by one, in order. The arguments are taken from their iterable as results are taken from here."""

    def __init__(
        self,
        watch: Watch,
        chunks: Iterator[list[Any]],
        submit: Callable[[list[Any], Callable[[Chunk], None]], Chunk],
        ahead: int,
    ):
        self._watch = watch
        self._source: Iterator[list[Any]] | None = chunks
        self._source_error: BaseException | None = None
        self._submit = submit
        self._ahead = ahead
        """So many chunks are under way at once."""
        self._open = 0
        self._values: deque[tuple[bool, Any]] = deque()
        self._lock = threading.Lock()
        self._fill()

    def _fill(self) -> None:
        while self._source is not None and self._open < self._ahead:
            try:
                items = next(self._source)
            except StopIteration:
                self._source = None
            except Exception as problem:  # comes behind the results of what was there before it
                self._source, self._source_error = None, problem
            else:
                self._open += 1
                self._sent(self._submit(items, self._on_arrival))

    def _sent(self, chunk: Chunk) -> None:
        raise NotImplementedError

    def _on_arrival(self, chunk: Chunk) -> None:
        raise NotImplementedError

    def _first(self) -> Chunk | None:
        """The chunk whose results come next, if it has arrived."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self.next()

    def next(self, timeout: float | None = None) -> Any:
        """The next result, or its exception raised; more may come behind. multiprocessing.TimeoutError after
        ``timeout`` seconds.
        """
        with self._lock:
            if not self._values:
                self._next_chunk(timeout)
            worked, value = self._values.popleft()
        if not worked:
            raise value
        return value

    def _next_chunk(self, timeout: float | None) -> None:
        if not self._open:
            if self._source_error is not None:
                error, self._source_error = self._source_error, None
                raise error
            raise StopIteration
        if not self._watch.wait_until(lambda: self._first() is not None, timeout):
            raise TimeoutError(f"no result after {timeout:g} s")
        chunk = self._first()
        assert chunk is not None
        self._taken()
        self._open -= 1
        self._values.extend(outcomes(self._watch, chunk))
        self._fill()

    def _taken(self) -> None:
        raise NotImplementedError


class OrderedIMapIterator(IMapIterator):
    def __init__(self, *arguments: Any):
        self._chunks: deque[Chunk] = deque()
        super().__init__(*arguments)

    def _sent(self, chunk: Chunk) -> None:
        self._chunks.append(chunk)

    def _on_arrival(self, chunk: Chunk) -> None:
        """The place in line says it."""

    def _first(self) -> Chunk | None:
        return self._chunks[0] if self._chunks and self._chunks[0].arrived else None

    def _taken(self) -> None:
        self._chunks.popleft()


class UnorderedIMapIterator(IMapIterator):
    def __init__(self, *arguments: Any):
        self._arrived: deque[Chunk] = deque()
        super().__init__(*arguments)

    def _sent(self, chunk: Chunk) -> None:
        """It comes by its arrival."""

    def _on_arrival(self, chunk: Chunk) -> None:
        self._arrived.append(chunk)

    def _first(self) -> Chunk | None:
        return self._arrived[0] if self._arrived else None

    def _taken(self) -> None:
        self._arrived.popleft()
