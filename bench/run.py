"""Measures noded and its peers side by side, writes bench/results/<time>.json and .md, prints the table.

    python bench/run.py                          the rows of Ray's microbenchmark, three rounds
    python bench/run.py --only "tasks*,put calls" --rounds 1
    python bench/run.py --groups all --systems noded,ray

Every measurement is a fresh child process; the systems take turns within each row. Numbers from different
runs are not comparable.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import proctree, report
from bench.rows import DEFAULT_GROUPS, GROUPS, ROWS, Row
from bench.systems import ROOT, SYSTEMS
from bench.timing import Timing

RESULTS = ROOT / "bench" / "results"
RAY_PYTHON = ROOT / ".venv-ray" / "bin" / "python"
STDERR_CHARACTERS = 4000
SHUTDOWN_GRACE = 15.0


def main() -> int:
    args = _arguments()
    rows = _selected_rows(args.only, args.groups)
    proctree.adopt_orphans()
    if "ray" in args.systems:
        _require_ray(args.ray_python)
    records: list[report.Record] = []
    machine = _machine()
    try:
        for row in rows:
            for number in range(1, args.rounds + 1):
                for system in args.systems:
                    if system in row.runs:
                        records.append(_measure(row, system, number, args))
    except KeyboardInterrupt:
        print("interrupted: writing what there is", file=sys.stderr)
        proctree.end_descendants(grace=0)
    if records:
        print(_write(records, machine))
    return 1 if any("error" in record for record in records) else 0


def _measure(row: Row, system: str, number: int, args: argparse.Namespace) -> report.Record:
    """Run one child: what it measured, or why it did not, and how many processes it left behind."""
    home = Path(tempfile.mkdtemp(prefix="nb-", dir="/tmp"))  # short: Unix socket paths have 107 bytes
    python = args.ray_python if system == "ray" else args.python
    command = [
        str(python),
        str(ROOT / "bench" / "workload.py"),
        "--system",
        system,
        "--row",
        row.name,
        "--json",
    ]
    command += ["--warmup", str(args.warmup), "--window", str(args.window), "--windows", str(args.windows)]
    record: report.Record = {"row": row.name, "system": system, "round": number}
    log = home / "stderr"
    try:
        with log.open("wb") as errors:
            record |= _run_child([*command, "--home", str(home)], errors.fileno(), args.timeout)
        left = proctree.end_descendants(SHUTDOWN_GRACE)
        if left:
            record["left_behind"] = f"{left} processes, killed"
        if "error" in record:
            record["stderr"] = log.read_text(errors="replace")[-STDERR_CHARACTERS:]
            record["error"] += f": {(record['stderr'].strip() or 'it said nothing').splitlines()[-1]}"
    finally:
        shutil.rmtree(home, ignore_errors=True)
    shown = f"{record['value']:,.6g} {row.unit}" if "value" in record else record["error"]
    print(f"[{number}/{args.rounds}] {row.name}: {system}: {shown}", file=sys.stderr, flush=True)
    return record


def _run_child(command: list[str], errors: int, timeout: float) -> report.Record:
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT)
    ended = ""
    try:
        output, _ = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        child.kill()
        output, _ = child.communicate()
        ended = f"not finished after {timeout:.0f} s"
    if not ended and child.returncode:
        ended = f"ended with status {child.returncode}"
    try:
        record: report.Record = json.loads(output)
    except ValueError:
        return {"error": ended or "ended without a result"}
    # The result came before the trouble: it counts, and the trouble is told.
    return record | ({"error": f"after its result it {ended}"} if ended else {})


def _write(records: list[report.Record], machine: report.Record) -> str:
    versions = {record["system"]: record["version"] for record in records if "version" in record}
    machine |= {system: version for system, version in versions.items() if system in ("noded", "ray")}
    text = report.markdown(records, machine)
    RESULTS.mkdir(parents=True, exist_ok=True)
    stem = RESULTS / datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    stem.with_suffix(".json").write_text(json.dumps({"machine": machine, "records": records}, indent=1) + "\n")
    stem.with_suffix(".md").write_text(text)
    print(f"wrote {stem.relative_to(ROOT)}.json and .md", file=sys.stderr)
    return text


def _machine() -> report.Record:
    return {
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load at start": f"{os.getloadavg()[0]:.2f}",
    }


def _require_ray(python: Path) -> None:
    probe = [str(python), "-c", "import ray, numpy"]
    if python.exists() and subprocess.run(probe, stderr=subprocess.DEVNULL, check=False).returncode == 0:
        return
    if python != RAY_PYTHON:
        sys.exit(f"{python} has no ray or no numpy: give --ray-python one that has both, or leave it out")
    print("making .venv-ray (once)", file=sys.stderr)
    subprocess.run([str(ROOT / "bench" / "setup_ray.sh"), sys.executable], check=True, stdout=sys.stderr)


def _selected_rows(patterns: list[str], groups: list[str]) -> list[Row]:
    if not patterns:
        return [row for row in ROWS.values() if row.group in groups]
    rows = [row for row in ROWS.values() if any(fnmatch.fnmatch(row.name, pattern) for pattern in patterns)]
    if not rows:
        sys.exit(f"no row matches {', '.join(patterns)}; the rows are: {', '.join(ROWS)}")
    return rows


def _arguments() -> argparse.Namespace:
    defaults = Timing()
    parser = argparse.ArgumentParser(description="Benchmark noded beside Ray, concurrent.futures and memcpy.")
    parser.add_argument("--only", type=_list, default=[], help="row names or patterns, by comma; of any group")
    parser.add_argument("--groups", type=_groups, default=list(DEFAULT_GROUPS), help=f"of {', '.join(GROUPS)}, or all")
    parser.add_argument("--systems", type=_systems, default=list(SYSTEMS), help=f"of {', '.join(SYSTEMS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="the Python that has noded and numpy")
    parser.add_argument("--ray-python", type=Path, default=RAY_PYTHON, help="the Python that has ray and numpy")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one measurement")
    parser.add_argument("--warmup", type=float, default=defaults.warmup, help="seconds")
    parser.add_argument("--window", type=float, default=defaults.window, help="seconds")
    parser.add_argument("--windows", type=int, default=defaults.windows)
    return parser.parse_args()


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _groups(text: str) -> list[str]:
    return list(GROUPS) if text == "all" else _known(_list(text), GROUPS)


def _systems(text: str) -> list[str]:
    return _known(_list(text), SYSTEMS)


def _known(names: list[str], known: tuple[str, ...]) -> list[str]:
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; choose from {', '.join(known)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
