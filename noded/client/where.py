"""From the options that say where something runs to the Place that travels."""

from __future__ import annotations

import json
from typing import Any

from noded.client.strategies import (
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)
from noded.wire import messages as m

_STRATEGIES = (PlacementGroupSchedulingStrategy, NodeAffinitySchedulingStrategy, NodeLabelSchedulingStrategy)


def check(*, scheduling_strategy: Any = None, label_selector: Any = None) -> None:
    """Raises TypeError or ValueError naming the option."""
    strategy = scheduling_strategy
    if isinstance(strategy, str):
        if strategy not in ("DEFAULT", "SPREAD"):
            raise ValueError(
                f"the option scheduling_strategy must be 'DEFAULT', 'SPREAD' or a strategy, not {strategy!r}"
            )
    elif strategy is not None and not isinstance(strategy, _STRATEGIES):
        raise TypeError(f"the option scheduling_strategy must be 'DEFAULT', 'SPREAD' or a strategy, not {strategy!r}")


def of_group(group: Any, bundle: int, capture: bool | None) -> Any:
    """The strategy that the older three options say."""
    if group is None:
        return "DEFAULT"
    return PlacementGroupSchedulingStrategy(group, bundle, capture)


def place_of(strategy: Any, label_selector: Any, current: m.Place) -> m.Place:
    """Where it may run, submitted from code that runs at ``current``."""
    if strategy is None and not label_selector:
        if current.group and current.capture:
            return m.Place(group=current.group, capture=True)
        return m.ANYWHERE
    if isinstance(strategy, PlacementGroupSchedulingStrategy):
        capture = strategy.placement_group_capture_child_tasks
        return m.Place(
            group=strategy.placement_group.id.binary(),
            bundle=strategy.placement_group_bundle_index,
            capture=current.capture if capture is None else capture,
        )
    if isinstance(strategy, NodeAffinitySchedulingStrategy):
        return m.Place(node=strategy.node_id, soft=strategy.soft)
    if strategy == "SPREAD":
        return m.Place(spread=True)
    return m.ANYWHERE


def labels_of(strategy: Any) -> str:
    return json.dumps(strategy)
