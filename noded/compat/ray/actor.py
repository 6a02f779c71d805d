"""`ray.actor`: the classes behind actors, for type hints and isinstance."""

from noded.client.actor_class import ActorClass, method
from noded.client.actor_handle import ActorHandle, ActorMethod
from noded.client.exits import exit_actor

ActorClassInheritanceException = TypeError

__all__ = ["ActorClass", "ActorClassInheritanceException", "ActorHandle", "ActorMethod", "exit_actor", "method"]
