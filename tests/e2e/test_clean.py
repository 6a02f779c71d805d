"""A load of everything under `-W error` and asyncio's debug mode (stock loop): no warning, no error that nobody saw,
no callback of the daemon's loop over 50 ms.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from harness.cluster import Node

STRICT = {"PYTHONWARNINGS": "error", "NODED_ASYNCIO_DEBUG": "1", "PYTHONASYNCIODEBUG": "1"}
SLOW_MS = 50
"""What a callback may work; another program's share of the CPU does not count."""

HEADER = """
import os, sys, time
import numpy as np
import noded

noded.init(**{init})

@noded.remote
def one(x):
    return x

@noded.remote
def fails():
    raise ValueError("on purpose")
"""

LOADS = {
    "tasks": """
assert noded.get([one.remote(i) for i in range(5000)], timeout=100) == list(range(5000))
refs = [one.remote(b"x" * 50_000) for _ in range(300)]
assert all(len(v) == 50_000 for v in noded.get(refs, timeout=100))
try:
    noded.get(fails.remote(), timeout=100)
except ValueError:
    pass
chain = one.remote(0)
for _ in range(300):
    chain = one.remote(chain)
assert noded.get(chain, timeout=100) == 0
del chain, refs
""",
    "actors": """
@noded.remote
class Counter:
    def __init__(self):
        self.n = 0
    def add(self, k=1):
        self.n += k
        return self.n

counter = Counter.options(name="counter").remote()
assert noded.get([counter.add.remote() for _ in range(2000)], timeout=100)[-1] == 2000
assert noded.get(noded.get_actor("counter").add.remote(), timeout=100) == 2001
many = [Counter.options(num_cpus=0).remote() for _ in range(10)]
assert noded.get([c.add.remote(i) for i, c in enumerate(many)], timeout=100) == list(range(10))
noded.kill(many.pop())
try:
    noded.get(many[0].add.remote("no number"), timeout=100)
except TypeError:
    pass
del many, counter
""",
    "refs": """
made = [one.remote(i) for i in range(10_000)]
box = noded.put(made)
@noded.remote
def total(inside):
    return sum(noded.get(inside))
assert noded.get(total.remote(box), timeout=100) == sum(range(10_000))
again = noded.get(box)
assert len(again) == 10_000
assert noded.get(one.remote(made), timeout=100)[-1].hex() == made[-1].hex()
del made, box, again

@noded.remote(num_returns=3000)
def thousands():
    return [bytes([i % 256]) * 10 for i in range(3000)]
found = noded.get(thousands.remote(), timeout=100)
assert len(found) == 3000

@noded.remote
def takes(*args):
    return len(args)
assert noded.get(takes.remote(*[one.remote(i) for i in range(3000)]), timeout=100) == 3000
""",
    "objects": """
array = np.arange(5_000_000, dtype=np.uint8)
ref = noded.put(array)
assert noded.get([one.remote(ref) for _ in range(4)], timeout=100)[3].sum() == array.sum()
for _ in range(20):
    noded.put(np.ones(2_000_000, np.uint8))
small = [noded.put([i]) for i in range(3000)]
assert noded.get(small, timeout=100)[2999] == [2999]
ready, rest = noded.wait(small, num_returns=3000, timeout=10)
assert len(ready) == 3000 and not rest
try:
    noded.put(np.ones(400 << 20, np.uint8))
except noded.exceptions.ObjectStoreFullError:
    pass
view = noded.get(ref)
del ref, small, ready, array, view
""",
    "ends": """
@noded.remote(max_retries=0)
def dies():
    os._exit(3)
@noded.remote
def sleeps():
    time.sleep(100)
try:
    noded.get(dies.remote(), timeout=100)
except noded.exceptions.WorkerCrashedError:
    pass
ref = sleeps.remote()
try:
    noded.get(ref, timeout=0.3)
except noded.exceptions.GetTimeoutError:
    pass
noded.cancel(ref)
try:
    noded.get(ref, timeout=100)
except noded.exceptions.TaskCancelledError:
    pass
assert noded.get(one.remote(5), timeout=100) == 5
noded.nodes(), noded.cluster_resources(), noded.available_resources()
""",
}

FOOTER = """
noded.shutdown()
print("done")
"""


def drive(tmp_path: Path, init: dict[str, object], *loads: str) -> str:
    """Run a driver of its own; what it and its workers wrote beside "done"."""
    script = tmp_path / "driver.py"
    script.write_text(HEADER.format(init=repr(init)) + "".join(LOADS[name] for name in loads) + FOOTER)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", str(script)],
        env={**os.environ, **STRICT},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=110,
    )
    assert done.returncode == 0 and "done" in done.stdout, f"{done.stdout}\n{done.stderr}"
    return done.stdout.replace("done\n", "") + done.stderr


def faults(log: str) -> list[str]:
    """Lines of a daemon's log that a clean run does not have."""
    found = []
    for line in log.splitlines():
        slow = re.search(r"slow callback: \d+ ms, of these (\d+) ms at work", line)
        if slow is not None:
            if int(slow[1]) > SLOW_MS:
                found.append(line)
        elif (
            re.search(r"WARNING|ERROR|CRITICAL|Traceback|Warning|Exception|Error\b", line) and "Executing <" not in line
        ):
            found.append(line)
    return found


@pytest.mark.parametrize("load", list(LOADS))
def test_a_load_is_clean(load: str, tmp_path: Path) -> None:
    with Node("--object-store-memory", "256MB", env=STRICT) as node:
        assert node._output is not None
        output = os.dup(node._output.fileno())
        try:
            said = drive(tmp_path, {"address": node.address}, load)
            assert not said, f"the driver or a worker said:\n{said}"
            assert node.running, node.output()
            node.stop()
            log = os.pread(output, 1 << 20, 0).decode()
        finally:
            os.close(output)
    assert not faults(log), "\n".join(faults(log)) + f"\n\nthe whole log:\n{log}"


def test_a_private_cluster_is_clean(tmp_path: Path) -> None:
    """Driver, daemon, spawner, template and workers all write to the driver's stderr or to the driver."""
    said = drive(tmp_path, {"address": "local", "num_cpus": 2}, "tasks", "ends")
    assert not faults(said), said
