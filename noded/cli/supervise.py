"""`noded --supervise`, and noded as a container's first process: this process becomes the spawner, and keeps a daemon
running below it (`noded/spawner/supervise.py`).

By exec, so that nothing of the command line stays in the memory of a process that should stay small. What can be
known to be wrong beforehand has been said by then. Not here: what happens to the daemon.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from noded.cli.launch import daemon_launch
from noded.config import Config, make_node_dir, node_tag
from noded.spawner import protocol

FIRST_PROCESS = 1


def wanted(config: Config) -> bool:
    """The first process of a container has to reap, and nobody else would start its daemon again."""
    return not config.supervised and (config.supervise or os.getpid() == FIRST_PROCESS)


def supervise(config: Config, flags: Mapping[str, Any]) -> NoReturn:
    """Raises ConfigError where the node's directory cannot be made."""
    run_dir = str(make_node_dir(config))
    launch = daemon_launch({**flags, "supervise": False}, node_name=config.node_name, supervised=True)
    command = [sys.executable, "-I", "-S", str(Path(protocol.__file__).with_name("__main__.py"))]
    command += ["--dir", run_dir, "--tag", node_tag(run_dir), "--grace", f"{config.daemon_grace:g}"]
    command += ["--supervise", json.dumps(launch.command)]
    sys.stdout.flush()
    os.chdir(launch.cwd)
    os.execve(sys.executable, command, launch.env)
