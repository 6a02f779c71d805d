"""What Prometheus gets of this node, put together: the agent with all that it reads, and where the cluster's nodes are.

``/metrics`` and ``/sd`` ask it (``view.py``). What is read, and how, is in ``node/metrics_agent.py`` and
``node/daemon_figures.py``; of the head in ``head/figures.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from noded.config import Config, without_secrets
from noded.head import figures as head_figures
from noded.head.head import Head
from noded.lifecycle import LoopProbe
from noded.metrics.family import Family
from noded.node.cluster_view import ClusterView
from noded.node.collectors import Collectors
from noded.node.counts import DEATHS, GRANT, REFUSED, STORAGE_WRITE, Counts
from noded.node.daemon_figures import DaemonFigures
from noded.node.gpu_figures import DEADLINE as GPU_SECONDS
from noded.node.gpu_figures import GpuFigures
from noded.node.leases import Leases
from noded.node.metrics_agent import MetricsAgent
from noded.node.object_store import ObjectStore
from noded.node.pages import Pages
from noded.node.session import Client
from noded.node.spawner_link import SpawnerLink
from noded.node.targets import Targets
from noded.node.task_figures import TaskFigures
from noded.node.transfer_pull import Puller
from noded.node.transfer_server import TransferServer
from noded.node.workers import Worker, WorkerPool
from noded.policy import deaths
from noded.wire import messages as m

if TYPE_CHECKING:
    from noded.node.machine_figures import MachineFigures

_MACHINE_SECONDS = 5.0
_TASK_SECONDS = 5.0
_GPU_AGE = 10.0
"""Figures of GPUs cost the start of a process, so these do for a while."""


class _Machine:
    """Imports what reads the machine with the first scrape, so that an idle node does not carry it."""

    def __init__(self, disks: list[tuple[str, str]], processes: Callable[[], dict[str, list[int]]]):
        self._arguments = disks, processes
        self._figures: MachineFigures | None = None

    def __call__(self) -> list[Family]:
        if self._figures is None:
            from noded.node.machine_figures import MachineFigures

            self._figures = MachineFigures(*self._arguments)
        return self._figures.collect()


class NodeMetrics:
    """Needs ``attach`` before it is of use."""

    def __init__(self, config: Config, run_dir: str, collectors: Collectors, clients: dict[bytes, Client]):
        self._config = config
        self._run_dir = run_dir
        self._collectors = collectors
        self._clients = clients
        self._counts = Counts()
        self._agent = MetricsAgent(collectors, self._counts, run_dir, clients)
        self._targets: Targets

    def attach(
        self,
        *,
        store: ObjectStore,
        leases: Leases,
        pool: WorkerPool,
        puller: Puller,
        transfers: TransferServer,
        probe: LoopProbe,
        spawner: SpawnerLink,
        view: ClusterView,
        head: Head | None,
        memory: Callable[[], dict[str, Any]],
        pages: Pages,
        log_dir: str,
    ) -> None:
        """The components are there; nothing is read yet."""
        config = self._config
        self._agent.start()
        for kind in deaths.KINDS:  # a rate needs the 0 before the first
            self._counts.add(DEATHS, 0, f"kind={kind}")
        self._targets = Targets(
            view, self._collectors, cluster=config.cluster, tls=config.tls is not None, path=config.sd_file
        )
        leases.on_granted = lambda seconds, kind: self._counts.observe(GRANT, seconds, f"kind={kind}")
        leases.on_refused = lambda kind: self._counts.add(REFUSED, 1, f"kind={kind}")
        probe.on_look = self._agent.on_loop

        def processes() -> dict[str, list[int]]:
            workers = [worker.record.pid for worker in pool.workers.copy().values() if worker.record.pid]
            return {"daemon": [os.getpid()], "spawner": [spawner.spawner_pid], "workers": workers}

        disks = [("run", self._run_dir), ("logs", log_dir)]
        disks += [("spill", str(path)) for path in config.object_spilling_directory]
        self._agent.add("machine", _Machine(disks, processes), deadline=_MACHINE_SECONDS)
        gpus = GpuFigures(without_secrets(os.environ), lambda: leases.capacity.ids)
        self._agent.add("tasks", TaskFigures(pages.counts).collect, deadline=_TASK_SECONDS)
        self._agent.add("gpus", gpus.collect, deadline=GPU_SECONDS, max_age=_GPU_AGE)
        own = DaemonFigures(
            self._counts, store, leases, pool, puller, transfers, self._clients, self._collectors, probe, memory
        )
        if head is not None:
            self._agent.sources.append(lambda: self._head(head))
        self._agent.sources.append(own.families)

    def stop(self) -> None:
        if hasattr(self, "_targets"):
            self._targets.stop()

    async def scrape(self) -> list[Family]:
        return await self._agent.scrape()

    def targets(self) -> list[dict[str, Any]]:
        return self._targets.targets()

    def on_nodes_changed(self) -> None:
        self._targets.on_change()

    def on_worker_exit(self, worker: Worker, death: m.Death) -> None:
        self._counts.add(DEATHS, 1, f"kind={death.kind}")
        self._agent.client_ended(worker.prefix)

    def on_write(self, seconds: float) -> None:
        """Of the head's state."""
        self._counts.observe(STORAGE_WRITE, seconds)

    def on_driver_gone(self, client: Client) -> None:
        self._agent.client_ended(client.prefix)

    def _head(self, head: Head) -> list[Family]:
        self._counts.follow("noded_jobs_started_total", head.jobs.started)
        self._counts.follow("noded_jobs_finished_total", head.jobs.finished)
        return head_figures.families(head)
