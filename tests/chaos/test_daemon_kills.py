"""The daemon is killed again and again at random moments under a driver that checks all it gets.

No worker dies here, so nothing may be lost and nothing may run twice. TEST_SEED repeats a run's choices (not
its timing).
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
from harness.wait import wait_for

pytestmark = pytest.mark.slow

WORK = """
import random, zlib
from collections import deque
import numpy as np

log, stop, least, actors, megabytes, seed = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:7])
rng = random.Random(seed)
fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@noded.remote(num_cpus=1)
def small(fd_path, number, ms, *others):
    fd = os.open(fd_path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"%d\\n" % number)
    os.close(fd)
    if ms: time.sleep(ms / 1000)
    return number + sum(others)

@noded.remote(num_cpus=1)
def big(fd_path, number, size):
    fd = os.open(fd_path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"%d\\n" % number)
    os.close(fd)
    return np.random.default_rng(number).integers(0, 256, size, dtype=np.uint8)

@noded.remote(num_cpus=1)
def crc(fd_path, number, array, refs):
    fd = os.open(fd_path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"%d\\n" % number)
    os.close(fd)
    return zlib.crc32(array), [zlib.crc32(a) for a in noded.get(refs)]

@noded.remote(num_cpus=0)
class Counter:
    def __init__(self): self.n = 0
    def add(self, k): self.n += k; return self.n
    def ref(self, size): return noded.put(np.full(size, self.n % 251, dtype=np.uint8)), self.n % 251

def expected(number, size):
    return np.random.default_rng(number).integers(0, 256, size, dtype=np.uint8)

