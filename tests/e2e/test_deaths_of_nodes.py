"""Every end of a worker names its cause, where that takes a node of its own: restarts, a node that cannot start
workers, the kernel's OOM killer, nodes that are lost.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import memory_group
from harness.cluster import Node
from harness.drivers import Driver
from harness.ends import Worker, end, fails, get, hang, pid_of
from harness.gates import Notes
from harness.members import Members
from harness.processes import kill
from harness.wait import wait_for

import noded
from noded.exceptions import (
    ActorDiedError,
    ActorOutOfMemoryError,
    NodeDiedError,
    OutOfMemoryError,
    WorkerCrashedError,
)
from noded.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from noded.util.state import explain

MIB = 1 << 20


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "notes")


@pytest.fixture
def node() -> Iterator[Node]:
    with Node(num_cpus=2) as node:
        yield node


CREATE = """
import pickle
@noded.remote
class Counter:
    def pid(self): return os.getpid()
    def end(self, code): os._exit(code)
actor = Counter.remote()
noded.get(actor.pid.remote())
with open(sys.argv[1], "wb") as file: pickle.dump(actor, file)
say("ready")
hear()
"""


def test_an_actor_ends_with_its_driver(node: Node, tmp_path: Path) -> None:
    with (
        Driver(node.address, CREATE, str(tmp_path / "actor")) as driver,
        noded.init(node.address, log_to_driver=False),
    ):
        driver.expect("ready")
        actor = pickle.loads((tmp_path / "actor").read_bytes())
        get(actor.pid.remote())
        driver.kill()
        wait_for(lambda: explain(actor)["state"] == "dead", "the actor outlives its driver")

        error = fails(ActorDiedError, actor.pid.remote())
        assert error.kind in ("job_ended", "owner_ended") and "its job has ended" in str(error)


LATER = """
import pickle
with open(sys.argv[1], "rb") as file: actors = pickle.load(file)
for actor in actors:
    try: noded.get(actor.pid.remote(), timeout=60)
    except noded.exceptions.ActorDiedError as error:
        say(error.kind, str(error).replace("\\n", " "))
"""


def test_who_comes_after_a_restart_is_told_the_same_cause(node: Node, tmp_path: Path) -> None:
    with noded.init(node.address, log_to_driver=False):

        def fail() -> None:
            raise ValueError("from the constructor")

        @noded.remote
        class Broken:
            def __init__(self) -> None:
                fail()

            def pid(self) -> int:
                return 0

        crashed, killed, named = Worker.remote(), Worker.remote(), Worker.options(name="x", max_restarts=1).remote()
        broken = Broken.remote()
        actors = [crashed, killed, named, broken]
        fails(ActorDiedError, crashed.do.remote(lambda: os._exit(9)))
        noded.kill(killed)
        noded.kill(named)
        for actor in actors:
            fails(ActorDiedError, actor.pid.remote())
        (tmp_path / "actors").write_bytes(pickle.dumps(actors))

        node.restart()

        wait_for(lambda: explain(crashed)["state"] == "dead", "the head has forgotten it")
        assert explain(crashed)["kind"] == "exit" and "code 9" in explain(crashed)["reason"]
        with Driver(node.address, LATER, str(tmp_path / "actors")) as driver:
            assert "exited by itself with code 9" in driver.expect("exit")
            assert "noded.kill() was called" in driver.expect("killed")
            assert "noded.kill() was called" in driver.expect("killed")
            assert "from the constructor" in driver.expect("constructor")
            driver.end()
    assert node.status()["actors"] == 0


def test_a_worker_that_fails_before_it_is_ready(node: Node) -> None:
    """Its socket's directory is gone: who waits is told, with the traceback; when it is back all is well again."""
    sockets = Path(node.dir) / "w"
    aside = sockets.with_name("aside")
    with noded.init(node.address, log_to_driver=False):
        assert get(noded.remote(lambda: 1).remote()) == 1
        shutil.move(sockets, aside)
        try:
            kill([p for p in node.processes() if any(f.stem.encode() in p.started_with for f in aside.iterdir())])
            # Tried again, as it may still be given to one of those that were killed.
            error = fails(WorkerCrashedError, end.options(max_retries=3).remote(int))
            assert error.kind == "start" and "tries failed in a row" in str(error)
            assert "FileNotFoundError" in str(error) and "listener.bind" in str(error)
            actor = Worker.remote()
            died = fails(ActorDiedError, actor.pid.remote())
            assert died.kind == "start" and "FileNotFoundError" in str(died)
        finally:
            shutil.move(aside, sockets)
        wait_for(lambda: _runs(), "no worker starts although its directory is there again", 30)


