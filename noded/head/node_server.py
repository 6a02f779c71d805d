"""The head's end of the connections that nodes keep to it: who registers, what they say, and telling them things.

Only here is it known which message is whose business. A node that is asked for something while it is not connected has
missed it; what it must not miss is told again when it registers (``ActorPlacement.registered`` and the like).
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Awaitable
from typing import Any, Protocol

from noded.head.actor_placement import ActorPlacement
from noded.head.group_placement import GroupPlacement
from noded.head.nodes import NodeRecord, NodeTable
from noded.wire import cluster_messages as c
from noded.wire import messages as m
from noded.wire.loop_link import LoopLink

log = logging.getLogger("noded.node_server")


_ASK_SECONDS = 10.0


class AskError(ValueError):
    """A question is answered with an error; the text goes to the one who asked."""


class Business(Protocol):
    """The rest of the head, as nodes need it."""

    def from_client(self, prefix: bytes, message: Any, payload: bytes) -> None:
        """A client of a node says something that is the head's business."""

    async def answer(self, what: str, arguments: dict[str, Any], number: int) -> Any:
        """A question of a node or a client of it; bytes are sent as they are. Raises ValueError."""

    def unheld(self, id_: bytes) -> None: ...

    def creator_gone(self, prefix: bytes) -> None: ...

    def job_gone(self, job: str, reason: str) -> None: ...

    def jobs_of(self, number: int, jobs: list[str], left: list[str]) -> None:
        """The drivers of that node are of these jobs; other jobs that had theirs there have ended. ``left``: those
        whose drivers have left in order.
        """

    def all_jobs(self) -> list[str]: ...

    def adopt_group(self, spec: m.GroupSpec) -> None:
        """A node keeps bundles of it, and the head before us may have lost what it had written of it."""

    def journalled(self) -> bool:
        """Part of what was written is on the head's host only."""

    def actors_of(self, number: int) -> list[bytes]:
        """Living actors that clients of this node have made, as far as they end with their handles."""

    def store_package(self, uri: str, data: bytes) -> None: ...

    def greeting(self) -> c.Registered:
        """Without number."""

    def cannot_join(self, message: c.Register) -> str:
        """Why a node must not: its version, another cluster."""


class RemoteNode:
    """``NodeApi`` over a connection."""

    def __init__(self, link: LoopLink):
        self.link = link
        self._questions: dict[int, asyncio.Future[Any]] = {}
        self._asked = 0

    def host_actor(self, message: c.HostActor, payload: bytes) -> None:
        self.link.send(message, payload)

    def stop_actor(self, message: c.StopActor) -> None:
        self.link.send(message)

    def reserve_group(self, message: c.ReserveGroup) -> None:
        self.link.send(message)

    def release_group(self, message: c.ReleaseGroup) -> None:
        self.link.send(message)

    def to_client(self, prefix: bytes, message: Any, payload: bytes) -> None:
        self.link.send(c.ForClient(prefix, m.encode(message)), payload)

    def end_job(self, message: c.EndJob) -> None:
        self.link.send(message)

    def claim_actors(self, ids: list[bytes]) -> None:
        self.link.send(c.ClaimActors(ids))

    def drain(self, on: bool) -> None:
        self.link.send(c.Drain(on))

    def stop(self, reason: str) -> None:
        self.link.send(c.StopNode(reason))
        self.link.flush()

    def nodes(self, frame: bytes, message: c.Nodes, entries: list[c.NodeEntry]) -> None:
        self.link.send_frame(frame)

    async def ask(self, what: str, arguments: dict[str, Any]) -> Any:
        """Raises ValueError with its words, or TimeoutError."""
        self._asked += 1
        future = self._questions[self._asked] = asyncio.get_running_loop().create_future()
        number = self._asked
        self.link.send(c.AskNode(number, what), json.dumps(arguments).encode())
        try:
            return await asyncio.wait_for(future, _ASK_SECONDS)
        finally:
            self._questions.pop(number, None)

    def answered(self, message: c.Asked, payload: Any) -> None:
        future = self._questions.get(message.request)
        if future is not None and not future.done():
            value = json.loads(bytes(payload) or b"null")
            if message.ok:
                future.set_result(value)
            else:
                future.set_exception(ValueError(value))

    def closed(self) -> None:
        for future in self._questions.values():
            if not future.done():
                future.set_exception(ValueError("its connection was closed"))


