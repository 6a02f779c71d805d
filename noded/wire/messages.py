"""Every message of the control and the data protocol, one union per direction.

New behaviour is a new message or a new field with a default, never a new meaning for an old one. A message's
payload (opaque bytes behind the header, see ``link.py``) is named in its comment; user values are only ever
in payloads or in the arena, and no daemon unpickles them. Between daemons: ``cluster_messages.py``. The spawner has a
protocol of its own (``spawner/protocol.py``).
"""

# No annotations from __future__ here: msgspec would compile the text of each as this is imported, which takes long.

import msgspec

PROTOCOL_VERSION = 3
"""Of the control messages. A daemon takes clients of this version and of the one before, OLDEST_PROTOCOL, which it
speaks to them then. Attach and Refused never change, so that any two can tell each other what is wrong.
"""
OLDEST_PROTOCOL = 2
KNOWN_TO_OLDEST = {40: 16, 47: 2, 53: 1, 66: 0, 67: 0, 68: 0, 69: 0, 79: 0, 100: 0, 115: 0}
"""By tag, of what goes to clients: how many fields OLDEST_PROTOCOL knows, where there are more by now; 0: it does not
know the message.
"""
REBUILD_SINCE = 3
SPILL_SINCE = 3
"""Clients from this version on give places up, and read and write files."""
MEMORY_SINCE = 3
"""Clients from this version on say how they hold objects."""
TASKS_SINCE = 3
"""Clients from this version on say what tasks they have."""
STACK_SINCE = 3
"""Workers from this version on tell their stacks."""
_DEATH_AT, _DEATH_KNOWN = {45: 2, 50: 6}, 8
"""Where those messages have a Death, of which OLDEST_PROTOCOL knows so many fields."""
DATA_VERSION = 2
"""Of the messages between clients and workers. Those of different versions meet on a node that was upgraded, and who
calls does not know which one the worker has: so it must match, and what is new is a message that is understood in one
version and first sent in the next.
"""


