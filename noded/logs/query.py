"""Reading logs by questions: what `noded logs` and ``noded.util.state.get_log`` have in common.

``ask(arguments)`` asks a cluster and returns its answer; where and how is the caller's business, and so is what a
refusal raises.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

ANY = "*"
"""As the name of a file: all of them."""
Ask = Callable[[dict[str, Any]], Any]
_POLL_SECONDS = 0.25
_LIST_SECONDS = 2.0
_LIST_SHARE = 10
"""Times as long as a listing has taken nothing is listed again: with an id nodes search all their files for it."""
_LIST_LONGEST = 30.0


class Wanted(NamedTuple):
    """What is to be read: one of the first five is given. ``tail``: the last lines of each file, None for all."""

    worker: str = ""
    task: str = ""
    actor: str = ""
    job: str = ""
    node: str = ""
    name: str = ""
    """A file of that node; without one the daemon's own."""
    is_error: bool = False
    tail: int | None = None
    follow: bool = False

    @property
    def id(self) -> str:
        return self.task or self.actor


class Part(NamedTuple):
    """Some bytes of a file. ``file``: as it was listed, with the ``node`` that has it. ``dropped``: so many bytes
    before these are not kept any more.
    """

    file: dict[str, Any]
    data: bytes
    dropped: int


def list_files(ask: Ask, wanted: Wanted) -> dict[str, Any]:
    """The answer's nodes with those of their files that are wanted, and perhaps a ``problem``."""
    args: dict[str, Any] = {"do": "list", "worker": wanted.worker, "job": wanted.job, "id": wanted.id}
    told: dict[str, Any] = ask({**args, "node": wanted.node, "daemon": bool(wanted.node and not wanted.name)})
    for node in told["nodes"]:
        node["files"] = [file for file in node["files"] if _is_wanted(file, wanted)]
    return told


def _is_wanted(file: dict[str, Any], wanted: Wanted) -> bool:
    if wanted.name:
        return wanted.name in (file["name"], ANY)
    return not file["worker"] or bool(file["name"].endswith(".err")) == wanted.is_error


def files_of(told: dict[str, Any]) -> list[dict[str, Any]]:
    """Of all nodes, the one that was written last at the end."""
    found = [
        {**file, "node": str(node["number"]), "node_name": node["name"]}
        for node in told["nodes"]
        for file in node["files"]
    ]
    return sorted(found, key=lambda file: file["modified"])


def read(ask: Ask, wanted: Wanted, files: list[dict[str, Any]]) -> Iterator[Part]:
    """All that these files have; with ``follow`` then what comes, also in further files, while anybody writes."""
    open_: dict[tuple[str, str], _Reading] = {}
    for file in files:
        reading = open_[file["node"], file["name"]] = _Reading(ask, wanted, file)
        yield from reading.parts()
    listed, pause = time.monotonic(), _LIST_SECONDS
    while wanted.follow:
        if open_ and (wanted.worker or wanted.task) and not any(one.alive for one in open_.values()):
            return
        time.sleep(_POLL_SECONDS)
        if (begun := time.monotonic()) - listed > pause:
            for file in files_of(list_files(ask, wanted)):
                open_.setdefault((file["node"], file["name"]), _Reading(ask, wanted._replace(tail=None), file))
            listed = time.monotonic()
            pause = min(max(_LIST_SECONDS, _LIST_SHARE * (listed - begun)), _LIST_LONGEST)
        for reading in list(open_.values()):
            yield from reading.parts()


class _Reading:
    def __init__(self, ask: Ask, wanted: Wanted, file: dict[str, Any]):
        self._ask = ask
        self._wanted = wanted
        self._file = file
        self._cursor: list[Any] | None = None
        self.alive = True

    def parts(self) -> Iterator[Part]:
        """What is there now and was not read."""
        wanted = self._wanted
        # The last lines of one call are among those of its worker: all are read, and the last ones kept.
        keep = wanted.tail if wanted.id and self._cursor is None else None
        kept = b""
        at_end = not self.alive
        while not at_end:
            args: dict[str, Any] = {"do": "read", "node": self._file["node"], "name": self._file["name"]}
            args |= {"id": wanted.id, "exact": bool(wanted.task), "follow": wanted.follow, "cursor": self._cursor}
            told = self._ask({**args, "tail": None if wanted.id else wanted.tail})
            data, self._cursor, at_end = base64.b64decode(told["data"]), told["cursor"], told["at_end"]
            self.alive = wanted.follow and told["alive"]
            if keep is not None:
                kept = last_lines(kept + data, keep)
            elif data or told["dropped"]:
                yield Part(self._file, data, told["dropped"] if wanted.tail is None else 0)
        if kept:
            yield Part(self._file, kept, 0)


def last_lines(data: bytes, count: int) -> bytes:
    at = len(data) - 1 if data.endswith(b"\n") else len(data)
    for _ in range(count):
        at = data.rfind(b"\n", 0, at)
        if at < 0:
            return data
    return data[at + 1 :] if count else b""
