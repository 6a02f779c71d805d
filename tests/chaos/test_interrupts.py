"""Ctrl-C at random moments in get, put, wait and submit: the process and its connection stay usable."""

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

LOOP = """
import random, zlib
import numpy as np
rng = random.Random(int(sys.argv[1]))

@noded.remote(num_cpus=1)
def f(x, *more): return x
@noded.remote(num_cpus=1)
def big(size): return np.full(size, size % 251, dtype=np.uint8)
@noded.remote(num_cpus=1)
def slow(): time.sleep(0.05); return 1
@noded.remote(num_cpus=0)
class Counter:
    def __init__(self): self.n = 0
    def add(self): self.n += 1; return self.n

class Boom(Exception): pass

def turn(counter, kept):
    kind = rng.randrange(9)
    if kind == 0: assert noded.get([f.remote(i) for i in range(50)]) == list(range(50))
    elif kind == 1: assert zlib.crc32(noded.get(noded.put(data))) == crc
    elif kind == 2: kept.append(noded.put(data))
    elif kind == 3: noded.get(slow.remote())
    elif kind == 4: noded.wait([slow.remote(), f.remote(2)], num_returns=2)
    elif kind == 5: assert len(noded.get(big.remote(300_000))) == 300_000
    elif kind == 6: noded.get(counter.add.remote())
    elif kind == 7: assert noded.get(f.remote(3, data, [f.remote(4), noded.put(data)])) == 3
    else: assert noded.available_resources() is not None
    if len(kept) > 3: kept.clear()

data = np.arange(400_000)
crc = zlib.crc32(data)
counter = Counter.remote()
noded.get(counter.add.remote())
kept = []
interrupted = 0
say("ready")
def work():
    global interrupted
    while not os.path.exists(sys.argv[2]):
        try:
            while not os.path.exists(sys.argv[2]):
                turn(counter, kept)
        except KeyboardInterrupt:
            interrupted += 1
            os.truncate(sys.argv[3], interrupted)
while True:  # an interrupt may hit the handling of another
    try:
        work()
        break
    except KeyboardInterrupt:
        interrupted += 1
while True:  # the last ones may still be on their way
    try:
        say("interrupted", interrupted)
        hear()
        break
    except KeyboardInterrupt:
        pass
first = noded.get(counter.add.remote())
assert noded.get([counter.add.remote() for _ in range(50)]) == list(range(first + 1, first + 51))
assert noded.get([f.remote(i) for i in range(500)]) == list(range(500))
for _ in range(30):
    assert zlib.crc32(noded.get(noded.put(data))) == crc
noded.kill(counter)
del kept, counter
say("right")
hear()
"""


def interrupts(tmp_path: Path, count: int) -> None:
    seed = int(os.environ.get("TEST_SEED") or random.randrange(1 << 30))
    print(f"TEST_SEED={seed}")
    rng = random.Random(seed)
    stop, interrupted = Path(tmp_path) / "stop", Path(tmp_path) / "interrupted"
    interrupted.touch()
    with Node("--object-store-memory", str(64 << 20), num_cpus=2) as node:
        with Driver(node.address, LOOP, str(seed), str(stop), str(interrupted)) as driver:
            driver.expect("ready", 60)
            until = time.monotonic() + 60
            sent = 0
            # Those that come while the machine runs something else are one by the time they are seen.
            while sent < count or interrupted.stat().st_size <= count // 10:
                assert time.monotonic() < until, f"{interrupted.stat().st_size} interrupts of {sent} are seen"
                time.sleep(rng.uniform(0.001, 0.02))
                driver.signal(signal.SIGINT)
                sent += 1
            stop.touch()
            driver.expect("interrupted", 60)
            driver.tell("go on")
            driver.expect("right", 60)
            wait_for(
                lambda: not node.status()["store"]["objects"],
                lambda: f"interrupted puts have left objects: {node.status()['store']}",
            )
            assert "ignored" not in driver.errors()
            driver.tell("end")
            driver.end()
        node.settle()


def test_interrupts(tmp_path: Path) -> None:
    interrupts(tmp_path, 150)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_interrupts_many(tmp_path: Path) -> None:
    interrupts(tmp_path, 3000)
