"""Starting and stopping a node by hand: what is said, what is left, and what a service manager relies on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from harness.cluster import REPOSITORY, Node, noded_command
from harness.processes import Process, all_processes, mentioning
from harness.wait import wait_for

Places = Mapping[str, str]


@pytest.fixture
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    """Directories of this test alone, so that all that is in them is its doing."""
    base = tmp_path_factory.mktemp("n")
    env = {"NODED_HOME": f"{base}/home", "NODED_RUN_DIR": f"{base}/run", "NODED_PORT": "0", "NODED_NUM_CPUS": "1"}
    yield env
    run(env, "stop", "--force")


def run(env: Places, *arguments: str, timeout: float = 40) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*noded_command(), *arguments],
        env={**os.environ, **env},
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def processes(env: Places) -> list[Process]:
    return mentioning(all_processes().values(), [env["NODED_RUN_DIR"]])


def files(directory: str) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in Path(directory).rglob("*") if not path.is_dir())


def test_start_status_stop_leave_the_token_and_the_log(places: Places) -> None:
    started = run(places, "start", "--head")
    assert started.returncode == 0, started.stderr
    address = started.stdout.partition("NODED_ADDRESS=")[2].split()[0]
    assert f"runs at {address}" in started.stdout
    shown = run(places, "status")
    assert (shown.returncode, address in shown.stdout, "READY" in shown.stdout) == (0, True, True)
    again = run(places, "start", "--head")
    assert again.returncode == 1
    assert "runs already (pid " in again.stderr and "noded stop" in again.stderr
    stopped = run(places, "stop")
    assert (stopped.returncode, stopped.stdout) == (0, "stopped node head of cluster default\n")
    assert not processes(places)
    assert not Path(places["NODED_RUN_DIR"]).exists()
    left = files(places["NODED_HOME"])
    history = [name for name in left if name.startswith("clusters/default/logs/run-")]
    assert [name for name in history if not name.endswith((".page", "/totals.json"))] == []
    assert [name for name in left if name not in history] == [
        "clusters/default/head.db",
        "clusters/default/logs/daemon-head.log",
        "clusters/default/logs/daemon.log",
        "clusters/default/logs/events-000001.jsonl",
        "clusters/default/runtime_envs/boot",
        "token",
    ]
    modes = {path.stat().st_mode & 0o077 for path in Path(places["NODED_HOME"]).rglob("*")}
    assert modes == {0}, "others can read what is below NODED_HOME"


def test_nothing_runs(places: Places) -> None:
    shown, listed, stopped = run(places, "status"), run(places, "status", "--json"), run(places, "stop")
    assert (shown.returncode, shown.stdout) == (1, "no node runs here; start one with: noded start --head\n")
    assert (listed.returncode, listed.stdout) == (1, "[]\n")
    assert (stopped.returncode, stopped.stdout) == (0, "nothing of cluster default runs here\n")
    assert not Path(places["NODED_HOME"]).exists()


@pytest.mark.parametrize("how", [["--head"], ["start", "--head"]], ids=["foreground", "background"])
def test_a_start_that_fails_says_why_and_leaves_no_process(places: Places, how: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(places, *how, "--port", str(port))
    assert done.returncode == 1
    assert f"port {port} of 127.0.0.1 is in use by pid {os.getpid()}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not processes(places)
    assert not Path(places["NODED_RUN_DIR"]).exists()


def test_a_token_that_others_can_read_is_refused_in_one_line(places: Places) -> None:
    token = Path(places["NODED_HOME"], "token")
    token.parent.mkdir(mode=0o700)
    token.write_text("0123456789abcdef\n")
    token.chmod(0o644)
    done = run(places, "--head")
    assert done.returncode == 1
    assert done.stderr == f"noded: the token file {token} is open to other users: run `chmod 600 {token}`\n"


def test_stop_ends_a_stopped_daemon_and_a_node_without_one(places: Places) -> None:
    for how in (signal.SIGSTOP, signal.SIGKILL):
        assert run(places, "start", "--head").returncode == 0
        node = Path(places["NODED_RUN_DIR"], "default", "head", "node.json").read_text()
        pid = int(node.partition('"pid": ')[2].split(",")[0])
        os.kill(pid, how)
        wait_for(lambda pid=pid: not Path(f"/proc/{pid}").exists() or _state(pid) in "TZ", "the signal has no effect")
        shown = run(places, "status")
        assert shown.returncode == 1
        assert ("kill -CONT" if how == signal.SIGSTOP else "its daemon has ended") in shown.stdout
        assert run(places, "stop").stdout == "stopped node head of cluster default\n"
        assert not processes(places)
        assert not Path(places["NODED_RUN_DIR"]).exists()


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_a_daemon_that_started_its_spawner_stops_everything(number: int) -> None:
    with Node(num_cpus=1) as node:
        node.signal(number)
        wait_for(lambda: not node.processes(), "the signal does not end the node")
        assert not os.path.exists(node.dir)
