"""Looks from outside, all the time, whether two instances of an actor run at once, and when each was stopped.

    instances = tmp_path / "instances"      # each instance adds the line that ANNOUNCE writes, before all else
    with Watcher(instances) as watcher: ...
    assert not watcher.doubles

It reads /proc alone, so it sees what the kernel sees, whatever the system under test believes. Processes of all
hosts of a Lan are seen, as these have networks of their own and nothing else. Times are CLOCK_MONOTONIC.
"""

from __future__ import annotations

import inspect
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

_PERIOD = 0.02
_IDLE_PERIOD = 1.0
"""For those of several of whom nothing runs: two cannot run at once before one does."""


def announce(path: str) -> None:
    """Say that an instance runs: its first deed, in its own process."""
    started = open("/proc/self/stat").read().rpartition(") ")[2].split()[19]
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{os.getpid()} {started}\n".encode())
    os.close(fd)


ANNOUNCE = inspect.getsource(announce)
"""For the source of a driver; the actor calls it with the path."""


@dataclass(eq=False)
class Instance:
    pid: int
    started: int
    state: str = "?"
    """What it was at the last look: R, S, D, T, or "" when it had ended."""
    changes: list[tuple[float, str]] = field(default_factory=list)
    """When it began to run ("R"), was stopped ("T"), had ended ("")."""

    def look(self) -> str:
        """Its state now."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2].split()
        except OSError:
            return ""
        return "" if int(fields[19]) != self.started or fields[0] in "ZX" else fields[0]

    def since(self, state: str, after: float = 0.0) -> float | None:
        """When it came into that state, the first time after that moment."""
        return next((at for at, now in self.changes if now == state and at >= after), None)

    def __str__(self) -> str:
        return f"pid {self.pid}: " + ", ".join(f"{state or 'ended'} at {at:.2f}" for at, state in self.changes)


class Watcher:
    """`doubles` says which instances ran at once, `longest_gap` for how long it could not look itself."""

    def __init__(self, instances: Path) -> None:
        self.instances: list[Instance] = []
        self.doubles: list[str] = []
        self.looks = 0
        self.longest_gap = 0.0
        self._path = instances
        self._read = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self.failure: BaseException | None = None

    @property
    def idle(self) -> bool:
        """None of its instances runs, as far as is known."""
        return not any(each.state for each in self.instances)

    @property
    def running(self) -> list[Instance]:
        return [each for each in self.instances if each.state not in ("", "T", "t")]

    def check(self) -> None:
        """It has looked all the time, and has never seen two."""
        if self.failure is not None:
            raise self.failure
        assert not self.doubles, f"two instances ran at once: {self.doubles[:5]}; all: {list(map(str, self.instances))}"
        # Longer than a busy machine makes it wait, shorter than an instance that is stopped too late would run.
        assert self.looks and self.longest_gap < 10, f"the watcher did not look for {self.longest_gap:.1f} s"

    def _watch(self) -> None:
        last = time.monotonic()
        try:
            while not self._stop.wait(_PERIOD):
                self.look()
                now = time.monotonic()
                self.longest_gap = max(self.longest_gap, now - last)
                self.looks += 1
                last = now
        except BaseException as failure:
            self.failure = failure

    def look(self) -> None:
        self._learn()
        now = time.monotonic()
        for each in self.instances:
            if each.state:
                self._note(each, each.look(), now)
        # Each look is at another moment: two ran at once when one did before and after the other did.
        running = self.running
        for number, one in enumerate(running):
            for other in running[number + 1 :]:
                if _runs(one) and _runs(other) and _runs(one):
                    self.doubles.append(f"{one.pid} and {other.pid} at {now:.2f}")

    @staticmethod
    def _note(each: Instance, state: str, now: float) -> None:
        def kind(state: str) -> str:
            return state if state in ("", "?") else "T" if state in "Tt" else "R"

        if kind(state) != kind(each.state):
            each.changes.append((now, kind(state)))
        each.state = state

    def _learn(self) -> None:
        try:
            fd = os.open(self._path, os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            text = os.pread(fd, 1 << 16, self._read)
        finally:
            os.close(fd)
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            pid, started = map(int, line.split())
            self.instances.append(Instance(pid, started))

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(10)
        if error is None:
            self.check()


class Watchers:
    """One thread for the instances of many actors: a file for each in this directory."""

    def __init__(self, directory: Path) -> None:
        self.all: dict[str, Watcher] = {}
        self.failure: BaseException | None = None
        self._directory = directory
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchers", daemon=True)

    def _watch(self) -> None:
        all_at = 0.0
        try:
            while not self._stop.wait(_PERIOD):
                now = time.monotonic()
                every = now - all_at >= _IDLE_PERIOD
                if every:
                    all_at = now
                    for path in self._directory.iterdir():
                        if path.name not in self.all:
                            self.all[path.name] = Watcher(path)
                for watcher in list(self.all.values()):
                    if every or not watcher.idle:
                        watcher.look()
        except BaseException as failure:
            self.failure = failure

    def __enter__(self) -> Watchers:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(30)


def _runs(instance: Instance) -> bool:
    return instance.look() not in ("", "T", "t")
