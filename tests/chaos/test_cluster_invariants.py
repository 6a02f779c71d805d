"""Random things happen to a cluster of several nodes on this machine, and what its nodes count must always add up.

A driver submits, cancels, makes and kills actors and placement groups; the test adds, kills and restarts nodes. All the
while each node is asked what it counts; at the end all of it must be zero. TEST_SEED repeats a run's choices (not its
timing).
"""

from __future__ import annotations

import os
import random
import signal
import time

import pytest
from harness.drivers import Driver
from harness.invariants import Checker, figures, settled
from harness.members import Member, Members
from harness.wait import wait_for

pytestmark = pytest.mark.slow

WORK = """
import random, signal
import numpy as np
from noded import exceptions as ex
from noded.util.placement_group import placement_group, remove_placement_group
from noded.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy as At, PlacementGroupSchedulingStrategy as In,
)

rng = random.Random(int(sys.argv[1]))
MAY = (
    ex.WorkerCrashedError, ex.ActorError, ex.ObjectLostError, ex.TaskCancelledError, ex.TaskUnschedulableError,
    ex.ActorUnschedulableError, ex.TaskPlacementGroupRemoved, ex.ActorPlacementGroupRemoved, ex.NodeDiedError,
)
refs = []        # (ref, what it must be)
actors, groups = [], []

@noded.remote
def plain(k, ms, *others):
    if ms: time.sleep(ms / 1000)
    return k
@noded.remote
def nested(k):
    return sum(noded.get([plain.options(num_cpus=0.5).remote(k, 5), plain.options(num_cpus=0).remote(1, 0)])) - 1
@noded.remote
def big(k):
    return np.full(200_000, k % 251, dtype=np.uint8)
@noded.remote
class Actor:
    def __init__(self): self.ref = None
    def say(self, k): return k
    def keep(self, refs): self.ref = refs; return True
    def make(self, k): return noded.get(plain.options(num_cpus=0.5).remote(k, 1))

def where():
    kind = rng.random()
    if kind < 0.15 and groups:
        group, count = rng.choice(groups)
        return In(group, rng.randrange(-1, count))
    if kind < 0.35:
        return "SPREAD"
    if kind < 0.5:
        return At(rng.choice([n["NodeID"] for n in noded.nodes() if n["Alive"]]), soft=True)
    return None

def options(**more):
    strategy = where()
    in_group = isinstance(strategy, In)
    cpus = rng.choice([0, 0.5, 1]) if in_group else rng.choice([0, 0.5, 0.5, 1, 1, 2])
    made = {"num_cpus": cpus, **more}
    if strategy is not None: made["scheduling_strategy"] = strategy
    if rng.random() < 0.15 and not in_group: made["resources"] = {"x": 1}
    return made

def made(what):
    # A group that cannot hold it is refused at once.
    try:
        return what()
    except ValueError as refusal:
        assert "placement group" in str(refusal) or "bundle" in str(refusal), refusal
        return None

number = 0
def fresh():
    global number
    number += 1
    return number

def submit():
    for _ in range(rng.randrange(1, 12)):
        k = fresh()
        others = [rng.choice(refs)[0]] if refs and rng.random() < 0.2 else []
        kind = rng.random()
        if kind < 0.7:
            ref = made(lambda: plain.options(**options()).remote(k, rng.choice([0, 0, 1, 30, 200]), *others))
        elif kind < 0.85:
            ref = made(lambda: nested.options(**options()).remote(k))
        else:
            ref = made(lambda: big.options(**options()).remote(k))
            if ref is not None: refs.append((ref, np.full(200_000, k % 251, dtype=np.uint8)))
            continue
        if ref is not None: refs.append((ref, k))
def cancel():
    for ref, _ in rng.sample(refs, min(len(refs), 3)):
        try: noded.cancel(ref, force=rng.random() < 0.3)
        except (TypeError, ValueError): pass          # of an actor's call; force is not for these
def actor():
    a = made(lambda: Actor.options(**options(max_restarts=rng.choice([0, 0, 1, -1]))).remote())
    if a is not None: actors.append(a)
    if len(actors) > 8: actors.pop(0)
def call():
    for a in rng.sample(actors, min(len(actors), 3)):
        k = fresh()
        kind = rng.random()
        if kind < 0.6: refs.append((a.say.remote(k), k))
        elif kind < 0.8: refs.append((a.make.remote(k), k))
        else: refs.append((a.keep.remote([noded.put(np.zeros(150_000, dtype=np.uint8))]), True))
def kill():
    if actors:
        a = rng.choice(actors)
        if rng.random() < 0.3: actors.remove(a)       # dropped; it ends by itself
        else: noded.kill(a, no_restart=rng.random() < 0.6)
def group():
    count = rng.randrange(1, 4)
    bundles = [{"CPU": rng.choice([0.5, 1, 1]), **({"x": 1} if rng.random() < 0.2 else {})} for _ in range(count)]
    strategy = rng.choice(["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"])
    groups.append((placement_group(bundles, strategy), count))
    if len(groups) > 3: ungroup()
def ungroup():
    if groups: remove_placement_group(groups.pop(rng.randrange(len(groups)))[0])
def story(ref):
    from noded.util.state import explain
    placed = bool(noded.wait([ref], timeout=0, fetch_local=False)[0])
    try: return f"{ref.hex()} ({placed=}): {explain(ref)}"
    except Exception as error: return f"{ref.hex()} ({placed=}): {error!r}"
def look(timeout=0.05):
    if refs:
        ready, _ = noded.wait([r for r, _ in refs], num_returns=len(refs), timeout=timeout)
        ready = set(ready)
        for ref, value in [p for p in refs if p[0] in ready]:
            try:
                got = noded.get(ref, timeout=30)
                right = (got == value).all() if isinstance(value, np.ndarray) else got == value
                assert right, f"{got!r} is not {value!r}"
            except ex.GetTimeoutError as error:
                raise AssertionError(f"it was ready, and is not there: {story(ref)}, to be {value!r:.60}") from error
            except MAY: pass
            except ex.TaskError as error:
                if not isinstance(error.cause, (*MAY, ex.TaskError)): raise
        refs[:] = [p for p in refs if p[0] not in ready]

say("ready")
while (word := hear()) != "end":
    globals()[word]()
    if len(refs) > 60 or rng.random() < 0.3: look()
    say("did", word)
while groups: ungroup()
for a in actors: noded.kill(a)
deadline = time.monotonic() + float(hear())
while refs and time.monotonic() < deadline: look(1.0)
if refs:
    say("end", len(refs), "hang:", *(story(ref) for ref, _ in refs[:5]))
else:
    say("end")
"""