class _Message(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """Array-like and tagged by number: a header costs a few bytes and half a microsecond."""


# ---------------------------------------------------------------- shared records


class JobConfig(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """What a driver gives to the workers of its job."""

    sys_path: list[str] = []
    cwd: str = ""
    namespace: str = ""
    env: dict[str, str] = {}
    log_to_driver: bool = True
    entrypoint: str = ""
    node: int = 0
    """The number of the driver's node; told by that."""


class Death(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Why a process ended, as the kernel and the spawner tell it."""

    worker: str
    pid: int = 0
    code: int | None = None
    signal: int | None = None
    reason: str = ""
    """A sentence: who or what ended it, and why."""
    max_rss_kb: int = 0
    stderr: list[str] = []
    node: str = ""
    """The id of its node."""
    kind: str = ""
    """One of ``policy/deaths.py``: the cause, for programs."""
    free: bool = False
    """It was not for what it ran: running that again costs no retry."""


class Skipped(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """What a worker has written and a driver is not shown."""

    worker: str
    name: str
    pid: int
    bytes: int
    lines: int
    """About."""


class Extra(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """What few calls have: so that the many pay one byte for it."""

    window: int = 0
    """Streaming: so many items may be ahead of what the caller has taken; 0: any number."""
    skip: int = 0
    """Streaming, run again: so many items have arrived already."""
    retry: bytes = b""
    """Exceptions that the caller would retry: ``*`` for all, else a pickled tuple of classes."""
    group: str = ""
    """Concurrency group of an actor call."""
    name: str = ""
    """The task's name where it is not the function's."""


class Place(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """Where something may run, beside having the resources. Nothing set: anywhere."""

    group: bytes = b""
    """A placement group; ``bundle`` -1: any of its bundles."""
    bundle: int = -1
    capture: bool = False
    """What it submits goes into the same group."""
    node: str = ""
    """Only this node, or with ``soft`` this one if it can."""
    soft: bool = False
    spread: bool = False
    labels: str = ""
    """Conditions on the node's labels, see ``policy/labels.py``."""
    near: int = 0
    """The number of the node that most of its arguments lie on, as far as that matters."""


ANYWHERE = Place()


class GroupSpec(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """A placement group. Amounts in resource units."""

    id: bytes
    bundles: list[dict[str, int]]
    strategy: str = "PACK"
    name: str = ""
    namespace: str = ""
    detached: bool = False
    job: str = ""
    actor: bytes = b""
    """The actor that made it: a detached one keeps its groups beyond its job."""
    labels: list[str] = []
    """For each bundle, conditions on its node's labels; none at all: any node."""


class Method(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """What a handle knows of one of its actor's methods."""

    returns: int = 1
    """The default number of returns; STREAMING or DYNAMIC."""
    fewest: int = 0
    most: int = -1
    """Positional arguments; -1: no limit."""
    parameters: list[tuple[str, int, bool]] | None = None
    """(name, inspect's kind, has a default); None when it is not known."""
    retries: int = 0
    retry: bytes = b""
    group: str = ""
    window: int = 0


STREAMING, DYNAMIC = -1, -2
"""Instead of a number of returns: items as they come; a first return that holds the refs of all items."""


class ActorSpec(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """All that is needed to make an actor. The payload beside it holds class and arguments (``class_size``
    bytes, then the arguments).
    """

    id: bytes
    class_name: str
    class_hash: bytes
    class_size: int
    methods: dict[str, Method]
    resources: dict[str, int]
    placement: dict[str, int]
    """What must be free to place it; equals ``resources`` unless only the defaults apply (one CPU to place,
    none to run).
    """
    name: str = ""
    namespace: str = ""
    detached: bool = False
    max_restarts: int = 0
    max_task_retries: int = 0
    job: str = ""
    deps: list[tuple[int, int, int, bytes]] = []
    args_place: tuple[bytes, int, int] | None = None
    is_async: bool = False
    max_concurrency: int = 0
    """0: one call at a time, or, when async, the default of 1,000."""
    concurrency_groups: dict[str, int] = {}
    max_pending_calls: int = -1
    env: str = ""
    """The resolved runtime environment, as canonical JSON."""
    where: Place = ANYWHERE
    unordered: bool = False
    """A call that waits for its arguments does not hold back the later ones of its caller."""


# ---------------------------------------------------------------- control: client -> daemon


class Attach(_Message, tag=1):
    """The first message on a control link, and again after each reconnect."""

    version: int
    kind: str
    """``driver``, ``worker``, or ``tool`` (asks questions only)."""
    prefix: bytes
    """Empty for a driver that has none yet: it is answered with Named, and attaches again."""
    pid: int
    job: str = ""
    worker: str = ""
    python: str = ""
    job_config: JobConfig | None = None
    actor: ActorSpec | None = None
    """A worker that hosts an actor re-tells its spec."""
    actor_alive: bool = False
    incarnation: bytes = b""
    """The node incarnation the client was attached to before, empty at first."""
    lease: int = 0
    """The highest lease a worker has seen."""
    leaving: str = ""
    """Why a worker's actor ends by its own wish."""


class Told(_Message, tag=2):
    """Ends the re-telling after an attach."""

    seq: int
    leases: list[tuple[int, str]]
    pending: list[int]
    """Numbers of tasks and calls pushed and not yet answered."""
    regions: list[int]
    """Offsets of the regions this client still allocates in or writes to; its others are retired."""
    blocked: bool = False
    streams: list[tuple[int, int]] = []
    """Of pending tasks that stream: so many of its items have arrived."""
    top: int = 0
    """The highest number of a submission so far."""
    queued: list[int] = []
    """Numbers of tasks and calls that were not pushed yet, or are to be pushed again."""
    files: list[str] = []
    """Files this client still writes to; its others are sealed or given up."""


class ClassDef(_Message, tag=3):
    cls: int
    resources: dict[str, int]
    name: str = ""
    env: str = ""
    where: Place = ANYWHERE
    retriable: bool = True
    """Its tasks may be run again when their worker dies."""


class Demand(_Message, tag=4):
    """How many more leases of a class this client could use now: absolute, replaces the earlier number."""

    cls: int
    count: int
    wait: bool = True
    """Between nodes: keep what cannot be served now; else it is sent back."""


class LeaseDone(_Message, tag=5):
    lease: int
    retiring: bool = False
    """Its worker takes no more tasks."""
    worker: str = ""
    """It says which node the lease is of."""


class Blocked(_Message, tag=6):
    pass


class Unblocked(_Message, tag=7):
    pass


class Refs(_Message, tag=8):
    """Holds taken and given up; holds are applied before releases."""

    seq: int
    holds: list[tuple[bytes, int]] = []
    releases: list[tuple[bytes, int]] = []
    after: list[tuple[bytes, int, bytes, int]] = []
    """(id, generation, receiver's prefix, receiver's seq): release once the receiver has been read that far.
    """
    after_all: list[tuple[bytes, int, list[tuple[bytes, int]]]] = []
    """(id, generation, receivers and their seqs): likewise, once all of them have been read so far."""


class Sealed(_Message, tag=9):
    """Objects written to the arena: (id, offset of its header)."""

    seq: int
    objects: list[tuple[bytes, int]]


class Pending(_Message, tag=10):
    """Refs without a value yet that left this process; it publishes them when they arrive."""

    ids: list[bytes]


class Subscribe(_Message, tag=11):
    """Answer with Ready or Lost as soon as known; without ``pull`` also with Exists, when it is on another node."""

    ids: list[bytes]
    pull: bool = True
    at: int = 0
    """The node that its maker said it lies on, when that may not have told yet."""
    maker: bytes = b""
    """The worker there that has stored it, and how far in its control stream it has said so."""
    seq: int = 0


class RegionWant(_Message, tag=12):
    request: int
    size: int
    single: bool


class RegionDone(_Message, tag=13):
    """The client allocates no more in this region."""

    offset: int


class CreateActor(_Message, tag=14):
    """Payload: class and arguments."""

    spec: ActorSpec
    request: int
    again: bool = False
    """It was asked for before; the head may have started anew since."""


class WatchActor(_Message, tag=15):
    id: bytes
    was: bool = False
    """The client has had its address before: it need not be created any more."""


class KillActor(_Message, tag=16):
    id: bytes
    no_restart: bool
    reason: str = ""


class ActorUp(_Message, tag=17):
    """From the actor's worker: the constructor has returned."""

    id: bytes


class ActorFailed(_Message, tag=18):
    """From the actor's worker: the constructor raised. Payload: the error value."""

    id: bytes


class JobReady(_Message, tag=19):
    job: str
    failed: str = ""
    """Why its runtime environment cannot be entered."""


class KillTask(_Message, tag=20):
    """Force-cancel: end the worker that runs this task under this lease."""

    lease: int
    worker: str


class Ask(_Message, tag=21):
    """A question that is answered with Answer. Payload: JSON arguments."""

    request: int
    what: str


class ForkHold(_Message, tag=22):
    """Comes with one descriptor, the read end of a pipe: hold these ids until it is at its end."""

    token: int
    ids: list[bytes]


class Detach(_Message, tag=23):
    """A driver leaves in order; the daemon answers Bye after the job's last output lines."""


class WorkerIdle(_Message, tag=24):
    """From a worker whose job ended or whose actor left by itself: it is about to exit with this reason."""

    reason: str


class CreateGroup(_Message, tag=25):
    """Repeating it is harmless; answered with GroupAt, and again at each change."""

    spec: GroupSpec


class RemoveGroup(_Message, tag=26):
    id: bytes


class WatchGroup(_Message, tag=27):
    id: bytes


class CancelRef(_Message, tag=28):
    """Cancel the task of a ref that another process submitted; the daemon passes it on to that process."""

    id: bytes
    force: bool
    recursive: bool
    origin: bytes = b""
    """Tells requests apart: one that is told again after a restart is not followed twice."""


class Package(_Message, tag=29):
    """A package of a runtime environment, named by its content. Payload: the zip."""

    uri: str


class ActorLeaves(_Message, tag=30):
    """From the actor's worker: it ends by its own wish, and waits for Exit."""

    id: bytes
    reason: str


class StreamOver(_Message, tag=31):
    """A stream that a worker died of has ended: what that worker had stored from item ``count`` on is not wanted."""

    seq: int
    count: int


class Dial(_Message, tag=32):
    """Connect us to a worker of another node; answered with Dialed."""

    worker: str
    address: str


class Explained(_Message, tag=33):
    """What an Explain asked for. Payload: JSON."""

    request: int


class Publish(_Message, tag=34):
    """From a driver without shared memory: a small object. Payload: its value."""

    seq: int
    id: bytes


class SealAt(_Message, tag=35):
    """From a driver without shared memory, which has sent this object over a connection of its own."""

    seq: int
    id: bytes


class Gone(_Message, tag=36):
    """Objects that this client has made are lost. ``final``: they cannot be made again, which was asked for."""

    ids: list[bytes]
    reason: str
    final: bool = False


class Vacated(_Message, tag=37):
    """This client has forgotten where those objects lie, but for the busy ones, and what it tells them by now is on
    its way: each of ``after`` has got an object's place from it, and has said so at that seq.
    """

    request: int
    busy: list[bytes] = []
    after: list[tuple[bytes, int]] = []


class SealedOnDisk(_Message, tag=38):
    """An object is in the file that came with a DiskRegion; with an empty id it will not be."""

    seq: int
    id: bytes
    path: str


class Unreadable(_Message, tag=39):
    """The file that came with an OnDisk cannot be read."""

    id: bytes
    reason: str


class Holds(_Message, tag=80):
    """What a WhoHolds asked for. Payload: JSON."""

    request: int


class Tasks(_Message, tag=101):
    """What a WhatTasks asked for. Payload: JSON."""

    request: int


class Stack(_Message, tag=116):
    """What a WhatStack asked for. Payload: JSON."""

    request: int


# ---------------------------------------------------------------- control: daemon -> client


class Welcome(_Message, tag=40):
    """Comes with the arena's descriptor."""

    version: int
    epoch: int
    incarnation: bytes
    node_id: str
    job: str
    arena_size: int
    slab_size: int
    run_dir: str
    address: str
    node_ip: str
    cluster: str
    grace: float = 60.0
    """Seconds without a daemon after which the node ends everything, and nobody need wait for it any more."""
    number: int = 0
    """Of the node, see ``ids.py``."""
    head: bool = True
    warning: str = ""
    """For people, where something does not match."""
    tls: bool = False
    """HTTP at ``address`` is HTTPS."""
    noded: str = ""
    """The daemon's version; since protocol 3."""
    pages: str = ""
    """The directory for the receiver's telemetry page; empty: it keeps it in memory. Since protocol 3."""


class Refused(_Message, tag=41):
    reason: str


class Grant(_Message, tag=42):
    cls: int
    lease: int
    worker: str
    path: str
    pid: int
    gpus: list[str] = []
    """What CUDA_VISIBLE_DEVICES is to name."""
    where: Place = ANYWHERE
    """The class's, with the bundle that was chosen."""
    address: str = ""
    """Of its node, when that is another one; ``path`` is empty then."""


class Recall(_Message, tag=43):
    """Others wait: return the lease when it has nothing to do, or, with ``now``, at the next task boundary."""

    lease: int
    worker: str
    now: bool


class Unschedulable(_Message, tag=44):
    cls: int
    reason: str
    kind: str = ""
    """Empty: never fits; ``env``: the runtime environment cannot be made; ``removed``: its placement group is gone;
    ``start``: no worker can be started.
    """


class WorkerDied(_Message, tag=45):
    lease: int
    death: Death


class Region(_Message, tag=46):
    request: int
    offset: int
    size: int


class RegionFailed(_Message, tag=47):
    request: int
    reason: str
    kind: str = ""
    """``disk``: it is the disk that is full; ``slab``: there is no room for one, ask for each object."""


class Ready(_Message, tag=48):
    """(id, offset of the value, size of the value)."""

    objects: list[tuple[bytes, int, int]]


class Lost(_Message, tag=49):
    id: bytes
    kind: str
    """``owner`` (its maker died before it was there), ``lost`` or ``freed``."""
    reason: str


class ActorAt(_Message, tag=50):
    """The state of an actor. Payload when dead by its constructor: the error value."""

    id: bytes
    state: str
    """``pending``, ``starting`` (has an address, constructor runs), ``alive``, ``restarting`` or ``dead``."""
    worker: str = ""
    path: str = ""
    pid: int = 0
    death: Death | None = None
    reason: str = ""
    kind: str = ""
    """Of a reason: ``never`` (fits nowhere), ``env`` (its runtime environment), ``removed`` (its placement group),
    ``start`` (no worker can be started); else, when dead, as in ``Death``.
    """
    unordered: bool = False
    """See ``ActorSpec``."""
    address: str = ""
    """Of its node, when that is another one; ``path`` is empty then."""


class SetJob(_Message, tag=51):
    job: str
    config: JobConfig
    num_cpus: int = 1
    env: str = ""
    """The resolved runtime environment, and how it was prepared here (``runtime_env.prepared``, encoded)."""
    prepared: bytes = b""


class Instantiate(_Message, tag=52):
    """Payload: class and arguments."""

    spec: ActorSpec
    gpus: list[str] = []
    restarted: bool = False


class LogLines(_Message, tag=53):
    """Worker output for a driver: (name, pid, is stderr, lines)."""

    batches: list[tuple[str, int, bool, list[str]]]
    ip: str = ""
    """Of the workers' node."""
    workers: list[str] = []
    """The worker of each batch, by its id."""
    skipped: list[Skipped] = []


class Answer(_Message, tag=54):
    """Payload: JSON."""

    request: int
    ok: bool


class Bye(_Message, tag=55):
    pass


class Exit(_Message, tag=56):
    """To a worker: finish what runs and end."""

    reason: str


class GroupAt(_Message, tag=57):
    """The state of a placement group: ``pending``, ``created``, ``removed``, or ``infeasible`` with the reason."""

    id: bytes
    state: str
    reason: str = ""
    nodes: list[int] = []
    """Of a created one: the number of the node of each bundle."""


class CancelFor(_Message, tag=58):
    """Another process cancels a task of this one."""

    id: bytes
    force: bool
    recursive: bool
    origin: bytes = b""


class Named(_Message, tag=59):
    """A driver's prefix: it attaches again with this one."""

    prefix: bytes


class Exists(_Message, tag=60):
    """(id, size of the value, number of a node that has it): it is not here, and can be had."""

    objects: list[tuple[bytes, int, int]]


class Dialed(_Message, tag=61):
    """Comes with the connected socket, unless there is an error."""

    worker: str
    error: str = ""


class Caller(_Message, tag=62):
    """To a worker: comes with the socket of somebody on another node who wants to talk to it."""


class Retell(_Message, tag=63):
    """The head has started anew: tell again about actors and placement groups."""


class Explain(_Message, tag=64):
    """What do you know of this task, actor or object, and why does it wait?"""

    request: int
    id: bytes


class Rebuild(_Message, tag=66):
    """Objects that the receiver has made are lost, and wanted: it makes them again, or answers Gone."""

    ids: list[bytes]
    reason: str


class Vacate(_Message, tag=67):
    """The node needs the room: forget where these objects lie, unless somebody looks at them, and allocate no more in
    the regions at these offsets. Answered with Vacated.
    """

    request: int
    ids: list[bytes]
    regions: list[int] = []


class OnDisk(_Message, tag=68):
    """In place of Ready, where there is no room: read it from a file. (id, path, offset of the value, its size)."""

    objects: list[tuple[bytes, str, int, int]]


class DiskRegion(_Message, tag=69):
    """In place of Region for one object: write it to this file, as a record."""

    request: int
    path: str


class WhoHolds(_Message, tag=79):
    """How does the receiver hold these objects, and which line made its ref? Answered with Holds."""

    request: int
    ids: list[bytes]
    how: bool = True
    """False: it is only asked for the lines."""


class WhatTasks(_Message, tag=100):
    """Which tasks and calls of the receiver's have not ended, and which has it seen fail? Answered with Tasks. Since
    protocol 3.
    """

    request: int
    limit: int
    """At most so many, those with the smallest numbers."""
    states: list[str] = []
    """Only those in one of these, in small letters; empty: in any. So with all that follow."""
    names: list[str] = []
    numbers: list[int] = []
    after: int = 0
    """Only those with greater numbers."""
    not_names: list[str] = []


class WhatStack(_Message, tag=115):
    """To a worker: what are its threads at, in Python? Answered with Stack. Since protocol 3."""

    request: int


class Value(_Message, tag=65):
    """In place of Ready, to a driver without shared memory. Payload: the value, if it is small, else it is fetched."""

    id: bytes
    size: int
    inline: bool


# ---------------------------------------------------------------- data: client -> worker


class Hello(_Message, tag=70):
    version: int
    prefix: bytes
    pid: int
    session: int = 0
    """On a connection between nodes: number of a session that outlives it; ``got``: frames of it that have arrived."""
    got: int = 0


class Func(_Message, tag=71):
    """Payload: the pickled function."""

    number: int
    hash: bytes
    name: str
    num_cpus: int
    max_calls: int = 0
    """After so many calls the worker ends; 0: never."""


class Push(_Message, tag=72):
    """Run a task. Payload: the arguments' value (``args`` bytes), then inline dependencies in order."""

    seq: int
    lease: int
    fn: int
    returns: int = 1
    args: int = 0
    deps: list[tuple[int, int, int, bytes]] = []
    """(slot, size, offset, id): id empty = inline. slot >= 0 is a position, -1-i the i-th keyword. offset -1: not in
    this node's arena, or not known to be: the worker's daemon has it or gets it.
    """
    place: tuple[bytes, int, int] | None = None
    """Arguments in the arena: (id, offset, size); offset as in ``deps``."""
    extra: Extra | None = None


class Call(_Message, tag=73):
    """Call a method of the worker's actor. Payload as for Push."""

    seq: int
    method: str
    returns: int = 1
    args: int = 0
    deps: list[tuple[int, int, int, bytes]] = []
    place: tuple[bytes, int, int] | None = None
    extra: Extra | None = None


class Cancel(_Message, tag=74):
    seq: int
    recursive: bool


class GiveBack(_Message, tag=75):
    """Return everything that has not started."""


class Taken(_Message, tag=76):
    """The caller has taken ``count`` items of a stream; -1: it wants no more."""

    seq: int
    count: int


class Lent(_Message, tag=77):
    """Before the first push under a lease: what comes with it."""

    lease: int
    resources: dict[str, int]
    gpus: list[str]
    where: Place


class GotCalls(_Message, tag=78):
    """On a connection between nodes: so many frames of this session have arrived here."""

    count: int


# ---------------------------------------------------------------- data: worker -> client


class Done(_Message, tag=90):
    """One inline return value. Payload: the value; empty for None."""

    seq: int
    us: int
    hseq: int = 0
    """When the task's arguments held refs: the worker's control seq behind which all holds it took are."""


class DoneMany(_Message, tag=91):
    """Return values: (size, offset, id), id empty = inline in the payload, in order."""

    seq: int
    us: int
    hseq: int
    outs: list[tuple[int, int, bytes]]


class Failed(_Message, tag=92):
    """Payload: the error value, for every return."""

    seq: int
    us: int
    hseq: int = 0
    cancelled: bool = False
    retry: bool = False
    """One of the exceptions that the caller would retry."""


class Returned(_Message, tag=93):
    """These tasks have not started and are the client's again. ``running``: the one that goes on, 0 if none."""

    seqs: list[int]
    running: int = 0
    retiring: bool = False
    """The worker takes no more tasks: end the lease."""


class Stale(_Message, tag=94):
    """Pushed under a lease older than one this worker has seen; not started."""

    seqs: list[int]


class Item(_Message, tag=95):
    """One item of a stream, in order. Payload: the value, when ``id`` is empty; else its place."""

    seq: int
    index: int
    size: int = 0
    offset: int = 0
    id: bytes = b""
    hseq: int = 0
    """Of a stored one: the worker's control seq behind which the daemon knows of it."""


class GotAnswers(_Message, tag=96):
    """On a connection between nodes: so many frames of this session have arrived here; -1: it is not known here."""

    count: int


ToDaemon = (
    Attach
    | Told
    | ClassDef
    | Demand
    | LeaseDone
    | Blocked
    | Unblocked
    | Refs
    | Sealed
    | Pending
    | Subscribe
    | RegionWant
    | RegionDone
    | CreateActor
    | WatchActor
    | KillActor
    | ActorUp
    | ActorFailed
    | JobReady
    | KillTask
    | Ask
    | ForkHold
    | Detach
    | WorkerIdle
    | CreateGroup
    | RemoveGroup
    | WatchGroup
    | CancelRef
    | Package
    | ActorLeaves
    | StreamOver
    | Dial
    | Explained
    | Publish
    | SealAt
    | Gone
    | Vacated
    | SealedOnDisk
    | Unreadable
    | Holds
    | Tasks
    | Stack
)
ToClient = (
    Welcome
    | Refused
    | Grant
    | Recall
    | Unschedulable
    | WorkerDied
    | Region
    | RegionFailed
    | Ready
    | Lost
    | ActorAt
    | SetJob
    | Instantiate
    | LogLines
    | Answer
    | Bye
    | Exit
    | GroupAt
    | CancelFor
    | Named
    | Exists
    | Dialed
    | Caller
    | Retell
    | Explain
    | Value
    | Rebuild
    | Vacate
    | OnDisk
    | DiskRegion
    | WhoHolds
    | WhatTasks
    | WhatStack
)
ToWorker = Hello | Func | Push | Call | Cancel | GiveBack | Taken | Lent | GotCalls
FromWorker = Done | DoneMany | Failed | Returned | Stale | Item | GotAnswers

encode = msgspec.msgpack.Encoder().encode
decode_to_daemon = msgspec.msgpack.Decoder(ToDaemon).decode
decode_to_client = msgspec.msgpack.Decoder(ToClient).decode
decode_to_worker = msgspec.msgpack.Decoder(ToWorker).decode
decode_from_worker = msgspec.msgpack.Decoder(FromWorker).decode


def for_oldest(header: bytes) -> bytes:
    """An encoded message as OLDEST_PROTOCOL has it; empty when it has none."""
    # A small array has its size in the first byte, a larger one in two more; then comes the tag.
    tag = header[1] if header[0] & 0xF0 == 0x90 else header[3]
    if (at := _DEATH_AT.get(tag)) is not None:
        fields = msgspec.msgpack.decode(header)
        if len(fields) > at and fields[at] is not None:
            fields[at] = fields[at][:_DEATH_KNOWN]
        return msgspec.msgpack.encode(fields)
    known = KNOWN_TO_OLDEST.get(tag)
    if known is None:
        return header
    return msgspec.msgpack.encode(msgspec.msgpack.decode(header)[: known + 1]) if known else b""
