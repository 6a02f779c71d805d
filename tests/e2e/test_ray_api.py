"""docs/ray-api.md says what there is of Ray's API, and everything that differs or is missing has a reason."""

from __future__ import annotations

import subprocess
import sys

from harness.cluster import REPOSITORY


def test_the_page_is_true_and_complete() -> None:
    """In a process of its own, because `import ray` means noded there."""
    done = subprocess.run(
        [sys.executable, "scripts/ray_api.py", "page", "--check"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
