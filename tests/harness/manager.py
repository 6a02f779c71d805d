"""A service manager for tests: it reads systemd's unit files and does what of them matters for noded.

Type=notify with READY, STATUS and the watchdog; Restart=, RestartSec=, RestartPreventExitStatus=; Wants=, Requires=
and StopWhenUnneeded=; TimeoutStartSec=, TimeoutStopSec=; Environment=, EnvironmentFile=, RuntimeDirectory=. User= and
limits are ignored. It has no control groups: what a unit has is what descends from its main process when it is
stopped. Paths of the machine in the files are replaced by ones below `base`, by `replace`.
"""

from __future__ import annotations

import os
import re
import secrets
import select
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from harness.processes import Process, all_processes, descendants, kill
from harness.wait import wait_for

FACTORS = {"ms": 0.001, "s": 1.0, "": 1.0, "min": 60.0}


def seconds(text: str) -> float:
    found = re.fullmatch(r"([0-9.]+)(ms|s|min|)", text)
    assert found, f"no time: {text!r}"
    return float(found[1]) * FACTORS[found[2]]


class Settings:
    """The lines of a unit file; `overrides` as `systemctl edit` would add them."""

    def __init__(self, text: str, overrides: Mapping[str, str]) -> None:
        self._lines: dict[str, list[str]] = {}
        for line in text.splitlines():
            name, found, value = line.partition("=")
            if found and not line.startswith("#"):
                self._lines.setdefault(name, []).append(value)
        self._lines.update({name: [value] for name, value in overrides.items()})

    def all(self, name: str) -> list[str]:
        return " ".join(self._lines.get(name, [])).split()

    def one(self, name: str, default: str = "") -> str:
        return self._lines.get(name, [default])[-1]

    def lines(self, name: str) -> list[str]:
        return self._lines.get(name, [])


class Unit:
    """One service, looked after by a thread."""

    def __init__(self, manager: Manager, name: str, settings: Settings) -> None:
        self.name = name
        self.settings = settings
        self.state = "inactive"
        self.pid = 0
        self.status = ""
        self.starts = 0
        self.pings = 0
        self.ends: list[int] = []
        """How its main process has ended, each time: as subprocess says it."""
        self.exceeded = 0
        """So often it was too late for the watchdog."""
        self._manager = manager
        self._stopping = False
        self._wake, self._wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._thread: threading.Thread | None = None
        self._notify_path = str(manager.base / f"{name}.notify")
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._notify.bind(self._notify_path)
        watchdog = settings.one("WatchdogSec")
        self._watchdog = seconds(watchdog) if watchdog else 0.0

    def start(self) -> None:
        assert self._thread is None, f"{self.name} runs"
        self._stopping = False
        self.state = "starting"
        self._thread = threading.Thread(target=self._look_after, name=self.name)
        self._thread.start()

    def stop(self) -> None:
        """Returns when it is inactive."""
        self._stopping = True
        os.write(self._wakes, b"1")
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        while select.select([self._wake], [], [], 0)[0]:
            os.read(self._wake, 100)

    def close(self) -> None:
        self._notify.close()
        os.close(self._wake)
        os.close(self._wakes)

    def kill(self, number: int) -> None:
        """To the main process, as `systemctl kill --kill-whom=main`."""
        os.kill(self.pid, number)

    # ------------------------------------------------------------ its thread

    def _look_after(self) -> None:
        while True:
            code = self._run_once()
            self.ends.append(code)
            final = self.settings.one("RestartPreventExitStatus").split()
            if self._stopping or self.settings.one("Restart") != "always":
                self.state = "inactive"
            elif str(code) in final:
                self.state = "failed"
            else:
                self.state = "auto-restart"
                select.select([self._wake], [], [], seconds(self.settings.one("RestartSec", "100ms")))
                if not self._stopping:
                    continue
                self.state = "inactive"
            self._remove_directories()
            self._manager.unit_ended(self)
            return

    def _run_once(self) -> int:
        self.state = "starting"
        self._make_directories()
        process = subprocess.Popen(
            # No core files when the watchdog strikes.
            ["prlimit", "--core=0", "--", *self._command(env := self._environment())],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=self._manager.log,
            stderr=self._manager.log,
            cwd="/",
            start_new_session=True,
        )
        self.pid = process.pid
        self.starts += 1
        pidfd = os.pidfd_open(process.pid)
        try:
            self._attend(process, pidfd)
        finally:
            os.close(pidfd)
        return process.wait()

    def _attend(self, process: subprocess.Popen[bytes], pidfd: int) -> None:
        """Until it has ended."""
        late = time.monotonic() + seconds(self.settings.one("TimeoutStartSec", "90s"))
        left: list[Process] = []
        asked = False
        while True:
            files = [pidfd, self._notify] + ([] if asked else [self._wake])
            ready = select.select(files, [], [], max(0.0, late - time.monotonic()))[0]
            if pidfd in ready:
                kill(each for each in left if each.identity in {p.identity for p in all_processes().values()})
                return
            if self._notify in ready and self._hear() and not asked:
                late = time.monotonic() + (self._watchdog or 1e6)
            if self._stopping and not asked:
                asked = True
                self.state = "stopping"
                left = descendants(all_processes(), process.pid)
                late = time.monotonic() + seconds(self.settings.one("TimeoutStopSec", "90s"))
                process.terminate()
                process.send_signal(signal.SIGCONT)
            elif time.monotonic() > late:
                if self.state == "active":
                    self.exceeded += 1
                    late = time.monotonic() + seconds(self.settings.one("TimeoutStopSec", "90s"))
                    self.state = "aborting"
                    process.send_signal(signal.SIGABRT)
                    process.send_signal(signal.SIGCONT)
                else:
                    process.kill()
                    late = time.monotonic() + 1e6

    def _hear(self) -> bool:
        """Whether it was a sign of life."""
        alive = False
        while select.select([self._notify], [], [], 0)[0]:
            for line in self._notify.recv(4096).decode().splitlines():
                if line == "READY=1":
                    self.state, alive = "active", True
                elif line == "WATCHDOG=1":
                    self.pings, alive = self.pings + 1, True
                elif line.startswith("STATUS="):
                    self.status = line.removeprefix("STATUS=")
        return alive

    # ------------------------------------------------------------ what it is started with

    def _environment(self) -> dict[str, str]:
        env = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        env |= {"NOTIFY_SOCKET": self._notify_path, "INVOCATION_ID": secrets.token_hex(16)}
        for line in self.settings.lines("Environment"):
            env.update(word.split("=", 1) for word in shlex.split(line))  # type: ignore[misc]
        for path in self.settings.all("EnvironmentFile"):
            file = Path(path.removeprefix("-"))
            assert file.exists() or path.startswith("-"), f"{file} is missing"
            if file.exists():
                env.update(line.split("=", 1) for line in file.read_text().splitlines())  # type: ignore[misc]
        if self._watchdog:
            env["WATCHDOG_USEC"] = str(int(self._watchdog * 1e6))
        return env

    def _command(self, env: Mapping[str, str]) -> list[str]:
        words = []
        for word in shlex.split(self.settings.one("ExecStart")):
            if re.fullmatch(r"\$\w+", word):  # a whole word is split, what is in braces is not
                words += env[word[1:]].split()
            else:
                words.append(re.sub(r"\$\{(\w+)\}", lambda m: env[m[1]], word).replace("%%", "%"))
        return words

    def _directories(self) -> list[Path]:
        return [self._manager.base / "run" / name for name in self.settings.all("RuntimeDirectory")]

    def _make_directories(self) -> None:
        for path in self._directories():
            path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _remove_directories(self) -> None:
        for path in self._directories():
            shutil.rmtree(path, ignore_errors=True)