class NodeServer:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        nodes: NodeTable,
        actors: ActorPlacement,
        groups: GroupPlacement,
        business: Business,
    ):
        self._loop = loop
        self._nodes = nodes
        self._actors = actors
        self._groups = groups
        self._business = business
        self._sessions: dict[LoopLink, _Session] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    def on_socket(self, sock: socket.socket) -> None:
        """A node has proved the token."""
        if self._stopped:
            sock.close()
            return
        link = LoopLink(self._loop, sock, c.decode_to_head, self._on_message, self._on_closed, "a node that joins")
        self._sessions[link] = _Session(link)

    def stop(self, reason: str) -> None:
        """The head ends in order: so do all nodes."""
        self._stopped = True
        for session in list(self._sessions.values()):
            if session.record is not None:
                session.api.stop(reason)
        for link in list(self._sessions):
            link.flush()
            link.close()

    def close(self) -> None:
        """The head goes, and will be back: the nodes wait."""
        self._stopped = True
        for link in list(self._sessions):
            link.close()

    def _on_closed(self, link: LoopLink) -> None:
        session = self._sessions.pop(link, None)
        if session is not None:
            session.api.closed()
            if session.record is not None:
                self._nodes.disconnected(session.record, session.api, silent=link.silent)

    def _spawn(self, coroutine: Awaitable[None], name: str) -> None:
        task: asyncio.Task[None] = self._loop.create_task(coroutine, name=name)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_message(self, link: LoopLink, message: Any, payload: Any) -> None:
        session = self._sessions[link]
        if session.registering:
            session.waiting.append((message, payload))
            return
        kind = type(message)
        if kind is c.AskHead:
            self._spawn(self._answer(session, message, bytes(payload)), f"ask {message.what}")
        elif kind is c.Register:
            session.registering = True
            self._spawn(self._register(session, message), "register")
        elif session.record is None:
            log.warning("closing the connection of a node that has not registered")
            link.close()
        else:
            self._handle(session, session.record, message, payload)

    async def _register(self, session: _Session, message: c.Register) -> None:
        link = session.link
        try:
            if reason := self._business.cannot_join(message):
                log.warning("node %s (%s) cannot join: %s", message.name, message.address, reason)
                self._refuse(link, c.NotRegistered(reason))
                return
            if reason := self._nodes.refuse(message):
                log.info("node %s (%s) comes back, but was declared dead: %s", message.name, message.address, reason)
                self._refuse(link, c.NotRegistered(reason, dead=True))
                return
            known = self._nodes.records.get(message.number)
            before = known.api if known is not None else None
            record = await self._nodes.register(message, session.api)
            if isinstance(before, RemoteNode) and before is not session.api:
                before.link.close()
            if link.closed:
                self._nodes.disconnected(record, session.api)
                return
            session.record = record
            link.who = f"node {record.name}"
            greeting = self._business.greeting()
            greeting.number, greeting.actors = record.number, self._business.actors_of(record.number)
            greeting.jobs = sorted({*self._business.all_jobs(), *message.jobs})
            link.send(greeting)
            self._nodes.tell_all(session.api)
            self._business.jobs_of(record.number, message.jobs, message.left)
            self._actors.registered(record, message.actors, message.deaths)
            for group in message.groups:
                if group.spec is not None and message.head_journalled:
                    self._business.adopt_group(group.spec)
            self._groups.registered(record, message.groups)
            self._nodes.joined(record)
            self._nodes.flush_early()
        finally:
            session.registering = False
            waiting, session.waiting = session.waiting, []
            for inner, payload in waiting:
                if not link.closed:
                    self._on_message(link, inner, payload)

    def _refuse(self, link: LoopLink, message: c.NotRegistered) -> None:
        link.send(message)
        link.flush()
        link.close()

    def _handle(self, session: _Session, record: NodeRecord, message: Any, payload: Any) -> None:
        kind = type(message)
        if kind is c.Report:
            if record.state != "DEAD" and not self._nodes.is_dying(record):
                self._nodes.heard(record, message)
                session.link.send(c.Beat(message.seq, self._business.journalled()))
            else:
                session.link.close()
        elif kind is c.ForHead:
            inner = m.decode_to_daemon(memoryview(message.header))
            self._business.from_client(message.prefix, inner, bytes(payload))
        elif kind is c.ActorStarted:
            self._actors.started(record, message.id, message.instance, message.worker, message.pid)
        elif kind is c.ActorNever:
            self._actors.never(record, message.id, message.instance, message.reason, message.kind)
        elif kind is c.ActorExited:
            self._actors.exited(record, message.id, message.instance, message.death)
        elif kind is c.ActorHosted:
            self._actors.hosted(record, message.actor)
        elif kind is c.ActorUnheld:
            self._business.unheld(message.id)
        elif kind is c.CreatorGone:
            self._business.creator_gone(message.prefix)
        elif kind is c.JobGone:
            self._business.job_gone(message.job, message.reason)
        elif kind is c.GroupReserved:
            self._groups.reserved(record, message)
        elif kind is c.GroupReleased:
            self._groups.released(record, message.id)
        elif kind is c.StorePackage:
            self._business.store_package(message.uri, bytes(payload))
        elif kind is c.Asked:
            session.api.answered(message, payload)
        elif kind is c.Leave:
            self._spawn(self._nodes.left(record, message.reason), "a node leaves")

    async def _answer(self, session: _Session, message: c.AskHead, payload: bytes) -> None:
        number = session.record.number if session.record is not None else 0
        try:
            if session.record is None and message.what != "number":
                raise AskError("register first")
            value, ok = await self._business.answer(message.what, json.loads(payload or b"{}"), number), True
        except ValueError as refusal:
            value, ok = str(refusal), False
        except Exception as error:  # whoever asks waits for an answer, whatever it is
            log.exception("the question %r cannot be answered", message.what)
            value, ok = f"{message.what!r} cannot be answered: {type(error).__name__}: {error}", False
        if isinstance(value, bytes):
            session.link.send(c.HeadAnswer(message.request, ok, True), value)
        else:
            session.link.send(c.HeadAnswer(message.request, ok), json.dumps(value).encode())


class _Session:
    def __init__(self, link: LoopLink):
        self.link = link
        self.api = RemoteNode(link)
        self.record: NodeRecord | None = None
        self.registering = False
        self.waiting: list[tuple[Any, Any]] = []
