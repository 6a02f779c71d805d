"""What a user may give to who asks about one thing: as the text that the daemon knows it by."""

from __future__ import annotations

from typing import Any


def id_of(thing: Any) -> str:
    """The id of a ref, a handle, a placement group or an id object in hex; text (an id, a name, a pid) as it is. Raises
    ValueError for what has none.
    """
    if isinstance(thing, str | int):
        return str(thing)
    for name in ("_actor_id", "id"):
        inner = getattr(thing, name, None)
        if inner is not None and hasattr(inner, "hex"):
            return str(inner.hex())
    if hasattr(thing, "task_id") and not hasattr(thing, "hex"):  # a generator
        return str(thing.task_id())
    if hasattr(thing, "hex"):
        return str(thing.hex())
    raise ValueError(f"{thing!r} has no id: give a ref, a handle, a placement group, or an id in hex")
