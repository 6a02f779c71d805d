"""Several drivers at once, with tasks, streams and actors of every kind, while the daemon and workers are killed.

Tasks may run again, so each result must be exact. Actors that keep a state start over when their worker dies: what they
answer must be within what they may know. TEST_SEED repeats a run's choices (not its timing).
"""

from __future__ import annotations

import os
import random
import signal
import time

import pytest
from harness.cluster import Node
from harness.drivers import Driver
from harness.processes import Process
from harness.wait import wait_for

pytestmark = pytest.mark.slow

WORK = """
import random
from noded.exceptions import ActorDiedError, ActorUnavailableError

tasks, actors, seed = map(int, sys.argv[1:4])
rng = random.Random(seed)

@noded.remote(max_retries=-1)
def square(x):
    return x * x

@noded.remote(max_retries=-1)
def both(x, ref):
    return x + noded.get(ref[0])

@noded.remote(max_retries=-1)
def stream(x):
    for i in range(5):
        yield b"x" * 150_000 if i == 2 else x + i

class Echo:
    def __init__(self): self.n = 0
    def echo(self, x): return x
    def add(self): self.n += 1; return self.n

class AsyncEcho:
    def __init__(self): self.n = 0
    async def echo(self, x):
        if x % 3 == 0:
            import asyncio
            await asyncio.sleep(0.001)
        return x
    async def add(self): self.n += 1; return self.n

options = dict(num_cpus=0, max_restarts=-1)
plain = noded.remote(**options)(Echo)
threaded = noded.remote(max_concurrency=4, **options)(Echo)
eventful = noded.remote(**options)(AsyncEcho)
made = [rng.choice([plain, threaded, eventful]).remote() for _ in range(actors)]
adds = [0] * actors
say("started")
done = 0
while done < tasks:
    wanted = []
    for _ in range(min(200, tasks - done)):
        x = rng.randrange(1 << 20)
        kind = rng.random()
        if kind < 0.8:
            wanted.append((square.remote(x), x * x))
        elif kind < 0.95:
            wanted.append((both.remote(1, [square.remote(x)]), x * x + 1))
        else:
            wanted.append((stream.remote(x), [x, x + 1, b"x" * 150_000, x + 3, x + 4]))
        done += 1
    counted = []
    for _ in range(20):
        at, x = rng.randrange(actors), rng.randrange(1000)
        wanted.append((made[at].echo.options(max_task_retries=-1).remote(x), x))
        adds[at] += 1
        counted.append((made[at].add.remote(), adds[at]))
    for ref, value in wanted:
        got = [noded.get(item) for item in ref] if isinstance(value, list) else noded.get(ref)
        assert got == value, (got if isinstance(got, int) else "a stream", value if isinstance(value, int) else "")
    for ref, most in counted:
        try:
            assert 1 <= noded.get(ref) <= most, "a counter counted what was not asked for"
        except (ActorUnavailableError, ActorDiedError) as error:
            assert not isinstance(error, ActorDiedError), "an actor that restarts for ever is dead"
say("right")
hear()
"""


def workers(node: Node) -> list[Process]:
    template = b":template00000000\0"
    found = [p for p in node.processes() if "noded.template" in p.command and p.state not in "ZX"]
    return [p for p in found if template not in p.started_with]


def together(drivers: int, tasks: int, actors: int, pause: float) -> None:
    seed = int(os.environ.get("TEST_SEED") or random.randrange(1 << 30))
    print(f"TEST_SEED={seed}")
    rng = random.Random(seed)
    with Node(num_cpus=4) as node:
        running = [
            Driver(node.address, WORK, str(tasks // drivers), str(actors // drivers), str(rng.randrange(1 << 30)))
            for _ in range(drivers)
        ]
        try:
            for driver in running:
                driver.expect("started", 120)
            kills = {"daemon": 0, "worker": 0}
            open_ = list(running)
            deadline = time.monotonic() + 1000
            while open_:
                assert time.monotonic() < deadline, f"{len(open_)} drivers are not through; {kills}"
                time.sleep(rng.random() * pause)  # the moment is the point
                if rng.random() < 0.3:
                    node.kill9()
                    node.restart()
                    kills["daemon"] += 1
                elif found := workers(node):
                    try:
                        os.kill(rng.choice(found).pid, signal.SIGKILL)
                        kills["worker"] += 1
                    except ProcessLookupError:
                        pass
                open_ = [driver for driver in open_ if not driver.has_said("right")]
            print(f"{kills['daemon']} daemons and {kills['worker']} workers killed")
            for driver in running:
                driver.tell("")
                driver.end(60)
        finally:
            for driver in running:
                driver.__exit__(None, None, None)
        node.settle()
        wait_for(lambda: len(workers(node)) <= 1, lambda: f"workers left: {list(map(str, workers(node)))}")


def test_some_drivers_at_once() -> None:
    together(3, 2_000, 12, 0.4)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_drivers_at_once() -> None:
    together(10, 50_000, 200, 0.5)
