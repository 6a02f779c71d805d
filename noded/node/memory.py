"""Watches memory: ends alone what is above its ``memory=``, and, before the kernel does, somebody when the node has too
little left.

A look is taken in a thread (``memory_look.py``), ten times a second while something has a limit or the node comes near
its threshold, else once a second; what is to be done about it is decided here, on the event loop. A thread that does
not come back from a look is left alone and another one is started: it can neither stall nor end the daemon. Whose
process ends is a pure function (``policy/memory_victim.py``); what waits for room, and when it may begin, is in
``policy/memory_room.py``, which the leases ask.

Idle workers that kept a lot of memory after a task are replaced.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from noded import ids
from noded.node import memory_usage
from noded.node.leases import ActorLease, Lease, Leases
from noded.node.memory_look import OFTEN, SELDOM, Looker, Over, Plan, Seen, Watched, pause
from noded.node.workers import Worker, WorkerPool
from noded.policy import deaths, memory_victim
from noded.policy.memory_room import size, store_stops
from noded.resources import UNIT

log = logging.getLogger("noded.memory")

_PATIENCE = 5.0
"""Seconds that a look may take."""
_LOST_MOST = 4
"""Threads that did not come back; with more of them something else is wrong."""
_END_SECONDS = 3.0
"""So long the end of one is awaited before there is another."""
_LEAST_LIMIT = 64 << 20
"""A limit below this is this: a worker that does nothing uses about 20 MiB."""
_WORTH = 32 << 20
"""Who uses less is not ended for want of memory."""
_KEPT, _KEPT_PART = 256 << 20, 8
"""What an idle worker may keep; or its part of an eighth of the memory, by the number of CPUs."""
_SAY_AGAIN = 60.0


class _Thread:
    """Takes the looks, one after the other. A daemon thread: the end of the process does not wait for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, looker: Looker):
        self._loop = loop
        self._looker = looker
        self.waits = looker.waits
        self._asked: queue.SimpleQueue[tuple[Plan, asyncio.Future[Seen]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="memory", daemon=True).start()

    def look(self, plan: Plan) -> asyncio.Future[Seen]:
        answer: asyncio.Future[Seen] = self._loop.create_future()
        self._asked.put((plan, answer))
        return answer

    def leave(self) -> None:
        self._asked.put(None)

    def _serve(self) -> None:
        while (asked := self._asked.get()) is not None:
            plan, answer = asked
            try:
                call: tuple[Any, ...] = (answer.set_result, self._looker.look(plan))
            except Exception as error:  # the event loop tells it
                call = answer.set_exception, error
            try:
                self._loop.call_soon_threadsafe(_unless_done, answer, *call)
            except RuntimeError:  # the loop is closed
                return


def _unless_done(answer: asyncio.Future[Seen], call: Callable[[Any], None], result: Any) -> None:
    if not answer.done():
        call(result)


class MemoryMonitor:
    """``threshold``: the part of the node's memory that may be in use. ``spawner()``: its pid."""

    def __init__(
        self,
        leases: Leases,
        pool: WorkerPool,
        *,
        tag: str,
        threshold: float,
        memory: int,
        spawner: Callable[[], int],
        root: Path = Path("/"),
    ):
        self._leases = leases
        self._pool = pool
        self._tag = tag
        self._threshold = threshold
        self._spawner = spawner
        self._root = root
        cpus = max(1, leases.capacity.total.get("CPU", 0) // UNIT)
        self._may_keep = max(_KEPT, memory // (_KEPT_PART * cpus))
        self._loop: asyncio.AbstractEventLoop
        self._thread: _Thread | None = None
        self._lost = 0
        self._avoid: set[int] = set()
        """Processes that a look has got stuck at."""
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._pause = 0.0
        """Until the next look."""
        self._over: set[Worker] = set()
        """Their leases are over: what they keep is to be looked at once, with their descendants."""
        self._ending: tuple[Worker | None, float] = (None, 0.0)
        """Who is ended for want of memory, and until when its end is awaited."""
        self.give_back: Callable[[int], bool] = lambda size: False
        """So many bytes too much are in use: whether somebody gives memory back, which is waited for."""
        self._ended = 0
        self._seen: Seen | None = None
        self._said = -_SAY_AGAIN
        self.on_end: Callable[[Worker, str, str], None] = lambda worker, kind, reason: None
        """A worker is ended for want of memory; kind and reason of its death."""

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pool.kept = self._kept
        self._leases.on_limited = self._begun
        self._task = loop.create_task(self._watch(), name="memory")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        if self._thread is not None:
            self._thread.leave()
            self._thread = None

    def figures(self) -> dict[str, Any]:
        """For ``noded status``."""
        seen = self._seen
        if seen is None:
            return {}
        return {
            "used_bytes": seen.node.used,
            "limit_bytes": seen.node.limit,
            "threshold_bytes": seen.threshold,
            "where": seen.node.where,
            "pressed": self._leases.room.pressed,
            "ended": self._ended,
            "no_kernel_limits": seen.kernel_limits,
        }

    # ------------------------------------------------------------ looking

    def _begun(self) -> None:
        """Something with a limit. Where looks are frequent already it need not be seen at once."""
        if self._pause > OFTEN:
            self._wake.set()

    async def _watch(self) -> None:
        while True:
            try:
                await asyncio.wait_for(self._wake.wait(), self._pause)
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                self._pause = await self._look()
            except Exception:
                log.exception("a look at the node's memory has failed; the next one is in a second")
                self._pause = SELDOM

    async def _look(self) -> float:
        """Look and act; the seconds until the next look."""
        plan = self._plan()
        if self._thread is None:
            self._thread = _Thread(self._loop, Looker(self._root, self._tag, self._avoid))
        answer = self._thread.look(plan)
        await asyncio.wait([answer], timeout=_PATIENCE)
        if not answer.done():
            await self._give_up(answer)
            return SELDOM
        self._seen = seen = answer.result()
        self._act(plan, seen)
        if seen.pressed or any(each.limit for each in plan.workers):
            return OFTEN
        if plan.part >= 1 or not self._leases.leases:
            return SELDOM
        return pause(seen.node.used, seen.threshold)

    async def _give_up(self, answer: asyncio.Future[Seen]) -> None:
        """Of a thread that is slow, or stuck in the kernel: the next one does not wait for the same process."""
        assert self._thread is not None
        stuck = self._thread.waits.pid
        log.error(
            "a look at the node's memory takes more than %g s (it waits for process %s); limits are not kept meanwhile",
            _PATIENCE,
            stuck or "none: the machine is busy",
        )
        if not stuck or self._lost == _LOST_MOST:
            await asyncio.wait([answer])
            return
        self._lost += 1
        self._avoid.add(stuck)
        self._thread.leave()
        self._thread = None

    def _plan(self) -> Plan:
        watched = tuple(self._watched(worker) for worker in self._pool.workers.values() if worker.record.pid)
        wanted = frozenset(worker.id for worker in self._over if not worker.dead)
        return Plan(watched, self._threshold, self._spawner(), wanted)

    @staticmethod
    def _watched(worker: Worker) -> Watched:
        held = worker.assigned
        limit = held.memory if isinstance(held, Lease | ActorLease) and held.worker is worker else 0
        return Watched(worker.id, worker.record.pid, held, max(limit, _LEAST_LIMIT) if limit else 0)

    # ------------------------------------------------------------ acting

    def _act(self, plan: Plan, seen: Seen) -> None:
        if self._leases.room.seen(seen.node.used, seen.node.limit, seen.threshold, time.monotonic()):
            self._leases.kick()
        for wid in seen.entered:
            worker = self._pool.workers.get(wid)
            if worker is not None:
                worker.counts = self._pool.oom.of(worker.record.pid)
        for over in seen.over:
            self._end_over(over)
        for watched in seen.killed:
            if (worker := self._still(watched)) is not None:
                self._end(
                    worker,
                    deaths.MEMORY_LIMIT,
                    f"it and what it started used more than its limit (memory=), {deaths.mib(watched.limit)}, and so "
                    "fast that the kernel ended one of its processes",
                )
        self._replace(plan, seen)
        beyond = seen.node.used - store_stops(seen.node.limit, self._threshold)
        giving = beyond > 0 and self.give_back(beyond)
        if seen.pressed and not giving:
            self._relieve(plan, seen)

    def _still(self, watched: Watched) -> Worker | None:
        """The worker, if it still has the lease that it was looked at for."""
        worker = self._pool.workers.get(watched.worker)
        return worker if worker is not None and worker.assigned is watched.lease else None

    def _end_over(self, over: Over) -> None:
        worker = self._still(over.watched)
        if worker is not None:
            text = deaths.over_limit(over.used, over.watched.limit)
            self._end(worker, deaths.MEMORY_LIMIT, f"{text}: {_told(over.processes)}")

    def _end(self, worker: Worker, kind: str, reason: str) -> None:
        if not worker.record.kind:
            log.warning("worker %s (pid %s) is ended: %s", worker.id, worker.record.pid, reason)
            self.on_end(worker, kind, reason)
        self._pool.kill(worker, kind, reason)

    def _relieve(self, plan: Plan, seen: Seen) -> None:
        """The node is above its threshold: end one, and see what that has helped."""
        ending, until = self._ending
        now = time.monotonic()
        if ending is not None and now < until:
            # Seen before its end was known: what it had was still counted.
            if not ending.dead or any(each.worker == ending.id for each in plan.workers):
                return
        idle = [worker for worker in self._pool.idle() if seen.uses.get(worker.id, 0) >= _WORTH]
        if idle:
            worker = max(idle, key=lambda each: seen.uses[each.id])
            self._ending = worker, now + _END_SECONDS
            self._pool.kill(worker, deaths.IDLE, "it was idle, and the node has too little memory left")
            return
        held = {h.worker.id: h for h in self._leases.running() if h.worker and not h.worker.record.kind}
        victim = memory_victim.pick([self._candidate(h, seen.uses.get(wid, 0)) for wid, h in held.items()], _WORTH)
        if victim is None:
            if now - self._said > _SAY_AGAIN:
                self._said = now
                log.warning("%s; no worker has it: %s", _state(seen, self._threshold), _told(seen.largest))
            return
        chosen = held[victim.worker]
        assert chosen.worker is not None
        used = seen.uses[victim.worker]
        if isinstance(chosen, Lease):
            self._leases.room.ended((chosen.client.prefix, chosen.cls), used, now)
        elif chosen.retriable:
            self._leases.room.ended((chosen.id, 0), used, now)
        chosen.worker.free = victim.free
        self._ending = chosen.worker, now + _END_SECONDS
        self._ended += 1
        self._end(chosen.worker, deaths.NODE_MEMORY, _why(seen, self._threshold, chosen, victim, used))

    @staticmethod
    def _candidate(held: Lease | ActorLease, used: int) -> memory_victim.Candidate:
        assert held.worker is not None
        actor = isinstance(held, ActorLease)
        group = held.id[: ids.PREFIX_SIZE] if isinstance(held, ActorLease) else held.client.prefix
        return memory_victim.Candidate(held.worker.id, group, held.retriable, held.granted, used, actor)

    # ------------------------------------------------------------ what is kept

    def _kept(self, worker: Worker) -> str:
        """Its lease is over. Its descendants are looked at a little later."""
        worker.uses = used = memory_usage.own_pages(self._root, worker.record.pid, swap=False)
        self._over.add(worker)
        return self._too_much(used)

    def _too_much(self, used: int) -> str:
        if used <= self._may_keep:
            return ""
        return f"it kept {size(used)} of memory after its task, more than the {size(self._may_keep)} that it may"

    def _replace(self, plan: Plan, seen: Seen) -> None:
        idle = set(self._pool.idle())
        for worker in [each for each in self._over if each.id in plan.wanted or each.dead]:
            self._over.discard(worker)
            worker.uses = seen.uses.get(worker.id, worker.uses)
            if worker in idle and (reason := self._too_much(worker.uses)):
                self._pool.end(worker, deaths.RETIRED, reason)


def _state(seen: Seen, threshold: float) -> str:
    return (
        f"the node has too little memory left: {size(seen.node.used)} of {size(seen.node.limit)} of {seen.node.where} "
        f"are in use, above the threshold of {100 * threshold:g} % ({size(seen.threshold)})"
    )


def _why(seen: Seen, threshold: float, held: Lease | ActorLease, victim: memory_victim.Victim, used: int) -> str:
    what = "actor" if isinstance(held, ActorLease) else "task"
    which = f"it used {size(used)}"
    if victim.group > 1:
        which += f" and is the newest large one of {victim.group} of the same submitter, with {size(victim.group_used)}"
    if held.retriable:
        which += "; what can be run again goes first"
    else:
        which += f"; this {what} cannot be run again, and nothing that can was left"
    return f"{_state(seen, threshold)}: {which}; the largest processes are {_told(seen.largest)}"


def _told(processes: list[tuple[int, int, str]]) -> str:
    return ", ".join(f"{name} (pid {pid}) {size(used)}" for used, pid, name in processes) or "not known"