def _runs() -> bool:
    try:
        return bool(get(noded.remote(lambda: 1).remote()) == 1)
    except WorkerCrashedError:
        return False


def test_a_template_that_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'noded.template' in sys.orig_argv:\n"
        "    print('ImportError: the installation is broken', file=sys.stderr)\n"
        "    os._exit(41)\n"
    )
    with (
        Node(num_cpus=1, env={"PYTHONPATH": str(tmp_path)}) as node,
        noded.init(node.address, log_to_driver=False),
    ):
        error = fails(WorkerCrashedError, end.remote(int))
        assert error.kind == "start" and "code 41" in str(error)
        assert "ImportError: the installation is broken" in str(error)


@pytest.mark.skipif(bool(memory_group.unavailable()), reason=memory_group.unavailable() or "groups can be made")
def test_out_of_memory(notes: Notes) -> None:
    limit = 400 * MIB

    def eat() -> None:
        notes.add(os.getpid())
        hoard = []
        while True:
            hoard.append(b"x" * (8 * MIB))

    with (
        memory_group.MemoryGroup(limit) as group,
        # The node's own monitor would be before the kernel.
        memory_group.LimitedNode(group, num_cpus=2, env={"NODED_MEMORY_THRESHOLD": "1"}) as node,
        noded.init(node.address, log_to_driver=False),
    ):
        ref = end.remote(eat)
        error = fails(OutOfMemoryError, ref)
        assert isinstance(error, WorkerCrashedError) and error.kind == "oom" and error.signal == "SIGKILL"
        assert "out of memory: the kernel ended it; limit 400 MiB" in str(error)
        assert 50 * MIB < error.max_rss <= limit and error.pid == pid_of(notes)
        assert explain(ref)["cause"] == "oom"

        actor = Worker.remote()
        died = fails(ActorOutOfMemoryError, actor.do.remote(eat))
        assert isinstance(died, ActorDiedError) and died.kind == "oom"

        # Beside these, a kill by hand is still told from the kernel's.
        victim = Notes(notes.path.with_name("victim"))
        ref = hang.remote(victim)
        os.kill(pid_of(victim), signal.SIGKILL)
        error = fails(WorkerCrashedError, ref)
        assert error.kind == "signal" and not isinstance(error, OutOfMemoryError)
        assert "not by the kernel for want of memory" in str(error)


@pytest.mark.parametrize("how", ["it was stopped", "it started over"])
def test_a_lost_node_is_named_with_the_reason(how: str, notes: Notes) -> None:
    """The others, silence and a broken connection, take half a minute and more: see test_many_nodes_faults.py."""
    with Members() as cluster:
        member = cluster.add(name="n1")
        with noded.init(cluster.address, log_to_driver=False):
            found = {n["NodeName"]: n["NodeID"] for n in noded.nodes()}
            there = NodeAffinitySchedulingStrategy(found["n1"], False)
            actor = Worker.options(scheduling_strategy=there).remote()
            get(actor.pid.remote())
            ref = hang.options(scheduling_strategy=there).remote(notes)
            pid_of(notes)
            if how == "it was stopped":
                member.stop()
            else:
                member.kill9()
                kill(member.processes())
                wait_for(lambda: not member.processes(), "it lives on")
                member.start()

            error = fails(NodeDiedError, ref)
            assert isinstance(error, WorkerCrashedError) and error.kind == "node_lost" and error.node == found["n1"]
            died = fails(ActorDiedError, actor.pid.remote())
            assert died.kind == "node_lost" and died.node == found["n1"]
            for text in (str(error), str(died)):
                assert f"its node n1 ({found['n1']}) is lost" in text
                assert how in text
            assert explain(actor)["kind"] == "node_lost" and explain(ref)["cause"] == "node_lost"
