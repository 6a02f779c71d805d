"""What helpers with the standard library's API raise: the user's own exception, as it was, and not one of noded's.

The story of where it was raised is its ``__cause__``, as ``multiprocessing`` and ``concurrent.futures`` have it.
"""

from __future__ import annotations

from noded.exceptions import TaskError


def original(error: BaseException) -> BaseException:
    """The exception that the user's code raised, if ``error`` is a task's."""
    if not isinstance(error, TaskError):
        return error
    plain: TaskError = error.__dict__.get("_plain", error)
    cause = plain.cause
    while isinstance(cause, TaskError):
        cause = cause.cause
    if cause is None:
        return error
    cause.__cause__ = plain.without_cause()
    return cause
