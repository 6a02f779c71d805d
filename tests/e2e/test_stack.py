"""`noded stack`: what stuck workers say of themselves, in Python, in a lock and in C code, across restarts."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.cluster import Node, noded_command
from harness.gates import Gate, Notes
from harness.wait import wait_for

import noded
from noded import stack_dump
from noded.util.debug import stack


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node(num_cpus=2) as node:
        yield node


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "notes")


@pytest.fixture
def connected(node: Node) -> Iterator[Node]:
    with noded.init(node.address, log_to_driver=False):
        yield node


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """The module's node, and its workers, stay."""


def in_sleep(notes: Notes) -> None:
    notes.add(os.getpid())
    time.sleep(1000)


def in_a_lock(notes: Notes) -> None:
    lock = threading.Lock()
    lock.acquire()
    notes.add(os.getpid())
    lock.acquire()


def in_c_code_with_pythons_lock(notes: Notes) -> None:
    notes.add(os.getpid())
    ctypes.PyDLL(None).sleep(1000)


def in_a_loop_in_c(notes: Notes) -> None:
    notes.add(os.getpid())
    sum(range(10**12))


def in_a_regular_expression(notes: Notes) -> None:
    notes.add(os.getpid())
    re.match(r"(a+)+$", "a" * 40 + "b")


def in_c_code_that_blocks_signals(notes: Notes) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    notes.add(os.getpid())
    ctypes.PyDLL(None).sleep(1000)


def in_python(notes: Notes) -> None:
    notes.add(os.getpid())
    while True:
        pass


WAYS = [
    in_sleep,
    in_a_lock,
    in_c_code_with_pythons_lock,
    in_a_loop_in_c,
    in_a_regular_expression,
    in_c_code_that_blocks_signals,
    in_python,
]


def one(id_: Any) -> dict[str, Any]:
    found = stack(id_)
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_where_a_worker_is_stuck(connected: Node, notes: Notes, way: Any) -> None:
    ref = noded.remote(num_cpus=0, max_retries=0)(way).remote(notes)
    pid = int(notes.wait(1)[0])
    began = time.monotonic()
    told = one(ref)
    assert time.monotonic() - began < 1, told
    assert told["pid"] == pid and f"in {way.__name__}\n" in told["stack"], told
    assert [(run["task"], run["name"]) for run in told["running"]] == [(ref.task_id().hex(), way.__name__)]
    assert time.time() - told["running"][0]["since"] < 30
    # Again, by other names; and nothing of the first is left in the file.
    for id_ in (told["worker"], told["worker"][:14], pid, ref.task_id().hex()):
        assert one(id_)["stack"].count(f"in {way.__name__}\n") == 1
    noded.cancel(ref, force=True)
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), "the worker lives on")


def test_a_system_call_of_the_users_is_not_interrupted(connected: Node, notes: Notes) -> None:
    @noded.remote(num_cpus=0, max_retries=0)
    def sleep() -> Any:
        notes.add()
        return ctypes.CDLL(None).sleep(1)  # the seconds that are left when a signal comes

    ref = sleep.remote()
    notes.wait(1)
    while not noded.wait([ref], timeout=0.02)[0]:
        try:
            found = stack(ref)
        except ValueError:  # it has ended just now
            break
        for told in found:
            assert "in sleep" in told["stack"], told
    assert noded.get(ref) == 0


def test_an_actor_with_threads_by_all_its_names(connected: Node, tmp_path: Path, notes: Notes) -> None:
    gate = Gate(tmp_path / "gate")

    @noded.remote(num_cpus=0, max_concurrency=3)
    class Many:
        def wait(self, name: str) -> None:
            notes.add(name)
            gate.wait()

    actor = Many.remote()
    refs = [actor.wait.remote(str(number)) for number in range(3)]
    notes.wait(3)
    told = one(actor)
    assert told["stack"].count("in wait\n") >= 3 and len(told["running"]) == 3
    assert one(refs[1])["worker"] == told["worker"]
    assert told["worker"] in {each["worker"] for each in stack()}
    assert told["worker"] in {each["worker"] for each in stack(noded.get_runtime_context().get_job_id())}
    gate.open()
    noded.get(refs, timeout=30)
    with pytest.raises(ValueError, match=f"no worker runs {refs[0].hex()}, or is it: `noded why"):
        stack(refs[0])


