"""What a worker runs now, or ran when it died, by its telemetry page: for who asks why, and for its stack."""

from __future__ import annotations

from typing import Any

from noded import telemetry


def running_in(path: str) -> list[dict[str, Any]]:
    """For each call ``task`` (its id in hex), ``name``, and ``since`` when (seconds since the epoch); the oldest first.
    Empty where there is no page: then it has run nothing, or telemetry is off. Reads a file: not for the event loop.
    """
    reading = telemetry.read(path)
    if reading is None:
        return []
    return [
        {"task": record.id.hex(), "name": record.name, "since": record.start}
        for record in reading.records
        if not record.end or record.outcome == telemetry.DIED
    ]
