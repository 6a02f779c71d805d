"""``NodedExecutor``: a ``concurrent.futures.Executor`` whose calls run as tasks, on the whole cluster.

Its futures work with ``concurrent.futures.wait``, ``as_completed`` and ``asyncio.wrap_future``. ObjectRefs among
the arguments are replaced by their values, as for every task.
"""

from __future__ import annotations

import atexit
import inspect
import itertools
import queue
import threading
import time
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Any

from noded.client.api import cancel
from noded.client.refs import ObjectRef
from noded.client.remote import RemoteFunction, remote
from noded.client.watch import Watch
from noded.exceptions import LocalDaemonDiedError, TaskCancelledError
from noded.util.failures import original

_KEPT_FUNCTIONS = 100


class NodedFuture(Future[Any]):
    """``cancel()`` works until a worker has been given the call; ``result()`` raises the call's own exception."""

    def __init__(self, calls: _Calls) -> None:
        super().__init__()
        self._calls = calls
        self._ref: ObjectRef[Any] | None = None
        """None while it waits here, behind max_workers."""
        self._claim = threading.Lock()
        """Held, for good, by the thread that brings the result."""

    def running(self) -> bool:
        return self._ref is not None and not self.done() and self._calls.watch.under_way(self._ref)

    def cancel(self) -> bool:
        if self._calls.take_back(self):
            self._end_cancelled()
            return True
        if self._ref is not None and self._calls.watch.withdraw(self._ref):
            self.settle()
            return True
        return self.cancelled()

    def result(self, timeout: float | None = None) -> Any:
        return super().result(self.await_here(timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        return super().exception(self.await_here(timeout))

    def await_here(self, timeout: float | None) -> float | None:
        """Wait and settle in the thread that wants the result: no other has to be woken then. What is left of the
        timeout.
        """
        if self.done():
            return timeout
        began = time.monotonic()
        if self._calls.watch.wait_until(self._is_here, timeout):
            self.settle()
        return None if timeout is None else max(0.0, timeout - (time.monotonic() - began))

    def _is_here(self) -> bool:
        return self.done() or (self._ref is not None and self._calls.watch.is_done(self._ref))

    def settle(self) -> None:
        """Take over the answer, which is here, and run the callbacks; only the first call does."""
        if self._ref is None or not self._claim.acquire(blocking=False):
            return
        try:
            value = self._calls.watch.load(self._ref)
        except KeyboardInterrupt:  # of this program: one of the task's would be a TaskError
            self._claim.release()
            raise
        except TaskCancelledError:
            self._end_cancelled()
        except BaseException as error:
            self.fail(original(error))
        else:
            self._calls.ended(self)
            self.set_running_or_notify_cancel()
            self.set_result(value)

    def fail(self, error: BaseException) -> None:
        self._calls.ended(self)
        self.set_running_or_notify_cancel()
        self.set_exception(error)

    def _end_cancelled(self) -> None:
        self._calls.ended(self)
        super().cancel()
        self.set_running_or_notify_cancel()
        self._calls.watch.look_again()


class _Calls:
    """The calls of one executor that are not over. Lives until the last of them is, also without the executor."""

    def __init__(self, limit: int | None, options: dict[str, Any]):
        self.watch = Watch()
        self.open: set[NodedFuture] = set()
        self._limit = limit
        self._options = options
        self._lock = threading.Lock()
        self._waiting: OrderedDict[NodedFuture, tuple[Callable[..., Any], Any, dict[str, Any]]] = OrderedDict()
        self._under_way = 0
        self._functions: dict[Callable[..., Any], RemoteFunction] = {}
        self._general = self._remote(_call)
        self._no_more = False
        self._arrived: queue.SimpleQueue[NodedFuture | None] = queue.SimpleQueue()
        """What has been answered; None: look whether this is the end."""
        self.thread = threading.Thread(target=self._run, name="noded-executor", daemon=True)

    def _remote(self, function: Callable[..., Any]) -> RemoteFunction:
        made: RemoteFunction = remote(**self._options)(function) if self._options else remote(function)
        return made

    def submit(self, future: NodedFuture, fn: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> None:
        with self._lock:
            self.open.add(future)
            if self._limit is not None and self._under_way >= self._limit:
                self._waiting[future] = fn, args, kwargs
                return
            self._under_way += 1
        self._hand_over(future, fn, args, kwargs)

    def _hand_over(self, future: NodedFuture, fn: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> None:
        try:
            if self.watch.closed:
                raise LocalDaemonDiedError("noded.shutdown() was called before this call was handed over")
            ref = (
                self._ready(fn).remote(*args, **kwargs) if _is_plain(fn) else self._general.remote(fn, *args, **kwargs)
            )
        except Exception as problem:  # as a future's, like everything that goes wrong with a call
            future.fail(problem)
            self._arrived.put(future)
            return
        future._ref = ref
        self.watch.when_done(ref, lambda: self._arrived.put(future))

    def _ready(self, fn: Callable[..., Any]) -> RemoteFunction:
        found = self._functions.get(fn)
        if found is None:
            if len(self._functions) >= _KEPT_FUNCTIONS:
                self._functions.clear()
            found = self._functions[fn] = self._remote(fn)
        return found

    def take_back(self, future: NodedFuture) -> bool:
        """Out of the calls that wait here; False when it is not among them."""
        with self._lock:
            return self._waiting.pop(future, None) is not None

    def ended(self, future: NodedFuture) -> None:
        with self._lock:
            self.open.discard(future)
        if self._no_more:
            self._arrived.put(None)

    def expect_no_more(self) -> None:
        self._no_more = True
        self._arrived.put(None)

    def wait(self) -> None:
        """Until all are over, and their callbacks have run."""
        for future in list(self.open):
            future.await_here(None)
        if self.thread is not threading.current_thread():
            self.thread.join()

    def _run(self) -> None:
        while not self._no_more or self.open:
            future = self._arrived.get()
            if future is None:
                continue
            future.settle()
            with self._lock:
                self._under_way -= 1
                following = None
                if self._waiting:
                    following = self._waiting.popitem(last=False)
                    self._under_way += 1
            if following is not None:
                self._hand_over(following[0], *following[1])


_started: weakref.WeakSet[_Calls] = weakref.WeakSet()


class NodedExecutor(Executor):
    """``with NodedExecutor() as executor: executor.submit(f, x).result()``.

    ``max_workers``: so many calls are under way at once; None leaves it to the cluster. ``task_options``: options of
    the tasks, such as ``{"num_cpus": 2}``.
    """

    def __init__(self, max_workers: int | None = None, *, task_options: dict[str, Any] | None = None):
        if max_workers is not None and (isinstance(max_workers, bool) or not isinstance(max_workers, int)):
            raise TypeError(f"max_workers must be a whole number or None, not {max_workers!r}")
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        options = dict(task_options or {})
        if options.get("num_returns", 1) != 1:
            raise ValueError("a future has one result: num_returns cannot be among the task_options")
        self._calls = _Calls(max_workers, options)
        self._closing = threading.Lock()
        self._closed = False
        self._started = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> NodedFuture:
        """Run ``fn(*args, **kwargs)`` as a task. Raises RuntimeError after ``shutdown``."""
        if not callable(fn):
            raise TypeError(f"the first argument of submit() must be a function, not {fn!r}")
        future = NodedFuture(self._calls)
        with self._closing:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if not self._started:
                self._started = True
                self._calls.thread.start()
                _started.add(self._calls)
            self._calls.submit(future, fn, args, kwargs)
        return future

    def map(
        self, fn: Callable[..., Any], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[Any]:
        """The results in the order of the arguments; ``chunksize`` calls go into one task.

        Raises TimeoutError ``timeout`` seconds after the call of ``map``. At an error, or when the iterator is
        closed, what has not begun is cancelled.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout)
        many = super().map(_call_many, itertools.repeat(fn), _chunks(iterables, chunksize), timeout=timeout)
        return itertools.chain.from_iterable(many)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; with ``wait`` return when all are over. What has begun is never interrupted."""
        with self._closing:
            first, self._closed = not self._closed, True
        if cancel_futures:
            for future in list(self._calls.open):
                future.cancel()
        if first and self._started:
            self._calls.expect_no_more()
        if wait and self._started:
            self._calls.wait()

    def abort(self) -> None:
        """Take no more calls, and end those there are: what runs is interrupted. Does not wait."""
        calls = list(self._calls.open)
        self.shutdown(wait=False, cancel_futures=True)
        for future in calls:
            if not future.done() and future._ref is not None:
                cancel(future._ref)

    def __del__(self) -> None:
        if self.__dict__.get("_started") and not self._closed:
            self._calls.expect_no_more()


def _is_plain(fn: Callable[..., Any]) -> bool:
    """A function that is pickled once for all calls. Others, as a bound method, may change between two calls."""
    return type(fn) is types.FunctionType and fn.__closure__ is None and not inspect.isgeneratorfunction(fn)


def _call(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return fn(*args, **kwargs)


def _call_many(fn: Callable[..., Any], chunk: list[tuple[Any, ...]]) -> list[Any]:
    return [fn(*args) for args in chunk]


def _chunks(iterables: tuple[Iterable[Any], ...], size: int) -> Iterator[list[tuple[Any, ...]]]:
    source = zip(*iterables, strict=False)
    while chunk := list(itertools.islice(source, size)):
        yield chunk


@atexit.register
def _finish() -> None:
    """Calls that were submitted are done before the program ends, as with the standard library's executors. A worker
    ends when it is told to.
    """
    for calls in list(_started):
        if calls.watch.of_driver and not calls.watch.closed:
            calls.expect_no_more()
            try:
                calls.wait()
            except LocalDaemonDiedError:  # nothing of it can come any more
                pass
