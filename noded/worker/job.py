"""Entering a job: the worker takes on its driver's import path, working directory, environment and namespace."""

from __future__ import annotations

import os
import sys

from noded.client.runtime import Runtime
from noded.wire import messages as m


def enter_job(runtime: Runtime, message: m.SetJob) -> None:
    config = message.config
    runtime.job, runtime.job_config, runtime.namespace = message.job, config, config.namespace
    own = [path for path in sys.path if path not in config.sys_path and path]
    sys.path[:] = config.sys_path + own
    os.environ.update(config.env)
    try:
        os.chdir(config.cwd or "/")
    except OSError as error:
        # The driver's directory may be gone or unreadable; its tasks may not need it.
        print(f"noded: the driver's working directory {config.cwd} cannot be entered: {error}", file=sys.stderr)
