"""The runtime environments of what this process submits: merged with its own, packed once, named by content."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from noded.runtime_env.packages import Resolver

_REMEMBERED = 1000
"""Different ones; programs that make a new one for each task should not fill the memory."""


class Environments:
    """``send(uri, data)`` gives a package to the node and returns when the node has it.

    What a directory holds when it is first named counts for the whole connection: a program may write into its own
    working directory while its tasks run.
    """

    def __init__(self, send: Callable[[str, bytes], None]):
        self.now = ""
        """The resolved environment of this process: of the job in a driver, of the task or actor in a worker."""
        self._send = send
        self._resolver: Resolver | None = None
        self._resolved: dict[Any, tuple[str, dict[str, Any]]] = {}
        """With what was given, so that the address of a function in it cannot become another's."""
        self._lock = threading.Lock()

    def resolve(self, given: dict[str, Any] | None) -> str:
        """What travels for an option ``runtime_env``; what it does not say is as in this process.

        Raises RuntimeEnvSetupError for code that cannot be packed.
        """
        if given is None:
            return self.now
        from noded.runtime_env import merge
        from noded.runtime_env.packages import Resolver

        key = _key(given)
        with self._lock:
            if key in self._resolved:
                return self._resolved[key][0]
            if self._resolver is None:
                self._resolver = Resolver(self._send)
            if len(self._resolved) >= _REMEMBERED:
                self._resolved.clear()
            parent = json.loads(self.now) if self.now else {}
            found = self._resolver.resolve(merge(parent, given))
            self._resolved[key] = found, given
            return found


def _key(given: dict[str, Any]) -> tuple[Any, ...]:
    place = os.getcwd() if "working_dir" in given or "py_modules" in given else ""  # they may be relative
    return place, *((name, id(each) if callable(each) else repr(each)) for name, each in sorted(given.items()))
