"""node.json: what a node tells programs of the same user about itself, and finding such nodes.

The daemon writes it into the node's run directory when it is ready; the spawner removes it at the full stop.
So a file whose process has ended means a node whose daemon may come back. Not here: asking a node anything.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from noded.config.machine import read
from noded.config.places import run_base

FILE = "node.json"
_KINDS = (str, int, bool)


class NodeInfo(msgspec.Struct, frozen=True):
    """`started` tells the process from a later one with its pid (`process_state`); 0: nobody has told.

    `alive` was true when the node was found; `runs` looks again.
    """

    cluster: str
    node: str
    pid: int
    port: int
    host: str
    node_id: str
    version: str
    private: bool
    started: int = 0
    head: str = ""
    """The address of its cluster's head."""
    dir: Path = Path()
    alive: bool = True

    def runs(self) -> bool:
        """Whether the daemon's process has not ended; a stopped one has not."""
        state = process_state(self.pid)
        if state is None:
            return False
        if self.started:
            return self.started == state[1]
        # The pid may be somebody else's by now, whom `noded stop` must not end. Word by word, as an interpreter
        # may well lie below a directory of our name.
        return any(os.path.basename(word) == "noded" for word in read(Path(f"/proc/{self.pid}/cmdline")).split("\0"))

    def write(self) -> None:
        """Put node.json into `dir`, whole or not at all."""
        told = {name: value for name, value in msgspec.structs.asdict(self).items() if name not in ("dir", "alive")}
        draft = self.dir / f"{FILE}.{self.pid}"
        draft.write_text(json.dumps(told) + "\n")
        draft.replace(self.dir / FILE)


def process_state(pid: int) -> tuple[str, int] | None:
    """State letter and start (clock ticks since boot) of a process; None when it has ended."""
    after_name = read(Path(f"/proc/{pid}/stat")).rpartition(") ")[2].split()
    return None if len(after_name) < 20 or after_name[0] in "ZX" else (after_name[0], int(after_name[19]))


def node_in(directory: Path) -> NodeInfo | None:
    """The node whose directory this is; None when its daemon was never ready."""
    try:
        return _load(directory / FILE)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def find_nodes(env: Mapping[str, str]) -> list[NodeInfo]:
    """All nodes of this user, also those whose daemon has ended (`alive` is False)."""
    found = []
    # The second is where nodes are whose names are too long for the first.
    for base in dict.fromkeys([run_base(env, "", ""), run_base(env, "c" * 40, "n" * 40)]):
        for path in base.glob(f"*/*/{FILE}"):
            with suppress(OSError, ValueError, TypeError, KeyError):  # gone by now, or not one of ours
                node = _load(path)
                if path.stat().st_uid == os.geteuid() and run_base(env, node.cluster, node.node) == base:
                    found.append(node)
    return sorted(found, key=lambda node: (node.cluster, node.node))


def _load(path: Path) -> NodeInfo:
    told = json.loads(path.read_text())
    kept = {}
    for field in msgspec.structs.fields(NodeInfo):
        if field.type in _KINDS and field.name in told and field.name != "alive":
            if not isinstance(told[field.name], field.type):
                raise TypeError
            kept[field.name] = told[field.name]
    node = NodeInfo(**kept, dir=path.parent)
    return msgspec.structs.replace(node, alive=node.runs())
