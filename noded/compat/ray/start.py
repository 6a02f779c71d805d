"""`ray.init` with all that Ray takes: RAY_ADDRESS, and arguments that mean nothing to noded and harm nobody."""

from __future__ import annotations

import functools
import os
import warnings
from dataclasses import asdict, dataclass, field
from typing import Any

from noded.client import api
from noded.client.runtime import Runtime, runtime, set_auto_init
from noded.compat.ray.job_config import JobConfig

SCRIPT_MODE, WORKER_MODE, LOCAL_MODE = 0, 1, 2

_IGNORED = ("cgroup_path", "dashboard_agent_listen_port", "proxy_server_url", "storage")
"""What noded's init does not know. Arguments that begin with an underscore it ignores itself."""


@dataclass
class LoggingConfig:
    """Accepted by `ray.init`; noded leaves the logging of user code as Python has it."""

    encoding: str = "TEXT"
    log_level: str = "INFO"
    additional_log_standard_attrs: list[str] = field(default_factory=list)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LoggingConfig:
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@functools.wraps(api.init)
def init(address: str | None = None, **options: Any) -> api.ClientContext:
    for name in _IGNORED:
        options.pop(name, None)
    if options.pop("local_mode", False):
        warnings.warn(
            "local_mode is ignored: tasks and actors run in workers, with the same results", UserWarning, stacklevel=2
        )
    config = options.pop("job_config", None)
    if config is not None:
        config = JobConfig.from_json(config) if isinstance(config, dict) else config
        options.setdefault("namespace", config.ray_namespace)
        options.setdefault("runtime_env", config.runtime_env)
    return api.init(_address(address), **options)


def _address(given: str | None) -> str | None:
    """What was asked for, else NODED_ADDRESS (which noded itself reads), else RAY_ADDRESS."""
    address = given or (None if os.environ.get("NODED_ADDRESS") else os.environ.get("RAY_ADDRESS")) or None
    if isinstance(address, str) and "://" in address and not address.startswith("noded://"):
        said = "ray.init(address=...)" if given else "RAY_ADDRESS"
        raise ConnectionError(
            f"{said} is {address!r}: noded has no such client protocol (yet). A program that runs on a machine of the "
            "cluster gives host:port, as `noded status` shows it, or 'auto'"
        )
    return address


def _auto_init() -> Runtime:
    init()
    return runtime()


set_auto_init(_auto_init)
