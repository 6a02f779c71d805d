"""Tasks: queues per scheduling class, leases, direct pushes, answers.

The rule that everything here serves: a pushed task belongs to its worker until the worker gave it back
(Returned, Stale) or the daemon proved it dead (WorkerDied). Every method that ends in ``_locked`` needs the
runtime's lock.
"""

from __future__ import annotations

import select
import socket
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgspec

from noded import ids
from noded.client import codec
from noded.client.control import Control
from noded.client.failures import RAISED, cancelled, crashed, raised, told, unschedulable
from noded.client.generators import Stream
from noded.client.lineage import Lineage
from noded.client.objects import INLINE_LIMIT, Objects
from noded.client.reader import Reader
from noded.client.refs import AWAY, FAILED, INLINE, PENDING, REMOTE, STORED, HoldTable, ObjectRef
from noded.client.streams import Streams, extra_of
from noded.client.submission import Function, Task, TaskQueue, WorkerLink, pack_arguments, pinned_offset, place_of
from noded.policy import deaths, reasons
from noded.telemetry import DONE, SUBMITTED, Page
from noded.telemetry import FAILED as HAS_FAILED
from noded.wire import messages as m
from noded.wire.link import FrameError, Link, LinkClosed
from noded.wire.session_link import SessionLink

_TARGET_US = 5000
"""How much work is pushed ahead to one worker."""
_DEPTH = 512
_UNSENT_LIMIT = 1 << 20
_FLUSH_AT = 32
_REDIAL_SECONDS = 0.05
LINGER = 0.1
"""An idle lease is kept this many seconds."""
_DEMAND_LIMIT = 256
_GROUP_REMOVED = "its placement group was removed"
_GROUPS_REMEMBERED = 1_000
_FAILURES_KEPT = 1000


class Dialer(Protocol):
    """Connects us to workers of other nodes."""

    def dial(self, worker: str, address: str, call: Callable[[socket.socket | None], None]) -> None:
        """``call(socket or None)`` later."""


