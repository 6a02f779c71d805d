"""The state of a cluster: lists of its actors, tasks, objects, nodes and so on, single ones by their id, and summaries.

Names, arguments and fields are those of Ray's module of this name; what noded adds is said in docs/state.md. All this
works in a program that is connected, and in others, which find a cluster of this machine or name its ``address``.
"""

from noded.util.state.client import StateApiClient
from noded.util.state.explaining import explain, held
from noded.util.state.listing import (
    StateList,
    get_actor,
    get_job,
    get_node,
    get_objects,
    get_placement_group,
    get_task,
    get_worker,
    list_actors,
    list_cluster_events,
    list_jobs,
    list_nodes,
    list_objects,
    list_placement_groups,
    list_runtime_envs,
    list_tasks,
    list_workers,
)
from noded.util.state.logs import get_log, list_logs
from noded.util.state.summaries import summarize_actors, summarize_objects, summarize_tasks

__all__ = [
    "StateApiClient",
    "StateList",
    "explain",
    "get_actor",
    "get_job",
    "get_log",
    "get_node",
    "get_objects",
    "get_placement_group",
    "get_task",
    "get_worker",
    "held",
    "list_actors",
    "list_cluster_events",
    "list_jobs",
    "list_logs",
    "list_nodes",
    "list_objects",
    "list_placement_groups",
    "list_runtime_envs",
    "list_tasks",
    "list_workers",
    "summarize_actors",
    "summarize_objects",
    "summarize_tasks",
]
