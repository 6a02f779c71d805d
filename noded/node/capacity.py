"""What this node has and what of it is free: amounts, single GPUs, and the bundles of placement groups.

A bundle is a part of the node that only its group may use. Its amounts stand beside the node's own under names that
carry the bundle ("CPU@<group>:0"), so that taking, giving and the ledger need not know of bundles. Which GPUs a share
has is decided in ``policy/devices.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from noded.policy import devices
from noded.resources import UNIT
from noded.wire import messages as m

GPU = "GPU"


@dataclass(frozen=True)
class Share:
    """What one lease, actor or bundle has: amounts under their full names, and GPUs by index."""

    resources: dict[str, int]
    devices: dict[int, int] = field(default_factory=dict)
    bundle: int = -1


@dataclass(eq=False)
class Group:
    """A placement group with its resources taken."""

    id: bytes
    bundles: list[dict[str, int]]
    shares: list[dict[int, int]]
    """GPUs of each bundle."""
    closing: bool = False


def base(name: str) -> str:
    """The resource's name without the bundle."""
    return name.partition("@")[0]


def cpus_of(resources: Mapping[str, int]) -> dict[str, int]:
    """What of a share a blocked worker lends."""
    return {name: amount for name, amount in resources.items() if base(name) == "CPU"}


def _suffix(group: bytes, bundle: int) -> str:
    return f"@{group[:12].hex()}:{bundle}"


def _suffix_in(resources: Mapping[str, int]) -> str:
    for name in resources:
        if "@" in name:
            return "@" + name.partition("@")[2]
    return ""


