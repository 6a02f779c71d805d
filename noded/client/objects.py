"""Objects: put, publish, resolve, get, wait.

A value stays in its ref as long as it is small and only this process knows the ref. ``publish`` moves it into
the arena and tells the daemon; ``resolve`` finds out what a borrowed ref is. See ``docs/architecture.md``
section 6 for who holds what.
"""

from __future__ import annotations

import copy
import errno
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from noded import exceptions as ex
from noded import ids
from noded.client import codec, refs
from noded.client.control import Control
from noded.client.reader import Reader
from noded.client.refs import (
    AWAY,
    FAILED,
    INLINE,
    LOCAL,
    PENDING,
    REMOTE,
    STORED,
    HoldTable,
    ObjectRef,
    Token,
    borrowed,
)
from noded.client.space import Space
from noded.shm import record
from noded.shm.arena import HEADER_SIZE, Arena
from noded.wire import messages as m
from noded.wire import value as layout

BATCH = 2000
"""Ids in one message to the daemon, whose loop has others to serve."""
_ASK_AHEAD = 64
_ROOM_SECONDS = 2.0
_READERS = 4
_MEMORY_SECONDS = 30.0
"""So long memory for an object that is read from disk is waited for."""
INLINE_LIMIT = 100 << 10
"""Values up to this many bytes travel inside messages."""


