"""The users' metrics of this node: reads the pages of its processes (``metrics_page.py``), and keeps what those have
counted that have ended.

Counters and histograms are summed up over the node's processes; a gauge is shown per process, under its worker's id,
for as long as that lives. The page of a process that has ended is added to ``totals.json`` and removed; the file names
the pages that it holds, so that none counts twice after a kill in between. Everything here blocks: it is a collector
(``collectors.py``).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from collections.abc import Callable

import msgspec

from noded.families import Family, Histogram, Value
from noded.metrics_page import DIRECTORY, LINES, SUFFIX, PageReader, Series

log = logging.getLogger("noded.metrics")

_TOTALS = "totals.json"
_WORKER = "WorkerId"
_OURS = re.compile(r"(noded|process|python|scrape)_|up$")
"""Names of ours, of our process, and of Prometheus itself."""
_NOT_IN_NAME = re.compile(r"[^a-zA-Z0-9_:]")
_NOT_IN_LABEL = re.compile(r"[^a-zA-Z0-9_]")


class _Stored(msgspec.Struct):
    """``totals.json``."""

    folded: list[str] = []
    refused: int = 0
    series: list[tuple[Series, tuple[float, ...]]] = []


class UserMetrics:
    """``alive()``: the names of pages whose process may be alive, with the ids that their gauges are shown under;
    called in the collector's thread.
    """

    def __init__(self, run_dir: str, alive: Callable[[], dict[str, str]]):
        self._directory = os.path.join(run_dir, DIRECTORY)
        self._alive = alive
        self._readers: dict[str, PageReader] = {}
        self._totals: dict[Series, list[float]] = {}
        self._folded: set[str] = set()
        """Pages that are in the totals and not removed yet."""
        self._descriptions: dict[str, str] = {}
        """By exported name: of its first series."""
        self._refused = 0
        """Series of processes that have ended."""
        self._admitted: dict[Series, None] = {}
        self._lines = 0
        self._at_work = threading.Lock()
        self._restored = False

    def collect(self) -> list[Family]:
        """Raises RuntimeError while an earlier round, which was given up, is not through yet."""
        if not self._at_work.acquire(blocking=False):
            raise RuntimeError("an earlier round still reads the pages of processes")
        try:
            if not self._restored:
                self._restore()
                self._restored = True
            names = sorted(name for name in os.listdir(self._directory) if name.endswith(SUFFIX))
            alive = self._alive()  # after the listing: a page is made by a process that is known
            self._fold([name for name in names if name not in alive])
            return self._families({name: alive[name] for name in names if name in alive})
        finally:
            self._at_work.release()

    # ------------------------------------------------------------ the dead

    def _restore(self) -> None:
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        try:
            with open(os.path.join(self._directory, _TOTALS), "rb") as file:
                stored = msgspec.json.decode(file.read(), type=_Stored)
        except FileNotFoundError:
            return
        except msgspec.DecodeError as error:
            log.error("what ended processes have counted is lost: %s/%s: %s", self._directory, _TOTALS, error)
            return
        self._refused = stored.refused
        self._folded = set(stored.folded)
        for series, values in stored.series:
            key = self._key(series, "")
            self._totals[key] = list(values)
            self._admit(key)
        self._remove()

    def _fold(self, names: list[str]) -> None:
        if not names:
            return
        for name in [name for name in names if name not in self._folded]:
            self._folded.add(name)
            reader = self._reader(name)
            if not reader.read():
                continue
            self._refused += reader.refused
            for series, values in reader.series():
                key = self._key(series, name)
                if not self._admit(key):
                    self._refused += 1
                elif series.kind != "gauge":
                    into = self._totals.setdefault(key, [0.0] * series.numbers)
                    into[:] = [a + b for a, b in zip(into, values, strict=True)]
        self._store()
        self._remove()

    def _store(self) -> None:
        described = (
            (msgspec.structs.replace(key, description=self._descriptions[key.name]), tuple(values))
            for key, values in self._totals.items()
        )
        stored = _Stored(sorted(self._folded), self._refused, list(described))
        path = os.path.join(self._directory, _TOTALS)
        with open(path + ".new", "wb") as file:
            file.write(msgspec.json.encode(stored))
        os.replace(path + ".new", path)

    def _remove(self) -> None:
        for name in list(self._folded):
            self._readers.pop(name, None)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self._directory, name))
            self._folded.discard(name)

    # ------------------------------------------------------------ the living

    def _families(self, alive: dict[str, str]) -> list[Family]:
        found: dict[Series, list[float]] = {key: list(values) for key, values in self._totals.items()}
        refused = self._refused
        for name, id_ in alive.items():
            reader = self._reader(name)
            if not reader.read():
                continue
            refused += reader.refused
            for series, values in reader.series():
                key = self._key(series, id_)
                if (into := found.get(key)) is None:
                    found[key] = list(values)
                elif series.kind == "gauge":
                    into[:] = values
                else:
                    into[:] = [a + b for a, b in zip(into, values, strict=True)]
        self._forget(found)
        families: dict[str, Family] = {}
        for key, numbers in found.items():
            if not self._admit(key) or not _add(families, key, self._descriptions[key.name], numbers):
                refused += 1
        text = "Series of user metrics that are not shown, as there are too many or they contradict others"
        families["noded_user_series_dropped_total"] = Family(
            "noded_user_series_dropped_total", "counter", text, [({}, refused)]
        )
        return list(families.values())

    def _key(self, series: Series, worker: str) -> Series:
        """What is summed up, or shown, as one: with the name and labels that it gets, and without its description."""
        tags = {_label(key): value for key, value in series.tags}
        if series.kind == "gauge":
            tags[_WORKER] = worker
        name = _exported(series.name, series.kind)
        self._descriptions.setdefault(name, series.description)
        return Series(series.kind, name, "", tuple(sorted(tags.items())), series.boundaries)

    def _reader(self, name: str) -> PageReader:
        found = self._readers.get(name)
        if found is None:
            found = self._readers[name] = PageReader(os.path.join(self._directory, name))
        return found

    # ------------------------------------------------------------ the bound

    def _admit(self, key: Series) -> bool:
        """Who has come first stays."""
        if key in self._admitted:
            return True
        if self._lines + key.lines > LINES:
            return False
        self._admitted[key] = None
        self._lines += key.lines
        return True

    def _forget(self, present: dict[Series, list[float]]) -> None:
        """Gauges of processes that have ended make room for others."""
        for key in [key for key in self._admitted if key not in present]:
            del self._admitted[key]
            self._lines -= key.lines


def _exported(name: str, kind: str) -> str:
    name = _NOT_IN_NAME.sub("_", name)
    if name[0].isdecimal():
        name = "_" + name
    if _OURS.match(name):
        name = "user_" + name
    return name.removesuffix("_total") + "_total" if kind == "counter" else name


def _label(key: str) -> str:
    name = _NOT_IN_LABEL.sub("_", key) or "_"
    if name[0].isdecimal() or name.startswith("__") or name in ("le", _WORKER):
        name = "tag_" + name.lstrip("_")
    return name


def _add(families: dict[str, Family], key: Series, description: str, numbers: list[float]) -> bool:
    """False when another kind, or a histogram with other buckets, has the name."""
    family = families.get(key.name)
    value: Value = numbers[0]
    if key.kind == "histogram":
        value = Histogram(key.boundaries, tuple(numbers[:-1]), numbers[-1])
    if family is None:
        family = families[key.name] = Family(key.name, key.kind, description or f"Metric {key.name} of a program")  # type: ignore[arg-type]
    elif family.kind != key.kind:
        return False
    elif isinstance(value, Histogram) and value.boundaries != family.samples[0][1].boundaries:  # type: ignore[union-attr]
        return False
    family.samples.append((dict(key.tags), value))
    return True