class Nodes:
    """What is done to the nodes. The driver is at the head's, whose processes therefore live; its daemon does not."""

    FLAGS = ("--resources", '{"x": 2}')
    MOST = 3

    def __init__(self, cluster: Members, rng: random.Random) -> None:
        self.cluster, self.rng = cluster, rng
        self.gone: list[Member] = []

    @property
    def members(self) -> list[Member]:
        return [m for m in self.cluster.all.values() if not m.head and m.running]

    def add(self) -> None:
        if len(self.members) < self.MOST:
            self.cluster.add(*self.FLAGS)

    def leave(self) -> None:
        if len(self.members) > 1:
            self.rng.choice(self.members).stop(30)

    def crash(self) -> None:
        """All of a node at once, as when its machine fails; then it starts anew."""
        member = self.rng.choice(self.members)
        member.crash()
        time.sleep(self.rng.random() ** 2)
        member.start()

    def restart(self) -> None:
        self._restart(self.rng.choice(self.members))

    def restart_head(self) -> None:
        self._restart(self.cluster.head)

    def _restart(self, member: Member) -> None:
        member.kill9()
        time.sleep(self.rng.random() ** 3)
        member.restart()


WORDS = {"submit": 30, "cancel": 8, "actor": 10, "call": 12, "kill": 6, "group": 8, "ungroup": 5, "look": 8}
DEEDS = {"add": 3, "leave": 2, "crash": 3, "restart": 4, "restart_head": 3}


