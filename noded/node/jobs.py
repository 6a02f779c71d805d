"""Jobs that have something on this node, and what their drivers have asked for.

Drivers are admitted by the head; a node that has a job's work without its driver asks the head what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

from noded.node.actor_host import NodeActorHost
from noded.node.session import Client
from noded.node.workers import WorkerPool
from noded.wire import cluster_messages as c
from noded.wire import messages as m


class NodeJobs:
    """``head``: the head, here or by its connection. ``pool()``, ``host()``: they come to be after this, and need it.

    ``admitted(client)``: a driver of a new job. ``end(message)``: a job has ended. ``forgotten(job)``: it has nothing
    here any more.
    """

    def __init__(
        self,
        clients: Mapping[bytes, Client],
        head: Any,
        number: int,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        pool: Callable[[], WorkerPool],
        host: Callable[[], NodeActorHost],
        admitted: Callable[[Client], None],
        end: Callable[[c.EndJob], None],
        forgotten: Callable[[str], None],
    ):
        self.configs: dict[str, m.JobConfig] = {}
        self._clients = clients
        self._head = head
        self._number = number
        self._spawn = spawn
        self._pool = pool
        self._host = host
        self._admitted = admitted
        self._end = end
        self._forgotten = forgotten
        self._learning: set[str] = set()
        """Jobs that the head is being asked about."""
        self._asked: set[str] = set()
        """Of which the head is asked whether they live."""

    async def admit_driver(self, client: Client) -> None:
        config = client.config or m.JobConfig()
        if client.job:  # it is back
            self.take(client.job, config)
        new = not client.job
        client.job = await self._head.admit_job(client.job, config)
        if new:
            self._admitted(client)
        config.node = self._number
        self.take(client.job, config)

    def take(self, job: str, config: m.JobConfig) -> None:
        self.configs[job] = config
        self._pool().job_known(job)

    def config_of(self, job: str) -> m.JobConfig | None:
        """None while the head is asked: after a restart a task may come before its driver has told."""
        found = self.configs.get(job)
        if found is None and job not in self._learning:
            self._learning.add(job)
            self._spawn(self._learn(job))
        return found

    async def _learn(self, job: str) -> None:
        try:
            config = c.job_config_of(await self._head.ask("job_config", {"job": job}))
        except ValueError:
            config = m.JobConfig()  # it has ended, and so will what asks for it
        finally:
            self._learning.discard(job)
        if job not in self.configs:
            self.take(job, config)

    def driven(self) -> list[str]:
        """Of drivers of this node that are there."""
        return sorted(
            {client.job for client in self._clients.values() if client.kind == "driver" and not client.detached}
        )

    def on_registered(self, known: Iterable[str]) -> None:
        """These are the jobs that the head knows."""
        here = {worker.record.job for worker in self._pool().workers.values()}
        for job in here - set(known) - {""} - self._asked:
            self._spawn(self._end_unless_it_lives(job))
        # After a restart: those that may need more workers before their driver tells.
        for job in here & set(known):
            self.config_of(job)

    async def _end_unless_it_lives(self, job: str) -> None:
        """The head does not know this job: it has ended, or its driver is on a node that is still to come back."""
        self._asked.add(job)
        try:
            lives = await self._head.ask("job_lives", {"job": job})
        finally:
            self._asked.discard(job)
        if not lives:
            self._end(c.EndJob(job, list(self._host().hosted)))

    def forget(self) -> None:
        """Those that have nothing on this node any more."""
        present = {client.job for client in self._clients.values()}
        present |= {worker.record.job for worker in self._pool().workers.values()}
        present |= {actor.lease.job for actor in self._host().hosted.values()}
        for job in self.configs.keys() - present:
            del self.configs[job]
            self._forgotten(job)
