"""Whether something with a Place may run on a node at all, whatever is free there. Groups are not looked at here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from noded.policy import labels


class Wish(Protocol):
    """What is read of a ``Place``."""

    @property
    def node(self) -> str: ...

    @property
    def soft(self) -> bool: ...

    @property
    def labels(self) -> str: ...


def refuse(place: Wish, node_id: str, node_labels: Mapping[str, str]) -> str:
    """Why not; empty when it may run there."""
    if place.node and place.node != node_id and not place.soft:
        return f"it is for the node {place.node} only, which is not in this cluster: see NodeID in noded.nodes()"
    return labels.refuse(place.labels, node_labels)
