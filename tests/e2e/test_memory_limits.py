"""``memory=`` is a limit, and a node that runs out of memory ends somebody before the kernel does. With real processes.

Twice where it matters: with control groups (of version 1 or 2, as the machine has them; skipped where none may be
made), and where there are none, so that all is left to the node's own looks.
"""

from __future__ import annotations

import gc
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from harness import container, memory_group
from harness.cluster import Node
from harness.ends import Worker, fails, get
from harness.gates import Gate, Notes
from harness.leaks import LeakCheck
from harness.processes import all_processes
from harness.wait import wait_for

import noded
from noded.client.runtime import current
from noded.config import node_tag
from noded.config.machine import control_groups
from noded.exceptions import (
    ActorOutOfMemoryError,
    OutOfMemoryError,
    WorkerOutOfMemoryError,
)
from noded.node.memory_groups import kernel_limit
from noded.util.state import explain

MB, MIB = 10**6, 1 << 20
LIMIT = 200 * MB
NO_GROUPS = memory_group.unavailable()
EAT = "import sys, time; kept = b'x' * int(sys.argv[1]); print(flush=True); time.sleep(600)"


class HiddenGroups(memory_group.LimitedNode):
    """A node that sees no control groups, but is in one."""

    def _in_place(self, command: list[str]) -> list[str]:
        hide = 'mount -t tmpfs none /sys/fs/cgroup && exec "$0" "$@"'
        return super()._in_place(["unshare", "--mount", "sh", "-c", hide, *command])


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest, leak_check: LeakCheck) -> Iterator[None]:
    """The module's node stays, and is looked at when it ends."""
    before = leak_check.take()
    yield
    if "node" not in request.fixturenames:
        assert not leak_check.left_since(before)


@pytest.fixture(scope="module", params=["groups", "looks"])
def node(request: pytest.FixtureRequest, leak_check: LeakCheck) -> Iterator[Node]:
    if NO_GROUPS:
        pytest.skip(NO_GROUPS)
    if request.param == "looks" and (why := container.available()):
        pytest.skip(why)
    before = leak_check.take()
    kind = memory_group.LimitedNode if request.param == "groups" else HiddenGroups
    environment = {"NODED_OBJECT_STORE_MEMORY": "512MiB", "NODED_MEMORY": "1GB", "NODED_MEMORY_THRESHOLD": "1"}
    # What goes wrong here must not take the machine.
    with memory_group.MemoryGroup(3 << 30) as group, kind(group, num_cpus=2, env=environment) as node:
        yield node
    assert not groups_of(node) and not leak_check.left_since(before)


@pytest.fixture
def program(node: Node) -> Iterator[Node]:
    with noded.init(node.address, log_to_driver=False):
        yield node
        gc.collect()  # an error's frames have refs
    node.settle()


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "notes")


@noded.remote(memory=LIMIT)
def limited(how: Callable[[], Any]) -> Any:
    return how()


def eat(amount: int) -> bytes:
    return b"x" * amount


def eat_at_once(amount: int) -> mmap.mmap:
    """In one call of the kernel: before anybody can look."""
    return mmap.mmap(-1, amount, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)


def start_eater(amount: int, *, apart: bool = False) -> None:
    """A process that lives on with so much memory, and has it now; ``apart``: nobody's child, in its own session."""
    command = [sys.executable, "-c", EAT, str(amount)]
    if apart:
        command = ["sh", "-c", 'setsid "$@" &', "sh", *command]
    started = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert started.stdout is not None
    started.stdout.readline()


def groups_of(node: Node) -> list[str]:
    """The control groups that the node has made for its workers."""
    inside = [group.path for group in [getattr(node, "_group", None)] if group is not None]
    above = [*inside, *control_groups(Path("/"), "memory")]
    places = {group / f"noded-{node_tag(node.dir)}" for group in above}
    return sorted(
        str(path) for place in places if place.is_dir() for path in (place, *place.iterdir()) if path.is_dir()
    )


def lives(pid: int) -> bool:
    found = all_processes().get(pid)
    return found is not None and found.state not in "ZX"