class Tasks:
    """Submits tasks and takes their answers."""

    def __init__(
        self,
        lock: Any,
        holds: HoldTable,
        control: Control,
        reader: Reader,
        objects: Objects,
        streams: Streams,
        hello: Callable[[], m.Hello],
        next_seq: Callable[[], int],
        dialer: Dialer,
        node: int,
        page: Page,
    ):
        self.page = page
        self._dialer = dialer
        self._node = node
        """The number of our node; 0: we are on none, and no path leads to a worker."""
        self._dialing: dict[str, list[Callable[[WorkerLink | None], None]]] = {}
        """Workers of other nodes that we are being connected to, and who waits for it."""
        self._redials: dict[str, float] = {}
        """Workers that we lost the connection to: when to try again."""
        self.lock = lock
        self.holds = holds
        self.control = control
        self.reader = reader
        self.objects = objects
        self.streams = streams
        streams.flush, streams.token_of, streams.place_from = self.flush_locked, self._stored_token, self.place_from
        self._hello = hello
        self._next_seq = next_seq
        self.queues: dict[Any, TaskQueue] = {}
        """By resources, environment and place."""
        self._by_number: dict[int, TaskQueue] = {}
        self.links: dict[str, WorkerLink] = {}
        self.dirty: set[WorkerLink] = set()
        self.current: Callable[[], Any] = lambda: None
        """The task this worker runs, as the parent of what it submits."""
        self.on_actor_event: Callable[[WorkerLink], None] = lambda link: None
        self.queued_calls: Callable[[], Iterable[Task]] = lambda: ()
        """Calls that wait for their actor."""
        self._coming: set[tuple[int, str]] = set()
        """Leases that we were given, of workers that we are being connected to."""
        self.waiting: dict[int, Task] = {}
        """Tasks and calls with unresolved arguments, by their number: kept alive here."""
        self.failures: dict[int, dict[str, Any]] = {}
        """What the last errors told, by the number of the task, for who asks why."""
        self.attempts: dict[int, dict[str, Any]] = {}
        """Likewise of those that run, or will run, once more: how the last attempt ended."""
        self.lineage: Lineage
        self._removed_groups: dict[bytes, None] = {}
        """Placement groups that this process knows to be removed."""

    def under_way(self, seq: int) -> Task | None:
        """The task or call with this number, if it is with a worker, and not answered."""
        for link in self.links.values():
            if (task := link.inflight.get(seq)) is not None:
                return task
        return None

    @property
    def on_a_node(self) -> bool:
        return self._node != 0

    # ------------------------------------------------------------ functions and classes

    def make_function(self, function: Any, name: str, num_cpus: int, max_calls: int) -> Function:
        import hashlib

        packed = codec.pack(function, f"the function {name}")
        data = packed.as_bytes()
        return Function(name, hashlib.blake2b(data, digest_size=16).digest(), data, packed.refs, num_cpus, max_calls)

    def queue_for(
        self, resources: dict[str, int], name: str, env: str, where: m.Place, retriable: bool = True
    ) -> TaskQueue:
        key = tuple(sorted(resources.items())), env, where, retriable
        queue = self.queues.get(key)
        if queue is None:
            with self.lock:
                queue = self.queues.get(key)
                if queue is None:
                    queue = TaskQueue(len(self.queues) + 1, resources, name, env, where, retriable)
                    if where.group in self._removed_groups:
                        queue.closed = _GROUP_REMOVED
                    self._by_number[queue.number] = queue
                    self._define_locked(queue)
                    self.queues[key] = queue
        return queue

    def _define_locked(self, queue: TaskQueue) -> None:
        self.control.send(
            m.ClassDef(queue.number, queue.resources, queue.name, queue.env, queue.where, queue.retriable)
        )

    # ------------------------------------------------------------ submit

    def prepare(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], returns: int) -> Task:
        """Serialise the arguments (user code may run: no lock) and make the task with its refs."""
        payload, deps = pack_arguments(args, kwargs, f"the arguments of {name}")
        place: ObjectRef[Any] | None = None
        keep: list[Any] | None = None
        if type(payload) is not bytes:
            packed: codec.Packed = payload
            keep = packed.refs
            if packed.size > INLINE_LIMIT:
                place = ObjectRef(self._next_seq())
                self.objects.store(place, packed)
                payload = b""
            else:
                payload = packed.as_bytes()
                if keep:
                    with self.lock:
                        for entry in keep:
                            self.objects.publish_locked(entry)
        seq = self._next_seq()
        if returns == 1:
            made: list[ObjectRef[Any]] = [ObjectRef(seq)]
        elif returns > 1:
            made = [ObjectRef(seq, i) for i in range(returns)]
        else:
            made = [] if not returns else [ObjectRef(seq, ids.STREAM_END if returns == m.STREAMING else 0)]
        task = Task(seq, name, payload, made, returns, deps=deps, keep=keep, place=place)
        for ref in made:
            ref._task = task
        if returns == m.STREAMING:
            task.stream = Stream(task, 0)
        return task

    def submit(self, task: Task, queue: TaskQueue) -> None:
        lock = self.lock
        lock.acquire()
        try:
            task.queue = queue
            task.parent = self.current()
            if task.count >= 0:
                self.page.counters[task.count + SUBMITTED] += 1
            if task.deps is None or self.resolve_locked(task, self._on_resolved):
                if task.deps is not None:
                    queue = task.queue = self.near_locked(task)
                queue.ready.append(task)
                if queue.leases or not queue.declared:
                    self.pump_locked(queue)
                    self.control.flush()
            self.control.wake()
        finally:
            lock.release()

    def resolve_locked(self, task: Task, call: Callable[[Task], None]) -> bool:
        """True when all arguments have their values; else ``call(task)`` runs when they do."""
        missing = 0
        for _, ref in task.deps or ():
            state = ref._state
            if state == STORED or state == REMOTE:
                state = self.objects.state_now(ref)
            if state == PENDING or state == REMOTE:
                missing += 1

                def on_value() -> None:
                    task.unresolved -= 1
                    if not task.unresolved:
                        self.waiting.pop(task.seq, None)
                        call(task)

                if state == REMOTE:
                    self.objects.when_ready_locked(ref, on_value, pull=False)
                elif ref._task.waiters is None:
                    ref._task.waiters = [on_value]
                else:
                    ref._task.waiters.append(on_value)
        task.unresolved = missing
        if missing:
            self.waiting[task.seq] = task
            self.control.flush()
        return not missing

    def _on_resolved(self, task: Task) -> None:
        if not task.over:
            task.queue = self.near_locked(task)
            task.queue.ready.append(task)
            self.pump_locked(task.queue)

    def near_locked(self, task: Task) -> TaskQueue:
        """The queue of the node that most of its big arguments lie on, where it may run anywhere."""
        queue: TaskQueue = task.queue
        where = queue.where
        if where.group or where.node or where.spread:
            return queue
        sizes: dict[int, int] = {}
        for _, ref in task.deps or ():
            if ref._state == AWAY:
                node, size = ref._value
                sizes[node] = sizes.get(node, 0) + size
            elif ref._state == STORED:
                sizes[self._node] = sizes.get(self._node, 0) + ref._value[1]
        if not sizes:
            return queue
        best = max(sizes, key=lambda node: sizes[node])
        if best == self._node or sizes[best] < INLINE_LIMIT:
            return queue
        near = msgspec.structs.replace(where, near=best)
        return self.queue_for(queue.resources, queue.name, queue.env, near, queue.retriable)

    # ------------------------------------------------------------ push

    def pump_locked(self, queue: TaskQueue) -> None:
        """Push what the leases take, and tell the daemon what is left."""
        if queue.closed:
            self._fail_ready(queue, m.Unschedulable(queue.number, queue.closed, "removed"))
        ready = queue.ready
        if ready and queue.leases:
            share = len(ready) // len(queue.leases) + 1
            for worker in queue.leases:
                if worker.running or worker.recalled:
                    continue
                inflight, link, count = worker.inflight, worker.link, 0
                while ready and count < share:
                    task = ready[0]
                    if task.over:
                        ready.popleft()
                        continue
                    us = task.fn.us
                    depth = 1 if us < 0 else _DEPTH if us < 10 else max(1, _TARGET_US // us)
                    if len(inflight) >= depth or link.unsent_bytes > _UNSENT_LIMIT:
                        break
                    # A worker's death costs all that it was given a retry: it cannot be known which had begun. So what
                    # has none, or has lost one already, never stands behind another task that may be its end.
                    if inflight and (task.suspect or not task.retries):
                        break
                    ready.popleft()
                    self._push_task(worker, task)
                    count += 1
                    if queue.where.spread:  # the next one is to go elsewhere
                        worker.recalled = True
                        break
                if not ready:
                    break
        want = len(ready)
        if want != queue.declared:
            if want > _DEMAND_LIMIT:
                want = _DEMAND_LIMIT
            declared = queue.declared
            if (want == 0) != (declared == 0) or want > 2 * declared or 2 * want < declared:
                queue.declared = want
                self.control.send(m.Demand(queue.number, want))

    def _push_task(self, worker: WorkerLink, task: Task) -> None:
        fn: Function = task.fn
        key = fn.hash, fn.num_cpus, fn.max_calls
        number = worker.functions.get(key)
        if number is None:
            number = worker.functions[key] = len(worker.functions) + 1
            worker.link.send(m.Func(number, fn.hash, fn.name, fn.num_cpus, fn.max_calls), fn.data)
        if task.deps is None and task.place is None and task.extra is None and task.stream is None:
            worker.link.send(m.Push(task.seq, worker.lease, number, task.returns, len(task.payload)), task.payload)
        else:
            filled = self.fill_locked(task, worker)
            if filled is None:
                return
            deps, payload = filled
            size, extra = len(task.payload), extra_of(task)
            worker.link.send(
                m.Push(
                    task.seq, worker.lease, number, task.returns, size, deps, place_of(task, worker, self.holds), extra
                ),
                payload,
            )
        self.sent_locked(worker, task)

    def sent_locked(self, worker: WorkerLink, task: Task) -> None:
        worker.inflight[task.seq] = task
        task.link = worker
        if len(worker.inflight) == 1 or worker.link.unsent >= _FLUSH_AT:
            self.flush_locked(worker)
        else:
            self.dirty.add(worker)

    def fill_locked(self, task: Task, worker: WorkerLink) -> tuple[list[tuple[int, int, int, bytes]], bytes] | None:
        """The values or places of a task's resolved arguments, as this worker needs them; None when one of them is an
        error, with which the task is then over.
        """
        deps: list[tuple[int, int, int, bytes]] = []
        pieces = [task.payload]
        for slot, ref in task.deps or ():
            state = ref._state
            if state == FAILED:
                self.fail_locked(task, ref._value)
                return None
            if state == STORED:
                deps.append((slot, ref._value[1], pinned_offset(task, ref, worker, self.holds), ref.binary()))
            elif state == AWAY or state == REMOTE:
                deps.append((slot, ref._value[1] if ref._value else 0, -1, ref.binary()))
            else:
                assert state != PENDING, f"the argument {ref.hex()} of {task.name} has no value yet"
                data = ref._value if state == INLINE else codec.pack(ref._value, "an argument").as_bytes()
                deps.append((slot, len(data), 0, b""))
                pieces.append(data)
        return deps, b"".join(pieces)

    def flush_locked(self, worker: WorkerLink) -> None:
        try:
            done = worker.link.flush()
        except LinkClosed:  # its death is the daemon's to tell
            done = True
        if done:
            self.dirty.discard(worker)
        if done == worker.writing:
            worker.writing = not done
            if not worker.link.closed:
                self.reader.want_write(worker.link.fileno(), not done)

    def flush_dirty_locked(self) -> None:
        for worker in list(self.dirty):
            self.flush_locked(worker)

    # ------------------------------------------------------------ links

    def link_to_locked(self, worker: str, path: str, pid: int) -> WorkerLink | None:
        """The connection to a worker of this node, made at first need; None when it is gone already."""
        found = self.links.get(worker)
        if found is not None:
            return found
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(5)
            sock.connect(path)
        except OSError:
            sock.close()
            return None
        link = WorkerLink(worker, pid, Link(sock, m.decode_from_worker))
        link.link.send(self._hello())
        self.links[worker] = link
        self.reader.add(sock.fileno(), lambda what: self._on_event(link, what))
        return link

    def reach_locked(
        self, worker: str, path: str, address: str, pid: int, call: Callable[[WorkerLink | None], None]
    ) -> None:
        """``call(link)`` with the connection to a worker, wherever it is; at once where that is possible. None: it
        cannot be reached.
        """
        found = self.links.get(worker)
        if found is not None and not (found.link.closed and found.session is not None):
            call(found)
        elif path and self._node:
            call(self.link_to_locked(worker, path, pid))
        elif worker in self._dialing:
            self._dialing[worker].append(call)
        else:
            self._dialing[worker] = [call]
            self._dialer.dial(worker, address, lambda sock: self._dialed(worker, address, pid, sock))

    def _dialed(self, worker: str, address: str, pid: int, sock: socket.socket | None) -> None:
        """We are connected to it, or cannot be; from whichever thread."""
        with self.lock:
            calls = self._dialing.pop(worker, [])
            known = self.links.get(worker)
            if known is not None and known.session is not None:
                self._redialed(known, sock)
                return
            link = None
            if sock is not None:
                session = SessionLink(
                    sock, m.decode_from_worker, m.GotCalls, lambda message: type(message) is m.GotAnswers
                )
                link = WorkerLink(worker, pid, session)
                link.address, link.session = address, session
                hello = self._hello()
                hello.session = link.number = self._next_seq()
                session.send_uncounted(hello)
                self.links[worker] = link
                self.reader.add(sock.fileno(), lambda what: self._on_event(link, what))
            for call in calls:
                call(link)
            self.control.flush()
            self.control.wake()
        self.reader.wake()

    def _broken_locked(self, worker: WorkerLink) -> None:
        """The connection to a worker of another node is lost; the worker may well live."""
        assert worker.session is not None
        if worker.session.resuming and not worker.inflight and worker.queue is None and worker.actor is None:
            # It was dialed, and is not there. Nobody tells of the end of a worker that we have no lease of, and we
            # want nothing of it: without this it would be dialed for ever.
            self.drop_link_locked(worker)
            return
        self.reader.remove(worker.session.fileno())
        worker.session.suspend()
        worker.writing = False
        self._redials[worker.worker] = time.monotonic() + _REDIAL_SECONDS

    def _redial_locked(self, now: float) -> None:
        for worker, due in list(self._redials.items()):
            link = self.links.get(worker)
            if link is None or link.session is None or not link.session.suspended:
                del self._redials[worker]
            elif now >= due and worker not in self._dialing:
                self._redials[worker] = now + 10 * _REDIAL_SECONDS
                self._dialing[worker] = []
                address, pid = link.address, link.pid
                self._dialer.dial(
                    worker,
                    address,
                    lambda sock, w=worker, a=address, p=pid: self._dialed(w, a, p, sock),  # type: ignore[misc]
                )

    def _redialed(self, worker: WorkerLink, sock: socket.socket | None) -> None:
        session = worker.session
        assert session is not None
        if sock is None or not session.suspended:
            if sock is not None:
                sock.close()
            elif session.suspended:
                self._redials[worker.worker] = time.monotonic() + 2 * _REDIAL_SECONDS
            return
        self._redials.pop(worker.worker, None)
        hello = self._hello()
        hello.session, hello.got = worker.number, session.received
        session.resume(sock, hello)
        self.reader.add(sock.fileno(), lambda what: self._on_event(worker, what))
        self.flush_locked(worker)
        self.control.wake()

    def _on_event(self, worker: WorkerLink, what: int) -> None:
        with self.lock:
            if what & 4:
                self.flush_locked(worker)
            if what & ~4:
                self._read_locked(worker)
            self._after_answers_locked(worker)

    def _read_locked(self, worker: WorkerLink) -> None:
        if worker.link.closed:
            return
        inflight, counters = worker.inflight, self.page.counters

        def handle(message: Any, payload: Any) -> None:
            if type(message) is m.Done:
                task = inflight.pop(message.seq, None)
                if task is not None:
                    fn = task.fn
                    if fn is not None:
                        us = message.us
                        fn.us = us if fn.us < 0 else (fn.us * 7 + us) >> 3
                    ref = task.refs[0]
                    ref._value = payload
                    ref._state = INLINE
                    if (
                        message.hseq
                        or task.waiters
                        or ref._token is not None
                        or task.stream is not None
                        or task.cancelled
                    ):
                        if task.cancelled and task.method:
                            self._fail_refs(task, cancelled(task))
                        self._finish(task, worker, message.hseq)
                    else:
                        ref._task = None
                        task.over = True
                        if task.count >= 0:
                            counters[task.count + DONE] += 1
                    if message.seq == worker.running:
                        worker.running = 0
            else:
                self._handle_other(worker, message, payload)

        try:
            worker.link.receive(handle)
        except (LinkClosed, FrameError):
            if worker.session is not None and not worker.session.lost:
                self._broken_locked(worker)
                return
            self.reader.remove(worker.link.fileno())
            worker.link.close()

    def _handle_other(self, worker: WorkerLink, message: Any, payload: Any) -> None:
        kind = type(message)
        if kind is m.Returned:
            self._requeue(worker, message.seqs)
            if message.running in worker.inflight:
                worker.running = message.running
            if message.retiring:
                worker.recalled = worker.retiring = True
            return
        if kind is m.Item:
            task = worker.inflight.get(message.seq)
            if task is not None and task.stream is not None:
                self.streams.on_item_locked(worker, task, message, payload)
                if message.id:
                    self.lineage.remember_stream(task)
            return
        if kind is m.Stale:
            self._requeue(worker, message.seqs)
            worker.recalled = True  # the lease has ended there
            return
        task = worker.inflight.pop(message.seq, None)
        if task is None:
            return
        if message.seq == worker.running:
            worker.running = 0
        if task.fn is not None and message.us >= 0:
            task.fn.us = message.us if task.fn.us < 0 else (task.fn.us * 7 + message.us) >> 3
        if kind is m.Failed:
            error: Any = payload
            if message.cancelled:
                error = cancelled(task)
            elif message.retry and task.retries and not task.cancelled:
                self._retry(task, worker, message.hseq)
                return
            self._fail_refs(task, error)
            self._note_failure(task, error)
        else:
            at = 0
            stored = False
            for ref, (size, offset, id_) in zip(task.refs, message.outs, strict=True):
                if id_:
                    stored = True
                    ref._token = self._stored_token(ref, id_, worker, message.hseq)
                    ref._value, ref._state = self.place_from(worker, offset, size)
                else:
                    ref._value, ref._state = bytes(payload[at : at + size]), INLINE
                    at += size
            if stored:
                actor = worker.actor
                self.lineage.remember(task, None if actor is None else (actor.id, actor.class_name))
        if task.cancelled and task.method:  # it may not have heard of it, and one that has may end as if nothing was
            self._fail_refs(task, cancelled(task))
        self._finish(task, worker, message.hseq)

    @staticmethod
    def _fail_refs(task: Task, error: Any) -> None:
        task.failed = True
        for ref in task.refs:
            if task.lost is None or ref._index in task.lost or ref._state == PENDING:
                ref._value, ref._state = error, FAILED

    @staticmethod
    def place_from(worker: WorkerLink, offset: int, size: int) -> tuple[tuple[int, int], int]:
        """(value, state) of a ref whose value this worker has stored."""
        return ((worker.node, size), AWAY) if worker.remote or offset < 0 else ((offset, size), STORED)

    def _retry(self, task: Task, worker: WorkerLink, hseq: int) -> None:
        """Its code raised what the caller wants to be retried."""
        self._handed_over(task, worker, hseq)
        task.retries -= 1
        self.note_attempt(task, None)
        self.again_locked(task)
        if task.queue is not None:
            task.queue.ready.append(task)
        else:
            worker.actor.queue.append(task)

    def _stored_token(self, ref: ObjectRef[Any], id_: bytes, worker: WorkerLink, hseq: int) -> Any:
        if ref._token is not None:
            token = ref._token
        else:
            token = self.holds.take(id_, implicit=True)
        token.hold.ref = weakref.ref(ref)
        token.hold.give_after(worker.prefix, hseq)
        if worker.remote:
            token.hold.maker = worker.prefix, hseq
        return token

    def _requeue(self, worker: WorkerLink, seqs: list[int]) -> None:
        back = [task for seq in seqs if (task := worker.inflight.pop(seq, None)) is not None]
        for task in reversed(back):
            task.link = task.pins = None
            if task.cancelled:
                self.fail_locked(task, cancelled(task))
            elif task.queue is not None:
                task.queue.ready.appendleft(task)

    def _after_answers_locked(self, worker: WorkerLink) -> None:
        if worker.queue is not None:
            queue = worker.queue
            self.pump_locked(queue)
            if not worker.inflight:
                if worker.recalled or (worker.wanted and not queue.ready):
                    self._end_lease(worker)
                else:
                    worker.idle_since = time.monotonic()
            self.flush_locked(worker)
        elif worker.actor is not None:
            self.on_actor_event(worker)
        self.control.flush()

    # ------------------------------------------------------------ the end of a task

    def _finish(self, task: Task, worker: WorkerLink | None, hseq: int) -> None:
        """Refs are settled: let go what the task held, and tell who waits."""
        task.over = True
        if task.count >= 0:
            self.page.counters[task.count + (HAS_FAILED if task.failed else DONE)] += 1
        if task.stream is not None:
            self.streams.over_locked(task)
        if hseq and worker is not None:
            self._handed_over(task, worker, hseq)
        task.keep = task.deps = task.place = task.pins = None
        if task.lost is not None:
            self.lineage.over(task)
        for ref in task.refs:
            ref._task = None
            if ref._token is not None:
                self.objects.arrived_locked(ref)
        waiters, task.waiters = task.waiters, None
        for call in waiters or ():
            call()

    @staticmethod
    def _handed_over(task: Task, worker: WorkerLink, hseq: int) -> None:
        """The worker may have kept what its arguments are, and has told so at ``hseq``."""
        kept = [*(task.keep or ()), *(ref for _, ref in task.deps or ())]
        if task.place is not None:
            kept.append(task.place)
        for entry in kept:
            token = entry._token
            if token is not None and hseq:
                token.hold.give_after(worker.prefix, hseq)

    def _note_failure(self, task: Task, error: Any, reason: str = RAISED) -> None:
        """An exception, or a serialised error value, of which ``reason`` says whose it is."""
        known = told(error) if isinstance(error, BaseException) else raised(reason)
        self.failures[task.seq] = {**known, "name": task.name}
        if len(self.failures) > _FAILURES_KEPT:
            del self.failures[next(iter(self.failures))]

    def fail_locked(self, task: Task, error: Any) -> None:
        """Over with an error: an exception, or a serialised error value."""
        if task.over:
            return
        self.waiting.pop(task.seq, None)
        self._fail_refs(task, error)
        self._note_failure(task, error, "an argument of it has ended with an error, which get() raises")
        for ref in task.refs:
            if worker := task.link:
                # Had the worker stored a result before it died, the daemon counts us as its holder: give that up. Not
                # by a hold of our own: who has a hold has published, and the error is yet to be.
                if ref._token is None:
                    self.holds.given_after.append((ref.binary(), 0, [(worker.prefix, 0)]))
                else:
                    ref._token.hold.give_after(worker.prefix, 0)
        self._finish(task, None, 0)
        self.reader.notify()

    # ------------------------------------------------------------ from the daemon

    def on_grant(self, message: m.Grant) -> None:
        queue = self._by_number[message.cls]
        if queue.declared:
            queue.declared -= 1
        if not queue.ready:
            self._on_lease(queue, message, None)
            return
        self._coming.add((message.lease, message.worker))
        self.reach_locked(
            message.worker,
            message.path,
            message.address,
            message.pid,
            lambda worker: self._on_lease(queue, message, worker),
        )

    def _on_lease(self, queue: TaskQueue, message: m.Grant, worker: WorkerLink | None) -> None:
        self._coming.discard((message.lease, message.worker))
        if worker is None or (worker.remote and not queue.ready):
            self.control.send(m.LeaseDone(message.lease, False, message.worker))
            self.pump_locked(queue)
            return
        if worker.queue is not None:  # a lease of before, which has ended there meanwhile
            worker.queue.leases.remove(worker)
        worker.lease, worker.queue, worker.running = message.lease, queue, 0
        worker.recalled = worker.wanted = False
        worker.idle_since = time.monotonic()
        worker.link.send(m.Lent(message.lease, queue.resources, message.gpus, message.where))
        queue.leases.append(worker)
        self.pump_locked(queue)
        self.flush_locked(worker)

    def on_recall(self, message: m.Recall) -> None:
        for queue in list(self.queues.values()):
            for worker in queue.leases:
                if worker.lease == message.lease and worker.worker == message.worker:
                    worker.wanted = True
                    worker.recalled = message.now
                    if not worker.inflight and (message.now or not queue.ready):
                        self._end_lease(worker)
                    elif message.now:
                        worker.link.send(m.GiveBack())
                        self.flush_locked(worker)
                    return

    def _end_lease(self, worker: WorkerLink) -> None:
        assert worker.queue is not None
        queue, worker.queue = worker.queue, None
        queue.leases.remove(worker)
        self.control.send(m.LeaseDone(worker.lease, worker.retiring, worker.worker))
        worker.lease = 0
        if queue.ready and not queue.leases:
            queue.declared = 0
            self.pump_locked(queue)

    def group_removed_locked(self, id_: bytes) -> None:
        """Nothing more goes into this placement group, and no idle worker in it waits for more. Its nodes may not have
        heard of that yet.
        """
        self._removed_groups[id_] = None
        if len(self._removed_groups) > _GROUPS_REMEMBERED:
            del self._removed_groups[next(iter(self._removed_groups))]
        for queue in list(self.queues.values()):
            if queue.where.group == id_ and not queue.closed:
                queue.closed = _GROUP_REMOVED
                for worker in list(queue.leases):
                    worker.recalled = True
                    if not worker.inflight:
                        self._end_lease(worker)
                self.pump_locked(queue)

    def on_unschedulable(self, message: m.Unschedulable) -> None:
        self._fail_ready(self._by_number[message.cls], message)

    def _fail_ready(self, queue: TaskQueue, message: m.Unschedulable) -> None:
        queue.declared = 0
        tasks, queue.ready = list(queue.ready), deque()
        for task in tasks:
            self.fail_locked(task, unschedulable(task, message))

    def on_worker_died(self, message: m.WorkerDied) -> None:
        worker = self.links.get(message.death.worker)
        if worker is None or worker.lease not in (0, message.lease):
            return  # a lease of before: it may have another by now
        self.drop_link_locked(worker)
        queue = worker.queue
        if queue is not None and worker in queue.leases:
            queue.leases.remove(worker)
            worker.queue = None
        tasks, worker.inflight = list(worker.inflight.values()), {}
        # It would be as large again. Of several it is not known which: each is run alone next, and then it is.
        too_large = message.death.kind == deaths.MEMORY_LIMIT
        for task in reversed(tasks):
            self.streams.worker_lost_locked(task)
            if task.cancelled:
                self.fail_locked(task, cancelled(task, ", by ending its worker"))
            elif message.death.free and task.queue is not None and task.queue.retriable:
                self.note_attempt(task, message.death)
                self.again_locked(task)
                task.queue.ready.appendleft(task)
            elif task.retries != 0 and task.queue is not None and not (too_large and len(tasks) == 1):
                task.retries -= 1
                task.suspect = True
                self.note_attempt(task, message.death)
                self.again_locked(task)
                task.queue.ready.appendleft(task)
            elif worker.actor is None:
                self.fail_locked(task, crashed(task.name, message.death))
        if queue is not None:
            self.pump_locked(queue)
        self.reader.notify()

    def note_attempt(self, task: Task, death: m.Death | None) -> None:
        """How it ended, for who asks why it still waits; None: its code raised what is to be tried again."""
        self.attempts.pop(task.seq, None)
        self.attempts[task.seq] = (
            {"kind": reasons.RAISED, "reason": "its code raised an error that is to be tried again"}
            if death is None
            else {"kind": death.kind, "reason": death.reason, **deaths.facts(death)}
        )
        if len(self.attempts) > _FAILURES_KEPT:
            del self.attempts[next(iter(self.attempts))]

    def again_locked(self, task: Task) -> None:
        """It will run once more. The first run may have stored results, for which the daemon counts us as holder:
        with a hold that we know of they go when the refs go, whatever comes of the second run.
        """
        task.link = task.pins = None
        for ref in task.refs:
            self.objects.publish_locked(ref)

    def drop_link_locked(self, worker: WorkerLink) -> None:
        """Read what a dead worker still had said, then close."""
        if worker.session is not None:
            worker.session.lost = True  # no connection is to come back
        if not worker.link.closed and worker.link.fileno() >= 0:
            poller = select.poll()
            poller.register(worker.link.fileno(), select.POLLIN)
            while not worker.link.closed and poller.poll(0):
                self._read_locked(worker)
        if not worker.link.closed:  # a child it forked still has the socket open
            self.reader.remove(worker.link.fileno())
            worker.link.close()
        self.dirty.discard(worker)
        self.links.pop(worker.worker, None)

    # ------------------------------------------------------------ cancel

    def cancel_locked(self, task: Task, force: bool, recursive: bool) -> None:
        if task.over:
            return
        task.cancelled = True
        task.retries = 0
        worker: WorkerLink | None = task.link
        if worker is None:
            self.fail_locked(task, cancelled(task))
        elif force:
            task.killing = True
            self.control.send(m.KillTask(worker.lease, worker.worker))
            self.control.flush()
        else:
            worker.link.send(m.Cancel(task.seq, recursive))
            self.flush_locked(worker)
            self.reader.wake()

    def cancel_for_locked(self, id_: bytes, force: bool, recursive: bool) -> None:
        """Cancel the task of ours that makes this object; calls of actors know no force."""
        seq = ids.seq_of(id_)
        for task in self.open_tasks():
            if task.seq == seq and (task.stream is None or ids.index_of(id_) == ids.STREAM_END):
                self.cancel_locked(task, force and task.queue is not None, recursive)

    def cancel_children_locked(self, parent: Any) -> None:
        for task in self.open_tasks():
            if task.parent is parent:
                self.cancel_locked(task, False, True)

    def open_tasks(self) -> list[Task]:
        found: list[Task] = [*self.waiting.values(), *self.queued_calls()]
        for queue in list(self.queues.values()):
            found += queue.ready
        for worker in self.links.values():
            found += worker.inflight.values()
        return found

    # ------------------------------------------------------------ tick, restarts

    def tick_locked(self) -> bool:
        """True while anything is outstanding."""
        self.streams.drop_locked()
        if self.dirty:
            self.flush_dirty_locked()
        busy = bool(self.waiting) or bool(self._dialing) or bool(self._redials)
        now = time.monotonic()
        if self._redials:
            self._redial_locked(now)
        for queue in list(self.queues.values()):
            busy = busy or bool(queue.ready) or bool(queue.leases)
            for worker in list(queue.leases):
                if not worker.inflight and not queue.ready and now - worker.idle_since > LINGER:
                    self._end_lease(worker)
        return busy

    def retell_locked(self) -> None:
        for queue in list(self.queues.values()):
            self._define_locked(queue)
            queue.declared = 0
            self.pump_locked(queue)
        for worker in self.links.values():
            if any(task.killing for task in worker.inflight.values()):
                self.control.send(m.KillTask(worker.lease, worker.worker))

    def leases(self) -> list[tuple[int, str]]:
        held = [(worker.lease, worker.worker) for worker in self.links.values() if worker.lease]
        return held + list(self._coming)

    def pushed(self) -> tuple[list[int], list[tuple[int, int]]]:
        """The numbers of tasks that workers have; and of those that stream, how many items have arrived."""
        tasks = [task for worker in self.links.values() for task in worker.inflight.values()]
        return [t.seq for t in tasks], [(t.seq, t.stream.arrived) for t in tasks if t.stream is not None]

    def unpushed(self) -> list[int]:
        """The numbers of tasks and calls that no worker has."""
        queued = [task for queue in self.queues.values() for task in queue.ready]
        return list({task.seq for task in (*self.waiting.values(), *queued, *self.queued_calls())})

    def abandon(self) -> None:
        """In a forked child: close our copies only."""
        for worker in self.links.values():
            if worker.link.fileno() >= 0:
                worker.link.sock.close()

    def close(self) -> None:
        for worker in self.links.values():
            if not worker.link.closed:
                self.reader.remove(worker.link.fileno())
                worker.link.close()
