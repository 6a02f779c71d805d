"""The units of systemd/, run by a service manager: systemd's own checker reads them, the rest is done by
harness/manager.py.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.cluster import REPOSITORY
from harness.drivers import Driver
from harness.manager import Manager
from harness.processes import all_processes, descendants, mentioning
from harness.wait import wait_for

pytestmark = pytest.mark.slow

UNITS = [REPOSITORY / "systemd" / name for name in ("noded-workers.service", "noded.service")]
DAEMON, WORKERS = "noded.service", "noded-workers.service"
Machine = Callable[..., Manager]

SOURCE = """
@noded.remote
class Counter:
    def __init__(self): self.count = 0
    def add(self):
        self.count += 1
        return self.count, os.getpid(), os.environ.get("NOTIFY_SOCKET", "-")

@noded.remote
def pid(): return os.getpid()

counter = Counter.remote()
kept = noded.put(b"x" * 300_000)
say("actor", *noded.get(counter.add.remote(), timeout=30))
while word := hear():
    if word == "add":
        say("actor", *noded.get(counter.add.remote(), timeout=30))
    else:
        say("task", noded.get(pid.remote(), timeout=30), len(noded.get(kept)))
"""


@pytest.fixture
def machine(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """`machine(settings of noded.service)`: a manager with both units; afterwards nothing of them may be left."""
    base = tmp_path_factory.mktemp("m")
    managers: list[Manager] = []

    def make(env: dict[str, str] | None = None, **overrides: str) -> Manager:
        given = {"DAEMON": f"{Path(sys.executable).with_name('noded')}", "DAEMON_ARGS": "--head --num-cpus 2"}
        lines = {**given, "NODED_PORT": "0", "PYTHONPATH": str(REPOSITORY), **(env or {})}
        (base / "noded.env").write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
        replace = {
            "/usr/bin/python3": sys.executable,
            "/run/noded": f"{base}/run/noded",
            "/var/lib/noded": f"{base}/home",
            "/etc/noded/noded.env": f"{base}/noded.env",
        }
        managers.append(Manager(base, UNITS, replace, {DAEMON: overrides}))
        return managers[0]

    yield make
    for manager in managers:
        with manager:
            pass
        wait_for(lambda: not mentioning(all_processes().values(), [str(base)]), f"left over: {manager.journal()}")


def program(manager: Manager) -> Driver:
    return Driver(
        "default", SOURCE, env={"NODED_RUN_DIR": f"{manager.base}/run/noded", "NODED_HOME": f"{manager.base}/home"}
    )


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_no_fault_with_the_units() -> None:
    done = subprocess.run(["systemd-analyze", "verify", *map(str, UNITS)], capture_output=True, text=True)
    # It also looks for the programs of ExecStart=, which are where the units' user installs them.
    faults = [line for line in done.stderr.splitlines() if "noded" in line and "is not executable" not in line]
    assert not faults, done.stderr


def test_restarts_keep_workers_and_actors_and_stop_ends_all(machine: Machine) -> None:
    manager = machine()
    daemon, workers = manager.start(DAEMON), manager.units[WORKERS]
    assert daemon.status.startswith("head of cluster default at 127.0.0.1:")
    spawner = workers.pid
    with program(manager) as driver:
        count, pid, told = driver.expect("actor").split()
        assert told == "-", "workers get the service manager's socket"
        assert int(pid) in {each.pid for each in descendants(all_processes(), spawner)}
        for number, how in enumerate((lambda: manager.restart(DAEMON), lambda: daemon.kill(signal.SIGKILL)), start=1):
            before = daemon.pid
            how()
            wait_for(lambda: daemon.pid != before and daemon.state == "active", manager.journal, 20)  # noqa: B023
            driver.tell("add")
            assert driver.expect("actor").split()[:2] == [str(int(count) + number), pid]
            driver.tell("task")
            assert driver.expect("task").endswith(" 300000")
        assert daemon.ends == [0, -signal.SIGKILL], "SIGTERM of the manager ends the daemon alone, in order"
        assert (workers.pid, workers.starts) == (spawner, 1)
    manager.stop(DAEMON)
    assert (daemon.state, workers.state) == ("inactive", "inactive")
    assert (daemon.ends[-1], workers.ends) == (0, [0])
    assert not mentioning(all_processes().values(), [str(manager.base)])
    assert not (manager.base / "run" / "noded").exists()


def test_the_watchdog_restarts_a_daemon_that_stands_still(machine: Machine) -> None:
    manager = machine(WatchdogSec="3s")
    daemon, workers = manager.start(DAEMON), manager.units[WORKERS]
    with program(manager) as driver:
        _, pid, _ = driver.expect("actor").split()
        wait_for(lambda: daemon.pings >= 5, "it gives no sign of life", 10)
        assert daemon.exceeded == 0
        before = daemon.pid
        daemon.kill(signal.SIGSTOP)
        wait_for(lambda: daemon.pid != before and daemon.state == "active", manager.journal, 20)
        assert (daemon.exceeded, daemon.ends, workers.starts) == (1, [-signal.SIGABRT], 1)
        driver.tell("add")
        assert driver.expect("actor").split()[:2] == ["2", pid]


def test_a_crash_of_the_spawner_costs_the_workers_but_not_the_daemon(machine: Machine) -> None:
    manager = machine()
    daemon, workers = manager.start(DAEMON), manager.units[WORKERS]
    before = (daemon.pid, daemon.starts)
    with program(manager) as driver:
        _, pid, _ = driver.expect("actor").split()
        spawner = workers.pid
        workers.kill(signal.SIGKILL)
        wait_for(lambda: workers.pid != spawner and workers.state == "active", manager.journal, 20)
        wait_for(lambda: not os.path.exists(f"/proc/{pid}"), "its worker outlives the spawner")
        driver.tell("task")
        worker, size = driver.expect("task").split()
        assert size == "300000", "what the program has stored is lost"
        assert int(worker) in {each.pid for each in descendants(all_processes(), workers.pid)}
    assert (daemon.pid, daemon.starts) == before
    assert not [each for each in descendants(all_processes(), daemon.pid) if "spawner" in each.command]


def test_a_superseded_head_is_not_started_again_and_needs_no_workers(machine: Machine, tmp_path: Path) -> None:
    script = tmp_path / "superseded"
    script.write_text("#!/bin/sh\nexit 3\n")
    script.chmod(0o755)
    manager = machine({"DAEMON": str(script)})
    daemon, workers = manager.units[DAEMON], manager.units[WORKERS]
    with pytest.raises(AssertionError, match=r"noded.service is failed"):
        manager.start(DAEMON, timeout=3)
    wait_for(lambda: workers.state == "inactive", "nobody needs it")
    assert (daemon.ends, daemon.starts) == ([3], 1)
