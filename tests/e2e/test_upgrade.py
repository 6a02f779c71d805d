"""A daemon of another version in place of the one before: it takes over what speaks its version or the one before,
and otherwise says what is wrong and leaves everything as it is (docs/upgrade.md). The other versions are copies of this
tree (harness/versions.py).
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from harness.cluster import REPOSITORY, Node
from harness.drivers import Driver
from harness.versions import make_tree
from harness.wait import wait_for

import noded

SOURCE = """
from pathlib import Path

@noded.remote
class Counter:
    def __init__(self): self.count = 0
    def add(self):
        self.count += 1
        return self.count, os.getpid()
    def version(self):
        from noded.version import __version__
        return __version__

@noded.remote
def wait_for_file(path):
    print("begun", file=open(path + ".begun", "w"))
    while not os.path.exists(path): time.sleep(0.02)
    return "finished"

@noded.remote
def version():
    from noded.version import __version__
    return __version__

counter = Counter.options(name="counter", lifetime="detached").remote()
kept = noded.put(b"x" * 300_000)
running = wait_for_file.remote(sys.argv[1])
say("actor", *noded.get(counter.add.remote(), timeout=30))
say("version", noded.get(version.remote(), timeout=30))
while word := hear():
    if word == "all":
        say("actor", *noded.get(counter.add.remote(), timeout=30))
        say("object", len(noded.get(kept, timeout=30)))
        say("version", noded.get(version.remote(), timeout=30))
    elif word == "fresh":
        actors = [Counter.options(num_cpus=0).remote() for _ in range(8)]
        say("fresh", *noded.get([actor.version.remote() for actor in actors], timeout=30))
    else:
        say("task", noded.get(running, timeout=30))
"""


def all_is_there(driver: Driver, actor: str, count: int) -> str:
    """The version of the tasks' worker."""
    driver.tell("all")
    assert driver.expect("actor").split() == [str(count), actor]
    assert driver.expect("object") == "300000"
    return driver.expect("version")


def finish(driver: Driver, gate: Path) -> None:
    """The task that has been running all the time."""
    gate.touch()
    driver.tell("task")
    assert driver.expect("task") == "finished"


def test_a_daemon_takes_over_what_the_version_before_runs(tmp_path: Path) -> None:
    older = make_tree(tmp_path / "older", -1)
    gate = tmp_path / "gate"
    with Node(root=older, num_cpus=3) as node, Driver(node.address, SOURCE, str(gate), root=older) as driver:
        count, actor = driver.expect("actor").split()
        assert driver.expect("version") == "0.0.49"
        wait_for(gate.with_name("gate.begun").exists, "the task does not begin")
        node.kill9()
        node.root = REPOSITORY
        node.start()
        assert all_is_there(driver, actor, int(count) + 1)
        finish(driver, gate)
        with noded.init(address=node.address, namespace="test", log_to_driver=False):
            # A program of this version, and an actor of the one before.
            assert noded.get(noded.get_actor("counter").add.remote(), timeout=30) == (int(count) + 2, int(actor))
        # A second takeover finds templates and workers of both.
        node.restart()
        all_is_there(driver, actor, int(count) + 3)
        driver.tell("fresh")  # those of the version before that are idle are used up first
        assert noded.__version__ in driver.expect("fresh").split()


NOTHING = "Nothing has ended"
QUICK = (("spawner", -2), ("messages", 1))
REFUSALS = {
    ("spawner", -2): r"spawner \d+ speaks protocol 0 to 1, the daemon 2: start the daemon of the version that",
    ("ledger", -2): f"ledger has layout 2 .* that of an older noded.* {NOTHING}",
    ("ledger", 1): f"ledger has layout 5 .* that of a newer noded.* {NOTHING}",
    ("messages", -2): f"runs here and speaks protocol 1, this daemon 3: .* install the same version.* {NOTHING}",
    ("messages", 1): f"runs here and speaks protocol 4, this daemon 3: the daemon is the older one.* {NOTHING}",
}


@pytest.mark.parametrize(
    ("contract", "step"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in REFUSALS],
)
def test_what_a_daemon_does_not_understand_it_leaves_alone(tmp_path: Path, contract: str, step: int) -> None:
    other = make_tree(tmp_path / "other", step, [contract])
    gate = tmp_path / "gate"
    with Node(root=other, num_cpus=3) as node, Driver(node.address, SOURCE, str(gate), root=other) as driver:
        count, actor = driver.expect("actor").split()
        driver.expect("version")
        node.kill9()
        node.root = REPOSITORY
        told = node.refused()
        assert re.search(REFUSALS[contract, step], told, re.DOTALL), told
        node.root = other
        node.start()
        all_is_there(driver, actor, int(count) + 1)
        finish(driver, gate)


def test_version_is_an_option() -> None:
    done = subprocess.run([sys.executable, "-m", "noded", "--version"], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"noded {noded.__version__}\n")