class TestLimits:
    def test_a_task_above_it_ends_alone_and_soon(self, program: Node, notes: Notes, tmp_path: Path) -> None:
        gate = Gate(tmp_path / "gate")

        @noded.remote(num_cpus=0)
        def neighbour() -> int:
            notes.add("neighbour")
            gate.wait()
            return os.getpid()

        def hungry() -> None:
            notes.add(time.monotonic())
            eat(1000 * MB)
            signal.pause()

        actor, beside = Worker.remote(), neighbour.remote()
        before = get(actor.pid.remote()), program.pid
        notes.wait(1)
        took = []
        while not took or (took[-1] >= 2 and len(took) < 5):  # the machine may be busy
            ref = limited.remote(hungry)
            error = fails(WorkerOutOfMemoryError, ref)
            took.append(time.monotonic() - float(notes.all()[-1]))

        assert took[-1] < 2, took
        assert isinstance(error, OutOfMemoryError) and error.kind == "memory_limit"
        assert "of memory, and its limit (memory=) is 191 MiB" in str(error) or "limit (memory=), 191 MiB" in str(error)
        assert error.node == noded.get_runtime_context().get_node_id()
        assert len(notes.all()) == 1 + len(took), "it was run again, and would be as large"
        assert explain(ref)["cause"] == "memory_limit"
        gate.open()
        get(beside)
        assert (get(actor.pid.remote()), program.status()["pid"]) == before

    def test_what_comes_at_once(self, program: Node) -> None:
        error = fails(WorkerOutOfMemoryError, limited.remote(lambda: (eat_at_once(1000 * MB), signal.pause())))

        assert error.kind == "memory_limit"
        if not program.status()["memory"]["no_kernel_limits"]:
            assert error.max_rss < kernel_limit(LIMIT) + 64 * MIB, "the kernel has let it go on"

    @pytest.mark.parametrize("apart", [False, True])
    def test_what_it_starts_counts(self, program: Node, apart: bool) -> None:
        error = fails(
            WorkerOutOfMemoryError, limited.remote(lambda: (start_eater(400 * MB, apart=apart), signal.pause()))
        )

        assert error.kind == "memory_limit"
        wait_for(lambda: not eaters(), lambda: f"what it started lives on: {eaters()}")

    def test_an_actor_above_it(self, program: Node) -> None:
        actor = Worker.options(memory=LIMIT).remote()
        first = get(actor.pid.remote())
        error = fails(ActorOutOfMemoryError, actor.do.remote(lambda: eat(600 * MB)))
        assert error.kind == "memory_limit" and error.pid == first

        again = Worker.options(memory=LIMIT, max_restarts=1, max_task_retries=1).remote()
        first = get(again.pid.remote())
        fails(noded.exceptions.NodedError, again.do.options(max_task_retries=0).remote(lambda: eat(600 * MB)))
        assert get(again.pid.remote()) != first

    def test_its_next_task_has_all_of_it(self, program: Node) -> None:
        def most() -> int:
            return len(eat(120 * MB))

        assert [get(limited.remote(most)) for _ in range(4)] == [120 * MB] * 4

    def test_who_reads_a_large_file_goes_on(self, program: Node, tmp_path: Path) -> None:
        path = tmp_path / "large"
        with open(path, "wb") as file:
            file.truncate(2 << 30)

        def read() -> int:
            total = 0
            with open(path, "rb", buffering=0) as file:
                while piece := len(file.read(8 * MIB)):
                    total += piece
                # And some of it as pages that are mapped.
                with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
                    for at in range(0, 300 * MIB, 1 << 12):
                        total += view[at]
            return total

        assert get(limited.remote(read)) == 2 << 30

    def test_who_reads_and_makes_large_objects_goes_on(self, program: Node) -> None:
        @noded.remote(memory=100 * MB)
        def read_and_make(large: Any) -> tuple[int, Any]:
            return int(large[:: 1 << 12].sum()), numpy.ones(50 * MB, numpy.uint8)

        large = noded.put(numpy.ones(250 * MB, numpy.uint8))
        seen, made = get(read_and_make.remote(large))
        assert seen == -(-250 * MB // (1 << 12)) and len(made) == 50 * MB

    def test_forks_that_share_its_memory_count_once(self, program: Node) -> None:
        def fork() -> int:
            shared = eat(130 * MB)
            children = []
            for _ in range(3):
                if not (pid := os.fork()):
                    time.sleep(1.5)  # through many looks
                    os._exit(shared[-1] == ord("x"))
                children.append(pid)
            return sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children)

        assert get(limited.remote(fork)) == 3

    def test_a_storm_of_forks(self, program: Node) -> None:
        def storm() -> None:
            kept = []
            for _ in range(8):
                os.fork()  # 256 of them, if nobody ends it
                kept.append(eat(4 * MB))
            signal.pause()

        daemon = program.pid
        error = fails(WorkerOutOfMemoryError, limited.options(max_retries=0).remote(storm))

        assert error.kind == "memory_limit" and program.pid == daemon and program.running
        assert get(limited.remote(lambda: 7)) == 7

    def test_of_several_small_tasks_in_one_worker_only_one_fails(self, program: Node) -> None:
        @noded.remote(memory=LIMIT)
        def work(number: int) -> int:
            if number == 20:
                eat_at_once(1000 * MB)
                signal.pause()
            return number

        get([work.remote(0) for _ in range(20)])  # now they are known to be quick, and are sent many at once
        refs = [work.remote(number) for number in range(40)]
        fails(WorkerOutOfMemoryError, refs[20])
        assert get(refs[:20] + refs[21:]) == [n for n in range(40) if n != 20]


