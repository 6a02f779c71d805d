"""Looks once a second whether all promises hold, from outside: at what drivers told, at nodes, at processes.

`violations` are texts, in order of time; the first one is the one to look at. `check_logs` is for the end.
"""

from __future__ import annotations

import json
import os
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

from harness import invariants
from harness.chaos.faults import Faults
from harness.chaos.logs import Answer, check_calls, check_once
from harness.chaos.promises import PATIENCE, Happening, calm_seconds, verdict
from harness.members import Members
from harness.watcher import Watchers

STALL = "machine-stall"
_STALL_SECONDS = 3.0
"""A machine that runs nothing for so long (a virtual one that is paused) excuses whoever waits."""


class Judge:
    def __init__(self, cluster: Members, faults: Faults, directory: Path) -> None:
        self.violations: list[str] = []
        self.errors: Counter[str] = Counter()
        self.gone: set[str] = set()
        """Drivers that were killed: what they waited for is nobody's."""
        self._faults, self._directory = faults, directory
        self._nodes = invariants.Checker(cluster)
        self._watchers = Watchers(directory / "instances")
        self._read: dict[Path, int] = {}
        self._told: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="judge", daemon=True)
        self._clock = threading.Thread(target=self._watch_machine, name="clock", daemon=True)

    def fine(self) -> bool:
        return not self.violations

    def counts(self) -> dict[str, int]:
        """Operations of all drivers."""
        total: Counter[str] = Counter()
        for state in self._states().values():
            total.update(state["counts"])
        return dict(sorted(total.items()))

    def waits(self) -> dict[str, str]:
        """What each thread of each driver waits for, and how long."""
        now = time.monotonic()
        return {
            f"{driver}, {thread}": f"{what}, {now - since:.1f} s"
            for driver, state in self._states().items()
            if driver not in self.gone
            for thread, (what, since) in state["open"].items()
        }

    def look(self) -> None:
        for line in self._lines("*.wrong"):
            self._tell(json.loads(line))
        for line in self._lines("*.errors"):
            error = json.loads(line)
            self.errors[f"{error['op']}: {error['error']}"] += 1
            if reason := verdict(error, self._faults.history):
                self._tell(f"{reason}: {error['driver']}, {error['op']} {error['id']}, {error}")
        self._look_for_hangs()
        self._look_at_instances()
        for problem in [*self._faults.problems, *self._nodes.problems]:
            self._tell(problem)

    def check_logs(self) -> None:
        """Of the whole run; no driver writes any more."""
        answers: dict[str, list[Answer]] = {}
        for line in self._lines("*.answers"):
            actor, k, pid, n = line.split()
            answers.setdefault(actor, []).append((k, int(pid), int(n)))
        for path in sorted(self._directory.glob("calls/*")):
            again = "-retried-" in path.name or path.name.startswith("detached-")
            found = check_calls(path.name, path.read_text().splitlines(), answers.pop(path.name, ()), may_repeat=again)
            for text in found:
                self._tell(text)
        for actor, left in answers.items():
            self._tell(f"{actor}: {len(left)} answers, and not one call ran")
        for text in check_once(self._lines("once"), self._lines("*.once")):
            self._tell(text)

    def _run(self) -> None:
        try:
            while not self._stop.wait(1.0):
                self.look()
        except BaseException:
            self._tell(f"the judge failed: {traceback.format_exc()}")

    def _watch_machine(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(0.25):
            now = time.monotonic()
            if now - last > _STALL_SECONDS:
                self._faults.history.append(Happening(STALL, "", last, now))
                self._faults.done[STALL] = self._faults.done.get(STALL, 0) + 1
                self._faults.note(f"the machine stood still for {now - last:.1f} s")
            last = now

    def _look_for_hangs(self) -> None:
        now = time.monotonic()
        for driver, state in self._states().items():
            if driver in self.gone:
                continue
            for thread, (what, since) in state["open"].items():
                calm = calm_seconds(self._faults.history, since, now)
                if calm > PATIENCE:
                    text = f"waits since {now - since:.0f} s, in {calm:.0f} s of which nothing was faulty"
                    self._tell(f"{driver}, {thread}: {what} {text}", key=f"{driver} {what}")

    def _look_at_instances(self) -> None:
        for name, watcher in list(self._watchers.all.items()):
            if watcher.doubles:
                self._tell(f"{name}: two instances ran at once: {watcher.doubles[:3]}", key=f"doubles {name}")

    def _states(self) -> dict[str, dict[str, Any]]:
        return {path.stem: json.loads(path.read_text()) for path in sorted(self._directory.glob("*.state"))}

    def _lines(self, pattern: str) -> list[str]:
        """Whole lines that are new since the last time."""
        found: list[str] = []
        for path in sorted(self._directory.glob(pattern)):
            with open(path, "rb") as file:
                data = os.pread(file.fileno(), 1 << 30, self._read.get(path, 0))
            whole = data[: data.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            found += whole.decode().splitlines()
        return found

    def _tell(self, text: str, key: str = "") -> None:
        if (key or text) not in self._told:
            self._told.add(key or text)
            self.violations.append(f"at {self._faults.seconds:.1f} s, fault {self._faults.position}: {text}")
            self._faults.note(f"VIOLATION {text}")

    def __enter__(self) -> Judge:
        self._nodes.__enter__()
        self._watchers.__enter__()
        self._thread.start()
        self._clock.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(30)
        self._clock.join(30)
        self._nodes.__exit__(kind, error, trace)
        self._watchers.__exit__(kind, error, trace)
        if self._watchers.failure is not None:
            self._tell(f"the watchers failed: {self._watchers.failure!r}")
        self._look_at_instances()
