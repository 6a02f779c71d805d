"""Collectors: what reads the machine, files of others, or a library that may hang, off the event loop and apart.

A collector is a blocking function that is called in rounds, in a thread of its own: when somebody asks, every so many
seconds, or again and again. Whoever asks gets the last good value with its age, and waits for a round no longer than
its deadline. A round that raises or is late is said in ``figures()`` (``noded status`` shows it). The thread of a late
one is left alone: Python cannot end it, and it may be stuck in the kernel; what it still returns is ignored. The next
round comes by itself, in a fresh thread, after a pause that grows. So nothing here can end or stall the daemon, and a
collector needs no care to come back.

Not here: what is collected (``metrics_agent.py``, ``machine_figures.py`` and others that call ``add``).
"""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Literal

import msgspec

log = logging.getLogger("noded.collectors")

_ABANDONED_MOST = 3
"""Threads of one collector that did not come back; with so many of them it waits for one to end."""
_LONGEST_PROBLEM = 500

State = Literal["OK", "LATE", "FAILED"]


class Reading(msgspec.Struct, frozen=True):
    """``value``: the last good one, None before the first; ``age``: its seconds, infinite before the first;
    ``problem``: "" or why it is not newer.
    """

    value: Any
    age: float
    problem: str


class Collectors:
    """All methods are for the loop's thread. ``pauses``: seconds after a first failure, and at most."""

    def __init__(self, pauses: tuple[float, float] = (1.0, 60.0)) -> None:
        self._pauses = pauses
        self._collectors: dict[str, _Collector] = {}

    def add(self, name: str, collect: Callable[[], Any], *, deadline: float, every: float | None = None) -> None:
        """``collect`` is called in a thread of its own. ``deadline``: seconds that a round may take. ``every``: seconds
        between the end of a round and the next one; 0: at once; None: only when asked. Raises ValueError for a name
        that is taken.
        """
        if name in self._collectors:
            raise ValueError(f"there is a collector {name!r} already")
        collector = _Collector(asyncio.get_running_loop(), name, collect, deadline, every, self._pauses)
        self._collectors[name] = collector
        if every is not None:
            collector.begin()

    async def ask(self, name: str, max_age: float = 0.0) -> Reading:
        """The last good value where it is not older than ``max_age`` seconds, else that of a round, shared by all who
        ask meanwhile. Waits at most for the deadline, and not at all for one that pauses after a failure. Raises
        KeyError for a name that nobody added.
        """
        collector = self._collectors[name]
        if collector.reading().age > max_age:
            await collector.round()
        return collector.reading()

    def wake(self, name: str) -> None:
        """See to a round that begins from now on, and do not wait for it. Raises KeyError."""
        self._collectors[name].wake()

    def last(self, name: str) -> Reading:
        """Without a round."""
        return self._collectors[name].reading()

    def figures(self) -> list[dict[str, Any]]:
        """For ``noded status``; times in seconds, ``since`` since the epoch."""
        return [collector.figures() for collector in self._collectors.values()]

    def stop(self) -> None:
        """At once, whatever the threads do: they are daemon threads, which do not keep a process alive."""
        for collector in self._collectors.values():
            collector.stop()


class _Done(msgspec.Struct, frozen=True):
    """How a round ended. ``problem``: "" or the last line of the traceback; ``trace``: all of it."""

    value: Any
    problem: str
    trace: str
    seconds: float
    cpu: float


