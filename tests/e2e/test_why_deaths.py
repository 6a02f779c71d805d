"""Random deaths of tasks and actors, in each of the ways there are: `why` names the cause, and what is known of it."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import memory_group
from harness.ends import Worker, end, hang, pid_of
from harness.gates import Notes
from harness.wait import wait_for

import noded
from noded.cluster_utils import Cluster, Node
from noded.policy import deaths, reasons
from noded.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from noded.util.state import explain

MIB = 1 << 20


def say_and(how: Callable[[], Any], lines: int) -> Callable[[], Any]:
    def do() -> Any:
        for number in range(lines):
            print(f"word {number}", file=sys.stderr)
        return how()

    return do


def eat() -> None:
    hoard = []
    while True:
        hoard.append(b"x" * (4 * MIB))
        time.sleep(0.001)


class Deaths:
    """Each method makes one death, waits for it, and checks what `why` says."""

    def __init__(self, cluster: Cluster, tmp: Path, rng: random.Random) -> None:
        self.cluster = cluster
        self.tmp = tmp
        self.rng = rng
        self.numbers = iter(range(10_000))
        self.node = noded.get_runtime_context().get_node_id()

    # ------------------------------------------------------------ what is checked

    def told(self, thing: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def ended() -> bool:
            nonlocal found
            began = time.monotonic()
            found = explain(thing)
            found["took"] = time.monotonic() - began
            return found["state"] in ("failed", "dead")

        wait_for(ended, lambda: f"it has not ended: {found}", 40)
        assert found["reason"] and found.get("cause") in {*deaths.KINDS, reasons.RAISED, reasons.NEVER}, found
        return found

    def process(self, told: dict[str, Any], cause: str, **known: Any) -> None:
        assert told["cause"] == cause, told
        assert told["node"] == self.node and told["pid"] > 0 and told["max_rss"] > MIB, told
        for name, value in known.items():
            assert told.get(name) == value, (name, value, told)
        worker = told.get("worker")
        if worker:
            of_worker = self.told(worker)
            assert (of_worker["cause"], of_worker["pid"]) == (cause, told["pid"]), (told, of_worker)

    def either(self, how: Callable[[], Any], **options: Any) -> Any:
        if self.rng.random() < 0.5:
            return end.options(num_cpus=0, **options).remote(how)
        actor = Worker.options(num_cpus=0, **options).remote()
        actor.do.remote(how)
        return actor

    # ------------------------------------------------------------ the ways

    def exit_code(self) -> None:
        code, lines = self.rng.randrange(256), self.rng.choice([0, 3, 30])
        told = self.told(self.either(say_and(lambda: os._exit(code), lines)))
        said = [f"word {number}" for number in range(lines)][-20:]
        self.process(told, deaths.EXIT, exit_code=code, stderr_tail=said or None)

    def outside_signal(self) -> None:
        number = self.rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL])
        notes = Notes(self.tmp / f"notes-{next(self.numbers)}")
        if self.rng.random() < 0.5:
            thing: Any = hang.options(num_cpus=0).remote(notes)
        else:
            thing = Worker.options(num_cpus=0).remote()
            thing.hang.remote(notes)
        os.kill(pid_of(notes), number)
        self.process(self.told(thing), deaths.SIGNAL, signal=number.name, pid=pid_of(notes))

    def crash(self) -> None:
        number = self.rng.choice([signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
        told = self.told(self.either(lambda: os.kill(os.getpid(), number)))
        self.process(told, deaths.CRASH, signal=number.name)
        assert any(line.startswith("Fatal Python error") for line in told["stderr_tail"]), told

    def memory_limit(self) -> None:
        told = self.told(self.either(eat, memory=100 * MIB))
        self.process(told, deaths.MEMORY_LIMIT)
        assert "100 MiB" in told["reason"], told

    def import_error(self) -> None:
        @noded.remote(num_cpus=0)
        class Needs:
            def __init__(self) -> None:
                import no_such_module_at_all  # type: ignore[import-not-found] # noqa: F401

        told = self.told(Needs.remote())
        assert told["cause"] == deaths.CONSTRUCTOR, told

    def import_error_of_its_environment(self) -> None:
        def setup() -> None:
            import no_such_module_at_all  # noqa: F401

        told = self.told(self.either(int, runtime_env={"worker_process_setup_hook": setup}))
        assert told["cause"] == deaths.ENV and "no_such_module_at_all" in told["reason"], told

    def cancelled(self) -> None:
        notes = Notes(self.tmp / f"notes-{next(self.numbers)}")
        ref = hang.options(num_cpus=0).remote(notes)
        pid_of(notes)
        noded.cancel(ref, force=True)
        assert self.told(ref)["cause"] == deaths.CANCELLED

    def killed(self) -> None:
        actor = Worker.options(num_cpus=0).remote()
        noded.get(actor.pid.remote(), timeout=30)
        noded.kill(actor)
        assert self.told(actor)["cause"] == deaths.KILLED

    def intended(self) -> None:
        actor = Worker.options(num_cpus=0).remote()
        actor.do.remote(noded.exit_actor)
        assert self.told(actor)["cause"] == deaths.LEFT

    def own_error(self) -> None:
        def fail() -> None:
            raise KeyError("mine")

        ref = end.options(num_cpus=0).remote(fail)
        assert self.told(ref)["cause"] == reasons.RAISED

    def node_lost(self, kill: bool = False) -> None:
        """``kill``: all of it at once, which the head learns by waiting."""
        node: Node = self.cluster.add_node(num_cpus=1, object_store_memory=32 * MIB)
        notes = Notes(self.tmp / f"notes-{next(self.numbers)}")
        place = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        id_ = node.node_id
        ref = hang.options(num_cpus=0, scheduling_strategy=place).remote(notes)
        actor = Worker.options(num_cpus=0, scheduling_strategy=place).remote()
        worker = noded.get(actor.do.remote(lambda: noded.get_runtime_context().get_worker_id()), timeout=30)
        pid_of(notes)
        if kill:
            node._process.kill_all()
            wait_for(lambda: explain(id_)["state"] == "dead", "the head does not take the node for dead", 90)
        self.cluster.remove_node(node)
        for thing in (ref, actor):
            told = self.told(thing)
            assert (told["cause"], told["node"]) == (deaths.NODE_LOST, id_), told
        of_node, of_worker = self.told(id_), self.told(worker)
        assert (of_node["cause"], of_worker["cause"]) == (deaths.NODE_LOST, deaths.NODE_LOST), (of_node, of_worker)


WAYS = {
    "exit_code": 8,
    "outside_signal": 8,
    "crash": 4,
    "import_error": 2,
    "import_error_of_its_environment": 1,
    "cancelled": 2,
    "killed": 2,
    "intended": 2,
    "own_error": 1,
}
"""By how often they come; what takes seconds comes a fixed number of times."""


def run(deaths_: Deaths, count: int) -> None:
    for way in deaths_.rng.choices(list(WAYS), list(WAYS.values()), k=count):
        getattr(deaths_, way)()


@pytest.fixture
def several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("NODED_HOME", str(tmp_path / "home"))
    with Cluster() as cluster:
        cluster.add_node(num_cpus=4, object_store_memory=64 * MIB)
        noded.init(cluster.address, log_to_driver=False)
        yield cluster


def test_thirty_random_deaths(several: Cluster, tmp_path: Path) -> None:
    found = Deaths(several, tmp_path, random.Random(1))
    run(found, 27)
    found.memory_limit()
    found.node_lost()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(4))
def test_two_hundred_random_deaths(several: Cluster, tmp_path: Path, seed: int) -> None:
    found = Deaths(several, tmp_path, random.Random(100 + seed))
    run(found, 46)
    for _ in range(4):
        found.memory_limit()
    found.node_lost(kill=seed == 0)


@pytest.mark.slow
@pytest.mark.skipif(bool(memory_group.unavailable()), reason=memory_group.unavailable() or "groups can be made")
def test_the_kernels_kill_is_told_of_the_worker_too(tmp_path: Path) -> None:
    with (
        memory_group.MemoryGroup(400 * MIB) as group,
        memory_group.LimitedNode(group, num_cpus=2, env={"NODED_MEMORY_THRESHOLD": "1"}) as node,
        noded.init(node.address, log_to_driver=False),
    ):
        ref = end.remote(eat)
        wait_for(lambda: explain(ref)["state"] == "failed", lambda: f"{explain(ref)}", 60)
        told = explain(ref)
        of_worker = explain(told["worker"])
        assert (told["cause"], of_worker["cause"], of_worker["pid"]) == (deaths.OOM, deaths.OOM, told["pid"])
