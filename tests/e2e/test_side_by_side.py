"""Several clusters and users on one host: each node listens on one port, and none is touched by the end of another."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from harness.cluster import REPOSITORY
from harness.drivers import Driver
from harness.members import Member, Members
from harness.processes import all_processes, descendants
from harness.wait import wait_for

pytestmark = pytest.mark.slow

NOBODY = 65534
PROGRAM = """
import sys, noded
noded.init(sys.argv[1] if len(sys.argv) > 1 else os.environ["TEST_ADDRESS"], ignore_reinit_error=True)

@noded.remote(num_cpus=1)
class Worker:
    def node(self):
        return noded.get_runtime_context().get_node_id()

workers = [Worker.remote() for _ in range(20)]
nodes = noded.get([worker.node.remote() for worker in workers], timeout=60)
print("up", len(nodes), len(set(nodes)), flush=True)
for line in sys.stdin:
    print("still", len(noded.get([worker.node.remote() for worker in workers], timeout=60)), flush=True)
"""


AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]


class OfNobody(Member):
    """Run by another user, with directories, and perhaps a Python, of that user's."""

    def _in_place(self, command: list[str]) -> list[str]:
        return [*AS_NOBODY, self.env["TEST_PYTHON"], *command[1:]]


def listening(pids: set[int]) -> dict[int, set[int]]:
    """Process -> the TCP ports that it listens on."""
    ports = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for words in map(str.split, Path(table).read_text().splitlines()):
            if words[3] == "0A":
                ports[f"socket:[{words[9]}]"] = int(words[1].rpartition(":")[2], 16)
    found: dict[int, set[int]] = {}
    for pid in pids:
        found[pid] = set()
        with suppress(OSError):  # it has ended
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):  # it is closed by now
                    if (link := os.readlink(f"/proc/{pid}/fd/{fd}")) in ports:
                        found[pid].add(ports[link])
    return found


def check_ports(member: Member) -> None:
    """One port a node. The spawner keeps that very socket over restarts of the daemon; workers have none."""
    port = int(member.address.rpartition(":")[2])
    pids = {int(entry) for entry in os.listdir("/proc") if entry.isdigit() and of_node(int(entry), member)}
    found = listening(pids)
    assert found[member.pid] == {port}
    assert set().union(*found.values()) == {port}
    spawner = {pid for pid in pids if b"noded/spawner" in Path(f"/proc/{pid}/cmdline").read_bytes()}
    assert len(spawner) == 1 and {pid for pid, ports in found.items() if ports} <= {member.pid, *spawner}
    assert len(pids) >= 3 + 8, "daemon, spawner, template and workers"


