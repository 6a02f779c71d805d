"""The records of submitting: functions, tasks, the queue of a scheduling class, the link to a worker, packed arguments.

Only data and how arguments become bytes; what is done with them is in ``tasks.py`` and ``actors.py``.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from noded import ids
from noded.client import codec
from noded.client.objects import INLINE_LIMIT
from noded.client.refs import STORED, HoldTable, ObjectRef, Pin
from noded.wire import messages as m
from noded.wire.link import Link
from noded.wire.session_link import SessionLink


class Function(msgspec.Struct, eq=False, weakref=True):
    """A function as its workers get it."""

    name: str
    hash: bytes
    data: bytes
    refs: list[Any]
    """Refs it closes over: kept as long as it may be sent."""
    num_cpus: int = 1
    max_calls: int = 0
    us: int = -1
    """Moving average of its run time in microseconds; -1 while unknown."""


class Task(msgspec.Struct, eq=False, weakref=True):
    """One submission: a task or an actor call."""

    seq: int
    name: str
    payload: bytes
    refs: list[ObjectRef[Any]]
    returns: int
    fn: Any = None
    method: str = ""
    deps: list[tuple[int, ObjectRef[Any]]] | None = None
    keep: list[Any] | None = None
    """Refs nested in the arguments, held until the answer."""
    place: ObjectRef[Any] | None = None
    """Arguments too big for a message, in the arena."""
    queue: Any = None
    link: Any = None
    retries: int = 0
    suspect: bool = False
    """It was on a worker that died."""
    unresolved: int = 0
    waiters: list[Callable[[], None]] | None = None
    cancelled: bool = False
    killing: bool = False
    """It is cancelled by ending its worker; told again to a daemon that restarts."""
    over: bool = False
    parent: Any = None
    """The task, on this worker, that submitted it: for recursive cancel."""
    extra: m.Extra | None = None
    stream: Any = None
    pins: list[Pin] | None = None
    """Of the places that the worker was told; until it has answered."""
    count: int = -1
    """Where the counters of its name are, on this process's page; -1: it is not counted, as when it makes lost results
    again.
    """
    failed: bool = False
    lost: set[int] | None = None
    """It makes lost results again (``lineage.py``): the indices of those that are lost, the others are as they were."""


class TaskQueue:
    """The ready tasks of one scheduling class and the leases to run them."""

    def __init__(
        self,
        number: int,
        resources: dict[str, int],
        name: str,
        env: str = "",
        where: m.Place = m.ANYWHERE,
        retriable: bool = True,
    ):
        self.number = number
        self.resources = resources
        self.name = name
        self.env = env
        self.where = where
        self.retriable = retriable
        """Its tasks had retries when they were submitted."""
        self.ready: deque[Task] = deque()
        self.leases: list[WorkerLink] = []
        self.declared = 0
        self.closed = ""
        """Why nothing of it runs any more."""


class WorkerLink:
    """The data connection to one worker. It stays open between leases."""

    def __init__(self, worker: str, pid: int, link: Link):
        self.worker = worker
        self.pid = pid
        self.prefix = bytes.fromhex(worker)[:7]
        self.link = link
        self.node = ids.node_of_worker(worker)
        self.session: SessionLink | None = None
        """To a worker of another node: the link, as what survives its connections."""
        self.number = 0
        """Of the session."""
        self.address = ""
        self.inflight: dict[int, Task] = {}
        self.functions: dict[tuple[bytes, int, int], int] = {}
        """By hash, CPUs and most calls: the number that stands for the function on this connection."""
        self.lease = 0
        self.queue: TaskQueue | None = None
        self.running = 0
        """A task that runs long or blocks: nothing is pushed behind it."""
        self.recalled = False
        """The lease ends as soon as nothing is in flight."""
        self.retiring = False
        """It takes no more tasks, of nobody."""
        self.wanted = False
        """The lease ends as soon as there is nothing to push."""
        self.idle_since = 0.0
        self.actor: Any = None
        self.writing = False

    @property
    def remote(self) -> bool:
        """On another node: what lies in its arena does not lie in ours."""
        return self.session is not None


def pack_arguments(
    args: tuple[Any, ...], kwargs: dict[str, Any], what: str
) -> tuple[Any, list[tuple[int, ObjectRef[Any]]] | None]:
    """(bytes or Packed, top-level refs with their slots). Top-level refs are taken out: they are resolved
    before the push.
    """
    if not args and not kwargs:
        return b"", None
    deps: list[tuple[int, ObjectRef[Any]]] | None = None
    plain = True
    for value in args:
        if not codec.is_atom(value):
            plain = False
            break
    if plain and (not kwargs or all(codec.is_atom(v) for v in kwargs.values())):
        data = b"\0" + pickle.dumps((args, kwargs), 5)
        if len(data) <= INLINE_LIMIT:
            return data, None
    deps = [(i, value) for i, value in enumerate(args) if type(value) is ObjectRef]
    if deps:
        args = tuple([None if type(v) is ObjectRef else v for v in args])
    if kwargs:
        named = [(-1 - i, value) for i, value in enumerate(kwargs.values()) if type(value) is ObjectRef]
        if named:
            deps += named
            kwargs = {k: None if type(v) is ObjectRef else v for k, v in kwargs.items()}
    packed = codec.pack((args, kwargs), what)
    if packed.inline is not None and packed.size <= INLINE_LIMIT:
        return packed.inline, deps or None
    return packed, deps or None


def place_of(task: Task, worker: WorkerLink, holds: HoldTable) -> tuple[bytes, int, int] | None:
    """Of arguments in the arena: for a worker of this node the place, pinned. Needs the runtime's lock."""
    ref = task.place
    return None if ref is None else (ref.binary(), pinned_offset(task, ref, worker, holds), ref._value[1])


def pinned_offset(task: Task, ref: ObjectRef[Any], worker: WorkerLink, holds: HoldTable) -> int:
    """-1: its worker is to ask its node."""
    offset = ref._value[0]
    if worker.remote or ref._state != STORED or type(offset) is not int:
        return -1
    if task.pins is None:
        task.pins = []
    task.pins.append(holds.pin(ref._token.hold))
    return int(offset)
