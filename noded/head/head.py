"""The head: the tables of the cluster, and what nodes and clients ask of them.

It knows its own node as one among others, whose ``NodeApi`` is in this process. Everything here is either durable or
told again by nodes and clients after a restart.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

import msgspec

from noded import ids
from noded.head.actor_placement import ActorPlacement
from noded.head.actors import ActorRecord, ActorTable
from noded.head.group_placement import GroupPlacement
from noded.head.jobs import JobTable
from noded.head.logs import HeadLogs
from noded.head.node_server import NodeServer
from noded.head.nodes import NodeRecord, NodeTable
from noded.head.placement_groups import TABLE as GROUPS
from noded.head.placement_groups import GroupTable
from noded.head.stacks import ask_stacks
from noded.head.state import Emit, HeadState
from noded.head.storage import Put, Storage, StorageError
from noded.head.storage.timed import TimedStorage
from noded.head.why import HeadWhy
from noded.lifecycle import no_collections
from noded.policy import deaths
from noded.policy.holdings import NODE_SECONDS, merge, wanted_of
from noded.resources import UNIT
from noded.version import __version__
from noded.wire import cluster_messages as c
from noded.wire import messages as m

log = logging.getLogger("noded.head")

CLUSTER = "cluster"
BEAT_SECONDS = 1.0
_LOOK_PART = 0.1
"""At most about this part of the time is spent looking for room because nodes have told of some."""
_END_SECONDS = 10.0
"""So long a clean end waits for a storage that cannot be written."""
Question = Callable[[dict[str, Any], int], Awaitable[Any]]


class Head:
    """``may_create(prefix)``, ``client_known(prefix)``: of clients of the head's own node. ``packages``: store and read
    packages of runtime environments. ``emit``: write down what happens. ``on_write(seconds)``: a write of state
    has become durable.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        storage: Storage,
        *,
        cluster: str,
        head_grace: float,
        python: str,
        may_create: Callable[[bytes], bool],
        local_clients: Callable[[bytes], bool],
        store_package: Callable[[str, bytes], None],
        read_package: Callable[[str], Awaitable[bytes]],
        emit: Emit,
        on_write: Callable[[float], None],
    ):
        self.storage = storage = TimedStorage(storage, on_write)
        self.cluster = cluster
        self.cluster_id = ""
        self.epoch = storage.epoch
        self._head_grace = head_grace
        self._python = python
        self._may_create = may_create
        self._local_clients = local_clients
        self._store_package = store_package
        self._read_package = read_package
        self.jobs = JobTable(storage)
        self.nodes = NodeTable(storage, on_alive=self._on_alive, on_dead=self._on_dead, on_room=self._on_room)
        self.logs = HeadLogs(self.nodes)
        self.group_places = GroupPlacement(self.nodes)
        self.actor_places = ActorPlacement(
            self.nodes, group_nodes=self.group_places.nodes_of, job_config=lambda job: self.jobs.get(job)
        )
        self.actors = ActorTable(storage, self.notify)
        self.actors.host = self.actor_places
        self.actor_places.table = self.actors
        self.actor_places.on_adopted = self._adopted_actor
        self.groups = GroupTable(
            storage,
            self.group_places,
            lambda prefix, message: self.notify(prefix, message),
            may_create=self._may_make_group,
            outlives=lambda id_: self.is_detached(id_) and self.actors.records[id_].state != "dead",
        )
        self.state = HeadState(
            self.nodes, self.actors, self.actor_places, self.groups, self.group_places, self.jobs, emit
        )
        self.server = NodeServer(loop, self.nodes, self.actor_places, self.group_places, self)
        self.own: NodeRecord
        self._driver_jobs: dict[int, set[str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._admitting = 0
        self._swept: set[str] = set()
        self._left: set[str] = set()
        """Jobs whose drivers have left in order while nobody here could be told."""
        """Jobs without a driver whose rest was ended."""
        self._loop = loop
        self._look: asyncio.TimerHandle | None = None
        self._next_look = 0.0
        self._why = HeadWhy(self.nodes, self.actors, self.actor_places, self.groups, self.group_places, self._job_lives)
        self._questions: dict[str, Question] = {
            "number": self._ask_number,
            "admit_job": self._ask_admit_job,
            "package": self._ask_package,
            "nodes": self._ask_nodes,
            "resources": self._ask_resources,
            "get_actor": self._ask_get_actor,
            "named_actors": self._ask_named_actors,
            "await_actor": self._ask_await_actor,
            "actor_info": self._ask_actor_info,
            "placement_groups": self._ask_groups,
            "get_placement_group": self._ask_get_group,
            "await_placement_group": self._ask_await_group,
            "drain": self._ask_drain,
            "memory": self._ask_memory,
            "cluster": self._ask_cluster,
            "job_config": self._ask_job_config,
            "job_lives": self._ask_job_lives,
            "timeline": self._ask_timeline,
            "state": self.state.ask,
            "state_summary": self.state.ask_summary,
            "logs": self.logs.ask,
            "last_words": self.logs.last_words,
            "log_level": self.logs.level,
            "stack": self._ask_stack,
            **self._why.questions(),
        }
        self._handlers: dict[type, Callable[[bytes, Any, bytes], None]] = {
            m.CreateActor: lambda p, msg, payload: self.actors.create(p, msg.spec, payload, msg.again),
            m.WatchActor: self._on_watch_actor,
            m.KillActor: lambda p, msg, _: self.actors.kill(
                msg.id, msg.no_restart, msg.reason or "noded.kill() was called", deaths.KILLED
            ),
            m.ActorUp: lambda p, msg, _: self.actors.up(msg.id),
            m.ActorFailed: lambda p, msg, payload: self.actors.constructor_failed(msg.id, payload),
            m.ActorLeaves: lambda p, msg, _: self.actors.leaves(msg.id, msg.reason),
            m.CreateGroup: lambda p, msg, _: self.groups.create(p, msg.spec),
            m.RemoveGroup: lambda p, msg, _: self.groups.remove(p, msg.id),
            m.WatchGroup: lambda p, msg, _: self.groups.watch(p, msg.id),
        }

    # ------------------------------------------------------------ life

    async def restore(self, own: int, cluster_id: str) -> int:
        """Read the tables; the number of the head's own node (``own``, unless that is 0)."""
        with no_collections():
            return await self._restore(own, cluster_id)

    async def _restore(self, own: int, cluster_id: str) -> int:
        known = await self.storage.load(CLUSTER)
        self.cluster_id = known["id"].decode() if "id" in known else cluster_id
        if "id" not in known:
            await self.storage.write([Put(CLUSTER, "id", self.cluster_id.encode())])
        await self.nodes.restore(own)
        if not own:
            own = await self.nodes.new_number("head")
        self.groups.restore(await self.storage.load(GROUPS), own)
        await self.jobs.restore()
        await self.actors.restore()
        return own

    def start(
        self, register: c.Register, api: Any, actors: list[c.HostedActor], groups: list[c.HeldGroup], jobs: list[str]
    ) -> None:
        """The head's own node is there, with what it has."""
        self.own = self.nodes.register_own(register, api)
        self.nodes.tell_all(api)
        self.group_places.restored()
        self.actor_places.restored()
        self._driver_jobs[self.own.number] = set(jobs)
        self.group_places.registered(self.own, groups)
        self.actor_places.registered(self.own, actors)
        self.groups.resume()
        self.nodes.start()

    async def stop(self, reason: str) -> None:
        """A clean end: all nodes end, and detached state with them."""
        self.server.stop(reason)
        try:
            async with asyncio.timeout(_END_SECONDS):
                await self.nodes.stop()
                await self.actors.stop(end_detached=True)
                await self.groups.stop(end=True)
                await self.jobs.stop()
        except TimeoutError:
            why = self.storage.health.why or "it takes too long"
            log.error("what was to end with this head is still in its storage, which cannot be written: %s", why)
        except StorageError as error:
            log.error("what was to end with this head is still in its storage: %s", error)

    async def leave(self) -> None:
        self.server.close()
        await self.nodes.stop()

    # ------------------------------------------------------------ telling clients

    def notify(self, prefix: bytes, message: m.ActorAt | m.GroupAt, payload: bytes = b"") -> None:
        self.nodes.to_client(prefix, ids.node_of(prefix), message, payload)

    # ------------------------------------------------------------ from nodes

    def from_client(self, prefix: bytes, message: Any, payload: bytes) -> None:
        handler = self._handlers.get(type(message))
        if handler is None:
            log.warning("a client says %s, which is not the head's business", type(message).__name__)
            return
        handler(prefix, message, payload)

    def _on_watch_actor(self, prefix: bytes, message: m.WatchActor, payload: bytes) -> None:
        maker = ids.prefix_of(message.id)
        number = ids.node_of(maker)
        if number == self.own.number:
            may_come = self._local_clients(maker)
        else:
            node = self.nodes.records.get(number)
            may_come = node is not None and node.state != "DEAD"
        self.actors.watch(prefix, message.id, was=message.was, may_come=may_come)

    async def answer(self, what: str, arguments: dict[str, Any], number: int) -> Any:
        question = self._questions.get(what)
        if question is None:
            raise ValueError(f"this head does not know the question {what!r}")
        return await question(arguments, number)

    async def ask(self, what: str, arguments: dict[str, Any]) -> Any:
        """By the head's own node."""
        return await self.answer(what, arguments, self.own.number)

    def unheld(self, id_: bytes) -> None:
        self.actors.released(id_)

    def creator_gone(self, prefix: bytes) -> None:
        self.actors.creator_died(prefix)

    def actors_of(self, number: int) -> list[bytes]:
        return [r.spec.id for r in self.actors.made_on(number) if not r.spec.detached and r.state != "dead"]

    def store_package(self, uri: str, data: bytes) -> None:
        self._store_package(uri, data)

    def greeting(self) -> c.Registered:
        return c.Registered(0, self.cluster_id, self.epoch, self.own.number, BEAT_SECONDS, head_grace=self._head_grace)

    def cannot_join(self, message: c.Register) -> str:
        if message.version != c.CLUSTER_VERSION or message.noded != __version__:
            return (
                f"it runs noded {message.noded} (protocol {message.version}), the head {__version__} "
                f"(protocol {c.CLUSTER_VERSION}): install the same version on all nodes"
            )
        if message.python.split(".")[:2] != self._python.split(".")[:2]:
            return (
                f"it runs Python {message.python}, the head {self._python}: values of one cannot be read by the other; "
                "use the same minor version of Python on all nodes"
            )
        if message.cluster != self.cluster:
            return (
                f"it is to be a node of the cluster {message.cluster!r}, this is the head of {self.cluster!r}: start "
                f"it with --cluster {self.cluster}"
            )
        if message.head_epoch > self.epoch:
            return f"it has seen a head with epoch {message.head_epoch}, this one has {self.epoch} and is out of date"
        if message.cluster_id != self.cluster_id:
            return "it belonged to another cluster of this name: stop it with `noded stop` and start it again"
        return ""

    # actor_started and so on: the own node's words

    def actor_started(self, id_: bytes, instance: int, worker: str, pid: int) -> None:
        self.actor_places.started(self.own, id_, instance, worker, pid)

    def actor_never(self, id_: bytes, instance: int, reason: str, kind: str) -> None:
        self.actor_places.never(self.own, id_, instance, reason, kind)

    def actor_exited(self, id_: bytes, instance: int, death: m.Death | None) -> None:
        self.actor_places.exited(self.own, id_, instance, death)

    def actor_hosted(self, actor: c.HostedActor) -> None:
        self.actor_places.hosted(self.own, actor)

    def group_reserved(self, id_: bytes, attempt: int, ok: bool, reason: str) -> None:
        self.group_places.reserved(self.own, c.GroupReserved(id_, attempt, ok, reason))

    def group_released(self, id_: bytes, attempt: int) -> None:
        self.group_places.released(self.own, id_)

    def watch_group(self, prefix: bytes, id_: bytes) -> None:
        self.groups.watch(prefix, id_)

    async def load_package(self, uri: str) -> bytes:
        return await self._package_of_others(uri)

    # ------------------------------------------------------------ jobs

    async def admit_job(self, job: str, config: m.JobConfig, number: int = 0) -> str:
        number = number or self.own.number
        config.node = number
        self._admitting += 1
        try:
            job = await self.jobs.admit(job, config)
            self._driver_jobs.setdefault(number, set()).add(job)
        finally:
            self._admitting -= 1
        return job

    def job_gone(self, job: str, reason: str) -> None:
        for jobs in self._driver_jobs.values():
            jobs.discard(job)
        self.end_job(job, reason)

    def jobs_of(self, number: int, jobs: list[str], left: list[str]) -> None:
        self._left = self._left.union(left) & self.jobs.known()
        before = self._driver_jobs.get(number, set())
        self._driver_jobs[number] = set(jobs)
        for job in before - set(jobs):
            self.end_job(job, "" if job in self._left else "its driver ended while its node was away")
        for job in set(jobs) - self.jobs.known():
            self._learn_job(number, job)

    def end_job(self, job: str, reason: str) -> None:
        """``reason``: empty when its driver has left in order."""
        self.jobs.ended(job, reason)
        self._left.discard(job)
        self.actors.job_ended(job)
        self.groups.job_ended(job)
        spare = [r.spec.id for r in self.actors.records.values() if r.spec.detached and r.state != "dead"]
        for node in self.nodes.records.values():
            if node.api is not None:
                node.api.end_job(c.EndJob(job, spare))
        if self.actors.has_detached(job):  # they may restart, and need its import path then
            self.jobs.lives_on(job)
        else:
            self.jobs.over(job)

    def _job_lives(self, job: str) -> tuple[int, str] | None:
        """The number of its driver's node (0: that has ended) and what it runs; None: nothing of it lives."""
        config = self.jobs.get(job)
        number = next((number for number, jobs in self._driver_jobs.items() if job in jobs), 0)
        return (number, config.entrypoint if config is not None else "") if number or config is not None else None

    def present_jobs(self) -> set[str]:
        return {job for jobs in self._driver_jobs.values() for job in jobs}

    def all_jobs(self) -> list[str]:
        return sorted(self.jobs.known() | self.present_jobs())

    def adopt_group(self, spec: m.GroupSpec) -> None:
        self.groups.adopt(spec)

    def journalled(self) -> bool:
        return self.storage.health.journalled > 0

    # What a head that was lost had written last may be lost with it: the nodes know.

    def _learn_job(self, number: int, job: str) -> None:
        """A node has something of a job that is in no storage."""

        async def learn() -> None:
            api = self.nodes.records[number].api
            text = await api.ask("job_config", {"job": job}) if api is not None else ""
            if text:
                await self.jobs.admit(job, c.job_config_of(text))

        self._spawn(learn(), f"learn job {job}")

    def _adopted_actor(self, record: ActorRecord) -> None:
        """A node hosts an actor that is in no storage."""
        number = record.node
        if record.spec.job not in self.jobs.known():
            self._learn_job(number, record.spec.job)

        async def learn() -> None:
            api = self.nodes.records[number].api
            if api is not None:
                payload = base64.b64decode(await api.ask("actor_payload", {"id": record.spec.id.hex()}))
                if payload and record.state != "dead":
                    record.payload = payload
                    self.actors.save(record)

        if record.spec.max_restarts:
            self._spawn(learn(), "learn an actor")

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        def over(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if task.cancelled() or (error := task.exception()) is None:
                return
            if isinstance(error, (ValueError, TimeoutError)):
                log.info("%s: %s", name, error)  # that node has gone: it tells again when it is back
            else:
                log.error("%s failed", name, exc_info=error)

        task = self._loop.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(over)

    def is_detached(self, actor: bytes) -> bool:
        record = self.actors.records.get(actor)
        return record is not None and record.spec.detached

    def sweep(self, *, settled: bool) -> None:
        """Now and then. ``settled``: all clients of the own node have told."""
        if not settled or self.nodes.waiting_for_nodes or self._admitting:
            return
        self.actors.forget_uncreated(_Known(self._local_clients, self.own.number, self.nodes))
        for job in self.jobs.known() - self.present_jobs():
            if job not in self._swept:
                self._swept.add(job)
                self.end_job(job, "" if job in self._left else "its driver ended while the head was away")
            elif not self.actors.has_detached(job):
                self.jobs.over(job)

    def sweep_groups(self) -> None:
        if not self.nodes.waiting_for_nodes:
            self.groups.sweep(self.present_jobs())

    def _may_make_group(self, prefix: bytes) -> bool:
        number = ids.node_of(prefix)
        if number == self.own.number:
            return self._may_create(prefix)
        node = self.nodes.records.get(number)
        return node is not None and node.state != "DEAD"

    # ------------------------------------------------------------ nodes come and go

    def _on_alive(self, node: NodeRecord) -> None:
        self._on_room()

    def _on_room(self) -> None:
        """Looked at at once, or soon: many nodes may tell of room, and a look costs where much waits."""
        if self._look is None:
            pause = self._next_look - time.monotonic()
            if pause > 0:
                self._look = self._loop.call_later(pause, self._look_for_room)
            else:
                self._look_for_room()

    def _look_for_room(self) -> None:
        self._look = None
        began = time.monotonic()
        self.group_places.kick()
        self.actor_places.kick()
        ended = time.monotonic()
        self._next_look = ended + (ended - began) / _LOOK_PART

    def _on_dead(self, node: NodeRecord) -> None:
        for job in self._driver_jobs.pop(node.number, set()):
            self.end_job(job, f"the driver's node, {node.name}, is dead: {node.reason}")
        self.actor_places.node_died(node)
        self.group_places.node_died(node)

    # ------------------------------------------------------------ questions

    async def _ask_number(self, args: dict[str, Any], number: int) -> Any:
        """Of a node that has none yet."""
        if args.get("cluster") != self.cluster:
            raise ValueError(
                f"this is the head of the cluster {self.cluster!r}, not of {args.get('cluster')!r}: start the node "
                f"with --cluster {self.cluster}"
            )
        return {"number": await self.nodes.new_number(str(args.get("name"))), "cluster_id": self.cluster_id}

    async def _ask_admit_job(self, args: dict[str, Any], number: int) -> Any:
        return await self.admit_job(str(args["job"]), c.job_config_of(args["config"]), number)

    async def _ask_package(self, args: dict[str, Any], number: int) -> Any:
        uri = str(args["uri"])
        try:
            return await self._read_package(uri)
        except LookupError:
            pass
        try:
            return await self._package_of_others(uri, number)
        except LookupError:
            raise ValueError(f"the package {uri} is not in this cluster: submit again") from None

    async def _package_of_others(self, uri: str, asker: int = 0) -> bytes:
        """A head that has started elsewhere has no packages, but nodes that use them have. Raises LookupError."""
        for node in list(self.nodes.records.values()):
            if node.local or node.api is None or node.number == asker:
                continue
            with contextlib.suppress(ValueError, TimeoutError):
                data = base64.b64decode(await node.api.ask("package", {"uri": uri}))
                self._store_package(uri, data)
                return data
        raise LookupError(uri)

    async def _ask_nodes(self, args: dict[str, Any], number: int) -> Any:
        self.nodes.refresh()
        return [describe_node(record) for record in self.nodes.records.values() if record.id]

    async def _ask_resources(self, args: dict[str, Any], number: int) -> Any:
        self.nodes.refresh()
        total: dict[str, int] = {}
        available: dict[str, int] = {}
        for record in self.nodes.alive():
            for name, amount in record.total.items():
                total[name] = total.get(name, 0) + amount
            if record.state == "ALIVE":
                for name, amount in record.available.items():
                    available[name] = available.get(name, 0) + amount
        return {
            "total": _floats(total),
            "available": {name: amount / UNIT for name, amount in available.items() if amount > 0},
        }

    async def _ask_get_actor(self, args: dict[str, Any], number: int) -> Any:
        record = self.actors.by_name(args["name"], args["namespace"])
        if record is None:
            raise ValueError(
                f"there is no actor named {args['name']!r} in namespace {args['namespace']!r}; names "
                "are only seen in their own namespace"
            )
        return describe_actor(record.spec)

    async def _ask_named_actors(self, args: dict[str, Any], number: int) -> Any:
        return self.actors.named()

    async def _ask_await_actor(self, args: dict[str, Any], number: int) -> Any:
        return await self.actors.settled(bytes.fromhex(args["id"]))

    async def _ask_actor_info(self, args: dict[str, Any], number: int) -> Any:
        record = self.actors.records.get(bytes.fromhex(args["id"]))
        if record is None:
            raise ValueError(f"the actor {args['id']} is not known")
        return describe_actor(record.spec)

    async def _ask_groups(self, args: dict[str, Any], number: int) -> Any:
        """All of them, or the one of this id; with the nodes of their bundles."""
        id_ = bytes.fromhex(args.get("id", ""))
        await self.groups.removed(id_)
        found = self.groups.table(id_)
        for name, group in found.items():
            record = self.groups.records[bytes.fromhex(name)]
            nodes = record.nodes if record.state != "pending" else [0] * len(group["bundles"])
            group["bundles_to_node_id"] = {
                index: node.id if (node := self.nodes.records.get(at)) is not None else ""
                for index, at in enumerate(nodes or [0] * len(group["bundles"]))
            }
        return found

    async def _ask_get_group(self, args: dict[str, Any], number: int) -> Any:
        record = self.groups.by_name(args["name"], args["namespace"])
        if record is None:
            raise ValueError(
                f"there is no placement group named {args['name']!r} in namespace {args['namespace']!r}; names are "
                "only seen in their own namespace"
            )
        return record.spec.id.hex()

    async def _ask_await_group(self, args: dict[str, Any], number: int) -> Any:
        return await self.groups.settled(bytes.fromhex(args["id"]))

    async def _ask_drain(self, args: dict[str, Any], number: int) -> Any:
        record = self.nodes.find(str(args["node"]))
        if record is None:
            raise ValueError(
                f"there is no node {args['node']!r} in this cluster: give its id, its name or its address, see "
                "`noded status`"
            )
        self.nodes.drain(record, bool(args.get("on", True)))
        return {"node": record.name, "id": record.id, "state": record.entry().state}

    async def _ask_cluster(self, args: dict[str, Any], number: int) -> Any:
        """For status: the nodes, and what waits at the head."""
        self.nodes.refresh()
        return {
            "nodes": [
                {
                    "name": r.name,
                    "id": r.id,
                    "address": r.address,
                    "state": r.entry().state,
                    "reason": r.reason,
                    "total": _floats(r.total),
                    "used": {n: (a - r.available.get(n, 0)) / UNIT for n, a in r.total.items()},
                    "waiting": r.waiting,
                }
                for r in self.nodes.records.values()
                if r.id
            ],
            "actors_waiting": len(self.actor_places.pending),
            "groups_waiting": len(self.group_places.waiting),
            "actors": sum(1 for r in self.actors.records.values() if r.state != "dead"),
        }

    async def _ask_job_config(self, args: dict[str, Any], number: int) -> Any:
        config = self.jobs.get(str(args["job"]))
        if config is None:
            raise ValueError(f"there is no job {args['job']}")
        return c.as_text(config)

    async def _ask_job_lives(self, args: dict[str, Any], number: int) -> Any:
        """Answered when every node that may have its driver has told."""
        await self.nodes.settled.wait()
        return str(args["job"]) in self.all_jobs()

    async def _ask_timeline(self, args: dict[str, Any], number: int) -> Any:
        """Of all nodes that answer."""
        asked = [node.api.ask("timeline", {}) for node in self.nodes.records.values() if node.api is not None]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        return [event for answer in answers if not isinstance(answer, BaseException) for event in answer]

    async def _ask_stack(self, args: dict[str, Any], number: int) -> Any:
        return await ask_stacks(self.nodes, args)

    async def _ask_memory(self, args: dict[str, Any], number: int) -> Any:
        """Who holds what, on all nodes that answer."""
        wanted = wanted_of(args)
        asked = [record for record in self.nodes.records.values() if record.id and record.state != "DEAD"]

        async def report(record: NodeRecord) -> dict[str, Any]:
            problem = f"it is away: {record.reason}"
            if record.api is not None:
                try:
                    told: dict[str, Any] = await asyncio.wait_for(record.api.ask("memory", args), NODE_SECONDS)
                    return told
                except TimeoutError:
                    problem = f"it has not answered within {NODE_SECONDS:g} s"
                except ValueError as refusal:
                    problem = str(refusal)
            return {"node": record.number, "name": record.name, "id": record.id, "problem": problem}

        return merge(await asyncio.gather(*map(report, asked)), **wanted)


class _Known:
    """Clients that may still create what others wait for: those of the own node, and of other nodes that live."""

    def __init__(self, local: Callable[[bytes], bool], own: int, nodes: NodeTable):
        self._local = local
        self._own = own
        self._nodes = nodes

    def __contains__(self, prefix: object) -> bool:
        assert isinstance(prefix, bytes)
        number = ids.node_of(prefix)
        if number == self._own:
            return self._local(prefix)
        node = self._nodes.records.get(number)
        return node is not None and node.state != "DEAD"


def _floats(amounts: Mapping[str, int]) -> dict[str, float]:
    return {name: amount / UNIT for name, amount in amounts.items()}


def describe_node(record: NodeRecord) -> dict[str, Any]:
    """In Ray's words."""
    alive = record.state != "DEAD"
    return {
        "NodeID": record.id,
        "Alive": alive,
        "NodeManagerAddress": record.ip,
        "NodeManagerHostname": record.hostname,
        "NodeManagerPort": int(record.address.rpartition(":")[2] or 0),
        "NodeName": record.name,
        "ObjectStoreSocketName": f"{record.run_dir}/control.sock" if record.run_dir else "",
        "Resources": _floats(record.total) if alive else {},
        "Labels": dict(record.labels),
        "State": record.entry().state,
        "DeathReason": record.reason if not alive else "",
        "alive": alive,
    }


def describe_actor(spec: m.ActorSpec) -> dict[str, Any]:
    """All that a handle is made of; the methods in a form that JSON takes."""
    return {
        "id": spec.id.hex(),
        "class_name": spec.class_name,
        "methods": base64.b64encode(msgspec.msgpack.encode(spec.methods)).decode(),
        "max_pending_calls": spec.max_pending_calls,
    }
