"""What the account of single tasks costs: the call rows with it, and without it (--no-telemetry), in alternation.

    python bench/telemetry.py                     all call rows, 3 rounds
    python bench/telemetry.py --only "tasks*" --rounds 5

Each measurement is a fresh process with a cluster of its own (`workload.py`). Printed is, per row, the median rate with
telemetry over the median rate without; below 1 it costs something.
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


def measure(row: str, off: bool, window: float, windows: int) -> float:
    """Units a second."""
    command = [sys.executable, str(WORKLOAD), "--system", "noded", "--row", row, "--json"]
    command += ["--window", str(window), "--windows", str(windows)]
    done = subprocess.run(
        command, env={**os.environ, "NODED_NO_TELEMETRY": str(int(off))}, capture_output=True, text=True, check=True
    )
    return float(json.loads(done.stdout)["value"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="*", help="rows, with * and commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--window", type=float, default=1.0, help="seconds")
    parser.add_argument("--windows", type=int, default=2)
    args = parser.parse_args()
    ratios = []
    for row in ROWS.values():
        if row.group != "call" or not any(fnmatch.fnmatch(row.name, each.strip()) for each in args.only.split(",")):
            continue
        rates: dict[bool, list[float]] = {False: [], True: []}
        for number in range(args.rounds):
            for off in (False, True) if number % 2 else (True, False):  # neither is always the first
                rates[off].append(measure(row.name, off, args.window, args.windows))
        with_it, without = statistics.median(rates[False]), statistics.median(rates[True])
        ratios.append(with_it / without)
        print(f"{row.name:<36} {with_it:>12,.0f} {without:>12,.0f}  {ratios[-1]:.3f}", flush=True)
    print(f"geometric mean {statistics.geometric_mean(ratios):.3f}, lowest {min(ratios):.3f}")


if __name__ == "__main__":
    main()
