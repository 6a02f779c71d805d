"""What this node has and what of it is free: amounts, single GPUs, and the bundles of placement groups.

A bundle is a part of the node that only its group may use. Its amounts stand beside the node's own under names that
carry the bundle ("CPU@pg:<group>:0"), so that taking, giving and the ledger need not know of bundles. Which GPUs a
share has is decided in ``policy/devices.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec

from noded.node.ledger import LedgerError
from noded.policy import devices
from noded.resources import BUNDLE_MARK, UNIT, base_name
from noded.wire import messages as m

log = logging.getLogger("noded.capacity")

GPU = "GPU"
_PIECE = 900
"""Bytes of a group's record that go into one of the ledger's."""


class Share(msgspec.Struct, frozen=True):
    """What one lease, actor or bundle has: amounts under their full names, and GPUs by index."""

    resources: dict[str, int]
    devices: dict[int, int] = {}
    bundle: int = -1


Bundles = dict[int, dict[str, int]]
"""Amounts by the bundle's index in its group."""


class Group(msgspec.Struct, eq=False):
    """A placement group, or those of its bundles that are on this node, with their resources taken."""

    id: bytes
    bundles: Bundles
    shares: dict[int, dict[int, int]]
    """GPUs of each bundle."""
    attempt: int = 0
    """Of the head to place it, the last that this node has heard of."""


class KeptGroup(msgspec.Struct, array_like=True):
    """As the next daemon finds it."""

    bundles: Bundles
    shares: dict[int, dict[int, int]]
    attempt: int = 0


class Kept(Protocol):
    """What the next daemon finds: a table of the ledger."""

    def put(self, key: bytes, payload: bytes) -> None: ...

    def get(self, key: bytes) -> bytes | None: ...

    def delete(self, key: bytes) -> bool: ...

    def items(self) -> Iterable[tuple[bytes | int, bytes]]: ...


def cpus_of(resources: Mapping[str, int]) -> dict[str, int]:
    """What of a share a blocked worker lends."""
    return {name: amount for name, amount in resources.items() if base_name(name) == "CPU"}


def memory_of(resources: Mapping[str, int]) -> int:
    """Bytes that whoever has this share may use; 0: as many as there are."""
    return sum(amount for name, amount in resources.items() if base_name(name) == "memory") // UNIT


def _suffix(group: bytes, bundle: int) -> str:
    return f"{BUNDLE_MARK}{group[:12].hex()}:{bundle}"


def _suffix_in(resources: Mapping[str, int]) -> str:
    for name in resources:
        if BUNDLE_MARK in name:
            return name[len(base_name(name)) :]
    return ""


def _assign(free: Mapping[int, int], amount: int) -> dict[int, int] | None:
    """Also None for what can never be: one and a half devices."""
    return None if _odd(GPU, amount) else devices.assign(free, amount)


def _odd(name: str, amount: int) -> bool:
    """Of GPUs, one and a half and the like."""
    return name == GPU and amount > UNIT and amount % UNIT > 0


def bundle_of(resources: Mapping[str, int]) -> int:
    """The index of the bundle that a share is in, -1: none."""
    index = _suffix_in(resources).rpartition(":")[2]
    return int(index) if index.isdecimal() else -1


