"""How a row becomes one number: warm up, several windows, the median.

`rate` is for things that happen many times a second, `durations` for things that take a noticeable time each.
Neither knows which system it measures. What is left out: any judgement of noise; the orchestrator repeats
whole child processes for that.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Timing:
    """Seconds of warm-up, seconds per window, number of windows."""

    warmup: float = 0.5
    window: float = 1.0
    windows: int = 4
    turn: Callable[[], None] | None = None
    """Called before each window: returns when it may begin, where two measure in turns."""


@dataclass(frozen=True)
class Measurement:
    """The row's value, the samples it is the median of, and numbers worth showing beside it."""

    value: float
    samples: list[float] = field(default_factory=list)
    extra: dict[str, float] = field(default_factory=dict)


def rate(step: Callable[[], object], units: float, timing: Timing) -> Measurement:
    """Units per second, when one call of `step` does `units` of work."""
    steps, elapsed = _run_for(step, timing.warmup, 1)
    # Look at the clock about once a millisecond: a fast call must not be charged for it.
    chunk = max(1, int(steps / elapsed / 1000))
    samples = []
    for _ in range(timing.windows):
        if timing.turn is not None:
            timing.turn()
        steps, elapsed = _run_for(step, timing.window, chunk)
        samples.append(units * steps / elapsed)
    return Measurement(statistics.median(samples), samples)


def durations(step: Callable[[], object], repeats: int, scale: float = 1.0) -> Measurement:
    """Median time of one call of `step`, in seconds times `scale`."""
    samples = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        samples.append((time.perf_counter() - start) * scale)
    return Measurement(statistics.median(samples), samples)


def _run_for(step: Callable[[], object], seconds: float, chunk: int) -> tuple[int, float]:
    start = time.perf_counter()
    steps = 0
    while True:
        for _ in range(chunk):
            step()
        steps += chunk
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            return steps, elapsed
