"""How code in an actor ends its own actor."""

from __future__ import annotations

from noded.client.context import running


class IntentionalExit(SystemExit):
    """Raised by ``exit_actor()``: passes through the user's code up to the worker, which ends."""


def exit_actor() -> None:
    """End the actor whose method calls this, for good: it is not restarted, and callers get ActorDiedError.

    Raises TypeError outside of an actor.
    """
    if not running.actor_id:
        raise TypeError(
            "exit_actor() is for methods of actors; a task ends by returning, a driver with noded.shutdown()"
        )
    raise IntentionalExit(0)
