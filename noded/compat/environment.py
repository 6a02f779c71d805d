"""How child processes come to know that `import ray` means noded: a directory on PYTHONPATH.

The directory holds a package `ray` that imports `noded.compat.ray`, and metadata for programs that ask which version
is installed. Everything that starts a Python inherits it: `subprocess`, `multiprocessing`, and workers, which take
over their driver's import path.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

_HERE = os.path.dirname(os.path.abspath(__file__))

PATH = os.path.join(_HERE, "path")


def with_ray(environment: Mapping[str, str]) -> str:
    """PYTHONPATH, so that `import ray` is ours there; before everything, as Ray itself may be installed."""
    return os.pathsep.join([PATH, *(part for part in _parts(environment) if part != PATH)])


def with_noded(environment: Mapping[str, str]) -> str:
    """PYTHONPATH, so that `import noded` works there also when noded runs from a checkout without an install."""
    root = os.path.dirname(os.path.dirname(_HERE))
    parts = _parts(environment)
    return os.pathsep.join(parts if root in sys.path[1:] else [*parts, root])


def _parts(environment: Mapping[str, str]) -> list[str]:
    return [part for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part]