class Manager:
    """`with Manager(base, units, replace) as manager: manager.start("noded.service")`"""

    def __init__(
        self,
        base: Path,
        files: list[Path],
        replace: Mapping[str, str],
        overrides: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.base = base
        self.log = open(base / "journal", "ab")
        self.units: dict[str, Unit] = {}
        for file in files:
            text = file.read_text()
            for old, new in replace.items():
                text = text.replace(old, new)
            self.units[file.name] = Unit(self, file.name, Settings(text, (overrides or {}).get(file.name, {})))

    def start(self, name: str, timeout: float = 30) -> Unit:
        """Returns when it is active, after those that it wants."""
        unit = self.units[name]
        for wanted in self._wants(unit):
            if wanted.state == "inactive":
                self.start(wanted.name)
        unit.start()
        wait_for(lambda: unit.state == "active", lambda: f"{name} is {unit.state}:\n{self.journal()}", timeout)
        return unit

    def restart(self, name: str) -> None:
        """What it wants stays, as it is wanted all the time."""
        self.units[name].stop()
        self.start(name)

    def stop(self, name: str) -> None:
        """And then those that nobody needs any more."""
        self.units[name].stop()
        self._stop_unneeded()

    def unit_ended(self, unit: Unit) -> None:
        """From its thread: one that has failed for good is not needed by anybody's wish any more."""
        if unit.state == "failed":
            self._stop_unneeded()

    def _stop_unneeded(self) -> None:
        needed = {each.name for unit in self.units.values() if self._up(unit) for each in self._wants(unit)}
        for unit in self.units.values():
            if unit.settings.one("StopWhenUnneeded") == "yes" and unit.name not in needed and self._up(unit):
                unit.stop()

    def _up(self, unit: Unit) -> bool:
        return unit.state not in ("inactive", "failed")

    def _wants(self, unit: Unit) -> list[Unit]:
        names = unit.settings.all("Wants") + unit.settings.all("Requires")
        return [self.units[name] for name in names if name in self.units]

    def journal(self) -> str:
        return (self.base / "journal").read_text(errors="replace")[-6000:]

    def __enter__(self) -> Manager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for unit in reversed(self.units.values()):
            unit.stop()
        for unit in self.units.values():
            unit.close()
        self.log.close()
