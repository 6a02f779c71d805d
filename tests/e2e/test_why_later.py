"""`why` for who asks later, or while the head is away: on nodes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from harness.cluster import Node, noded_command
from harness.drivers import Driver
from harness.ends import Worker, end, fails, get, hang, pid_of
from harness.gates import Notes
from harness.members import Members
from harness.wait import wait_for

import noded
from noded import ids
from noded.exceptions import WorkerCrashedError
from noded.policy import deaths, reasons
from noded.util.placement_group import placement_group
from noded.util.state import explain


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "notes")


def becomes(thing: Any, *kinds: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def right() -> bool:
        nonlocal found
        found = explain(thing)
        return found["kind"] in kinds

    wait_for(right, lambda: f"not {kinds}: {found}", 15)
    return found


def ends(thing: Any) -> dict[str, Any]:
    wait_for(lambda: explain(thing)["state"] in ("dead", "failed"), lambda: f"{explain(thing)}")
    return explain(thing)


LEAVES = """
@noded.remote(max_retries=0)
def wait(path):
    open(path, "w").close()
    time.sleep(1000)
@noded.remote(num_cpus=0)
class Here:
    def here(self):
        return noded.get_runtime_context().get_actor_id()
actor = Here.remote()
ref = wait.remote(sys.argv[1])
say("made", ref.hex(), noded.get_runtime_context().get_job_id(), noded.get(actor.here.remote()))
hear()
"""


def test_the_dead_are_known_after_their_driver_and_their_daemon(tmp_path: Path, notes: Notes) -> None:
    with Node(num_cpus=2) as node:
        with Driver(node.address, LEAVES, str(tmp_path / "runs")) as driver:
            ref, job, actor = driver.expect("made").split()
            wait_for((tmp_path / "runs").exists, "the task does not run")
            with noded.init(node.address, log_to_driver=False):
                mine = hang.remote(notes)
                os.kill(pid_of(notes), signal.SIGSEGV)
                error = fails(WorkerCrashedError, mine)
                driver.kill()
                wait_for(lambda: explain(ref)["state"] == "failed", lambda: f"{explain(ref)}")
                assert explain(ref)["cause"] == deaths.JOB_ENDED or explain(ref)["cause"] == deaths.OWNER_ENDED
                assert explain(job)["state"] == "dead" and "has ended" in explain(job)["reason"]
                wid = explain(mine)["worker"]

                node.restart()

                for thing in (wid, ref, job, actor):
                    ends(thing)
                told = explain(actor)
                assert told["kind"] in (deaths.JOB_ENDED, deaths.OUT_OF_SCOPE) and told["actor"] == actor, told
                told = explain(ids.actor_id(ids.prefix_of(mine.binary()), 4711).hex())
                assert (told["kind"], told["state"]) == (reasons.ENDED, "ended"), told
                told = explain(ids.actor_id(ids.prefix_of(bytes.fromhex(ref)), 4711).hex())
                assert told["kind"] == reasons.ENDED and "the process that made it has ended" in told["reason"], told
                told = explain(wid)
                assert (told["cause"], told["signal"], told["pid"]) == (deaths.CRASH, "SIGSEGV", error.pid)
                assert told["running"][0]["task"] == mine.task_id().hex() and told["stderr_tail"]
                shown = subprocess.run(
                    [*noded_command(), "why", wid, "--cluster", node.cluster], capture_output=True, text=True
                )
                lines = shown.stdout.splitlines()
                assert lines[0].startswith("crash: it crashed by SIGSEGV") and "  signal  SIGSEGV" in lines
                assert any(line.startswith("  | Fatal Python error") for line in lines), shown


RETRIED = """
@noded.remote(max_retries=3)
def once_more(path):
    try:
        os.mkdir(path)
    except FileExistsError:
        return 1
    os._exit(3)
