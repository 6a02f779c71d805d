"""How child processes come to know that `import ray` means noded: a directory on PYTHONPATH.

The directory holds nothing but a package `ray` that imports `noded.compat.ray`. Everything that starts a Python
inherits it: `subprocess`, `multiprocessing`, and workers, which take over their driver's import path.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

PATH = str(Path(__file__).parent / "path")


def with_ray(environment: Mapping[str, str]) -> str:
    """PYTHONPATH, so that `import ray` is ours there; before everything, as Ray itself may be installed."""
    return os.pathsep.join([PATH, *(part for part in _parts(environment) if part != PATH)])


def with_noded(environment: Mapping[str, str]) -> str:
    """PYTHONPATH, so that `import noded` works there also when noded runs from a checkout without an install."""
    root = str(Path(__file__).parents[2])
    parts = _parts(environment)
    return os.pathsep.join(parts if root in sys.path[1:] else [*parts, root])


def _parts(environment: Mapping[str, str]) -> list[str]:
    return [part for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part]
