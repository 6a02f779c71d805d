"""Entering a prepared runtime environment: a worker does it once, before its first task.

Variables that are read when a process or a library starts (LD_LIBRARY_PATH, PYTHONHASHSEED, …) reach what the worker
starts, not the worker itself, which has been forked; PYTHONPATH and TZ take effect here too.
"""

from __future__ import annotations

import importlib
import os
import pickle
import re
import sys
import time
import traceback

from noded.exceptions import RuntimeEnvSetupError
from noded.runtime_env.prepared import Prepared

_UNSET = re.compile(r"\$\{\w+\}", re.ASCII)


def enter(prepared: Prepared) -> None:
    """Raises RuntimeEnvSetupError; the process is of no use for tasks of this environment then."""
    for name, value in sorted(prepared.env_vars.items()):
        os.environ[name] = expand(value)
    if "TZ" in prepared.env_vars:
        time.tzset()
    _extend_path(prepared)
    if prepared.working_dir:
        try:
            os.chdir(prepared.working_dir)
        except OSError as error:
            raise RuntimeEnvSetupError(
                f"the working_dir {prepared.working_dir} cannot be entered: {error.strerror}; submit again"
            ) from error
    if prepared.setup_hook or prepared.pickled_hook:
        _run_hook(prepared.setup_hook, prepared.pickled_hook)


def expand(value: str) -> str:
    """``${NAME}`` and ``$NAME`` become what the variable holds. One that is not set is empty in braces, and stays as
    it is without; as in Ray.
    """
    return _UNSET.sub("", os.path.expandvars(value)) if "$" in value else value


def _extend_path(prepared: Prepared) -> None:
    paths = list(prepared.sys_path)
    inherited = os.environ.get("PYTHONPATH", "")
    if paths:
        # For Python programs that tasks start.
        os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *([inherited] if inherited else [])])
    if "PYTHONPATH" in prepared.env_vars:
        paths += [path for path in inherited.split(os.pathsep) if path and path not in sys.path]
    if paths:
        sys.path[:] = [*paths, *(path for path in sys.path if path not in paths)]
        importlib.invalidate_caches()


def _run_hook(name: str, pickled: bytes) -> None:
    try:
        if pickled:
            name = "(not loaded)"
            call = pickle.loads(pickled)
            name = getattr(call, "__qualname__", repr(call))
        else:
            module, _, function = name.rpartition(".")
            call = getattr(importlib.import_module(module), function)
        call()
    except (Exception, SystemExit) as error:
        raise RuntimeEnvSetupError(
            f"the worker_process_setup_hook {name} failed in process {os.getpid()}:\n"
            + "".join(traceback.format_exception(error)).rstrip()
        ) from error
