"""The telemetry pages of a node's processes (``noded/telemetry.py``), and what those that have ended have counted.

A run of the node (one incarnation) has a directory of its own beside the logs: the pages, and ``totals.json`` with the
counters of pages whose process has ended. It names the pages that it holds, so that none counts twice when a daemon is
killed. Pages of ended processes stay for their details until there are too many; directories of earlier runs, which
`noded history` reads, likewise. Everything here reads and writes files, so none of it is for the event loop, but
``ended``.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from noded import telemetry
from noded.telemetry import OTHER, SUFFIX, Counts, Reading, Record

TOTALS = "totals.json"
RUN = "run-"
"""The directories' names begin so; the rest is of the incarnation."""
_KEPT_PAGES = 500
_KEPT_BYTES = 64 << 20
"""Of pages of ended processes, as they lie on the disk."""
_KEPT_RUNS = 8
_NAMES = 2000
"""With counters of their own in the totals."""

Key = tuple[str, str]
"""(kind, name)."""


class Snapshot(NamedTuple):
    """A page, and whether its process lives."""

    name: str
    alive: bool
    reading: Reading


@dataclass
class _Totals:
    counts: dict[Key, Counts] = field(default_factory=dict)
    held: list[str] = field(default_factory=list)
    """Pages that are counted in, oldest first; those that are still there."""


class Pages:
    """``alive()``: the names of the pages whose processes live; called from any thread. ``buried(page, records)``: a
    process has ended, with what it ran then; called from the thread that has found out.
    """

    def __init__(
        self,
        logs: str,
        incarnation: str,
        alive: Callable[[], set[str]],
        buried: Callable[[str, list[Record]], None] = lambda page, records: None,
    ):
        self._logs = logs
        self.directory = os.path.join(logs, f"{RUN}{incarnation[:12]}")
        self._alive = alive
        self._buried = buried
        self._lock = threading.Lock()
        self._ended: list[str] = []
        self._totals = _Totals()
        self.on_ended: Callable[[], object] = lambda: None
        """See to a ``fold`` soon; once there has been a ``start``."""

    def start(self) -> None:
        """Take over from the daemon before us, if there was one."""
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        self._totals = load_totals(self.directory)
        alive, known = self._alive(), set(self._totals.held)
        self._ended += [page for page in page_names(self.directory) if page not in alive and page not in known]
        self._try_to_fold()
        self._drop_old_runs()

    def ended(self, page: str) -> None:
        """Its process has ended: it is counted in at the next ``fold``."""
        self._ended.append(page)
        self.on_ended()

    def fold(self) -> None:
        """Count in what has ended."""
        with self._lock:
            if not self._ended:
                return
            buried, faults = [], []
            for page in self._ended[:]:
                path = os.path.join(self.directory, page)
                try:
                    died = telemetry.bury(path, time.time())
                except OSError as fault:  # a full disk: this page is tried again at the next time
                    faults.append(fault)
                    continue
                reading = telemetry.read(path)
                if reading is not None and page not in self._totals.held:
                    add(self._totals.counts, reading.counts)
                    self._totals.held.append(page)
                    buried.append((page, died))
                self._ended.remove(page)
            if self._save():  # before any goes: else the next daemon would not know what it has counted
                self._drop_old()
        for page, died in buried:
            self._buried(page, died)
        if faults:
            raise faults[0]

    def read(self) -> list[Snapshot]:
        """All that are there."""
        self._try_to_fold()
        alive = self._alive()
        return [
            Snapshot(page, page in alive, reading)
            for page in page_names(self.directory)
            if (reading := telemetry.read(os.path.join(self.directory, page))) is not None
        ]

    def runs_of(self, id_: bytes) -> list[Snapshot]:
        """Where this task has run, with its runs alone."""
        self._try_to_fold()
        alive = self._alive()
        return [
            Snapshot(page, page in alive, reading)
            for page in page_names(self.directory)
            if (reading := telemetry.read_runs(os.path.join(self.directory, page), id_)) is not None
        ]

    def counts(self) -> dict[Key, Counts]:
        """Of all processes that there were in this run."""
        self._try_to_fold()
        with self._lock:
            found, held = dict(self._totals.counts), set(self._totals.held)
        for page in page_names(self.directory):
            if page not in held:
                reading = telemetry.read(os.path.join(self.directory, page))
                if reading is not None:
                    add(found, reading.counts)
        return found

    def _try_to_fold(self) -> None:
        """Its trouble is the collector's to say; whoever reads has what can be read."""
        with contextlib.suppress(OSError):
            self.fold()

    def _drop_old(self) -> None:
        held = self._totals.held
        sizes = {page: _size(os.path.join(self.directory, page)) for page in held[-_KEPT_PAGES:]}
        kept, left = [], _KEPT_BYTES
        for page in reversed(held):
            if page in sizes and (left := left - sizes[page]) >= 0:
                kept.append(page)
            else:
                _unlink(os.path.join(self.directory, page))
        self._totals.held = kept[::-1]

    def _drop_old_runs(self) -> None:
        for directory in runs(self._logs)[:-_KEPT_RUNS]:
            if directory != self.directory:
                shutil.rmtree(directory, ignore_errors=True)

    def _save(self) -> bool:
        told = {
            "counts": [[kind, name, *counts] for (kind, name), counts in self._totals.counts.items()],
            "held": self._totals.held,
        }
        path = os.path.join(self.directory, TOTALS)
        try:
            with open(path + ".new", "w") as file:
                json.dump(told, file)
            os.replace(path + ".new", path)
        except OSError:
            return False  # the disk is full: the next daemon counts in again what it finds beside the older totals
        return True


def load_totals(directory: str) -> _Totals:
    try:
        with open(os.path.join(directory, TOTALS)) as file:
            told = json.load(file)
        counts = {(str(kind), str(name)): Counts(*each) for kind, name, *each in told["counts"]}
        return _Totals(counts, [str(page) for page in told["held"]])
    except (OSError, ValueError, KeyError, TypeError):
        return _Totals()


def page_names(directory: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(directory) if name.endswith(SUFFIX))
    except FileNotFoundError:
        return []


def runs(logs: str) -> list[str]:
    """The directories of a node's runs, the oldest first."""
    try:
        found = [entry.path for entry in os.scandir(logs) if entry.name.startswith(RUN) and entry.is_dir()]
    except FileNotFoundError:
        return []
    return sorted(found, key=_modified)


def add(into: dict[Key, Counts], counts: dict[Key, Counts]) -> None:
    for key, each in counts.items():
        if key not in into and len(into) >= _NAMES:
            key = (key[0], OTHER)
        into[key] = into.get(key, Counts()) + each


def worker_of(page: str) -> str:
    """The worker whose page this is; empty when it is a driver's."""
    return page.removeprefix("worker-").removesuffix(SUFFIX) if page.startswith("worker-") else ""


def _size(path: str) -> int:
    try:
        return os.stat(path).st_blocks * 512
    except OSError:
        return 0


def _modified(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