def eaters() -> list[int]:
    return [pid for pid, process in all_processes().items() if EAT in process.command and process.state not in "ZX"]


class TestWhatIsKept:
    def test_a_worker_that_kept_much_is_replaced(self, program: Node) -> None:
        def keep() -> int:
            vars(sys)["kept"] = eat(300 * MB)
            return os.getpid()

        pid = get(noded.remote(keep).remote())

        wait_for(lambda: not lives(pid), "the worker that kept 300 MB lives on", 20)
        assert get(noded.remote(os.getpid).remote()) != pid

    def test_also_by_what_it_started(self, program: Node) -> None:
        def leave() -> int:
            start_eater(300 * MB)
            return os.getpid()

        pid = get(noded.remote(leave).remote())
        wait_for(lambda: not lives(pid) and not eaters(), "what a task has left lives on", 20)

    def test_one_that_kept_little_is_used_again(self, program: Node) -> None:
        little = noded.remote(lambda: (eat(300 * MB)[0], os.getpid())[1])
        pid = get(little.remote())
        wait_for(lambda: not program.status()["leases"], "its lease does not end")

        assert lives(pid)


@pytest.mark.skipif(bool(NO_GROUPS), reason=NO_GROUPS or "they can be made")
class TestGroupsOfWorkers:
    def test_a_daemon_that_was_killed_keeps_the_limit(self, notes: Notes, tmp_path: Path) -> None:
        gate = Gate(tmp_path / "gate")

        def later() -> None:
            notes.add(os.getpid())
            gate.wait()
            eat(1000 * MB)
            signal.pause()

        with Node(num_cpus=2) as node:
            with noded.init(node.address, log_to_driver=False):
                ref = limited.remote(later)
                pid = int(notes.wait(1)[0])
                wait_for(lambda: len(groups_of(node)) == 2, lambda: f"it is in no group: {groups_of(node)}")
                [_, group] = groups_of(node)
                assert Path(group, "cgroup.procs").read_text().split() == [str(pid)]
                node.restart()
                gate.open()
                assert fails(WorkerOutOfMemoryError, ref).kind == "memory_limit"
                wait_for(lambda: group not in groups_of(node), "the group of a worker that has ended is left")

                notes.path.unlink()
                hold = limited.remote(lambda: (notes.add(os.getpid()), signal.pause()))
                notes.wait(1)
                wait_for(lambda: len(groups_of(node)) == 2, lambda: f"it is in no group: {groups_of(node)}")
                node.kill9()
            node.stop()
            assert not groups_of(node)
            del hold


