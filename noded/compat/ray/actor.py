"""`ray.actor`: the classes behind actors, for type hints and isinstance."""

from noded.client.remote import ActorClass, ActorHandle, ActorMethod, method

__all__ = ["ActorClass", "ActorHandle", "ActorMethod", "method"]
