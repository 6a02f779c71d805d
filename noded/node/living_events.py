"""The last event of everything that lives: each file of events begins with them, so that what has lived for long is
still known when the file goes in which it began.

Kept by the thread that writes (``events.py``) from the events themselves, and read from the newest file when a daemon
starts. Bounded: where more lives, what has been told of longest ago is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import msgspec

from noded.node import event_files
from noded.node.event_files import Event

Key = tuple[str, str, bool]
"""(source, id, whether it tells of the start of a daemon)."""


class _Row(msgspec.Struct):
    node_id: str | None = None
    actor_id: str | None = None
    placement_group_id: str | None = None
    job_id: str | None = None
    worker_id: str | None = None
    state: str | None = None
    status: str | None = None
    is_alive: bool = False


class _Fields(msgspec.Struct):
    row: _Row | None = None
    boot_id: str = ""
    ended: bool = False


_decode = msgspec.json.Decoder(_Fields).decode


class LivingEvents:
    """``node_id``: of processes that daemons with other ids have written of none lives. ``room``: bytes for all."""

    def __init__(self, node_id: str, room: int) -> None:
        self._node_id = node_id
        self._room = room
        self._size = 0
        self._nodes: dict[Key, bytes] = {}
        self._others: dict[Key, bytes] = {}
        """Lines, in the order of their events."""
        self.left_out = 0
        """For want of room."""

    def load(self, directory: str) -> None:
        """What the daemon before has left in its newest file, or, where that has nothing of its own, before that."""
        found: list[Event] = []
        for number in reversed(event_files.numbers(directory)):
            events = event_files.read_file(directory, number)
            found[:0] = events
            if any(not event.again for event in events):
                break
        for event in found:
            self.take(event)

    def take(self, event: Event) -> None:
        try:
            known = _decode(event.fields)
        except msgspec.MsgspecError:
            return
        if known.ended:
            self._nodes.clear()
            self._others.clear()
            self._size = 0
        elif known.row is not None:
            self._take(event, known.row, bool(known.boot_id))

    def _take(self, event: Event, row: _Row, starts: bool) -> None:
        source = event.source
        if source in ("NODE", "HEAD"):
            if row.node_id:
                self._take_node(event, row.node_id, starts, row.state not in (None, "DEAD"))
            return
        if source == "ACTOR":
            id_, lives = row.actor_id, row.state not in (None, "DEAD")
        elif source == "PLACEMENT_GROUP":
            id_, lives = row.placement_group_id, row.state not in (None, "REMOVED")
        elif source == "JOB":
            id_, lives = row.job_id, row.status == "RUNNING"
        else:
            id_, lives = row.worker_id, row.is_alive and event.node == self._node_id
        if id_:
            self._put(self._others, (source, id_, False), event, lives)

    def _take_node(self, event: Event, id_: str, starts: bool, lives: bool) -> None:
        """Its start, which its daemon tells, and its state, which the head tells, have a row each."""
        if not lives:
            self._drop(self._nodes, ("NODE", id_, not starts))
        self._put(self._nodes, ("NODE", id_, starts), event, lives and (not starts or id_ == self._node_id))

    def _put(self, where: dict[Key, bytes], key: Key, event: Event, lives: bool) -> None:
        self._drop(where, key)
        if not lives:
            return
        line = where[key] = event_files.encode(msgspec.structs.replace(event, again=True)) + b"\n"
        self._size += len(line)
        while self._size > self._room:
            crowd = self._others or self._nodes
            self._drop(crowd, next(iter(crowd)))
            self.left_out += 1

    def _drop(self, where: dict[Key, bytes], key: Key) -> None:
        self._size -= len(where.pop(key, b""))

    def lines(self) -> Iterator[bytes]:
        return chain(self._nodes.values(), self._others.values())
