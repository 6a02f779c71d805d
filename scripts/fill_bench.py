"""Puts a result of bench/run.py into README.md, between <!-- bench --> and <!-- /bench -->.

    python scripts/fill_bench.py bench/results/<time>.md

Heading, table and summary go in; the details stay in the result's own file.
"""

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
_BLOCK = re.compile(r"(?<=<!-- bench -->\n).*?(?=<!-- /bench -->)", re.DOTALL)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    parts = Path(sys.argv[1]).read_text().strip().split("\n\n")
    if len(parts) < 2 or not parts[1].startswith("| row "):
        sys.exit(f"{sys.argv[1]} is no result of bench/run.py")
    shown = [part for part in parts[:3] if not part.startswith(("- ", "Problems"))]
    filled, count = _BLOCK.subn(lambda _: "\n\n".join(shown) + "\n", README.read_text())
    if count != 1:
        sys.exit(f"{README} must have one block from <!-- bench --> to <!-- /bench -->, it has {count}")
    README.write_text(filled)


if __name__ == "__main__":
    main()
