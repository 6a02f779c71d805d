"""A member's connection to the head: joins, reports, passes on what clients say, and knows when it must stop actors.

Nothing is queued while the head is away: when the node registers again it tells all that it has, and its clients do. A
question waits and is asked again. The guard (``policy/liveness.py``) says until when restartable actors may run without
a word of the head; the spawner keeps that deadline, as it is not stopped when the daemon is.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import random
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from noded.node.orders import NodeOrders
from noded.policy.liveness import Guard
from noded.spawner.protocol import AWAY
from noded.wire import cluster_messages as c
from noded.wire import messages as m
from noded.wire.dial import says
from noded.wire.handshake import HandshakeError
from noded.wire.loop_link import LoopLink

log = logging.getLogger("noded.head_link")

_PAUSES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_REFUSED_PAUSE = 0.2
"""At most, where nobody listens: that costs nobody anything, and who does next is to be found soon."""
_REPORT_SECONDS = 0.1
_GREETING_SECONDS = 10.0
_NEWS_SECONDS = 10.0
_SILENT_SECONDS = 6.0


class JoinError(RuntimeError):
    """The head does not take this node; the text says why and what to do."""


class Node(Protocol):
    """What the link needs of the node."""

    def register(self) -> c.Register:
        """All that the head is to know."""

    def on_registered(self, message: c.Registered) -> None: ...

    def on_declared_dead(self, reason: str) -> None:
        """This start of the node is over: end all, and start anew."""

    def on_head_lost(self, reason: str) -> None:
        """It has been away for longer than the node waits."""

    def amounts(self) -> tuple[dict[str, int], dict[str, int], int]:
        """(total, available, how many wait)"""

    def guard(self, until: float) -> None:
        """Have the spawner stop the restartable actors at this time of CLOCK_MONOTONIC."""


class HeadLink:
    """``dial(address, target)``; ``until``: the guard's deadline that holds already."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        address: str,
        dial: Callable[[str, str], Awaitable[socket.socket]],
        node: Node,
        *,
        until: float | None,
        head_grace: float,
        epoch: int = 0,
    ):
        self.address = address
        self.orders: NodeOrders
        self.epoch = epoch
        """Of the head: the highest that was seen."""
        self._journalled = False
        self.registered = False
        self.away_since = 0.0
        self.problem = ""
        """Why there is no connection."""
        self._loop = loop
        self._dial = dial
        self._node = node
        self._link: LoopLink | None = None
        self._guard = Guard(time.monotonic(), head_grace, until)
        self._seq = itertools.count(1)
        self._number = itertools.count(1)
        self._asked: dict[int, tuple[c.AskHead, bytes, asyncio.Future[Any]]] = {}
        self._total: dict[str, int] = {}
        self._available: dict[str, int] = {}
        self._waiting = -1
        self._beat_seconds = 1.0
        self._last_beat = 0.0
        self._report_soon = False
        self._tasks: list[asyncio.Task[None]] = []
        self._joined: asyncio.Future[c.Registered] | None = None
        self._stopping = False
        self._first = True
        self._register_seq = 0
        self._last_word = 0.0
        """When the head has last said anything."""

    # ------------------------------------------------------------ life

    async def obtain_number(self, name: str, cluster: str, wait: Callable[[str], None]) -> dict[str, Any]:
        """Before anything else, the first time: the node's number and the cluster's id. ``wait(problem)`` is told while
        the head cannot be reached. Raises JoinError.
        """
        attempt = 0
        told = 0.0
        while True:
            try:
                return await self._ask_once("number", {"name": name, "cluster": cluster})
            except HandshakeError as refusal:
                raise JoinError(f"the head at {self.address} does not let this node in: {refusal}") from None
            except (OSError, TimeoutError) as problem:
                if time.monotonic() - told > _NEWS_SECONDS:
                    told = time.monotonic()
                    wait(f"{problem}")
            await asyncio.sleep(_PAUSES[min(attempt, len(_PAUSES) - 1)])
            attempt += 1

    async def _ask_once(self, what: str, arguments: dict[str, Any]) -> dict[str, Any]:
        sock = await self._dial(self.address, "head")
        answered: asyncio.Future[dict[str, Any]] = self._loop.create_future()

        def on_message(link: LoopLink, message: Any, payload: Any) -> None:
            if answered.done() or not isinstance(message, c.HeadAnswer):
                return
            value = json.loads(bytes(payload))
            if message.ok:
                answered.set_result(value)
            else:
                answered.set_exception(JoinError(str(value)))

        def on_closed(link: LoopLink) -> None:
            if not answered.done():
                answered.set_exception(ConnectionError(link.close_reason or "the connection was closed"))

        link = LoopLink(self._loop, sock, c.decode_from_head, on_message, on_closed, "the head")
        link.send(c.AskHead(0, what), json.dumps(arguments).encode())
        try:
            return await asyncio.wait_for(answered, _GREETING_SECONDS)
        finally:
            link.close()

    async def join(self) -> None:
        """Register for the first time, or go on without where the node has been a member before. Raises JoinError."""
        self._tasks.append(self._loop.create_task(self._keep_connected(), name="head link"))
        self._tasks.append(self._loop.create_task(self._keep_reporting(), name="reports"))
        self._joined = self._loop.create_future()
        try:
            await asyncio.wait_for(self._joined, _GREETING_SECONDS)
        except TimeoutError:
            log.warning("the head at %s does not answer (%s): going on, and trying again", self.address, self.problem)
        finally:
            self._joined = None
            self._first = False

    async def stop(self, reason: str) -> None:
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._link is not None:
            if reason:
                self._link.send(c.Leave(reason))
                self._link.flush()
            self._link.close()
        for _, _, future in self._asked.values():
            if not future.done():
                future.set_exception(ValueError("the node is stopping"))

    async def _keep_connected(self) -> None:
        attempt = 0
        while not self._stopping:
            tried = time.monotonic()
            longest = _PAUSES[-1]
            try:
                closed = await self._connect()
                attempt = 0
                await closed
                self.problem = "the connection was closed"
            except ConnectionRefusedError as refusal:
                self.problem, longest = f"{refusal}", _REFUSED_PAUSE
                self._guard.refused(tried, time.monotonic())
                self._tell_guard()
            except (OSError, HandshakeError, TimeoutError) as problem:
                self.problem = f"{problem}" or type(problem).__name__
                if await asyncio.to_thread(says, self.address, AWAY):
                    self.problem = "its daemon is away"
                    self._guard.refused(tried, time.monotonic())
                    self._tell_guard()
            if self._guard.lost(time.monotonic()):
                self._node.on_head_lost(self.problem)
                return
            pause = min(longest, _PAUSES[min(attempt, len(_PAUSES) - 1)])
            await asyncio.sleep(pause * (0.5 + random.random()))
            attempt += 1

    async def _connect(self) -> asyncio.Future[None]:
        sock = await self._dial(self.address, "head")
        closed: asyncio.Future[None] = self._loop.create_future()

        def on_closed(link: LoopLink) -> None:
            if not closed.done():
                closed.set_result(None)
            if self._link is link:
                self._link, self.registered = None, False
                self.away_since = time.monotonic()
                self.problem = link.close_reason or "the connection was closed"

        link = self._link = LoopLink(self._loop, sock, c.decode_from_head, self._on_message, on_closed, "the head")
        self._last_word = time.monotonic()
        message = self._node.register()
        message.head_epoch, message.head_journalled = self.epoch, self._journalled
        self._total, self._available = dict(message.total), dict(message.available)
        self._register_seq = next(self._seq)
        self._guard.sent(self._register_seq, time.monotonic())
        link.send(message)
        return closed

    # ------------------------------------------------------------ from the head

    def _on_message(self, link: LoopLink, message: Any, payload: Any) -> None:
        if link is not self._link:
            return
        self._last_word = time.monotonic()
        kind = type(message)
        if kind is c.ForClient:
            self.orders.to_client(message.prefix, m.decode_to_client(memoryview(message.header)), bytes(payload))
        elif kind is c.Beat:
            self._guard.acked(message.seq, time.monotonic())
            self._tell_guard()
            self._journalled = message.journalled
        elif kind is c.Nodes:
            self.orders.nodes(b"", message, c.decode_entries(payload))
        elif kind is c.HostActor:
            self.orders.host_actor(message, bytes(payload))
        elif kind is c.StopActor:
            self.orders.stop_actor(message)
        elif kind is c.ReserveGroup:
            self.orders.reserve_group(message)
        elif kind is c.ReleaseGroup:
            self.orders.release_group(message)
        elif kind is c.ClaimActors:
            self.orders.claim_actors(message.ids)
        elif kind is c.EndJob:
            self.orders.end_job(message)
        elif kind is c.HeadAnswer:
            self._on_answer(message, payload)
        elif kind is c.Registered:
            self._on_registered(link, message)
        elif kind is c.NotRegistered:
            self._on_refused(link, message)
        elif kind is c.Drain:
            self.orders.drain(message.on)
        elif kind is c.StopNode:
            self.orders.stop(message.reason)
        elif kind is c.AskNode:
            task = self._loop.create_task(self._answer(link, message, bytes(payload)), name=f"answer {message.what}")
            self._tasks.append(task)
            task.add_done_callback(self._tasks.remove)

    def _on_registered(self, link: LoopLink, message: c.Registered) -> None:
        if message.epoch < self.epoch:
            log.error("the head at %s has epoch %s, we have seen %s: it is not the head any more", self.address,
                      message.epoch, self.epoch)  # fmt: skip
            link.close()
            return
        self.epoch, self._journalled = message.epoch, False
        self._beat_seconds = message.beat_seconds
        self.registered, self.problem = True, ""
        self._guard.acked(self._register_seq, time.monotonic())
        self._tell_guard()
        self._node.on_registered(message)
        for ask, payload, _ in self._asked.values():
            link.send(ask, payload)
        if self._joined is not None and not self._joined.done():
            self._joined.set_result(message)

    def _on_refused(self, link: LoopLink, message: c.NotRegistered) -> None:
        self.problem = message.reason
        if message.dead:
            self._node.on_declared_dead(message.reason)
        elif self._joined is not None and not self._joined.done() and self._first:
            self._joined.set_exception(
                JoinError(f"the head at {self.address} does not take this node: {message.reason}")
            )
        else:
            log.error("the head at %s does not take this node: %s", self.address, message.reason)
        link.close()

    async def _answer(self, link: LoopLink, message: c.AskNode, payload: bytes) -> None:
        try:
            value, ok = await self.orders.ask(message.what, json.loads(payload or b"{}")), True
        except ValueError as refusal:
            value, ok = str(refusal), False
        except Exception as error:
            log.exception("the question %r of the head cannot be answered", message.what)
            value, ok = f"{type(error).__name__}: {error}", False
        link.send(c.Asked(message.request, ok), json.dumps(value).encode())

    # ------------------------------------------------------------ reports

    async def _keep_reporting(self) -> None:
        while not self._stopping:
            await asyncio.sleep(min(_REPORT_SECONDS, self._beat_seconds))
            now = time.monotonic()
            self._mind_silence(now)
            if self._link is None or not self.registered:
                continue
            total, available, waiting = self._node.amounts()
            changed = total != self._total or available != self._available or waiting != self._waiting
            if not changed and now - self._last_beat < self._beat_seconds:
                continue
            self._last_beat = now
            report = c.Report(next(self._seq), waiting=waiting)
            if total != self._total:
                report.total = {
                    n: total.get(n, 0) for n in {*total, *self._total} if total.get(n) != self._total.get(n)
                }
            if available != self._available:
                report.available = {n: a for n, a in available.items() if self._available.get(n) != a}
            self._total, self._available, self._waiting = total, available, waiting
            self._guard.sent(report.seq, now)
            self._link.send(report)
            if self._guard.lost(now):
                self._node.on_head_lost("it does not answer")
                return

    def _mind_silence(self, now: float) -> None:
        """A connection that is broken without a word is slow to come back by itself: try another."""
        if self._link is not None and now - self._last_word > _SILENT_SECONDS:
            self._last_word = now
            self._link.close_reason = f"it has not answered for {_SILENT_SECONDS:g} s"
            self._link.close()

    def _tell_guard(self) -> None:
        self._node.guard(self._guard.until)

    @property
    def frozen(self) -> bool:
        return self._guard.frozen(time.monotonic())

    # ------------------------------------------------------------ to the head

    def _send(self, message: Any, payload: bytes = b"") -> None:
        if self._link is not None and self.registered:
            self._link.send(message, payload)

    def from_client(self, prefix: bytes, message: Any, payload: bytes) -> None:
        self._send(c.ForHead(prefix, m.encode(message)), payload)

    async def ask(self, what: str, arguments: dict[str, Any]) -> Any:
        """Waits for a head that is away. Raises ValueError with its words."""
        number = next(self._number)
        ask = c.AskHead(number, what)
        payload = json.dumps(arguments).encode()
        future: asyncio.Future[Any] = self._loop.create_future()
        self._asked[number] = ask, payload, future
        self._send(ask, payload)
        try:
            return await future
        finally:
            self._asked.pop(number, None)

    def _on_answer(self, message: c.HeadAnswer, payload: Any) -> None:
        found = self._asked.get(message.request)
        if found is None or found[2].done():
            return
        value = bytes(payload) if message.binary else json.loads(bytes(payload))
        if message.ok:
            found[2].set_result(value)
        else:
            found[2].set_exception(ValueError(value))

    def actor_started(self, id_: bytes, instance: int, worker: str, pid: int) -> None:
        self._tell_guard()  # first: the head may rely on its being kept
        self._send(c.ActorStarted(id_, instance, worker, pid))

    def actor_never(self, id_: bytes, instance: int, reason: str, kind: str) -> None:
        self._send(c.ActorNever(id_, instance, reason, kind))

    def actor_exited(self, id_: bytes, instance: int, death: m.Death | None) -> None:
        self._send(c.ActorExited(id_, instance, death))

    def actor_hosted(self, actor: c.HostedActor) -> None:
        self._send(c.ActorHosted(actor))

    def group_reserved(self, id_: bytes, attempt: int, ok: bool, reason: str) -> None:
        self._send(c.GroupReserved(id_, attempt, ok, reason))

    def group_released(self, id_: bytes, attempt: int) -> None:
        self._send(c.GroupReleased(id_, attempt))

    def unheld(self, id_: bytes) -> None:
        self._send(c.ActorUnheld(id_))

    def creator_gone(self, prefix: bytes) -> None:
        self._send(c.CreatorGone(prefix))

    def job_gone(self, job: str, reason: str) -> None:
        self._send(c.JobGone(job, reason))

    def store_package(self, uri: str, data: bytes) -> None:
        self._send(c.StorePackage(uri), data)

    async def admit_job(self, job: str, config: m.JobConfig) -> str:
        answer: str = await self.ask("admit_job", {"job": job, "config": c.as_text(config)})
        return answer

    async def load_package(self, uri: str) -> bytes:
        """Raises LookupError."""
        try:
            found: bytes = await self.ask("package", {"uri": uri})
        except ValueError:
            raise LookupError(uri) from None
        return found

    def watch_group(self, prefix: bytes, id_: bytes) -> None:
        self.from_client(prefix, m.WatchGroup(id_), b"")
