"""Builds what a node keeps and tells of its work: logs, pages, events, records, metrics, why, stacks, its status."""

from __future__ import annotations

from pathlib import Path

from noded import figures
from noded.config import cluster_dir, node_home
from noded.departures import Departures
from noded.http.gateway import Gateway
from noded.membership import Membership
from noded.node.death_book import DeathBook
from noded.node.events import EventLog
from noded.node.holdings import Holdings
from noded.node.log_caps import Limits
from noded.node.logs import NodeLogs
from noded.node.pages import Pages
from noded.node.records import NodeRecords
from noded.node.running import Runs
from noded.node.runtime_envs import RuntimeEnvs
from noded.node.stacks import Stacks
from noded.node.task_table import TaskTable
from noded.node.why import NodeWhy
from noded.packages import Packages
from noded.parts import Parts
from noded.version import __version__
from noded.view import Identity, View


def build_books(parts: Parts, departures: Departures) -> None:
    """What is kept in files: of events, of what ran, of deaths; and the environments to run in."""
    config = parts.config
    base = Path(parts.run_dir) if config.private else cluster_dir(config)
    parts.events = EventLog(parts.log_dir, node=parts.number, node_id=parts.node_id)
    parts.pages = Pages(parts.log_dir, parts.node_id, departures.live_pages, departures.buried)
    parts.book = DeathBook(parts.log_dir, parts.node_id, departures.running)
    parts.environments = RuntimeEnvs(
        (base if config.head or config.private else node_home(config)) / "runtime_envs",
        lambda uri: parts.head_side.load_package(uri),
    )
    parts.packages = Packages(
        parts.environments, lambda uri, data: parts.link.store_package(uri, data) if parts.link is not None else None
    )


def build_logs(parts: Parts) -> None:
    config = parts.config
    parts.logs = NodeLogs(
        parts.log_dir,
        parts.run_dir,
        parts.pool,
        parts.clients,
        parts.jobs.configs,
        parts.peers,
        parts.readers,
        parts.head_side.ask,
        head_is_there=lambda: parts.link is None or parts.link.registered,
        limits=None
        if config.private
        else Limits(config.log_worker_max_bytes, config.log_node_max_bytes, config.log_retention_days),
        number=parts.number,
        name=config.node_name,
        node_id=parts.node_id,
        ip=parts.node_ip,
    )


def build_view(parts: Parts, membership: Membership, departures: Departures) -> None:
    """Metrics, status and stacks."""
    config = parts.config
    parts.metrics.attach(
        store=parts.store,
        leases=parts.leases,
        pool=parts.pool,
        puller=parts.puller,
        transfers=parts.transfers,
        probe=parts.probe,
        spawner=parts.spawner,
        view=parts.cluster_view,
        head=parts.head,
        memory=parts.memory.figures,
        pages=parts.pages,
        log_dir=parts.log_dir,
    )
    parts.view = View(
        _identity(parts),
        parts.store,
        parts.leases,
        parts.router,
        parts.pool,
        parts.clients,
        parts.spawner,
        parts.probe,
        cluster=lambda: figures.cluster(parts),
        nodes=lambda: figures.nodes(parts.cluster_view),
        request_stop=parts.ending.ask,
        memory=parts.memory.figures,
        collectors=parts.collectors.figures,
        records=lambda: parts.records.figures(),
        metrics=parts.metrics,
    )
    if parts.head is not None:
        parts.head.nodes.refresh = membership.refresh_own
    parts.stacks = Stacks(
        parts.pool,
        parts.clients,
        lambda client, question, seconds: parts.control.ask_client(client, question, seconds),
        log_dir=parts.log_dir,
        run_dir=parts.run_dir,
        tag=parts.tag,
        node_id=parts.node_id,
        node_name=config.node_name,
        number=parts.number,
        running=departures.running,
        ask_head=parts.head_side.ask,
        head_problem=parts.head_problem,
    )


def _identity(parts: Parts) -> Identity:
    return Identity(
        cluster=parts.config.cluster,
        node=parts.config.node_name,
        number=parts.number,
        node_id=parts.node_id,
        address=parts.address,
        node_ip=parts.node_ip,
        run_dir=parts.run_dir,
        epoch=parts.epoch,
        head=parts.config.head,
        labels=parts.labels,
    )


def build_records(parts: Parts, departures: Departures) -> None:
    """What is asked of all the others: why something waits or has ended, the lists, the page."""
    config = parts.config
    parts.why = NodeWhy(
        parts.clients,
        parts.control,
        parts.leases,
        parts.router,
        parts.pool,
        parts.store,
        parts.host,
        parts.cluster_view,
        parts.book,
        parts.readers,
        node_id=parts.node_id,
        runs=Runs(parts.pages),
        ask_head=parts.head_side.ask,
        head_problem=parts.head_problem,
    )
    parts.tasks = TaskTable(parts.pages, parts.clients, parts.node_id, parts.control.ask_client, parts.readers)
    parts.holdings = Holdings(parts.store, parts.clients, parts.pool, parts.host, parts.control.who_holds)
    parts.records = NodeRecords(
        parts.events,
        parts.pool,
        parts.store,
        parts.leases,
        parts.host,
        parts.cluster_view,
        parts.control,
        parts.holdings,
        parts.tasks,
        parts.readers,
        parts.book,
        parts.jobs.configs,
        node_id=parts.node_id,
        ip=parts.node_ip,
        is_head=config.head,
        head=lambda: parts.head_side,
        connected=lambda: parts.link is None or parts.link.registered,
        at_head=lambda: parts.head.state.waiting() if parts.head is not None else iter(()),
        problems=lambda: figures.problems(parts),
    )
    parts.memory.on_end = parts.records.ended_for_memory
    parts.gateway = Gateway(parts.view, parts.token, (config.host, *config.allowed_host), __version__)
