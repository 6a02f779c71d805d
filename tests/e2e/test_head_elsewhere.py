"""The head's host is gone, and another head starts elsewhere on the same storage: the rest of the cluster goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

from harness.drivers import Driver
from harness.members import Members

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


def lose_head(cluster: Members) -> None:
    """All of its host: daemon, spawner, workers and run directory."""
    cluster.head.crash()
    shutil.rmtree(cluster.head.dir)


def test_the_head_starts_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files/told").write_text("told")
    with Members(num_cpus=0) as cluster:
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
