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
from noded.node.leases import Leases
from noded.node.ledger import Ledger
from noded.node.object_store import ObjectStore
from noded.node.session import Client, Session
from noded.node.workers import Worker, WorkerPool
from noded.wire import messages as m

log = logging.getLogger("noded.control")

Question = Callable[[Client | None, dict[str, Any]], Coroutine[Any, Any, Any]]


class ClientRecord(msgspec.Struct, array_like=True):
    """What the ledger keeps of a client."""

    kind: str
    pid: int
    start_time: int
    job: str
    detached: bool = False


class Refusal(ValueError):
    """A question is answered with an error; the text goes to the one who asked."""


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 when it is gone. Tells a process from a later one
    with the same pid.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


class ActorRequests(Protocol):
    """What clients ask of the head's actor table."""

    def create(self, prefix: bytes, spec: m.ActorSpec, payload: bytes) -> None: ...

    def watch(self, prefix: bytes, id_: bytes, *, was: bool, may_come: bool) -> None: ...

    def kill(self, id_: bytes, no_restart: bool, reason: str) -> None: ...

    def up(self, id_: bytes) -> None: ...

    def constructor_failed(self, id_: bytes, error: bytes) -> None: ...

    def leaves(self, id_: bytes, reason: str) -> None: ...

    def creator_died(self, prefix: bytes) -> None: ...


class GroupRequests(Protocol):
    """What clients ask of the head's placement group table."""

    def create(self, prefix: bytes, spec: m.GroupSpec) -> None: ...

    def remove(self, prefix: bytes, id_: bytes) -> None: ...

    def watch(self, prefix: bytes, id_: bytes) -> None: ...


