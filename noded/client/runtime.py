"""The runtime of one client process: builds the parts, owns the lock, attaches to the node, survives the
daemon.

There is at most one per process (``current()``). Drivers make it in ``noded.init``; workers in
``noded.worker.main``.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from noded import exceptions as ex
from noded import ids
from noded.client import metrics, refs
from noded.client.actors import Actors
from noded.client.awaiting import Awaiting
from noded.client.cancels import Cancels
from noded.client.control import TICK, Control
from noded.client.dialer import DaemonDialer
from noded.client.environments import Environments
from noded.client.groups import Groups
from noded.client.interrupts import Interrupts
from noded.client.lineage import Lineage
from noded.client.objects import BATCH, Objects, refs_message
from noded.client.reader import Reader
from noded.client.refs import HoldTable, ObjectRef, Token
from noded.client.space import Space
from noded.client.streams import Streams
from noded.client.tasks import Tasks
from noded.metrics.page import page_path
from noded.shm.arena import Arena
from noded.telemetry import Page, driver_page
from noded.version import __version__
from noded.wire import messages as m

if TYPE_CHECKING:
    from noded.client.remote_driver import Remote
    from noded.client.sites import Sites

SWEEP_SECONDS = 1.0

_numbers = itertools.count(1)
"""Of what this process submits and puts. They go on after a shutdown: refs of before may be around."""
_runtime: Runtime | None = None


def current() -> Runtime | None:
    return _runtime


def set_current(runtime: Runtime | None) -> None:
    global _runtime
    _runtime = runtime


_auto_init: Callable[[], Runtime] | None = None


def set_auto_init(init: Callable[[], Runtime]) -> None:
    """The API's ``init()``: the first remote call starts a private node, as users expect."""
    global _auto_init
    _auto_init = init


def runtime() -> Runtime:
    """The current one; made now if there is none."""
    found = current()
    if found is None:
        assert _auto_init is not None
        found = _auto_init()
    return found


