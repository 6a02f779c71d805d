"""The row for placement groups: made, waited for, removed.

Its shape follows the row of the same name in Ray's microbenchmark: a hundred groups of one small bundle at a time, of a
resource that there is more than enough of, so that nothing waits for a removal.
"""

from __future__ import annotations

import importlib

from bench.systems import Context
from bench.timing import Measurement, rate

RESOURCES = {"custom": 100}
BUNDLE = {"custom": 0.001}
GROUPS = 100
SECONDS = 30


def create_and_remove(context: Context) -> Measurement:
    """Groups a second."""
    api = importlib.import_module(f"{context.api.__name__}.util.placement_group")
    create, remove = api.placement_group, api.remove_placement_group

    def step() -> None:
        groups = [create([BUNDLE]) for _ in range(GROUPS)]
        for group in groups:
            if not group.wait(timeout_seconds=SECONDS):
                raise AssertionError(f"a placement group was not there after {SECONDS} s")
        for group in groups:
            remove(group)

    return rate(step, GROUPS, context.timing)