counters = [Counter.remote() for _ in range(actors)]
sums = [0] * actors
views = deque()      # (view, crc): looked at again and again
held = deque()       # (ref, crc)
budget = megabytes << 20
number = total = 0
say("started")
while number < least or not os.path.exists(stop):
    wanted = []      # (ref, what it must be)
    for _ in range(rng.randrange(10, 60)):
        number += 1
        kind = rng.random()
        if kind < 0.7:
            wanted.append((small.remote(log, number, rng.choice([0, 0, 0, 1, 20])), number))
        elif kind < 0.8 and wanted:
            ref, value = rng.choice(wanted)
            if isinstance(value, int):
                wanted.append((small.remote(log, number, 0, ref), number + value))
            else:
                number -= 1
        elif kind < 0.9:
            size = rng.choice([50_000, 300_000, 2_000_000])
            ref = big.remote(log, number, size)
            held.append((ref, zlib.crc32(expected(number, size)), size))
            total += size
        else:
            size = rng.choice([200_000, 1_500_000])
            array = expected(-number % 1000, size)
            inner = [ref for ref, *_ in list(held)[:2]]
            inner_crc = [c for _, c, _ in list(held)[:2]]
            wanted.append((crc.remote(log, number, array, inner), (zlib.crc32(array), inner_crc)))
            if rng.random() < 0.5:
                held.append((noded.put(array), zlib.crc32(array), size))
                total += size
        if rng.random() < 0.5:
            i, k = rng.randrange(actors), rng.randrange(100)
            sums[i] += k
            wanted.append((counters[i].add.remote(k), sums[i]))
        if rng.random() < 0.03:
            ref, value = noded.get(counters[0].ref.remote(300_000))
            array = noded.get(ref)
            assert (array == value).all(), "a borrowed object has other bytes"
            held.append((ref, zlib.crc32(array), 300_000))
            total += 300_000
    rng.shuffle(wanted)
    if rng.random() < 0.3:
        ready, _ = noded.wait([ref for ref, _ in wanted], num_returns=len(wanted) // 2 + 1)
    for ref, value in wanted:
        got = noded.get(ref)
        assert got == value, (got, value)
    if held and rng.random() < 0.7:
        ref, c, size = rng.choice(held)
        views.append((noded.get(ref), c))
    while total > budget:
        ref, c, size = held.popleft()
        assert zlib.crc32(noded.get(ref)) == c, "an object has other bytes"
        total -= size
    while len(views) > 8:
        views.popleft()
    for view, c in views:
        assert zlib.crc32(view) == c, "the bytes under a view have changed"
    say("round", number)
for ref, c, size in held:
    assert zlib.crc32(noded.get(ref)) == c, "an object has other bytes at the end"
assert noded.get([c.add.remote(0) for c in counters]) == sums
say("right", number)
"""

STOPPED = """
import zlib, numpy as np
refs = [noded.put(np.random.default_rng(i).integers(0, 256, 3_000_000, dtype=np.uint8)) for i in range(3)]
views = noded.get(refs)
sums = [zlib.crc32(v) for v in views]
del refs
say("ready")
while hear() != "end":
    assert [zlib.crc32(v) for v in views] == sums, "a stopped driver's view has changed"
    say("right")
"""

GIL = """
import ctypes
@noded.remote(num_cpus=1, max_retries=0)
def hold(path, seconds):
    open(path, "w").close()
    ctypes.PyDLL(None).sleep(seconds)
    return os.getpid()
ref = hold.remote(sys.argv[1], int(sys.argv[2]))
assert noded.get(ref) > 0
say("right")
"""


def seed() -> int:
    value = int(os.environ.get("TEST_SEED") or random.randrange(1 << 30))
    print(f"TEST_SEED={value}")
    return value


def take_over(node: Node) -> None:
    """A second daemon is started beside a stopped one."""
    first = node._process
    assert first is not None
    node.signal(signal.SIGSTOP)
    node._process = None
    node.start()
    assert first.wait(10) == -signal.SIGKILL


def kills(tmp_path: Path, count: int, tasks: int, actors: int, megabytes: int, gil_seconds: int) -> None:
    start = seed()
    rng = random.Random(start)
    log, stop = tmp_path / "log", tmp_path / "stop"
    log.touch()
    store = str((megabytes * 4 + 128) << 20)
    with Node("--object-store-memory", store, num_cpus=4) as node:
        wait_for(lambda: node.status()["workers"] == 1, "the warm worker was not started")
        wait_for(lambda: len(node.processes()) >= 4, "daemon, spawner, template and warm worker are not there")
        at_rest = len(node.processes())
        arguments = [str(log), str(stop), str(tasks), str(actors), str(megabytes), str(start)]
        with (
            Driver(node.address, WORK, *arguments) as driver,
            Driver(node.address, GIL, str(tmp_path / "gil"), str(gil_seconds)) as gil,
            Driver(node.address, STOPPED) as stopped,
        ):
            driver.expect("started", 60)
            stopped.expect("ready", 60)
            wait_for((tmp_path / "gil").exists, "the task that holds the GIL did not start", 60)
            is_stopped = False
            for kill in range(count):
                driver.expect("round", 120)
                time.sleep(rng.random() ** 2)  # the moment is the point
                if rng.random() < 0.4:
                    stopped.signal(signal.SIGCONT if is_stopped else signal.SIGSTOP)
                    is_stopped = not is_stopped
                if rng.random() < 0.2:
                    take_over(node)
                else:
                    node.kill9()
                    if rng.random() < 0.3:
                        time.sleep(rng.random() / 2)  # away for a while
                    node.restart()
                    if rng.random() < 0.2:
                        time.sleep(rng.random() / 20)
                        node.restart()
                print(f"kill {kill + 1} of {count}")
            stopped.signal(signal.SIGCONT)
            stopped.tell("look")
            stopped.expect("right", 60)
            stop.touch()
            done = int(driver.expect("right", 300))
            gil.expect("right", 120)
            driver.end()
            gil.end()
            stopped.tell("end")
            stopped.end()
        ran = sorted(map(int, log.read_text().split()))
        assert ran == list(range(1, done + 1)), "a task ran twice or not at all"
        node.settle()
        wait_for(lambda: len(node.processes()) <= at_rest + 1, lambda: f"left: {list(map(str, node.processes()))}")


def test_daemon_kills(tmp_path: Path) -> None:
    kills(tmp_path, 5, tasks=200, actors=6, megabytes=30, gil_seconds=3)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_daemon_kills_many(tmp_path: Path) -> None:
    kills(tmp_path, 30, tasks=2000, actors=20, megabytes=200, gil_seconds=30)