def cycles(count: int, patience: float, *only: str) -> None:
    seed = int(os.environ.get("TEST_SEED") or random.randrange(1 << 30))
    print(f"TEST_SEED={seed}")
    rng = random.Random(seed)
    words = [word for word in (*WORDS, *DEEDS) if not only or word in only]
    weights = [{**WORDS, **DEEDS}[word] for word in words]
    with Members("--object-store-memory", str(96 << 20)) as cluster:
        nodes = Nodes(cluster, rng)
        nodes.add()
        nodes.add()
        with Checker(cluster) as checker, Driver(cluster.address, WORK, str(seed)) as driver:
            driver.expect("ready", 60)
            for number in range(count):
                word = rng.choices(words, weights)[0]
                print(f"{number + 1} of {count}: {word}", flush=True)
                if word in WORDS:
                    driver.tell(word)
                    driver.expect("did", 60)
                else:
                    getattr(nodes, word)()
                assert not checker.problems, checker.problems
                time.sleep(rng.random() ** 3 / 5)
            driver.tell("end")
            driver.tell(f"{patience:g}")
            line = driver.expect("end", patience + 60)
            assert line == "", f"{line}\n{figures(cluster)}"
            driver.end()
        for member in [m for m in cluster.all.values() if m.running]:
            settled(member, patience)
        assert checker.answers and not checker.problems, checker.problems


BIGS = """
import random
import numpy as np
from noded import exceptions as ex
rng = random.Random(int(sys.argv[1]))
@noded.remote
def big(k): return np.full(200_000, k % 251, dtype=np.uint8)
WAYS = [{"num_cpus": 1, "resources": {"x": 1}}, {"num_cpus": 0.5, "scheduling_strategy": "SPREAD"}, {"num_cpus": 0}]
noded.get([big.options(**way).remote(0) for way in WAYS])
say("ready")
while hear() != "end":
    refs = []
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        refs.append(big.options(**rng.choice(WAYS)).remote(len(refs)))
        time.sleep(0.01)
    for k, ref in enumerate(refs):
        assert (noded.get(ref, timeout=20) == k % 251).all(), "other bytes"
    say("did", len(refs))
"""

LEAVES = """
@noded.remote(num_cpus=1, resources={"x": 1})
def long(): time.sleep(1000)
@noded.remote(num_cpus=0.5, resources={"x": 1})
class Actor:
    def say(self): return 1
actor = Actor.remote()
noded.get(actor.say.remote())
ref = long.remote()
while noded.available_resources().get("x", 0): time.sleep(0.05)
say("ready")
hear()
"""

UNHEARD = """
import numpy as np
from noded import exceptions as ex
@noded.remote(num_cpus=1, resources={"x": 1}, max_retries=0)
def big(seconds):
    time.sleep(seconds)
    return np.zeros(300_000, dtype=np.uint8)
noded.get(big.remote(0))
ref = big.remote(1)
time.sleep(0.5)
say("begun")
noded.wait([ref], fetch_local=False)
say("done")
hear()
try:
    noded.get(ref, timeout=5)
except ex.ObjectLostError:
    say("lost")
"""

STARTED_OVER = """
import threading
import numpy as np
from noded import exceptions as ex
from noded.client.refs import AWAY
@noded.remote(num_cpus=1, resources={"x": 1})
def big(): return np.ones(300_000, dtype=np.uint8)
kept, wanted = big.options(max_retries=0).remote(), big.options(max_retries=0).remote()
again = big.remote()
noded.wait([kept, wanted, again], num_returns=3, fetch_local=False)
say("made")
def ask():
    try: noded.get(wanted)
    except ex.ObjectLostError: say("lost", "wanted")
hear()
thread = threading.Thread(target=ask)
thread.start()
while wanted._state == AWAY: time.sleep(0.01)
say("asked")
hear()
try: noded.get(kept, timeout=30)
except ex.ObjectLostError: say("lost", "kept")
thread.join()
say("told")
hear()
assert noded.get(big.remote(), timeout=30).sum() == 300_000
assert noded.get(again, timeout=30).sum() == 300_000
say("on")
"""

