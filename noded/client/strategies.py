"""Where a task or actor should run: the values of the option ``scheduling_strategy``.

Plain values, checked when they are made; what is done with them is decided elsewhere. Users find them in
``noded.util.scheduling_strategies``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class _Value:
    """Equal and hashed by its attributes, and not meant to be changed."""

    def _key(self) -> tuple[Any, ...]:
        return tuple(_hashable(value) for value in self.__dict__.values())

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash((type(self), self._key()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.__dict__.items())})"


def _hashable(value: Any) -> Any:
    if isinstance(value, dict):
        return frozenset(value.items())
    return tuple(value) if isinstance(value, list) else value


class PlacementGroupSchedulingStrategy(_Value):
    """In a placement group: in the bundle of this index, or in any (-1).

    ``placement_group_capture_child_tasks``: what it submits runs in the group as well, unless it says otherwise.
    None: as the task that submits it.
    """

    def __init__(
        self,
        placement_group: Any,
        placement_group_bundle_index: int = -1,
        placement_group_capture_child_tasks: bool | None = None,
    ):
        self.placement_group = placement_group
        self.placement_group_bundle_index = placement_group_bundle_index
        self.placement_group_capture_child_tasks = placement_group_capture_child_tasks


class NodeAffinitySchedulingStrategy(_Value):
    """On the node of this id (hex, as in ``noded.nodes()``); with ``soft`` elsewhere when it is gone."""

    def __init__(
        self,
        node_id: Any,
        soft: bool,
        _spill_on_unavailable: bool = False,
        _fail_on_unavailable: bool = False,
    ):
        text = node_id if isinstance(node_id, str) else node_id.hex() if hasattr(node_id, "hex") else None
        if text is None:
            raise TypeError(f"node_id must be a string of hex digits, not {node_id!r}")
        if not text or set(text.lower()) - set("0123456789abcdef"):
            raise ValueError(
                f"Invalid node_id {text!r}: it must be a string of hex digits, see NodeID in noded.nodes()"
            )
        if _spill_on_unavailable and not soft:
            raise ValueError("_spill_on_unavailable cannot be set when soft is False: set soft to True")
        if _fail_on_unavailable and soft:
            raise ValueError("_fail_on_unavailable cannot be set when soft is True: set soft to False")
        self.node_id: str = text
        self.soft = soft
        self._spill_on_unavailable = _spill_on_unavailable
        self._fail_on_unavailable = _fail_on_unavailable


class In(_Value):
    """The label has one of these values."""

    def __init__(self, *values: str):
        self.values = _label_values("In", values)


class NotIn(_Value):
    """The label has none of these values, or is not there."""

    def __init__(self, *values: str):
        self.values = _label_values("NotIn", values)


class Exists(_Value):
    """The label is there."""


class DoesNotExist(_Value):
    """The label is not there."""


LabelMatch = In | NotIn | Exists | DoesNotExist


class NodeLabelSchedulingStrategy(_Value):
    """On a node whose labels match all of ``hard``, and if there is one all of ``soft``."""

    def __init__(self, hard: Mapping[str, LabelMatch] | None, *, soft: Mapping[str, LabelMatch] | None = None):
        self.hard = _label_matches("hard", hard)
        self.soft = _label_matches("soft", soft)
        if not self.hard and not self.soft:
            raise ValueError("The `hard` and `soft` parameter of NodeLabelSchedulingStrategy cannot both be empty.")


def _label_values(operator: str, values: tuple[Any, ...]) -> list[str]:
    if not values:
        raise ValueError(f'{operator} needs at least one value, as in {operator}("value1", "value2")')
    for at, value in enumerate(values):
        if not isinstance(value, str):
            raise ValueError(f"{operator} takes strings, but value {at} is {value!r}")
    return list(values)


def _label_matches(name: str, given: Any) -> dict[str, LabelMatch]:
    if given is None:
        return {}
    example = f'({name}={{"key1": In("value1")}})'
    if not isinstance(given, Mapping):
        raise ValueError(f"{name} must be a mapping of label to operator {example}, not {given!r}")
    for key, match in given.items():
        if not isinstance(key, str):
            raise ValueError(f"the keys of {name} must be strings {example}, not {key!r}")
        if not isinstance(match, LabelMatch):
            raise ValueError(f"{name}[{key!r}] must be In, NotIn, Exists or DoesNotExist {example}, not {match!r}")
    return dict(given)
