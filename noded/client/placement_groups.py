"""``placement_group()`` and what belongs to it: resources reserved together, in bundles that tasks and actors run in.

Names, arguments and meaning are those of ``ray.util.placement_group``. Creating and removing do not wait for the
daemon, except for a group with a name or a life of its own, whose errors are to be seen here and now.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from noded import exceptions as ex
from noded import ids
from noded.client import codec
from noded.client.context import running, where_now
from noded.client.groups import Group
from noded.client.refs import ObjectRef
from noded.client.runtime import Runtime, runtime
from noded.resources import ResourceSet
from noded.wire import messages as m

STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
_NODE_ID_LABELS = ("noded.io/node-id", "ray.io/node-id")
_EXAMPLE = '[{"CPU": 1}, {"GPU": 1}]'


class PlacementGroupID:
    """The 16 bytes that name a placement group."""

    __slots__ = ("_bytes",)

    def __init__(self, id: bytes):
        if not isinstance(id, bytes) or len(id) != ids.ID_SIZE:
            raise ValueError(f"a PlacementGroupID is made of {ids.ID_SIZE} bytes, not of {id!r}")
        self._bytes = id

    @classmethod
    def from_hex(cls, hex_id: str) -> PlacementGroupID:
        return cls(bytes.fromhex(hex_id))

    @classmethod
    def from_binary(cls, id_bytes: bytes) -> PlacementGroupID:
        return cls(id_bytes)

    @classmethod
    def from_random(cls) -> PlacementGroupID:
        return cls(os.urandom(ids.ID_SIZE))

    @classmethod
    def nil(cls) -> PlacementGroupID:
        return cls(b"\xff" * ids.ID_SIZE)

    @classmethod
    def size(cls) -> int:
        return ids.ID_SIZE

    def binary(self) -> bytes:
        return self._bytes

    def hex(self) -> str:
        return self._bytes.hex()

    def is_nil(self) -> bool:
        return self._bytes == b"\xff" * ids.ID_SIZE

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlacementGroupID) and other._bytes == self._bytes

    def __hash__(self) -> int:
        return hash(self._bytes)

    def __repr__(self) -> str:
        return f"PlacementGroupID({self.hex()})"

    def __reduce__(self) -> Any:
        return PlacementGroupID, (self._bytes,)


class PlacementGroup:
    """A handle: as many as you like may refer to one group, in any process. It is not what keeps the group."""

    def __init__(self, id: PlacementGroupID, bundle_cache: list[dict[str, float]] | None = None):
        self.id = id
        self.bundle_cache = bundle_cache
        self._known: tuple[Runtime, Group] | None = None

    @staticmethod
    def empty() -> PlacementGroup:
        """Stands for no group."""
        return PlacementGroup(PlacementGroupID.nil(), [])

    @property
    def is_empty(self) -> bool:
        return self.id.is_nil()

    @property
    def bundle_specs(self) -> list[dict[str, float]]:
        """The resources of each bundle. Memory in bytes."""
        if self.bundle_cache is None:
            self.bundle_cache = bundles_of(self.id.binary())
        return self.bundle_cache

    @property
    def bundle_count(self) -> int:
        return len(self.bundle_specs)

    def ready(self) -> ObjectRef[PlacementGroup]:
        """A ref whose value is this group, ready when it is created. Getting it raises TaskPlacementGroupRemoved when
        the group was removed, and PlacementGroupUnschedulableError when for 3 seconds no node could ever hold it.
        """
        rt, group = self._group()
        with rt.interrupts:
            value = codec.pack(self, "a placement group").as_bytes()
            with rt.lock:
                return rt.groups.ready_locked(group, value)

    def wait(self, timeout_seconds: float = 30) -> bool:
        """Whether it is created; waits for that up to so many seconds. Raises TaskPlacementGroupRemoved when it was
        removed.
        """
        if isinstance(timeout_seconds, bool) or not isinstance(timeout_seconds, (int, float)):
            raise TypeError(f"timeout_seconds must be a number of seconds, not {timeout_seconds!r}")
        rt, group = self._group()
        if group.state != "created":
            deadline = time.monotonic() + max(0.0, timeout_seconds)
            with rt.interrupts:
                _count_waiting(rt, group, 1)
                try:
                    rt.objects.sleep(lambda: group.state not in ("pending", "infeasible"), deadline)
                finally:
                    _count_waiting(rt, group, -1)
            if group.state in ("removed", "removing"):
                raise group.error()  # type: ignore[misc]
        return group.state == "created"

    def _group(self) -> tuple[Runtime, Group]:
        if self.is_empty:
            raise ValueError("this is the empty placement group, which is never created: use placement_group()")
        rt = runtime()
        if self._known is None or self._known[0] is not rt:
            with rt.lock:
                self._known = rt, rt.groups.group_locked(self.id.binary())
        return self._known

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlacementGroup) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"PlacementGroup({self.id.hex()})"

    def __reduce__(self) -> Any:
        return PlacementGroup, (self.id, self.bundle_cache)


def _count_waiting(rt: Runtime, group: Group, change: int) -> None:
    with rt.lock:
        group.waiting += change


def placement_group(
    bundles: list[dict[str, float]],
    strategy: str | None = None,
    name: str = "",
    lifetime: str | None = None,
    _soft_target_node_id: str | None = None,
    bundle_label_selector: list[dict[str, str]] | None = None,
    topology_strategy: dict[str, str] | None = None,
) -> PlacementGroup:
    """Reserve resources: for each bundle a dict of resource to amount (memory in bytes), all of them or none.

    ``strategy``: PACK (on few nodes, the default), SPREAD (on many), STRICT_PACK (all on one), STRICT_SPREAD (each on
    one of its own). ``lifetime="detached"``: it stays when this program ends. ``bundle_label_selector``: for each
    bundle, the labels of its node. The group is made in the background: see ``wait()`` and ``ready()``. Raises
    ValueError, TypeError; PlacementGroupAlreadyExistsError where the name is taken in this program's namespace.
    """
    units = _check_bundles(bundles)
    strategy = _check_strategy(strategy, topology_strategy)
    selectors = _check_selectors(bundle_label_selector, len(bundles))
    if not isinstance(name, str):
        raise TypeError(f"the name of a placement group is a string, not {name!r}")
    if lifetime not in (None, "detached"):
        raise ValueError(f"the lifetime of a placement group is None or 'detached', not {lifetime!r}")
    if _soft_target_node_id is not None:
        if strategy != "STRICT_PACK":
            raise ValueError(f"_soft_target_node_id is for STRICT_PACK only, not for {strategy}")
        if not isinstance(_soft_target_node_id, str) or set(_soft_target_node_id.lower()) - set("0123456789abcdef"):
            raise ValueError(f"_soft_target_node_id must be a string of hex digits, not {_soft_target_node_id!r}")
    rt = runtime()
    spec = m.GroupSpec(
        ids.group_id(rt.prefix, rt.next_seq()),
        [bundle.to_dict() for bundle in units],
        strategy,
        name,
        rt.namespace,
        lifetime == "detached",
        rt.job,
        running.actor_id,
        selectors,
    )
    made = PlacementGroup(PlacementGroupID(spec.id), [bundle.to_floats() for bundle in units])
    with rt.interrupts:
        with rt.lock:
            made._known = rt, rt.groups.create_locked(spec)
        if name or spec.detached:
            _await_record(rt, spec.id)
    return made


def _await_record(rt: Runtime, id_: bytes) -> None:
    """A name that is taken is an error here and now; and a detached group is on record when its maker goes on."""
    rejected = rt.ask("await_placement_group", None, id=id_.hex())
    if rejected:
        with rt.lock:
            rt.groups.forget_locked(id_)
        raise ex.PlacementGroupAlreadyExistsError(rejected)


def _check_bundles(bundles: Any) -> list[ResourceSet]:
    if not isinstance(bundles, list):
        raise ValueError(f"the bundles of a placement group are a list such as {_EXAMPLE}, not {bundles!r}")
    if not bundles:
        raise ValueError(f"a placement group needs at least one bundle, as in {_EXAMPLE}")
    found = []
    for index, bundle in enumerate(bundles):
        if not isinstance(bundle, dict):
            raise ValueError(f"bundle {index} must be a dict of resource to amount, as in {_EXAMPLE}, not {bundle!r}")
        try:
            found.append(ResourceSet.from_floats(bundle))
        except ValueError as error:
            raise ValueError(f"bundle {index}: {error}") from None
        if not found[-1]:
            raise ValueError(
                f"bundle {index} is empty, or asks for nothing but 0 (below 0.0001 counts as 0): {bundle!r}"
            )
    return found


def _check_strategy(strategy: Any, topology: Any) -> str:
    if topology is not None:
        if not isinstance(topology, dict) or len(topology) != 1 or next(iter(topology)) not in _NODE_ID_LABELS:
            raise NotImplementedError(
                f"topology_strategy={topology!r} is not supported: give a strategy for {_NODE_ID_LABELS[0]} only, "
                "which is what strategy= says"
            )
        if strategy is not None:
            raise ValueError("give strategy or topology_strategy, not both")
        strategy = next(iter(topology.values()))
    if strategy is None:
        return "PACK"
    if strategy not in STRATEGIES:
        raise ValueError(f"{strategy!r} is no strategy of placement groups; there are {', '.join(STRATEGIES)}")
    return str(strategy)


def _check_selectors(selectors: Any, count: int) -> list[str]:
    if selectors is None:
        return []
    if not isinstance(selectors, list) or not all(isinstance(each, dict) for each in selectors):
        raise ValueError(f"bundle_label_selector is a list of dicts of label to value, not {selectors!r}")
    if len(selectors) != count:
        raise ValueError(f"bundle_label_selector needs one entry for each of the {count} bundles, not {len(selectors)}")
    from noded.policy import labels  # few programs have any

    try:
        return [labels.encode(labels.parse_selector(each)) for each in selectors]
    except TypeError as error:
        raise ValueError(f"bundle_label_selector: {error}") from None


def remove_placement_group(placement_group: PlacementGroup) -> None:
    """Give the resources back, and end what runs in the group. Harmless when it was removed before."""
    _check_group(placement_group)
    if placement_group.is_empty:
        return
    rt = runtime()
    with rt.interrupts, rt.lock:
        rt.groups.remove_locked(placement_group.id.binary())


def _check_group(group: Any) -> None:
    if not isinstance(group, PlacementGroup):
        raise TypeError(f"a PlacementGroup is needed here, not {group!r}")


def placement_group_table(placement_group: PlacementGroup | None = None) -> dict[str, Any]:
    """What the cluster knows of a group (nothing: it is unknown), or of all by their ids in hex."""
    if placement_group is None:
        found: dict[str, Any] = runtime().ask("placement_groups")
        return {id_: _numbered(group) for id_, group in found.items()}
    _check_group(placement_group)
    found = runtime().ask("placement_groups", id=placement_group.id.hex())
    return next(map(_numbered, found.values()), {})


def _numbered(group: dict[str, Any]) -> dict[str, Any]:
    """JSON has no numbers as keys."""
    for name in ("bundles", "bundles_to_node_id"):
        group[name] = {int(index): value for index, value in group[name].items()}
    return group


def bundles_of(id_: bytes) -> list[dict[str, float]]:
    """The bundles of any group that the cluster knows. Raises ValueError."""
    rt = runtime()
    known = rt.groups.bundles.get(id_)
    if known is None:
        found = rt.ask("placement_groups", id=id_.hex())
        if not found:
            raise ValueError(f"the placement group {id_.hex()} is not known: it was removed, or never created")
        bundles: Mapping[str, dict[str, float]] = found[id_.hex()]["bundles"]
        known = [bundles[str(index)] for index in range(len(bundles))]
        rt.groups.remember_bundles(id_, known)
    return [dict(bundle) for bundle in known]


def get_placement_group(placement_group_name: str) -> PlacementGroup:
    """The group of this name in this program's namespace. Raises ValueError when there is none."""
    if not placement_group_name:
        raise ValueError("get_placement_group() needs a name that is not empty")
    if not isinstance(placement_group_name, str):
        raise TypeError(f"the name of a placement group is a string, not {placement_group_name!r}")
    rt = runtime()
    id_: str = rt.ask("get_placement_group", None, name=placement_group_name, namespace=rt.namespace)
    return PlacementGroup(PlacementGroupID.from_hex(id_))


def get_current_placement_group() -> PlacementGroup | None:
    """The group that the calling task or actor runs in."""
    id_ = where_now().group
    return PlacementGroup(PlacementGroupID(id_)) if id_ else None


def check_placement_group_index(placement_group: PlacementGroup, bundle_index: int) -> None:
    """Raises ValueError when the group has no bundle of this index; -1 means any."""
    _check_group(placement_group)
    if isinstance(bundle_index, bool) or not isinstance(bundle_index, int):
        raise TypeError(f"a bundle index is a whole number, not {bundle_index!r}")
    if placement_group.is_empty:
        if bundle_index != -1:
            raise ValueError("a bundle index is given, but no placement group")
    elif not -1 <= bundle_index < placement_group.bundle_count:
        raise ValueError(
            f"there is no bundle {bundle_index}: the placement group has {placement_group.bundle_count}, from 0 on; "
            "-1 means any"
        )
