"""`ray.exceptions`: Ray's names for noded's errors, so that `except` clauses written for Ray catch them.

The classes at the end are never raised by noded; they are there for programs that name them.
"""

from noded.exceptions import (
    NodedError,
    NodedSystemError,
    TaskError,
)

RayError = NodedError
RayTaskError = TaskError
RaySystemError = NodedSystemError


class CrossLanguageError(NodedError):
    """Ray: a task in another language failed."""


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
