"""One measurement in a fresh process: one row on one system, printed as one line of JSON.

Run by run.py with the interpreter of the system; useful by hand too:
    python bench/workload.py --system noded --row "tasks sync" --json
The line is printed before the system is shut down, so that a shutdown that hangs costs no result (run.py
reports it).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import proctree, systems
from bench.rows import ROWS, Row
from bench.timing import Measurement, Timing


def main() -> None:
    args = _arguments()
    row = ROWS[args.row]
    if args.system not in row.runs:
        sys.exit(f"row {row.name!r} has no {args.system} side: it runs on {', '.join(row.runs)}")
    # What workers and libraries print goes to stderr; stdout is for the result alone.
    result = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if args.home:
        _measure(row, args, args.home, result)
    else:
        with tempfile.TemporaryDirectory(prefix="nb-", ignore_cleanup_errors=True) as made:
            _measure(row, args, Path(made), result)


def _measure(row: Row, args: argparse.Namespace, home: Path, result: TextIO) -> None:
    systems.isolate(args.system, home)

    def turn() -> None:
        print("turn", file=result, flush=True)
        sys.stdin.readline()

    timing = Timing(args.warmup, args.window, args.windows, turn if args.turns else None)
    context = systems.Context(args.system, systems.load(args.system), timing, os.cpu_count() or 1, home)
    start = time.perf_counter()
    if row.cluster and context.api:
        context.api.init(num_cpus=context.cores, resources=row.resources or None)
    ready = time.perf_counter() - start
    if not row.cluster:
        proctree.adopt_orphans()
    measurement = row.runs[args.system](context)
    print(_line(row, context, measurement, ready, args.json), file=result, flush=True)
    if row.cluster and context.api:
        context.api.shutdown()


def _line(row: Row, context: systems.Context, measurement: Measurement, ready: float, as_json: bool) -> str:
    if not as_json:
        extra = "".join(f", {name} {value:,.6g}" for name, value in measurement.extra.items())
        return f"{context.system}: {row.name}: {measurement.value:,.6g} {row.unit}{extra}"
    record = {
        "row": row.name,
        "system": context.system,
        "version": systems.version(context.system),
        "python": sys.version.split()[0],
        "unit": row.unit,
        "init_s": ready,
        **asdict(measurement),
    }
    return json.dumps(record)


def _arguments() -> argparse.Namespace:
    defaults = Timing()
    parser = argparse.ArgumentParser(description="Measure one row on one system.")
    parser.add_argument("--system", required=True, choices=systems.SYSTEMS)
    parser.add_argument("--row", required=True, choices=list(ROWS), metavar="NAME")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of text")
    parser.add_argument("--home", type=Path, help="short path of an empty directory for the system's files")
    parser.add_argument("--warmup", type=float, default=defaults.warmup, help="seconds")
    parser.add_argument("--window", type=float, default=defaults.window, help="seconds")
    parser.add_argument("--windows", type=int, default=defaults.windows)
    parser.add_argument(
        "--turns", action="store_true", help='before each window print "turn", and wait for a line on stdin'
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
