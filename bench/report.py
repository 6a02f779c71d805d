"""From measurements to tables: medians over rounds, ratios, the geometric mean, Markdown.

A ratio is always "how many times better noded is than Ray", also where less is better. It compares medians of
rounds that were measured in alternation. Nothing is rounded before it is compared.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from bench.rows import ROWS, Row

Record = dict[str, Any]
NOTHING = "–"


@dataclass(frozen=True)
class Line:
    """One row of the table: the median of each system that has one, and the details that came with them."""

    row: Row
    medians: dict[str, float]
    extras: dict[str, dict[str, float]]

    def times_better(self, system: str, peer: str) -> float | None:
        ours, theirs = self.medians.get(system), self.medians.get(peer)
        if not ours or not theirs:
            return None
        return ours / theirs if self.row.higher_is_better else theirs / ours


def lines(records: list[Record]) -> list[Line]:
    result = []
    for name, row in ROWS.items():
        good = [record for record in records if record["row"] == name and "value" in record]
        if not good:
            continue
        medians: dict[str, float] = {}
        extras: dict[str, dict[str, float]] = {}
        for system in row.runs:
            if mine := [record for record in good if record["system"] == system]:
                medians[system] = statistics.median(record["value"] for record in mine)
                extras[system] = _median_extras(mine)
        result.append(Line(row, medians, extras))
    return result


def markdown(records: list[Record], machine: Record) -> str:
    table = lines(records)
    parts = [_heading(machine), _table(table)]
    parts += [part for part in (_summary(table), _memcpy_notes(table), _details(table), _problems(records)) if part]
    return "\n\n".join(parts) + "\n"


def _median_extras(records: list[Record]) -> dict[str, float]:
    names = {name: None for record in records for name in record["extra"]}
    return {
        name: statistics.median(record["extra"][name] for record in records if name in record["extra"])
        for name in names
    }


def _heading(machine: Record) -> str:
    return ", ".join(f"{name} {value}" for name, value in machine.items())


def _table(table: list[Line]) -> str:
    rows: list[tuple[str, ...]] = [
        ("row", "unit", "noded", "ray", "noded vs ray", "futures"),
        ("---", "---", "--:", "--:", "--:", "--:"),
    ]
    for line in table:
        values = [_number(line.medians.get(system)) for system in ("noded", "ray", "futures")]
        values.insert(2, _times(line.times_better("noded", "ray")))
        rows.append((line.row.name, line.row.unit, *values))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _summary(table: list[Line]) -> str:
    compared = {
        line.row.name: (line.row.group, ratio)
        for line in table
        if (ratio := line.times_better("noded", "ray")) is not None
    }
    calls = {name: ratio for name, (group, ratio) in compared.items() if group == "call"}
    with_bytes = [ratio for group, ratio in compared.values() if group in ("call", "bytes")]
    if not calls:
        return ""
    lowest = min(calls, key=lambda name: calls[name])
    return (
        f"Call rows ({len(calls)}): geometric mean {_times(_geometric_mean(list(calls.values())))}, "
        f"lowest {_times(calls[lowest])} ({lowest}). "
        f"With the gigabyte rows ({len(with_bytes)}): geometric mean {_times(_geometric_mean(with_bytes))}."
    )


def _memcpy_notes(table: list[Line]) -> str:
    notes = []
    for line in table:
        shares = [
            f"{system} {100 * share:.0f} %"
            for system in ("noded", "ray")
            if (share := line.times_better(system, "memcpy")) is not None
        ]
        if line.medians.get("memcpy"):
            copied = f"- {line.row.name}: memcpy in that shape {_number(line.medians['memcpy'])} {line.row.unit}"
            notes.append("; ".join([copied, *(f"{share} of it" for share in shares)]))
    return "\n".join(notes)


def _details(table: list[Line]) -> str:
    notes = []
    for line in table:
        for system, extra in line.extras.items():
            if extra:
                shown = ", ".join(f"{name} {_number(value)}" for name, value in extra.items())
                notes.append(f"- {line.row.name}, {system}: {shown}")
    return "\n".join(notes)


def _problems(records: list[Record]) -> str:
    notes = []
    for record in records:
        for kind in ("error", "left_behind"):
            if record.get(kind):
                notes.append(f"- {record['row']}, {record['system']}, round {record['round']}: {kind}: {record[kind]}")
    return "\n".join(["Problems:", "", *notes]) if notes else ""


def _geometric_mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


def _number(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.3g}"


def _times(ratio: float | None) -> str:
    return NOTHING if ratio is None else f"{ratio:.3g}x"
