"""Messages between daemons: a node and the head, and two nodes ("peers").

Rules as in ``messages.py``. What a client says to the head, or to another node, travels unchanged inside an envelope
(``ForHead``, ``ForPeer``) with the client's prefix; what comes back likewise (``ForClient``). The envelope's ``header``
is the encoded message, the frame's payload that message's payload.
"""

# No annotations from __future__ here: msgspec would compile the text of each as this is imported, which takes long.

import base64

import msgspec

from noded.wire.messages import ActorSpec, Death, GroupSpec, JobConfig, LogLines, Refs, _Message

CLUSTER_VERSION = 2
"""Must match exactly between daemons."""


class Struct(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """A part of a message."""


# ---------------------------------------------------------------- node -> head


class DeadActor(Struct):
    """An actor whose worker has ended."""

    id: bytes
    death: Death


class HostedActor(Struct):
    """An actor that a node has, told when it registers."""

    id: bytes
    instance: int
    """Which start of the actor this is: the head counts them."""
    worker: str
    pid: int
    spec: ActorSpec | None = None
    """None: its worker has not told since the node's daemon started."""
    alive: bool = False


class HeldGroup(Struct):
    """Bundles that a node keeps for a placement group."""

    id: bytes
    attempt: int
    bundles: list[int]
    spec: GroupSpec | None = None
    """None: the node's daemon has started since it was told."""


class Register(_Message, tag=120):
    """First, and again after each reconnect."""

    version: int
    noded: str
    """The version of noded, and that of Python."""
    python: str
    cluster: str
    cluster_id: str
    """Empty until the head has told."""
    number: int
    """0: none was given yet."""
    node_id: str
    """This start of the node (its incarnation), in hex."""
    epoch: int
    name: str
    address: str
    node_ip: str
    hostname: str
    run_dir: str
    pid: int
    total: dict[str, int]
    available: dict[str, int]
    labels: dict[str, str]
    actors: list[HostedActor] = []
    groups: list[HeldGroup] = []
    jobs: list[str] = []
    """Of its drivers that are there."""
    head_epoch: int = 0
    """The highest it has seen: a head with a lower one is not the head any more."""
    head_journalled: bool = False
    """The last head had written some of its state on its own host only, when it was last heard of."""
    deaths: list[DeadActor] = []
    """The last ones: the head, or this node's daemon, may have been away."""
    left: list[str] = []
    """Jobs whose drivers have left in order here, the last ones, for the same reason."""


class Report(_Message, tag=121):
    """A heartbeat, with what has changed since the last one."""

    seq: int
    total: dict[str, int] | None = None
    available: dict[str, int] | None = None
    """Amounts that have changed; 0 for what is gone."""
    waiting: int = 0
    """Leases, actors and groups that wait here."""
    busy: bool = True


class ForHead(_Message, tag=122):
    """From a client of this node to the head. Payload: the inner message's."""

    prefix: bytes
    header: bytes


class AskHead(_Message, tag=123):
    """Answered with HeadAnswer. Payload: JSON arguments, or bytes, as ``what`` wants it."""

    request: int
    what: str


class ActorStarted(_Message, tag=124):
    id: bytes
    instance: int
    worker: str
    pid: int


class ActorNever(_Message, tag=125):
    """It cannot run there; see ``ActorAt.kind``. ``full``: not now, place it elsewhere."""

    id: bytes
    instance: int
    reason: str
    kind: str


class ActorExited(_Message, tag=126):
    id: bytes
    instance: int
    death: Death | None


class ActorHosted(_Message, tag=135):
    """After a restart of the node's daemon: it is there."""

    actor: HostedActor


class ActorUnheld(_Message, tag=127):
    """Nobody has a handle any more."""

    id: bytes


class CreatorGone(_Message, tag=128):
    """A client of this node has ended."""

    prefix: bytes


class JobGone(_Message, tag=129):
    """The driver of this job has ended or left."""

    job: str
    reason: str = ""
    """Why it has ended; empty: it has left in order."""


class GroupReserved(_Message, tag=130):
    id: bytes
    attempt: int
    ok: bool
    reason: str = ""


class GroupReleased(_Message, tag=131):
    """What ran in the group has ended, and its amounts are the node's again."""

    id: bytes
    attempt: int


class Leave(_Message, tag=132):
    """The node ends in order, with all that runs on it."""

    reason: str


class StorePackage(_Message, tag=133):
    """A package of a runtime environment. Payload: the zip."""

    uri: str


class Asked(_Message, tag=134):
    """The answer to AskNode. Payload: JSON."""

    request: int
    ok: bool


# ---------------------------------------------------------------- head -> node


class NodeEntry(Struct):
    """What everybody knows of a node. ``state``: ALIVE, AWAY, DRAINING or DEAD."""

    number: int
    id: str
    name: str
    address: str
    state: str
    total: dict[str, int]
    available: dict[str, int]
    labels: dict[str, str]
    ip: str = ""
    reason: str = ""


class Registered(_Message, tag=140):
    number: int
    cluster_id: str
    epoch: int
    head_number: int
    beat_seconds: float
    actors: list[bytes] = []
    """Actors made by clients of this node: those that nobody holds any more are to be told."""
    jobs: list[str] = []
    """All that are known to have a driver, or a detached actor: what runs here of others is to end, unless the head
    says that they live (the question ``job_lives``).
    """
    head_grace: float = 600.0


class NotRegistered(_Message, tag=141):
    """``dead``: this start of the node was declared dead. It must end all it has and start over."""

    reason: str
    dead: bool = False
    superseded: bool = False


class Beat(_Message, tag=142):
    """The report with this number has been read. ``journalled``: part of what the head has written is on its own host
    only.
    """

    seq: int
    journalled: bool = False


class Nodes(_Message, tag=143):
    """Nodes that are new or have changed; ``all``: those not named are gone. Payload: msgpack list of NodeEntry."""

    all: bool = False


class ForClient(_Message, tag=144):
    """To a client of the receiving node. Payload: the inner message's."""

    prefix: bytes
    header: bytes


class HeadAnswer(_Message, tag=145):
    request: int
    ok: bool
    binary: bool = False


class HostActor(_Message, tag=146):
    """Start this actor. ``wait``: also when there is no room now; else it is refused as ``full``.
    Payload: class and arguments.
    """

    spec: ActorSpec
    instance: int
    restarted: bool
    job_config: JobConfig
    wait: bool


class StopActor(_Message, tag=147):
    id: bytes
    instance: int
    reason: str
    graceful: bool
    move: bool = False
    """Only if it still waits for room; then it is answered as ``full``."""
    kind: str = ""
    """Of the reason, see ``policy/deaths.py``."""


class ReserveGroup(_Message, tag=148):
    """Keep these bundles (index -> amounts) of a group. ``wait``: also when they are not free now."""

    spec: GroupSpec
    attempt: int
    bundles: dict[int, dict[str, int]]
    wait: bool

    @property
    def id(self) -> bytes:
        return self.spec.id


class ReleaseGroup(_Message, tag=149):
    """End what runs in it and give its bundles back. Without ``removed`` the group lives on elsewhere."""

    id: bytes
    attempt: int
    removed: bool


class EndJob(_Message, tag=150):
    """End the workers of this job, but those of these (detached) actors."""

    job: str
    spare: list[bytes] = []


class StopNode(_Message, tag=151):
    """End in order."""

    reason: str


class AskNode(_Message, tag=152):
    """Answered with Asked. Payload: JSON arguments."""

    request: int
    what: str


class ClaimActors(_Message, tag=154):
    """These were made here, as a node tells that has them: answered with ActorUnheld for each that nobody holds."""

    ids: list[bytes]


class Drain(_Message, tag=153):
    """Take nothing new; ``on``: or take it again."""

    on: bool


# ---------------------------------------------------------------- peer -> peer: who has dialed


class PeerAttach(_Message, tag=160):
    """First. Then follow the holds and copies of objects of the other's (all of them), and PeerTold."""

    version: int
    cluster_id: str
    number: int
    node_id: str
    epoch: int


class PeerTold(_Message, tag=161):
    """All holds are told: what was not is not held."""

    seq: int


class Copies(_Message, tag=162):
    """Objects of the receiver's that lie at the sender: (id, size). ``gone``: they do not any more."""

    seq: int
    objects: list[tuple[bytes, int]] = []
    gone: list[bytes] = []


class WantObjects(_Message, tag=163):
    """Say where they are (Found) as soon as they are there, or that they will not be (NotFound)."""

    ids: list[bytes]


class Hurry(_Message, tag=164):
    """Say when this client of yours was read so far, and what it has told is known where it belongs (HasRead)."""

    token: int
    prefix: bytes
    seq: int


class ForPeer(_Message, tag=165):
    """From a client of the sender to the receiver. Payload: the inner message's."""

    prefix: bytes
    header: bytes
    job: str = ""
    job_config: JobConfig | None = None
    """The first time, and after each reconnect."""


class PeerClientGone(_Message, tag=166):
    """This client of the sender's has ended."""

    prefix: bytes


class Output(_Message, tag=167):
    """Lines of workers of a job whose driver is a client of the receiver."""

    job: str
    lines: LogLines


class OutputOver(_Message, tag=193):
    """All Output of a job that was asked for with this token has been sent before."""

    token: str


# ---------------------------------------------------------------- peer -> peer: who was dialed


class PeerWelcome(_Message, tag=180):
    version: int
    number: int
    node_id: str
    epoch: int
    clients: list[bytes] = []
    """Clients of the one that has dialed for which leases are known here."""
    refused: str = ""


class PeerRead(_Message, tag=181):
    """Numbered messages have been read so far."""

    seq: int


class Dropped(_Message, tag=182):
    """Nobody needs these any more: forget the copies."""

    ids: list[bytes]


class Found(_Message, tag=183):
    """An object, where it lies (numbers of nodes, the best one first); none: the value is the payload."""

    id: bytes
    size: int
    nodes: list[int]


class NotFound(_Message, tag=184):
    """See ``Lost``."""

    id: bytes
    kind: str
    reason: str


class HasRead(_Message, tag=185):
    token: int


class GuestTold(_Message, tag=187):
    """What leases this client has is known here, and those that it did not name are over: grants that come from now on
    are new.
    """

    prefix: bytes


class Reschedule(_Message, tag=186):
    """There is no room for so many leases of this class; the demand is forgotten here."""

    prefix: bytes
    cls: int
    reason: str = ""


ToHead = (
    Register
    | Report
    | ForHead
    | AskHead
    | ActorStarted
    | ActorNever
    | ActorExited
    | ActorHosted
    | ActorUnheld
    | CreatorGone
    | JobGone
    | GroupReserved
    | GroupReleased
    | Leave
    | StorePackage
    | Asked
)
FromHead = (
    Registered
    | NotRegistered
    | Beat
    | Nodes
    | ForClient
    | HeadAnswer
    | HostActor
    | StopActor
    | ReserveGroup
    | ReleaseGroup
    | EndJob
    | ClaimActors
    | StopNode
    | AskNode
    | Drain
)
ToPeer = PeerAttach | PeerTold | Refs | Copies | WantObjects | Hurry | ForPeer | PeerClientGone | Output | OutputOver
FromPeer = PeerWelcome | PeerRead | Dropped | Found | NotFound | HasRead | Reschedule | GuestTold | ForClient

decode_to_head = msgspec.msgpack.Decoder(ToHead).decode
decode_from_head = msgspec.msgpack.Decoder(FromHead).decode
decode_to_peer = msgspec.msgpack.Decoder(ToPeer).decode
decode_from_peer = msgspec.msgpack.Decoder(FromPeer).decode
encode_entries = msgspec.msgpack.Encoder().encode
decode_entries = msgspec.msgpack.Decoder(list[NodeEntry]).decode


def as_text(record: msgspec.Struct) -> str:
    """A record inside JSON."""
    return base64.b64encode(msgspec.msgpack.encode(record)).decode()


def job_config_of(text: str) -> JobConfig:
    return msgspec.msgpack.decode(base64.b64decode(text), type=JobConfig)
