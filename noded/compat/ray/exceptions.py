"""`ray.exceptions`: Ray's names for noded's errors, so that `except` clauses written for Ray catch them.

The classes at the end are never raised by noded; they are there for programs that name them.
"""

from noded.exceptions import (
    ActorAlreadyExistsError,
    ActorDiedError,
    ActorError,
    ActorHandleNotFoundError,
    ActorPlacementGroupRemoved,
    ActorUnavailableError,
    ActorUnschedulableError,
    AuthenticationError,
    GetTimeoutError,
    LocalDaemonDiedError,
    NodedError,
    NodeDiedError,
    NodedSystemError,
    ObjectFetchTimedOutError,
    ObjectFreedError,
    ObjectLostError,
    ObjectReconstructionFailedError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    OwnerDiedError,
    PendingCallsLimitExceeded,
    ReferenceCountingAssertionError,
    RuntimeEnvSetupError,
    TaskCancelledError,
    TaskError,
    TaskPlacementGroupRemoved,
    TaskUnschedulableError,
    UnserializableException,
    WorkerCrashedError,
)

RayError = NodedError
RayTaskError = TaskError
RayActorError = ActorError
RaySystemError = NodedSystemError
LocalRayletDiedError = LocalDaemonDiedError


class AsyncioActorExit(NodedError):
    """Ray: raised inside an async actor by exit_actor(); noded's exit_actor() raises a SystemExit."""


class CrossLanguageError(NodedError):
    """Ray: a task in another language failed."""


class ObjectRefStreamEndOfStreamError(NodedError):
    """Ray: raised inside it at a generator's end."""


class OufOfBandObjectRefSerializationException(NodedError):  # the spelling is Ray's
    """Ray: a ref was pickled by hand where that is forbidden by a setting."""


class PlasmaObjectNotAvailable(NodedError):
    """Ray: an internal state of its object store."""


class RpcError(NodedError):
    """Ray: a call between its processes failed; noded tries again by itself."""


class StreamingGeneratorReplayInconsistentError(NodedSystemError):
    """Ray: a generator that was run again yielded another number of items."""


class UserCodeException(NodedError):
    """Ray Data's."""


__all__ = [
    "ActorAlreadyExistsError",
    "ActorDiedError",
    "ActorHandleNotFoundError",
    "ActorPlacementGroupRemoved",
    "ActorUnavailableError",
    "ActorUnschedulableError",
    "AsyncioActorExit",
    "AuthenticationError",
    "CrossLanguageError",
    "GetTimeoutError",
    "LocalRayletDiedError",
    "NodeDiedError",
    "ObjectFetchTimedOutError",
    "ObjectFreedError",
    "ObjectLostError",
    "ObjectReconstructionFailedError",
    "ObjectRefStreamEndOfStreamError",
    "ObjectStoreFullError",
    "OufOfBandObjectRefSerializationException",
    "OutOfDiskError",
    "OutOfMemoryError",
    "OwnerDiedError",
    "PendingCallsLimitExceeded",
    "PlasmaObjectNotAvailable",
    "RayActorError",
    "RayError",
    "RaySystemError",
    "RayTaskError",
    "ReferenceCountingAssertionError",
    "RpcError",
    "RuntimeEnvSetupError",
    "StreamingGeneratorReplayInconsistentError",
    "TaskCancelledError",
    "TaskPlacementGroupRemoved",
    "TaskUnschedulableError",
    "UnserializableException",
    "UserCodeException",
    "WorkerCrashedError",
]
