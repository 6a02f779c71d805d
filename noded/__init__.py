"""noded makes many machines feel like one, for people who write Python. The names of Ray Core's public API,
under ``noded``.
"""

from noded import exceptions
from noded.client.actor_class import ActorClass, get_actor, method
from noded.client.actor_handle import ActorHandle
from noded.client.api import (
    ClientContext,
    available_resources,
    cancel,
    cluster_resources,
    get,
    get_gpu_ids,
    get_runtime_context,
    init,
    is_initialized,
    kill,
    nodes,
    put,
    shutdown,
    timeline,
    wait,
)
from noded.client.context import RuntimeContext
from noded.client.exits import exit_actor
from noded.client.generators import DynamicObjectRefGenerator, ObjectRefGenerator
from noded.client.refs import ObjectRef
from noded.client.remote import RemoteFunction, remote
from noded.version import __version__

__all__ = [
    "ActorClass",
    "ActorHandle",
    "ClientContext",
    "DynamicObjectRefGenerator",
    "ObjectRef",
    "ObjectRefGenerator",
    "RemoteFunction",
    "RuntimeContext",
    "__version__",
    "available_resources",
    "cancel",
    "cluster_resources",
    "exceptions",
    "exit_actor",
    "get",
    "get_actor",
    "get_gpu_ids",
    "get_runtime_context",
    "init",
    "is_initialized",
    "kill",
    "method",
    "nodes",
    "put",
    "remote",
    "shutdown",
    "timeline",
    "wait",
]