ENDED_WITH_ITS_NODE = """
from noded import exceptions as ex
from noded.util.scheduling_strategies import NodeAffinitySchedulingStrategy as At
here = noded.get_runtime_context().get_node_id()
@noded.remote(num_cpus=0, scheduling_strategy=At(here, soft=False))
class Actor:
    def say(self): return 1
actor = Actor.remote()
assert noded.get(actor.say.remote()) == 1
say("made")
hear()
try: noded.get(actor.say.remote(), timeout=40)
except ex.ActorDiedError: say("died")
"""


def test_results_elsewhere_outlive_the_heads_daemon() -> None:
    """Also of tasks that were not pushed yet when it went."""
    seed = int(os.environ.get("TEST_SEED") or random.randrange(1 << 30))
    print(f"TEST_SEED={seed}")
    rng = random.Random(seed)
    with Members("--object-store-memory", str(96 << 20)) as cluster:
        cluster.add(*Nodes.FLAGS)
        with Driver(cluster.address, BIGS, str(seed)) as driver:
            driver.expect("ready", 60)
            for _ in range(5):
                driver.tell("go")
                time.sleep(rng.random() / 2)
                cluster.head.restart()
                driver.expect("did", 60)
            driver.tell("end")
            driver.end()


def test_a_driver_that_dies_while_the_heads_daemon_is_away() -> None:
    """What it had on other nodes ends as well."""
    with Members("--object-store-memory", str(96 << 20)) as cluster:
        member = cluster.add(*Nodes.FLAGS)
        with Driver(cluster.address, LEAVES) as driver:
            driver.expect("ready", 60)
            cluster.head.kill9()
            driver.kill()
            cluster.head.restart()
        settled(member, 20)
        assert member.settle()["actors"] == 0


def test_a_driver_whose_node_starts_over_is_told_what_it_has_lost_elsewhere() -> None:
    """Its results on another node, asked for or not, are not found any more; the driver goes on."""
    with Members("--object-store-memory", str(96 << 20)) as cluster:
        home = cluster.add()
        member = cluster.add(*Nodes.FLAGS)
        with Driver(home.address, STARTED_OVER) as driver:
            driver.expect("made", 60)
            member.signal(signal.SIGSTOP)
            driver.tell("ask")
            driver.expect("asked")
            home.crash()
            member.signal(signal.SIGCONT)
            home.start()
            driver.tell("look")
            assert {driver.expect("lost"), driver.expect("lost")} == {"wanted", "kept"}
            driver.expect("told")
            # What is made for the node before its death is known is dropped with what was made for the one before.
            wait_for(lambda: "is dead: it started over" in member.output(), "the other node does not learn of it", 20)
            driver.tell("more")
            driver.expect("on")
            driver.end()


def test_an_actor_that_ended_with_the_heads_node_while_a_member_is_awaited() -> None:
    """Nobody is left who could tell of it, and its creator lives: a call is answered when all nodes have told."""
    with Members("--object-store-memory", str(96 << 20)) as cluster:
        member = cluster.add()
        with Driver(cluster.address, ENDED_WITH_ITS_NODE) as driver:
            driver.expect("made", 60)
            member.signal(signal.SIGSTOP)
            cluster.head.crash()
            cluster.head.start()
            wait_for(lambda: cluster.head.status()["drivers"], "the driver does not come back")
            driver.tell("call")
            member.signal(signal.SIGCONT)
            driver.expect("died", 60)
            driver.end()


def test_a_result_that_nobody_has_heard_of() -> None:
    """A worker has answered with a value that lies on its node, whose daemon never came to tell."""
    with Members("--object-store-memory", str(96 << 20)) as cluster:
        member = cluster.add(*Nodes.FLAGS)
        with Driver(cluster.address, UNHEARD) as driver:
            driver.expect("begun", 60)
            member.signal(signal.SIGSTOP)
            driver.expect("done", 60)
            Nodes(cluster, random.Random()).crash()
            driver.tell("look")
            driver.expect("lost", 30)
            driver.end()


def test_cluster_invariants() -> None:
    cycles(30, 30)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_cluster_invariants_many() -> None:
    cycles(500, 90)
