"""Placement groups: resources reserved together. See ``noded.client.placement_groups``.

``noded.util.placement_group`` is this module or the function in it, whichever was asked for last, as in Ray; so the
module can be called like the function.
"""

import sys
from types import ModuleType

from noded.client.placement_groups import (
    PlacementGroup,
    PlacementGroupID,
    check_placement_group_index,
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

__all__ = [
    "PlacementGroup",
    "PlacementGroupID",
    "check_placement_group_index",
    "get_current_placement_group",
    "get_placement_group",
    "placement_group",
    "placement_group_table",
    "remove_placement_group",
]


class _CallableModule(ModuleType):
    __call__ = staticmethod(placement_group)


sys.modules[__name__].__class__ = _CallableModule
