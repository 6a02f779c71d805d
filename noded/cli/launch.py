"""The command line that runs a node's daemon as a process of its own, wherever this one was started."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

import noded.config as settings
from noded.cli.options import as_arguments

_PATH_FLAGS = ("config", "run_dir")
_PATH_VARIABLES = ("NODED_HOME", "NODED_RUN_DIR", "NODED_CONFIG", "NODED_TOKEN_FILE", "XDG_RUNTIME_DIR")


class Launch(msgspec.Struct, frozen=True):
    command: list[str]
    cwd: str
    env: dict[str, str]


def daemon_launch(flags: Mapping[str, Any], **more: Any) -> Launch:
    """`flags` as they came from the command line; `more` wins over them."""
    # It runs elsewhere, so that it keeps no mount busy and imports nothing from the user's directory.
    absolute = {name: os.path.abspath(flags[name]) for name in _PATH_FLAGS if flags.get(name)}
    arguments = as_arguments({**flags, **absolute, **more})
    env = dict(os.environ)
    env.update({name: os.path.abspath(env[name]) for name in _PATH_VARIABLES if env.get(name)})
    root = str(Path(settings.__file__).parents[2])
    installed = root in sys.path[1:]
    command = [sys.executable, *(["-P"] if installed else []), "-m", "noded", *arguments]
    return Launch(command, "/" if installed else root, env)
