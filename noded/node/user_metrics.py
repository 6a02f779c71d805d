"""The users' metrics of this node: reads the pages of its processes (``metrics/page.py``), and keeps what those have
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
from collections.abc import Callable, Iterable

import msgspec

from noded.metrics.family import Family, Histogram, Value
from noded.metrics.page import DIRECTORY, LINES, SUFFIX, PageReader, Series

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


class _Line(msgspec.Struct, eq=False):
    """What is summed up, or shown, as one: with the name and labels that it gets, and without its description."""

    series: Series
    admitted: bool = False


class _Process:
    """A page, and what its series are shown as. ``id``: what its gauges are shown under."""

    def __init__(self, path: str, id_: str):
        self.reader = PageReader(path)
        self.id = id_
        self.lines: list[_Line] = []


class UserMetrics:
    """``alive()``: the names of pages whose process may be alive, with the ids that their gauges are shown under;
    called in the collector's thread.
    """

    def __init__(self, run_dir: str, alive: Callable[[], dict[str, str]]):
        self._directory = os.path.join(run_dir, DIRECTORY)
        self._alive = alive
        self._processes: dict[str, _Process] = {}
        """By page."""
        self._known: dict[Series, _Line] = {}
        self._totals: dict[_Line, list[float]] = {}
        self._folded: set[str] = set()
        """Pages that are in the totals and not removed yet."""
        self._descriptions: dict[str, str] = {}
        """By exported name: of its first series."""
        self._refused = 0
        """Series of processes that have ended."""
        self._room = LINES
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
            line = self._line(series, "")
            self._totals[line] = list(values)
            self._admit(line)
        self._remove()

    def _fold(self, names: list[str]) -> None:
        if not names:
            return
        for name in [name for name in names if name not in self._folded]:
            self._folded.add(name)
            for line, values in self._read(name, ""):
                if line.series.kind == "gauge":
                    self._refused += not line.admitted
                elif self._admit(line):
                    _sum_up(self._totals, line, values)
                else:
                    self._refused += 1
            self._refused += self._processes[name].reader.refused
        self._store()
        self._remove()

    def _store(self) -> None:
        described = (
            (msgspec.structs.replace(line.series, description=self._descriptions[line.series.name]), tuple(values))
            for line, values in self._totals.items()
        )
        stored = _Stored(sorted(self._folded), self._refused, list(described))
        path = os.path.join(self._directory, _TOTALS)
        with open(path + ".new", "wb") as file:
            file.write(msgspec.json.encode(stored))
        os.replace(path + ".new", path)

    def _remove(self) -> None:
        for name in list(self._folded):
            self._processes.pop(name, None)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self._directory, name))
            self._folded.discard(name)

    # ------------------------------------------------------------ the living

    def _families(self, alive: dict[str, str]) -> list[Family]:
        found: dict[_Line, list[float]] = {line: list(values) for line, values in self._totals.items()}
        refused = self._refused
        for name, id_ in alive.items():
            for line, values in self._read(name, id_):
                if line.series.kind == "gauge":
                    found[line] = list(values)
                else:
                    _sum_up(found, line, values)
            refused += self._processes[name].reader.refused
        self._forget(found)
        families: dict[str, Family] = {}
        for line, numbers in found.items():
            description = self._descriptions[line.series.name]
            if not self._admit(line) or not _add(families, line.series, description, numbers):
                refused += 1
        text = "Series of user metrics that are not shown, as there are too many or they contradict others"
        families["noded_user_series_dropped_total"] = Family(
            "noded_user_series_dropped_total", "counter", text, [({}, refused)]
        )
        return list(families.values())

    def _read(self, name: str, id_: str) -> Iterable[tuple[_Line, tuple[float, ...]]]:
        process = self._processes.get(name)
        if process is None:
            process = self._processes[name] = _Process(os.path.join(self._directory, name), id_)
        if not process.reader.read():
            return ()
        series = process.reader.series()
        process.lines += [self._line(each, process.id) for each, _ in series[len(process.lines) :]]
        return [(line, values) for line, (_, values) in zip(process.lines, series, strict=True)]

    def _line(self, series: Series, id_: str) -> _Line:
        tags = {_label(key): value for key, value in series.tags}
        if series.kind == "gauge":
            tags[_WORKER] = id_
        name = _exported(series.name, series.kind)
        self._descriptions.setdefault(name, series.description)
        shown = Series(series.kind, name, "", tuple(sorted(tags.items())), series.boundaries)
        return self._known.setdefault(shown, _Line(shown))

    # ------------------------------------------------------------ the bound

    def _admit(self, line: _Line) -> bool:
        """Who has come first stays."""
        if not line.admitted and line.series.lines <= self._room:
            line.admitted = True
            self._room -= line.series.lines
        return line.admitted

    def _forget(self, present: dict[_Line, list[float]]) -> None:
        """Gauges of processes that have ended make room for others."""
        kept = {*present, *(line for process in self._processes.values() for line in process.lines)}
        for line in [line for line in self._known.values() if line not in kept]:
            del self._known[line.series]
            if line.admitted:
                self._room += line.series.lines


def _sum_up(sums: dict[_Line, list[float]], line: _Line, values: tuple[float, ...]) -> None:
    into = sums.get(line)
    if into is None:
        sums[line] = list(values)
    else:
        into[:] = [a + b for a, b in zip(into, values, strict=True)]


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
