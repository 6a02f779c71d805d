"""Other versions of noded, faked: a copy of this tree in which the numbers of the contracts are others.

    older = make_tree(tmp_path / "older", -1)
    node = Node(root=older)

What version N-1 did not have yet is taken out of the copy of step -1, so that it refuses it as the real one would.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection
from pathlib import Path

from harness.cluster import REPOSITORY

CONTRACTS = ("messages", "spawner", "ledger")
_NUMBERS = {
    "messages": ("wire/messages.py", ("PROTOCOL_VERSION", "OLDEST_PROTOCOL")),
    "spawner": ("spawner/protocol.py", ("PROTOCOL", "OLDEST")),
    "ledger": ("node/ledger.py", ("LAYOUT_VERSION: Final", "OLDEST_LAYOUT: Final")),
}
# File, what is there now, what was there before.
_NEW: tuple[tuple[str, str, str], ...] = (
    (
        "wire/messages.py",
        '    noded: str = ""\n    """The daemon\'s version; since protocol 3."""\n'
        '    pages: str = ""\n    """The directory for the receiver\'s telemetry page; empty: it keeps it in memory. '
        'Since protocol 3."""\n',
        '    pages = ""\n',
    ),
    (
        "wire/messages.py",
        "KNOWN_TO_OLDEST = {40: 16, 47: 2, 53: 1, 66: 0, 67: 0, 68: 0, 69: 0, 79: 0, 100: 0, 115: 0}",
        "KNOWN_TO_OLDEST: dict[int, int] = {}",
    ),
    (
        "wire/messages.py",
        '    maker: bytes = b""\n    """The worker there that has stored it, and how far in its control stream it has '
        'said so."""'
        "\n    seq: int = 0\n",
        "",
    ),
    (
        "wire/messages.py",
        '    kind: str = ""\n    """One of ``policy/deaths.py``: the cause, for programs."""\n',
        '    kind = ""\n',
    ),
    (
        "wire/messages.py",
        "_DEATH_AT, _DEATH_KNOWN = {45: 2, 50: 6}, 8",
        "_DEATH_AT, _DEATH_KNOWN = dict[int, int](), 8",
    ),
    (
        "wire/messages.py",
        "    | Gone\n    | Vacated\n    | SealedOnDisk\n    | Unreadable\n    | Holds\n    | Tasks\n    | Stack\n",
        "",
    ),
    (
        "wire/messages.py",
        "    | Rebuild\n    | Vacate\n    | OnDisk\n    | DiskRegion\n    | WhoHolds\n"
        "    | WhatTasks\n    | WhatStack\n",
        "",
    ),
    (
        "wire/messages.py",
        '    files: list[str] = []\n    """Files this client still writes to; its others are sealed or given up."""\n',
        "",
    ),
    ("client/runtime.py", "        told.files = self.space.files_in_use()\n", ""),
    (
        "wire/messages.py",
        '    kind: str = ""\n    """``disk``: it is the disk that is full; ``slab``: there is no room for one, ask for '
        'each object."""\n',
        '    kind = ""\n',
    ),
    ("client/objects.py", "ref._value[0], maker, seq)", "ref._value[0])"),
    (
        "entrance.py",
        '            noded=__version__,\n            pages="" if client.remote or parts.config.no_telemetry else '
        "parts.pages.directory,\n        )\n",
        "        )\n",
    ),
    ("client/runtime.py", 'welcome.noded not in ("", __version__)', "False"),
    ("spawner/core.py", '            "retire": self._on_retire,\n', ""),
    ("spawner/core.py", '            "absence": self._on_absence,\n', ""),
    ("node/workers.py", "    version: int = 0\n", "    version = 0\n"),
    ("node/workers.py", '    retriable: bool = True\n    """What it is leased for may be run again."""\n', ""),
    ("node/workers.py", ', record.retriable = {}, b"", True\n', ' = {}, b""\n'),
    ("node/leases.py", "        record.retriable = held.retriable\n", ""),
    ("node/leases.py", "        lease.retriable = record.retriable\n", ""),
    ("node/actor_host.py", "        lease.retriable = record.retriable\n", ""),
    ("node/leases.py", "waiting.definition.retriable", "True"),
    (
        "wire/messages.py",
        '    retriable: bool = True\n    """Its tasks may be run again when their worker dies."""\n',
        "",
    ),
    ("client/tasks.py", ", queue.where, queue.retriable)\n        )", ", queue.where)\n        )"),
    (
        "wire/messages.py",
        '    free: bool = False\n    """It was not for what it ran: running that again costs no retry."""\n',
        "    free = False\n",
    ),
    ("node/workers.py", "death.kind, death.free = kind, worker.free and kind == record.kind", "pass"),
    ("node/control.py", "    remote: bool = False\n    version: int = 0\n", "    remote: bool = False\n"),
    ("node/control.py", "client.remote, client.version\n", "client.remote\n"),
    ("node/control.py", "if worker.record.version != message.version:", "if False:"),
    ("takeover.py", "    _refuse_strange_clients(parts, set(alive))\n", ""),
    ("node/workers.py", 'TEMPLATE = f"default {__version__}"', 'TEMPLATE = "default"'),
)


def make_tree(root: Path, step: int, contracts: Collection[str] = CONTRACTS) -> Path:
    """A tree whose `contracts` have numbers that are `step` higher."""
    package = root / "noded"
    shutil.copytree(REPOSITORY / "noded", package, ignore=shutil.ignore_patterns("__pycache__"))
    for contract in contracts:
        path, names = _NUMBERS[contract]
        for name in names:
            _patch(package / path, rf"^{name} = (\d+)$", lambda m: m[0].replace(m[1], str(int(m[1]) + step)))
    _patch(package / "version.py", r'"[0-9.]+"', lambda m: f'"0.0.{50 + step}"')
    if step == -1:
        for path, now, before in _NEW:
            _patch(package / path, re.escape(now), lambda m, before=before: before)  # type: ignore[misc]
    return root


def _patch(path: Path, pattern: str, change: object) -> None:
    text, count = re.subn(pattern, change, path.read_text(), flags=re.MULTILINE)  # type: ignore[call-overload]
    assert count == 1, f"{pattern!r} is {count} times in {path}: this file has to follow it"
    path.write_text(text)
