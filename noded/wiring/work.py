"""Builds what runs work on a node: resources and leases, workers and memory, actors, and who may ask for any of it."""

from __future__ import annotations

import os

from noded.config import ConfigError, without_secrets
from noded.departures import Departures
from noded.entrance import Entrance
from noded.membership import Membership
from noded.node.actor_host import NodeActorHost
from noded.node.capacity import Capacity
from noded.node.cluster_view import ClusterView
from noded.node.control import ControlServer
from noded.node.gpu_finder import GpuFinder
from noded.node.jobs import NodeJobs
from noded.node.leases import Leases
from noded.node.memory import MemoryMonitor
from noded.node.object_store import ObjectStore
from noded.node.orders import NodeOrders
from noded.node.workers import WorkerPool
from noded.parts import Parts
from noded.policy import labels
from noded.policy.where import refuse
from noded.questions import Questions
from noded.resources import ResourceSet
from noded.wire import messages as m


def build_leases(parts: Parts, membership: Membership) -> None:
    """What this node has, and who gets it. Raises ConfigError."""
    capacity = _capacity(parts)
    parts.labels = {**_own_labels(parts), labels.NODE_ID: parts.node_id, labels.RAY_NODE_ID: parts.node_id}
    parts.cluster_view = ClusterView(parts.number)
    parts.cluster_view.on_dead = membership.on_node_dead
    parts.cluster_view.on_change = membership.on_nodes_changed

    def refuse_place(where: m.Place) -> str:
        """Why nothing may run there on this node."""
        return refuse(where, parts.node_id, parts.labels)

    parts.leases = Leases(capacity, parts.epoch, parts.worker_path, refuse_place)


def _capacity(parts: Parts) -> Capacity:
    config = parts.config
    total: dict[str, float] = {
        "CPU": config.num_cpus,
        "memory": config.memory,
        "object_store_memory": parts.arena.size,
        **config.resources,
    }
    parts.gpus = GpuFinder(parts.ledger, without_secrets(os.environ), config.num_gpus)
    try:
        gpus, ids = parts.gpus.at_start()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    total.update(gpus)
    host = parts.address.rpartition(":")[0].strip("[]")
    parts.node_ip = "127.0.0.1" if host in ("0.0.0.0", "::", "::1", "localhost") else host
    total[f"node:{parts.node_ip}"] = 1.0
    if config.head:
        total["node:__internal_head__"] = 1.0
    return Capacity(ResourceSet.from_floats(total).to_dict(), ids, parts.ledger.bundles)


def _own_labels(parts: Parts) -> dict[str, str]:
    """As configured. Raises ConfigError."""
    try:
        labels.check_own(parts.config.labels)
    except ValueError as error:
        raise ConfigError(f"labels: {error}") from None
    return dict(parts.config.labels)


def build_workers(parts: Parts, departures: Departures) -> None:
    """Jobs, their workers, the memory that these share and the objects in it."""
    config = parts.config
    head = parts.head_side
    parts.jobs = NodeJobs(
        parts.clients,
        head,
        parts.number,
        spawn=parts.doors.spawn,
        pool=lambda: parts.pool,
        host=lambda: parts.host,
        admitted=lambda client: parts.records.workers.driver_came(client),
        end=lambda message: parts.orders.end_job(message),
        forgotten=lambda job: parts.logs.forget_job(job),
    )
    parts.pool = WorkerPool(
        parts.spawner,
        parts.ledger,
        parts.run_dir,
        parts.log_dir,
        node=parts.number,
        node_id=parts.node_id,
        pages="" if config.no_telemetry else parts.pages.directory,
        keep_warm=1,
        job_config=parts.jobs.config_of,
        on_ready=lambda worker: parts.leases.on_ready(worker),
        on_exit=departures.worker_exited,
        on_env_failed=lambda assignee, reason: parts.leases.no_worker(assignee, reason, "env"),
        on_start_failed=lambda assignee, reason: parts.leases.no_worker(assignee, reason, "start"),
        environments=parts.environments,
        on_output_end=departures.output_ended,
    )
    parts.leases.pool = parts.pool
    parts.memory = MemoryMonitor(
        parts.leases,
        parts.pool,
        tag=parts.tag,
        threshold=config.memory_threshold,
        memory=config.memory,
        spawner=lambda: parts.spawner.spawner_pid,
    )
    parts.store = ObjectStore(parts.arena, parts.ledger, parts.clients, lambda id_: head.unheld(id_), parts.number)


def build_orders(parts: Parts, membership: Membership, questions: Questions) -> None:
    """Actors, and what the head wants of this node."""
    head = parts.head_side
    parts.host = NodeActorHost(parts.leases, parts.pool, head, parts.jobs.take)
    parts.orders = NodeOrders(
        parts.leases,
        parts.pool,
        parts.host,
        parts.cluster_view,
        parts.clients,
        head,
        worker_path=parts.worker_path,
        on_group_at=parts.router.on_group_at,
        on_all_nodes=membership.forget_strangers,
        request_stop=parts.ending.ask,
        claim_actors=membership.claim_actors,
        questions=questions.of_the_head(),
    )
    if parts.link is not None:
        parts.link.orders = parts.orders


def build_control(parts: Parts, entrance: Entrance, departures: Departures, questions: Questions) -> None:
    """For the clients of this node."""
    parts.control = ControlServer(
        parts.loop,
        parts.ledger,
        parts.clients,
        parts.store,
        parts.leases,
        parts.pool,
        parts.host,
        parts.router,
        parts.directory,
        parts.head_side,
        node=parts.number,
        python=parts.python,
        arena_fd=parts.arena.fd,
        welcome=entrance.welcome,
        on_driver=parts.jobs.admit_driver,
        on_driver_gone=departures.driver_gone,
        on_detach=departures.driver_detaches,
        on_dial=entrance.on_dial,
        on_package=parts.packages.on_package,
        questions=questions.of_clients(),
    )