class Capacity:
    """``total`` and ``available`` in fixed-point units, bundles among them; ``ids``: the GPUs' names by index."""

    def __init__(self, total: dict[str, int], ids: list[str]):
        self.total = total
        self.available = dict(total)
        self.ids = ids
        self.groups: dict[bytes, Group] = {}
        self._free: dict[str, dict[int, int]] = {"": self._rooms(total.get(GPU, 0), len(ids))}
        """GPU -> units free, of the node ("") and of each bundle by its suffix."""

    @staticmethod
    def _rooms(amount: int, count: int) -> dict[int, int]:
        return {index: min(UNIT, amount - index * UNIT) for index in range(count)}

    def add_gpus(self, ids: list[str], more: Mapping[str, int]) -> None:
        """They were found after the start."""
        first = len(self.ids)
        self.ids = [*self.ids, *ids]
        for index in range(first, len(self.ids)):
            self._free[""][index] = UNIT
        for name, amount in {GPU: len(ids) * UNIT, **more}.items():
            self.total[name] = self.total.get(name, 0) + amount
            self.available[name] = self.available.get(name, 0) + amount

    def names_of(self, share: Mapping[int, int]) -> list[str]:
        """What CUDA_VISIBLE_DEVICES is to hold."""
        return [self.ids[index] for index in sorted(share)]

    def own(self) -> tuple[dict[str, int], dict[str, int]]:
        """(total, available) without the bundles."""
        total = {name: amount for name, amount in self.total.items() if "@" not in name}
        return total, {name: self.available.get(name, 0) for name in total}

    # ------------------------------------------------------------ shares

    def fit(self, resources: Mapping[str, int], where: m.Place) -> Share:
        """What a request would take, whether or not it is free: in a group, of the first bundle that has it all."""
        group = self.groups.get(where.group)
        if group is None:
            return Share(dict(resources))
        choices = [where.bundle] if where.bundle >= 0 else range(len(group.bundles))
        shares = [self._named(resources, _suffix(where.group, index), index) for index in choices]
        return next((share for share in shares if not self.lacking(share)), shares[0])

    @staticmethod
    def _named(resources: Mapping[str, int], suffix: str, bundle: int) -> Share:
        return Share({name + suffix: amount for name, amount in resources.items()}, {}, bundle)

    def lacking(self, share: Share) -> list[str]:
        """The names of what is not free now."""
        found = [name for name, amount in share.resources.items() if self.available.get(name, 0) < amount]
        suffix = _suffix_in(share.resources)
        gpus = share.resources.get(GPU + suffix, 0)
        if gpus and not found and devices.assign(self._free.get(suffix, {}), gpus) is None:
            found.append(GPU + suffix)  # enough in sum, but in pieces on several
        return found

    def take(self, share: Share) -> Share:
        """Take it, also below zero; with the GPUs it gets, where they are free."""
        for name, amount in share.resources.items():
            self.available[name] = self.available.get(name, 0) - amount
        suffix = _suffix_in(share.resources)
        free = self._free.get(suffix, {})
        given = share.devices or devices.assign(free, share.resources.get(GPU + suffix, 0)) or {}
        for index, units in given.items():
            free[index] = free.get(index, 0) - units
        return Share(share.resources, given, share.bundle)

    def give(self, share: Share) -> None:
        for name, amount in share.resources.items():
            if name in self.available:
                self.available[name] += amount
        free = self._free.get(_suffix_in(share.resources), {})
        for index, units in share.devices.items():
            free[index] = free.get(index, 0) + units

    def lend(self, share: Share, lent: bool) -> None:
        """A worker that waits gives its CPUs back for the time, and takes them again whatever is free."""
        for name, amount in cpus_of(share.resources).items():
            if name in self.available:
                self.available[name] += amount if lent else -amount

    def never(self, resources: Mapping[str, int], where: m.Place) -> dict[str, tuple[int, int]]:
        """What can never be satisfied: name -> (asked, there is); of a group, by its largest bundle."""
        group = self.groups.get(where.group)
        if group is None:
            return {n: (a, self.total.get(n, 0)) for n, a in resources.items() if a > self.total.get(n, 0)}
        if where.bundle >= len(group.bundles):
            return {"bundle index": (where.bundle * UNIT, (len(group.bundles) - 1) * UNIT)}
        bundles = [group.bundles[where.bundle]] if where.bundle >= 0 else group.bundles
        if any(all(amount <= bundle.get(name, 0) for name, amount in resources.items()) for bundle in bundles):
            return {}
        most = {name: max(bundle.get(name, 0) for bundle in bundles) for name in resources}
        lacking = {name: (amount, most[name]) for name, amount in resources.items() if amount > most[name]}
        return lacking or {name: (amount, most[name]) for name, amount in resources.items()}

    # ------------------------------------------------------------ placement groups

    def lacking_gpus(self, bundles: list[dict[str, int]]) -> list[str]:
        """Free in sum, but not as the bundles of a group need them."""
        return [GPU] if self._gpus_for(bundles) is None else []

    def _gpus_for(self, bundles: list[dict[str, int]]) -> list[dict[int, int]] | None:
        shares: list[dict[int, int]] = []
        free = self._free[""]
        for bundle in bundles:
            share = devices.assign(free, bundle.get(GPU, 0))
            if share is None:
                return None
            free = devices.take(free, share)
            shares.append(share)
        return shares

    def open_group(self, id_: bytes, bundles: list[dict[str, int]]) -> None:
        """Take a group's resources, which must be free."""
        shares = self._gpus_for(bundles) or [{} for _ in bundles]
        self._add_group(id_, bundles, shares)
        for share in shares:
            for device, units in share.items():
                self._free[""][device] -= units

    def _add_group(self, id_: bytes, bundles: list[dict[str, int]], shares: list[dict[int, int]]) -> None:
        self.groups[id_] = Group(id_, bundles, shares)
        for index, (bundle, share) in enumerate(zip(bundles, shares, strict=True)):
            suffix = _suffix(id_, index)
            self._free[suffix] = dict(share)
            for name, amount in bundle.items():
                self.available[name] = self.available.get(name, 0) - amount
                self.total[name + suffix] = self.available[name + suffix] = amount

    def restore_group(self, id_: bytes, bundles: list[dict[str, int]]) -> None:
        """After a restart: its amounts at once; its GPUs when it is known which are in use (``restore_devices``)."""
        self._add_group(id_, bundles, [{} for _ in bundles])

    def restore_devices(self) -> None:
        """All leases of the ledger are taken: bundles get the GPUs that their leases have, then others."""
        for group in self.groups.values():
            for index, bundle in enumerate(group.bundles):
                amount = bundle.get(GPU, 0)
                if not amount or group.shares[index]:
                    continue
                room = self._free[_suffix(group.id, index)]
                used = {device: -units for device, units in room.items() if units < 0}
                share = {device: min(UNIT, amount) for device in used}
                missing = amount - sum(share.values())
                if missing > 0:
                    share |= devices.assign({d: u for d, u in self._free[""].items() if d not in share}, missing) or {}
                for device, units in share.items():
                    self._free[""][device] -= units
                    room[device] = room.get(device, 0) + units
                group.shares[index] = share

    def close_group(self, id_: bytes) -> None:
        """Its resources are the node's again."""
        group = self.groups.pop(id_)
        for index, bundle in enumerate(group.bundles):
            suffix = _suffix(id_, index)
            for name, amount in bundle.items():
                self.available[name] += amount
                del self.total[name + suffix], self.available[name + suffix]
            for device, units in group.shares[index].items():
                self._free[""][device] += units
            del self._free[suffix]
