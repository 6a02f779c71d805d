"""What the account of single tasks costs: the call rows with it, and without it (--no-telemetry), in turns.

    python bench/telemetry.py                     all call rows
    python bench/telemetry.py --only "tasks*" --windows 100

For each row there are two drivers (`workload.py`), each with a cluster of its own, one with telemetry; they measure
short windows in turns, so that both have seen the same machine. Printed are the medians, and the median of the ratios
of each two windows that follow each other, with over without; below 1 it costs something.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.rows import ROWS

WORKLOAD = Path(__file__).with_name("workload.py")


class Driver:
    def __init__(self, row: str, off: bool, window: float, windows: int):
        command = [sys.executable, str(WORKLOAD), "--system", "noded", "--row", row, "--json", "--turns"]
        self._process = subprocess.Popen(
            [*command, "--window", str(window), "--windows", str(windows)],
            env={**os.environ, "NODED_NO_TELEMETRY": str(int(off))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.line = ""

    def wait(self) -> None:
        """Until it may have a turn, or has had its last."""
        assert self._process.stdout is not None
        self.line = self._process.stdout.readline()

    def turn(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.wait()

    def rates(self) -> list[float]:
        """Units a second, of each window."""
        self._process.communicate()
        return [float(each) for each in json.loads(self.line)["samples"]]


def compare(row: str, window: float, windows: int) -> tuple[float, float, float]:
    """With, without, and the ratio."""
    drivers = [Driver(row, off, window, windows) for off in (False, True)]
    for driver in drivers:
        driver.wait()
    for number in range(windows):
        for driver in drivers if number % 2 else reversed(drivers):  # neither is always the first
            driver.turn()
    on, off = (driver.rates() for driver in drivers)
    ratios = [a / b for a, b in zip(on, off, strict=True)]
    return statistics.median(on), statistics.median(off), statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="*", help="rows, with * and commas")
    parser.add_argument("--window", type=float, default=0.25, help="seconds")
    parser.add_argument("--windows", type=int, default=30)
    args = parser.parse_args()
    ratios = []
    for row in ROWS.values():
        if row.group != "call" or not any(fnmatch.fnmatch(row.name, each.strip()) for each in args.only.split(",")):
            continue
        with_it, without, ratio = compare(row.name, args.window, args.windows)
        ratios.append(ratio)
        print(f"{row.name:<36} {with_it:>12,.0f} {without:>12,.0f}  {ratio:.3f}", flush=True)
    print(f"geometric mean {statistics.geometric_mean(ratios):.3f}, lowest {min(ratios):.3f}")


if __name__ == "__main__":
    main()
