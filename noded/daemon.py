"""The node daemon: builds the components in order, runs, stops them in reverse.

``main(config)`` is what ``noded --head`` runs. What a component does is in its own module; this one only says
who gets whom, and what happens at start, restart and stop.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from noded.config import (
    Config,
    ConfigError,
    NodeInfo,
    cluster_dir,
    load_or_create_token,
    log_dir,
    make_dir,
    make_node_dir,
    node_dir,
    remove_node_dir,
)
from noded.head.actors import ActorRecord, ActorTable
from noded.head.jobs import JobTable
from noded.head.placement_groups import TABLE as GROUPS
from noded.head.placement_groups import GroupTable
from noded.head.storage import Storage, StorageError
from noded.http.gateway import Gateway
from noded.lifecycle import LoopProbe, setup_logging, time_callbacks
from noded.node.actor_host import NodeActorHost
from noded.node.capacity import Capacity
from noded.node.control import ClientRecord, ControlServer, Refusal, start_time
from noded.node.gpu_finder import GpuFinder
from noded.node.leases import Leases
from noded.node.ledger import Ledger, LedgerError
from noded.node.listener import Listener, ListenError, bind
from noded.node.object_store import ObjectStore
from noded.node.output import OutputMonitor
from noded.node.runtime_envs import RuntimeEnvError, RuntimeEnvs
from noded.node.session import Client
from noded.node.spawner_link import SpawnerLink
from noded.node.timeline import Timeline
from noded.node.workers import Worker, WorkerPool
from noded.policy import labels
from noded.policy.where import refuse
from noded.resources import UNIT, ResourceSet
from noded.service import StartLock, notify_systemd, running_daemon
from noded.shm import arena as shm
from noded.version import __version__
from noded.view import Identity, View
from noded.wire import messages as m

log = logging.getLogger("noded.daemon")

_HOUSEKEEPING = 1.0
_IDLE_WORKER_SECONDS = 2.0
_BACK_BY = 10.0
"""Seconds in which a process that lives has attached again."""
_SLAB = 4 << 20


_CANNOT_START = (ConfigError, StorageError, LedgerError, ListenError, OSError, RuntimeError)
"""What the user or the machine is at fault for: one line without a traceback."""


class StartError(Exception):
    """The daemon cannot start; the text says why and what to do."""


class Daemon:
    """One node, with the head's tables on it."""

    def __init__(self, config: Config, *, on_ready: Callable[[], None]):
        self.config = config
        self._on_ready = on_ready
        self.run_dir = str(node_dir(config))
        self.tag = hashlib.blake2b(self.run_dir.encode(), digest_size=8).hexdigest()
        self.log_dir = ""
        self.address = ""
        self.epoch = 0
        self.node_id = ""
        self.token = b""
        self.clients: dict[bytes, Client] = {}
        self.loop: asyncio.AbstractEventLoop
        self.ledger: Ledger
        self.arena: shm.Arena
        self.spawner: SpawnerLink
        self.store: ObjectStore
        self.leases: Leases
        self.pool: WorkerPool
        self.storage: Storage
        self.actors: ActorTable
        self.groups: GroupTable
        self.jobs: JobTable
        self.view: View
        self.host: NodeActorHost
        self.control: ControlServer
        self.output: OutputMonitor
        self.environments: RuntimeEnvs
        self.timeline: Timeline
        self.listener: Listener
        self.gateway: Gateway
        self.probe = LoopProbe()
        self._stop = asyncio.Event()
        self._exit_code = 0
        self._recovered = False
        self._started = 0.0
        self.labels: dict[str, str] = {}
        self._leaving = False
        self._housekeeper: asyncio.Task[None] | None = None
        self.gpus: GpuFinder
        self._storing: dict[str, asyncio.Task[None]] = {}
        """Packages on their way to the disk."""
        self._owner_fd = -1
        self._kept: dict[str, int] = {}
        self._sockets: list[socket.socket] = []

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
        self._make_directories()
        self.token = load_or_create_token(self.config.home)
        await self._open_storage()
        groups = await self.storage.load(GROUPS)  # now: from the spawner's word on nothing may wait
        self.spawner = SpawnerLink(
            self.run_dir,
            self.tag,
            grace=config.daemon_grace,
            owner_pid=config.owner_pid,
            on_packet=lambda packet: self.pool.on_packet(packet),
            on_lost=self._on_spawner_lost,
        )
        welcome = await self.spawner.start(0)
        self.epoch = welcome.epoch
        self._kept = welcome.fds
        self.spawner.attach(self.loop)
        self._recovered = "ledger" in self._kept and "arena" in self._kept
        self._open_memory()
        self._open_sockets()
        self._build()
        self.groups.restore(groups)  # before the leases, which may be in them
        if self._recovered:
            await self._restore(welcome)
        else:
            await self.jobs.restore()
            await self.actors.restore()
            self.leases.capacity.restore_devices()
            self.groups.resume()
            self.actors.place_unhosted(set())
        await self.environments.start()
        self.timeline.sweep(set(self.pool.workers))
        self.gpus.start(self.loop, self.leases)
        self.output.start()
        self.pool.prepare()
        self.control.start(self._control_socket)
        self.listener.start(self.loop)
        self.probe.start(self.loop, self.listener.beat)
        self._watch_owner()
        self._started = self.loop.time()
        self._housekeeper = self.loop.create_task(self._keep_house(), name="housekeeper")

    async def _undo_start(self) -> None:
        """A start that failed leaves nothing; workers of the daemon before us are left to their grace."""
        if hasattr(self, "storage"):
            await self.storage.close()
        if not hasattr(self, "spawner"):
            return
        if self._recovered:
            self.spawner.close()
            return
        await self.spawner.stop()
        remove_node_dir(Path(self.run_dir))

    def _make_directories(self) -> None:
        make_node_dir(self.config)
        os.makedirs(os.path.join(self.run_dir, "w"), mode=0o700, exist_ok=True)
        self.log_dir = os.path.join(self.run_dir, "logs") if self.config.private else str(log_dir(self.config))
        make_dir(Path(self.log_dir))  # before the token and the storage: nobody else reads what is above it

    async def _open_storage(self) -> None:
        if self.config.storage == "memory":
            from noded.head.storage.memory import MemoryStorage

            self.storage = MemoryStorage(self.config.cluster)
        else:
            from noded.head.storage.sqlite import SqliteStorage

            path = Path(self.run_dir) / "head.db" if self.config.private else cluster_dir(self.config) / "head.db"
            self.storage = SqliteStorage(path, self.config.cluster, durable=not self.config.private)
        await self.storage.open()

    def _open_memory(self) -> None:
        """Arena and ledger: those of the daemon before us, else new ones."""
        if self._recovered:
            self.ledger = Ledger.open(self._kept.pop("ledger"))
            fd = self._kept.pop("arena")
            self.arena = shm.Arena(fd, os.fstat(fd).st_size)
            self.ledger.epoch = max(self.ledger.epoch + 1, self.epoch)
            self.epoch = self.ledger.epoch
            self.node_id = self.ledger.incarnation.hex()
            return
        self.ledger = Ledger.create(incarnation=os.urandom(16))
        self.epoch = max(self.epoch, int(time.time()))  # above every lease of an earlier incarnation
        self.ledger.epoch = self.epoch
        size = self.config.object_store_memory & -shm.BLOCK
        fd = shm.create(size)
        self.arena = shm.Arena(fd, size)
        self.node_id = self.ledger.incarnation.hex()
        self.spawner.keep("ledger", self.ledger.fd)
        self.spawner.keep("arena", fd)

    def _open_sockets(self) -> None:
        if "tcp" in self._kept and "control" in self._kept:
            tcp = socket.socket(fileno=self._kept.pop("tcp"))
            self._control_socket = socket.socket(fileno=self._kept.pop("control"))
        else:
            tcp = bind(self.config.host, self.config.port)
            path = os.path.join(self.run_dir, "control.sock")
            if os.path.exists(path):
                os.unlink(path)
            self._control_socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._control_socket.bind(path)
            self._control_socket.listen(4096)
            self.spawner.keep("tcp", tcp.fileno())
            self.spawner.keep("control", self._control_socket.fileno())
        self._sockets = [tcp, self._control_socket]
        host, port = tcp.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.listener = Listener(tcp, self.token, self._on_http, self._on_tcp_control)

    def _build(self) -> None:
        config = self.config
        cpus = config.num_cpus
        total: dict[str, float] = {
            "CPU": cpus,
            "memory": config.memory,
            "object_store_memory": self.arena.size,
            **config.resources,
        }
        self.gpus = GpuFinder(self.ledger, os.environ, config.num_gpus)
        try:
            gpus, ids = self.gpus.at_start()
        except ValueError as error:
            raise ConfigError(str(error)) from None
        total.update(gpus)
        host = self.address.rpartition(":")[0].strip("[]")
        self.node_ip = "127.0.0.1" if host in ("0.0.0.0", "::", "::1") else host
        total[f"node:{self.node_ip}"] = 1.0
        total["node:__internal_head__"] = 1.0
        capacity = Capacity(ResourceSet.from_floats(total).to_dict(), ids, self.ledger.bundles)
        self.labels = {**self._own_labels(), labels.NODE_ID: self.node_id, labels.RAY_NODE_ID: self.node_id}
        self.leases = Leases(capacity, self.epoch, self._worker_path, self._refuse_place)
        base = Path(self.run_dir) if config.private else cluster_dir(config)
        self.timeline = Timeline(self.log_dir, self.node_ip)
        self.environments = RuntimeEnvs(base / "runtime_envs")
        self.jobs = JobTable(self.storage, self.epoch)
        self.output = OutputMonitor(self.log_dir, self._who_writes, self._deliver_output, keep=not config.private)
        self.pool = WorkerPool(
            self.spawner,
            self.ledger,
            self.run_dir,
            self.log_dir,
            keep_warm=1,
            job_config=self.jobs.get,
            on_ready=lambda worker: self.leases.on_ready(worker),
            on_exit=self._on_worker_exit,
            on_env_failed=lambda assignee, reason: self.leases.env_failed(assignee, reason),
            environments=self.environments,
            on_output_end=self._on_output_end,
        )
        self.leases.pool = self.pool
        self.store = ObjectStore(self.arena, self.ledger, self.clients, lambda id_: self.actors.released(id_))
        self.actors = ActorTable(self.storage, self._notify)
        self.host = NodeActorHost(
            self.leases,
            self.pool,
            self._worker_path,
            on_started=lambda record, worker, path, pid: self.actors.started(record, worker, path, pid),
            on_never=lambda record, reason, kind: self.actors.never(record, reason, kind),
            on_exited=lambda record, death: self.actors.exited(record, death),
            on_claim=lambda worker, spec: self._adopt_actor(worker, spec, False),
            on_gone=lambda id_, death: self.actors.gone(id_, death),
        )
        self.actors.host = self.host
        self.groups = GroupTable(
            self.storage,
            self.leases,
            lambda prefix, message: self._notify(prefix, message),
            may_create=self._may_create,
            outlives=lambda id_: self._is_detached(id_) and self.actors.records[id_].state != "dead",
            node_labels=lambda: [self.labels],
        )
        self.leases.group_gone = self.groups.gone
        identity = Identity(
            cluster=config.cluster,
            node=config.node_name,
            node_id=self.node_id,
            address=self.address,
            node_ip=self.node_ip,
            run_dir=self.run_dir,
            epoch=self.epoch,
            storage=config.storage,
            labels=self.labels,
        )
        self.view = View(
            identity,
            self.store,
            self.leases,
            self.pool,
            self.actors,
            self.groups,
            self.clients,
            self.spawner,
            self.probe,
            self.request_stop,
        )
        self.control = ControlServer(
            self.loop,
            self.ledger,
            self.clients,
            self.store,
            self.leases,
            self.pool,
            self.actors,
            self.groups,
            arena_fd=self.arena.fd,
            welcome=self._welcome,
            on_driver=self._admit_driver,
            on_driver_gone=self._on_job_over,
            on_detach=self._on_detach,
            adopt_actor=self._adopt_actor,
            actor_attached=self._actor_attached,
            on_package=self._on_package,
            questions={
                **self.view.questions(),
                "await_package": self._ask_await_package,
                "timeline": self._ask_timeline,
            },
        )
        self.gateway = Gateway(self.view, self.token, (config.host, *config.allowed_host), __version__)

    async def _restore(self, welcome: Any) -> None:
        """Take over from the daemon before us: see docs/architecture.md, section 8."""
        alive = {w["wid"]: w["pid"] for w in welcome.workers}
        ended: list[str] = []
        """Jobs whose drivers have ended meanwhile."""
        for key, payload in list(self.ledger.clients.items()):
            known = msgspec.msgpack.decode(payload, type=ClientRecord)
            assert isinstance(key, bytes)
            if start_time(known.pid) == known.start_time:
                self.clients[key] = Client(
                    key,
                    known.kind,
                    known.pid,
                    known.start_time,
                    known.job,
                    told=known.detached,
                    detached=known.detached,
                )
            else:
                self.ledger.clients.delete(key)
                if not known.detached:
                    ended.append(known.job)
        workers = self.pool.restore(alive, welcome.templates)
        for worker in workers:
            if worker.id in alive:
                pid = alive[worker.id]
                self.clients[worker.prefix] = Client(
                    worker.prefix, "worker", pid, start_time(pid), worker.record.job, worker.id, told=False
                )
        self.store.restore()
        for worker in workers:
            if worker.record.actor:
                self.host.reserve(worker)
                self.leases.end_if_homeless(worker)
            else:
                self.leases.restore(worker, self.clients.get(worker.record.client))
        self.leases.capacity.restore_devices()
        await self.jobs.restore()
        await self.actors.restore()
        for id_ in {*self.actors.records, *(worker.record.actor for worker in workers if worker.record.actor)}:
            self.store.await_holders(id_)
        for worker in list(self.pool.workers.values()):
            record = self.actors.records.get(worker.record.actor)
            if record is not None and worker.id in alive:
                self._adopt_actor(worker, record.spec, False)
        self.groups.resume()
        self.actors.place_unhosted(set(self.host.hosted))
        for packet in welcome.exits:
            self.pool.on_packet(packet)
        self.pool.forget_unknown(alive, {packet["wid"] for packet in welcome.exits})
        for job in ended:
            self._end_job(job)
        for client in list(self.clients.values()):
            if client.kind == "driver":
                self.control.watch(client)
        self.store.settle()
        self.leases.kick()

    def _watch_owner(self) -> None:
        if self.config.owner_pid is None:
            return
        try:
            self._owner_fd = os.pidfd_open(self.config.owner_pid)
        except OSError:
            self.request_stop()
            return
        self.loop.add_reader(self._owner_fd, self.request_stop)

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
        notify_systemd("READY=1")
        cluster = self.config.cluster
        if self.config.private or self.config.ready_fd is not None:
            log.info("noded %s is ready at %s (cluster %s, epoch %s)", __version__, self.address, cluster, self.epoch)
        else:
            name, flag = ("", "") if cluster == "default" else (repr(cluster), f" --cluster {cluster}")
            print(f"noded {__version__}: head of cluster {cluster} at {self.address}, pid {os.getpid()}")
            print(f"connect: noded.init({name})   look: noded status{flag}   stop: noded stop{flag}", flush=True)
        if not self.config.private and not host.startswith(("127.", "[::1]", "localhost")):
            log.warning(
                "%s can be reached from other hosts: who connects must prove the token, but nothing is encrypted",
                self.address,
            )

    # ------------------------------------------------------------ stop

    def request_stop(self) -> None:
        self._stop.set()

    def _on_sigterm(self) -> None:
        """The full stop; but a service manager that runs the spawner as a service of its own means us alone."""
        self._leaving = self.spawner.given and bool(os.environ.get("NOTIFY_SOCKET"))
        self.request_stop()

    async def _leave(self) -> None:
        """End as by SIGKILL, but with what is written: the next daemon finds spawner and workers."""
        notify_systemd("STOPPING=1")
        if self._housekeeper is not None:
            self._housekeeper.cancel()
            await asyncio.wait([self._housekeeper])
        await self.gpus.stop()
        self.probe.stop()
        self.listener.stop()
        await self.gateway.stop()
        self.control.stop()
        await self.output.stop()
        await self.environments.stop()
        self.spawner.close()
        await self.storage.close()

    async def stop(self) -> None:
        """Staged, in reverse order of start: no new work, end the workers, close."""
        notify_systemd("STOPPING=1")
        self.pool.stopping = True
        if self._housekeeper is not None:
            self._housekeeper.cancel()
            await asyncio.wait([self._housekeeper])
        await self.gpus.stop()
        self.probe.stop()
        self.listener.stop()
        await self.gateway.stop()
        await self.actors.stop(end_detached=True)
        await self.groups.stop(end=True)
        await self.jobs.stop()
        for worker in list(self.pool.workers):
            self.output.catch_up(worker)
        await asyncio.sleep(0)
        self.control.stop()
        await self.output.stop()
        await self.environments.stop()
        await self.spawner.stop()
        for worker in list(self.pool.workers):
            self.output.ended(worker)
        self.timeline.stop()
        await self.storage.close()
        for sock in self._sockets:
            sock.close()
        if self._owner_fd >= 0:
            self.loop.remove_reader(self._owner_fd)
            os.close(self._owner_fd)
        self.arena.close(unmap=True)
        self.ledger.close()
        remove_node_dir(Path(self.run_dir))

    # ------------------------------------------------------------ connections

    def _on_http(self, sock: socket.socket, data: bytes) -> None:
        self.gateway.on_http(sock, data)

    def _on_tcp_control(self, sock: socket.socket, target: str, leftover: bytes) -> None:
        """Remote control connections come with several nodes; this port speaks HTTP only so far."""
        log.warning("closing an authenticated connection for %s: drivers of other hosts are not supported yet", target)
        sock.close()

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
            self.config.daemon_grace,
        )

    def _notify(self, prefix: bytes, message: m.ActorAt | m.GroupAt, payload: bytes = b"") -> None:
        client = self.clients.get(prefix)
        if client is not None:
            client.send(message, payload)

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

    # ------------------------------------------------------------ placement groups

    def _may_create(self, prefix: bytes) -> bool:
        """This client has not told yet what it had asked the daemon before us."""
        client = self.clients.get(prefix)
        return client is not None and not client.told

    def _sweep_groups(self) -> None:
        """A driver that lives is back by then, also when the node has started over."""
        if self._recovered or self.loop.time() - self._started > _BACK_BY:
            self.groups.sweep(self._present_jobs())

    def _present_jobs(self) -> set[str]:
        return {client.job for client in self.clients.values() if client.kind == "driver" and not client.detached}

    # ------------------------------------------------------------ packages

    def _on_package(self, uri: str, data: bytes) -> None:
        if uri not in self._storing:
            self._storing[uri] = self.loop.create_task(self.environments.store(uri, data), name=f"store {uri}")

    async def _ask_await_package(self, client: Client | None, args: dict[str, Any]) -> Any:
        """The answer comes when the package is on the disk."""
        uri = str(args["uri"])
        task = self._storing.get(uri)
        if task is not None:
            try:
                await asyncio.shield(task)
            except RuntimeEnvError as error:
                raise Refusal(str(error)) from None
            finally:
                self._storing.pop(uri, None)
        elif not self.environments.has(uri):
            raise Refusal(f"the package {uri} did not arrive; submit again")
        return True

    # ------------------------------------------------------------ jobs

    async def _admit_driver(self, client: Client) -> None:
        client.job = await self.jobs.admit(client.job, client.config or m.JobConfig())

    def _on_job_over(self, client: Client) -> None:
        self._end_job(client.job)

    def _end_job(self, job: str) -> None:
        self.actors.job_ended(job)
        self.groups.job_ended(job)
        self.pool.end_job(job, lambda worker: self._is_detached(worker.record.actor))
        if not self.actors.has_detached(job):  # they may restart, and need its import path then
            self.jobs.over(job)

    def _is_detached(self, actor: bytes) -> bool:
        record = self.actors.records.get(actor)
        return record is not None and record.spec.detached

    def _on_detach(self, client: Client) -> None:
        for worker in list(self.pool.workers.values()):
            if worker.record.job == client.job:
                self.output.catch_up(worker.id, unfinished=True)

    # ------------------------------------------------------------ workers and actors

    def _on_worker_exit(self, worker: Worker, death: m.Death) -> None:
        client = self.clients.get(worker.prefix)
        if client is not None:
            self.control.client_died(client)
        self.output.died(worker.id, worker.record.job, worker.record.pid)
        self.leases.worker_exited(worker, death)
        self.host.worker_exited(worker, death)

    def _on_spawner_lost(self) -> None:
        """Its workers died with it. Start another and give it everything to keep."""
        task = self.loop.create_task(self._new_spawner(), name="new spawner")
        task.add_done_callback(lambda t: self._fail(t))
        self._spawner_task = task

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
        self.pool.prepare()
        self.leases.kick()

    def _fail(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.critical("%s failed", task.get_name(), exc_info=task.exception())
            self._exit_code = 1
            self.request_stop()

    def _adopt_actor(self, worker: Worker, spec: m.ActorSpec, alive: bool) -> None:
        if spec.id in self.host.hosted:
            if alive:
                self.actors.up(spec.id)
            return
        record: ActorRecord = self.actors.adopt(
            spec, worker.id, self._worker_path(worker.id), worker.record.pid, alive=alive
        )
        self.host.adopt(record, worker)

    def _actor_attached(self, worker: Worker, has_actor: bool) -> None:
        self.host.attached(worker, has_actor=has_actor)
        self.actors.end_again(worker.record.actor)

    # ------------------------------------------------------------ output

    def _on_output_end(self, wid: str) -> None:
        self.output.ended(wid)
        self.timeline.ended(wid)

    async def _ask_timeline(self, client: Client | None, args: dict[str, Any]) -> Any:
        return await asyncio.to_thread(self.timeline.events)

    def _who_writes(self, wid: str) -> tuple[str, int] | None:
        worker = self.pool.workers.get(wid)
        return None if worker is None else (worker.record.job, worker.record.pid)

    def _deliver_output(self, job: str, message: m.LogLines) -> None:
        for client in self.clients.values():
            if client.kind == "driver" and client.job == job and not client.detached:
                if client.config is None or client.config.log_to_driver:
                    client.send(message)

    # ------------------------------------------------------------ housekeeping

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(_HOUSEKEEPING)
            self.pool.trim(max(1, self.leases.capacity.total.get("CPU", 0) // UNIT), _IDLE_WORKER_SECONDS)
            if not self.store.recovering:
                self.host.end_unclaimed()
                self.actors.forget_uncreated(self.clients)
                self._sweep_groups()
                self._forget_jobs()
            await self.store.trim()
            notify_systemd("WATCHDOG=1")

    def _forget_jobs(self) -> None:
        """Those whose driver has left and whose last detached actor has ended."""
        present = self._present_jobs()
        if "" in present:  # one is being admitted: its record is there before its client knows
            return
        for job in self.jobs.known() - present:
            if not self.actors.has_detached(job):
                self.jobs.over(job)


def main(config: Config) -> int:
    """Run the daemon in the foreground; the exit code."""
    make_node_dir(config)
    lock = StartLock(str(node_dir(config)))
    if not lock.acquire():
        return _fail_start(
            config, f"another daemon of cluster {config.cluster!r} has been starting for a while; try again"
        )
    try:
        return _run(config, lock)
    finally:
        lock.release()


def _run(config: Config, lock: StartLock) -> int:
    daemon = Daemon(config, on_ready=lock.release)
    setup_logging(config, daemon.run_dir)
    pid = running_daemon(daemon.run_dir)
    if pid is not None and pid != os.getpid():
        return _fail_start(
            config,
            f"a noded daemon of cluster {config.cluster!r} runs already (pid {pid}): see `noded "
            "status`, end it with `noded stop`, or start another with --cluster NAME",
        )
    debug = bool(os.environ.get("NODED_ASYNCIO_DEBUG"))
    try:
        if debug:
            time_callbacks()
            return asyncio.run(daemon.run(), debug=True)
        import uvloop

        return uvloop.run(daemon.run())
    except StartError as error:
        log.debug("cannot start", exc_info=True)
        return _fail_start(config, str(error))


def _fail_start(config: Config, text: str) -> int:
    if config.ready_fd is not None:
        try:
            os.write(config.ready_fd, json.dumps({"error": text}).encode() + b"\n")
        except OSError:
            pass
    if not config.private:  # the program that starts a private one raises it
        print(f"noded: {text}", file=sys.stderr)
    return 1
