"""From the options that say where something runs to the Place that travels.

What is not said is taken from the code that submits: what runs in a placement group that captures puts what it submits
into the group as well. Anything said, also "DEFAULT" or no group (None), opts out of that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from noded.client.strategies import (
    DoesNotExist,
    Exists,
    In,
    LabelMatch,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
    PlacementGroupSchedulingStrategy,
)
from noded.resources import UNIT
from noded.wire import messages as m

_STRATEGIES = (PlacementGroupSchedulingStrategy, NodeAffinitySchedulingStrategy, NodeLabelSchedulingStrategy)
_AS_SUBMITTER = "default"
"""In place of a placement group."""


def check(*, scheduling_strategy: Any = None, label_selector: Any = None, fallback_strategy: Any = None) -> None:
    """Raises TypeError or ValueError naming the option."""
    strategy = scheduling_strategy
    if isinstance(strategy, str):
        if strategy not in ("DEFAULT", "SPREAD"):
            raise ValueError(
                f"the option scheduling_strategy must be 'DEFAULT', 'SPREAD' or a strategy, not {strategy!r}"
            )
    elif strategy is not None and not isinstance(strategy, _STRATEGIES):
        raise TypeError(f"the option scheduling_strategy must be 'DEFAULT', 'SPREAD' or a strategy, not {strategy!r}")
    if isinstance(strategy, PlacementGroupSchedulingStrategy):
        _check_group(strategy.placement_group, strategy.placement_group_bundle_index)
    if label_selector is not None:
        _conditions("label_selector", label_selector)
    if fallback_strategy is not None:
        _fallbacks(fallback_strategy)


def _check_group(group: Any, bundle: Any) -> None:
    if group is None or group == _AS_SUBMITTER:
        return
    from noded.client.placement_groups import PlacementGroup, check_placement_group_index

    if not isinstance(group, PlacementGroup):
        raise TypeError(f"the placement group of a scheduling strategy is a PlacementGroup, not {group!r}")
    check_placement_group_index(group, bundle)


def _conditions(option: str, selector: Any) -> list[Any]:
    from noded.policy import labels  # few programs have any

    if not isinstance(selector, dict):
        raise TypeError(f"the option {option} must be a dict of label to value, not {selector!r}")
    try:
        return labels.parse_selector(selector)
    except (TypeError, ValueError) as error:
        raise type(error)(f"the option {option}: {error}") from None


def _fallbacks(given: Any) -> list[list[Any]]:
    if not isinstance(given, list):
        raise TypeError(f"the option fallback_strategy must be a list of dicts, not {given!r}")
    for each in given:
        if not isinstance(each, dict) or each.keys() != {"label_selector"}:
            raise ValueError(f"the option fallback_strategy takes dicts with a label_selector only, not {each!r}")
    return [_conditions("fallback_strategy", each["label_selector"]) for each in given]


def of_older_options(
    strategy: Any,
    placement_group: Any = _AS_SUBMITTER,
    placement_group_bundle_index: int = -1,
    placement_group_capture_child_tasks: bool | None = None,
) -> Any:
    """The strategy that the three older options say. Raises TypeError, ValueError."""
    made = PlacementGroupSchedulingStrategy(
        placement_group, placement_group_bundle_index, placement_group_capture_child_tasks
    )
    if strategy is not None:
        if made != PlacementGroupSchedulingStrategy(_AS_SUBMITTER):
            raise ValueError("give the placement group in the option scheduling_strategy, not beside it")
        return strategy
    check(scheduling_strategy=made)
    return made


def place_of(strategy: Any, current: m.Place, label_selector: Any = None, fallback_strategy: Any = None) -> m.Place:
    """Where it may run, submitted from code that runs at ``current``. Raises ValueError."""
    hard = _conditions("label_selector", label_selector) if label_selector else []
    if isinstance(strategy, NodeAffinitySchedulingStrategy):
        return m.Place(
            node=strategy.node_id.lower(), soft=bool(strategy.soft), labels=_encode(hard, [], fallback_strategy)
        )
    if isinstance(strategy, NodeLabelSchedulingStrategy):
        hard += _matches(strategy.hard)
        return m.Place(labels=_encode(hard, _matches(strategy.soft), fallback_strategy))
    text = _encode(hard, [], fallback_strategy)
    if strategy == "SPREAD":
        return m.Place(spread=True, labels=text)
    if isinstance(strategy, PlacementGroupSchedulingStrategy) or strategy is None:
        group, bundle, capture = _group_of(strategy, current)
        if group:
            return m.Place(group=group, bundle=bundle, capture=capture, labels=text)
    return m.Place(labels=text) if text else m.ANYWHERE


def _group_of(strategy: PlacementGroupSchedulingStrategy | None, current: m.Place) -> tuple[bytes, int, bool]:
    """(group or nothing, bundle, whether what it submits goes there too)"""
    group: Any = _AS_SUBMITTER
    bundle, capture = -1, current.capture
    if strategy is not None:
        group, bundle = strategy.placement_group, strategy.placement_group_bundle_index
        if strategy.placement_group_capture_child_tasks is not None:
            capture = bool(strategy.placement_group_capture_child_tasks)
    if group == _AS_SUBMITTER:
        id_ = current.group if capture else b""
    else:
        id_ = b"" if group is None or group.is_empty else group.id.binary()
    if not id_ and bundle != -1:
        raise ValueError(f"a bundle index ({bundle}) is given, but it does not run in a placement group")
    return id_, bundle, capture


def _matches(given: Mapping[str, LabelMatch]) -> list[Any]:
    from noded.policy import labels

    operators = {In: labels.IN, NotIn: labels.NOT_IN, Exists: labels.EXISTS, DoesNotExist: labels.ABSENT}
    return [(key, operators[type(match)], tuple(getattr(match, "values", ()))) for key, match in given.items()]


def _encode(hard: list[Any], soft: list[Any], fallback_strategy: Any) -> str:
    if not hard and not soft:
        return ""
    from noded.policy import labels

    return labels.encode(hard, soft, _fallbacks(fallback_strategy or []))


def check_fit(place: m.Place, strategy: Any, resources: Mapping[str, int]) -> None:
    """Refuse here and now what no bundle of its group can ever hold. Raises ValueError."""
    from noded.client.placement_groups import bundles_of

    group = getattr(strategy, "placement_group", None)
    try:
        bundles = group.bundle_specs if group is not None and group != _AS_SUBMITTER else bundles_of(place.group)
    except ValueError:
        return  # it is gone, which the daemon says better
    if not -1 <= place.bundle < len(bundles):
        raise ValueError(f"there is no bundle {place.bundle}: the placement group has {len(bundles)}; -1 means any")
    choice = bundles if place.bundle < 0 else [bundles[place.bundle]]
    if not any(all(b.get(name, 0) * UNIT >= amount for name, amount in resources.items()) for b in choice):
        asked = {name: amount / UNIT for name, amount in resources.items()}
        raise ValueError(
            f"it asks for {asked}, which fits no bundle that it may run in, of {choice}: ask for less, or make a "
            "placement group with larger bundles; an actor needs one CPU to start unless it says what it needs"
        )
