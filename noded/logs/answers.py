"""What is asked of one node's log directory: which files, and the next part of one. The same for a daemon, and for a
command where no daemon answers.

Answers are plain data. Reads files: not for an event loop.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping
from typing import Any

from noded.logs import files
from noded.logs.marks import Mark

FILES_TOLD = 1000
PRIVATE_DAEMON_LOG = "noded.log"
"""In the run directory."""


class LogDirectory:
    """``node``: what answers say of the node. ``alive(worker)``: whether it still writes."""

    def __init__(self, directory: str, daemon_dir: str, node: Mapping[str, Any], *, alive: Callable[[str], bool]):
        self._directory = directory
        self._daemon_dir = daemon_dir
        self._node = dict(node)
        self._alive = alive

    def list(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """The files, oldest first; with ``id`` those that this task or actor has written into, with ``worker`` or
        ``job`` theirs, with ``daemon`` the daemon's own. ``files_left``: so many older ones are not told.
        """
        id_, worker, job = (str(args.get(name) or "") for name in ("id", "worker", "job"))
        listed = files.list_files(self._directory)
        if self._daemon_dir != self._directory:
            listed += [file for file in files.list_files(self._daemon_dir) if not file.worker]
        found: list[dict[str, Any]] = []
        left = 0
        for file in reversed(listed):
            if (worker and file.worker != worker) or ((id_ or job) and not file.worker):
                continue
            if args.get("daemon") and file.worker:
                continue
            path = self._path(file.name)
            mark = files.whose(path) if file.worker else Mark()
            if job and mark.job != job:
                continue
            try:
                if id_ and not files.mentions(path, id_):
                    continue
            except OSError:  # removed meanwhile
                continue
            if len(found) < FILES_TOLD:
                found.append(self._told(file, mark))
            else:
                left += 1
        return {"nodes": [{**self._node, "files": found[::-1], "files_left": left}]}

    def _told(self, file: files.LogFile, mark: Mark) -> dict[str, Any]:
        return {
            "name": file.name,
            "worker": file.worker,
            "size": file.size,
            "on_disk": file.on_disk,
            "modified": file.modified,
            "alive": self._alive(file.worker) if file.worker else file.name.endswith(".log"),
            "job": mark.job,
            "pid": int(mark.pid) if mark.pid.isdecimal() else 0,
            "label": mark.label,
        }

    def _path(self, name: str) -> str:
        return os.path.join(self._directory if files.worker_of(name) else self._daemon_dir, name)

    def read(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """The next part of the file ``name``: from ``cursor`` on, which the last answer had, else from the last
        ``tail`` lines on, else from its start; with ``id`` what this task or actor has written, ``exact`` to the byte.
        Unless ``follow`` is given also a last line without end. Raises ValueError.
        """
        name = str(args.get("name"))
        where = f"on node {self._node['name']}"
        if not files.valid(name):
            raise ValueError(f"there is no log file {name!r} {where}: `noded logs` lists them")
        path = self._path(name)
        worker = files.worker_of(name)
        alive = worker is None or self._alive(worker[0])
        cursor, tail = args.get("cursor"), args.get("tail")
        try:
            if cursor is not None:
                start = files.Cursor(*cursor)
            else:
                start = files.tail(path, int(tail)) if tail is not None else files.Cursor()
            chunk = files.read(
                path,
                start,
                str(args.get("id") or ""),
                exact=bool(args.get("exact")),
                unfinished=not (args.get("follow") and alive),
            )
        except FileNotFoundError:
            raise ValueError(f"there is no log file {name} {where} (any more): `noded logs` lists them") from None
        except OSError as error:
            raise ValueError(f"the log file {name} {where} cannot be read: {error.strerror}") from None
        return {
            "data": base64.b64encode(chunk.data).decode(),
            "cursor": list(chunk.cursor),
            "at_end": chunk.at_end,
            "dropped": chunk.dropped,
            "alive": alive,
        }
