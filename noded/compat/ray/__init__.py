"""`import ray`, by noded. Importing this module makes the name `ray` mean it, here and in workers and children.

Everything is noded's own; only what Ray alone has (its classes of ids, names of things that noded does without)
is defined below this package. docs/ray-api.md says what is there, what differs, what is missing and why.
"""

import sys as _sys

import noded
import noded.compat.ray.exceptions as _exceptions
from noded import *  # noqa: F403
from noded.client.placement_groups import PlacementGroupID
from noded.client.refs import ObjectRef as ObjectID
from noded.compat import finder as _finder
from noded.compat.ray.client_builder import ClientBuilder, client
from noded.compat.ray.cross_language import Language, cpp_function, java_actor_class, java_function
from noded.compat.ray.ids import (
    ActorClassID,
    ActorID,
    FunctionID,
    JobID,
    NodeID,
    TaskID,
    UniqueID,
    WorkerID,
)
from noded.compat.ray.start import LOCAL_MODE, SCRIPT_MODE, WORKER_MODE, LoggingConfig, init

exceptions = _exceptions  # type: ignore[misc]  # the star has brought noded's own, without the names with Ray in them

__version__ = f"2.60.0+noded.{noded.__version__}"
"""The Ray whose API this is. Comparisons with it work: what follows the plus is a label."""
__commit__ = "noded"

__all__ = [
    "ActorClassID",
    "ActorID",
    "ClientBuilder",
    "FunctionID",
    "JobID",
    "LOCAL_MODE",
    "Language",
    "LoggingConfig",
    "NodeID",
    "ObjectID",
    "PlacementGroupID",
    "SCRIPT_MODE",
    "TaskID",
    "UniqueID",
    "WORKER_MODE",
    "WorkerID",
    "__version__",
    "actor",  # noqa: F405
    "client",
    "cpp_function",
    "exceptions",
    "init",
    "java_actor_class",
    "java_function",
    "util",  # noqa: F405
]
__all__ += noded.__all__


def __getattr__(name: str) -> object:
    return _finder.child("ray", name)


_finder.install(_sys.modules[__name__])
