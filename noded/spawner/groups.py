"""Removing the control groups that a node's daemon has made for its workers (`node/memory_groups.py`).

When all has ended, whatever has become of the daemon, so that nothing is left behind. Not here: what they are for.
"""

from __future__ import annotations

import os
import time

from noded.spawner import protocol

MOUNT = "/sys/fs/cgroup"
LIMIT = 0.5  # an ended process may be counted for a moment


def remove(tag: str) -> None:
    """Remove those of this node; best effort."""
    deadline = time.monotonic() + LIMIT
    for place in _places():
        tree = f"{place}/{protocol.memory_tree(tag)}"
        while not _removed(tree) and time.monotonic() < deadline:
            time.sleep(0.01)


def _places() -> list[str]:
    """Groups that they may be in: that of this process, or, when it was moved into one for itself, that above."""
    found = []
    try:
        with open("/proc/self/cgroup") as file:
            lines = file.read().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        if path.endswith("/" + protocol.REST):
            path = path[: -len(protocol.REST) - 1]
        top = f"{MOUNT}/memory" if controllers else MOUNT
        found += [top + path.rstrip("/"), top]  # in a container the path may be the host's
    return found


def _removed(group: str) -> bool:
    """With the groups in it; True also when there is none."""
    try:
        for entry in os.listdir(group):
            if os.path.isdir(f"{group}/{entry}"):
                _removed(f"{group}/{entry}")
        os.rmdir(group)
    except FileNotFoundError:
        return True
    except OSError as error:
        return not os.path.isdir(group) or isinstance(error, PermissionError)
    return True
