"""The Python stacks of this node's workers, and of its daemon, for who asks (``noded stack``).

A worker is asked, and tells its stacks with Python's lock (``stack_text.py``); if it does not, since it is stuck with
that lock, it is sent a signal (``stack_dump.py``). Here: which workers are meant, that a pid is still the worker's, and
what it runs. All waiting is done in threads of this component.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from noded import ids, stack_dump
from noded.node.session import Client
from noded.node.workers import Worker, WorkerPool
from noded.stack_text import own_stacks
from noded.wire import messages as m

_READERS = 4
_WATCHERS = 16
"""Threads that watch those that do not tell their stacks."""
_HEAD_SECONDS = 6.0
_TELL_SECONDS = 4.0
"""Less than the head waits for a node: what is known by then is told."""
_LAST_SECONDS = 0.3
"""So long before, nobody waits for a process any more."""
_TOLD_SECONDS = 0.1
"""A worker that has not told its stacks by then is watched, and sent the signal if it still has not done so."""
_MARK = "NODED_MARK"
"""In the environment of every worker: whose it is, and which (see ``spawner/protocol.py``)."""
DAEMON_FILE = "daemon.stack"
"""In the node's directory."""
Report = dict[str, Any]
Ask = Callable[[Client, Callable[[int], Any], float], Coroutine[Any, Any, bytes]]


