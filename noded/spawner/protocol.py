"""The spawner contract: packets between daemon and spawner, and between spawner and template.

Both links are AF_UNIX SOCK_SEQPACKET; a packet is one JSON object of at most 64 KB whose "t" names it, with
up to MAX_FDS descriptors beside it. The contract outlives a version: it has its own number, checked in hello.
A new behaviour is a new packet, never a new meaning for an old one. A spawner outlives the upgrade of its daemon, so
each side also takes the version before its own (OLDEST), and then sends no packet that the other does not know. A new
field is no new version: who does not know it does not look at it. Not here: queues (`link`) and behaviour.

daemon -> spawner
  hello     protocol, epoch?      first packet; makes the sender the daemon and ends the one before it.
                                  epoch: the highest the daemon has seen; the next one will be above it
  keep      name  + 1 descriptor  hold a copy of the descriptor (replaces one of that name)
  forget    name                  close it
  template  key, argv, env        start a template unless one of that key lives. The spawner appends
                                  --fd N --dir RUN_DIR --tag TAG to argv and sets NODED_MARK in env
  retire    key                   (since 3) end this template; its workers stay
  fork      key, wid, args        a worker from that template; wid: 16 lower-case hexadecimal digits, a new
                                  one each time; args: object; args.stdout, args.stderr: its output files
  kill      wid, signal           send a signal (a fork under way gets it as soon as it exists)
  ack       wid                   the exit of wid is dealt with: forget it
  grace     seconds               how long to wait for a daemon when there is none
  guard     until, wids           stop these workers (SIGSTOP) when CLOCK_MONOTONIC is there, unless told otherwise
                                  before; those that were stopped and are not due any more go on
  absence   name, after           (since 3) when there has been no daemon for so many seconds, say so (AWAY) to whoever
                                  connects to this listening socket
  stop                            end everything; the end of the connection says that it is done
spawner -> daemon
  welcome   protocol, epoch, names, workers, exits, templates, spawner_pid, guard  + descriptors in order of names
                                  workers: {wid, pid, key}; exits: the exit packets without ack.
                                  Forks still under way are answered after it. guard: the present deadline or null
  part      names, workers, exits, templates  + descriptors
                                  comes before welcome when that would be too large; `Welcome` joins them
  forked    wid, pid              the worker exists and is a child of the spawner
  fork_failed  wid, error         it does not, nor does anything of it
  exit      wid, pid, code, signal, max_rss_kb, asked
                                  its descendants are dead too. Either code or signal is null;
                                  asked: the daemon had sent SIGKILL or SIGTERM
  template_exit  key, code, signal, error      error: the last of what it wrote to stderr
  refused   reason                then the connection ends (wrong protocol, malformed packet)
spawner -> template: fork wid, args.   template -> spawner: forked wid, pid; fork_failed wid, error.
Names and keys have at most 128 printable ASCII characters.
"""

from __future__ import annotations

import array
import json
import os
import socket

TYPE_CHECKING = False  # `typing` alone would cost the spawner several percent of its memory
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

    Packet = dict[str, Any]
    Received = tuple[Packet, list[int]]

PROTOCOL = 3
OLDEST = 2
AWAY = b"noded: the daemon is away\n"
"""What the spawner says at the daemon's port, see ``absence``."""
MAX_PACKET = 65536
MAX_FDS = 200
MAX_NAME = 128
# So many of each list, with names of MAX_NAME characters that JSON escapes, stay under MAX_PACKET.
ITEMS_PER_PART = 60
MARK = "NODED_MARK"
REST = "noded-rest"  # the control group of a node's own processes, where it may not be that above the workers'
TEMPLATE_WID = "template00000000"  # as long as a wid, which is written over it


class ProtocolError(ValueError):
    """A packet that cannot be sent or understood."""


def memory_tree(tag: str) -> str:
    """The name of the control group that holds those of the workers of a node."""
    return f"noded-{tag}"


def encode(packet: Packet) -> bytes:
    """The bytes of a packet, or ProtocolError when it is too large."""
    data = json.dumps(packet, separators=(",", ":")).encode()
    if len(data) > MAX_PACKET:
        raise ProtocolError(
            f"packet {packet.get('t')!r} has {len(data)} bytes, at most {MAX_PACKET} can be sent: "
            "put large values into a file and send its path"
        )
    return data


