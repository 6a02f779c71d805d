"""``register_serializer``: how objects of a class travel, where pickle alone cannot carry them.

A registration holds in the process that makes it, for the class itself (not for those derived from it). Who
receives such an object needs none: the deserializer travels with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from noded.client import codec


def register_serializer(cls: type, *, serializer: Callable[[Any], Any], deserializer: Callable[[Any], Any]) -> None:
    """From now on objects of ``cls`` travel as ``serializer(object)`` and arrive as ``deserializer(that)``."""
    _check_class(cls)
    for name, function in (("serializer", serializer), ("deserializer", deserializer)):
        if not callable(function):
            raise TypeError(f"{name} must be a function of one argument, not {function!r}")
    codec.register(cls, lambda value: (deserializer, (serializer(value),)))


def deregister_serializer(cls: type) -> None:
    """Objects of ``cls`` are pickled as usual again. Harmless when it was never registered."""
    _check_class(cls)
    codec.unregister(cls)


def _check_class(cls: object) -> None:
    if not isinstance(cls, type):
        raise TypeError(f"a serializer is registered for a class, not for {cls!r}")
