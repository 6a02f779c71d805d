"""Metrics of the head: its tables, what waits there, and its storage. Counted when somebody asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from noded.head.head import Head
from noded.metrics.family import Family, by_label, gauge

NAMES, SERIES = 100, 200
OTHER = "(other)"
"""Names are told of those with the most, so many at most, with so many series; the rest is summed up."""


def families(head: Head) -> list[Family]:
    return [*_tables(head), *_actors(head), *_waiting(head), *_storage(head)]


def _tables(head: Head) -> Iterable[Family]:
    nodes = Counter(record.entry().state for record in head.nodes.records.values())
    yield by_label(gauge("noded_head_nodes", "Nodes of the cluster, by state"), "state", _all(nodes, NODE_STATES))
    groups = Counter(record.at().state for record in head.groups.records.values())
    yield by_label(gauge("noded_head_placement_groups", "Placement groups, by state"), "state", groups)
    yield gauge(
        "noded_head_jobs", "Jobs, which are drivers that are there or have left something", len(head.all_jobs())
    )
    yield gauge("noded_head_jobs_running", "Drivers that are connected", len(head.present_jobs()))
    rows = {
        "nodes": len(head.nodes.records),
        "actors": len(head.actors.records),
        "actor_names": len(head.actors.names),
        "placement_groups": len(head.groups.records),
        "placement_group_names": len(head.groups.names),
        "jobs": len(head.jobs.known()),
    }
    yield by_label(gauge("noded_head_table_rows", "Records in the head's tables"), "table", rows)


NODE_STATES = ("ALIVE", "DRAINING", "AWAY", "DEAD")
"""Told also where there is none, as an alert on a state needs its 0."""


def _all(counts: Counter[str], names: Iterable[str]) -> dict[str, float]:
    return {**dict.fromkeys(names, 0), **counts}


def _actors(head: Head) -> Iterable[Family]:
    counts = Counter((record.spec.class_name, record.state) for record in head.actors.records.values())
    family = gauge("noded_actors", f"Actors of the cluster, by class (the {NAMES} with the most) and state")
    for (name, state), count in sorted(bounded(counts).items()):
        family.samples.append(({"name": name, "state": state}, count))
    yield family
    yield by_label(
        gauge("noded_head_actors", "Actors of the cluster, by state"),
        "state",
        Counter(record.state for record in head.actors.records.values()),
    )


def bounded(counts: Counter[tuple[str, str]]) -> Counter[tuple[str, str]]:
    """By (name, state), with no more than NAMES names, and about SERIES series."""
    names: Counter[str] = Counter()
    states: Counter[str] = Counter()
    for (name, _), count in counts.items():
        names[name] += count
        states[name] += 1
    kept: set[str] = set()
    left = SERIES
    for name, _ in names.most_common(NAMES):
        if (left := left - states[name]) < 0:
            break
        kept.add(name)
    found: Counter[tuple[str, str]] = Counter()
    for (name, state), count in counts.items():
        found[name if name in kept else OTHER, state] += count
    return found


def _waiting(head: Head) -> Iterable[Family]:
    waiting = {"actors": len(head.actor_places.pending), "placement_groups": len(head.group_places.waiting)}
    yield by_label(gauge("noded_head_waiting", "What waits at the head for a place"), "what", waiting)


def _storage(head: Head) -> Iterable[Family]:
    health = head.storage.health
    degraded = health.degraded_since is not None
    text = "1 while the head's storage does not take writes as it should"
    yield gauge("noded_storage_degraded", text, float(degraded), kind=health.kind)
    yield gauge(
        "noded_storage_journalled_writes", "Writes that are durable on the head's host alone", health.journalled
    )
    yield gauge("noded_storage_waiting_writes", "Writes that are not durable yet", health.waiting)