class ControlServer:
    """``welcome(client)`` makes the answer to an attach; ``on_driver(client)`` and ``on_driver_gone(client)``
    mark a job's begin and end.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        ledger: Ledger,
        clients: dict[bytes, Client],
        store: ObjectStore,
        leases: Leases,
        pool: WorkerPool,
        actors: ActorRequests,
        groups: GroupRequests,
        *,
        arena_fd: int,
        welcome: Callable[[Client], m.Welcome],
        on_driver: Callable[[Client], Coroutine[Any, Any, None]],
        on_driver_gone: Callable[[Client], None],
        on_detach: Callable[[Client], None],
        adopt_actor: Callable[[Worker, m.ActorSpec, bool], None],
        actor_attached: Callable[[Worker, bool], None],
        on_package: Callable[[str, bytes], None],
        questions: dict[str, Question],
    ):
        self._loop = loop
        self._ledger = ledger
        self.clients = clients
        self._store = store
        self._leases = leases
        self._pool = pool
        self._actors = actors
        self._arena_fd = arena_fd
        self._welcome = welcome
        self._on_driver = on_driver
        self._on_driver_gone = on_driver_gone
        self._on_detach = on_detach
        self._adopt_actor = adopt_actor
        self._actor_attached = actor_attached
        self._questions = questions
        self._sessions: set[Session] = set()
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._snapshots: dict[bytes, set[bytes]] = {}
        self._orders: dict[bytes, list[m.CancelFor]] = {}
        """For clients that are away."""
        self._handlers: dict[type, Callable[[Client, Any, Any], None]] = {
            m.Told: self._on_told,
            m.ClassDef: lambda c, msg, _: leases.on_class(c, msg),
            m.Demand: lambda c, msg, _: leases.on_demand(c, msg),
            m.LeaseDone: lambda c, msg, _: leases.on_lease_done(c, msg.lease, msg.retiring),
            m.Blocked: lambda c, msg, _: self._on_blocked(c, True),
            m.Unblocked: lambda c, msg, _: self._on_blocked(c, False),
            m.Refs: self._on_refs,
            m.Sealed: self._on_sealed,
            m.Pending: lambda c, msg, _: store.on_pending(c, msg),
            m.Subscribe: lambda c, msg, _: store.on_subscribe(c, msg),
            m.RegionWant: lambda c, msg, _: store.on_region_want(c, msg),
            m.RegionDone: lambda c, msg, _: store.on_region_done(c, msg),
            m.CreateActor: lambda c, msg, payload: actors.create(c.prefix, msg.spec, bytes(payload)),
            m.WatchActor: lambda c, msg, _: actors.watch(
                c.prefix, msg.id, was=msg.was, may_come=ids.prefix_of(msg.id) in clients or bool(store.recovering)
            ),
            m.KillActor: lambda c, msg, _: actors.kill(msg.id, msg.no_restart, msg.reason or "noded.kill() was called"),
            m.ActorUp: lambda c, msg, _: actors.up(msg.id),
            m.CreateGroup: lambda c, msg, _: groups.create(c.prefix, msg.spec),
            m.RemoveGroup: lambda c, msg, _: groups.remove(c.prefix, msg.id),
            m.WatchGroup: lambda c, msg, _: groups.watch(c.prefix, msg.id),
            m.ActorFailed: lambda c, msg, payload: actors.constructor_failed(msg.id, bytes(payload)),
            m.ActorLeaves: lambda c, msg, _: actors.leaves(msg.id, msg.reason),
            m.CancelRef: self._on_cancel_ref,
            m.StreamOver: lambda c, msg, _: store.on_stream_over(c, msg),
            m.Package: lambda c, msg, payload: on_package(msg.uri, bytes(payload)),
            m.JobReady: self._on_job_ready,
            m.KillTask: lambda c, msg, _: leases.kill_task(c, msg),
            m.ForkHold: self._on_fork_hold,
            m.Detach: lambda c, msg, _: self._detach(c),
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

    def _on_closed(self, session: Session) -> None:
        """A closed connection alone means: expect it back."""
        self._sessions.discard(session)
        if session.client is not None and session.client.session is session:
            session.client.session = None
            self._leases.kick()

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
        client.seq = message.seq
        self._store.progressed(client)

    def _on_sealed(self, client: Client, message: m.Sealed, payload: Any) -> None:
        self._store.on_sealed(client, message)
        client.seq = message.seq
        self._store.progressed(client)

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
        assert session is not None
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
        if message.version != m.PROTOCOL_VERSION:
            self._refuse(
                session,
                f"it speaks protocol {message.version}, this daemon {m.PROTOCOL_VERSION}: install the "
                "same version of noded",
            )
            return
        if session.client is not None:
            self._refuse(session, "it has attached already")
            return
        if message.kind == "tool":
            session.tool = True
            return
        if message.kind not in ("driver", "worker") or len(message.prefix) != ids.PREFIX_SIZE:
            self._refuse(session, f"it attaches as {message.kind!r} with the prefix {message.prefix[:16].hex()!r}")
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
                client = Client(message.prefix, "driver", session.pid, start_time(session.pid), message.job)
            if message.incarnation:
                client.told = False
                if message.incarnation != self._ledger.incarnation:
                    self._store.expect_makers()
            self.clients[client.prefix] = client
        else:
            client.told = False
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
            if message.actor is not None:
                self._adopt_actor(worker, message.actor, message.actor_alive)
            self._pool.on_attached(worker, client, message.job)
            if worker.record.actor:
                self._actor_attached(worker, message.actor is not None)
            if message.leaving and message.actor is not None:
                self._actors.leaves(message.actor.id, message.leaving)

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
        record = ClientRecord(client.kind, client.pid, client.start_time, client.job, client.detached)
        self._ledger.clients.put(client.prefix, msgspec.msgpack.encode(record))

    def _greet(self, client: Client, session: Session) -> None:
        session.send_with_fds(self._welcome(client), [self._arena_fd])

    def watch(self, client: Client) -> None:
        """Learn of a driver's end from the kernel."""
        if client.pidfd >= 0:
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
        client.told = True
        self._store.client_told(client, self._snapshots.pop(client.prefix, set()), message)
        self._store.progressed(client)
        self._leases.client_told(client, message.leases)
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
        while client.session is not None and not client.session.link.closed:
            # What it said before it died counts.
            before = client.session.link
            client.session._on_readable()
            if client.session is not None and client.session.link is before and not _readable(before.sock):
                client.session.close()
        del self.clients[client.prefix]
        self._snapshots.pop(client.prefix, None)
        self._orders.pop(client.prefix, None)
        self._ledger.clients.delete(client.prefix)
        self._store.client_died(client)
        self._leases.client_died(client)
        self._actors.creator_died(client.prefix)
        if client.kind == "driver" and not client.detached:
            self._on_driver_gone(client)

    def _detach(self, client: Client) -> None:
        """A driver leaves in order; what its process still looks at stays held until that ends."""
        if client.kind != "driver" or client.detached:
            client.send(m.Bye())
            return
        self._on_detach(client)
        client.send(m.Bye())
        client.detached = True
        if client.held or client.fork_pipes:
            self._save(client)
        else:
            self._ledger.clients.delete(client.prefix)
        self._leases.client_died(client)
        self._on_driver_gone(client)

    # ------------------------------------------------------------ questions

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
            except (Refusal, UnicodeDecodeError, json.JSONDecodeError) as refusal:
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
