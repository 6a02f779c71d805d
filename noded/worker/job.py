"""Entering a job: the worker takes on its driver's import path, working directory, environment and namespace, and
the runtime environment it was chosen for.
"""

from __future__ import annotations

import os
import sys
import traceback

import msgspec

from noded.client.runtime import Runtime
from noded.wire import messages as m
from noded.worker.lent import LentNow


def enter_job(runtime: Runtime, message: m.SetJob, lent: LentNow) -> str:
    """What is wrong with the runtime environment, empty when nothing is."""
    config = message.config
    runtime.job, runtime.job_config, runtime.namespace = message.job, config, config.namespace
    own = [path for path in sys.path if path not in config.sys_path and path]
    sys.path[:] = config.sys_path + own
    os.environ.update(config.env)
    lent.show_gpus([])
    if not message.prepared:
        _enter_directory(config.cwd)
        return ""
    from noded.runtime_env.prepared import Prepared
    from noded.worker import environment

    prepared = msgspec.msgpack.decode(message.prepared, type=Prepared)
    if not prepared.working_dir:
        _enter_directory(config.cwd)
    runtime.environments.now = message.env
    lent.keep_users(list(prepared.env_vars))
    try:
        environment.enter(prepared)
    except Exception as problem:
        return "".join(traceback.format_exception_only(problem)).strip()
    return ""


def _enter_directory(path: str) -> None:
    try:
        os.chdir(path or "/")
    except OSError as error:
        # The driver's directory may be gone or unreadable; its tasks may not need it.
        print(f"noded: the driver's working directory {path} cannot be entered: {error}", file=sys.stderr)
