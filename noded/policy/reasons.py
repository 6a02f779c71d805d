"""What ``noded why`` says of something that lives: why it waits, or that it does not; a closed list of kinds.

Whoever answers takes its kind from here, docs/why.md has the same list, and a test compares them. Why something ended
is told by the kinds of ``deaths.py``.
"""

from __future__ import annotations

# Arguments, order, the consumer
ARGUMENTS_PENDING = "arguments_pending"
VALUE_PENDING = "value_pending"
BEHIND_OTHERS = "behind_others"
BEHIND_CALLS = "behind_calls"
BACKPRESSURE = "backpressure"
SUBMITTING = "submitting"
CANCELLING = "cancelling"
# Resources and places
RESOURCES_BUSY = "resources_busy"
NODE_BUSY = "node_busy"
LABELS_BUSY = "labels_busy"
LIMIT_REACHED = "limit_reached"
MEMORY_PRESSURE = "memory_pressure"
STORE_FULL = "store_full"
NODE_AWAY = "node_away"
NODE_DRAINING = "node_draining"
NO_NODES = "no_nodes"
NEVER = "never"
INFEASIBLE = "infeasible"
GROUP_PENDING = "group_pending"
RESERVING = "reserving"
# A worker is being made
LEASE_PENDING = "lease_pending"
ENV_BUILDING = "env_building"
WORKER_STARTING = "worker_starting"
STARTING = "starting"
CONSTRUCTOR = "constructor"
ACTOR_NOT_READY = "actor_not_ready"
# Somebody does not answer
HEAD_AWAY = "head_away"
STORAGE_AWAY = "storage_away"
LINK_DOWN = "link_down"
OWNER_BUSY = "owner_busy"
OWNER_AWAY = "owner_away"

PENDING = {
    ARGUMENTS_PENDING: "arguments are not there yet; they are named",
    VALUE_PENDING: "whoever makes it has not ended",
    BEHIND_OTHERS: "other tasks are before it at its worker",
    BEHIND_CALLS: "other calls of this process are before it at its actor",
    BACKPRESSURE: "its stream is as far ahead of its consumer as it may be: it waits for that to take items",
    SUBMITTING: "it is just being submitted",
    CANCELLING: "it was cancelled, and has not ended yet",
    RESOURCES_BUSY: "it would fit if less were in use: what is short, and how much",
    NODE_BUSY: "it is for one node, which is full",
    LABELS_BUSY: "only nodes with certain labels may have it, and they are full",
    LIMIT_REACHED: "tasks that need no CPU: as many of its kind run on a node as may at once",
    MEMORY_PRESSURE: "its node has too little memory left for something new, or for this, which was ended for that",
    STORE_FULL: "its worker has a value for which the object store has no room yet",
    NODE_AWAY: "a node that it needs is away",
    NODE_DRAINING: "a node that it needs takes nothing new: it is draining",
    NO_NODES: "no node is known yet",
    NEVER: "no node of this cluster could ever hold it: after a moment that is an error",
    INFEASIBLE: "no nodes of this cluster could ever hold the group",
    GROUP_PENDING: "its placement group is not created yet",
    RESERVING: "its bundles are being reserved",
    LEASE_PENDING: "it waits for a worker",
    ENV_BUILDING: "its runtime environment is being made ready, or entered by its worker",
    WORKER_STARTING: "it has its resources, and its worker is starting; starts that fail are told",
    STARTING: "a node, and a worker there, are being found for the actor",
    CONSTRUCTOR: "its constructor runs",
    ACTOR_NOT_READY: "its actor is not there yet, or restarts",
    HEAD_AWAY: "the head is away, and only it could say or do more",
    STORAGE_AWAY: "the head has not written it down yet: its storage does not take it now",
    LINK_DOWN: "the connection to its worker's node is broken, and is made again",
    OWNER_BUSY: "the process that submitted it does not answer: it is in code that holds Python's lock, or stopped",
    OWNER_AWAY: "the process that submitted it is not connected now",
}
"""Kind -> what it waits for."""

RUNNING = "running"
READY = "ready"
FAILED = "failed"
DONE_OR_DROPPED = "done_or_dropped"
ENDED = "ended"
GROUP_REMOVED = "removed"
NOT_CREATED = "not_created"
OWNER_GONE = "owner_gone"
NO_SUCH_ID = "no_such_id"

SETTLED = {
    RUNNING: "a worker has it; an actor, worker, node or job: it lives",
    READY: "its value is there; a group: it is created",
    FAILED: "it has ended with an error; of noded's own the cause is told",
    DONE_OR_DROPPED: "it has ended, or nobody refers to it any more",
    ENDED: "it has ended, and nobody knows more",
    GROUP_REMOVED: "the placement group was removed",
    NOT_CREATED: "nobody has created it (yet)",
    OWNER_GONE: "the process, or the node, that made it has ended",
    NO_SUCH_ID: "nothing in this cluster has, or had, this id",
}
"""Kind -> why it does not wait."""

KINDS = {**PENDING, **SETTLED}

RAISED = "raised"
"""The cause of a task that failed by an error of its own code; other causes are kinds of ``deaths.py``, or NEVER."""


def no_id(text: str) -> str:
    """What is said of something that is no id at all."""
    return (
        f"{text!r} is no id: give the 32 hexadecimal digits that a ref, a handle or an error shows, the 14 or "
        "16 of a worker, the 8 of a job, or a node's id, name or number"
    )
