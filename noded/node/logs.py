"""A node's part in everything about logs: drivers get their workers' lines, and questions about files are answered.

What follows the files is ``log_monitor.py``, what reads them ``noded/logs/files.py``; questions of the whole cluster go
through ``head/logs.py``.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Any

from noded.logs.answers import LogDirectory
from noded.logs.daemon import component_levels, set_level
from noded.node.log_caps import Limits, LogCaps
from noded.node.log_monitor import LogMonitor
from noded.node.log_offsets import Offsets
from noded.node.peers import Peers
from noded.node.readers import Readers
from noded.node.session import Client, Session
from noded.node.workers import Worker, WorkerPool
from noded.wire import cluster_messages as c
from noded.wire import messages as m

log = logging.getLogger("noded.logs")

ASK_SECONDS = 6.0
"""So long a client's question waits for the head, before this node answers for itself."""
_AWAY_SECONDS = 1.0
"""So long while it is known to be away: it may just be started again."""
_CATCH_UP_SECONDS = 1.2
_UNREAD_LIMIT = 4 << 20
"""A driver that leaves so many bytes unread gets no more lines, but a count."""
_PRIVATE_LIMITS = Limits(64_000_000, 256_000_000, 7.0)
"""Of a cluster that ends with its program; its files often lie in memory."""


