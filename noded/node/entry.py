"""What the node knows of an object: its value's place, who needs it, and what concerns other nodes."""

from __future__ import annotations

import time

from noded.node.spill_files import Place


class Away:
    """What is known of an object that concerns other nodes as well."""

    __slots__ = (
        "asking",
        "cached",
        "final",
        "held_there",
        "lost",
        "nodes",
        "pinned",
        "pulling",
        "rebuilding",
        "seen_at",
        "size",
        "used",
        "watching",
    )

    def __init__(self) -> None:
        self.nodes: dict[int, int] = {}
        """At its home: the nodes that have a copy, with how many others were sent there for it; see ``partial``."""
        self.size = 0
        self.asking: set[int] = set()
        """At its home: nodes that are to be told when it is there."""
        self.watching: set[bytes] | None = None
        """Clients that want to know where it is, and do not want it here."""
        self.held_there = False
        """Elsewhere: this node counts as a holder at its home."""
        self.pinned = False
        """Elsewhere: it was made here, and its home has not dropped it."""
        self.cached = False
        """Elsewhere: a copy that may go when there is no room."""
        self.used = 0.0
        self.pulling = False
        self.seen_at = 0
        """At its home: the node that has it by the word of its maker alone."""
        self.lost = ""
        """At its home: why there is no copy of it any more. Who made it is asked to make it again when it is wanted."""
        self.rebuilding = False
        """That was asked for."""
        self.final = False
        """It cannot be made again."""


class Entry:
    """What is known of an id: a place when sealed, else who waits for it."""

    __slots__ = (
        "away",
        "coming",
        "containers",
        "copies",
        "disk",
        "holders",
        "id",
        "moving",
        "nested",
        "offset",
        "since",
        "size",
        "waiting",
    )

    def __init__(self, id_: bytes):
        self.id = id_
        self.offset = -1
        """Of the header in the arena; -1 while it is not there."""
        self.size = 0
        self.copies: list[int] = []
        """Offsets of the same result written again by a retried task: some may look at one, some at the other."""
        self.holders: set[bytes] = set()
        self.containers = 0
        self.nested: list[bytes] = []
        self.waiting: set[bytes] | None = None
        self.away: Away | None = None
        self.disk: Place | None = None
        """In a file, beside the arena or instead."""
        self.moving = False
        """It leaves the arena: its place there is told to nobody, and it is not freed until it has."""
        self.coming = False
        """It is read back into the arena; nor is it freed then."""
        self.since = time.monotonic()
        """When this daemon first knew of it."""

    @property
    def here(self) -> bool:
        """Its value is on this node."""
        return self.offset >= 0 or self.disk is not None
