"""The node daemon: builds the components in order, runs, stops them in reverse.

``foreground.py`` runs it. A node is the head, with the cluster's tables in this process
(``head/head.py``), or a member with a connection to it (``node/head_link.py``); all else is the same. What a component
does is in its own module; this one only says who gets whom, and what happens at start, restart and stop.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import platform
import select
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from noded import ids
from noded.config import (
    Config,
    ConfigError,
    NodeInfo,
    cluster_dir,
    log_dir,
    make_dir,
    make_node_dir,
    node_dir,
    node_home,
    node_tag,
    remove_node_dir,
    without_secrets,
)
from noded.head.head import Head
from noded.head.storage import Health, Storage, StorageError, Superseded
from noded.http.gateway import Gateway
from noded.lifecycle import LoopProbe
from noded.node import timeline
from noded.node.actor_host import NodeActorHost
from noded.node.capacity import Capacity
from noded.node.cluster_view import ClusterView
from noded.node.collectors import Collectors
from noded.node.control import REMOTE_GRACE, ClientRecord, ControlServer, start_time, unusable
from noded.node.death_book import DeathBook
from noded.node.directory import Directory
from noded.node.doors import Doors
from noded.node.events import EventLog
from noded.node.gpu_finder import GpuFinder
from noded.node.head_link import HeadLink, JoinError
from noded.node.holdings import Holdings
from noded.node.lease_router import LeaseRouter
from noded.node.leases import Leases
from noded.node.ledger import Ledger, LedgerError
from noded.node.listener import Listener, ListenError
from noded.node.log_caps import Limits
from noded.node.logs import NodeLogs
from noded.node.memory import MemoryMonitor
from noded.node.memory_usage import room_left
from noded.node.object_store import ObjectStore
from noded.node.oom import protect_daemon
from noded.node.orders import NodeOrders
from noded.node.pages import Pages
from noded.node.peer_messages import PeerMessages
from noded.node.peers import Peers
from noded.node.readers import Readers
from noded.node.records import NodeRecords, Problem
from noded.node.running import running_in
from noded.node.runtime_envs import RuntimeEnvs
from noded.node.session import Client
from noded.node.spawner_link import SpawnerLink
from noded.node.spilling import Spilling
from noded.node.stacks import Stacks
from noded.node.task_table import TaskTable
from noded.node.transfer_pull import Puller
from noded.node.transfer_server import TransferServer
from noded.node.why import NodeWhy
from noded.node.workers import Worker, WorkerPool, WorkerRecord
from noded.node_metrics import NodeMetrics
from noded.packages import Packages
from noded.policy import labels
from noded.policy.holdings import MEMORY_SECONDS, merge, wanted_of
from noded.policy.liveness import FREEZE_AFTER
from noded.policy.memory_room import store_stops
from noded.policy.where import refuse
from noded.resources import UNIT, ResourceSet
from noded.service import notify_systemd, watchdog_pause
from noded.shm import arena as shm
from noded.startup import (
    Standing,
    address_of,
    adopt_memory,
    find_token,
    new_memory,
    open_sockets,
    open_storage,
    spill_files,
    sweep_spill,
)
from noded.telemetry import Record, driver_page, worker_page
from noded.version import __version__
from noded.view import Identity, View
from noded.wire import cluster_messages as c
from noded.wire import messages as m
from noded.wire.handshake import HandshakeError

log = logging.getLogger("noded.daemon")

_HOUSEKEEPING = 1.0
_FOLD_SECONDS = 10.0
_SWEEP_SECONDS = 30.0
_IDLE_WORKER_SECONDS = 2.0
_BACK_BY = 10.0
"""Seconds in which a process that lives has attached again."""
_SLAB = 4 << 20
_ABSENCE_SINCE = 3
"""Version of the spawner's protocol."""
_ABSENCE_SECONDS = 4.0
"""So long a head's daemon that has died may take to be there again, before its nodes are told that it is away."""
SUPERSEDED_EXIT = 3
"""The exit code of a head in whose place there is another: to start it again would make them take turns."""


_CANNOT_START = (ConfigError, StorageError, LedgerError, ListenError, JoinError, HandshakeError, OSError, RuntimeError)
"""What the user or the machine is at fault for: one line without a traceback."""


class StartError(Exception):
    """The daemon cannot start; the text says why and what to do."""


