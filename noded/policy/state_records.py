"""What a list of the cluster's state is made of: one record class for each kind, with Ray's names and meaning.

The fields are the columns. Those that come last in a class, and are said what they are, are noded's own; Ray has all
others. Rows travel between processes as dicts with these names; the classes are what programs get
(``noded.util.state``). How rows are chosen and put together is in ``query.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar


@dataclass
class StateSchema:
    """A record: its fields are attributes and items (``record.state``, ``record["state"]``). Those with a default are
    details; ``UNFILTERED``: those that no filter may name.
    """

    UNFILTERED: ClassVar[tuple[str, ...]] = ()

    def __getitem__(self, name: str) -> Any:
        if name not in self.columns():
            raise KeyError(name)
        return getattr(self, name)

    def get(self, key: str, default: Any = None) -> Any:
        return getattr(self, key) if key in self.columns() else default

    def asdict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _names(type(self))}

    @classmethod
    def columns(cls) -> set[str]:
        return set(_names(cls))

    @classmethod
    def list_columns(cls, detail: bool = True) -> list[str]:
        """In order; without ``detail`` those that are always told."""
        return [each.name for each in fields(cls) if detail or each.default is MISSING]

    @classmethod
    def base_columns(cls) -> set[str]:
        return set(cls.list_columns(detail=False))

    @classmethod
    def detail_columns(cls) -> set[str]:
        return cls.columns()

    @classmethod
    def filterable_columns(cls) -> set[str]:
        return cls.columns() - set(cls.UNFILTERED)


def _names(cls: type[StateSchema]) -> Iterator[str]:
    return (each.name for each in fields(cls))


@dataclass
class ActorState(StateSchema):
    """``state``: PENDING_CREATION, ALIVE, RESTARTING or DEAD."""

    UNFILTERED = (
        "serialized_runtime_env",
        "required_resources",
        "death_cause",
        "num_restarts_due_to_lineage_reconstruction",
        "num_restarts_due_to_node_preemption",
        "call_site",
        "label_selector",
        "fallback_strategy",
    )

    actor_id: str
    class_name: str
    state: str
    job_id: str
    name: str | None
    node_id: str | None
    pid: int | None
    ray_namespace: str | None
    serialized_runtime_env: str | None = None
    required_resources: dict[str, float] | None = None
    death_cause: dict[str, Any] | None = None
    is_detached: bool | None = None
    placement_group_id: str | None = None
    repr_name: str | None = None
    num_restarts: int | None = None
    num_restarts_due_to_lineage_reconstruction: int | None = None
    num_restarts_due_to_node_preemption: int | None = None
    call_site: str | None = None
    label_selector: dict[str, str] | None = None
    fallback_strategy: list[Any] | None = None
    worker_id: str | None = None
    reason: str | None = None
    """Why it waits, or has ended."""
    death_kind: str | None = None
    """Of docs/why.md."""


@dataclass
class TaskState(StateSchema):
    """An attempt of a task or of an actor call. ``state``: PENDING_ARGS_AVAIL, PENDING_NODE_ASSIGNMENT,
    SUBMITTED_TO_WORKER, RUNNING, FINISHED or FAILED.
    """

    UNFILTERED = (
        "required_resources",
        "runtime_env_info",
        "events",
        "profiling_data",
        "task_log_info",
        "error_message",
        "call_site",
        "label_selector",
        "fallback_strategy",
    )

    task_id: str
    attempt_number: int
    name: str
    state: str
    job_id: str
    actor_id: str | None
    type: str
    func_or_class_name: str
    parent_task_id: str | None
    node_id: str | None
    worker_id: str | None
    worker_pid: int | None
    error_type: str | None
    language: str | None = None
    required_resources: dict[str, float] | None = None
    runtime_env_info: dict[str, Any] | None = None
    placement_group_id: str | None = None
    events: list[dict[str, Any]] | None = None
    profiling_data: dict[str, Any] | None = None
    creation_time_ms: int | None = None
    start_time_ms: int | None = None
    end_time_ms: int | None = None
    task_log_info: dict[str, Any] | None = None
    error_message: str | None = None
    is_debugger_paused: bool | None = None
    call_site: str | None = None
    label_selector: dict[str, str] | None = None
    fallback_strategy: list[Any] | None = None


@dataclass
class NodeState(StateSchema):
    """``state``: ALIVE, AWAY, DRAINING or DEAD."""

    UNFILTERED = (
        "resources_total",
        "labels",
    )

    node_id: str
    node_ip: str
    is_head_node: bool
    state: str
    state_message: str | None
    node_name: str
    resources_total: dict[str, float]
    labels: dict[str, str]
    start_time_ms: int | None = None
    end_time_ms: int | None = None
    address: str | None = None
    """Host and port."""
    pid: int | None = None
    """Of its daemon."""


@dataclass
class WorkerState(StateSchema):
    """A worker process, or a driver. ``exit_type``: INTENDED_SYSTEM_EXIT, INTENDED_USER_EXIT, SYSTEM_ERROR, USER_ERROR
    or NODE_OUT_OF_MEMORY.
    """

    UNFILTERED = ("exit_detail",)

    worker_id: str
    is_alive: bool
    worker_type: str
    exit_type: str | None
    node_id: str
    ip: str
    pid: int
    exit_detail: str | None = None
    worker_launch_time_ms: int | None = None
    worker_launched_time_ms: int | None = None
    start_time_ms: int | None = None
    end_time_ms: int | None = None
    debugger_port: int | None = None
    num_paused_threads: int | None = None
    job_id: str | None = None
    actor_id: str | None = None
    death_kind: str | None = None
    """Of docs/why.md."""


@dataclass
class ObjectState(StateSchema):
    """An object, and one process or node that needs it. ``object_size``: bytes; -1: not known."""

    object_id: str
    object_size: int
    task_status: str
    attempt_number: int
    reference_type: str
    call_site: str
    type: str
    pid: int
    ip: str
    node_id: str | None
    where: str | None
    """memory, disk, both, elsewhere, pending or lost."""


@dataclass
class PlacementGroupState(StateSchema):
    """``state``: PENDING, CREATED, RESCHEDULING, REMOVING or REMOVED."""

    UNFILTERED = (
        "bundles",
        "stats",
        "topology_strategy",
        "topology_assignments",
    )

    placement_group_id: str
    name: str
    creator_job_id: str
    state: str
    bundles: list[dict[str, Any]] | None = None
    is_detached: bool | None = None
    stats: dict[str, Any] | None = None
    topology_strategy: str | None = None
    topology_assignments: dict[str, Any] | None = None
    strategy: str | None = None
    reason: str | None = None


@dataclass
class JobState(StateSchema):
    """A driver. ``status``: RUNNING, SUCCEEDED (it has left in order) or FAILED."""

    UNFILTERED = (
        "entrypoint",
        "message",
        "error_type",
        "driver_info",
        "metadata",
        "runtime_env",
        "driver_agent_http_address",
    )

    job_id: str
    submission_id: str | None
    type: str
    status: str
    entrypoint: str
    message: str | None
    error_type: str | None
    driver_info: dict[str, Any] | None
    start_time: int | None = None
    """Milliseconds since the epoch, as end_time."""
    end_time: int | None = None
    metadata: dict[str, str] | None = None
    runtime_env: dict[str, Any] | None = None
    driver_agent_http_address: str | None = None
    driver_node_id: str | None = None
    driver_exit_code: int | None = None
    ray_namespace: str | None = None


@dataclass
class ClusterEventState(StateSchema):
    """``source_type``: NODE, WORKER, ACTOR, PLACEMENT_GROUP, JOB, MEMORY, SPILLING, COLLECTOR or HEAD."""

    UNFILTERED = (
        "time",
        "message",
        "custom_fields",
    )

    severity: str
    time: str
    source_type: str
    message: str
    event_id: str
    custom_fields: dict[str, Any] | None = None


@dataclass
class RuntimeEnvState(StateSchema):
    UNFILTERED = (
        "creation_time_ms",
        "ref_cnt",
    )

    runtime_env: dict[str, Any]
    success: bool
    creation_time_ms: float | None
    node_id: str
    ref_cnt: int | None = None
    error: str | None = None


RECORDS: dict[str, type[StateSchema]] = {
    "actors": ActorState,
    "cluster_events": ClusterEventState,
    "jobs": JobState,
    "nodes": NodeState,
    "objects": ObjectState,
    "placement_groups": PlacementGroupState,
    "runtime_envs": RuntimeEnvState,
    "tasks": TaskState,
    "workers": WorkerState,
}
"""The kinds that can be listed."""
