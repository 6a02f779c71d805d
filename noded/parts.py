"""Who and what one node is: its names, its components, and whether it is to end.

``daemon.py`` and ``wiring/`` set them one after the other; nobody looks at a part before it is there, so whoever needs
one that comes later looks it up here when it is used. Nothing is decided here.
"""

from __future__ import annotations

import asyncio
import os
import platform
import socket
from typing import Any

from noded.config import Config, node_dir, node_tag
from noded.head.head import Head
from noded.head.storage import Storage
from noded.http.gateway import Gateway
from noded.lifecycle import LoopProbe
from noded.node.actor_host import NodeActorHost
from noded.node.cluster_view import ClusterView
from noded.node.collectors import Collectors
from noded.node.control import ControlServer
from noded.node.death_book import DeathBook
from noded.node.directory import Directory
from noded.node.doors import Doors
from noded.node.events import EventLog
from noded.node.gpu_finder import GpuFinder
from noded.node.head_link import HeadLink
from noded.node.holdings import Holdings
from noded.node.jobs import NodeJobs
from noded.node.lease_router import LeaseRouter
from noded.node.leases import Leases
from noded.node.ledger import Ledger
from noded.node.listener import Listener
from noded.node.logs import NodeLogs
from noded.node.memory import MemoryMonitor
from noded.node.object_store import ObjectStore
from noded.node.orders import NodeOrders
from noded.node.pages import Pages
from noded.node.peers import Peers
from noded.node.readers import Readers
from noded.node.records import NodeRecords
from noded.node.runtime_envs import RuntimeEnvs
from noded.node.session import Client
from noded.node.spawner_link import SpawnerLink
from noded.node.spilling import Spilling
from noded.node.stacks import Stacks
from noded.node.task_table import TaskTable
from noded.node.transfer_pull import Puller
from noded.node.transfer_server import TransferServer
from noded.node.why import NodeWhy
from noded.node.workers import WorkerPool
from noded.node_metrics import NodeMetrics
from noded.packages import Packages
from noded.shm import arena as shm
from noded.view import View


class Ending:
    """Whether the daemon is to end, and how."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.reason = ""
        self.exit_code = 0
        self.leaving = False
        """As by SIGKILL: what runs here waits for the next daemon."""
        self.superseded = False
        """Another head has taken over this cluster."""
        self.starts_over = False
        """As another incarnation, after the stop."""

    def ask(self, reason: str = "") -> None:
        """The first reason is the one that is told."""
        self.reason = self.reason or reason
        self.asked.set()


class Parts:
    """One node: the head, or a member. ``head`` and ``storage`` are a head's alone, ``link`` is a member's."""

    def __init__(self, config: Config):
        self.config = config
        self.ending = Ending()
        self.run_dir = str(node_dir(config))
        self.tag = node_tag(self.run_dir)
        self.log_dir = ""
        self.address = ""
        self.node_ip = ""
        self.epoch = 0
        self.node_id = ""
        self.number = 0
        self.cluster_id = ""
        self.head_epoch = 0
        """The highest of a head that this node has joined."""
        self.python = platform.python_version()
        self.token = b""
        self.labels: dict[str, str] = {}
        self.recovered = False
        """There was a daemon before this one, and its memory is here."""
        self.kept: dict[str, int] = {}
        """Descriptors that the spawner has kept, by name."""
        self.sockets: list[socket.socket] = []
        """The TCP port, and the socket of this node's clients."""
        self.clients: dict[bytes, Client] = {}
        self.head: Head | None = None
        self.link: HeadLink | None = None
        self.storage: Storage | None = None
        self.loop: asyncio.AbstractEventLoop
        self.ledger: Ledger
        self.arena: shm.Arena
        self.spawner: SpawnerLink
        self.doors: Doors
        self.listener: Listener
        self.gpus: GpuFinder
        self.cluster_view: ClusterView
        self.leases: Leases
        self.events: EventLog
        self.pages: Pages
        self.book: DeathBook
        self.environments: RuntimeEnvs
        self.packages: Packages
        self.jobs: NodeJobs
        self.pool: WorkerPool
        self.memory: MemoryMonitor
        self.store: ObjectStore
        self.peers: Peers
        self.logs: NodeLogs
        self.puller: Puller
        self.directory: Directory
        self.spilling: Spilling
        self.transfers: TransferServer
        self.router: LeaseRouter
        self.host: NodeActorHost
        self.orders: NodeOrders
        self.view: View
        self.stacks: Stacks
        self.control: ControlServer
        self.why: NodeWhy
        self.tasks: TaskTable
        self.holdings: Holdings
        self.records: NodeRecords
        self.gateway: Gateway
        self.probe = LoopProbe()
        self.collectors = Collectors()
        self.readers = Readers()
        self.metrics = NodeMetrics(config, self.run_dir, self.collectors, self.clients)

    @property
    def head_side(self) -> Any:
        """The head, here or by its connection."""
        return self.head if self.head is not None else self.link

    @property
    def head_address(self) -> str:
        assert self.config.address is not None
        return self.config.address

    def head_problem(self) -> str:
        """Why the head cannot be asked now; "" when it can."""
        return "" if self.link is None or self.link.registered else self.link.problem or "it is not there"

    def worker_path(self, wid: str) -> str:
        """The socket of a worker of this node."""
        return os.path.join(self.run_dir, "w", f"{wid}.sock")
