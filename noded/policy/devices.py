"""Which devices a request gets: a pure function of the room on each device, in units of `resources.UNIT`.

A request of one device or less gets one device, the fullest that still has room, so that fractions pack and whole
devices stay whole. A larger one gets whole devices. `free` may be a node's devices, or what a bundle holds of them.
Nothing is changed in place: `take` and `give` return new mappings. How many units there are in sum is the business of
`ResourceSet`; that half a device is free in two places does not make a whole one is known only here.
"""

from __future__ import annotations

from collections.abc import Mapping

from noded.resources import UNIT


def assign(free: Mapping[int, int], amount: int) -> dict[int, int] | None:
    """Device index -> units of it, or None when it does not fit now. Whole devices come in ascending order."""
    _check(amount)
    if amount == 0:
        return {}
    if amount <= UNIT:
        fitting = [(room, index) for index, room in free.items() if room >= amount]
        return {min(fitting)[1]: amount} if fitting else None
    whole = sorted(index for index, room in free.items() if room >= UNIT)[: amount // UNIT]
    return dict.fromkeys(whole, UNIT) if len(whole) * UNIT == amount else None


def never(total_devices: int, amount: int) -> bool:
    """True when `amount` does not fit even on that many devices that are wholly free."""
    _check(amount)
    return amount > total_devices * UNIT


def take(free: Mapping[int, int], share: Mapping[int, int]) -> dict[int, int]:
    """What is free without `share`; ValueError when a device has less room than that."""
    rest = dict(free)
    for index, units in share.items():
        if units < 0 or rest.get(index, 0) < units:
            raise ValueError(f"cannot take {units} units of device {index}: it has {rest.get(index, 0)}")
        rest[index] -= units
    return rest


def give(free: Mapping[int, int], share: Mapping[int, int]) -> dict[int, int]:
    """Undo `take`; ValueError when a device would have more than it is."""
    rest = dict(free)
    for index, units in share.items():
        if index not in rest or units < 0 or rest[index] + units > UNIT:
            raise ValueError(f"cannot give {units} units back to device {index}: it has {rest.get(index, 'no room')}")
        rest[index] += units
    return rest


def _check(amount: int) -> None:
    if amount < 0 or (amount > UNIT and amount % UNIT):
        raise ValueError(f"{amount / UNIT:g} devices cannot be given: it is a fraction below one, or a whole number")