def of_node(pid: int, member: Member) -> bool:
    """Its daemon, or what was started for its directory."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return pid == member.pid or b"\0--dir\0" + os.fsencode(member.dir) + b"\0" in command


def of_user(user: int) -> set[str]:
    found = set()
    for entry in os.listdir("/proc"):
        with suppress(OSError):
            if entry.isdigit() and os.stat(f"/proc/{entry}").st_uid == user:
                found.add(entry)
    return found


@pytest.fixture
def nobodys() -> Iterator[dict[str, str]]:
    """The environment of the other user; the interpreter of the tests may be where others cannot reach it."""
    path = os.pathsep.join([str(REPOSITORY), sysconfig.get_paths()["purelib"]])
    again = "import noded, msgspec, subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', '']).returncode)"
    for python in (sys.executable, "/usr/bin/python3", f"/usr/bin/python3.{sys.version_info[1]}"):
        probe = [*AS_NOBODY, python, "-c", again]
        if (
            os.geteuid() == 0
            and not subprocess.run(probe, env={"PYTHONPATH": path}, cwd=REPOSITORY, capture_output=True).returncode
        ):
            break
    else:
        pytest.skip("this needs root, and a Python of the same version that other users may run")
    base = tempfile.mkdtemp(prefix="nd-nobody-", dir="/tmp")
    os.chown(base, NOBODY, NOBODY)
    places = {"NODED_RUN_DIR": f"{base}/run", "NODED_HOME": f"{base}/home", "HOME": base}
    yield {**places, "PYTHONPATH": path, "TEST_PYTHON": python}
    shutil.rmtree(base)


def test_three_clusters_of_two_users(nobodys: dict[str, str]) -> None:
    small = ("--object-store-memory", "64MB", "--num-cpus", "10")
    with Members(*small) as one, Members(*small) as two:
        head = OfNobody(*small, head=True, cluster="third", env=nobodys).start()
        assert "address" in head.ready, head.ready
        member = OfNobody(*small, address=head.address, name="n1", cluster="third", env=nobodys)
        try:
            member.start()
            for cluster in (one, two):
                cluster.add()
            programs = [Driver(cluster.head.cluster, PROGRAM) for cluster in (one, two)]
            argv = [*AS_NOBODY, nobodys["TEST_PYTHON"]]
            third = subprocess.Popen(
                [*argv, "-c", f"import os\n{PROGRAM}", "third"],
                env={**os.environ, **nobodys},
                cwd=REPOSITORY,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert third.stdin is not None and third.stdout is not None
            with programs[0] as first, programs[1] as second:
                for driver in (first, second):
                    assert driver.expect("up", timeout=60).split() == ["20", "2"]
                assert third.stdout.readline().split() == ["up", "20", "2"]
                for node in (*one.all.values(), *two.all.values(), head, member):
                    check_ports(node)

                first.tell("end")
                first.expect("still")
                one.head.stop_by_command()
                assert not one.processes()
                second.tell("go on")
                assert second.expect("still") == "20"
                third.stdin.write("go on\n")
                third.stdin.flush()
                assert third.stdout.readline().split() == ["still", "20"]
                third.stdin.close()
                assert third.wait(30) == 0
                third.stdout.close()
        finally:
            for node in (member, head):
                node.signal(signal.SIGTERM)
                assert node._process is not None
                node._process.wait(20)
                node._close_output()
            wait_for(lambda: not of_user(NOBODY), "no process of the other user is left")


def test_no_secret_is_on_a_command_line_or_in_a_log() -> None:
    with Members("--object-store-memory", "64MB", "--log-level", "debug") as cluster:
        cluster.add()
        token = (Path(os.environ["NODED_HOME"]) / "token").read_text().strip()
        with Driver(cluster.head.cluster, "print('up', flush=True)\ninput()") as driver:
            driver.expect("up")
            everything = all_processes()
            for process in [*cluster.processes(), *descendants(everything, os.getpid())]:
                assert token not in process.command
                with suppress(FileNotFoundError):  # it has ended
                    environment = Path(f"/proc/{process.pid}/environ").read_bytes()
                    assert token.encode() not in environment, process
            driver.tell("")
        for path in (Path(os.environ["NODED_HOME"]) / "clusters").rglob("*.log"):
            assert token not in path.read_text(errors="replace")
        for member in cluster.all.values():
            assert token not in member.output()


def test_who_must_not_join_is_told_why() -> None:
    with Members("--object-store-memory", "64MB") as cluster:
        other = Member(address=cluster.address, name="n9", cluster="another")
        said = other.start().ready["error"]
        assert "this is the head of the cluster" in said and "start the node with --cluster" in said
        other.forget()
        wrong = tempfile.mkdtemp(prefix="nd-wrong-", dir="/tmp")
        token = Path(wrong) / "token"
        token.write_text("0" * 64)
        token.chmod(0o600)
        stranger = Member(
            address=cluster.address, name="n8", cluster=cluster.head.cluster, env={"NODED_TOKEN_FILE": str(token)}
        )
        said = stranger.start().ready["error"]
        assert "does not let this node in" in said and "does not have our cluster token" in said
        stranger.forget()
        shutil.rmtree(wrong)
        wait_for(lambda: len(cluster.processes()) > 0, "the head is untouched")
        assert cluster.head.status()["nodes"] == 1
