"""The differences between the measured systems, all of them: names, environments, commands.

noded has Ray Core's API, so a row is written once against `api` and runs on both. Here is what is left: which
module `api` is, how a child is kept apart from other clusters on the machine, and how a head is started and
stopped from the command line.
"""

from __future__ import annotations

import importlib
import os
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.timing import Timing

ROOT = Path(__file__).resolve().parents[1]
CLUSTERS = ("noded", "ray")
SYSTEMS = (*CLUSTERS, "futures", "memcpy")
# What would join a child to somebody else's cluster.
_FOREIGN = (
    "RAY_ADDRESS",
    "NODED_ADDRESS",
    "NODED_CONFIG",
    "NODED_MARK",
    "NODED_TOKEN",
    "NODED_TOKEN_FILE",
    "PYTHONDONTWRITEBYTECODE",  # an installed package has its bytecode; a checkout shall have it too
)


@dataclass(frozen=True)
class Context:
    """What a row's code is given. `api` is None for futures and memcpy."""

    system: str
    api: Any
    timing: Timing
    cores: int
    home: Path


def load(system: str) -> ModuleType | None:
    """The module that speaks Ray Core's API, or None where there is no such thing."""
    return importlib.import_module(system) if system in CLUSTERS else None


def isolate(system: str, home: Path) -> None:
    """Point this process and its children at directories of their own. Call before `load`."""
    for name in _FOREIGN:
        os.environ.pop(name, None)
    os.environ.update(_environment(system, home))


def _environment(system: str, home: Path) -> dict[str, str]:
    if system == "ray":
        # A token of our own, or Ray writes one into the user's home directory.
        token = os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)
        return {
            "RAY_TMPDIR": str(home),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
        }
    if system == "noded":
        path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
        return {"NODED_HOME": str(home / "home"), "NODED_RUN_DIR": str(home / "run"), "PYTHONPATH": path}
    return {}


def start_command(system: str, port: int, cpus: int) -> list[str]:
    """Start a head in the background; the command returns when the head is ready."""
    flags = ["start", "--head", "--port", str(port), "--num-cpus", str(cpus)]
    if system == "noded":
        return [sys.executable, "-m", "noded", *flags]
    return [str(Path(sys.executable).with_name("ray")), *flags]


def stop_command(system: str) -> list[str] | None:
    """Ask the head to end. None for Ray: `ray stop` ends every Ray on the machine."""
    return [sys.executable, "-m", "noded", "stop"] if system == "noded" else None


def address(system: str, port: int) -> str:
    """What `init(address=...)` needs to attach to the head that `start_command` started."""
    return "auto" if system == "noded" else f"127.0.0.1:{port}"


def version(system: str) -> str:
    return str(getattr(load(system), "__version__", "")) or sys.version.split()[0]