class Stacks:
    """``ask(client, question, seconds)``: what that client says; raises TimeoutError. ``running(worker)``: what it runs
    now (``running.py``), for a thread. ``head_problem()``: why the head cannot be asked, "" when it can.
    """

    def __init__(
        self,
        pool: WorkerPool,
        clients: dict[bytes, Client],
        ask: Ask,
        *,
        log_dir: str,
        run_dir: str,
        tag: str,
        node_id: str,
        node_name: str,
        number: int,
        running: Callable[[str], list[dict[str, Any]]],
        ask_head: Callable[[str, dict[str, Any]], Awaitable[Any]],
        head_problem: Callable[[], str],
    ):
        self._pool = pool
        self._clients = clients
        self._ask_client = ask
        self._log_dir = log_dir
        self._run_dir = run_dir
        self._tag = tag
        self._node_id = node_id
        self._name = node_name
        self._number = number
        self._running = running
        self._ask_head = ask_head
        self._head_problem = head_problem
        self._readers = ThreadPoolExecutor(_READERS, "noded-stacks")
        self._watchers = ThreadPoolExecutor(_WATCHERS, "noded-stacks-watch")
        self._asking: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[Report]] = set()
        """One for each worker that is being asked, also when nobody waits for it any more: it ends by itself soon."""

    def start(self) -> None:
        """The daemon can be asked as well, also from outside; files of workers that ended while nobody looked go."""
        stack_dump.install(os.path.join(self._run_dir, DAEMON_FILE))
        self._sweep(set(self._pool.workers))

    async def stop(self, *, ended: bool) -> None:
        """``ended``: the workers have ended as well."""
        for task in self._tasks:
            task.cancel()
        for threads in (self._readers, self._watchers):
            await asyncio.to_thread(threads.shutdown, cancel_futures=True)
        if ended:
            self._sweep(set())

    def _sweep(self, alive: set[str]) -> None:
        try:
            names = os.listdir(self._log_dir)
        except FileNotFoundError:  # who has started us has removed it
            return
        for name in names:
            wid = name.removeprefix("worker-").removesuffix(stack_dump.SUFFIX)
            if name.endswith(stack_dump.SUFFIX) and wid not in alive:
                self.worker_ended(wid)

    def worker_ended(self, wid: str) -> None:
        self._asking.pop(wid, None)
        try:
            os.unlink(self._path(wid))
        except OSError:
            pass

    def _path(self, wid: str) -> str:
        return os.path.join(self._log_dir, f"worker-{wid}{stack_dump.SUFFIX}")

    # ------------------------------------------------------------ questions

    async def ask(self, client: Client | None, args: dict[str, Any]) -> Report:
        """From a client of this node, or a tool: ``id`` of a worker, task, actor or job, or a pid, "" for all workers;
        or ``node``: the daemon of that node. Raises ValueError where there is nothing such.
        """
        wanted = {"id": str(args.get("id") or "").strip().lower(), "node": str(args.get("node") or "").strip()}
        problem = self._head_problem()
        told: Report = {}
        if not problem:
            try:
                told = await asyncio.wait_for(self._ask_head("stack", wanted), _HEAD_SECONDS)
            except TimeoutError:
                problem = f"it has not answered within {_HEAD_SECONDS:g} s"
        if problem:
            told = {
                "stacks": await self.tell(wanted),
                "problems": [f"the head is away ({problem}): asked is this node only"],
            }
        if not told["stacks"] and (wanted["id"] or wanted["node"]):
            raise ValueError(_nobody(wanted, told["problems"]))
        return told

    async def tell(self, args: dict[str, Any]) -> list[Report]:
        """Of what is on this node."""
        word, node = str(args["id"]), str(args["node"])
        if node:
            mine = node in (self._node_id, self._name, str(self._number)) or (
                len(node) >= 4 and self._node_id.startswith(node)
            )
            return [self._of_daemon()] if mine else []
        until = time.monotonic() + _TELL_SECONDS
        workers, task_id = await self._meant(word)
        asked = [(worker, self._begin(worker, until - _LAST_SECONDS)) for worker in workers]
        if asked:
            await asyncio.wait([task for _, task in asked], timeout=until - time.monotonic())
        told = [task.result() if task.done() else self._late(worker, len(asked)) for worker, task in asked]
        if task_id:  # it may have ended meanwhile: that is no stack of it then
            told = [one for one in told if one.get("problem") or _runs(one["running"], task_id)]
        return told

    def _begin(self, worker: Worker, deadline: float) -> asyncio.Task[Report]:
        task = asyncio.create_task(self._of_worker(worker, deadline))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _late(self, worker: Worker, asked: int) -> Report:
        problem = (
            f"pid {worker.record.pid} has not told its stack within {_TELL_SECONDS:g} s, in which {asked} workers of "
            f"node {self._name} were asked: ask for it alone, `noded stack {worker.id}`"
        )
        return self._report(worker, stack_dump.Dump("", problem), [])

    async def _meant(self, word: str) -> tuple[list[Worker], str]:
        """Also the task, if it was one that was asked for."""
        workers = [worker for worker in self._pool.workers.values() if worker.record.pid]
        if not word:
            return workers, ""
        if word.isdecimal() and len(word) < 8:
            return [worker for worker in workers if worker.record.pid == int(word)], ""
        id_ = ids.parse(word)
        if id_ is None:
            # Of a worker also what it calls itself, the beginning of its id.
            called = [worker for worker in workers if word in (worker.id, worker.id[: 2 * ids.PREFIX_SIZE])]
            return called or [worker for worker in workers if worker.record.job == word], ""
        if ids.is_actor_id(id_):
            return [worker for worker in workers if worker.record.actor == id_], ""
        task = ids.task_id(ids.prefix_of(id_), ids.seq_of(id_)).hex()
        busy = [worker for worker in workers if worker.record.lease or worker.record.actor]
        runs = await asyncio.gather(*(self._read(worker.id) for worker in busy))
        found = zip(busy, runs, strict=True)
        return [worker for worker, running in found if _runs(running, task)], task

    async def _read(self, wid: str) -> list[dict[str, Any]]:
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._running, wid)

    # ------------------------------------------------------------ one process

    async def _of_worker(self, worker: Worker, deadline: float) -> Report:
        async with self._asking.setdefault(worker.id, asyncio.Lock()):  # two dumps in one file would be none
            told = threading.Event()
            asking = asyncio.create_task(self._ask_worker(worker, told, deadline - time.monotonic()))
            try:
                await asyncio.wait([asking], timeout=_TOLD_SECONDS)
                dump = stack_dump.Dump("") if told.is_set() else await self._watch(worker, told, deadline)
                if told.is_set():
                    dump = stack_dump.Dump(asking.result())
            finally:
                asking.cancel()
                told.set()  # who watches it stops, if nobody waits any more
        return self._report(worker, dump, await self._read(worker.id))

    async def _ask_worker(self, worker: Worker, told: threading.Event, seconds: float) -> str:
        client = self._clients.get(bytes.fromhex(worker.id)[: ids.PREFIX_SIZE])
        if client is None or client.session is None or client.version < m.STACK_SINCE:
            return ""
        try:
            answer = json.loads(await self._ask_client(client, m.WhatStack, seconds))
        except TimeoutError:
            return ""
        told.set()
        return str(answer["stack"])

    async def _watch(self, worker: Worker, told: threading.Event, deadline: float) -> stack_dump.Dump:
        pid, path, mark = worker.record.pid, self._path(worker.id), f"{self._tag}:{worker.id}"

        def take() -> stack_dump.Dump:
            return stack_dump.take(pid, path, lambda: _has_mark(pid, mark), told=told, deadline=deadline)

        return await asyncio.get_running_loop().run_in_executor(self._watchers, take)

    def _report(self, worker: Worker, dump: stack_dump.Dump, running: list[dict[str, Any]]) -> Report:
        record = worker.record
        told: Report = {"worker": worker.id, "pid": record.pid, "node": self._node_id, "node_name": self._name}
        told |= {"job": record.job, "actor": record.actor.hex(), "running": running, "stack": dump.text}
        if dump.problem:
            told["problem"] = dump.problem
        return told

    def _of_daemon(self) -> Report:
        """Its loop is not stuck, or this would not run."""
        told: Report = {"daemon": True, "pid": os.getpid(), "node": self._node_id, "node_name": self._name}
        return told | {"stack": own_stacks(with_caller=True)}


def _runs(running: list[dict[str, Any]], task: str) -> bool:
    return any(one["task"] == task for one in running)


def _has_mark(pid: int, mark: str) -> bool:
    """It is that worker, which leads its session: what it has started carries the mark too."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environment = file.read().split(b"\0")
        return f"{_MARK}={mark}".encode() in environment and os.getsid(pid) == pid
    except OSError:
        return False


def _nobody(wanted: dict[str, str], problems: list[str]) -> str:
    if wanted["node"]:
        what = f"there is no node {wanted['node']!r} that answers: see `noded status`"
    else:
        what = f"no worker runs {wanted['id']}, or is it: `noded why {wanted['id']}` says what became of it"
    return "; ".join([what, *problems])
