"""Public helpers, one module per subject, under the names they have in Ray.

Nothing is imported before it is asked for: ``noded.util.ActorPool``, and also ``noded.util.queue``, come on first use.
"""

import importlib
from typing import Any

_NAMES = {
    "ActorPool": "actor_pool",
    "as_completed": "helpers",
    "connect": "client_connect",
    "deregister_serializer": "serialization",
    "disable_log_once_globally": "debug",
    "disconnect": "client_connect",
    "enable_periodic_logging": "debug",
    "get_current_placement_group": "placement_group",
    "get_node_instance_id": "where",
    "get_node_ip_address": "where",
    "get_placement_group": "placement_group",
    "inspect_serializability": "check_serialize",
    "list_named_actors": "named_actors",
    "log_once": "debug",
    "map_unordered": "helpers",
    "placement_group": "placement_group",
    "placement_group_table": "placement_group",
    "register_serializer": "serialization",
    "remove_placement_group": "placement_group",
}
"""Name to the module it is in."""

_MODULES = {
    "accelerators",
    "actor_pool",
    "annotations",
    "check_serialize",
    "client_connect",
    "debug",
    "executor",
    "helpers",
    "joblib",
    "metrics",
    "multiprocessing",
    "queue",
    "scheduling_strategies",
    "serialization",
    "state",
}

__all__ = [*_NAMES, "accelerators"]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
        return found
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES, *_MODULES})