class Daemon:
    """One node: the head, or a member."""

    def __init__(self, config: Config, *, on_ready: Callable[[], None]):
        self.config = config
        self._on_ready = on_ready
        self.run_dir = str(node_dir(config))
        self.tag = node_tag(self.run_dir)
        self.log_dir = ""
        self.address = ""
        self.epoch = 0
        self.node_id = ""
        self.number = 0
        self.cluster_id = ""
        self._head_epoch = 0
        """The highest of a head that this node has joined."""
        self.python = platform.python_version()
        self.token = b""
        self.clients: dict[bytes, Client] = {}
        self.job_configs: dict[str, m.JobConfig] = {}
        """Of jobs that have something on this node."""
        self._learning: set[str] = set()
        """Jobs that the head is being asked about."""
        self.loop: asyncio.AbstractEventLoop
        self.ledger: Ledger
        self.arena: shm.Arena
        self.spawner: SpawnerLink
        self.store: ObjectStore
        self.leases: Leases
        self.router: LeaseRouter
        self.pool: WorkerPool
        self.memory: MemoryMonitor
        self.cluster_view: ClusterView
        self.peers: Peers
        self.directory: Directory
        self.transfers: TransferServer
        self.puller: Puller
        self.doors: Doors
        self.orders: NodeOrders
        self.head: Head | None = None
        self.link: HeadLink | None = None
        self.storage: Storage | None = None
        self.view: View
        self.host: NodeActorHost
        self.control: ControlServer
        self.holdings: Holdings
        self.logs: NodeLogs
        self.why: NodeWhy
        self.stacks: Stacks
        self.book: DeathBook
        self.environments: RuntimeEnvs
        self.packages: Packages
        self.pages: Pages
        self.events: EventLog
        self.records: NodeRecords
        self.tasks: TaskTable
        self.readers = Readers()
        self.listener: Listener
        self.gateway: Gateway
        self.probe = LoopProbe()
        self.collectors = Collectors()
        self.metrics = NodeMetrics(config, self.run_dir, self.collectors, self.clients)
        self._stop = asyncio.Event()
        self._stop_reason = ""
        self._exit_code = 0
        self.starts_over = False
        """As another incarnation, after the stop."""
        self._recovered = False
        self._started = 0.0
        self.labels: dict[str, str] = {}
        self._leaving = False
        self._housekeeper: asyncio.Task[None] | None = None
        self._storage_watch: asyncio.Task[None] | None = None
        self._superseded = False
        self._watchdog: asyncio.Task[None] | None = None
        self.gpus: GpuFinder
        self._owner_fd = -1
        self._kept: dict[str, int] = {}
        self._sockets: list[socket.socket] = []
        self._guarded: tuple[float, list[str]] = (0.0, [])
        self._own_until = 0.0
        self._asked_jobs: set[str] = set()
        """Of which the head is asked whether they live."""

    # ------------------------------------------------------------ start

    async def run(self) -> int:
        """Serve until asked to stop; the exit code."""
        self.loop = asyncio.get_running_loop()
        self.loop.add_signal_handler(signal.SIGINT, self.request_stop)
        self.loop.add_signal_handler(signal.SIGTERM, self._on_sigterm)
        try:
            await self.start()
        except BaseException as error:
            await self._undo_start()
            if isinstance(error, StartError):
                raise
            if isinstance(error, _CANNOT_START):
                raise StartError(str(error)) from error
            raise
        self.report_ready()
        self._on_ready()
        await self._stop.wait()
        await (self._leave() if self._leaving else self.stop())
        return self._exit_code

    async def start(self) -> None:
        config = self.config
        protect_daemon()
        self._make_directories()
        self.token = find_token(config)
        self.doors = Doors(self.loop, self.token, config.tls)
        if config.head:
            self.storage = await self._unless_stopped(open_storage(config, self.run_dir, self.token))
            self._storage_watch = self.loop.create_task(self._watch_storage(self.storage), name="watch storage")
        standing = Standing.read(self.run_dir, head=config.head)
        self.number, self.cluster_id, self._head_epoch = standing.number, standing.cluster_id, standing.head_epoch
        if not config.head:
            await self._be_numbered()
        self.spawner = SpawnerLink(
            self.run_dir,
            self.tag,
            grace=config.daemon_grace,
            owner_pid=config.owner_pid,
            on_packet=lambda packet: self.pool.on_packet(packet),
            on_lost=self._on_spawner_lost,
            may_start=not (config.given_spawner or config.supervised),
        )
        welcome = await self.spawner.start(0)
        self.epoch = welcome.epoch
        self._kept = welcome.fds
        self.spawner.attach(self.loop)
        self._recovered = "ledger" in self._kept and "arena" in self._kept
        self._open_memory()
        self._open_sockets()
        self._tell_of_absence()
        self._build()
        if self.head is not None:
            self.number = await self.head.restore(self.number, self.cluster_id)
            self.cluster_id = self.head.cluster_id
        self._write_standing()
        self._build_node(welcome.guard_until)
        if self._recovered:
            self.leases.capacity.restore_groups()  # before the leases, which may be in them
            self._restore(welcome)
        self.leases.capacity.restore_devices()
        if self.head is not None:
            self.head.start(self._register(), self.orders, self.host.told(), self.orders.held_groups(), self._jobs())
        if self._recovered:
            self._restored(welcome)
        await self.book.start()  # not before: the spawner is listened to, and its packets need what is restored
        await self.environments.start()
        self.stacks.start()
        await asyncio.to_thread(self.pages.start)
        self.collectors.add("pages", self.pages.fold, deadline=_FOLD_SECONDS)
        self.pages.on_ended = partial(self.collectors.wake, "pages")
        self.gpus.start(self.loop, self.leases)
        self.logs.monitor.start(self.collectors)
        self.control.start(self._control_socket)
        self.listener.start(self.loop)
        self.probe.start(self.loop, self.listener.beat)
        if self.link is not None:
            await self.link.join()
        self.pool.prepare()
        self.memory.start(self.loop)
        await self.records.start(self._register(), recovered=self._recovered)
        self._watch_owner()
        self._started = self.loop.time()
        self._housekeeper = self.loop.create_task(self._keep_house(), name="housekeeper")
        if (pause := watchdog_pause()) is not None:
            self._watchdog = self.loop.create_task(self._show_life(pause, self._housekeeper), name="watchdog")

    async def _unless_stopped(self, opening: Coroutine[Any, Any, Storage]) -> Storage:
        """A Redis that is away is waited for, and that may be given up."""
        task = asyncio.ensure_future(opening)
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            while not task.done():
                # Redis's client loses a cancel that comes while it connects; the next one ends what was begun anew.
                task.cancel()
                await asyncio.wait({task}, timeout=0.5)
            if task.cancelled():
                raise StorageError("stopped while waiting for the head's storage")
            return task.result()
        finally:
            stopping.cancel()

    async def _watch_storage(self, storage: Storage) -> None:
        """What the storage cannot get over ends the daemon, in this one way."""
        error = await storage.ending.wait()
        if isinstance(error, Superseded):
            log.critical(
                "superseded by epoch %d: another head has taken over this cluster (storage %s, our epoch was %d); this "
                "one ends, with all that runs on its node",
                error.current,
                storage.health.kind,
                error.epoch,
            )
            self._superseded, self._exit_code = True, SUPERSEDED_EXIT
        else:
            # As by SIGKILL: workers wait for the daemon that is started in this one's place.
            log.critical("the head's state cannot be kept", exc_info=error)
            self._exit_code = 1
            self._leaving = True
        self.request_stop()

    # ------------------------------------------------------------ identity

    def _write_standing(self) -> None:
        Standing(self.number, self.cluster_id, self._head_epoch).write(self.run_dir)

    async def _be_numbered(self) -> None:
        """A member's first start: nothing of it can have a name before the head has given it a number."""
        if self.number:
            return
        link = HeadLink(self.loop, self._head_address, self.doors.dial, self, until=None, head_grace=0.0)

        def wait(problem: str) -> None:
            log.warning("waiting for the head at %s: %s", self._head_address, problem)

        asking = asyncio.ensure_future(link.obtain_number(self.config.node_name, self.config.cluster, wait))
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({asking, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise JoinError(f"stopped while waiting for the head at {self._head_address}")
            told = asking.result()
        finally:
            asking.cancel()
            stopping.cancel()
        self.number, self.cluster_id = int(told["number"]), str(told["cluster_id"])
        self._write_standing()

    @property
    def _head_address(self) -> str:
        assert self.config.address is not None
        return self.config.address

    async def _undo_start(self) -> None:
        """A start that failed leaves nothing; workers of the daemon before us are left to their grace."""
        if self.link is not None:
            await self.link.stop("")
        if hasattr(self, "listener"):
            self.listener.stop()
        self._stop_watching_storage()
        if self.storage is not None:
            await self.storage.close()
        if not hasattr(self, "spawner") or not self.spawner.connected:
            self._remove_unused_dir()  # a spawner that did not take us still has its workers there
            return
        if self._recovered or self.config.given_spawner:
            self.spawner.close()
            return
        await self.spawner.stop()
        remove_node_dir(Path(self.run_dir))

    def _remove_unused_dir(self) -> None:
        if not os.path.exists(os.path.join(self.run_dir, "spawner.sock")):
            remove_node_dir(Path(self.run_dir))

    def _make_directories(self) -> None:
        make_node_dir(self.config)
        os.makedirs(os.path.join(self.run_dir, "w"), mode=0o700, exist_ok=True)
        self.log_dir = os.path.join(self.run_dir, "logs") if self.config.private else str(log_dir(self.config))
        make_dir(Path(self.log_dir))  # before the token and the storage: nobody else reads what is above it

    def _open_memory(self) -> None:
        """Arena and ledger: those of the daemon before us, else new ones."""
        if self._recovered:
            self.ledger, self.arena = adopt_memory(self._kept)
            self.ledger.epoch = max(self.ledger.epoch + 1, self.epoch)
        else:
            self.ledger, self.arena = new_memory(self.config.object_store_memory, self.epoch, self.spawner)
        self.epoch = self.ledger.epoch
        self.node_id = self.ledger.incarnation.hex()

    def _open_sockets(self) -> None:
        self._sockets = open_sockets(self.config, self.run_dir, self._kept, self.spawner)
        tcp, self._control_socket = self._sockets
        self.address = address_of(self.config, tcp)
        self.listener = Listener(tcp, self.token, self._on_http, self._on_door, self.doors.server_tls)

    def _build(self) -> None:
        """The head's tables, before the node: it may be one of them that gives the node its number."""
        if self.storage is not None:
            self.head = Head(
                self.loop,
                self.storage,
                cluster=self.config.cluster,
                head_grace=self.config.head_grace,
                python=self.python,
                may_create=self._may_create,
                local_clients=lambda prefix: prefix in self.clients or bool(self.store.recovering),
                store_package=lambda uri, data: self.packages.keep(uri, data),
                read_package=lambda uri: self.environments.read(uri),
                emit=lambda *args, **fields: self.events.emit(*args, **fields),
                on_write=self.metrics.on_write,
            )

    def _build_node(self, guard_until: float | None) -> None:
        config = self.config
        cpus = config.num_cpus
        total: dict[str, float] = {
            "CPU": cpus,
            "memory": config.memory,
            "object_store_memory": self.arena.size,
            **config.resources,
        }
        self.gpus = GpuFinder(self.ledger, without_secrets(os.environ), config.num_gpus)
        try:
            gpus, ids_ = self.gpus.at_start()
        except ValueError as error:
            raise ConfigError(str(error)) from None
        total.update(gpus)
        host = self.address.rpartition(":")[0].strip("[]")
        self.node_ip = "127.0.0.1" if host in ("0.0.0.0", "::", "::1", "localhost") else host
        total[f"node:{self.node_ip}"] = 1.0
        if config.head:
            total["node:__internal_head__"] = 1.0
        capacity = Capacity(ResourceSet.from_floats(total).to_dict(), ids_, self.ledger.bundles)
        self.labels = {**self._own_labels(), labels.NODE_ID: self.node_id, labels.RAY_NODE_ID: self.node_id}
        self.cluster_view = ClusterView(self.number)
        self.cluster_view.on_dead = self._on_node_dead
        self.cluster_view.on_change = self._on_nodes_changed
        self.leases = Leases(capacity, self.epoch, self._worker_path, self._refuse_place)
        base = Path(self.run_dir) if config.private else cluster_dir(config)
        self.events = EventLog(self.log_dir, node=self.number, node_id=self.node_id)
        self.pages = Pages(self.log_dir, self.node_id, self._live_pages, self._on_buried)
        self.book = DeathBook(self.log_dir, self.node_id, self._running)
        self.environments = RuntimeEnvs(
            (base if config.head or config.private else node_home(config)) / "runtime_envs",
            lambda uri: self.head_side.load_package(uri),
        )
        self.packages = Packages(
            self.environments, lambda uri, data: self.link.store_package(uri, data) if self.link is not None else None
        )
        if self.head is None:
            self.link = HeadLink(
                self.loop,
                self._head_address,
                self.doors.dial,
                self,
                until=guard_until,
                head_grace=config.head_grace,
                epoch=self._head_epoch,
            )
        head = self.head_side
        self.pool = WorkerPool(
            self.spawner,
            self.ledger,
            self.run_dir,
            self.log_dir,
            node=self.number,
            node_id=self.node_id,
            pages="" if config.no_telemetry else self.pages.directory,
            keep_warm=1,
            job_config=self._config_of,
            on_ready=lambda worker: self.leases.on_ready(worker),
            on_exit=self._on_worker_exit,
            on_env_failed=lambda assignee, reason: self.leases.no_worker(assignee, reason, "env"),
            on_start_failed=lambda assignee, reason: self.leases.no_worker(assignee, reason, "start"),
            environments=self.environments,
            on_output_end=self._on_output_end,
        )
        self.leases.pool = self.pool
        self.memory = MemoryMonitor(
            self.leases,
            self.pool,
            tag=self.tag,
            threshold=config.memory_threshold,
            memory=config.memory,
            spawner=lambda: self.spawner.spawner_pid,
        )
        self.store = ObjectStore(self.arena, self.ledger, self.clients, lambda id_: head.unheld(id_), self.number)
        self.peers = Peers(self.loop, self.cluster_view, self.doors.dial, self._peer_attach)
        self.logs = NodeLogs(
            self.log_dir,
            self.run_dir,
            self.pool,
            self.clients,
            self.job_configs,
            self.peers,
            self.readers,
            head.ask,
            head_is_there=lambda: self.link is None or self.link.registered,
            limits=None
            if config.private
            else Limits(config.log_worker_max_bytes, config.log_node_max_bytes, config.log_retention_days),
            number=self.number,
            name=config.node_name,
            node_id=self.node_id,
            ip=self.node_ip,
        )
        self.puller = Puller(self.arena.fd, lambda address: self.doors.dial_now(address, "transfer"))
        self.directory = Directory(self.store, self.peers, self.cluster_view, self.clients, self.puller)
        self.store.elsewhere = self.directory
        stops = partial(store_stops, threshold=config.memory_threshold)
        self.store.space.room = lambda: room_left(Path("/"), ["self"], stops)
        self.memory.give_back = self.store.space.give_back
        self.store.spilling = self.store.space.relief = self.spilling = Spilling(
            self.store,
            self.store.space,
            spill_files(config, self.node_id),
            self.clients,
            self._keep,
            threads=config.object_spilling_threads,
        )
        self.transfers = TransferServer(
            self.arena.fd,
            self.directory.open_source,
            self.directory.allocate,
        )
        self.router = LeaseRouter(
            self.leases,
            self.peers,
            self.cluster_view,
            self.clients,
            node_id=self.node_id,
            address=lambda: self.address,
            watch_group=lambda id_: head.watch_group(ids.node_prefix(self.number), id_),
            job_config=self.job_configs.get,
            take_job=self._take_job,
            save=lambda client: self.control.save(client),
            forget=lambda client: self.control.forget(client),
            labels=lambda: self.labels,
        )
        self.leases.router, self.leases.death_of = self.router, self.book.death_of
        self.leases.group_gone = self.router.group_gone
        self.peers.handlers = PeerMessages(
            self.cluster_view,
            self.directory,
            self.router,
            self.clients,
            me=self._peer_attach,
            save=lambda client: self.control.save(client),
            cancel=lambda client, message: self.control.cancel_here(client, message),
            output=self.logs.show,
            output_over=self.logs.over_from_peer,
            need=self.peers.need,
        )
        self.host = NodeActorHost(self.leases, self.pool, head, self._take_job)
        self.orders = NodeOrders(
            self.leases,
            self.pool,
            self.host,
            self.cluster_view,
            self.clients,
            head,
            worker_path=self._worker_path,
            on_group_at=self.router.on_group_at,
            on_all_nodes=self._forget_strangers,
            request_stop=self._stop_for,
            claim_actors=self._claim_actors,
            questions={
                "state": lambda args: self.records.state.tell(args),
                "state_summary": lambda args: self.records.state.tell_summary(args),
                "drivers": lambda args: self.records.state.tell_drivers(args),
                "explain": lambda args: self.why.explain(args),
                "stack": lambda args: self.stacks.tell(args),
                "explain_at": lambda args: self.why.explain_at(args),
                "memory": self._tell_memory,
                "status": self._tell_status,
                "timeline": self._tell_timeline,
                **self.logs.told(),
                "actor_payload": self._tell_actor_payload,
                "package": self.packages.tell,
                "job_config": self._tell_job_config,
            },
        )
        if self.link is not None:
            self.link.orders = self.orders
        self.metrics.attach(
            store=self.store,
            leases=self.leases,
            pool=self.pool,
            puller=self.puller,
            transfers=self.transfers,
            probe=self.probe,
            spawner=self.spawner,
            view=self.cluster_view,
            head=self.head,
            memory=self.memory.figures,
            pages=self.pages,
            log_dir=self.log_dir,
        )
        identity = Identity(
            cluster=config.cluster,
            node=config.node_name,
            number=self.number,
            node_id=self.node_id,
            address=self.address,
            node_ip=self.node_ip,
            run_dir=self.run_dir,
            epoch=self.epoch,
            head=config.head,
            labels=self.labels,
        )
        self.view = View(
            identity,
            self.store,
            self.leases,
            self.router,
            self.pool,
            self.clients,
            self.spawner,
            self.probe,
            cluster=self._cluster_figures,
            nodes=self._nodes,
            request_stop=self.request_stop,
            memory=self.memory.figures,
            collectors=self.collectors.figures,
            records=lambda: self.records.figures(),
            metrics=self.metrics,
        )
        if self.head is not None:
            self.head.nodes.refresh = self._refresh_own
        self.stacks = Stacks(
            self.pool,
            log_dir=self.log_dir,
            run_dir=self.run_dir,
            tag=self.tag,
            node_id=self.node_id,
            node_name=config.node_name,
            number=self.number,
            running=self._running,
            ask_head=head.ask,
            head_problem=self._head_problem,
        )
        self.control = ControlServer(
            self.loop,
            self.ledger,
            self.clients,
            self.store,
            self.leases,
            self.pool,
            self.host,
            self.router,
            self.directory,
            head,
            node=self.number,
            python=self.python,
            arena_fd=self.arena.fd,
            welcome=self._welcome,
            on_driver=self._admit_driver,
            on_driver_gone=self._on_job_over,
            on_detach=self._on_detach,
            on_dial=self._on_dial,
            on_package=self.packages.on_package,
            questions={
                **self._head_questions(),
                **self.view.questions(),
                "await_package": self.packages.ask_await,
                "timeline": self._ask_timeline,
                "logs": self.logs.ask,
                "log_level": self.logs.ask_level,
                "stack": self.stacks.ask,
                "why": lambda client, args: self.why.ask(client, args),
                "memory": self._ask_memory,
                "state": lambda client, args: self.records.state.ask(args),
                "state_summary": lambda client, args: self.records.state.ask_summary(args),
            },
        )
        self.why = NodeWhy(
            self.clients,
            self.control,
            self.leases,
            self.router,
            self.pool,
            self.store,
            self.host,
            self.cluster_view,
            self.book,
            self.readers,
            node_id=self.node_id,
            running=self._running,
            ask_head=head.ask,
            head_problem=self._head_problem,
        )
        self.tasks = TaskTable(self.pages, self.clients, self.node_id, self.control.ask_client, self.readers)
        self.holdings = Holdings(self.store, self.clients, self.pool, self.host, self.control.who_holds)
        self.records = NodeRecords(
            self.events,
            self.pool,
            self.store,
            self.leases,
            self.host,
            self.cluster_view,
            self.control,
            self.holdings,
            self.tasks,
            self.readers,
            self.book,
            self.job_configs,
            node_id=self.node_id,
            ip=self.node_ip,
            is_head=config.head,
            head=lambda: self.head_side,
            connected=lambda: self.link is None or self.link.registered,
            at_head=lambda: self.head.state.waiting() if self.head is not None else iter(()),
            problems=self._problems,
        )
        self.memory.on_end = self.records.ended_for_memory
        self.gateway = Gateway(self.view, self.token, (config.host, *config.allowed_host), __version__)

    def _head_problem(self) -> str:
        """Why the head cannot be asked now; "" when it can."""
        return "" if self.link is None or self.link.registered else self.link.problem or "it is not there"

    @property
    def head_side(self) -> Any:
        """The head, here or by its connection."""
        return self.head if self.head is not None else self.link

    def _head_questions(self) -> dict[str, Any]:
        def forward(what: str) -> Any:
            async def ask(client: Client | None, args: dict[str, Any]) -> Any:
                return await self.head_side.ask(what, args)

            return ask

        return {what: forward(what) for what in HEAD_QUESTIONS}

    def _restore(self, welcome: Any) -> None:
        """Take over from the daemon before us: see docs/architecture.md, section 8."""
        alive = {w["wid"]: w["pid"] for w in welcome.workers}
        self._refuse_strange_clients(set(alive))
        for key, payload in list(self.ledger.clients.items()):
            known = msgspec.msgpack.decode(payload, type=ClientRecord)
            assert isinstance(key, bytes)
            if known.kind in ("guest", "node") or known.remote or start_time(known.pid) == known.start_time:
                self.clients[key] = Client(
                    key,
                    known.kind,
                    known.pid,
                    known.start_time,
                    known.job,
                    told=known.detached,
                    detached=known.detached,
                    remote=known.remote,
                )
            else:
                self.ledger.clients.delete(key)
        workers = self.pool.restore(alive, welcome.templates)
        for worker in workers:
            if worker.id in alive:
                pid = alive[worker.id]
                self.clients[worker.prefix] = Client(
                    worker.prefix, "worker", pid, start_time(pid), worker.record.job, worker.id, told=False
                )
        self.store.restore({name: fd for name, fd in self._kept.items() if name.startswith("spill")})
        for worker in workers:
            if worker.record.actor:
                self.host.restore(worker)
                self.leases.end_if_homeless(worker)
            else:
                self.leases.restore(worker, self.clients.get(worker.record.client))

    def _refuse_strange_clients(self, alive: set[str]) -> None:
        """Before anything is changed: who cannot attach ends, though the daemon of its version may come back."""
        records = [msgspec.msgpack.decode(p, type=ClientRecord) for _, p in self.ledger.clients.items()]
        versions = [(f"pid {r.pid}", r.version) for r in records if r.remote or start_time(r.pid) == r.start_time]
        for wid, payload in self.ledger.workers.items():
            worker = msgspec.msgpack.decode(payload, type=WorkerRecord)
            if isinstance(wid, bytes) and wid.decode() in alive:
                versions.append((f"worker {wid.decode()} (pid {worker.pid})", worker.version))
        for who, version in versions:
            if version and (reason := unusable(version)):
                raise StartError(
                    f"{who} runs here and speaks protocol {version}, this daemon {m.PROTOCOL_VERSION}: {reason}. "
                    f"Nothing has ended: what runs waits {self.config.daemon_grace:g} s for a daemon that it knows"
                )

    def _restored(self, welcome: Any) -> None:
        """The head knows what is here: now what has happened meanwhile."""
        if self.head is not None:
            self.job_configs.update(self.head.jobs.configs())
            for id_ in {*self.head.actors_of(self.number), *self.host.hosted}:
                self.store.await_holders(id_)
        for packet in welcome.exits:
            self.pool.on_packet(packet)
        alive = {w["wid"]: w["pid"] for w in welcome.workers}
        self.pool.forget_unknown(alive, {packet["wid"] for packet in welcome.exits})
        for client in list(self.clients.values()):
            if client.kind == "driver":
                if client.remote:
                    self.control.expect_back(client)
                else:
                    self.control.watch(client)
        self.directory.need_homes()
        self.store.settle()
        self.leases.kick()

    def _jobs(self) -> list[str]:
        """Of drivers of this node that are there."""
        return sorted(
            {client.job for client in self.clients.values() if client.kind == "driver" and not client.detached}
        )

    def _watch_owner(self) -> None:
        if self.config.owner_pid is None:
            return
        try:
            self._owner_fd = os.pidfd_open(self.config.owner_pid)
        except OSError:
            self.request_stop()
            return
        self.loop.add_reader(self._owner_fd, self.request_stop)

    def _owner_has_ended(self) -> bool:
        return self._owner_fd >= 0 and bool(select.select([self._owner_fd], [], [], 0)[0])

    def report_ready(self) -> None:
        host, _, port = self.address.rpartition(":")
        NodeInfo(
            cluster=self.config.cluster,
            node=self.config.node_name,
            pid=os.getpid(),
            port=int(port),
            host=host,
            node_id=self.node_id,
            version=__version__,
            private=self.config.private,
            started=start_time(os.getpid()),
            head=self.address if self.config.head else self._head_address,
            dir=Path(self.run_dir),
        ).write()
        if self.config.ready_fd is not None:
            try:
                os.write(
                    self.config.ready_fd,
                    json.dumps({"address": self.address, "pid": os.getpid(), "dir": self.run_dir}).encode() + b"\n",
                )
                os.close(self.config.ready_fd)
            except OSError:  # nobody waits for it any more
                pass
        cluster = self.config.cluster
        role = "head" if self.config.head else f"node {self.config.node_name}"
        notify_systemd(f"READY=1\nSTATUS={role} of cluster {cluster} at {self.address}")
        if self.config.private or self.config.ready_fd is not None:
            log.info("noded %s is ready at %s (cluster %s, epoch %s)", __version__, self.address, cluster, self.epoch)
        else:
            name, flag = ("", "") if cluster == "default" else (repr(cluster), f" --cluster {cluster}")
            print(f"noded {__version__}: {role} of cluster {cluster} at {self.address}, pid {os.getpid()}")
            print(f"connect: noded.init({name})   look: noded status{flag}   stop: noded stop{flag}", flush=True)
        if not self.config.private and not host.startswith(("127.", "[::1]", "localhost")) and not self.config.tls:
            log.warning(
                "%s can be reached from other hosts: who connects must prove the token, but nothing is encrypted; "
                "--tls-cert, --tls-key and --tls-ca encrypt everything",
                self.address,
            )

    # ------------------------------------------------------------ stop

    def request_stop(self) -> None:
        self._stop.set()

    def _stop_for(self, reason: str) -> None:
        self._stop_reason = self._stop_reason or reason
        self.request_stop()

    def _on_sigterm(self) -> None:
        """The full stop; but a service manager that runs the spawner as a service of its own means us alone."""
        # A unit of noded before --given-spawner has only the second.
        # There may be no spawner yet, while the storage or the head is waited for.
        given = hasattr(self, "spawner") and self.spawner.given and bool(os.environ.get("NOTIFY_SOCKET"))
        self._leaving = not self.config.supervised and (self.config.given_spawner or given)
        self.request_stop()

    async def _leave(self) -> None:
        """End as by SIGKILL, but with what is written: the next daemon finds spawner and workers."""
        notify_systemd("STOPPING=1")
        await self._end_tasks()
        await self.memory.stop()
        self.metrics.stop()
        self.collectors.stop()
        await self.gpus.stop()
        self.probe.stop()
        self.listener.stop()
        await self.gateway.stop()
        if self.link is not None:
            await self.link.stop("")
        if self.head is not None:
            await self.head.leave()
        self._stop_watching_storage()
        await self._stop_exchange()
        self.control.stop()
        self.readers.stop()
        await self.spilling.stop(delete=False)
        await self.logs.stop(ended=False)
        await self.environments.stop()
        await self.records.stop("")
        await self.stacks.stop(ended=False)
        await self.book.stop()
        self.spawner.close()
        if self.storage is not None:
            await self.storage.close()

    def _stop_watching_storage(self) -> None:
        if self._storage_watch is not None:
            self._storage_watch.cancel()

    async def _end_tasks(self) -> None:
        tasks = [task for task in (self._housekeeper, self._watchdog) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _stop_exchange(self) -> None:
        """No more objects and leases between nodes."""
        await self.directory.stop()
        await self.puller.stop()
        await self.transfers.stop()
        self.peers.stop()
        await self.doors.stop()

    async def stop(self) -> None:
        """Staged, in reverse order of start: no new work, end the workers, close."""
        notify_systemd("STOPPING=1")
        self.pool.stopping = True
        await self._end_tasks()
        await self.memory.stop()
        self.metrics.stop()
        self.collectors.stop()
        await self.gpus.stop()
        self.probe.stop()
        self.listener.stop()
        await self.gateway.stop()
        if self.head is not None and self._superseded:
            await self.head.leave()  # the other nodes belong to the head that has taken over
        elif self.head is not None:
            await self.head.stop("the head was stopped")
        self._stop_watching_storage()
        await self.logs.last_words_of_all()
        self.control.stop()
        self.readers.stop()
        await self.environments.stop()
        await self.spawner.stop()
        if self.link is not None:  # now that nothing of it runs any more
            await self.link.stop("" if self.starts_over else self._stop_reason or "it was stopped")
        await self._stop_exchange()
        await self.spilling.stop(delete=True)
        await self.logs.stop(ended=True)
        await self.book.stop()
        await self.stacks.stop(ended=True)
        if self.storage is not None:
            await self.storage.close()
        for sock in self._sockets:
            sock.close()
        if self._owner_fd >= 0:
            self.loop.remove_reader(self._owner_fd)
            os.close(self._owner_fd)
        await self.records.stop(self._stop_reason or "it was stopped")
        self.arena.close(unmap=True)
        self.ledger.close()
        remove_node_dir(Path(self.run_dir))
        if self.starts_over:
            # Under its number: programs of this node, which live on, have made ids with it.
            make_node_dir(self.config)
            self._write_standing()

    # ------------------------------------------------------------ connections

    def _on_http(self, sock: socket.socket, data: bytes) -> None:
        self.gateway.on_http(sock, data)

    def _on_door(self, sock: socket.socket, target: str, leftover: bytes) -> None:
        """Somebody has proved the token, and says whom it wants to talk to."""
        kind, _, word = target.partition("/")
        if leftover:
            log.warning("closing a connection for %s that says more than it should before it is let in", target)
            sock.close()
        elif target == "peer":
            self.peers.on_socket(sock)
        elif target == "transfer":
            self.transfers.serve(sock)
        elif target == "head" and self.head is not None:
            self.head.server.on_socket(sock)
        elif target == "node" or (kind == "node" and word == self.node_id):
            self.control.on_remote(sock)
        elif kind == "worker":
            self._on_caller(sock, word)
        else:
            log.warning("closing a connection for %s, which is not here", target)
            sock.close()

    def _on_caller(self, sock: socket.socket, wid: str) -> None:
        """Somebody elsewhere wants to talk to a worker: it gets the socket. If it is not ours, its node does."""
        number = ids.node_of_worker(wid) if len(wid) == 16 else 0
        if number != self.number:
            address = self.cluster_view.address(number)
            if address:
                self.doors.splice(sock, address, f"worker/{wid}")
                return
        worker = self.pool.workers.get(wid)
        if worker is None or worker.client is None or worker.client.session is None or worker.dead:
            log.info("closing a connection for worker %s, which is not here (any more)", wid)
        else:
            worker.client.session.send_with_fds(m.Caller(), [sock.fileno()])  # type: ignore[attr-defined]
        sock.close()

    def _on_dial(self, client: Client, message: m.Dial) -> None:
        """A client of ours wants to talk to a worker elsewhere: it gets the connected socket."""

        async def dial() -> None:
            try:
                sock = await self.doors.dial(message.address, f"worker/{message.worker}")
            except (OSError, HandshakeError, TimeoutError, ValueError) as problem:
                client.send(m.Dialed(message.worker, f"{problem}" or type(problem).__name__))
                return
            if client.session is not None and hasattr(client.session, "send_with_fds"):
                client.session.send_with_fds(m.Dialed(message.worker), [sock.fileno()])
            sock.close()

        self.doors.spawn(dial())

    def _worker_path(self, wid: str) -> str:
        return os.path.join(self.run_dir, "w", f"{wid}.sock")

    def _welcome(self, client: Client) -> m.Welcome:
        return m.Welcome(
            m.PROTOCOL_VERSION,
            self.epoch,
            self.ledger.incarnation,
            self.node_id,
            client.job,
            self.arena.size,
            max(shm.BLOCK, min(_SLAB, self.arena.size // 16 & -shm.BLOCK)),
            self.run_dir,
            self.address,
            self.node_ip,
            self.config.cluster,
            self.config.daemon_grace if not client.remote else REMOTE_GRACE,
            self.number,
            self.config.head,
            tls=self.doors.server_tls is not None,
            noded=__version__,
            pages="" if client.remote or self.config.no_telemetry else self.pages.directory,
        )

    # ------------------------------------------------------------ resources

    def _refuse_place(self, where: m.Place) -> str:
        """Why nothing may run there on this node."""
        return refuse(where, self.node_id, self.labels)

    def _own_labels(self) -> dict[str, str]:
        """As configured. Raises ConfigError."""
        try:
            labels.check_own(self.config.labels)
        except ValueError as error:
            raise ConfigError(f"labels: {error}") from None
        return dict(self.config.labels)

    def _may_create(self, prefix: bytes) -> bool:
        """This client has not told yet what it had asked the daemon before us."""
        client = self.clients.get(prefix)
        return client is not None and not client.told

    # ------------------------------------------------------------ the cluster

    def _register(self) -> c.Register:
        total, available = self.leases.capacity.own()
        return c.Register(
            version=c.CLUSTER_VERSION,
            noded=__version__,
            python=self.python,
            cluster=self.config.cluster,
            cluster_id=self.cluster_id,
            number=self.number,
            node_id=self.node_id,
            epoch=self.epoch,
            name=self.config.node_name,
            address=self.address,
            node_ip=self.node_ip,
            hostname=socket.gethostname(),
            run_dir=self.run_dir,
            pid=os.getpid(),
            total=total,
            available=available,
            labels=self.labels,
        )

    # node.head_link.Node

    def register(self) -> c.Register:
        self.host.forget_waiting()
        self.orders.forget_waiting()
        message = self._register()
        message.actors, message.groups, message.jobs = self.host.told(), self.orders.held_groups(), self._jobs()
        message.deaths = self.book.of_actors()
        return message

    def _claim_actors(self, made_here: list[bytes]) -> None:
        for id_ in made_here:
            if id_ not in self.store.entries:
                self.store.await_holders(id_)
        self.store.settle()

    def on_registered(self, message: c.Registered) -> None:
        """What the head was not told while it was away, it is told now."""
        if message.epoch != self._head_epoch:
            self._head_epoch = message.epoch
            self._write_standing()
        self._claim_actors(message.actors)
        known = set(message.jobs)
        for job in {worker.record.job for worker in self.pool.workers.values()} - known - {""} - self._asked_jobs:
            self.doors.spawn(self._end_unless_it_lives(job))
        self._learn_jobs(known)
        self.control.retell()
        self.router.watch_groups_again()
        self.leases.kick()

    async def _end_unless_it_lives(self, job: str) -> None:
        """The head does not know this job: it has ended, or its driver is on a node that is still to come back."""
        self._asked_jobs.add(job)
        try:
            lives = await self.head_side.ask("job_lives", {"job": job})
        finally:
            self._asked_jobs.discard(job)
        if not lives:
            self.orders.end_job(c.EndJob(job, list(self.host.hosted)))

    def _learn_jobs(self, known: set[str]) -> None:
        """After a restart: of those that have workers here, which may need more of them before their driver tells."""
        for job in {worker.record.job for worker in self.pool.workers.values()} & known:
            self._config_of(job)

    def on_declared_dead(self, reason: str) -> None:
        log.error("the head has declared this node dead (%s): all work here ends, and it starts over", reason)
        self.starts_over = True
        self._stop_for(f"it was declared dead: {reason}")

    def on_head_lost(self, reason: str) -> None:
        log.error("the head has been away for %g s (%s): this node ends", self.config.head_grace, reason)
        self._exit_code = 1
        self._stop_for("the head is lost")

    def amounts(self) -> tuple[dict[str, int], dict[str, int], int]:
        total, available = self.leases.capacity.own()
        return total, available, self.view.waiting()

    def guard(self, until: float) -> None:
        wids = self.host.restartable()
        if (until, wids) != self._guarded:
            self._guarded = until, wids
            self.spawner.send({"t": "guard", "until": until, "wids": wids})

    def _guard_own(self, head: Head) -> None:
        """Where another head may take over elsewhere, and would start this node's actors there: they may run only as
        long as that is not so. A storage that is away proves nothing, but then members that are there do.
        """
        assert self.storage is not None
        if self.storage.confirmed is None:
            return
        since: float | None = self.storage.confirmed
        if self.storage.health.degraded_since is not None:
            since = time.monotonic() if head.nodes.alone or head.nodes.connected() else None
        if since is not None:
            self._own_until = max(self._own_until, since + FREEZE_AFTER)
        self.guard(self._own_until)

    def _refresh_own(self) -> None:
        """The head's own node, as decisions are to see it."""
        assert self.head is not None
        total, available = self.leases.capacity.own()
        self.head.nodes.own_amounts(self.head.own, total, available, self.view.waiting())

    def _on_nodes_changed(self) -> None:
        self.leases.kick()
        self.metrics.on_nodes_changed()

    def _on_node_dead(self, entry: c.NodeEntry) -> None:
        if entry.number == self.number:
            return
        log.info("node %s (%s) is dead: %s", entry.name, entry.id, entry.reason)
        peer = self.peers.died(entry.number)
        self.control.forget_node(entry.number)
        self.router.node_died(entry)
        self.directory.node_died(entry, peer)

    def _forget_strangers(self) -> None:
        """After a restart: nodes that had something here and were forgotten meanwhile, so long are they dead."""
        known = self.cluster_view.entries
        for number in {ids.node_of(x.prefix) for x in self.clients.values() if x.kind in ("node", "guest")}:
            if number not in known and number != self.number:
                reason = "the head does not know it any more"
                self._on_node_dead(c.NodeEntry(number, "", f"node {number}", "", "DEAD", {}, {}, {}, "", reason))

    def _peer_attach(self) -> c.PeerAttach:
        return c.PeerAttach(c.CLUSTER_VERSION, self.cluster_id, self.number, self.node_id, self.epoch)

    def _nodes(self) -> list[dict[str, Any]]:
        return [
            {
                "NodeID": entry.id,
                "Alive": entry.state != "DEAD",
                "NodeManagerAddress": entry.ip,
                "NodeManagerPort": int(entry.address.rpartition(":")[2] or 0),
                "NodeName": entry.name,
                "Resources": {name: amount / UNIT for name, amount in entry.total.items()},
                "Labels": dict(entry.labels),
                "State": entry.state,
            }
            for entry in self.cluster_view.entries.values()
        ]

    def _cluster_figures(self) -> dict[str, Any]:
        nodes = sum(1 for entry in self.cluster_view.entries.values() if entry.state != "DEAD")
        found: dict[str, Any] = {"nodes": nodes}
        if self.head is not None:
            found["actors"] = sum(1 for r in self.head.actors.records.values() if r.state != "dead")
            found["demands"] = (
                self.view.waiting() + len(self.head.actor_places.pending) + len(self.head.group_places.waiting)
            )
            found["storage"] = self._storage_figures(self.head.storage.health)
        elif self.link is not None:
            found["actors"] = len(self.host.hosted)
            found["head_link"] = {
                "address": self._head_address,
                "connected": self.link.registered,
                "problem": self.link.problem,
                "frozen": self.link.frozen,
            }
        return found

    @staticmethod
    def _storage_figures(health: Health) -> dict[str, Any]:
        """`state`: ok or degraded; `journalled`: writes that are durable on this host alone, `waiting`: nowhere yet."""
        found: dict[str, Any] = {"kind": health.kind, "state": "ok"}
        if health.degraded_since is not None:
            found |= {"state": "degraded", "since": health.degraded_since, "why": health.why}
            found |= {"journalled": health.journalled, "waiting": health.waiting}
        return found

    async def _tell_status(self, args: dict[str, Any]) -> Any:
        return self.view.status()

    async def _tell_timeline(self, args: dict[str, Any]) -> Any:
        return await self.readers.run(lambda: timeline.events(self.pages.read(), self.node_ip))

    async def _tell_actor_payload(self, args: dict[str, Any]) -> Any:
        """Class and arguments of an actor here, as base64; empty where they are not kept any more."""
        hosted = self.host.hosted.get(bytes.fromhex(args["id"]))
        return base64.b64encode(hosted.payload if hosted is not None else b"").decode()

    async def _tell_job_config(self, args: dict[str, Any]) -> Any:
        config = self.job_configs.get(str(args["job"]))
        return c.as_text(config) if config is not None else ""

    async def _tell_memory(self, args: dict[str, Any]) -> Any:
        told = await self.holdings.report(**wanted_of(args))
        return {"node": self.number, "name": self.config.node_name, "id": self.node_id, **told}

    # ------------------------------------------------------------ jobs

    async def _admit_driver(self, client: Client) -> None:
        config = client.config or m.JobConfig()
        if client.job:  # it is back
            self._take_job(client.job, config)
        new = not client.job
        client.job = await self.head_side.admit_job(client.job, config)
        if new:
            self.records.workers.driver_came(client)
        config.node = self.number
        self._take_job(client.job, config)

    def _take_job(self, job: str, config: m.JobConfig) -> None:
        self.job_configs[job] = config
        self.pool.job_known(job)

    def _config_of(self, job: str) -> m.JobConfig | None:
        """None while the head is asked: after a restart a task may come before its driver has told."""
        found = self.job_configs.get(job)
        if found is None and job not in self._learning:
            self._learning.add(job)
            self.doors.spawn(self._learn_job(job))
        return found

    async def _learn_job(self, job: str) -> None:
        try:
            config = c.job_config_of(await self.head_side.ask("job_config", {"job": job}))
        except ValueError:
            config = m.JobConfig()  # it has ended, and so will what asks for it
        finally:
            self._learning.discard(job)
        if job not in self.job_configs:
            self._take_job(job, config)

    def _on_buried(self, page: str, records: list[Record]) -> None:
        """From any thread."""
        self.loop.call_soon_threadsafe(self.records.died_running, page, records)

    def _problems(self) -> Iterator[Problem]:
        """What may go wrong for a while, and how it is now."""
        for directory in self.spilling.files.directories:
            yield "SPILLING", f"spilling to {directory.path}", directory.failed
        for each in self.collectors.figures():
            yield "COLLECTOR", f"the collector {each['name']}", "" if each["state"] == "OK" else each["problem"]
        if self.head is not None:
            health = self.head.storage.health
            yield "HEAD", f"the head's storage ({health.kind})", health.why if health.degraded_since is not None else ""
        elif self.link is not None:
            yield "NODE", "the connection with the head", "" if self.link.registered else self.link.problem or "away"

    def _live_pages(self) -> set[str]:
        """From any thread."""
        drivers = [c for c in list(self.clients.values()) if c.kind == "driver" and not c.detached]
        return {*map(worker_page, list(self.pool.workers)), *(driver_page(c.prefix) for c in drivers)}

    def _on_job_over(self, client: Client) -> None:
        self.metrics.on_driver_gone(client)
        self.book.driver_ended(client)
        self.pages.ended(driver_page(client.prefix))
        self.records.workers.driver_left(client)
        self.head_side.job_gone(client.job, "" if client.detached else f"its process (pid {client.pid}) has ended")

    async def _on_detach(self, client: Client) -> None:
        await self.logs.last_words(client.job)

    # ------------------------------------------------------------ workers and actors

    def _on_worker_exit(self, worker: Worker, death: m.Death) -> None:
        self.records.workers.ended(worker, death)
        client = self.clients.get(worker.prefix)
        if client is not None:
            self.control.client_died(client)
        self.metrics.on_worker_exit(worker, death)
        self.book.worker_died(worker, death)
        self.leases.worker_exited(worker, death)
        self.host.worker_exited(worker, death)

    def _running(self, wid: str) -> list[dict[str, Any]]:
        """What this worker runs, or ran when it died; from any thread."""
        return running_in(os.path.join(self.pages.directory, worker_page(wid)))

    def _on_spawner_lost(self) -> None:
        """Its workers died with it. Start another and give it everything to keep."""
        if self._stop.is_set() or self._owner_has_ended():
            self.request_stop()  # the spawner has seen before us that all is to end
            return
        if self.config.supervised:  # who has started it sees its end, and starts everything anew
            log.error("the process that keeps this daemon running has ended: this node ends")
            self._exit_code = 1
            self._stop_for("its supervisor has ended")
            return
        task = self.loop.create_task(self._new_spawner(), name="new spawner")
        task.add_done_callback(lambda t: self._fail(t))
        self._spawner_task = task

    def _tell_of_absence(self) -> None:
        """Nodes that wait for this head are to know that it is dead and not silent."""
        if self.config.head and not self.config.private and self.spawner.protocol >= _ABSENCE_SINCE:
            self.spawner.send({"t": "absence", "name": "tcp", "after": _ABSENCE_SECONDS})

    async def _new_spawner(self) -> None:
        await self.pool.await_ends()
        self.pool.spawner_lost()
        await self.spawner.start(self.epoch)
        self.spawner.attach(self.loop)
        for name, fd in (
            ("ledger", self.ledger.fd),
            ("arena", self.arena.fd),
            ("tcp", self._sockets[0].fileno()),
            ("control", self._sockets[1].fileno()),
        ):
            self.spawner.keep(name, fd)
        self.spilling.keep_locks(again=True)
        self._tell_of_absence()
        self.pool.prepare()
        self.leases.kick()

    def _keep(self, name: str, fd: int) -> None:
        self.spawner.keep(name, fd)

    def _fail(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.critical("%s failed", task.get_name(), exc_info=task.exception())
            self._exit_code = 1
            self.request_stop()

    # ------------------------------------------------------------ output

    def _on_output_end(self, worker: Worker) -> None:
        self.logs.ended(worker)
        self.pages.ended(worker_page(worker.id))
        self.stacks.worker_ended(worker.id)

    async def _ask_timeline(self, client: Client | None, args: dict[str, Any]) -> Any:
        """Of all nodes, as far as they answer."""
        return await self.head_side.ask("timeline", {})

    async def _ask_memory(self, client: Client | None, args: dict[str, Any]) -> Any:
        """Of the cluster; of this node alone while the head is away."""
        wanted_of(args)
        if self.link is None or self.link.registered:
            try:
                return await asyncio.wait_for(self.head_side.ask("memory", args), MEMORY_SECONDS)
            except TimeoutError:
                pass
        told = merge([await self._tell_memory(args)], **wanted_of(args))
        return {**told, "problem": "the head does not answer: this is what this node alone has"}

    # ------------------------------------------------------------ housekeeping

    async def _keep_house(self) -> None:
        swept = -_SWEEP_SECONDS
        while True:
            await asyncio.sleep(_HOUSEKEEPING)
            try:
                self._tidy()
                await self.store.space.trim()
                if self.loop.time() - swept > _SWEEP_SECONDS:
                    swept = self.loop.time()
                    await sweep_spill(self.config)
            except Exception:
                log.exception("a round of housekeeping has failed; the next one is in %g s", _HOUSEKEEPING)

    def _tidy(self) -> None:
        self.records.look()
        self.pool.oom.look()
        self.pool.trim(max(1, self.leases.capacity.total.get("CPU", 0) // UNIT), _IDLE_WORKER_SECONDS)
        if self.head is not None:
            self._refresh_own()
            self.head.nodes.flush()
            self._guard_own(self.head)
        self.router.forget_guests()
        if not self.store.recovering:
            if self.head is not None:
                self.host.end_unclaimed(0.0)
                self._sweep_head(self.head)
            elif self.link is not None and self.link.registered:
                self.host.end_unclaimed()
            self._forget_jobs()

    async def _show_life(self, pause: float, housekeeper: asyncio.Task[None]) -> None:
        """For as long as the loop turns and the house is kept."""
        while not housekeeper.done():
            notify_systemd("WATCHDOG=1")
            await asyncio.sleep(pause)

    def _sweep_head(self, head: Head) -> None:
        if any(client.kind == "driver" and not client.job for client in self.clients.values()):
            return  # one is being admitted: its record is there before its client knows
        head.sweep(settled=True)
        # A driver that lives is back by then, also when the node has started over.
        if self._recovered or self.loop.time() - self._started > _BACK_BY:
            head.sweep_groups()

    def _forget_jobs(self) -> None:
        """Those that have nothing on this node any more."""
        present = {client.job for client in self.clients.values()}
        present |= {worker.record.job for worker in self.pool.workers.values()}
        present |= {actor.lease.job for actor in self.host.hosted.values()}
        for job in self.job_configs.keys() - present:
            del self.job_configs[job]
            self.logs.forget_job(job)


HEAD_QUESTIONS = (
    "nodes",
    "resources",
    "get_actor",
    "named_actors",
    "await_actor",
    "actor_info",
    "placement_groups",
    "get_placement_group",
    "await_placement_group",
    "drain",
    "cluster",
)