@pytest.mark.skipif(bool(NO_GROUPS), reason=NO_GROUPS or "groups can be made")
class TestTheNode:
    """In a group of 700 MiB, of which noded's own processes use about 120."""

    @pytest.fixture
    def program(self) -> Iterator[Node]:
        environment = {"NODED_MEMORY_THRESHOLD": "0.8", "NODED_OBJECT_STORE_MEMORY": "80MB"}
        with (
            memory_group.MemoryGroup(700 * MIB) as group,
            memory_group.LimitedNode(group, num_cpus=4, env=environment) as node,
            noded.init(node.address, log_to_driver=False),
        ):
            yield node

    def test_the_newest_task_goes_and_waits_for_room(self, program: Node, notes: Notes, tmp_path: Path) -> None:
        gate = Gate(tmp_path / "gate")

        @noded.remote(max_retries=1)
        def large(name: str) -> int:
            notes.add(name)
            kept = eat(250 * MIB)
            notes.add(f"{name} has it")
            gate.wait()
            return len(kept)

        old = large.remote("old")
        notes.wait(2)
        new = large.remote("new")
        told = wait_for(lambda: (t := explain(new))["kind"] == "memory_pressure" and t, lambda: f"{explain(new)}", 20)
        assert "want of memory" in told["reason"] or "too little memory" in told["reason"]
        assert get(noded.remote(num_cpus=0.5)(lambda: 7).remote()) == 7, "what is small need not wait"
        assert notes.all().count("new") == 1 and program.status()["memory"]["ended"] == 1
        runtime = current()
        assert runtime is not None
        [task] = [task for task in runtime.tasks.open_tasks() if task.refs[0].binary() == new.binary()]
        assert task.retries == 1, "it has cost a retry"

        gate.open()
        assert get([old, new]) == [250 * MIB] * 2
        assert notes.all().count("old") == 1 and notes.all().count("new") == 2

    def test_what_cannot_be_run_again_goes_last_and_is_told_why(self, program: Node, notes: Notes) -> None:
        @noded.remote
        def again() -> None:
            notes.add("again")
            kept = eat(80 * MIB)
            notes.add("again has it")
            signal.pause()
            del kept

        @noded.remote(max_retries=0)
        def once(amount: int) -> None:
            kept = eat(amount)
            notes.add("once")
            signal.pause()
            del kept

        first = again.remote()
        notes.wait(2)
        error = fails(WorkerOutOfMemoryError, once.remote(500 * MIB))

        assert error.kind == "node_memory"
        text = str(error)
        for words in (
            "the node has too little memory left",
            "of 700 MiB of the control group",
            "above the threshold of 80 % (560 MiB)",
            "this task cannot be run again",
            "the largest processes are python (pid ",
        ):
            assert words in text, text
        assert program.status()["memory"]["ended"] == 2, "what can be run again did not go first"
        noded.cancel(first, force=True)

    def test_a_task_that_is_too_large_fails_in_the_end(self, program: Node, notes: Notes) -> None:
        @noded.remote(max_retries=1)
        def too_large() -> None:
            notes.add("run")
            kept = eat(500 * MIB)
            signal.pause()
            del kept

        error = fails(WorkerOutOfMemoryError, too_large.remote())
        assert error.kind == "node_memory" and len(notes.all()) == 2

    def test_an_actor_that_is_started_again(self, program: Node) -> None:
        actor = Worker.options(max_restarts=1, max_task_retries=1).remote()
        first = get(actor.pid.remote())
        with pytest.raises(noded.exceptions.NodedError):
            get(actor.do.options(max_task_retries=0).remote(lambda: (eat(500 * MIB), signal.pause())))
        assert get(actor.pid.remote()) != first

        error = fails(ActorOutOfMemoryError, actor.do.options(max_task_retries=0).remote(lambda: eat(500 * MIB)))
        assert error.kind in ("node_memory", "oom")

    def test_a_storm_does_not_take_the_daemon(self, program: Node, notes: Notes) -> None:
        def storm() -> None:
            kept = []
            for _ in range(6):  # 64 processes that want twice as much as there is
                os.fork()
                kept.append(eat(4 * MIB))
            notes.add("large")
            signal.pause()

        daemon, spawner = program.pid, program.status()["spawner_pid"]
        ref = noded.remote(max_retries=0)(storm).remote()
        # Somebody ends one after the other of them, or all: how many are left is the kernel's business.
        wait_for(lambda: notes.all() or noded.wait([ref], timeout=0)[0], "there is no storm", 60)

        assert get(noded.remote(lambda: 7).remote()) == 7
        noded.cancel(ref, force=True)
        fails(noded.exceptions.NodedError, ref)
        assert get(noded.remote(lambda: 7).remote()) == 7
        status = program.status()
        assert (status["pid"], status["spawner_pid"]) == (daemon, spawner)


def test_who_the_kernel_prefers(tmp_path: Path) -> None:
    def score(pid: int | str) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    def scores() -> tuple[int, int]:
        told = subprocess.run(["cat", "/proc/self/oom_score_adj"], stdout=subprocess.PIPE, check=True)
        return score("self"), int(told.stdout)

    with Node() as node, noded.init(node.address, log_to_driver=False):
        assert get(noded.remote(scores).remote()) == (500, 500)
        protected = -900 if may_protect() else score("self")
        assert score(node.pid) == score(node.status()["spawner_pid"]) == protected
        templates = [p for p in node.processes() if b":template00000000\0" in p.started_with]
        assert [score(p.pid) for p in templates] == [max(0, score("self"))]


def may_protect() -> bool:
    lower = ["sh", "-c", "echo -900 > /proc/self/oom_score_adj"]
    return subprocess.run(lower, stderr=subprocess.DEVNULL).returncode == 0