class _Thread:
    """Calls ``collect`` as often as it is asked to, and tells the loop how that went."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        name: str,
        collect: Callable[[], Any],
        on_done: Callable[[_Thread, _Done], None],
    ):
        self._loop = loop
        self._collect = collect
        self._on_done = on_done
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self.at_work = False
        """False as soon as a round is over, also before the loop has heard of it."""
        threading.Thread(target=self._serve, name=f"collect {name}", daemon=True).start()

    def begin(self) -> None:
        self.at_work = True
        self._asked.put(True)

    def leave(self) -> None:
        """It ends when it is through with what it does."""
        self._asked.put(False)

    def _serve(self) -> None:
        while self._asked.get():
            done = self._round()
            self.at_work = False
            try:
                self._loop.call_soon_threadsafe(self._on_done, self, done)
            except RuntimeError:  # the loop is closed
                return
            del done  # not kept while there is nothing to do

    def _round(self) -> _Done:
        begun, worked = time.monotonic(), time.thread_time()
        value, problem, trace = None, "", ""
        try:
            value = self._collect()
        except BaseException as error:  # also SystemExit, which means nothing in a thread
            # As text: the exception would keep all that its frames hold.
            problem = traceback.format_exception_only(error)[-1].strip()[:_LONGEST_PROBLEM]
            trace = "".join(traceback.format_exception(error)).rstrip()
        return _Done(value, problem, trace, time.monotonic() - begun, time.thread_time() - worked)


class _Collector:
    """One collector, as the loop sees it: a round under way, a pause after a failure, or nothing to do."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        name: str,
        collect: Callable[[], Any],
        deadline: float,
        every: float | None,
        pauses: tuple[float, float],
    ):
        self._loop = loop
        self._pauses = pauses
        self._name = name
        self._collect = collect
        self._deadline = deadline
        self._every = every
        self._state: State = "OK"
        self._since = time.time()
        self._problem = ""
        self._value: Any = None
        self._value_at = -math.inf
        self._rounds = 0
        self._failures = 0
        self._cpu = 0.0
        self._seconds = 0.0
        self._thread: _Thread | None = None
        self._abandoned: set[_Thread] = set()
        self._round: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        """Of the round under way its deadline, else when the next one begins."""
        self._pause = 0.0
        """After the last failure; 0 when all is well."""
        self._again = False
        """A round is wanted after the one under way."""
        self._starved = False
        """So many threads are lost that the next round waits for the end of one."""
        self._stopped = False

    def reading(self) -> Reading:
        return Reading(self._value, time.monotonic() - self._value_at, self._problem)

    def figures(self) -> dict[str, Any]:
        age = time.monotonic() - self._value_at
        return {
            "name": self._name,
            "state": self._state,
            "since": self._since,
            "problem": self._problem,
            "rounds": self._rounds,
            "failures": self._failures,
            "lost_threads": len(self._abandoned),
            "cpu_s": self._cpu,
            "last_round_s": self._seconds,
            "age_s": age if age < math.inf else None,
        }

    async def round(self) -> None:
        """Until the round that is under way, or a new one, has ended or is late."""
        if self._round is None and not self._pause:
            self.begin()
        if self._round is not None:
            # Shielded: it is others' round, too.
            await asyncio.shield(self._round)

    def wake(self) -> None:
        if self._round is not None:
            self._again = True
        elif not self._pause:
            self.begin()

    def begin(self) -> None:
        if self._stopped or self._round is not None:
            return
        self._again = False
        self._cancel_timer()
        if len(self._abandoned) >= _ABANDONED_MOST:
            self._starved = True
            return
        self._round = self._loop.create_future()
        try:
            if self._thread is None:
                self._thread = _Thread(self._loop, self._name, self._collect, self._on_done)
        except RuntimeError as error:  # the machine has no more threads
            self._failed("FAILED", f"{type(error).__name__}: {error}", "")
            return
        self._thread.begin()
        self._timer = self._loop.call_later(self._deadline, self._on_deadline)

    def stop(self) -> None:
        self._stopped = True
        self._cancel_timer()
        if self._thread is not None:
            self._thread.leave()
            self._thread = None
        self._end_round()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_round(self) -> None:
        if self._round is not None:
            if not self._round.done():
                self._round.set_result(None)
            self._round = None

    def _on_done(self, thread: _Thread, done: _Done) -> None:
        self._cpu += done.cpu
        if thread in self._abandoned:
            self._abandoned.discard(thread)
            if self._starved:
                self._starved = False
                self.begin()
            return
        if self._stopped or thread is not self._thread:
            return
        self._rounds += 1
        self._seconds = done.seconds
        if done.problem:
            self._failed("FAILED", done.problem, done.trace)
            return
        self._cancel_timer()
        self._value, self._value_at = done.value, time.monotonic()
        self._pause = 0.0
        if self._state != "OK":
            log.info("collector %s works again", self._name)
            self._state, self._since, self._problem = "OK", time.time(), ""
        self._end_round()
        if self._every == 0 or self._again:
            self.begin()
        elif self._every is not None:
            self._timer = self._loop.call_later(self._every, self.begin)

    def _on_deadline(self) -> None:
        thread = self._thread
        if thread is None or not thread.at_work:
            return  # the loop was late, not the round: its end is about to be told
        self._abandoned.add(thread)
        self._rounds += 1
        self._failed("LATE", f"a round takes longer than {self._deadline:g} s", "")

    def _failed(self, state: State, problem: str, trace: str) -> None:
        self._cancel_timer()
        if self._thread is not None:
            self._thread.leave()
            self._thread = None
        self._failures += 1
        first, longest = self._pauses
        self._pause = min(max(first, 2 * self._pause), longest)
        if (state, problem) != (self._state, self._problem):
            log.warning("collector %s: %s%s", self._name, problem, f"\n{trace}" if trace else "")
        if state != self._state:
            self._since = time.time()
        self._state, self._problem = state, problem
        self._end_round()
        self._timer = self._loop.call_later(self._pause, self.begin)
