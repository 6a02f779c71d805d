"""The runtime environments of what this process submits: merged with its own, packed once, named by content."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any


class Environments:
    """``send(uri, data)`` gives a package to the node and returns when the node has it."""

    def __init__(self, send: Callable[[str, bytes], None]):
        self.now = ""
        """The resolved environment of this process: of the job in a driver, of the task or actor in a worker."""
        self._send = send
        self._resolved: dict[str, str] = {}
        self._lock = threading.Lock()

    def resolve(self, given: dict[str, Any] | None) -> str:
        """What travels for an option ``runtime_env``; what it does not say is as in this process.

        Raises what packing raises: ValueError for a directory that is not there or too big.
        """
        if given is None:
            return self.now
        from noded.runtime_env import merge
        from noded.runtime_env.packages import resolve

        key = repr(sorted(given.items(), key=lambda item: item[0]))
        with self._lock:
            found = self._resolved.get(key)
            if found is None:
                parent = json.loads(self.now) if self.now else {}
                found = self._resolved[key] = resolve(merge(parent, given), self._send)
            return found