def send_bytes(sock: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    """Send one encoded packet."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)


def send(sock: socket.socket, packet: Packet, fds: Sequence[int] = ()) -> None:
    """Send one packet. Blocks, or raises BlockingIOError, as the socket is set."""
    send_bytes(sock, encode(packet), fds)


def recv(sock: socket.socket) -> Received:
    """The next packet and its descriptors (close-on-exec). EOFError at the end of the connection."""
    data, ancillary, flags, _ = sock.recvmsg(MAX_PACKET, socket.CMSG_SPACE((MAX_FDS + 53) * 4), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ProtocolError(f"a packet over {MAX_PACKET} bytes or {MAX_FDS} descriptors arrived cut off")
        if not data:
            raise EOFError("the peer closed the connection")
        return _decode(data), list(fds)
    except (ProtocolError, EOFError):
        close_all(fds)
        raise


def _decode(data: bytes) -> Packet:
    try:
        packet = json.loads(data)
    except ValueError as error:
        raise ProtocolError(f"a packet is not JSON: {error}") from None
    if not isinstance(packet, dict) or not isinstance(packet.get("t"), str):
        raise ProtocolError('a packet must be an object with a text "t"')
    return packet


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors that came with a packet nobody wants."""
    for fd in fds:
        os.close(fd)


def text(packet: Packet, field: str, limit: int = MAX_NAME) -> str:
    """A field that must be a text of 1 to `limit` printable ASCII characters."""
    value = packet.get(field)
    if not isinstance(value, str) or not 0 < len(value) <= limit or not (value.isascii() and value.isprintable()):
        raise ProtocolError(f"{packet['t']}: {field!r} must be 1 to {limit} printable ASCII characters")
    return value


def number(packet: Packet, field: str) -> float:
    """A field that must be a number, not negative."""
    value = packet.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ProtocolError(f"{packet['t']}: {field!r} must be a number, zero or more")
    return value


def strange(theirs: object) -> str:
    """Why a daemon of this version cannot be the daemon of a spawner of ours, and what to do; "" when it can."""
    if isinstance(theirs, int) and OLDEST <= theirs <= PROTOCOL:
        return ""
    return (
        f"spawner {os.getpid()} speaks protocol {OLDEST} to {PROTOCOL}, the daemon {theirs!r}: start the daemon of the "
        "version that started this node, or stop the node with that one's `noded stop`, then start it with the new one"
    )


def connect(path: str, seconds: float, epoch: int = 0) -> tuple[socket.socket, Welcome]:
    """Become the daemon of the spawner that listens there. Raises OSError, EOFError, ProtocolError (also TimeoutError
    after so many `seconds` of silence). It is asked in the newest version first.
    """
    for version in range(PROTOCOL, OLDEST - 1, -1):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.settimeout(seconds)
            sock.connect(path)
            send(sock, {"t": "hello", "protocol": version, "epoch": epoch})
            packet, fds = recv(sock)
            if packet["t"] == "refused" and version > OLDEST:
                sock.close()
                continue
            welcome = Welcome()
            while not welcome.add(packet, fds):
                packet, fds = recv(sock)
            return sock, welcome
        except BaseException:
            sock.close()
            raise
    raise AssertionError("the last version is answered or refused")


def split_welcome(last: Packet, lists: dict[str, list[Any]], fds: Sequence[int]) -> Iterator[Received]:
    """`lists` (names, workers, exits, templates) in as many parts as they need; `last` makes the last one."""
    longest = max(len(items) for items in lists.values())
    starts = range(0, max(longest, 1), ITEMS_PER_PART)
    for start in starts:
        end = start + ITEMS_PER_PART
        packet: Packet = dict(last) if start == starts[-1] else {"t": "part"}
        packet.update((name, items[start:end]) for name, items in lists.items())
        yield packet, list(fds[start:end])


class Welcome:
    """Joins parts and welcome on the daemon's side: `add` packets until it returns True."""

    def __init__(self) -> None:
        self.epoch = 0
        self.spawner_pid = 0
        self.protocol = PROTOCOL
        """Which both have."""
        self.fds: dict[str, int] = {}
        self.workers: list[Packet] = []
        self.exits: list[Packet] = []
        self.templates: list[str] = []
        self.guard_until: float | None = None

    def add(self, packet: Packet, fds: list[int]) -> bool:
        """True when this was the last one. ProtocolError when the spawner refuses or says something else."""
        if packet["t"] not in ("part", "welcome"):
            close_all(fds)
            raise ProtocolError(f"the spawner did not welcome this daemon: {packet.get('reason', packet['t'])}")
        self.fds.update(zip(packet["names"], fds, strict=True))
        self.workers += packet["workers"]
        self.exits += packet["exits"]
        self.templates += packet["templates"]
        self.epoch = packet.get("epoch", 0)
        self.spawner_pid = packet.get("spawner_pid", 0)
        self.guard_until = packet.get("guard")
        self.protocol = packet.get("protocol", PROTOCOL)
        return bool(packet["t"] == "welcome")
