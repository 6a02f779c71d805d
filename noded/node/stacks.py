"""The Python stacks of this node's workers, and of its daemon, for who asks (``noded stack``).

How a process tells its stack is in ``stack_dump.py``. Here: which workers are meant, that a pid is still the worker's,
and what it runs. All waiting is done in threads of this component.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from noded import ids, stack_dump
from noded.config import process_state
from noded.node.session import Client
from noded.node.workers import Worker, WorkerPool

_THREADS = 8
_HEAD_SECONDS = 6.0
_MARK = "NODED_MARK"
"""In the environment of every worker: whose it is, and which (see ``spawner/protocol.py``)."""
DAEMON_FILE = "daemon.stack"
"""In the node's directory."""
Report = dict[str, Any]


class Stacks:
    """``running(worker)``: what it runs now (``running.py``), for a thread. ``head_problem()``: why the head cannot be
    asked, "" when it can.
    """

    def __init__(
        self,
        pool: WorkerPool,
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
        self._log_dir = log_dir
        self._run_dir = run_dir
        self._tag = tag
        self._node_id = node_id
        self._name = node_name
        self._number = number
        self._running = running
        self._ask_head = ask_head
        self._head_problem = head_problem
        self._threads = ThreadPoolExecutor(_THREADS, "noded-stacks")
        self._asking: dict[str, asyncio.Lock] = {}

    def start(self) -> None:
        """The daemon can be asked as well, also from outside; files of workers that ended while nobody looked go."""
        stack_dump.install(os.path.join(self._run_dir, DAEMON_FILE))
        self._sweep(set(self._pool.workers))

    async def stop(self, *, ended: bool) -> None:
        """``ended``: the workers have ended as well."""
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
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
            return [await self._of_daemon()] if mine else []
        return list(await asyncio.gather(*(self._of_worker(worker) for worker in await self._meant(word))))

    async def _meant(self, word: str) -> list[Worker]:
        workers = [worker for worker in self._pool.workers.values() if worker.record.pid]
        if not word:
            return workers
        if word.isdecimal() and len(word) < 8:
            return [worker for worker in workers if worker.record.pid == int(word)]
        id_ = ids.parse(word)
        if id_ is None:
            # Of a worker also what it calls itself, the beginning of its id.
            called = [worker for worker in workers if word in (worker.id, worker.id[: 2 * ids.PREFIX_SIZE])]
            return called or [worker for worker in workers if worker.record.job == word]
        if ids.is_actor_id(id_):
            return [worker for worker in workers if worker.record.actor == id_]
        task = ids.task_id(ids.prefix_of(id_), ids.seq_of(id_)).hex()
        busy = [worker for worker in workers if worker.record.lease or worker.record.actor]
        runs = await asyncio.gather(*(self._run(self._running, worker.id) for worker in busy))
        found = zip(busy, runs, strict=True)
        return [worker for worker, running in found if any(one["task"] == task for one in running)]

    async def _run(self, function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    # ------------------------------------------------------------ one process

    async def _of_worker(self, worker: Worker) -> Report:
        wid, pid, record = worker.id, worker.record.pid, worker.record
        async with self._asking.setdefault(wid, asyncio.Lock()):  # two dumps in one file would be none
            dump, running = await self._run(self._take, wid, pid)
        told: Report = {"worker": wid, "pid": pid, "node": self._node_id, "node_name": self._name, "job": record.job}
        told |= {"actor": record.actor.hex(), "running": running, "stack": dump.text}
        if dump.problem:
            told["problem"] = dump.problem
        return told

    def _take(self, wid: str, pid: int) -> tuple[stack_dump.Dump, list[dict[str, Any]]]:
        mark = f"{self._tag}:{wid}"
        dump = stack_dump.take(pid, self._path(wid), lambda: _has_mark(pid, mark))
        return dump, self._running(wid)

    async def _of_daemon(self) -> Report:
        pid, path = os.getpid(), os.path.join(self._run_dir, DAEMON_FILE)
        async with self._asking.setdefault("", asyncio.Lock()):
            dump = await self._run(stack_dump.take, pid, path, lambda: process_state(pid) is not None)
        told: Report = {"daemon": True, "pid": pid, "node": self._node_id, "node_name": self._name, "stack": dump.text}
        if dump.problem:
            told["problem"] = dump.problem
        return told


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
