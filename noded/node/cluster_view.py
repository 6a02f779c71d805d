"""What this node knows of the others: told by the head, a moment old."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from msgspec.structs import replace

from noded.policy.given import Given
from noded.policy.nodes import NodeView
from noded.policy.scheduling import Cluster
from noded.wire import cluster_messages as c


class ClusterView:
    """``entries``: all nodes that are not forgotten, by number, also this one and dead ones."""

    def __init__(self, number: int):
        self.number = number
        """This node's."""
        self.entries: dict[int, c.NodeEntry] = {}
        self.by_id: dict[str, int] = {}
        self.cluster = Cluster()
        """The same for decisions, with what this node has given away since."""
        self._given = Given()
        self.on_dead: Callable[[c.NodeEntry], None] = lambda entry: None
        self.on_change: Callable[[], None] = lambda: None

    def update(self, entries: Iterable[c.NodeEntry], everything: bool) -> None:
        """Some have changed; with ``everything`` those that are not named are gone."""
        named = set()
        dead = []
        for entry in entries:
            named.add(entry.number)
            before = self.entries.get(entry.number)
            if before is not None and before.id != entry.id:
                self._forget(before.id)
                if before.state != "DEAD":
                    dead.append(_as_dead(before, "it started over"))
            if before is not None and before.id == entry.id and not entry.address:
                # A head that has just started knows of it, but has not heard of it yet.
                entry.address, entry.ip, entry.name = before.address, before.ip, before.name
                entry.total, entry.labels = before.total, before.labels
            self.entries[entry.number] = entry
            if entry.state == "DEAD":
                self._forget(entry.id)
                if before is None or before.state != "DEAD" or before.id != entry.id:
                    dead.append(entry)
            else:
                self.by_id[entry.id] = entry.number
                if entry.number != self.number:
                    self._given.forget(entry.id)
                    self.cluster.update(node_view(entry))
        if everything:
            for number in self.entries.keys() - named:
                gone = self.entries.pop(number)
                self._forget(gone.id)
                if gone.state != "DEAD":
                    dead.append(_as_dead(gone, "the head does not know it any more"))
        for entry in dead:
            self.on_dead(entry)
        self.on_change()

    def _forget(self, id_: str) -> None:
        self.by_id.pop(id_, None)
        self.cluster.remove(id_)
        self._given.forget(id_)

    def take(self, id_: str, resources: Mapping[str, int], now: float) -> None:
        """Somebody was sent there, or (negative) has left: count that until it reports."""
        if resources and self.cluster.get(id_) is not None:
            self._given.add(id_, resources, now)
            self._look_at(id_)

    def expire(self, now: float) -> None:
        for id_ in self._given.expire(now):
            self._look_at(id_)

    def _look_at(self, id_: str) -> None:
        entry = self.entries.get(self.by_id.get(id_, 0))
        if entry is not None and entry.number != self.number:
            view = node_view(entry)
            left = self._given.off(id_, view.available)
            self.cluster.update(replace(view, available=left))

    def take_here(self, id_: str, resources: Mapping[str, int]) -> None:
        """Of this node itself, until it is looked at again."""
        node = self.cluster.get(id_)
        if node is not None and resources:
            left = {n: a - resources.get(n, 0) for n, a in node.available.items()}
            self.cluster.update(replace(node, available=left))

    def address(self, number: int) -> str:
        """Empty where it is not known."""
        entry = self.entries.get(number)
        return entry.address if entry is not None else ""

    @property
    def unknown(self) -> bool:
        """Of some nodes it is not known what they have: the head has just started, and has not heard of them yet."""
        return any(e.state == "AWAY" and not e.total for e in self.others())

    def others(self) -> list[c.NodeEntry]:
        """Nodes that are not this one, and not dead."""
        return [e for e in self.entries.values() if e.number != self.number and e.state != "DEAD"]


def node_view(entry: c.NodeEntry) -> NodeView:
    draining = entry.state == "DRAINING"
    return NodeView(entry.id, entry.available, entry.total, entry.labels, entry.state == "ALIVE", draining)


def _as_dead(entry: c.NodeEntry, reason: str) -> c.NodeEntry:
    return c.NodeEntry(
        entry.number, entry.id, entry.name, entry.address, "DEAD", {}, {}, entry.labels, entry.ip, reason
    )
