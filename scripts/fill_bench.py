"""Puts results of bench/run.py into README.md, between <!-- bench --> and <!-- /bench -->.

    python scripts/fill_bench.py bench/results/<time>.md [more.md ...]

Heading, table and summary go in; the details stay in the results' own files. Of several results the rows are joined;
a row of a later one replaces that of an earlier one.
"""

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
_BLOCK = re.compile(r"(?<=<!-- bench -->\n).*?(?=<!-- /bench -->)", re.DOTALL)


def parts_of(path: str) -> tuple[str, list[str], str]:
    """The machine, the table's lines and the summary (empty when there is none)."""
    parts = Path(path).read_text().strip().split("\n\n")
    if len(parts) < 2 or not parts[1].startswith("| row "):
        sys.exit(f"{path} is no result of bench/run.py")
    summary = next((part for part in parts[2:] if part.startswith("Call rows")), "")
    return re.sub(r", load at start [\d.]+", "", parts[0]), parts[1].splitlines(), summary


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    machine, (head, rule, *_), summary = parts_of(sys.argv[1])
    rows: dict[str, str] = {}
    for path in sys.argv[1:]:
        _, (_, _, *lines), _ = parts_of(path)
        rows.update((line.split("|")[1].strip(), line) for line in lines)
    shown = [machine, "\n".join([head, rule, *rows.values()]), *filter(None, [summary])]
    filled, count = _BLOCK.subn(lambda _: "\n\n".join(shown) + "\n", README.read_text())
    if count != 1:
        sys.exit(f"{README} must have one block from <!-- bench --> to <!-- /bench -->, it has {count}")
    README.write_text(filled)


if __name__ == "__main__":
    main()
