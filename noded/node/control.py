"""The control server: clients attach, are told apart from each other, and their messages go to the
components.

Only ``on_message`` knows which message is whose business; no decision is taken here but who may attach and
who is dead.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import msgspec

from noded import ids
from noded.node.actor_host import NodeActorHost
from noded.node.directory import Directory
from noded.node.lease_router import LeaseRouter
from noded.node.leases import Leases
from noded.node.ledger import Ledger
from noded.node.object_store import ObjectStore
from noded.node.session import Client, Session
from noded.node.workers import WorkerPool
from noded.wire import messages as m

log = logging.getLogger("noded.control")

REMOTE_GRACE = 30.0
"""A driver on a host without a node is taken for dead when it has been away for so many seconds."""
EXPLAIN_SECONDS = 0.03

Question = Callable[[Client | None, dict[str, Any]], Coroutine[Any, Any, Any]]


class ClientRecord(msgspec.Struct, array_like=True):
    """What the ledger keeps of a client."""

    kind: str
    pid: int
    start_time: int
    job: str
    detached: bool = False
    remote: bool = False
    version: int = 0
    """Of the control messages it speaks; 0: not known."""


class Refusal(ValueError):
    """A question is answered with an error; the text goes to the one who asked."""


def unusable(version: int) -> str:
    """Why who has this version of the control messages cannot be a client here, and what to do; "" when it can."""
    if m.OLDEST_PROTOCOL <= version <= m.PROTOCOL_VERSION:
        return ""
    if version > m.PROTOCOL_VERSION:
        return "the daemon is the older one: upgrade noded where the daemon runs, and restart it, which keeps all work"
    return (
        f"this daemon also takes protocol {m.OLDEST_PROTOCOL}, but nothing older: install the same version of noded "
        "there; what has been running since before is ended by `noded stop`, or goes on with the daemon it started with"
    )


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 when it is gone. Tells a process from a later one
    with the same pid.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


class HeadRequests(Protocol):
    """What clients ask of the head, here or elsewhere."""

    def from_client(self, prefix: bytes, message: Any, payload: bytes) -> None: ...

    def creator_gone(self, prefix: bytes) -> None: ...


class ControlServer:
    """``welcome(client)`` makes the answer to an attach; ``on_driver(client)`` and ``on_driver_gone(client)``
    mark a job's begin and end. ``on_dial(client, message)``: it wants to talk to a worker of another node.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        ledger: Ledger,
        clients: dict[bytes, Client],
        store: ObjectStore,
        leases: Leases,
        pool: WorkerPool,
        host: NodeActorHost,
        router: LeaseRouter,
        directory: Directory,
        head: HeadRequests,
        *,
        node: int,
        python: str,
        arena_fd: int,
        welcome: Callable[[Client], m.Welcome],
        on_driver: Callable[[Client], Coroutine[Any, Any, None]],
        on_driver_gone: Callable[[Client], None],
        on_detach: Callable[[Client], Coroutine[Any, Any, None]],
        on_dial: Callable[[Client, m.Dial], None],
        on_package: Callable[[str, bytes], None],
        questions: dict[str, Question],
    ):
        self._loop = loop
        self._ledger = ledger
        self.clients = clients
        self._store = store
        self._leases = leases
        self._pool = pool
        self._host = host
        self._router = router
        self._directory = directory
        self._head = head
        self._node = node
        self._python = python
        self._arena_fd = arena_fd
        self._welcome = welcome
        self._on_driver = on_driver
        self._on_driver_gone = on_driver_gone
        self._on_detach = on_detach
        self._questions = questions
        self._sessions: set[Session] = set()
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._snapshots: dict[bytes, set[bytes]] = {}
        self._explaining: dict[int, asyncio.Future[bytes]] = {}
        self._explain_number = 0
        self._leaving: set[bytes] = set()
        """Drivers that are being seen off."""
        self._orders: dict[bytes, list[m.CancelFor]] = {}
        """For clients that are away."""
        self._handlers: dict[type, Callable[[Client, Any, Any], None]] = {
            m.Told: self._on_told,
            m.ClassDef: lambda c, msg, _: leases.on_class(c, msg),
            m.Demand: lambda c, msg, _: leases.on_demand(c, msg),
            m.LeaseDone: self._on_lease_done,
            m.Blocked: lambda c, msg, _: self._on_blocked(c, True),
            m.Unblocked: lambda c, msg, _: self._on_blocked(c, False),
            m.Refs: self._on_refs,
            m.Sealed: self._on_sealed,
            m.Pending: lambda c, msg, _: store.on_pending(c, msg),
            m.Subscribe: lambda c, msg, _: store.on_subscribe(c, msg),
            m.RegionWant: lambda c, msg, _: store.space.on_want(c, msg),
            m.RegionDone: lambda c, msg, _: store.space.on_done(c, msg),
            m.Vacated: lambda c, msg, _: store.spilling.on_vacated(c, msg),
            m.SealedOnDisk: self._on_sealed_on_disk,
            m.Unreadable: lambda c, msg, _: store.spilling.on_unreadable(c, msg),
            m.CreateActor: self._to_head,
            m.WatchActor: self._to_head,
            m.KillActor: self._to_head,
            m.ActorUp: self._on_actor_up,
            m.CreateGroup: self._to_head,
            m.RemoveGroup: self._to_head,
            m.WatchGroup: self._to_head,
            m.ActorFailed: self._to_head,
            m.ActorLeaves: self._to_head,
            m.CancelRef: self._on_cancel_ref,
            m.StreamOver: lambda c, msg, _: store.on_stream_over(c, msg),
            m.Gone: lambda c, msg, _: store.on_gone(c, msg),
            m.Package: lambda c, msg, payload: on_package(msg.uri, bytes(payload)),
            m.JobReady: self._on_job_ready,
            m.KillTask: self._on_kill_task,
            m.Dial: lambda c, msg, _: on_dial(c, msg),
            m.Explained: self._on_explained,
            m.Holds: self._on_explained,
            m.Tasks: self._on_explained,
            m.Publish: self._on_publish,
            m.SealAt: self._on_seal_at,
            m.ForkHold: self._on_fork_hold,
            m.Detach: lambda c, msg, _: self._on_leaving(c),
            m.WorkerIdle: self._on_worker_leaves,
        }

    # ------------------------------------------------------------ connections

    def start(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._loop.add_reader(listener.fileno(), self._on_connect)

    def stop(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
            self._listener = None
        for session in list(self._sessions):
            session.flush()
            session.close()
        for client in self.clients.values():
            if client.pidfd >= 0:
                self._loop.remove_reader(client.pidfd)
                os.close(client.pidfd)
                client.pidfd = -1
            for fd in client.fork_pipes.values():
                self._loop.remove_reader(fd)
                os.close(fd)
            client.fork_pipes.clear()

    def _on_connect(self) -> None:
        assert self._listener is not None
        for _ in range(64):
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                log.error("cannot accept a connection: %s", error)
                return
            session = Session(self._loop, sock, self.on_message, self._on_closed, local=True)
            if session.uid != os.getuid():
                log.warning("refusing pid %s of uid %s: this node is for uid %s", session.pid, session.uid, os.getuid())
                session.close()
                continue
            self._sessions.add(session)

    def on_remote(self, sock: socket.socket) -> None:
        """A driver of a host without a node; it has proved the token."""
        self._sessions.add(Session(self._loop, sock, self.on_message, self._on_closed, local=False))

    def _on_closed(self, session: Session) -> None:
        """A closed connection alone means: expect it back; of a driver elsewhere for so long as it may take."""
        self._sessions.discard(session)
        client = session.client
        if client is not None and client.session is session:
            client.session = None
            if client.remote:
                self.expect_back(client)
            self._leases.kick()

    def expect_back(self, client: Client) -> None:
        """Nothing but its connection tells of a driver on a host without a node."""

        def look() -> None:
            if client.session is None and self.clients.get(client.prefix) is client:
                log.warning("the driver %s (job %s) has not come back", client.prefix.hex(), client.job)
                self.client_died(client)

        self._loop.call_later(REMOTE_GRACE, look)

    # ------------------------------------------------------------ messages

    def on_message(self, session: Session, message: Any, payload: Any) -> None:
        kind = type(message)
        if kind is m.Attach:
            self._attach(session, message)
            return
        if kind is m.Ask:
            self._ask(session, message, payload)
            return
        client = session.client
        if client is None:
            log.warning("pid %s speaks before it has attached", session.pid)
            session.close()
        elif client.session is session:
            self._handlers[kind](client, message, payload)

    def _on_refs(self, client: Client, message: m.Refs, payload: Any) -> None:
        if not client.told:
            self._snapshots[client.prefix].update(id_ for id_, _ in message.holds)
        self._store.on_refs(client, message)
        self._read_up_to(client, message.seq)

    def _on_sealed(self, client: Client, message: m.Sealed, payload: Any) -> None:
        self._store.on_sealed(client, message)
        self._read_up_to(client, message.seq)

    def _on_sealed_on_disk(self, client: Client, message: m.SealedOnDisk, payload: Any) -> None:
        self._store.spilling.on_sealed(client, message)
        self._read_up_to(client, message.seq)

    def _read_up_to(self, client: Client, seq: int) -> None:
        client.seq = seq
        self._store.progressed(client)
        self._directory.progressed(client)

    def _on_publish(self, client: Client, message: m.Publish, payload: Any) -> None:
        """From a driver without shared memory: this daemon writes for it."""
        if not client.remote or not message.id.startswith(client.prefix):
            return
        self._store.put_for(message.id, payload)
        self._read_up_to(client, message.seq)

    def _on_seal_at(self, client: Client, message: m.SealAt, payload: Any) -> None:
        self._read_up_to(client, message.seq)

    # ------------------------------------------------------------ leases, and what is the head's business

    def _on_lease_done(self, client: Client, message: m.LeaseDone, payload: Any) -> None:
        number = self._router.elsewhere(message.worker)
        if number:
            self._router.forward(number, client, message)
        else:
            self._leases.on_lease_done(client, message.lease, message.retiring)

    def _on_kill_task(self, client: Client, message: m.KillTask, payload: Any) -> None:
        number = self._router.elsewhere(message.worker)
        if number:
            self._router.forward(number, client, message)
        else:
            self._leases.kill_task(client, message)

    def _to_head(self, client: Client, message: Any, payload: Any) -> None:
        self._head.from_client(client.prefix, message, bytes(payload))

    def _on_actor_up(self, client: Client, message: m.ActorUp, payload: Any) -> None:
        self._host.up(message.id)
        self._head.from_client(client.prefix, message, b"")

    def _on_blocked(self, client: Client, blocked: bool) -> None:
        worker = self._pool.by_prefix.get(client.prefix)
        if worker is not None:
            self._leases.on_blocked(worker, blocked)

    def _on_job_ready(self, client: Client, message: m.JobReady, payload: Any) -> None:
        worker = self._pool.by_prefix.get(client.prefix)
        if worker is not None:
            self._pool.on_job_ready(worker, message.job, message.failed)

    def _on_worker_leaves(self, client: Client, message: m.WorkerIdle, payload: Any) -> None:
        worker = self._pool.by_prefix.get(client.prefix)
        if worker is not None:
            self._pool.on_leaving(worker, message.reason)

    def _on_cancel_ref(self, client: Client, message: m.CancelRef, payload: Any) -> None:
        """To the process that submitted the task; when that has ended, so has the task."""
        if self._router.cancel_elsewhere(client, message):
            return
        self.cancel_here(client, message)

    def cancel_here(self, client: Client, message: m.CancelRef) -> None:
        owner = self.clients.get(ids.prefix_of(message.id))
        if owner is None:
            return
        order = m.CancelFor(message.id, message.force, message.recursive, message.origin)
        if owner.session is None or not owner.told:
            self._orders.setdefault(owner.prefix, []).append(order)
        else:
            owner.send(order)

    def _on_fork_hold(self, client: Client, message: m.ForkHold, payload: Any) -> None:
        session = client.session
        assert isinstance(session, Session)
        if not session.link.fds:
            return
        fd = session.link.fds.pop(0)
        if message.token in client.fork_pipes:
            os.close(fd)
            return
        client.fork_pipes[message.token] = fd
        holder = b"fork" + client.prefix + message.token.to_bytes(8, "big")
        self._store.hold_for_fork(holder, message.ids)
        os.set_blocking(fd, False)

        def on_end() -> None:
            self._loop.remove_reader(fd)
            os.close(fd)
            client.fork_pipes.pop(message.token, None)
            self._store.drop_holder(holder, message.ids)

        self._loop.add_reader(fd, on_end)

    # ------------------------------------------------------------ attach

    def _attach(self, session: Session, message: m.Attach) -> None:
        if reason := unusable(message.version):
            self._refuse(session, f"it speaks protocol {message.version}, this daemon {m.PROTOCOL_VERSION}: {reason}")
            return
        session.link.older = message.version < m.PROTOCOL_VERSION
        if session.client is not None:
            self._refuse(session, "it has attached already")
            return
        if message.kind == "tool":
            session.tool = True
            return
        if message.kind == "driver" and not message.prefix:
            session.send(m.Named(ids.new_prefix(self._node)))
            return
        if message.kind not in ("driver", "worker") or len(message.prefix) != ids.PREFIX_SIZE:
            self._refuse(session, f"it attaches as {message.kind!r} with the prefix {message.prefix[:16].hex()!r}")
            return
        if message.kind == "driver" and (reason := self._wrong_python(message.python)):
            self._refuse(session, reason)
            return
        if not session.local and (message.kind != "driver" or ids.node_of(message.prefix) != self._node):
            self._refuse(session, "only a driver of this node may attach from another host")
            return
        client = self.clients.get(message.prefix)
        if client is None:
            if message.kind == "worker":
                worker = self._pool.by_prefix.get(message.prefix)
                if worker is None:
                    self._refuse(session, "this worker is not known here")
                    return
                client = Client(
                    message.prefix, "worker", session.pid, start_time(session.pid), worker.record.job, message.worker
                )
            else:
                pid = session.pid if session.local else 0
                client = Client(message.prefix, "driver", pid, start_time(pid) if pid else 0, message.job)
                client.remote = not session.local
            if message.incarnation:
                client.told = False
                if message.incarnation != self._ledger.incarnation:
                    self._store.expect_makers()
            self.clients[client.prefix] = client
        else:
            client.told = False
        client.version = message.version
        client.config = message.job_config or client.config
        if client.session is not None:
            client.session.close()
        client.session, session.client = session, client
        if not client.told:
            self._snapshots[client.prefix] = set()
            self._store.recovering.add(client.prefix)
        if client.kind == "driver":
            task = self._loop.create_task(self._admit_driver(client, session), name="admit")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._greet(client, session)
            worker = self._pool.by_prefix[client.prefix]
            if worker.record.version != message.version:
                worker.record.version = message.version
                self._pool.save(worker)
            self._pool.on_attached(worker, client, message.job)
            if worker.record.actor:
                self._host.attached(worker, message.actor, message.actor_alive)
            if message.leaving and message.actor is not None:
                self._head.from_client(client.prefix, m.ActorLeaves(message.actor.id, message.leaving), b"")

    def _wrong_python(self, theirs: str) -> str:
        """Values of one minor version cannot be read by another."""
        if theirs.split(".")[:2] == self._python.split(".")[:2] or not theirs:
            return ""
        major, minor = self._python.split(".")[:2]
        return (
            f"this program runs Python {theirs}, the cluster {self._python}: run it with Python {major}.{minor}, as "
            "functions and values of one minor version cannot be read by another"
        )

    def _refuse(self, session: Session, reason: str) -> None:
        session.send(m.Refused(reason))
        session.flush()
        session.close()

    async def _admit_driver(self, client: Client, session: Session) -> None:
        await self._on_driver(client)
        self._save(client)
        self.watch(client)
        if client.session is session:
            self._greet(client, session)

    def _save(self, client: Client) -> None:
        self.save(client)

    def save(self, client: Client) -> None:
        record = ClientRecord(
            client.kind, client.pid, client.start_time, client.job, client.detached, client.remote, client.version
        )
        self._ledger.clients.put(client.prefix, msgspec.msgpack.encode(record))

    def forget(self, client: Client) -> None:
        self._ledger.clients.delete(client.prefix)

    def forget_node(self, number: int) -> None:
        self._ledger.clients.delete(ids.node_prefix(number))

    def _greet(self, client: Client, session: Session) -> None:
        welcome = self._welcome(client)
        welcome.version = client.version  # the newer speaks the older one's
        if client.remote:
            session.send(welcome)
        else:
            session.send_with_fds(welcome, [self._arena_fd])

    def watch(self, client: Client) -> None:
        """Learn of a driver's end from the kernel."""
        if client.pidfd >= 0 or client.remote:
            return
        try:
            client.pidfd = os.pidfd_open(client.pid)
        except OSError:
            self._loop.call_soon(self.client_died, client)
            return
        self._loop.add_reader(client.pidfd, self.client_died, client)

    def _on_told(self, client: Client, message: m.Told, payload: Any) -> None:
        client.seq = max(client.seq, message.seq)
        if client.told:
            return
        client.told, client.last_told, client.queued = True, message, frozenset(message.queued)
        self._store.client_told(client, self._snapshots.pop(client.prefix, set()), message)
        self._store.progressed(client)
        self._directory.progressed(client)
        here = [(lease, worker) for lease, worker in message.leases if not self._router.elsewhere(worker)]
        self._leases.client_told(client, here)
        self._router.client_told(client, [x for x in message.leases if self._router.elsewhere(x[1])])
        if not self._store.recovering_own():
            self._directory.recovered()
        for order in self._orders.pop(client.prefix, ()):
            client.send(order)
        if client.kind == "worker":
            self._on_blocked(client, message.blocked)

    # ------------------------------------------------------------ ends

    def client_died(self, client: Client) -> None:
        """The kernel says that its process has ended."""
        if self.clients.get(client.prefix) is not client:
            return
        if client.pidfd >= 0:
            self._loop.remove_reader(client.pidfd)
            os.close(client.pidfd)
            client.pidfd = -1
        while isinstance(client.session, Session) and not client.session.closed:
            # What it said before it died counts.
            session = client.session
            session.on_readable()
            if client.session is session and not session.closed and not _readable(session.link.sock):
                session.close()
        del self.clients[client.prefix]
        self._snapshots.pop(client.prefix, None)
        self._orders.pop(client.prefix, None)
        self._ledger.clients.delete(client.prefix)
        self._store.client_died(client)
        self._directory.client_died(client.prefix)
        self._leases.client_died(client)
        self._router.client_died(client)
        self._head.creator_gone(client.prefix)
        if client.kind == "driver" and not client.detached:
            self._on_driver_gone(client)

    def _on_leaving(self, client: Client) -> None:
        """A driver leaves in order, once it has what its workers have written."""
        if client.kind != "driver" or client.detached:
            client.send(m.Bye())
        elif client.prefix not in self._leaving:
            self._leaving.add(client.prefix)
            task = self._loop.create_task(self._see_off(client), name="a driver leaves")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _see_off(self, client: Client) -> None:
        try:
            await self._on_detach(client)
        finally:
            self._leaving.discard(client.prefix)
        if self.clients.get(client.prefix) is client:  # else it has died meanwhile
            self._detach(client)

    def _detach(self, client: Client) -> None:
        """What its process still looks at stays held until that ends."""
        client.send(m.Bye())
        client.detached = True
        if client.held or client.fork_pipes:
            self._save(client)
        else:
            self._ledger.clients.delete(client.prefix)
        self._leases.client_died(client)
        self._router.client_died(client)
        if client.remote:
            client.session = None  # it closes its connection when it has our Bye: if we did, it would attach again
            self.client_died(client)
        self._on_driver_gone(client)

    # ------------------------------------------------------------ questions

    async def explain(self, client: Client, id_: bytes) -> dict[str, Any]:
        """What the client that made this id says of it; raises TimeoutError when it does not answer."""
        told: dict[str, Any] = json.loads(
            await self.ask_client(client, lambda number: m.Explain(number, id_), EXPLAIN_SECONDS)
        )
        return told

    async def who_holds(self, client: Client, wanted: list[bytes], seconds: float, *, how: bool) -> dict[str, Any]:
        """What this client says of its holds. Raises TimeoutError."""
        told: dict[str, Any] = json.loads(
            await self.ask_client(client, lambda number: m.WhoHolds(number, wanted, how), seconds)
        )
        return told

    async def ask_client(self, client: Client, question: Callable[[int], Any], seconds: float) -> bytes:
        """What it answers, as JSON: to be decoded off the loop where it may be long. Raises TimeoutError."""
        self._explain_number += 1
        number, future = self._explain_number, self._loop.create_future()
        self._explaining[number] = future
        client.send(question(number))
        try:
            return await asyncio.wait_for(future, seconds)
        finally:
            del self._explaining[number]

    def _on_explained(self, client: Client, message: m.Explained | m.Holds | m.Tasks, payload: Any) -> None:
        future = self._explaining.get(message.request)
        if future is not None and not future.done():
            future.set_result(bytes(payload))

    def retell(self) -> None:
        """The head has lost what clients had told it."""
        for client in self.clients.values():
            if client.kind in ("driver", "worker"):
                client.send(m.Retell())

    def _ask(self, session: Session, message: m.Ask, payload: Any) -> None:
        question = self._questions.get(message.what)

        async def answer() -> None:
            try:
                if question is None:
                    raise Refusal(f"this daemon does not know the question {message.what!r}")
                arguments = json.loads(bytes(payload) or b"{}")
                if not isinstance(arguments, dict):
                    raise Refusal(f"the arguments of {message.what!r} are no JSON object")
                value, ok = await question(session.client, arguments), True
            except ValueError as refusal:  # also what is no JSON
                value, ok = str(refusal), False
            except Exception as error:  # whoever asks waits for an answer, whatever it is
                log.exception("the question %r cannot be answered", message.what)
                value, ok = f"{message.what!r} cannot be answered: {type(error).__name__}: {error}", False
            session.send(m.Answer(message.request, ok), json.dumps(value).encode())

        task = self._loop.create_task(answer(), name=f"ask {message.what}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _readable(sock: socket.socket) -> bool:
    import select

    poller = select.poll()  # select() takes no descriptor over 1023
    poller.register(sock, select.POLLIN)
    return bool(poller.poll(0))