ref = once_more.remote(sys.argv[1])
noded.get(ref)
say("made", ref.hex())
hear()
"""


def test_a_task_that_was_tried_again_has_not_failed(tmp_path: Path) -> None:
    with Node(num_cpus=1) as node, noded.init(node.address, log_to_driver=False):
        with Driver(node.address, RETRIED, str(tmp_path / "runs")) as driver:
            ref = driver.expect("made")
            driver.kill()
        told = becomes(ref, reasons.DONE_OR_DROPPED)
        assert "has returned; the process that made it has ended" in told["reason"], told


def test_a_head_that_is_away() -> None:
    with Members(num_cpus=1) as cluster:
        member = cluster.add(name="node-with-name")  # as long as what a worker calls itself
        with noded.init(member.address, log_to_driver=False):
            actor = Worker.options(num_cpus=0).remote()
            get(actor.pid.remote())
            blocked = Worker.options(num_cpus=7).remote()
            waiting = blocked.pid.remote()
            busy = [end.options(num_cpus=1).remote(signal.pause) for _ in range(4)]
            becomes(busy[-1], reasons.RESOURCES_BUSY)
            cluster.head.kill9()
            told = becomes(busy[-1], reasons.RESOURCES_BUSY)
            assert "CPU" in told["reason"]
            began = time.monotonic()
            told = explain(blocked)
            assert told["kind"] == reasons.HEAD_AWAY and time.monotonic() - began < 0.5, told
            assert explain(waiting)["kind"] == reasons.ACTOR_NOT_READY
            group = placement_group([{"CPU": 1}])
            assert explain(group)["kind"] == reasons.HEAD_AWAY
            assert explain(member.name)["state"] == "alive"
            for word in ("no-hexadecimal", "0x" * 7):
                with pytest.raises(ValueError, match="is no id"):
                    explain(word)
            cluster.head.start()
            wait_for(
                lambda: explain(blocked)["kind"] == reasons.NEVER or explain(blocked)["state"] == "dead", "no answer"
            )
            for ref in busy:
                noded.cancel(ref, force=True)


def test_the_home_of_a_task_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with Members(num_cpus=1) as cluster:
        member = cluster.add()
        with (
            noded.init(cluster.head.address, log_to_driver=False),
            Driver(member.address, LEAVES, str(tmp_path / "runs")) as driver,
        ):
            ref = driver.expect("made").split()[0]
            becomes(ref, reasons.RUNNING)
            member.signal(signal.SIGSTOP)
            try:
                began = time.monotonic()
                told = explain(ref)
                assert time.monotonic() - began < 1.5, "it waits for too long"
            finally:
                member.signal(signal.SIGCONT)
            assert told["kind"] == reasons.NODE_AWAY and f"made, {member.name}, does not answer" in told["reason"], told


def test_a_death_while_its_daemon_is_away_has_its_cause(notes: Notes) -> None:
    with Members(num_cpus=1) as cluster:
        member = cluster.add("--resources", '{"there": 2}')
        with noded.init(cluster.head.address, log_to_driver=False):
            there = {"num_cpus": 0, "resources": {"there": 1}}
            ref, actor = hang.options(**there).remote(notes), Worker.options(**there).remote()
            pid = get(actor.pid.remote())
            mine = hang.options(num_cpus=0, resources={"node:__internal_head__": 0.1}).remote(notes)
            running = [int(line) for line in notes.wait(2)]
            member.kill9()
            cluster.head.kill9()
            for each in (pid, *running):
                os.kill(each, signal.SIGSEGV)
            wait_for(lambda: not any(os.path.exists(f"/proc/{each}") for each in (pid, *running)), "they live on")
            cluster.head.start()
            member.start()
            for thing in (mine, ref, actor):
                told = ends(thing)
                assert (told["cause"], told["signal"]) == (deaths.CRASH, "SIGSEGV"), told
                assert any(line.startswith("Fatal Python error") for line in told["stderr_tail"]), told