class Capacity:
    """``total`` and ``available`` in fixed-point units, bundles among them; ``ids``: the GPUs' names by index;
    ``kept``: the bundles, with their GPUs, for the next daemon.
    """

    def __init__(self, total: dict[str, int], ids: list[str], kept: Kept):
        self.total = total
        self.available = dict(total)
        self.ids = ids
        self.groups: dict[bytes, Group] = {}
        self._kept = kept
        self._turns: dict[bytes, int] = {}
        """Of the groups that are kept: under which turn."""
        self._free: dict[str, dict[int, int]] = {"": self._rooms(total.get(GPU, 0), len(ids))}
        """GPU -> units free, of the node ("") and of each bundle by its suffix."""

    @staticmethod
    def _rooms(amount: int, count: int) -> dict[int, int]:
        return {index: min(UNIT, amount - index * UNIT) for index in range(count)}

    def add_gpus(self, ids: list[str], more: Mapping[str, int]) -> None:
        """They were found after the start."""
        first = len(self.ids)
        self.ids = [*self.ids, *ids]
        free = self._free[""]
        for index in range(first, len(self.ids)):
            # What was taken over from the daemon before us is in use already.
            free[index] = free.get(index, 0) + UNIT
        for name, amount in {**({GPU: len(ids) * UNIT} if ids else {}), **more}.items():
            self.total[name] = self.total.get(name, 0) + amount
            self.available[name] = self.available.get(name, 0) + amount
        self.restore_devices()

    def names_of(self, share: Mapping[int, int]) -> list[str]:
        """What CUDA_VISIBLE_DEVICES is to hold."""
        # A daemon that was restarted with fewer GPUs may still have leases of those beyond.
        return [self.ids[index] if index < len(self.ids) else str(index) for index in sorted(share)]

    def own(self) -> tuple[dict[str, int], dict[str, int]]:
        """(total, available) without the bundles."""
        total = {name: amount for name, amount in self.total.items() if BUNDLE_MARK not in name}
        return total, {name: self.available.get(name, 0) for name in total}

    # ------------------------------------------------------------ shares

    def fit(self, resources: Mapping[str, int], where: m.Place) -> Share:
        """What a request would take, whether or not it is free: in a group, of the first bundle that has it all now,
        else of the first that could ever have it.
        """
        group = self.groups.get(where.group)
        if group is None:
            return Share(dict(resources))
        if where.bundle >= 0:
            return self._named(resources, _suffix(where.group, where.bundle), where.bundle)
        able = [i for i, bundle in group.bundles.items() if all(bundle.get(n, 0) >= a for n, a in resources.items())]
        able = able or [next(iter(group.bundles))]
        shares = [self._named(resources, _suffix(where.group, index), index) for index in able]
        return next((share for share in shares if not self.lacking(share)), shares[0])

    @staticmethod
    def _named(resources: Mapping[str, int], suffix: str, bundle: int) -> Share:
        return Share({name + suffix: amount for name, amount in resources.items()}, {}, bundle)

    def lacking(self, share: Share) -> list[str]:
        """The names of what is not free now."""
        found = [name for name, amount in share.resources.items() if self.available.get(name, 0) < amount]
        suffix = _suffix_in(share.resources)
        gpus = share.resources.get(GPU + suffix, 0)
        if gpus and not found and _assign(self._free.get(suffix, {}), gpus) is None:
            found.append(GPU + suffix)  # enough in sum, but in pieces on several
        return found

    def take(self, share: Share) -> Share:
        """Take it, also below zero; with the GPUs it gets, where they are free."""
        for name, amount in share.resources.items():
            self.available[name] = self.available.get(name, 0) - amount
        suffix = _suffix_in(share.resources)
        free = self._free.get(suffix, {})
        given = share.devices or _assign(free, share.resources.get(GPU + suffix, 0)) or {}
        for index, units in given.items():
            free[index] = free.get(index, 0) - units
        return Share(share.resources, dict(given), share.bundle)

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
            return {
                n: (a, self.total.get(n, 0)) for n, a in resources.items() if a > self.total.get(n, 0) or _odd(n, a)
            }
        if where.bundle >= 0 and where.bundle not in group.bundles:
            return {"bundle index": (where.bundle * UNIT, max(group.bundles) * UNIT)}
        bundles = [group.bundles[where.bundle]] if where.bundle >= 0 else list(group.bundles.values())
        if any(
            all(amount <= bundle.get(name, 0) and not _odd(name, amount) for name, amount in resources.items())
            for bundle in bundles
        ):
            return {}
        most = {name: max(bundle.get(name, 0) for bundle in bundles) for name in resources}
        lacking = {name: (amount, most[name]) for name, amount in resources.items() if amount > most[name]}
        return lacking or {name: (amount, most[name]) for name, amount in resources.items()}

    # ------------------------------------------------------------ placement groups

    def lacking_for_group(self, bundles: Bundles, sum_: Mapping[str, int]) -> list[str]:
        """The names of what is not free now: in sum, or, of GPUs, as the bundles need them."""
        found = [name for name, amount in sum_.items() if self.available.get(name, 0) < amount]
        if not found and sum_.get(GPU, 0) and self._gpus_for(bundles, self._free[""]) is None:
            found.append(GPU)
        return found

    def never_for_group(self, bundles: Bundles, sum_: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        """What can never be satisfied: name -> (asked, there is)."""
        found = {n: (a, self.total.get(n, 0)) for n, a in sum_.items() if a > self.total.get(n, 0)}
        if not found and sum_.get(GPU, 0):
            total = self.total.get(GPU, 0)
            if self._gpus_for(bundles, self._rooms(total, len(self.ids))) is None:
                found[GPU + " in pieces of one device each"] = (sum_[GPU], total)
        return found

    @staticmethod
    def _gpus_for(bundles: Bundles, free: Mapping[int, int]) -> dict[int, dict[int, int]] | None:
        shares: dict[int, dict[int, int]] = {}
        # The largest first, or small ones would break up devices that a large one needs whole.
        for index in sorted(bundles, key=lambda i: -bundles[i].get(GPU, 0)):
            share = _assign(free, bundles[index].get(GPU, 0))
            if share is None:
                return None
            free = devices.take(free, share)
            shares[index] = share
        return shares

    def open_group(self, id_: bytes, bundles: Bundles, attempt: int = 0) -> None:
        """Take the resources of (further) bundles of a group, which must be free."""
        needs = any(GPU in bundle for bundle in bundles.values())
        shares = self._gpus_for(bundles, self._free[""]) if needs else None
        group = self._add_bundles(id_, bundles, shares or {})
        group.attempt = attempt
        self._keep(group)

    def _keep(self, group: Group) -> None:
        """In pieces, under a turn of their own; those of the turn before go when all are there."""
        data = msgspec.msgpack.encode(KeptGroup(group.bundles, group.shares, group.attempt))
        pieces = [data[at : at + _PIECE] for at in range(0, len(data), _PIECE)]
        before, turn = self._turns.get(group.id), (self._turns.get(group.id, -1) + 1) % 256
        try:
            for number in range(len(pieces) - 1, -1, -1):  # the first one last: it says how many there are
                self._kept.put(group.id + bytes([turn, number]), bytes([len(pieces)]) + pieces[number])
        except (LedgerError, ValueError) as problem:
            log.warning("placement group %s is lost here at a restart: %s", group.id.hex(), problem)
            for number in range(len(pieces)):
                self._kept.delete(group.id + bytes([turn, number]))
        else:
            self._turns[group.id] = turn
        if before is not None:
            self._forget_kept(group.id, before)

    def _forget_kept(self, id_: bytes, turn: int) -> None:
        """The first one first: without it the others are nothing."""
        for number in range(256):
            if not self._kept.delete(id_ + bytes([turn, number])) and number:
                break

    def kept_groups(self) -> dict[bytes, KeptGroup]:
        """After a restart: the bundles that were this node's; what a crash has left of others is cleared."""
        found: dict[bytes, KeptGroup] = {}
        for key in [key for key, _ in self._kept.items() if isinstance(key, bytes)]:
            id_, turn, number = key[:-2], key[-2], key[-1]
            first = self._kept.get(id_ + bytes([turn, 0]))
            pieces = [self._kept.get(id_ + bytes([turn, n])) for n in range(first[0])] if first is not None else [None]
            if first is None or None in pieces:
                self._kept.delete(key)
            elif number == 0:
                try:
                    kept = msgspec.msgpack.decode(b"".join(p[1:] for p in pieces if p), type=KeptGroup)
                except msgspec.MsgspecError as problem:
                    log.error("the bundles of placement group %s cannot be read: %s", id_.hex(), problem)
                    continue
                known = self._turns.get(id_)
                if known is not None:  # a crash between the new ones and the end of the old: the new ones count
                    newer = (turn - known) % 256 < 128
                    self._forget_kept(id_, known if newer else turn)
                    if not newer:
                        continue
                self._turns[id_], found[id_] = turn, kept
        return found

    def _add_bundles(self, id_: bytes, bundles: Bundles, shares: Mapping[int, dict[int, int]]) -> Group:
        group = self.groups.get(id_)
        if group is None:
            group = self.groups[id_] = Group(id_, {}, {})
        for index, bundle in bundles.items():
            group.bundles[index], group.shares[index] = bundle, {}
            suffix = _suffix(id_, index)
            self._free[suffix] = {}
            if shares:
                self._hold(group, index, shares.get(index, {}))
            for name, amount in bundle.items():
                self.available[name] = self.available.get(name, 0) - amount
                self.total[name + suffix] = self.available[name + suffix] = amount
        return group

    def restore_groups(self) -> None:
        """After a restart, before the leases: what is kept is this node's."""
        for id_, kept in self.kept_groups().items():
            self._add_bundles(id_, kept.bundles, kept.shares).attempt = kept.attempt

    def restore_devices(self) -> None:
        """All leases of the ledger are taken: bundles without GPUs of their own get those that their leases have, then
        others.
        """
        bundles = [
            (group, index, bundle[GPU])
            for group in self.groups.values()
            for index, bundle in group.bundles.items()
            if bundle.get(GPU, 0)
        ]
        for group, index, amount in bundles:
            room = self._free[_suffix(group.id, index)]
            self._hold(group, index, {device: min(UNIT, amount) for device, units in room.items() if units < 0})
        # Only now: what those have, nobody else may get.
        for group, index, amount in sorted(bundles, key=lambda b: -b[2]):
            held = group.shares[index]
            missing = amount - sum(held.values())
            if missing > 0:
                self._hold(group, index, _assign(self._free[""], missing) or {})
                self._keep(group)

    def _hold(self, group: Group, index: int, share: dict[int, int]) -> None:
        """These GPUs are the bundle's."""
        room = self._free[_suffix(group.id, index)]
        for device, units in share.items():
            self._free[""][device] = self._free[""].get(device, 0) - units
            room[device] = room.get(device, 0) + units
            group.shares[index][device] = group.shares[index].get(device, 0) + units

    def close_group(self, id_: bytes) -> None:
        """Its resources are the node's again."""
        group = self.groups.pop(id_)
        if (turn := self._turns.pop(id_, None)) is not None:
            self._forget_kept(id_, turn)
        for index, bundle in group.bundles.items():
            suffix = _suffix(id_, index)
            for name, amount in bundle.items():
                self.available[name] += amount
                del self.total[name + suffix], self.available[name + suffix]
            for device, units in group.shares[index].items():
                self._free[""][device] = self._free[""].get(device, 0) + units
            del self._free[suffix]
