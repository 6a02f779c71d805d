"""``PublicAPI``, ``DeveloperAPI`` and ``Deprecated``: decorators that libraries put on their own names.

They may be used with or without arguments and return what they decorate. ``Deprecated`` warns on use where it
was given ``warning=True``.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any


def PublicAPI(*args: Any, stability: str = "stable", api_group: str = "Others") -> Any:
    """For names that users may rely on. ``stability``: "stable", "beta" or "alpha"."""
    if stability not in ("stable", "beta", "alpha"):
        raise ValueError(f"stability must be 'stable', 'beta' or 'alpha', not {stability!r}")
    return _decorated(args, lambda target: _marked(target, "PublicAPI"))


def DeveloperAPI(*args: Any) -> Any:
    """For names that advanced users may use, and that may change."""
    return _decorated(args, lambda target: _marked(target, "DeveloperAPI"))


def Deprecated(*args: Any, message: str = "", warning: bool = False) -> Any:
    """For names that will go."""

    def mark(target: Any) -> Any:
        _marked(target, "Deprecated")
        return _warning(target, message) if warning else target

    return _decorated(args, mark)


def _decorated(args: tuple[Any, ...], mark: Callable[[Any], Any]) -> Any:
    if len(args) == 1 and callable(args[0]):
        return mark(args[0])
    if args:
        raise TypeError("use this decorator plainly, or with keyword arguments only")
    return mark


def _marked(target: Any, kind: str) -> Any:
    target._annotated_type = kind
    return target


def _warning(target: Any, message: str) -> Any:
    text = f"{target.__qualname__} is deprecated. {message}".rstrip()
    original: Any = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]

    @functools.wraps(original)
    def warned(*args: Any, **kwargs: Any) -> Any:
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        return original(*args, **kwargs)

    if isinstance(target, type):
        target.__init__ = warned  # type: ignore[misc]
        return target
    return warned
