"""What may be asked of a node: the status page, the node list, and the questions of the API.

Reads the components, changes nothing. Implements ``http.view.NodeView``.
"""

from __future__ import annotations

import base64
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from noded.head.actors import ActorTable
from noded.head.placement_groups import GroupTable
from noded.lifecycle import LoopProbe
from noded.node.control import Question, Refusal
from noded.node.leases import Leases
from noded.node.object_store import ObjectStore
from noded.node.session import Client
from noded.node.spawner_link import SpawnerLink
from noded.node.workers import WorkerPool
from noded.resources import UNIT
from noded.version import __version__
from noded.wire import messages as m


@dataclass(frozen=True)
class Identity:
    """Who this node is; fixed once it listens."""

    cluster: str
    node: str
    node_id: str
    address: str
    node_ip: str
    run_dir: str
    epoch: int
    storage: str
    labels: Mapping[str, str]


class View:
    def __init__(
        self,
        identity: Identity,
        store: ObjectStore,
        leases: Leases,
        pool: WorkerPool,
        actors: ActorTable,
        groups: GroupTable,
        clients: dict[bytes, Client],
        spawner: SpawnerLink,
        probe: LoopProbe,
        request_stop: Callable[[], None],
    ):
        self._identity = identity
        self._store = store
        self._leases = leases
        self._pool = pool
        self._actors = actors
        self._groups = groups
        self._clients = clients
        self._spawner = spawner
        self._probe = probe
        self._request_stop = request_stop
        self._started = time.time()

    def questions(self) -> dict[str, Question]:
        """What clients may ask, by name."""
        return {
            "nodes": self._ask_nodes,
            "resources": self._ask_resources,
            "status": self._ask_status,
            "stop": self._ask_stop,
            "get_actor": self._ask_get_actor,
            "named_actors": self._ask_named_actors,
            "await_actor": self._ask_await_actor,
            "actor_info": self._ask_actor_info,
            "placement_groups": self._ask_groups,
            "get_placement_group": self._ask_get_group,
            "await_placement_group": self._ask_await_group,
        }

    def request_stop(self) -> None:
        self._request_stop()

    def status(self) -> dict[str, Any]:
        figures = self._store.figures()
        own, free = self._leases.capacity.own()
        total = {name: amount / UNIT for name, amount in own.items() if not name.startswith("node:")}
        used = {name: (own[name] - free[name]) / UNIT for name in total}
        return {
            "cluster": self._identity.cluster,
            "node": self._identity.node,
            "node_id": self._identity.node_id,
            "version": __version__,
            "address": self._identity.address,
            "pid": os.getpid(),
            "epoch": self._identity.epoch,
            "uptime_s": time.time() - self._started,
            "state": "RECOVERING" if figures["recovering"] else "READY",
            "resources": {"total": total, "used": used},
            "gpus": {"ids": self._leases.capacity.ids, "unknown": self._leases.gpus_unknown},
            "nodes": 1,
            "workers": len(self._pool.workers),
            "actors": sum(1 for r in self._actors.records.values() if r.state != "dead"),
            "objects": figures["objects"],
            "leases": len(self._leases.leases),
            "demands": sum(d.count for d in self._leases.demands.values())
            + len(self._leases.actors)
            + len(self._leases.groups),
            "drivers": sum(1 for c in self._clients.values() if c.kind == "driver" and not c.detached),
            "spawner_pid": self._spawner.spawner_pid,
            "store": {"used_bytes": figures["used"], "total_bytes": figures["size"], **figures},
            "storage": {"kind": self._identity.storage, "state": "ok"},
            "loop": {
                "longest_callback_ms": self._probe.longest_ms,
                "longest_wait_for_cpu_ms": self._probe.longest_wait_ms,
            },
        }

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {
                "NodeID": self._identity.node_id,
                "Alive": True,
                "NodeManagerAddress": self._identity.node_ip,
                "NodeManagerHostname": socket.gethostname(),
                "NodeManagerPort": int(self._identity.address.rpartition(":")[2]),
                "NodeName": self._identity.node,
                "ObjectStoreSocketName": os.path.join(self._identity.run_dir, "control.sock"),
                "Resources": {name: amount / UNIT for name, amount in self._leases.capacity.own()[0].items()},
                "Labels": dict(self._identity.labels),
                "alive": True,
            }
        ]

    async def _ask_nodes(self, client: Client | None, args: dict[str, Any]) -> Any:
        return self.nodes()

    async def _ask_resources(self, client: Client | None, args: dict[str, Any]) -> Any:
        total, free = self._leases.capacity.own()
        available = {name: amount / UNIT for name, amount in free.items() if amount > 0}
        return {"total": {name: amount / UNIT for name, amount in total.items()}, "available": available}

    async def _ask_status(self, client: Client | None, args: dict[str, Any]) -> Any:
        return self.status()

    async def _ask_stop(self, client: Client | None, args: dict[str, Any]) -> Any:
        self._request_stop()
        return True

    async def _ask_get_actor(self, client: Client | None, args: dict[str, Any]) -> Any:
        record = self._actors.by_name(args["name"], args["namespace"])
        if record is None:
            raise Refusal(
                f"there is no actor named {args['name']!r} in namespace {args['namespace']!r}; names "
                "are only seen in their own namespace"
            )
        return _describe(record.spec)

    async def _ask_named_actors(self, client: Client | None, args: dict[str, Any]) -> Any:
        return self._actors.named()

    async def _ask_await_actor(self, client: Client | None, args: dict[str, Any]) -> Any:
        return await self._actors.settled(bytes.fromhex(args["id"]))

    async def _ask_groups(self, client: Client | None, args: dict[str, Any]) -> Any:
        """All of them, or the one of this id; with the nodes of their bundles."""
        found = self._groups.table(bytes.fromhex(args.get("id", "")))
        for group in found.values():
            node = self._identity.node_id if group["state"] != "PENDING" else ""
            group["bundles_to_node_id"] = dict.fromkeys(group["bundles"], node)
        return found

    async def _ask_get_group(self, client: Client | None, args: dict[str, Any]) -> Any:
        record = self._groups.by_name(args["name"], args["namespace"])
        if record is None:
            raise Refusal(
                f"there is no placement group named {args['name']!r} in namespace {args['namespace']!r}; names are "
                "only seen in their own namespace"
            )
        return record.spec.id.hex()

    async def _ask_await_group(self, client: Client | None, args: dict[str, Any]) -> Any:
        return await self._groups.settled(bytes.fromhex(args["id"]))

    async def _ask_actor_info(self, client: Client | None, args: dict[str, Any]) -> Any:
        record = self._actors.records.get(bytes.fromhex(args["id"]))
        if record is None:
            raise Refusal(f"the actor {args['id']} is not known")
        return _describe(record.spec)


def _describe(spec: m.ActorSpec) -> dict[str, Any]:
    """All that a handle is made of; the methods in a form that JSON takes."""
    return {
        "id": spec.id.hex(),
        "class_name": spec.class_name,
        "methods": base64.b64encode(msgspec.msgpack.encode(spec.methods)).decode(),
        "max_pending_calls": spec.max_pending_calls,
    }
