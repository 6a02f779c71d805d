"""Metrics of a node's own components: its store, leases, workers, loop and collectors. Read on the loop, when asked.

What only grows goes through ``counts.py``, so that it goes on after a restart of the daemon.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from noded.lifecycle import LoopProbe
from noded.metrics.family import Family, by_label, counter, gauge
from noded.node.collectors import Collectors
from noded.node.counts import Counts
from noded.node.leases import Leases
from noded.node.object_store import ObjectStore
from noded.node.session import Client
from noded.node.transfer_pull import Puller
from noded.node.transfer_server import TransferServer
from noded.node.workers import WorkerPool
from noded.resources import UNIT

_LOOKED_AT = 500
"""A class of tasks that waits costs about 20 µs to explain; beyond so many they are of the reason "other"."""
_RESOURCES = 20
"""Told of; there may be any number."""
_STATES = {"OK": 0, "LATE": 1, "FAILED": 2}


class DaemonFigures(msgspec.Struct, frozen=True):
    """``memory()``: what the memory monitor says of itself."""

    counts: Counts
    store: ObjectStore
    leases: Leases
    pool: WorkerPool
    puller: Puller
    transfers: TransferServer
    clients: dict[bytes, Client]
    collectors: Collectors
    probe: LoopProbe
    memory: Callable[[], dict[str, Any]]

    def families(self) -> list[Family]:
        found = [
            *self._store(),
            *self._resources(),
            *self._queue(),
            *self._workers(),
            *self._memory(),
            *self._loop(),
            *self._collectors(),
        ]
        return [*found, *self.counts.families()]

    def _store(self) -> Iterable[Family]:
        told = self.store.figures()
        for name in ("spilled", "restored", "evicted"):
            for unit in ("bytes", "objects"):
                self.counts.follow(f"noded_store_{name}_{unit}_total", told[f"{name}_{unit}"])
        self.counts.follow("noded_store_received_bytes_total", self.puller.pulled_bytes)
        self.counts.follow("noded_store_received_objects_total", self.puller.pulled_objects)
        self.counts.follow("noded_store_sent_bytes_total", self.transfers.sent_bytes)
        yield gauge("noded_store_size_bytes", "Size of the object store", told["size"])
        yield gauge("noded_store_used_bytes", "Bytes of the object store that are taken", told["used"])
        yield gauge("noded_store_resident_bytes", "Bytes of it that are in the machine's memory now", told["resident"])
        text = "Bytes of it that are not given out, as the machine's memory is short"
        yield gauge("noded_store_withheld_bytes", text, told["withheld"])
        copies = told["copies_bytes"]
        text = "Bytes of copies of other nodes' objects, which may be given up when nobody here uses them"
        yield gauge("noded_store_copies_bytes", text, copies)
        text = "Bytes of objects that must stay here or go to disk"
        yield gauge("noded_store_pinned_bytes", text, max(0, told["used"] - copies))
        yield gauge("noded_store_spilled_bytes", "Bytes of objects that lie on disk now", told["on_disk"])
        yield gauge("noded_store_objects", "Objects whose values are on this node", told["objects"])
        yield gauge("noded_store_waiting", "Requests for room in the object store that wait", told["waiting"])
        broken = [disk for disk in told["directories"] if disk.get("problem")]
        text = "Directories for spilled objects that take nothing now"
        yield gauge("noded_store_spill_directories_failing", text, len(broken))

    def _resources(self) -> Iterable[Family]:
        total, free = self.leases.capacity.own()
        names = [name for name in total if not name.startswith(("node:", "accelerator_type:"))][:_RESOURCES]
        has = [(name, total[name] / UNIT) for name in names]
        used = [(name, (total[name] - free[name]) / UNIT) for name in names]
        yield by_label(gauge("noded_resources", "What the node has of a resource"), "name", has)
        text = "What of it tasks, actors and placement groups have taken"
        yield by_label(gauge("noded_resources_used", text), "name", used)

    def _queue(self) -> Iterable[Family]:
        leases = self.leases
        counts: Counter[str] = Counter()
        for number, ((prefix, cls), demand) in enumerate(leases.demands.items()):
            why = leases.explain(prefix, cls) if number < _LOOKED_AT else {"kind": "other"}
            counts[why.get("kind", "starting")] += demand.count
        for kind, count in (("actor", len(leases.actors)), ("placement_group", len(leases.groups))):
            if count:
                counts[kind] += count
        counts.setdefault("resources_busy", 0)
        text = "What waits on this node: workers for tasks by reason (docs/why.md), actors, placement groups"
        yield by_label(gauge("noded_scheduler_waiting", text), "reason", counts)
        since = [demand.since for demand in leases.demands.values()]
        since += [actor.since for actor in leases.actors]
        since += [group.since for group in leases.groups]
        oldest = time.monotonic() - min(since) if since else 0.0
        yield gauge("noded_scheduler_oldest_wait_seconds", "How long the oldest of these has waited", max(0.0, oldest))
        yield gauge("noded_scheduler_leases", "Workers that are lent to run tasks", len(leases.leases))

    def _workers(self) -> Iterable[Family]:
        self.counts.follow("noded_workers_started_total", self.pool.started)
        states = Counter(dict.fromkeys(("starting", "idle", "busy", "waiting", "actor"), 0))
        idle = {worker.id for worker in self.pool.idle()}
        for worker in list(self.pool.workers.values()):
            states[
                "starting"
                if worker.client is None
                else "idle"
                if worker.id in idle
                else "actor"
                if worker.record.actor
                else "waiting"
                if worker.blocked
                else "busy"
            ] += 1
        text = "Worker processes by state; waiting: its task waits for others and lends its CPU"
        yield by_label(gauge("noded_workers", text), "state", states)
        drivers = sum(1 for client in self.clients.values() if client.kind == "driver" and not client.detached)
        yield gauge("noded_drivers", "Programs that are connected with this node", drivers)

    def _memory(self) -> Iterable[Family]:
        told = self.memory()
        if not told:
            return
        self.counts.follow("noded_memory_kills_total", told["ended"])
        text = "Memory in use on the machine, or in the container, without page cache"
        yield gauge("noded_node_memory_used_bytes", text, told["used_bytes"])
        text = "Most of it that can be in use"
        yield gauge("noded_node_memory_limit_bytes", text, told["limit_bytes"])
        text = "1 while nothing new begins as too little memory is left"
        yield gauge("noded_memory_pressed", text, float(told["pressed"]))

    def _loop(self) -> Iterable[Family]:
        text = "Seconds of CPU of the thread that runs the daemon's event loop"
        yield counter("noded_loop_cpu_seconds_total", text, time.thread_time())
        text = "The longest time for which the event loop has served nobody, since the daemon's start"
        yield gauge("noded_loop_longest_lag_seconds", text, self.probe.longest_ms / 1000)

    def _collectors(self) -> Iterable[Family]:
        told = self.collectors.figures()
        text = "How a collector does: 0 well, 1 late, 2 failed (noded status says why)"
        state = gauge("noded_collector_state", text)
        age = gauge("noded_collector_age_seconds", "Age of its last good values")
        cpu = counter("noded_collector_cpu_seconds_total", "Seconds of CPU of its threads")
        rounds = counter("noded_collector_rounds_total", "How often it was begun")
        failures = counter("noded_collector_failures_total", "How often it raised or was late")
        for one in told:
            labels = {"collector": one["name"]}
            state.samples.append((labels, _STATES[one["state"]]))
            cpu.samples.append((labels, one["cpu_s"]))
            rounds.samples.append((labels, one["rounds"]))
            failures.samples.append((labels, one["failures"]))
            if one["age_s"] is not None:
                age.samples.append((labels, one["age_s"]))
        return [state, age, cpu, rounds, failures]