class Objects:
    """The values this process knows of. Methods that end in ``_locked`` need the runtime's lock, the others
    take it.
    """

    def __init__(
        self,
        lock: Any,
        holds: HoldTable,
        control: Control,
        reader: Reader,
        space: Space,
        arena: Arena | None,
        next_seq: Callable[[], int],
        pause: Callable[[], None],
        guard: AbstractContextManager[None],
    ):
        self.lock = lock
        self.holds = holds
        self.control = control
        self.reader = reader
        self.space = space
        self.node = 0
        """This node's number; set when it is known."""
        self.arena: Arena = arena  # type: ignore[assignment]  # a driver without shared memory never looks at it
        self.before_block: Callable[[], Callable[[], None] | None] = lambda: None
        """Called before a thread sleeps in get or wait; what it returns is called when it goes on."""
        self._next_seq = next_seq
        self._pause = pause
        self.guard = guard
        """Keeps interrupts out, but for the places where a thread waits."""
        self._announced: dict[bytes, ObjectRef[Any]] = {}
        """Our refs that left without a value."""
        self._to_republish: list[ObjectRef[Any]] = []
        self._to_make_again: dict[bytes, str] = {}
        """Of ours, that are lost, and why: the node asks for those that somebody wants. Each daemon is told anew."""
        self.can_be_made_again: Callable[[bytes], bool] = lambda id_: False
        self._subscribed: dict[bytes, list[Callable[[], None]]] = {}
        """Borrowed refs somebody waits for, with what to call."""
        self._pulled: set[bytes] = set()
        """Those of them whose value is wanted here; of the others it is enough to know where it is."""
        self._reads: deque[tuple[bytes, str, int, int]] = deque()
        self._readers = 0
        """Threads that read files."""
        self.uploads: Uploads | None = None
        """Of a driver without shared memory: in place of the arena."""

    # ------------------------------------------------------------ put

    def put(self, value: Any) -> ObjectRef[Any]:
        if type(value) is ObjectRef:
            raise TypeError(
                "noded.put() of an ObjectRef is not allowed: pass the ref itself, or put a list that contains it"
            )
        if codec.is_atom(value):
            kind = type(value)
            if kind not in (str, bytes) or len(value) < INLINE_LIMIT:
                return ObjectRef(self._next_seq(), 0, LOCAL, value)
        packed = codec.pack(value, "the value given to noded.put()")
        ref: ObjectRef[Any] = ObjectRef(self._next_seq(), 0, INLINE, packed.inline)
        if packed.inline is None or packed.size > INLINE_LIMIT:
            if not packed.refs and packed.size <= INLINE_LIMIT:
                ref._value = packed.as_bytes()
            else:
                ref._state = PENDING
                self.store(ref, packed)
        return ref

    def put_error(self, packed: codec.Packed) -> ObjectRef[Any]:
        """A ref that raises this packed error."""
        ref: ObjectRef[Any] = ObjectRef(self._next_seq())
        self.store(ref, packed)
        return ref

    def store(self, ref: ObjectRef[Any], packed: codec.Packed) -> None:
        """Write a packed value into the arena as ``ref``'s, waiting for room."""
        if self.uploads is not None:
            self._upload(ref, packed)
            return
        self.write(ref.binary(), packed, ref)

    def _upload(self, ref: ObjectRef[Any], packed: codec.Packed) -> None:
        """To the node that this driver is connected to, in place of shared memory."""
        assert self.uploads is not None
        id_ = ref.binary()
        with self.lock:
            for entry in packed.refs:
                self.publish_locked(entry)
            ref._token = self.holds.take(id_, implicit=True)
            ref._token.hold.ref = weakref.ref(ref)
            self.flush_refs_locked()
            self.control.flush()
        pieces = packed.plan.pieces if packed.plan is not None else [(0, packed.inline or b"")]
        with self.guard:
            self.uploads.store(id_, pieces, packed.size)
        with self.lock:
            self.control.send(m.SealAt(self.control.next_seq(), id_))
            ref._value, ref._state = (0, packed.size), AWAY

    def write(self, id_: bytes, packed: codec.Packed, ref: ObjectRef[Any] | None = None) -> tuple[int, int]:
        """Write and seal an object, waiting for room: (offset of the value, size); an offset of -1 when it went to the
        disk. Raises ObjectStoreFullError, OutOfDiskError. One of our own, ``ref``, is held from that moment on.
        """
        with self.guard:
            place = None
            while place is None:
                place = self._written(id_, packed, ref)
        return place

    def _written(self, id_: bytes, packed: codec.Packed, ref: ObjectRef[Any] | None) -> tuple[int, int] | None:
        """None when the node started over meanwhile, and the place was in the arena of before."""
        size = packed.size
        got: list[tuple[Arena, int, int]] = []
        files: list[str] = []
        failed: list[Exception] = []
        given_up = False

        def on_space(offset: int, end: int) -> None:
            self.arena.begin(offset, id_, size, end)  # in any case, so that a walk finds what comes behind
            if given_up:
                return
            self.space.begun(end)
            got.append((self.arena, offset, end))
            if threading.current_thread() is not thread:
                self.reader.notify()

        def on_file(path: str) -> None:
            if given_up:
                self.space.file_written(path, b"")
                return
            files.append(path)
            self.reader.notify()

        def on_failure(error: Exception) -> None:
            failed.append(error)
            self.reader.notify()

        thread = threading.current_thread()
        with self.lock:
            for entry in packed.refs:
                self.publish_locked(entry)
            # What was dropped just now may be the very room that this needs.
            self.flush_refs_locked()
            self.space.request(size, on_space, on_failure, on_file)
        pieces = packed.plan.pieces if packed.plan is not None else [(0, packed.inline or b"")]
        try:
            if not (got or files or failed):
                self._await_room(lambda: got or files or failed)
            if failed:
                raise failed[0]
            if files:
                return self._written_to_file(files[0], id_, pieces, packed, ref)
            arena, offset, end = got[0]
            for at, piece in pieces:
                arena.copy_in(offset + HEADER_SIZE + at, piece)
        except BaseException:  # also an interrupt while it waited
            with self.lock:
                given_up = True
                if got and self.arena is got[0][0]:
                    self.space.written(got[0][2])
                if files:
                    self.space.file_written(files[0], b"")
            raise
        with self.lock:
            if self.arena is not arena:
                return None
            arena.seal(offset)
            if ref is not None:
                # In one step: what is sealed and not held when we re-attach is given up.
                self._hold_own_locked(ref, (offset + HEADER_SIZE, size), STORED)
            self.control.send(m.Sealed(self.control.next_seq(), [(id_, offset)]))
            self.space.written(end)
        return offset + HEADER_SIZE, size

    def _written_to_file(
        self, path: str, id_: bytes, pieces: Sequence[tuple[int, Any]], packed: codec.Packed, ref: ObjectRef[Any] | None
    ) -> tuple[int, int]:
        """There is no room in the arena, or the object is larger than that."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                record.write(fd, 0, id_, pieces, packed.size, refs.own_prefix)
                with self.lock:
                    # In one step, as in the arena.
                    record.seal(fd, 0)
                    if ref is not None:
                        self._hold_own_locked(ref, (self.node, packed.size), AWAY)
                    self.space.file_written(path, id_)
            finally:
                os.close(fd)
        except OSError as error:
            raise ex.OutOfDiskError(f"object {id_.hex()} cannot be written to {path}: {error}") from None
        return -1, packed.size

    def _hold_own_locked(self, ref: ObjectRef[Any], value: tuple[int, int], state: int) -> None:
        ref._token = self.holds.take(ref.binary(), implicit=True)
        ref._token.hold.ref = weakref.ref(ref)
        ref._value, ref._state = value, state

    # ------------------------------------------------------------ holds

    def flush_refs_locked(self) -> int:
        """Queue all hold changes for the daemon; the control position behind which they are (hand-over rule)."""
        if self.holds.changed() and self.control.link is not None:
            taken, given, after = self.holds.drain()
            # In parts that the daemon applies in a moment each; a hold comes before the release that may end it.
            for at in range(0, len(taken) - BATCH, BATCH):
                self._tell_refs(taken[at : at + BATCH], [], [])
            taken = taken[(len(taken) - 1) // BATCH * BATCH :]
            for at in range(0, max(len(taken), len(given), len(after)), BATCH):
                self._tell_refs(taken if not at else [], given[at : at + BATCH], after[at : at + BATCH])
        return self.control.seq

    def _tell_refs(self, taken: list[Any], given: list[Any], after: list[refs.After]) -> None:
        self.control.send(refs_message(self.control.next_seq(), taken, given, after))

    # ------------------------------------------------------------ publish

    def publish_locked(self, entry: Any) -> None:
        """Make a ref (or handle) known to the daemon, because it leaves in a value."""
        if type(entry) is not ObjectRef or entry._token is not None:
            return
        id_ = entry.binary()
        entry._token = self.holds.take(id_)
        entry._token.hold.ref = weakref.ref(entry)
        if entry._state == PENDING:
            self._announced[id_] = entry
            self.control.send(m.Pending([id_]))
        else:
            self._seal_small_locked(entry)

    def announce_locked(self, ref: ObjectRef[Any]) -> None:
        """This ref of ours gets a value (again), which the node is to have then, whatever it is."""
        if ref._token is None:
            self.publish_locked(ref)
        else:
            self._announced[ref.binary()] = ref
            self.control.send(m.Pending([ref.binary()]))

    def arrived_locked(self, ref: ObjectRef[Any]) -> None:
        """A pending ref that had left has its value now."""
        if self._announced.pop(ref.binary(), None) is None:
            return
        self._to_make_again.pop(ref.binary(), None)
        if ref._state == AWAY and ref._token.hold.maker is not None:
            # Its node may be lost before it tells: then nobody else knows where it was.
            self.control.send(self._subscription(ref.binary(), False, ref))
        elif ref._state not in (STORED, AWAY):
            self._seal_small_locked(ref)

    def _give_up_dropped(self, id_: bytes) -> None:
        """If it was dropped while it waited for room (a value may contain it): the daemon counts us as its holder.
        Said at once: a program that leaves says nothing more.
        """
        if id_ not in self.holds.holds:
            self.holds.given.append((id_, 0))
            self.flush_refs_locked()

    def _seal_small_locked(self, ref: ObjectRef[Any]) -> None:
        if ref._state == LOCAL:
            data = codec.pack(ref._value, "a published value").as_bytes()
        elif ref._state == FAILED and not isinstance(ref._value, (bytes, memoryview)):
            data = codec.pack(ref._value, "an error", error=True).as_bytes()
        else:
            data = bytes(ref._value)
        id_ = ref.binary()
        if self.uploads is not None:
            self.control.send(m.Publish(self.control.next_seq(), id_), data)
            return

        def on_space(offset: int, end: int) -> None:
            self.arena.begin(offset, id_, len(data), end)
            self.arena.copy_in(offset + HEADER_SIZE, data)
            self.arena.seal(offset)
            self.control.send(m.Sealed(self.control.next_seq(), [(id_, offset)]))
            self._give_up_dropped(id_)

        def on_file(path: str) -> None:
            try:
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    record.write(fd, 0, id_, [(0, data)], len(data), refs.own_prefix)
                    record.seal(fd, 0)
                finally:
                    os.close(fd)
            except OSError as error:
                self.space.file_written(path, b"")
                on_failure(error)
                return
            self.space.file_written(path, id_)
            self._give_up_dropped(id_)

        def on_failure(error: Exception) -> None:
            # Back-pressure is the daemon's: it says so after a while, and may have room by then.
            self.space.request(len(data), on_space, on_failure, on_file)

        self.space.request(len(data), on_space, on_failure, on_file)

    # ------------------------------------------------------------ values

    def entries(self, view: memoryview) -> list[Any]:
        """For the ids inside a value: refs, and for actors the tokens that their handles are built on."""
        return self.borrow(layout.ids_in(view))

    def borrow(self, found: list[bytes]) -> list[Any]:
        with self.lock:
            return [self._entry(id_) for id_ in found]

    def _entry(self, id_: bytes) -> Any:
        if ids.is_actor_id(id_):
            return self.holds.take(id_)
        if id_.startswith(refs.own_prefix):
            hold = self.holds.holds.get(id_)
            found = hold.ref() if hold is not None and hold.ref is not None else None
            if found is not None:
                return found
        return borrowed(id_, self.holds, self._make_remote)

    @staticmethod
    def _make_remote(id_: bytes, token: Token) -> ObjectRef[Any]:
        return ObjectRef(ids.seq_of(id_), ids.index_of(id_), REMOTE, None, token, None, id_)

    def state_now(self, ref: ObjectRef[Any]) -> int:
        """The state of a stored or borrowed ref; one from before a shutdown in this process has lost its object."""
        if not self.holds.is_ours(ref._token):
            reason = "it is of a cluster that this process has left by noded.shutdown(); make it anew"
            ref._value, ref._state = ex.ObjectLostError(ref.hex(), reason), FAILED
        return ref._state

    def load(self, ref: ObjectRef[Any]) -> Any:
        """The Python value of a ref that is ready; raises its error."""
        state = ref._state
        if state == INLINE:
            value, failed = codec.unpack(memoryview(ref._value), self.entries)
        elif state == LOCAL:
            return ref._value
        elif state == AWAY or state == REMOTE:
            self.await_all([ref], None)
            return self.load(ref)
        elif state == STORED and self.state_now(ref) == STORED:
            with self.lock:
                if ref._state != STORED:  # the node has just asked for its place
                    pin = None
                else:
                    pin = self.holds.pin(ref._token.hold)
                    offset, size = ref._value
                    if type(offset) is not int:  # the value has its bytes now, which are not to outlive it
                        ref._value, ref._state = (self.node, size), AWAY
            if pin is None:
                return self.load(ref)
            if type(offset) is int:
                value, failed = self.load_place(pin.hold, offset, size)
            else:
                value, failed = codec.unpack(memoryview(offset).toreadonly(), self.entries)
        elif isinstance(ref._value, BaseException):
            raise to_raise(ref._value)
        else:
            value, failed = codec.unpack(memoryview(ref._value), self.entries)
        if failed:
            raise to_raise(value)
        return value

    def load_place(self, hold: refs.Hold, offset: int, size: int) -> tuple[Any, bool]:
        """Load from the arena, while somebody has a pin; every buffer of the value is one as well."""
        view = self.arena.view(offset, size)

        def entries(view: memoryview) -> list[Any]:
            # Made once per held object: refs have no state of their own that a user could change.
            if hold.nested is None:
                hold.nested = self.entries(view)
            return hold.nested

        def buffer(at: int, n: int) -> memoryview:
            with self.lock:
                pin = self.holds.pin(hold)
            return self.arena.pinned(offset + at, n, pin)

        return codec.unpack(view, entries, buffer)

    # ------------------------------------------------------------ borrowed refs

    def when_ready_locked(self, ref: ObjectRef[Any], call: Callable[[], None] | None, *, pull: bool = True) -> None:
        """Have the daemon tell about a borrowed ref; ``call`` runs under the lock when it did. Without ``pull`` it is
        enough that its value is somewhere.
        """
        id_ = ref.binary()
        waiting = self._subscribed.get(id_)
        if waiting is None or (pull and id_ not in self._pulled):
            # Who is told where it lies is to be known as a holder by then.
            self.flush_refs_locked()
        if waiting is None:
            waiting = self._subscribed[id_] = []
            self.control.send(self._subscription(id_, pull, ref))
        elif pull and id_ not in self._pulled:
            self.control.send(m.Subscribe([id_]))
        if pull:
            self._pulled.add(id_)
        if call is not None:
            waiting.append(call)

    @staticmethod
    def _subscription(id_: bytes, pull: bool, ref: ObjectRef[Any]) -> m.Subscribe:
        """Of a result that lies on another node: which, and who made it there, if it is known."""
        if type(ref._value) is not tuple:
            return m.Subscribe([id_], pull)
        maker, seq = ref._token.hold.maker or (b"", 0)
        return m.Subscribe([id_], pull, ref._value[0], maker, seq)

    def on_ready(self, message: m.Ready) -> None:
        for id_, offset, size in message.objects:
            self._settle(id_, STORED, (offset, size))
        self.reader.notify()

    def on_value(self, message: m.Value, payload: Any) -> None:
        """In place of Ready, without shared memory."""
        if message.inline:
            self._settle(message.id, INLINE, payload)
            self.reader.notify()
            return
        assert self.uploads is not None
        self.uploads.fetch(message.id, message.size, lambda value: self._fetched(message.id, value))

    def _fetched(self, id_: bytes, value: Any) -> None:
        with self.lock:
            if isinstance(value, BaseException):
                self._settle(id_, FAILED, value)
            else:
                self._settle(id_, INLINE, value)
        self.reader.notify()

    def on_disk(self, message: m.OnDisk) -> None:
        """In place of Ready, where the node finds no room: the value is for this process alone."""
        # Not in this thread, which has the node to hear.
        self._reads.extend(message.objects)
        if self._readers < _READERS:
            self._readers += 1
            threading.Thread(target=self._read_files, name="noded-files", daemon=True).start()

    def _read_files(self) -> None:
        while True:
            with self.lock:
                if not self._reads:
                    self._readers -= 1
                    return
                id_, path, offset, size = self._reads.popleft()
                wanted = id_ in self._pulled
            if wanted:
                self._read_file(id_, path, offset, size)

    def _read_file(self, id_: bytes, path: str, offset: int, size: int) -> None:
        until = time.monotonic() + _MEMORY_SECONDS
        while True:
            try:
                state: int = STORED
                value: Any = (record.read_value(path, offset, size), size)
                break
            except (OSError, MemoryError) as error:
                if isinstance(error, OSError) and error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                    with self.lock:
                        if id_ in self._pulled:
                            self.control.send(m.Unreadable(id_, f"its file {path} cannot be read: {error}"))
                            self.control.flush()
                    return
                if time.monotonic() > until:
                    text = f"object {id_.hex()} of {size} bytes cannot be read from {path} by this process: {error!r}"
                    state, value = FAILED, ex.OutOfMemoryError(text)
                    break
                time.sleep(0.1)  # others of this process may give theirs back
        with self.lock:
            self._settle(id_, state, value)
        self.reader.notify()

    def vacate_locked(self, message: m.Vacate, under_way: Callable[[int], Any]) -> None:
        """The node needs the room. ``under_way``: the task of ours with this number, if it is with a worker: its
        results may be there while we do not know, also when it makes lost ones again.
        """
        self.flush_refs_locked()
        busy: list[bytes] = []
        after: list[tuple[bytes, int]] = []
        for id_ in message.ids:
            hold = self.holds.holds.get(id_)
            task = under_way(ids.seq_of(id_)) if id_.startswith(refs.own_prefix) else None
            if task is not None and (hold is None or task.stream is None):
                busy.append(id_)
                continue
            if hold is None:
                continue
            ref = hold.ref() if hold.ref is not None else None
            state = ref._state if type(ref) is ObjectRef else REMOTE
            if hold.pins or state == PENDING:
                busy.append(id_)
                continue
            if ref is not None and state == STORED:
                ref._value, ref._state = (self.node, ref._value[1]), AWAY
            if hold.after is not None:
                after += hold.after.items()
        for offset in message.regions:
            self.space.recall(offset)
        self.control.send(m.Vacated(message.request, busy, after))

    def on_exists(self, message: m.Exists) -> None:
        for id_, size, node in message.objects:
            if id_ not in self._pulled:
                self._settle(id_, AWAY, (node, size))
        self.reader.notify()

    def want_locked(self, ref: ObjectRef[Any]) -> int:
        """Its state, now that its value is wanted here."""
        if ref._state == AWAY:
            ref._state = REMOTE
        return ref._state

    def on_lost(self, message: m.Lost) -> None:
        kinds = {"owner": ex.OwnerDiedError, "freed": ex.ObjectFreedError}
        error = kinds.get(message.kind, ex.ObjectLostError)(message.id.hex(), message.reason)
        self._settle(message.id, FAILED, error)
        self.reader.notify()

    def _settle(self, id_: bytes, state: int, value: Any) -> None:
        calls = self._subscribed.pop(id_, ())
        self._pulled.discard(id_)
        hold = self.holds.holds.get(id_)
        ref = hold.ref() if hold is not None and hold.ref is not None else None
        if ref is not None and ref._state == REMOTE:
            ref._value, ref._state = value, state
        for call in calls:
            call()

    # ------------------------------------------------------------ get and wait

    def when_settled_locked(self, ref: ObjectRef[Any], call: Callable[[], None]) -> bool:
        """``call`` runs, under the lock, when the ref has a value or an error; False when it has one now."""
        state = self.want_locked(ref)
        if state == REMOTE and (state := self.state_now(ref)) == REMOTE:
            self.when_ready_locked(ref, call)
        elif state == PENDING:
            task = ref._task
            if task.waiters is None:
                task.waiters = [call]
            else:
                task.waiters.append(call)
        else:
            return False
        return True

    def sleep(self, done: Callable[[], Any], deadline: float | None) -> bool:
        resume = self.before_block()
        try:
            return self._sleep(done, deadline)
        finally:
            if resume is not None:
                resume()

    def _sleep(self, done: Callable[[], Any], deadline: float | None) -> bool:
        if not self.reader.wait(lambda: done() or self.control.lost, deadline, self._pause):
            return False
        if not done():
            raise ex.LocalDaemonDiedError(self.control.lost)
        return True

    def _await_room(self, done: Callable[[], Any]) -> None:
        """For what the node does for us, as making room, or bringing an argument. It is under way, as a rule, and a
        task that waits for that keeps its CPUs: those which would run in its place would want room as well.
        """
        if not self._sleep(done, time.monotonic() + _ROOM_SECONDS):
            self.sleep(done, None)

    def bring(self, ref: ObjectRef[Any]) -> None:
        """Wait for a borrowed ref that has a value somewhere."""
        self.ask_for([ref])
        self._await_room(lambda: ref._state not in (PENDING, REMOTE, AWAY))

    def ask_for(self, wanted: Sequence[ObjectRef[Any]], *, pull: bool = True) -> None:
        """Subscribe to the borrowed ones among these; without ``pull`` it is enough that they are somewhere."""
        unknown = [ref for ref in wanted if ref._state == REMOTE or (pull and ref._state == AWAY)]
        if unknown:
            with self.lock:
                for ref in unknown:
                    state = self.want_locked(ref) if pull else ref._state
                    if state == REMOTE and self.state_now(ref) == REMOTE:
                        self.when_ready_locked(ref, None, pull=pull)
                self.control.flush()

    def get(self, wanted: Sequence[ObjectRef[Any]], timeout: float | None) -> list[Any]:
        """The values in order. Raises the first error, or GetTimeoutError."""
        self.await_all(wanted, timeout)
        return [self.load(ref) for ref in wanted]

    def await_all(self, wanted: Sequence[ObjectRef[Any]], timeout: float | None) -> None:
        at, count = 0, len(wanted)

        def done() -> bool:
            nonlocal at
            while at < count:
                state = wanted[at]._state
                if state == PENDING or state == REMOTE:
                    return False
                if state == AWAY:  # a result that has just arrived, on another node
                    self.ask_for(wanted[at : at + _ASK_AHEAD])
                    return False
                if state == FAILED:
                    # An error is raised at once, without waiting for the others.
                    return True
                at += 1
            return True

        if done():
            return
        deadline = None if timeout is None else time.monotonic() + timeout
        self.ask_for(wanted)
        if not self.sleep(done, deadline):
            raise ex.GetTimeoutError(
                f"{sum(r._state in (PENDING, REMOTE) for r in wanted)} of {count} objects are not "
                f"ready after {timeout:g} s, "
                f"the first is {wanted[at].hex()}; wait longer, or look with `noded status` what runs"
            )

    def wait(
        self, wanted: list[ObjectRef[Any]], count: int, timeout: float | None, *, pull: bool = True
    ) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
        """(ready, not ready), both in the order given; at most ``count`` are called ready. ``pull``: what lies
        elsewhere begins to come here.
        """

        def done() -> bool:
            left = count
            for ref in wanted:
                state = ref._state
                if state != PENDING and state != REMOTE:
                    left -= 1
                    if not left:
                        return True
            return False

        if not done():
            self.ask_for(wanted, pull=pull)
            deadline = None if timeout is None else time.monotonic() + timeout
            if timeout is None or timeout > 0:
                self.sleep(done, deadline)
            else:
                self.sleep(done, time.monotonic())
        ready: list[ObjectRef[Any]] = []
        for at, ref in enumerate(wanted):
            if ref._state != PENDING and ref._state != REMOTE:
                ready.append(ref)
                if len(ready) == count:
                    if at == count - 1:
                        return ready, wanted[count:]
                    chosen = set(map(id, ready))
                    return ready, [r for r in wanted if id(r) not in chosen]
        chosen = set(map(id, ready))
        return ready, [r for r in wanted if id(r) not in chosen]

    def forget_unheld_locked(self) -> None:
        """Borrowed refs that were dropped while somebody had wanted to wait for them."""
        for id_ in [id_ for id_ in self._subscribed if id_ not in self.holds.holds]:
            del self._subscribed[id_]
            self._pulled.discard(id_)

    # ------------------------------------------------------------ daemon restarts

    def retell_locked(self) -> None:
        announced, pulled = list(self._announced), list(self._pulled)
        watched = [id_ for id_ in self._subscribed if id_ not in self._pulled]
        for at in range(0, len(announced), BATCH):
            self.control.send(m.Pending(announced[at : at + BATCH]))
        for told, pull in ((pulled, True), (watched, False)):
            plain = []
            for id_ in told:
                hold = self.holds.holds.get(id_)
                ref = hold.ref() if hold is not None and hold.ref is not None else None
                if ref is not None and type(ref._value) is tuple:
                    self.control.send(self._subscription(id_, pull, ref))
                else:
                    plain.append(id_)
            for at in range(0, len(plain), BATCH):
                self.control.send(m.Subscribe(plain[at : at + BATCH], pull))

    def store_lost_locked(self, arena: Arena, reason: str) -> None:
        """The node started over with a new arena: what lay in the old one is gone, views of it stay. What others may
        wait for is published again (``republish_locked``): the value where we still have it, else that it is lost.
        """
        self.arena.close(unmap=False)
        self.arena = arena
        self.space.forget()
        asked: list[ObjectRef[Any]] = []
        for hold in self.holds.holds.values():
            ref = hold.ref() if hold.ref is not None else None
            if type(ref) is not ObjectRef:
                continue
            ours = hold.id.startswith(refs.own_prefix)
            # Our results on other nodes were pinned there for the node that is gone, and only it knew where they lie,
            # or where what we know by its id alone lies. What is being made again is still to come.
            asked_for = ours and ref._state == REMOTE and (ref._value is not None or hold.id not in self._announced)
            if ref._state == STORED or asked_for or (ours and ref._state == AWAY):
                if self.can_be_made_again(hold.id):
                    ref._value, ref._state = None, REMOTE
                    self._to_make_again[hold.id] = reason
                    continue
            if asked_for:
                asked.append(ref)
            elif ref._state == STORED or (ours and ref._state == AWAY):
                ref._value, ref._state = ex.ObjectLostError(ref.hex(), reason), FAILED
            if ours and ref._state not in (PENDING, REMOTE):
                self._to_republish.append(ref)
        for ref in asked:
            self._settle(ref.binary(), FAILED, ex.ObjectLostError(ref.hex(), reason))
            self._to_republish.append(ref)
        self.reader.notify()

    def republish_locked(self) -> None:
        """After ``Told``: before it, the daemon would take back the room that this asks for."""
        lost, self._to_republish = self._to_republish, []
        for ref in lost:
            self._seal_small_locked(ref)
        for id_, reason in list(self._to_make_again.items()):
            if self.can_be_made_again(id_):
                self.control.send(m.Gone([id_], reason))
            else:
                del self._to_make_again[id_]


class Uploads(Protocol):
    """Big values of a driver without shared memory, over connections of their own (``remote.py``)."""

    def store(self, id_: bytes, pieces: Sequence[tuple[int, Any]], size: int) -> None:
        """Blocks. Raises ObjectStoreFullError, LocalDaemonDiedError."""

    def fetch(self, id_: bytes, size: int, call: Callable[[Any], None]) -> None:
        """``call(value or exception)`` later, in another thread."""


def refs_message(seq: int, taken: list[Any], given: list[Any], after: list[refs.After]) -> m.Refs:
    one = [(id_, generation, *others[0]) for id_, generation, others in after if len(others) == 1]
    several = [entry for entry in after if len(entry[2]) > 1]
    return m.Refs(seq, taken, given, one, several)


def to_raise(error: Any) -> BaseException:
    """What get() raises for an error value: a fresh error each time. One that is kept (by a ref, by a dead actor)
    would keep the frames it was raised through, and with them all that their variables hold.
    """
    if isinstance(error, ex.TaskError):
        return error.as_dual()
    if isinstance(error, ex.NodedError):
        fresh = copy.copy(error)
        fresh.__cause__ = error.__cause__
        return fresh
    if isinstance(error, BaseException):
        return error
    return ex.NodedSystemError(f"an error value holds {error!r}")
