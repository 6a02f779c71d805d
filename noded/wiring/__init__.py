"""Builds the components of a node: who gets whom. What happens to the node then is in ``daemon.py``.

They need each other in circles: what a component needs of one that comes after it, it looks up when it uses it.
"""

from __future__ import annotations

from noded.departures import Departures
from noded.entrance import Entrance
from noded.membership import Membership
from noded.parts import Parts
from noded.questions import Questions
from noded.wiring import exchange, services, work


def build_node(parts: Parts, membership: Membership, entrance: Entrance, guard_until: float | None) -> None:
    """All but the head's tables, in this order. Raises ConfigError."""
    departures = Departures(parts)
    questions = Questions(parts)
    work.build_leases(parts, membership)
    services.build_books(parts, departures)
    exchange.build_head_link(parts, membership, guard_until)
    work.build_workers(parts, departures)
    exchange.build_peers(parts, membership)
    services.build_logs(parts)
    exchange.build_objects(parts)
    exchange.build_router(parts, membership)
    work.build_orders(parts, membership, questions)
    services.build_view(parts, membership, departures)
    work.build_control(parts, entrance, departures, questions)
    services.build_records(parts, departures)
