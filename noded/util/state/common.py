"""The records that lists are made of, and the options of ``StateApiClient``."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from noded.policy.state_records import (
    ActorState,
    ClusterEventState,
    JobState,
    NodeState,
    ObjectState,
    PlacementGroupState,
    RuntimeEnvState,
    StateSchema,
    TaskState,
    WorkerState,
)

__all__ = [
    "ActorState",
    "ClusterEventState",
    "GetApiOptions",
    "JobState",
    "ListApiOptions",
    "NodeState",
    "ObjectState",
    "PlacementGroupState",
    "RuntimeEnvState",
    "StateResource",
    "StateSchema",
    "SummaryApiOptions",
    "SummaryResource",
    "TaskState",
    "WorkerState",
]


class StateResource(Enum):
    ACTORS = "actors"
    JOBS = "jobs"
    PLACEMENT_GROUPS = "placement_groups"
    NODES = "nodes"
    WORKERS = "workers"
    TASKS = "tasks"
    OBJECTS = "objects"
    RUNTIME_ENVS = "runtime_envs"
    CLUSTER_EVENTS = "cluster_events"


class SummaryResource(Enum):
    ACTORS = "actors"
    TASKS = "tasks"
    OBJECTS = "objects"


@dataclass
class ListApiOptions:
    """``timeout``: seconds. ``exclude_driver`` and ``server_timeout_multiplier`` mean nothing in noded: drivers run no
    tasks, and every node has the same time to answer.
    """

    limit: int = 100
    timeout: float = 30
    detail: bool = False
    filters: list[tuple[str, str, Any]] | None = field(default_factory=list)
    exclude_driver: bool = True
    server_timeout_multiplier: float = 0.8


@dataclass
class GetApiOptions:
    """``timeout``: seconds; ``server_timeout_multiplier`` means nothing in noded."""

    timeout: float = 30
    server_timeout_multiplier: float = 0.8


@dataclass
class SummaryApiOptions:
    """``timeout``: seconds. Summaries are by function, class or line: ``summary_by`` and ``filters`` mean nothing."""

    timeout: float = 30
    filters: list[tuple[str, str, Any]] | None = field(default_factory=list)
    summary_by: str | None = None
