"""kill -9 of workers, drivers, daemon, spawner and template in a random mix; then nothing is left.

The drivers expect their work to fail in the ways that the API promises, and check every value that they do get.
TEST_SEED repeats a run's choices (not its timing).
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from harness.cluster import Node
from harness.drivers import Driver
from harness.processes import Process, all_processes
from harness.wait import wait_for

pytestmark = pytest.mark.slow

WORK = """
import random, subprocess, zlib
import numpy as np
from noded import exceptions as ex

children, stop, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
rng = random.Random(seed)
EXPECTED = (
    ex.WorkerCrashedError, ex.ActorDiedError, ex.ActorUnavailableError, ex.ObjectLostError, ex.OwnerDiedError,
    ex.ObjectFreedError,
)

@noded.remote(num_cpus=1)
def f(i, ms=0):
    if ms: time.sleep(ms / 1000)
    return i
@noded.remote(num_cpus=1)
def big(i):
    return np.full(400_000, i % 251, dtype=np.uint8)
@noded.remote(num_cpus=1)
def nested(i):
    return noded.get([f.remote(i), f.remote(i + 1)]), noded.put(np.full(200_000, i % 251, dtype=np.uint8))
@noded.remote(num_cpus=1, max_retries=0)
def family(path):
    code = "import os, sys, time; open(sys.argv[1], 'a').write(f'{os.getpid()}\\\\n'); time.sleep(1000)"
    subprocess.Popen([sys.executable, "-S", "-c", code, path], start_new_session=True)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            open(path, "a").write(f"{os.getpid()}\\n")
            time.sleep(1000)
        os._exit(0)
    os.wait()
    time.sleep(rng.random())
@noded.remote(num_cpus=0)
class Counter:
    def __init__(self): self.n = 0; self.held = None
    def add(self): self.n += 1; return self.n
    def hold(self, refs): self.held = refs
    def look(self): return zlib.crc32(noded.get(self.held[0]))

def attempt(work):
    try:
        work()
    except EXPECTED:
        pass
    except ex.TaskError as error:
        if not isinstance(error.cause, EXPECTED): raise

def tasks():
    i = rng.randrange(10000)
    assert noded.get([f.remote(i + k, rng.choice([0, 0, 5])) for k in range(30)]) == list(range(i, i + 30))
def bigs():
    i = rng.randrange(10000)
    for k, array in enumerate(noded.get([big.remote(i + k) for k in range(5)])):
        assert (array == (i + k) % 251).all(), "other bytes"
        views.append((array, zlib.crc32(array)))
def nests():
    i = rng.randrange(10000)
    (a, b), ref = noded.get(nested.remote(i))
    assert (a, b) == (i, i + 1)
    assert (noded.get(ref) == i % 251).all()
def actor():
    global counter, n
    try:
        got = noded.get([counter.add.remote() for _ in range(20)])
        assert got == list(range(n + 1, n + 21)), (n, got)
        n += 20
        array = np.full(300_000, n % 251, dtype=np.uint8)
        noded.get(counter.hold.remote([noded.put(array)]))
        assert noded.get(counter.look.remote()) == zlib.crc32(array)
    except (*EXPECTED, ex.TaskError) as error:
        counter, n = Counter.remote(), 0
        raise
def puts():
    array = np.random.default_rng(rng.randrange(1000)).integers(0, 256, 600_000, dtype=np.uint8)
    assert zlib.crc32(noded.get(noded.put(array))) == zlib.crc32(array)
def families():
    running.append(family.remote(children))

views, running = [], []
counter, n = Counter.remote(), 0
say("started")
while not os.path.exists(stop):
    attempt(rng.choice([tasks, tasks, bigs, nests, actor, actor, puts, families]))
    for view, crc in views:
        assert zlib.crc32(view) == crc, "the bytes under a view have changed"
    del views[:-6]
    if len(running) > 3:
        attempt(lambda: noded.get(running.pop(0)))
    say("round")
say("right")
"""


def templates(node: Node) -> list[Process]:
    every = {p.pid for p in node.workers()}
    return [p for p in node.processes() if "noded.template" in p.command and p.pid not in every]


def spawners(node: Node) -> list[Process]:
    return [p for p in node.processes() if "spawner/__main__.py" in p.command]


def end(processes: list[Process], rng: random.Random) -> bool:
    if not processes:
        return False
    try:
        os.kill(rng.choice(processes).pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def mixed(tmp_path: Path, count: int) -> None:
    seed = int(os.environ.get("TEST_SEED") or random.randrange(1 << 30))
    print(f"TEST_SEED={seed}")
    rng = random.Random(seed)
    children, stop = tmp_path / "children", tmp_path / "stop"
    kinds = ["worker"] * 8 + ["driver"] * 4 + ["daemon"] * 4 + ["spawner"] * 2 + ["template"] * 2 + ["both"]
    with Node("--object-store-memory", str(96 << 20), num_cpus=3) as node:

        def start() -> Driver:
            return Driver(node.address, WORK, str(children), str(stop), str(rng.randrange(1 << 30)))

        def again(at: int) -> None:
            """Kill a driver and start another. One that has ended itself found no node: daemon and spawner were gone,
            and the next ones took another port.
            """
            if drivers[at].process.poll() is not None:
                errors = drivers[at].errors()
                assert "ConnectionError: no noded node of this user" in errors, errors
            drivers[at].__exit__(None, None, None)
            drivers[at] = start()

        drivers = [start() for _ in range(2)]
        try:
            for number in range(count):
                kind = rng.choice(kinds)
                time.sleep(rng.random() ** 2 / 2)  # the moment is the point
                print(f"{number + 1} of {count}: {kind}", flush=True)
                if kind == "worker":
                    end(node.workers(), rng)
                elif kind == "template":
                    end(templates(node), rng)
                elif kind == "spawner":
                    end(spawners(node), rng)
                elif kind == "driver":
                    again(rng.randrange(len(drivers)))
                elif kind == "daemon":
                    node.kill9()
                    if rng.random() < 0.3:
                        end(node.workers(), rng)
                    node.restart()
                else:
                    node.kill9()
                    end(spawners(node), rng)
                    node.restart()
            for at in range(len(drivers)):
                if drivers[at].process.poll() is not None:
                    again(at)
                drivers[at].expect("round", 60)
            stop.touch()
            for driver in drivers:
                driver.expect("right", 60)
                driver.end()
        finally:
            for driver in drivers:
                driver.__exit__(None, None, None)
        node.settle()
        wait_for(lambda: len(node.workers()) <= 1, lambda: f"workers left: {list(map(str, node.workers()))}")
        pids = {int(pid) for pid in children.read_text().split()} if children.exists() else set()

        def orphans() -> list[str]:
            return [str(p) for pid, p in all_processes().items() if pid in pids and str(children) in p.command]

        wait_for(lambda: not orphans(), lambda: f"orphans: {orphans()}")


def test_process_kills(tmp_path: Path) -> None:
    mixed(tmp_path, 30)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_process_kills_many(tmp_path: Path) -> None:
    mixed(tmp_path, 300)
