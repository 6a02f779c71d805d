"""`noded drain`, `noded why`, and what `noded status` and `noded start` say of a cluster of several nodes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from harness.cluster import REPOSITORY, noded_command
from harness.processes import all_processes, mentioning
from harness.wait import wait_for

import noded

SMALL = ("--num-cpus", "1", "--object-store-memory", "80MB", "--port", "0")


class Places(dict[str, str]):
    def run(self, *arguments: str, timeout: float = 40) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*noded_command(), *arguments],
            env={**os.environ, **self},
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def output(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def reports(self) -> dict[str, Any]:
        return {report["node"]: report for report in json.loads(self.run("status", "--json").stdout)}


@pytest.fixture
def places(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Places]:
    """Directories of this test alone, with a head and a member, both in the background."""
    base = tmp_path_factory.mktemp("n")
    env = Places({"NODED_HOME": f"{base}/home", "NODED_RUN_DIR": f"{base}/run", "COLUMNS": "200"})
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    yield env
    noded.shutdown()
    env.run("stop", "--cluster", "many", "--force")
    assert not mentioning(all_processes().values(), [env["NODED_RUN_DIR"]])


def start(places: Places) -> tuple[str, str]:
    """A head and a member of the cluster `many`: what `noded start` said."""
    head = places.output("start", "--head", "--cluster", "many", *SMALL)
    address = head.partition("NODED_ADDRESS=")[2].split()[0]
    member = places.output("start", "--address", address, "--cluster", "many", "--node-name", "n1", *SMALL)
    return head, member


def facts(text: str) -> Mapping[str, str]:
    return dict(line.split(maxsplit=1) for line in text.splitlines())


def test_start_and_status_of_a_member(places: Places) -> None:
    head, member = start(places)
    address = head.partition("NODED_ADDRESS=")[2].split()[0]
    assert "node n1 of cluster many runs at 127.0.0.1:" in member
    assert f"  head        {address}\n" in member and "\n  head " not in head
    assert "noded stop --cluster many  (and with it all nodes of this cluster on this machine)" in member

    shown = places.output("status")
    assert f"head          {address}, connected" in shown
    assert shown.count("cluster many") == 1, "the nodes of a cluster are shown once"
    rows = [line.split() for line in shown.partition("cluster many")[2].splitlines()]
    assert [row[0] for row in rows if "ALIVE" in row] == ["head", "n1"]

    reports = places.reports()
    assert [node["name"] for node in reports["n1"]["cluster_nodes"]] == ["head", "n1"]
    assert reports["n1"]["cluster_error"] is None
    assert reports["n1"]["status"]["head_link"]["connected"] is True

    pid = reports["head"]["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "SIGKILL has no effect")
    wait_for(lambda: not places.reports()["n1"]["status"]["head_link"]["connected"], "the member does not notice")
    away = places.run("status")
    assert away.returncode == 0
    assert f"head          {address}, not connected: " in away.stdout
    assert "its head does not answer: " in away.stdout
    assert "its daemon has ended" in away.stdout


def test_drain_and_undo(places: Places) -> None:
    start(places)
    where = noded.remote(lambda: noded.get_runtime_context().get_node_id())
    noded.init("many")
    told = places.output("drain", "n1", "--cluster", "many")
    assert "gets no new work" in told and "undo: noded drain --undo n1 --cluster many\n" in told
    assert [n["state"] for n in places.reports()["head"]["cluster_nodes"]] == ["ALIVE", "DRAINING"]
    here = noded.get_runtime_context().get_node_id()
    assert set(noded.get([where.options(scheduling_strategy="SPREAD").remote() for _ in range(4)], timeout=30)) == {
        here
    }
    id_ = places.reports()["n1"]["status"]["node_id"]
    assert places.output("drain", "--undo", id_[:8], "--cluster", "many") == (
        f"node n1 ({id_}) of cluster many takes new work again\n"
    )

    def both() -> bool:
        refs = [where.options(scheduling_strategy="SPREAD").remote() for _ in range(4)]
        return set(noded.get(refs, timeout=30)) == {here, id_}

    wait_for(both, "the node gets no work")
    unknown = places.run("drain", "nobody", "--cluster", "many")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr.startswith("Error: there is no node 'nobody' in this cluster: give its id, its name")
    nowhere = places.run("drain", "n1")
    assert nowhere.returncode == 1
    assert nowhere.stderr == "Error: no node of cluster default runs here; others run: many (--cluster NAME)\n"


def test_why(places: Places) -> None:
    start(places)
    noded.init("many")

    @noded.remote(num_cpus=8)
    class Big:
        pass

    actor = Big.remote()
    id_ = actor._actor_id.hex()
    answer, *rest = places.output("why", id_, "--cluster", "many").splitlines()
    assert answer.startswith("never: no node can ever satisfy it (CPU: asks 8")
    assert "  class_name  Big" in rest
    assert "CPU: asks 8" in json.loads(places.output("why", id_, "--cluster", "many", "--json"))["reason"]

    held = noded.put("x" * 10)
    assert places.output("why", held.hex(), "--cluster", "many").splitlines()
    for word in ("x", "12", id_ + "00", "zz" * 16):
        wrong = places.run("why", word, "--cluster", "many")
        assert (wrong.returncode, wrong.stdout) == (1, "")
        assert wrong.stderr.startswith(f"Error: {word!r} is no id: give the 32 hexadecimal digits")
