"""Makes docs/chaos.md of the runs in test-results/chaos.jsonl, which tests/chaos/test_long_run.py adds to.

    python scripts/chaos_page.py [FILE.jsonl ...]

The text around the table is here; runs are in the order of the files. A run with violations is shown as one.
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "chaos.md"
TEXT = """# Everything breaks at once

`make test-slow` runs a cluster of four hosts (network namespaces) under mixed load for twenty minutes while workers,
daemons (the head's as well), spawners and Redis, if the head's state is there, are killed and stopped, whole nodes
crash, links are cut, and drivers come and go: `tests/chaos/test_long_run.py`. What must be true is checked all the
time: every value exact, every counter within its promise, nothing that may run once run twice, no two instances of an
actor at once, nothing lost but what was put on a node that was lost, every death told with its cause, no call that
waits while nothing is faulty; and at the end nothing in use, and nothing left behind.

A run's choices come from its seed, and are repeated with it, though not their timing (where the table names something
else beside the seed, that has to be given as well). `machine-stall` is no fault of ours: the machine ran nothing for
over 3 s, which excuses whoever waited.

    NODED_CHAOS_SEED=7 NODED_CHAOS_STORAGE=redis .venv/bin/pytest -m slow tests/chaos/test_long_run.py

"""
HEAD = (
    "| seed | faults chosen by | seconds | state in | operations | errors that were right to come | faults "
    "| broken promises |"
)
RULE = "|--:|---|--:|---|--:|---|---|---|"


def row(run: dict[str, Any]) -> str:
    operations = sum(count for name, count in run["operations"].items() if not name.endswith(" failed"))
    broken = f"{len(run['violations'])}: {first_line(run['violations'][0])}" if run["violations"] else "none"
    cells = [
        str(run["seed"]),
        run["chosen"] or "the seed",
        f"{run['seconds']:g}",
        run["storage"],
        f"{operations:,}",
        listed(run["errors"]),
        listed(run["faults"]),
        broken,
    ]
    return "| " + " | ".join(cells) + " |"


def listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def first_line(text: str) -> str:
    return text.splitlines()[0][:120].replace("|", "/")


def main() -> None:
    paths = [Path(path) for path in sys.argv[1:]] or [ROOT / "test-results" / "chaos.jsonl"]
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        sys.exit(f"there is no {', '.join(missing)}: run tests/chaos/test_long_run.py first")
    runs = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    PAGE.write_text(TEXT + "\n".join([HEAD, RULE, *map(row, runs)]) + "\n")


if __name__ == "__main__":
    main()
