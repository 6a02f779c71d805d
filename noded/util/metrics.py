"""``Counter``, ``Gauge`` and ``Histogram``: metrics of your own, with tags.

Recording a value costs a microsecond and no message: the node's ``/metrics`` reads it from the process's memory (see
docs/metrics.md). A driver that has no node on its host keeps its values for itself.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any, TypeVar

from noded.client import metrics

_M = TypeVar("_M", bound="Metric")
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")


class Metric:
    """What the three kinds share. ``tag_keys`` are the keys that every value must come with."""

    _kind = ""

    def __init__(
        self,
        name: str,
        description: str = "",
        tag_keys: tuple[str, ...] | None = None,
        boundaries: Sequence[float] = (),
    ):
        if not isinstance(name, str):
            raise TypeError(f"a metric's name must be a string, not {name!r}")
        if not name:
            raise ValueError("a metric needs a name")
        if not _NAME.fullmatch(name):
            warnings.warn(
                f"{name!r} cannot be exported as a metric's name: use letters, digits, _ and :, and no digit at first",
                UserWarning,
                stacklevel=3,
            )
        if not isinstance(description, str):
            raise TypeError(f"a metric's description must be a string, not {description!r}")
        tag_keys = tag_keys or ()
        if not isinstance(tag_keys, tuple):
            raise TypeError(f"tag_keys must be a tuple of strings, not {tag_keys!r}")
        for key in tag_keys:
            if not isinstance(key, str):
                raise TypeError(f"tag keys must be strings, not {key!r}")
        self._name = name
        self._description = description
        self._tag_keys = tag_keys
        self._default_tags: dict[str, str] = {}
        self._boundaries = tuple(sorted(map(float, boundaries)))
        self._places: dict[tuple[tuple[str, str], ...], int] = {}
        """Where the values are, by the tags as they were given."""

    def set_default_tags(self: _M, default_tags: dict[str, str]) -> _M:
        """Tags that apply where a value comes without them. Returns the metric."""
        for key, value in default_tags.items():
            if key not in self._tag_keys:
                raise ValueError(
                    f"{self._name} has no tag key {key!r}; its keys are {', '.join(self._tag_keys) or 'none'}"
                )
            _check_tag(key, value)
        self._default_tags = dict(default_tags)
        self._places.clear()
        return self

    @property
    def info(self) -> dict[str, Any]:
        """Name, description, tag keys and default tags."""
        return {
            "name": self._name,
            "description": self._description,
            "tag_keys": self._tag_keys,
            "default_tags": self._default_tags,
        }

    def _place(self, given: dict[str, str] | None) -> int:
        """Where the values of these tags are."""
        if not given:
            found = self._places.get(())
            return found if found is not None else self._new_place((), given)
        key = tuple(given.items())
        try:
            found = self._places.get(key)
        except TypeError:  # a value that cannot be hashed is no string, which is said below
            found = None
        return found if found is not None else self._new_place(key, given)

    def _new_place(self, key: tuple[tuple[str, str], ...], given: dict[str, str] | None) -> int:
        found = metrics.place(self._kind, self._name, self._description, self._tags(given), self._boundaries)
        if found >= 0:  # of tags that find no room there may be any number
            self._places[key] = found
        return found

    def _tags(self, given: dict[str, str] | None) -> metrics.Tags:
        for key, value in (given or {}).items():
            _check_tag(key, value)
        tags = {**self._default_tags, **(given or {})}
        missing = [key for key in self._tag_keys if key not in tags]
        if missing:
            raise ValueError(f"Missing value for tag key(s): {','.join(missing)} of the metric {self._name}")
        return tuple(sorted(tags.items()))

    def __reduce__(self) -> Any:
        return _restored, (type(self), self._name, self._description, self._tag_keys, self._default_tags)


class Counter(Metric):
    """A number that only grows."""

    _kind = "counter"

    def __init__(self, name: str, description: str = "", tag_keys: tuple[str, ...] | None = None):
        super().__init__(name, description, tag_keys)

    def inc(self, value: int | float = 1.0, tags: dict[str, str] | None = None) -> None:
        """Add ``value``, which must be above 0."""
        _check_number(value)
        if value <= 0:
            raise ValueError(f"value must be >0, got {value}")
        metrics.add(self._place(tags), value)


class Gauge(Metric):
    """A number that goes up and down."""

    _kind = "gauge"

    def __init__(self, name: str, description: str = "", tag_keys: tuple[str, ...] | None = None):
        super().__init__(name, description, tag_keys)

    def set(self, value: int | float | None, tags: dict[str, str] | None = None) -> None:
        """Record the value of now. None is ignored."""
        if value is None:
            return
        _check_number(value)
        metrics.put(self._place(tags), value)


class Histogram(Metric):
    """Counts of values in buckets: up to each of the ``boundaries``, and above the last."""

    _kind = "histogram"

    def __init__(
        self,
        name: str,
        description: str = "",
        boundaries: Sequence[float] | None = None,
        tag_keys: tuple[str, ...] | None = None,
    ):
        if not boundaries:
            raise ValueError('a Histogram needs boundaries: Histogram("name", boundaries=[1.0, 2.0])')
        for index, boundary in enumerate(boundaries):
            _check_number(boundary)
            if boundary <= 0:
                raise ValueError(f"boundaries must be above 0, but that at index {index} is {boundary}")
        super().__init__(name, description, tag_keys, boundaries)
        self.boundaries = boundaries

    def observe(self, value: int | float, tags: dict[str, str] | None = None) -> None:
        """Count a value."""
        _check_number(value)
        metrics.observe(self._place(tags), self._boundaries, value)

    @property
    def info(self) -> dict[str, Any]:
        return {**super().info, "boundaries": self.boundaries}

    def __reduce__(self) -> Any:
        args = self._name, self._description, self._tag_keys, self._default_tags, self.boundaries
        return _restored, (type(self), *args)


def _check_number(value: object) -> None:
    if not isinstance(value, (int, float)):
        raise TypeError(f"value must be int or float, got {type(value)}.")


def _check_tag(key: object, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"Tag values must be str, got {type(value)} for {key}.")


def _restored(
    kind: type[Any],
    name: str,
    description: str,
    tag_keys: tuple[str, ...],
    default_tags: dict[str, str],
    boundaries: Sequence[float] = (),
) -> Metric:
    more = {"boundaries": boundaries} if boundaries else {}
    made: Metric = kind(name, description, tag_keys=tag_keys, **more)
    return made.set_default_tags(default_tags)
