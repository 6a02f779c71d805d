"""`ray.remote_function`."""

from noded.client.remote import RemoteFunction

__all__ = ["RemoteFunction"]
