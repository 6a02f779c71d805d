"""`ray._raylet` is internal to Ray, but programs find the class of refs there."""

from noded.client.generators import DynamicObjectRefGenerator, ObjectRefGenerator
from noded.client.placement_groups import PlacementGroupID
from noded.client.refs import ObjectRef
from noded.compat.ray.ids import ActorID, JobID, NodeID, TaskID, UniqueID, WorkerID

ObjectID = ObjectRef

__all__ = [
    "ActorID",
    "DynamicObjectRefGenerator",
    "JobID",
    "NodeID",
    "ObjectID",
    "ObjectRef",
    "ObjectRefGenerator",
    "PlacementGroupID",
    "TaskID",
    "UniqueID",
    "WorkerID",
]
