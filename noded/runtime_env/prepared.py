"""A runtime environment on its way: resolved (canonical JSON, client to daemon) and prepared (daemon to worker).

Resolved means: local directories have become ``pkg://`` URIs and a setup hook that was a callable its pickle. Equal
environments are equal text, so its hash names it. No environment at all is the empty text.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import msgspec

from noded.runtime_env.fields import DEFAULT_CONFIG, PICKLED

_TIMEOUT = "setup_timeout_seconds"


class Prepared(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """What a worker needs to enter an environment that its node has made ready."""

    env_vars: dict[str, str] = {}
    """Not expanded yet."""
    working_dir: str = ""
    sys_path: list[str] = []
    """To go first, in this order."""
    setup_hook: str = ""
    """``module.function``."""
    pickled_hook: bytes = b""
    """Or this one: a callable."""


def canonical(env: Mapping[str, Any]) -> str:
    """`env` must be resolved: nothing in it but what JSON has."""
    kept = {key: value for key, value in env.items() if key not in ("config", "excludes") and value}
    seconds = env.get("config", {}).get(_TIMEOUT, DEFAULT_CONFIG[_TIMEOUT])
    if kept and seconds != DEFAULT_CONFIG[_TIMEOUT]:
        kept["config"] = {_TIMEOUT: seconds}
    return json.dumps(kept, sort_keys=True, separators=(",", ":")) if kept else ""


def parse(resolved: str) -> dict[str, Any]:
    """The fields of a resolved environment, to merge others with, or to show."""
    found: dict[str, Any] = json.loads(resolved) if resolved else {}
    return found


def env_id(resolved: str) -> str:
    """16 hexadecimal digits; empty for no environment."""
    return hashlib.blake2b(resolved.encode(), digest_size=8).hexdigest() if resolved else ""


def package_uris(env: Mapping[str, Any]) -> list[str]:
    """The packages of a resolved environment, in the order of the import path."""
    directory = env.get("working_dir")
    return [*env.get("py_modules", ()), *([directory] if directory else [])]


def setup_timeout(env: Mapping[str, Any]) -> float | None:
    """Seconds; None: no limit."""
    seconds = env.get("config", {}).get(_TIMEOUT, DEFAULT_CONFIG[_TIMEOUT])
    return None if seconds < 0 else float(seconds)


def setup_hook(env: Mapping[str, Any]) -> tuple[str, bytes]:
    """(by name, pickled): one of them or none."""
    hook = env.get("worker_process_setup_hook", "")
    return ("", base64.b64decode(hook[PICKLED])) if isinstance(hook, Mapping) else (hook, b"")
