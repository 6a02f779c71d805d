"""Resource amounts in fixed point: the arithmetic of CPUs, GPUs, memory and custom resources.

A `ResourceSet` maps names to whole units of 1e-4, so that sums never drift and `add` undoes `subtract`
exactly. Floats exist only at the edges (`from_floats`, `to_floats`, `missing`). Names have no meaning here,
except that more than one GPU must be a whole number. What is granted to whom is not decided here: see
`policy/` and `node/`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

UNIT = 10_000
BUNDLE_MARK = "@pg:"
"""Follows the name of what belongs to one bundle of a placement group ("CPU@pg:<group>:0")."""
MAX_UNITS = 2**63 - 1

# Devices are handed out by index: half of one can be shared, one and a half cannot be pointed at.
_WHOLE_ABOVE_ONE = frozenset({"GPU"})


def base_name(name: str) -> str:
    """The resource's name without the bundle it belongs to."""
    return name.partition(BUNDLE_MARK)[0]


class ResourceSet(Mapping[str, int]):
    """An immutable mapping of resource name to units; zero entries do not exist."""

    __slots__ = ("_hash", "_units")

    def __init__(self, units: Mapping[str, int] | None = None) -> None:
        self._units: dict[str, int] = {name: amount for name, amount in (units or {}).items() if amount}
        self._hash: int | None = None

    @classmethod
    def from_floats(cls, amounts: Mapping[str, float]) -> ResourceSet:
        """Read what a user wrote; digits after the fourth decimal are rounded away."""
        return cls({name: _units_of(name, amount) for name, amount in amounts.items()})

    @classmethod
    def from_dict(cls, units: Mapping[str, int]) -> ResourceSet:
        """Undo `to_dict`; refuses what is no such dict, because it may come from a peer."""
        for name, amount in units.items():
            if not isinstance(name, str) or not name or type(amount) is not int:
                raise ValueError(f"resource entry {name!r}: {amount!r} must be a name and a whole number of units")
        return cls(units)

    def to_dict(self) -> dict[str, int]:
        return dict(self._units)

    def to_floats(self) -> dict[str, float]:
        return {name: amount / UNIT for name, amount in self._units.items()}

    def fits(self, available: ResourceSet) -> bool:
        """True when every amount in here is there in `available`."""
        have = available._units.get
        # A plain loop: all() over a generator costs twice as much, and the scheduler calls this per node.
        for name, amount in self._units.items():
            if have(name, 0) < amount:
                return False
        return True

    def missing(self, available: ResourceSet) -> dict[str, float]:
        """How much `available` is short of, by name; empty exactly when `fits`."""
        have = available._units.get
        return {name: (amount - have(name, 0)) / UNIT for name, amount in self._units.items() if have(name, 0) < amount}

    def add(self, other: ResourceSet) -> ResourceSet:
        total = dict(self._units)
        for name, amount in other._units.items():
            total[name] = total.get(name, 0) + amount
        return ResourceSet(total)

    def subtract(self, other: ResourceSet) -> ResourceSet:
        """Take `other` away; ValueError when that needs more than there is."""
        if not other.fits(self):
            short = ", ".join(
                f"{name}: {amount / UNIT:g} wanted, {self._units.get(name, 0) / UNIT:g} there"
                for name, amount in other._units.items()
                if self._units.get(name, 0) < amount
            )
            raise ValueError(f"cannot take more resources than there are ({short}); check with fits() first")
        return self.subtract_over(other)

    def subtract_over(self, other: ResourceSet) -> ResourceSet:
        """Take `other` away even below zero: for what is in use already and cannot be refused."""
        rest = dict(self._units)
        for name, amount in other._units.items():
            rest[name] = rest.get(name, 0) - amount
        return ResourceSet(rest)

    def __getitem__(self, name: str) -> int:
        return self._units[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._units)

    def __len__(self) -> int:
        return len(self._units)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ResourceSet):
            return self._units == other._units
        return NotImplemented

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(frozenset(self._units.items()))
        return self._hash

    def __repr__(self) -> str:
        return f"ResourceSet({', '.join(f'{name}={amount / UNIT:g}' for name, amount in self._units.items())})"

    def __reduce__(self) -> tuple[object, tuple[dict[str, int]]]:
        # Without the cached hash: string hashes differ from process to process.
        return ResourceSet, (self._units,)


def _units_of(name: str, amount: float) -> int:
    if not isinstance(name, str) or not name:
        raise ValueError(f"resource name {name!r} must be a non-empty string")
    if isinstance(amount, bool) or not isinstance(amount, (int, float)):
        raise ValueError(f"resource {name}: {amount!r} is not a number")
    if not math.isfinite(amount) or amount < 0:
        raise ValueError(f"resource {name}: {amount!r} must be a finite number, zero or more")
    if amount > MAX_UNITS // UNIT:
        raise ValueError(f"resource {name}: {amount!r} is over the largest amount, {MAX_UNITS // UNIT}")
    # Whole numbers by integer arithmetic: bytes of memory times UNIT pass 2**53, where floats lose units.
    units = int(amount) * UNIT if amount == int(amount) else round(amount * UNIT)
    if name in _WHOLE_ABOVE_ONE and units > UNIT and units % UNIT:
        raise ValueError(f"resource {name}: {amount!r} must be a whole number; fractional quantities only below 1")
    return units
