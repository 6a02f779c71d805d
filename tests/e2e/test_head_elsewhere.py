"""The head's host is gone, and another head starts elsewhere on the same storage: the rest of the cluster goes on."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.drivers import Driver
from harness.members import Member, Members
from harness.redis import Server
from harness.wait import wait_for

from noded.config import home

pytestmark = pytest.mark.slow

DRIVER = """
import time
@noded.remote(num_cpus=0, resources={"n1": 0.1}, max_restarts=-1)
class Counter:
    def __init__(self):
        self.total = 0
    def add(self):
        self.total += 1
        return self.total
@noded.remote(resources={"n2": 0.1})
def big():
    return b"x" * 300_000
@noded.remote(num_cpus=0, resources={"n2": 0.1})
def slow(path):
    import os
    while not os.path.exists(path):
        time.sleep(0.02)
    return "slow"
from noded.util import placement_group, placement_group_table
@noded.remote(num_cpus=0, runtime_env={"working_dir": sys.argv[2]})
def read():
    return open("told").read()
assert noded.get(read.options(resources={"n1": 0.1}).remote()) == "told"
named = Counter.options(name="named").remote()
plain = Counter.options(max_restarts=0).remote()
detached = Counter.options(name="detached", lifetime="detached").remote()
group = placement_group([{"CPU": 1}, {"n2": 1}], name="group", strategy="SPREAD")
noded.get([each.add.remote() for each in (named, plain, detached)] + [group.ready()])
kept = big.remote()
noded.wait([kept], fetch_local=False)
task = slow.remote(sys.argv[1])
say("ready")
hear()
print(noded.get([plain.add.remote() for _ in range(100)])[-1], flush=True)   # while there is no head
later = Counter.remote()  # restartable: written before it is anywhere
call = later.add.remote()
say("alone")
hear()
assert noded.get(call, timeout=60) == 1
assert noded.get([each.add.remote() for each in (named, plain, detached)], timeout=60) == [2, 102, 2]
assert noded.get(noded.get_actor("named").add.remote(), timeout=60) == 3
assert len(noded.get(kept, timeout=60)) == 300_000
open(sys.argv[1], "w").close()
assert noded.get(task, timeout=60) == "slow"
assert placement_group_table(group)["state"] == "CREATED", placement_group_table(group)
assert noded.get(read.options(resources={"n2": 0.1}).remote(), timeout=60) == "told"
second = placement_group([{"n1": 0.5}], name="second")
noded.get(second.ready(), timeout=60)
say("done")
"""


BEYOND = """
import time
from noded.util import placement_group, placement_group_table
@noded.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Counter:
    def __init__(self, start):
        self.total = start
    def add(self):
        self.total += 1
        return self.total
    def crash(self):
        os._exit(1)
before = Counter.options(name="before", lifetime="detached").remote(0)
noded.get(before.add.remote())
say("ready")
hear()
beyond = Counter.options(name="beyond", lifetime="detached").remote(100)
group = placement_group([{"CPU": 0.5}], name="group", lifetime="detached")
noded.get([beyond.add.remote(), group.ready()])
time.sleep(2)  # a heartbeat or two: the node has heard that the head writes a journal
say("made")
hear()
for name, told in (("before", 2), ("beyond", 102)):
    assert noded.get(noded.get_actor(name).add.remote(), timeout=60) == told
assert placement_group_table(group)["state"] == "CREATED", placement_group_table(group)
beyond.crash.options(max_task_retries=0).remote()
while noded.get(beyond.add.remote(), timeout=60) > 102: time.sleep(0.05)
say("done")
"""


def lose_head(cluster: Members) -> None:
    """All of its host: daemon, spawner, workers and run directory."""
    cluster.head.crash()
    shutil.rmtree(cluster.head.dir)


@pytest.fixture(params=["sqlite", "redis"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[str]]:
    """The flags of a head's storage."""
    if request.param == "sqlite":
        yield []
        return
    with Server(tmp_path / "redis") as redis:
        yield ["--redis", redis.url]


def test_the_head_starts_elsewhere(tmp_path: Path, storage: list[str]) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files/told").write_text("told")
    with Members(*storage, num_cpus=0) as cluster:
        n1 = cluster.add("--resources", '{"n1": 1}')
        cluster.add("--resources", '{"n2": 2}')
        with Driver(n1.address, DRIVER, str(tmp_path / "go"), str(tmp_path / "files")) as driver:
            driver.expect("ready", 60)
            lose_head(cluster)
            driver.tell("go on")
            driver.expect("101")
            driver.expect("alone", 60)
            cluster.move_head(name="head2")
            driver.tell("there is a head")
            driver.expect("done", 90)
            driver.end()


def test_what_was_in_the_journal_of_a_lost_host_is_learned_from_the_nodes(tmp_path: Path) -> None:
    """Redis was away, so the head wrote on its own host; and that is lost."""
    with Server(tmp_path / "redis") as redis, Members("--redis", redis.url, num_cpus=0) as cluster:
        n1 = cluster.add(num_cpus=1)
        with Driver(n1.address, BEYOND) as driver:
            driver.expect("ready", 60)
            redis.kill9()
            wait_for(lambda: cluster.head.status()["storage"]["state"] == "degraded", "it is not degraded")
            driver.tell("make")
            driver.expect("made", 60)
            lose_head(cluster)
            journal = home(os.environ) / "clusters" / str(cluster.head.cluster) / "journal"
            assert journal.exists()
            journal.unlink()
            redis.start()
            cluster.move_head(name="head2")
            driver.tell("look")
            driver.expect("done", 90)
            driver.end()


WRITER = """
@noded.remote(num_cpus=0, max_restarts=-1)
class Writer:
    def __init__(self, path):
        import threading
        self.path = path
        threading.Thread(target=self.write, daemon=True).start()
    def write(self):
        while True:
            with open(self.path, "a") as file:
                file.write(f"{os.getpid()}\\n")
            time.sleep(0.05)
    def ready(self):
        pass
writer = Writer.options(name="writer", lifetime="detached").remote(sys.argv[1])
noded.get(writer.ready.remote())
"""


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_head_that_is_stopped_and_replaced_runs_no_actor_twice(tmp_path: Path) -> None:
    """When another head takes its node for dead, and starts its actors, they were stopped before."""
    path = tmp_path / "writes"

    def writers() -> list[str]:
        """The pids in the order in which they wrote, each as often as it took turns."""
        turns: list[str] = []
        for line in path.read_text().splitlines():
            if not turns or turns[-1] != line:
                turns.append(line)
        return turns

    with Server(tmp_path / "redis") as redis, Members("--redis", redis.url) as cluster:
        first = cluster.head
        with Driver(first.address, WRITER, str(path)) as driver:
            driver.end()
        first.signal(signal.SIGSTOP)
        second = Member("--redis", redis.url, head=True, name="head2", cluster=first.cluster)
        with second:
            wait_for(lambda: len(writers()) == 2, lambda: f"it does not run elsewhere: {writers()}", 120)
            first.signal(signal.SIGCONT)
            assert first._process is not None
            assert first._process.wait(30) == 3, "it is superseded"
            wait_for(lambda: not first.processes(), "what ran there goes on", 20)
            assert len(writers()) == 2, "both have run at once"