class NodeLogs:
    """``ask_head(what, arguments)``. ``number`` and ``name`` are the node's."""

    def __init__(
        self,
        directory: str,
        run_dir: str,
        pool: WorkerPool,
        clients: dict[bytes, Client],
        job_configs: dict[str, m.JobConfig],
        peers: Peers,
        readers: Readers,
        ask_head: Callable[[str, dict[str, Any]], Any],
        *,
        head_is_there: Callable[[], bool],
        limits: Limits | None,
        number: int,
        name: str,
        node_id: str,
        ip: str,
    ):
        self._loop = asyncio.get_running_loop()
        self._pool = pool
        self._clients = clients
        self._job_configs = job_configs
        self._peers = peers
        self._readers = readers
        self._ask_head = ask_head
        self._head_is_there = head_is_there
        self._number, self._name, self._node_id = number, name, node_id
        self._files = LogDirectory(
            directory,
            run_dir if limits is None else directory,
            {"number": number, "name": name, "id": node_id, "ip": ip},
            alive=lambda worker: worker in pool.workers,
        )
        caps = LogCaps(directory, limits or _PRIVATE_LIMITS, lambda worker: worker in pool.workers)
        self.monitor = LogMonitor(
            directory,
            self._who,
            self._deliver,
            caps,
            Offsets(os.path.join(run_dir, "followed")),
            ready=self._ready,
            living=lambda: list(pool.workers),
            ip=ip,
        )
        self._drivers: dict[str, Client] = {}
        """By job, as they were found last."""
        self._awaited: dict[str, tuple[set[int], asyncio.Event]] = {}
        """By token, while a driver leaves: the nodes whose last lines of it have come."""
        self._withheld: dict[bytes, dict[str, m.Skipped]] = {}
        """By driver and worker: what was not sent, as it does not read."""

    # ------------------------------------------------------------ lines, to drivers

    def _who(self, wid: str) -> tuple[str, int] | None:
        worker = self._pool.workers.get(wid)
        return None if worker is None else (worker.record.job, worker.record.pid)

    def _ready(self, job: str) -> bool:
        """Whether the driver is there to be sent lines, or there is none (any more): not while it, or the way to its
        node, comes back after a restart. In the monitor's thread.
        """
        config = self._job_configs.get(job)
        if config is not None and config.node not in (0, self._number):
            peer = self._peers.peers.get(config.node)
            if peer is not None and (peer.attached or peer.dead):
                return True
            self._loop.call_soon_threadsafe(self._peers.need, config.node)
            return not config.log_to_driver
        driver = self._drivers.get(job)
        if driver is None or self._clients.get(driver.prefix) is not driver:
            mine = (one for one in list(self._clients.values()) if one.kind == "driver" and one.job == job)
            if (driver := next(mine, None)) is None:
                return True
            self._drivers[job] = driver
        return driver.session is not None or driver.detached

    def ended(self, worker: Worker) -> None:
        self.monitor.ended(worker.id, worker.record.job, worker.record.pid)

    async def stop(self, *, ended: bool) -> None:
        """Collectors have stopped by now. ``ended``: so have all workers."""
        await self.monitor.last_round(self._workers_of(None) if ended else [], ended=ended)
        self.monitor.close()

    def told(self) -> dict[str, Callable[[dict[str, Any]], Any]]:
        """What the head may ask a node."""
        return {"logs": self.tell, "last_words": self.tell_last_words, "log_level": self.tell_level}

    def _workers_of(self, job: str | None) -> list[tuple[str, str, int]]:
        records = [(worker.id, worker.record) for worker in self._pool.workers.values()]
        return [(id_, record.job, record.pid) for id_, record in records if job is None or record.job == job]

    def _deliver(self, job: str, message: m.LogLines) -> None:
        config = self._job_configs.get(job)
        if config is not None and config.node not in (0, self._number):
            if config.log_to_driver:
                self._peers.send(config.node, c.Output(job, message))
            return
        self.show(job, message)

    def over_from_peer(self, number: int, token: str) -> None:
        if token in self._awaited:
            came, event = self._awaited[token]
            came.add(number)
            event.set()

    def show(self, job: str, message: m.LogLines) -> None:
        """To the job's driver, who is a client of this node."""
        for client in self._clients.values():
            if client.kind == "driver" and client.job == job and not client.detached:
                if client.config is None or client.config.log_to_driver:
                    self._send(client, message)

    def _send(self, client: Client, message: m.LogLines) -> None:
        """A driver that does not read must not fill the daemon's memory."""
        withheld = self._withheld.get(client.prefix)
        if isinstance(client.session, Session) and client.session.link.unsent_bytes > _UNREAD_LIMIT:
            withheld = self._withheld.setdefault(client.prefix, {})
            for worker, (name, pid, _, lines) in zip(message.workers, message.batches, strict=False):
                one = withheld.setdefault(worker, m.Skipped(worker, name, pid, 0, 0))
                one.lines += len(lines)
                one.bytes += sum(map(len, lines)) + len(lines)
            return
        if withheld:
            del self._withheld[client.prefix]
            message = m.LogLines(message.batches, message.ip, message.workers, [*message.skipped, *withheld.values()])
        client.send(message)

    # ------------------------------------------------------------ a driver leaves

    async def last_words(self, job: str) -> None:
        """All that workers of this job have written by now goes to its driver first."""
        try:
            async with asyncio.timeout(_CATCH_UP_SECONDS):
                await self.monitor.catch_up(self._workers_of(job))
                if self._peers.peers:
                    await self._last_words_of_others(job)
        except (TimeoutError, ValueError) as problem:
            log.info("what job %s has written may not all be shown to its driver: %s", job, problem or "it takes long")
        for client in self._clients.values():
            if client.job == job and (withheld := self._withheld.pop(client.prefix, None)):
                client.send(m.LogLines([], "", [], list(withheld.values())))

    async def _last_words_of_others(self, job: str) -> None:
        """They answer through the head, and their lines come by another way, which may take longer."""
        token = os.urandom(8).hex()
        came, event = self._awaited[token] = set(), asyncio.Event()
        try:
            wanted = set(await self._ask_head("last_words", {"job": job, "token": token}))
            while not wanted <= came:
                event.clear()
                await event.wait()
        finally:
            del self._awaited[token]

    async def tell_last_words(self, args: dict[str, Any]) -> Any:
        """From the head: lines of this job are to go to its driver's node. The number of this node when they, and the
        word that they are all, are on their way.
        """
        job = str(args["job"])
        await self.monitor.catch_up(self._workers_of(job))
        config = self._job_configs.get(job)
        if config is None or config.node in (0, self._number):
            return 0
        return self._number if self._peers.send(config.node, c.OutputOver(str(args["token"]))) else 0

    async def last_words_of_all(self) -> None:
        """Of this node, before drivers lose their connection; collectors have stopped."""
        await self.monitor.last_round(self._workers_of(None), ended=False)

    def forget_job(self, job: str) -> None:
        self._drivers.pop(job, None)
        self._withheld = {prefix: it for prefix, it in self._withheld.items() if prefix in self._clients}

    # ------------------------------------------------------------ questions

    async def ask(self, client: Client | None, args: dict[str, Any]) -> Any:
        """Of the cluster; of this node alone while the head is away."""
        try:
            seconds = ASK_SECONDS if self._head_is_there() else _AWAY_SECONDS
            return await asyncio.wait_for(self._ask_head("logs", args), seconds)
        except TimeoutError:
            if str(args.get("node") or self._number) not in (str(self._number), self._name, self._node_id):
                raise ValueError(f"the head does not answer, so node {args['node']} cannot be asked") from None
            told = await self.tell(args)
            return {**told, "problem": "the head does not answer: this is what this node alone has"}

    async def tell(self, args: dict[str, Any]) -> Any:
        """Of this node. Raises ValueError."""
        what = args.get("do")
        if what == "list":
            return await self._readers.run(self._files.list, args)
        if what == "read":
            return await self._readers.run(self._files.read, args)
        raise ValueError(f"logs are not asked for {what!r}, but to list or read them")

    async def ask_level(self, client: Client | None, args: dict[str, Any]) -> Any:
        """Of this node's daemon, or of another node's."""
        if not args.get("node"):
            return [await self.tell_level(args)]
        return await asyncio.wait_for(self._ask_head("log_level", args), ASK_SECONDS)

    async def tell_level(self, args: dict[str, Any]) -> Any:
        """Of the daemon's own log: sets the level of a component where one is given. Raises ValueError."""
        if args.get("level"):
            set_level(str(args.get("component") or ""), str(args["level"]))
        return {"node": self._name, "levels": component_levels()}