def test_threads_that_run_python_are_asked_without_harm(connected: Node, notes: Notes) -> None:
    """Their frames change all the time: to walk them in a signal's handler ends the process."""

    @noded.remote(num_cpus=0, max_concurrency=4)
    class Busy:
        def pid(self) -> int:
            return os.getpid()

        def turn(self, name: str) -> None:
            def deep(left: int) -> int:
                return deep(left - 1) + 1 if left else 0

            notes.add(name)
            while True:
                json.loads(json.dumps([{"a": list(range(50))}] * 20))
                deep(400)

    actor = Busy.remote()
    pid = noded.get(actor.pid.remote(), timeout=30)
    refs = [actor.turn.remote(str(number)) for number in range(3)]
    notes.wait(3)
    for _ in range(40):
        told = one(actor)
        # Names of threads: it has told them itself.
        assert told["pid"] == pid and " [MainThread] (most recent" in told["stack"], told
        assert told["stack"].count("Thread 0x") > 3, told
    assert not noded.wait(refs, timeout=0)[0], "it has ended"
    noded.kill(actor)


def test_one_that_is_stopped_and_one_that_has_taken_the_signal(connected: Node, notes: Notes) -> None:
    @noded.remote(num_cpus=0, max_retries=0)
    def take() -> None:
        signal.signal(stack_dump.SIGNAL, signal.SIG_DFL)
        in_c_code_with_pythons_lock(notes)

    stopped = noded.remote(num_cpus=0, max_retries=0)(in_sleep).remote(notes)
    pid = int(notes.wait(1)[0])
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: "stopped by a signal (state T)" in one(pid).get("problem", ""), lambda: f"{one(pid)}")
    assert f"kill -CONT {pid}" in one(stopped)["problem"]
    os.kill(pid, signal.SIGCONT)
    wait_for(lambda: "in in_sleep" in one(pid)["stack"], lambda: f"{one(pid)}")
    taken = take.remote()
    notes.wait(2)
    assert f"has taken signal {stack_dump.SIGNAL:d} for itself" in one(taken)["problem"]
    assert noded.wait([taken], timeout=0)[1], "it was killed by being asked"
    for ref in (stopped, taken):
        noded.cancel(ref, force=True)


def test_what_a_worker_forks_does_not_write_its_stack(connected: Node, notes: Notes) -> None:
    @noded.remote(num_cpus=0, max_retries=0)
    def parent() -> None:
        child = os.fork()
        if not child:
            notes.add(os.getpid())
            time.sleep(1000)
        notes.add("parent")
        os.waitpid(child, 0)

    ref = parent.remote()
    child = int(next(line for line in notes.wait(2) if line != "parent"))
    os.kill(child, stack_dump.SIGNAL)
    told = one(ref)
    assert told["stack"].count("in parent\n") == 1 and "time.sleep" not in told["stack"]
    assert os.path.exists(f"/proc/{child}"), "the signal has ended it"
    noded.cancel(ref, force=True)
    wait_for(lambda: not os.path.exists(f"/proc/{child}"), "the child lives on")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*noded_command(), "stack", *words], capture_output=True, text=True, timeout=30)


def test_the_command_and_daemons_that_restart(connected: Node, notes: Notes) -> None:
    node = connected
    ref = noded.remote(num_cpus=0, max_retries=0)(in_sleep).remote(notes)
    pid = int(notes.wait(1)[0])
    one(ref)
    node.restart()
    wait_for(lambda: "in in_sleep" in one(ref)["stack"], "the next daemon cannot ask it")
    shown = run(str(pid), "--cluster", node.cluster)
    assert (
        shown.returncode == 0 and f", pid {pid}, node head, runs in_sleep ({ref.task_id().hex()}) since" in shown.stdout
    )
    assert "in in_sleep" in shown.stdout
    of_daemon = run("--node", "head", "--cluster", node.cluster)
    assert f"daemon of node head, pid {node.pid}" in of_daemon.stdout and "noded/foreground.py" in of_daemon.stdout
    nobody = run("f" * 32, "--cluster", node.cluster)
    assert nobody.returncode == 1 and "Error: no worker runs ffff" in nobody.stderr
    node.signal(signal.SIGSTOP)
    try:
        stopped = run("--node", "head", "--cluster", node.cluster)
        assert f"pid {node.pid} is stopped by a signal (state T)" in stopped.stdout, stopped
    finally:
        node.signal(signal.SIGCONT)
    noded.cancel(ref, force=True)


def test_nothing_is_left(node: Node) -> None:
    """Last in this file: the stacks of workers that have ended are gone."""
    logs = Path(os.environ["NODED_HOME"]) / "clusters" / node.cluster / "logs"
    assert logs.is_dir()
    alive = {
        each
        for process in node.workers()
        for each in re.findall(rb"NODED_MARK=[^\0]*:([0-9a-f]{16})", process.started_with)
    }

    def left() -> list[str]:
        found = [path.name for path in logs.glob(f"*{stack_dump.SUFFIX}")]
        return [name for name in found if name[7:23].encode() not in alive]

    wait_for(lambda: not left(), lambda: f"{left()}")
