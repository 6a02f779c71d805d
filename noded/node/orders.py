"""What the head has this node do: the same whether it is in this process or sends it (``head_link.py``)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import msgspec

from noded import ids
from noded.node.actor_host import NodeActorHost
from noded.node.cluster_view import ClusterView
from noded.node.leases import Leases
from noded.node.session import Client
from noded.node.workers import WorkerPool
from noded.wire import cluster_messages as c
from noded.wire import messages as m

log = logging.getLogger("noded.orders")


_ATTEMPTS_KNOWN = 10_000


class HeadSide(Protocol):
    """What the head is told of groups."""

    def group_reserved(self, id_: bytes, attempt: int, ok: bool, reason: str) -> None: ...

    def group_released(self, id_: bytes, attempt: int) -> None: ...


class NodeOrders:
    """``on_group_at(message)``: the node itself watches a placement group. ``questions``: what may be asked."""

    def __init__(
        self,
        leases: Leases,
        pool: WorkerPool,
        host: NodeActorHost,
        view: ClusterView,
        clients: dict[bytes, Client],
        head: HeadSide,
        *,
        worker_path: Callable[[str], str],
        on_group_at: Callable[[m.GroupAt], None],
        on_all_nodes: Callable[[], None],
        request_stop: Callable[[str], None],
        claim_actors: Callable[[list[bytes]], None],
        questions: dict[str, Callable[[dict[str, Any]], Coroutine[Any, Any, Any]]],
    ):
        self._leases = leases
        self._pool = pool
        self._host = host
        self._view = view
        self._clients = clients
        self._head = head
        self._worker_path = worker_path
        self._on_group_at = on_group_at
        self._on_all_nodes = on_all_nodes
        self._request_stop = request_stop
        self.claim_actors = claim_actors
        self._questions = questions
        self._attempts: dict[bytes, int] = {}
        """Group -> the last attempt of the head to place it here."""
        self._specs: dict[bytes, m.GroupSpec] = {}
        """Of groups that have bundles here, for a head that has lost them."""

    # ------------------------------------------------------------ actors and groups

    def host_actor(self, message: c.HostActor, payload: bytes) -> None:
        self._host.host(message, payload)

    def stop_actor(self, message: c.StopActor) -> None:
        self._host.stop(message)

    def reserve_group(self, message: c.ReserveGroup) -> None:
        id_ = message.spec.id
        self._attempts[id_] = message.attempt
        self._specs[id_] = message.spec
        if len(self._attempts) > _ATTEMPTS_KNOWN:
            del self._attempts[next(iter(self._attempts))]
        if self._leases.is_closing(id_):
            self._head.group_reserved(id_, message.attempt, False, "what it had here before is not free yet")
            return
        held = self._leases.capacity.groups.get(id_)
        missing = {i: b for i, b in message.bundles.items() if held is None or i not in held.bundles}
        if held is not None:
            held.attempt = message.attempt
        if not missing:
            self._head.group_reserved(id_, message.attempt, True, "")
            return
        self._leases.reserve_group(
            id_,
            missing,
            message.spec.strategy,
            message.spec.job,
            lambda: self._head.group_reserved(id_, message.attempt, True, ""),
            lambda reason: self._head.group_reserved(id_, message.attempt, False, reason),
            attempt=message.attempt,
            wait=message.wait,
        )

    def release_group(self, message: c.ReleaseGroup) -> None:
        """Of an attempt; a later one that was made since is not touched, unless the group is gone."""
        if not message.removed and self._attempts.get(message.id, 0) > message.attempt:
            return
        if message.removed:
            self._specs.pop(message.id, None)
        self._leases.release_group(
            message.id,
            lambda: self._head.group_released(message.id, message.attempt),
            removed=message.removed,
        )

    def forget_waiting(self) -> None:
        """Before it registers: the head, which may be another one that counts its attempts anew, asks again."""
        self._leases.groups = []

    def held_groups(self) -> list[c.HeldGroup]:
        groups = self._leases.capacity.groups
        self._specs = {id_: spec for id_, spec in self._specs.items() if id_ in groups}
        return [c.HeldGroup(g.id, g.attempt, sorted(g.bundles), self._specs.get(g.id)) for g in groups.values()]

    # ------------------------------------------------------------ clients and jobs

    def to_client(self, prefix: bytes, message: Any, payload: bytes) -> None:
        """Something that the head says to a client of this node, or to the node itself."""
        if ids.is_node_prefix(prefix):
            if type(message) is m.GroupAt:
                self._on_group_at(message)
            return
        client = self._clients.get(prefix)
        if client is None:
            return
        if type(message) is m.ActorAt and message.worker:
            message = self._placed(message)
        client.send(message, payload)

    def _placed(self, message: m.ActorAt) -> m.ActorAt:
        """The actor's worker by its path, where it is one of this node's."""
        if ids.node_of_worker(message.worker) != self._view.number:
            return message
        return msgspec.structs.replace(message, path=self._worker_path(message.worker), address="")

    def end_job(self, message: c.EndJob) -> None:
        spare = set(message.spare)
        self._pool.end_job(message.job, lambda worker: worker.record.actor in spare)

    # ------------------------------------------------------------ the node

    def drain(self, on: bool) -> None:
        self._leases.draining = on
        self._leases.kick()

    def stop(self, reason: str) -> None:
        log.info("stopping: %s", reason)
        self._request_stop(reason)

    def nodes(self, frame: bytes, message: c.Nodes, entries: list[c.NodeEntry]) -> None:
        self._view.update(entries, message.all)
        if message.all:
            self._on_all_nodes()

    async def ask(self, what: str, arguments: dict[str, Any]) -> Any:
        question = self._questions.get(what)
        if question is None:
            raise ValueError(f"a node does not know the question {what!r}")
        return await question(arguments)