class Runtime:
    """``attach_extra`` fills in what only this kind of client says when it attaches, ``retell_extra`` sends what else
    it has to tell (an attach may wait long for its answer); ``on_message`` gets what only this kind understands.
    """

    def __init__(
        self,
        kind: str,
        run_dir: str,
        *,
        prefix: bytes,
        job_config: m.JobConfig | None,
        job: str = "",
        grace: float = 60.0,
        attach_extra: Callable[[m.Attach], None] = lambda attach: None,
        on_message: Callable[[Any, Any], None] = lambda message, payload: None,
        on_lost: Callable[[str], None] = lambda reason: None,
        retell_extra: Callable[[], None] = lambda: None,
        tick: Callable[[], bool] = lambda: False,
        remote: Remote | None = None,
        page: Page | None = None,
        worker: str = "",
    ):
        refs.own_prefix = prefix
        self.remote = remote
        self.kind = kind
        self._worker = worker
        self.run_dir = run_dir
        self.prefix = prefix
        self.pid = os.getpid()
        self.job = job
        self.job_config = job_config
        self.namespace = job_config.namespace if job_config is not None else ""
        self.incarnation = b""
        self.epoch = 0
        self.node = 0
        """The number of our node."""
        self.node_id = ""
        self.node_ip = ""
        self.address = ""
        self.web_address = ""
        self.cluster = ""
        self.blocked = False
        self.page: Page = page or Page()
        """Given to a worker; that of a driver moves to where its node says, if it is on one."""
        self.lock = threading.RLock()
        self.holds = HoldTable()
        self.reader = Reader()
        self.interrupts = Interrupts(self.lock, self._on_interrupt, Token.__del__.__code__)
        self._attach_extra = attach_extra
        self._on_message = on_message
        self._on_lost = on_lost
        self._retell_extra = retell_extra
        self._extra_tick = tick
        self.next_seq = _numbers.__next__
        self._asked: dict[int, tuple[m.Ask, bytes]] = {}
        self._answers: dict[int, tuple[bool, Any]] = {}
        self._fork_pipes: dict[int, tuple[int, list[bytes]]] = {}
        self._fork_write_end = -1
        self._packages: dict[str, bytes] = {}
        """On their way to the daemon."""
        self._next_sweep = 0.0
        self._away = False
        """Nobody but the helper read at its last tick."""
        self.closed = False
        self._detached = False
        self.lost_reason = ""
        self.control = Control(
            remote.address if remote is not None else os.path.join(run_dir, "control.sock"),
            self.lock,
            attach=self._attach,
            on_welcome=self._on_welcome,
            retell=self._retell,
            handle=self._handle,
            tick=self._tick,
            holds_something=lambda: bool(self.holds.holds),
            on_lost=self._lost,
            grace=grace,
            name="noded-steward" if kind == "worker" else "noded-helper",
            connect=(lambda timeout: remote.connect(timeout=min(timeout, 5.0))) if remote is not None else None,
            on_named=self._on_named,
        )
        self.dialer = DaemonDialer(self.control)
        self.holds.on_first = self.control.stir
        self.arena: Arena
        self.space: Space
        self.objects: Objects
        self.tasks: Tasks
        self.actors: Actors
        self.groups: Groups
        self.lineage: Lineage
        self.streams: Streams
        self.awaiting: Awaiting
        self.cancels: Cancels
        self.environments = Environments(self._send_package)
        self.sites: Sites | None = None
        """The lines that have made its refs; where that is recorded."""
        self._pinned: list[Any] = []
        """What left in a pickle of the user's: kept as long as this process is connected."""
        self._handlers: dict[type, Callable[[Any, Any], None]] = {
            m.Grant: lambda msg, _: self.tasks.on_grant(msg),
            m.Recall: lambda msg, _: self.tasks.on_recall(msg),
            m.Unschedulable: lambda msg, _: self.tasks.on_unschedulable(msg),
            m.WorkerDied: lambda msg, _: self.tasks.on_worker_died(msg),
            m.Vacate: lambda msg, _: self.objects.vacate_locked(msg, self.tasks.under_way),
            m.OnDisk: lambda msg, _: self.objects.on_disk(msg),
            m.DiskRegion: lambda msg, _: self.space.on_file(msg),
            m.Region: lambda msg, _: self.space.on_region(msg),
            m.RegionFailed: lambda msg, _: self.space.on_failed(msg),
            m.Ready: lambda msg, _: self.objects.on_ready(msg),
            m.Lost: lambda msg, _: self.objects.on_lost(msg),
            m.ActorAt: lambda msg, payload: self.actors.on_actor_at(msg, payload),
            m.GroupAt: lambda msg, _: self.groups.on_group_at(msg),
            m.Answer: self._on_answer,
            m.Bye: self._on_bye,
            m.CancelFor: lambda msg, _: self.cancels.on_cancel_for(msg),
            m.Exists: lambda msg, _: self.objects.on_exists(msg),
            m.Value: lambda msg, payload: self.objects.on_value(msg, payload),
            m.Dialed: lambda msg, _: self.dialer.on_dialed(msg),
            m.Retell: lambda msg, _: self._retell_head(),
            m.Explain: lambda msg, _: self._explain(msg),
            m.WhoHolds: lambda msg, _: self._tell_holds(msg),
            m.WhatTasks: lambda msg, _: self._tell_tasks(msg),
            m.Rebuild: lambda msg, _: self.lineage.on_rebuild(msg),
        }

    # ------------------------------------------------------------ life

    def start(self, timeout: float) -> None:
        """Attach to the daemon; afterwards everything works. Raises LocalDaemonDiedError."""
        self.control.start(timeout)

    def give_up(self) -> None:
        """It could not be started: leave nothing open."""
        self.closed = True
        self.control.stop()
        self.reader.close()
        if self.remote is not None:
            self.remote.close()

    def detach(self, timeout: float = 2.0) -> None:
        """Leave in order: the daemon answers once it has passed on the last output of the job."""
        with self.lock:
            self._pinned.clear()
            self.objects.flush_refs_locked()
            self.space.leave()
            self.control.send(m.Detach())
            self.control.flush()
        self.control.wake()
        self.reader.wait(lambda: self._detached or self.control.lost, _deadline(timeout), lambda: None)

    def stop(self) -> None:
        """Close everything. Refs that are still around stay harmless objects."""
        self.closed = True
        refs.hooks.forget(self._pin)
        self.interrupts.uninstall()
        self.control.stop()
        # Other threads may wait in get() or wait(): they are told, and are to be out of the reader before it is closed.
        self.control.lost = self.control.lost or "noded.shutdown() was called in this process"
        self._lost(self.control.lost)
        alone = self.reader.role.acquire(timeout=2)
        with self.lock:
            self.tasks.close()
            for fd, _ in self._fork_pipes.values():
                os.close(fd)
            self._fork_pipes.clear()
            self.holds.collect()
            self.page.move("")
            if self.remote is None:
                metrics.let_go()
            if self.remote is not None:
                self.remote.close()
            else:
                self.arena.close(unmap=not self.holds.holds)
            if alone:
                self.reader.close()

    # ------------------------------------------------------------ attach

    def _attach(self) -> m.Attach:
        attach = m.Attach(
            version=m.PROTOCOL_VERSION,
            kind=self.kind,
            prefix=self.prefix,
            pid=self.pid,
            job=self.job,
            python=sys.version.split()[0],
            job_config=self.job_config,
            incarnation=self.incarnation,
        )
        self._attach_extra(attach)
        return attach

    @property
    def worker_id(self) -> str:
        """Of this process, as lists, logs and errors have it."""
        return self._worker or self.prefix.hex()

    def _move_page(self, path: str) -> None:
        """To where this run of the node keeps them; what was counted before counts there as well."""
        with self.lock:
            try:
                self.page.move(path)
            except OSError as error:  # a full disk must not keep a program from working
                print(f"noded: what this program submits is counted by itself alone: {error}", file=sys.stderr)
            self.page.owner(self.job, b"")

    def _on_named(self, prefix: bytes) -> None:
        """The daemon names its clients, so that their ids say where they are made."""
        self.prefix = refs.own_prefix = prefix

    def _on_welcome(self, welcome: m.Welcome, fd: int) -> None:
        if welcome.version != m.PROTOCOL_VERSION:
            raise ex.LocalDaemonDiedError(
                f"the daemon speaks protocol {welcome.version}, this client {m.PROTOCOL_VERSION}: "
                "install the same noded"
            )
        if self.kind == "driver":
            self.control.grace = welcome.grace
            self.job = welcome.job
            if welcome.noded not in ("", __version__) and not self.incarnation:
                print(f"noded: this program runs noded {__version__}, its node {welcome.noded}", file=sys.stderr)
            if welcome.warning:
                print(f"noded: {welcome.warning}", file=sys.stderr)
        self.node = welcome.number
        first = not self.incarnation
        same_node = welcome.incarnation == self.incarnation
        self.epoch, self.incarnation = welcome.epoch, welcome.incarnation
        self.node_id, self.node_ip, self.address, self.cluster = (
            welcome.node_id,
            welcome.node_ip,
            welcome.address,
            welcome.cluster,
        )
        self.web_address = f"{'https' if welcome.tls else 'http'}://{welcome.address}"
        if self.remote is None:
            metrics.keep_in(page_path(self.run_dir, self.prefix))
        if same_node:
            if fd >= 0:
                os.close(fd)
            return
        if self.remote is None:
            self.arena = Arena(fd, welcome.arena_size)
        if self.kind == "driver" and welcome.pages and self.remote is None:
            self._move_page(os.path.join(welcome.pages, driver_page(self.prefix)))
        if first:
            self.space = Space(self.control, welcome.slab_size)
            self.objects = Objects(
                self.lock,
                self.holds,
                self.control,
                self.reader,
                self.space,
                self.arena if self.remote is None else None,
                self.next_seq,
                self.pause,
                self.interrupts,
            )
            self.objects.uploads = self.remote
            self.objects.node = self.node
            self.streams = Streams(self.lock, self.objects, self.control.send)
            self.tasks = Tasks(
                self.lock,
                self.holds,
                self.control,
                self.reader,
                self.objects,
                self.streams,
                self._hello,
                self.next_seq,
                self.remote if self.remote is not None else self.dialer,
                welcome.number if self.remote is None else 0,
                self.page,
            )
            self.cancels = Cancels(self.prefix, self.control, self.objects, self.tasks)
            self.awaiting = Awaiting(self.lock, self.reader, self.objects, self._begin_waiting)
            self.actors = Actors(self.lock, self.holds, self.control, self.tasks, self.reader.notify)
            self.tasks.lineage = self.lineage = Lineage(
                self.holds,
                self.objects,
                self.control.send,
                self.tasks.submit,
                self.actors.call_again,
                self.actors.waits_for_locked,
            )
            self.objects.can_be_made_again = self.lineage.knows
            self.groups = Groups(self.control, self.tasks, self.next_seq, self.reader.notify)
            refs.hooks.wait, refs.hooks.future = self.awaiting.ref, self.awaiting.future
            refs.hooks.pin, refs.hooks.borrow = self._pin, lambda id_: self.objects.borrow([id_])[0]
        elif self.remote is not None:
            raise ex.LocalDaemonDiedError(
                f"the node at {self.remote.address} has started over: what this program had there is lost; connect "
                "again with noded.init()"
            )
        else:
            self.objects.store_lost_locked(
                self.arena, "the node started over after its daemon and its spawner died together"
            )

    def _begin_waiting(self) -> None:
        self.control.flush()
        self.control.wake()

    def _pin(self, entry: Any) -> None:
        with self.lock:
            self.objects.publish_locked(entry)
            self._pinned.append(self.holds.take(entry.binary()))
            self.flush_refs_numbered()

    def _send_package(self, uri: str, data: bytes) -> None:
        """Give a package of a runtime environment to the node, and wait until it has it."""
        with self.lock:
            self._packages[uri] = data
            self.control.send(m.Package(uri), data)
            self.control.flush()
        try:
            self.ask("await_package", uri=uri)
        finally:
            with self.lock:
                del self._packages[uri]

    def _hello(self) -> m.Hello:
        return m.Hello(m.DATA_VERSION, self.prefix, self.pid)

    def _retell(self) -> None:
        """Everything the daemon should know of us, in the order in which it can use it."""
        send = self.control.send
        holds, after = self.holds.snapshot()
        for at in range(0, max(len(holds), len(after)), BATCH):
            send(refs_message(self.control.next_seq(), holds[at : at + BATCH], [], after[at : at + BATCH]))
        self.objects.retell_locked()
        self.actors.retell_locked()
        self.groups.retell_locked()
        self.dialer.retell_locked()
        for token, (fd, held) in self._fork_pipes.items():
            assert self.control.link is not None
            self.control.link.send_with_fds(m.ForkHold(token, held), [fd])
        for uri, data in self._packages.items():
            send(m.Package(uri), data)
        for ask, payload in self._asked.values():
            send(ask, payload)
        if self._detached:
            send(m.Detach())
        pushed, streams = self.tasks.pushed()
        told = m.Told(self.control.seq, self.tasks.leases(), pushed, self.space.in_use(), self.blocked, streams)
        told.top, told.queued = self.next_seq(), self.tasks.unpushed()
        told.files = self.space.files_in_use()
        send(told)
        # Requests last: only after Told does the daemon know which leases and regions are still in use, and what it
        # grants before that it would take back.
        self.space.retell()
        self.objects.republish_locked()
        self.tasks.retell_locked()
        self.cancels.retell()
        self._retell_extra()

    def _retell_head(self) -> None:
        """The head may have missed what concerns it."""
        self.actors.retell_locked()
        self.groups.retell_locked()
        self._retell_extra()
        self.control.flush()

    def _explain(self, message: m.Explain) -> None:
        from noded.client.explain import explain

        answer = explain(self, message.id)
        self.control.send(m.Explained(message.request), json.dumps(answer).encode())
        self.control.flush()

    def _tell_holds(self, message: m.WhoHolds) -> None:
        from noded.client.holding import tell

        self.control.send(m.Holds(message.request), json.dumps(tell(self, message.ids, how=message.how)).encode())
        self.control.flush()

    def _tell_tasks(self, message: m.WhatTasks) -> None:
        from noded.client.open_tasks import answer

        answer(self, message)

    def _handle(self, message: Any, payload: Any) -> None:
        handler = self._handlers.get(type(message))
        if handler is not None:
            handler(message, payload)
        else:
            self._on_message(message, payload)

    def _lost(self, reason: str) -> None:
        """The daemon is gone for good: everything that waits for it fails."""
        self.lost_reason = reason
        error = ex.LocalDaemonDiedError(reason)
        with self.lock:
            for task in self.tasks.open_tasks():
                self.tasks.fail_locked(task, error)
            for actor in self.actors.actors.values():
                actor.dead = actor.dead or error
                for task in actor.queue:
                    self.tasks.fail_locked(task, error)
            self.groups.lost_locked(error)
        self.awaiting.fail(reason)
        self.reader.notify()
        self._on_lost(reason)

    # ------------------------------------------------------------ helper thread

    def _tick(self) -> float | None:
        """Flush, read when nobody does. Says how long the helper may sleep: not at all while data keeps coming in that
        nobody else reads, a tick while work is outstanding, else for good (None).
        """
        reader = self.reader
        if not hasattr(self, "actors"):
            return None
        with self.lock:
            busy = self.tasks.tick_locked() or self.actors.busy()
            self.actors.look_again_locked()
            if (now := time.monotonic()) > self._next_sweep:
                self._next_sweep = now + SWEEP_SECONDS
                self.actors.forget_unheld_locked()
                self.objects.forget_unheld_locked()
            self.objects.flush_refs_locked()
            self.control.flush()
        if self._extra_tick():
            busy = True
        if self.interrupts.pending:
            self.interrupts.again()
            busy = True
        if not busy:
            self._away = False
            return None
        if reader.wanted or not reader.role.acquire(blocking=False):
            self._away = False
            return TICK
        try:
            # The others are away for longer: wait for the sockets instead of looking every few milliseconds.
            self._away = reader.poll(TICK if self._away else 0) > 0
        finally:
            reader.release()
        return 0.0 if self._away else TICK

    def flush_refs_numbered(self) -> int:
        """As ``Objects.flush_refs_locked``, written out."""
        with self.lock:
            seq = self.objects.flush_refs_locked()
            self.control.flush()
            return seq

    # ------------------------------------------------------------ questions

    def ask(self, what: str, timeout: float | None = 30.0, **arguments: Any) -> Any:
        """Ask the daemon; raises ValueError with its words when it refuses, GetTimeoutError after so many seconds. With
        None it waits as long as there is a daemon: a head that is away for a while ends no program.
        """
        payload = json.dumps(arguments).encode()
        number = self.next_seq()
        with self.interrupts:
            try:
                with self.lock:
                    message = m.Ask(number, what)
                    self._asked[number] = message, payload
                    self.objects.flush_refs_locked()
                    self.control.send(message, payload)
                    self.control.flush()
                self.reader.wait(lambda: number in self._answers or self.lost_reason, _deadline(timeout), self.pause)
            finally:
                with self.lock:
                    self._asked.pop(number, None)
                    answer = self._answers.pop(number, None)
        if answer is None:
            if self.lost_reason:
                raise ex.LocalDaemonDiedError(self.lost_reason)
            raise ex.GetTimeoutError(f"the daemon has not answered {what!r} in {timeout:g} s" if timeout else what)
        ok, body = answer
        value = json.loads(bytes(body)) if len(body) else None
        if not ok:
            raise ValueError(value)
        return value

    def _on_answer(self, message: m.Answer, payload: Any) -> None:
        if message.request in self._asked:
            self._answers[message.request] = message.ok, payload
            self.reader.notify()

    def _on_bye(self, message: m.Bye, payload: Any) -> None:
        self._detached = True
        self.reader.notify()

    # ------------------------------------------------------------ interrupts, forks

    def _on_interrupt(self) -> None:
        self.reader.wake()
        self.control.poke()

    def pause(self) -> None:
        """Before a thread sleeps: write what is queued; a place for interrupts."""
        self.interrupts.check()
        with self.lock:
            if self.tasks.dirty:
                self.tasks.flush_dirty_locked()
            self.control.flush()

    def before_fork(self) -> None:
        """Views that are alive in a forked child must stay what they are (see docs/architecture.md, section
        6).
        """
        with self.lock:
            self.holds.collect()
            held = [hold.id for hold in self.holds.holds.values() if not ids.is_actor_id(hold.id)]
            if not held:
                return
            read_fd, self._fork_write_end = os.pipe2(os.O_CLOEXEC)
            token = self.next_seq()
            self._fork_pipes[token] = read_fd, held
            if self.control.link is not None:
                self.objects.flush_refs_locked()
                self.control.link.send_with_fds(m.ForkHold(token, held), [read_fd])
                self.control.flush()

    def after_fork_in_parent(self) -> None:
        """The children hold the pipe's write end now; its end of file means that the last of them is gone."""
        if self._fork_write_end >= 0:
            os.close(self._fork_write_end)
            self._fork_write_end = -1

    def after_fork_in_child(self) -> None:
        """This runtime belongs to the parent: drop our copies of its descriptors without a word. The pipe's
        write end stays.
        """
        self.closed = True
        refs.hooks.forget(self._pin)
        self.control.abandon()
        self.tasks.abandon()
        self.reader.close()
        for fd, _ in self._fork_pipes.values():
            os.close(fd)

    # ------------------------------------------------------------ for the API

    def get(self, wanted: list[ObjectRef[Any]], timeout: float | None) -> list[Any]:
        if self.lost_reason:
            raise ex.LocalDaemonDiedError(self.lost_reason)
        with self.interrupts:
            self.objects.await_all(wanted, timeout)
        return [self.objects.load(ref) for ref in wanted]


def _before_fork() -> None:
    if _runtime is not None and not _runtime.closed:
        _runtime.before_fork()


def _after_fork_in_parent() -> None:
    if _runtime is not None and not _runtime.closed:
        _runtime.after_fork_in_parent()


def _after_fork_in_child() -> None:
    if _runtime is not None and not _runtime.closed:
        _runtime.after_fork_in_child()
        set_current(None)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout
