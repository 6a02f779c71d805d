"""What questions about the state may raise."""

from __future__ import annotations


class RayStateApiException(Exception):
    """The question was wrong, or not all of the cluster has answered; the text says which."""


class WrongQuestion(RayStateApiException, ValueError):
    """A filter, a limit or a kind that there is not."""


class ServerUnavailable(RayStateApiException):
    """No node of the cluster has answered in time."""


class DataSourceUnavailable(Exception):
    """Only for programs that catch it: noded raises RayStateApiException."""
