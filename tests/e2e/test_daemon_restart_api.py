"""The daemon is away, by kill -9 or stopped for two seconds, at one chosen moment of each part of the Core API.

Nothing is lost and nothing happens twice; afterwards all resources are free and the store is empty (the fixture
looks). Plain tasks, actors and objects are in test_daemon_restart.py, random moments in tests/chaos.
"""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.cluster import Node
from harness.drivers import Driver
from harness.gates import Gate, Notes
from harness.processes import all_processes
from harness.wait import wait_for

import noded
from noded.client.exits import exit_actor
from noded.exceptions import ActorDiedError, ActorUnavailableError, TaskCancelledError, WorkerCrashedError

pytestmark = pytest.mark.slow

MB = 1 << 20
TIMEOUT = 40
FAULTS = ["killed", "stopped"]


@pytest.fixture
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    """A node with this process as its driver; of which nothing is in use once a test has gone well."""
    failed = request.session.testsfailed
    with Node("--object-store-memory", str(128 * MB), num_cpus=4) as node:
        noded.init(address=node.address, log_to_driver=False, namespace="test")
        try:
            yield node
            if request.session.testsfailed == failed:
                gc.collect()
                wait_for(
                    lambda: noded.available_resources() == noded.cluster_resources(),
                    lambda: f"not free: {noded.available_resources()} of {noded.cluster_resources()}",
                    20,
                )
        finally:
            noded.shutdown()
        if request.session.testsfailed == failed:
            node.settle()


@contextmanager
def away(node: Node, fault: str = "killed") -> Iterator[None]:
    """In here there is no daemon that does anything."""
    if fault == "killed":
        node.kill9()
        yield
        node.restart()
    else:
        back = time.monotonic() + 2
        node.signal(signal.SIGSTOP)
        yield
        time.sleep(max(0, back - time.monotonic()))
        node.signal(signal.SIGCONT)


def ended(pid: int) -> bool:
    found = all_processes().get(pid)
    return found is None or found.state in "ZX"


def get(refs: Any) -> Any:
    return noded.get(refs, timeout=TIMEOUT)


def item(i: int) -> Any:
    """Every third is too big for a message."""
    return np.full(150_000, i % 251, dtype=np.uint8) if i % 3 == 0 else i


def number(value: Any) -> int:
    return value if isinstance(value, int) else int(value[0])


@noded.remote
def stream(notes: Notes, count: int) -> Iterator[Any]:
    for i in range(count):
        notes.add(i)
        yield item(i)


@noded.remote(max_restarts=1)
class Async:
    def __init__(self, notes: Notes) -> None:
        self.notes = notes
        self.count = 0
        notes.add("made")

    async def stream(self, notes: Notes, count: int) -> AsyncIterator[Any]:
        for i in range(count):
            notes.add(i)
            await asyncio.sleep(0)
            yield item(i)

    async def add(self, gate: Gate | None = None, ref: Any = None) -> int:
        if gate is not None:
            while not gate.is_open():  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        if ref is not None:
            await ref[0]
        self.count += 1
        return self.count

    async def leave(self) -> None:
        exit_actor()


@noded.remote(max_concurrency=4)
class Threads:
    def __init__(self) -> None:
        self.notes: list[int] = []

    def add(self, number: int, gate: Gate | None = None) -> int:
        if gate is not None:
            gate.wait()
        self.notes.append(number)
        return number

    def seen(self) -> list[int]:
        return self.notes


@noded.remote(num_cpus=0)
def passes(gate: Gate, value: Any = None) -> Any:
    gate.wait()
    return value


# ---------------------------------------------------------------- streams


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("kind", ["task", "async"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_stream_that_is_half_taken(node: Node, tmp_path: Path, fault: str, kind: str, window: int | None) -> None:
    notes, count = Notes(tmp_path / "notes"), 90
    maker = stream if kind == "task" else Async.remote(Notes(tmp_path / "made")).stream
    items = maker.options(_generator_backpressure_num_objects=window).remote(notes, count)
    taken = [number(get(next(items))) for _ in range(10)]
    if window:
        notes.wait(10 + window)
    with away(node, fault):
        taken += [number(noded.get(next(items))) for _ in range(10)]
        if window:
            notes.wait(20 + window)
            assert len(notes.all()) <= 21 + window, "it runs ahead of its caller"
        kept = [next(items) for _ in range(5)]
        taken += [number(noded.get(ref)) for ref in kept]
        del kept
    taken += [number(get(ref)) for ref in items]
    assert taken == list(range(count))
    assert notes.all() == [str(i) for i in range(count)], "it ran twice"
    assert get(items.completed()) is None


def test_items_that_are_dropped_while_nobody_listens_are_not_kept(node: Node, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")

    @noded.remote
    def arrays(gate: Gate) -> Iterator[Any]:
        for i in range(30):
            yield np.full(150_000, i, dtype=np.uint8)
        gate.wait()
        yield 30

    items = arrays.remote(gate)
    before = [next(items) for _ in range(20)]
    get(before)
    with away(node):
        del before
        for _ in range(5):
            assert noded.get(next(items)).size
    # The stream still runs, so its caller may yet be owed what is there; but not what it has had.
    wait_for(lambda: node.status()["store"]["ids"] <= 7, lambda: f"left: {node.status()['store']}")
    gate.open()
    assert [number(get(ref)) for ref in items] == [25, 26, 27, 28, 29, 30]


def test_a_stream_that_is_dropped_while_the_daemon_is_away(node: Node, tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes")
    items = stream.options(_generator_backpressure_num_objects=2).remote(notes, 50)
    get(next(items))
    end = items.completed()
    with away(node):
        del items
        notes.wait(50)
    assert get(end) is None


# ---------------------------------------------------------------- actors


@pytest.mark.parametrize("fault", FAULTS)
def test_calls_of_async_and_threaded_actors(node: Node, tmp_path: Path, fault: str) -> None:
    gate, made = Gate(tmp_path / "gate"), Notes(tmp_path / "made")
    first, second = Async.remote(made), Threads.remote()
    get([first.__ray_ready__.remote(), second.__ray_ready__.remote()])
    waiting = passes.remote(gate)
    counts = [first.add.remote(gate) for _ in range(20)] + [first.add.remote(None, [waiting]) for _ in range(5)]
    numbers = [second.add.remote(i, gate) for i in range(10)]
    with away(node, fault):
        counts += [first.add.remote() for _ in range(20)]
        assert noded.get(counts[-1], timeout=TIMEOUT) <= 20, "a direct call waits for the daemon"
        numbers += [second.add.remote(i) for i in range(10, 30)]
        gate.open()
        assert noded.get(numbers, timeout=TIMEOUT) == list(range(30))
    counts += [first.add.remote() for _ in range(5)]
    assert sorted(get(counts)) == list(range(1, 51))
    assert sorted(get(second.seen.remote())) == list(range(30))
    assert made.all() == ["made"]


@pytest.mark.parametrize("fault", FAULTS)
def test_an_actor_that_exits_by_itself_while_the_daemon_is_away(node: Node, tmp_path: Path, fault: str) -> None:
    made = Notes(tmp_path / "made")
    actor = Async.options(name="leaver").remote(made)
    get(actor.add.remote())
    with away(node, fault):
        left = actor.leave.remote()
    with pytest.raises(ActorDiedError, match=r"exit_actor\(\)"):
        get(left)
    with pytest.raises(ActorDiedError, match=r"exit_actor\(\)"):
        get(actor.add.remote())
    assert made.all() == ["made"]
    again = Async.options(name="leaver").remote(made)
    assert get(again.add.remote()) == 1


def test_an_actor_whose_end_nobody_saw_is_not_made_again(node: Node, tmp_path: Path) -> None:
    """The daemon dies after it told the actor to exit, and before it has ended."""
    exits, gate, made = Gate(tmp_path / "exits"), Gate(tmp_path / "gate"), Notes(tmp_path / "made")

    @noded.remote(max_restarts=-1)
    class Slow:
        def __init__(self) -> None:
            import atexit

            made.add(os.getpid())
            atexit.register(gate.wait)
            atexit.register(exits.open)

        def leave(self) -> None:
            exit_actor()

    actor = Slow.remote()
    left = actor.leave.remote()
    exits.wait()
    with away(node):
        gate.open()
        wait_for(lambda: ended(int(made.all()[0])), "its process does not end")
    with pytest.raises(ActorDiedError, match=r"exit_actor\(\)"):
        get(left)
    assert len(made.all()) == 1


@pytest.mark.parametrize("retries", [0, 1])
def test_an_actor_that_dies_and_is_made_again_while_nobody_could_tell(node: Node, tmp_path: Path, retries: int) -> None:
    gate = Gate(tmp_path / "gate")

    @noded.remote(max_restarts=-1, max_task_retries=retries)
    class Actor:
        def pid(self) -> int:
            return os.getpid()

        def wait(self) -> int:
            gate.wait()
            return os.getpid()

        def items(self) -> Iterator[int]:
            yield 1
            gate.wait()
            yield 2

    actor = Actor.remote()
    pid = get(actor.pid.remote())
    items = actor.items.remote()
    assert get(next(items)) == 1
    calls = [actor.wait.remote() for _ in range(3)]
    with away(node):
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: ended(pid), "it lives on")
    gate.open()
    if retries:
        assert len({pid, *get(calls)}) == 2
        assert [get(ref) for ref in items] == [2]
    else:
        for ref in [*calls, next(items)]:
            with pytest.raises(ActorUnavailableError):
                get(ref)
    assert get(actor.pid.remote()) != pid


def test_a_constructor_that_fails_while_the_daemon_is_away(node: Node, tmp_path: Path) -> None:
    started, gate = Gate(tmp_path / "started"), Gate(tmp_path / "gate")

    @noded.remote
    class Fails:
        def __init__(self) -> None:
            started.open()
            gate.wait()
            raise ValueError("no luck")

        def ping(self) -> None:
            pass

    actor = Fails.remote()
    ref = actor.ping.remote()
    started.wait()
    with away(node):
        gate.open()
    with pytest.raises(ActorDiedError, match="no luck"):
        get(ref)


def test_an_actor_that_is_dropped_while_the_daemon_is_away(node: Node, tmp_path: Path) -> None:
    actors = [Threads.remote(), Threads.options(name="named", max_restarts=1, num_cpus=1).remote()]
    pids = get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in actors])
    with away(node):
        del actors
        gc.collect()
    wait_for(lambda: all(map(ended, pids)), "nobody has handles to it, and it lives on", 20)


def test_weak_handles(node: Node, tmp_path: Path) -> None:
    actor = Async.options(name="named").remote(Notes(tmp_path / "made"))
    weak = noded.get_actor("named")
    assert get([actor.add.remote(), weak.add.remote()]) == [1, 2]
    with away(node):
        assert noded.get(weak.add.remote(), timeout=TIMEOUT) == 3
    assert get(weak.add.remote()) == 4
    del actor
    gc.collect()
    with pytest.raises(ActorDiedError):
        wait_for(lambda: get(weak.add.remote()) < 0, "a weak handle keeps its actor alive")


# ---------------------------------------------------------------- tasks


@pytest.mark.parametrize("fault", FAULTS)
def test_workers_that_retire(node: Node, tmp_path: Path, fault: str) -> None:
    gate, notes = Gate(tmp_path / "gate"), Notes(tmp_path / "notes")

    @noded.remote(max_calls=2)
    def pid(gate: Gate | None = None) -> int:
        if gate is not None:
            notes.add()
            gate.wait()
        return os.getpid()

    refs = [pid.remote(gate) for _ in range(4)]
    notes.wait(4)
    with away(node, fault):
        gate.open()
        refs += [pid.remote() for _ in range(12)]
        noded.get(refs[:4], timeout=TIMEOUT)
    pids = get(refs)
    assert max(pids.count(one) for one in pids) == 2, pids
    retired = [one for one in pids if pids.count(one) == 2]
    wait_for(lambda: all(map(ended, retired)), lambda: f"live on: {[p for p in retired if not ended(p)]}")


def test_a_worker_that_retires_and_is_given_back_while_the_daemon_is_away(node: Node, tmp_path: Path) -> None:
    started, gate = Gate(tmp_path / "started"), Gate(tmp_path / "gate")

    @noded.remote(max_calls=1)
    def pid() -> int:
        started.open()
        gate.wait()
        return os.getpid()

    ref = pid.remote()
    started.wait()
    with away(node):
        gate.open()
        one = noded.get(ref, timeout=TIMEOUT)
        assert not ended(one)
    wait_for(lambda: ended(one), "a worker that takes no more tasks is kept")


def test_retries_of_exceptions(node: Node, tmp_path: Path) -> None:
    notes, gate = Notes(tmp_path / "notes"), Gate(tmp_path / "gate")
    calls = Notes(tmp_path / "calls")

    @noded.remote(max_retries=3, retry_exceptions=[ValueError])
    def third_time() -> int:
        turn = notes.add()
        if turn == 2:
            gate.wait()
        if turn < 3:
            raise ValueError(turn)
        return turn

    @noded.remote(max_task_retries=3)
    class Actor:
        @noded.method(retry_exceptions=True)
        def third_time(self) -> int:
            turn = calls.add()
            if turn == 2:
                gate.wait()
            if turn < 3:
                raise ValueError(turn)
            return turn

    actor = Actor.remote()
    refs = [third_time.remote(), actor.third_time.remote()]
    notes.wait(2)
    calls.wait(2)
    with away(node):
        gate.open()
        # The actor's worker is ours without the daemon, and so is the lease.
        assert noded.get(refs, timeout=TIMEOUT) == [3, 3]
    assert len(notes.all()) == len(calls.all()) == 3


CANCELLER = """
ref, = noded.get(noded.get_actor("box").give.remote())
say("ready")
hear()
noded.cancel(ref, force=sys.argv[1] == "force")
if sys.argv[2] == "drop": del ref
say("cancelled")
hear()
"""


@noded.remote
class Box:
    def keep(self, refs: Any) -> None:
        self.refs = refs

    def give(self) -> Any:
        return self.refs


@pytest.mark.parametrize("then", ["keep", "drop"])
@pytest.mark.parametrize("how", ["soft", "force"])
def test_a_cancel_from_another_process(node: Node, tmp_path: Path, how: str, then: str) -> None:
    started = Gate(tmp_path / "started")

    @noded.remote
    def sleep(started: Gate) -> None:
        started.open()
        time.sleep(1000)

    box = Box.options(name="box").remote()
    ref = sleep.remote(started)
    get(box.keep.remote([ref]))
    started.wait()
    with Driver(node.address, CANCELLER, how, then) as other:
        other.expect("ready")
        with away(node):
            other.tell("cancel")
            other.expect("cancelled")
        with pytest.raises(TaskCancelledError):
            get(ref)
        other.tell("end")
        other.end()


def test_a_cancel_that_is_told_again_strikes_once(node: Node, tmp_path: Path) -> None:
    started, struck, gate = Gate(tmp_path / "started"), Notes(tmp_path / "struck"), Gate(tmp_path / "gate")

    @noded.remote
    def clean_up(started: Gate, struck: Notes, gate: Gate) -> str:
        try:
            started.open()
            time.sleep(1000)
        except KeyboardInterrupt:
            struck.add()
            gate.wait()
            return "in order"
        return "not at all"

    box = Box.options(name="box").remote()
    ref = clean_up.remote(started, struck, gate)
    get(box.keep.remote([ref]))
    started.wait()
    with Driver(node.address, CANCELLER, "soft", "keep") as other:
        other.expect("ready")
        other.tell("cancel")
        struck.wait(1)
        for _ in range(2):
            node.restart()
            wait_for(lambda: node.status()["state"] == "READY", "not all have told their state")
        gate.open()
        assert get(ref) == "in order"
        other.tell("end")
        other.end()
    assert len(struck.all()) == 1


def test_a_cancel_with_force_while_the_daemon_is_away(node: Node, tmp_path: Path) -> None:
    started, pids = Gate(tmp_path / "started"), Notes(tmp_path / "pids")

    @noded.remote
    def stubborn(started: Gate, pids: Notes) -> None:
        pids.add(os.getpid())
        started.open()
        while True:
            try:
                time.sleep(1000)
            except KeyboardInterrupt:
                pass

    ref = stubborn.remote(started, pids)
    started.wait()
    with away(node):
        noded.cancel(ref, force=True)
    with pytest.raises((TaskCancelledError, WorkerCrashedError)):
        get(ref)
    wait_for(lambda: ended(int(pids.all()[0])), "its process lives on")


@pytest.mark.parametrize("fault", FAULTS)
def test_workers_with_a_runtime_environment(node: Node, tmp_path: Path, fault: str) -> None:
    gate = Gate(tmp_path / "gate")
    env = {"env_vars": {"FLAVOUR": "lemon"}}

    @noded.remote(num_cpus=4, runtime_env=env)
    def look(gate: Gate | None = None) -> tuple[str | None, int]:
        if gate is not None:
            gate.wait()
        return os.environ.get("FLAVOUR"), os.getpid()

    @noded.remote(runtime_env=env)
    class Actor:
        def look(self) -> str | None:
            return os.environ.get("FLAVOUR")

        def child(self) -> Any:
            return noded.get(look.options(runtime_env=None, num_cpus=1).remote())[0]

    actor = Actor.remote()
    first = look.remote(gate)
    with away(node, fault):
        gate.open()
        queued = look.remote()
    assert {get(first), get(queued), get(look.remote())} == {("lemon", get(first)[1])}, "its worker was not used again"
    assert get([actor.look.remote(), actor.child.remote()]) == ["lemon", "lemon"]


# ---------------------------------------------------------------- refs


def test_refs_in_pickles(node: Node, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    big, pending = noded.put(np.arange(300_000)), passes.remote(gate, "late")
    actor = Async.remote(Notes(tmp_path / "made"))
    data = pickle.dumps([big, pending, actor])
    del big, pending, actor
    gc.collect()

    @noded.remote
    def load(data: bytes) -> Any:
        big, pending, actor = pickle.loads(data)
        return int(noded.get(big).sum()), noded.get(pending), noded.get(actor.add.remote())

    with away(node):
        gate.open()
        again = pickle.loads(data)
        later = pickle.dumps(again[0])
    assert get(load.remote(data)) == (sum(range(300_000)), "late", 1)
    assert int(get(again[0]).sum()) == int(get(pickle.loads(later)).sum()) == sum(range(300_000))
    assert get(again[1]) == "late"
    assert get(again[2].add.remote()) == 2
    # A pickle may be anywhere, so what it names is kept as long as this process is connected.
    assert node.status()["store"]["ids"] >= 3
    del again
    gc.collect()
    noded.shutdown()
    noded.init(address=node.address, log_to_driver=False, namespace="test")


@pytest.mark.parametrize("fault", FAULTS)
def test_loops_and_futures_that_wait(node: Node, tmp_path: Path, fault: str) -> None:
    gate = Gate(tmp_path / "gate")
    box = Box.options(name="box").remote()

    async def main() -> Any:
        refs = [passes.remote(gate, i) for i in range(5)]
        await box.keep.remote([refs[0]])
        (borrowed,) = await box.give.remote()
        waiting = [asyncio.ensure_future(w(ref)) for ref in [*refs, borrowed]]
        items = stream.remote(Notes(tmp_path / "notes"), 30)
        first = number(await (await anext(items)))
        with away(node, fault):
            gate.open()
            more = [asyncio.ensure_future(w(passes.remote(gate, i))) for i in range(5, 10)]
            rest = [number(await ref) async for ref in items] if fault == "stopped" else None
            clock = time.monotonic()
            await asyncio.sleep(0.01)
            assert time.monotonic() - clock < 1.5, "the loop stands still"
        if rest is None:
            rest = [number(await ref) async for ref in items]
        assert [first, *rest] == list(range(30))
        return await asyncio.wait_for(asyncio.gather(*waiting, *more), TIMEOUT)

    async def w(ref: Any) -> Any:
        return await ref

    assert asyncio.run(main()) == [0, 1, 2, 3, 4, 0, 5, 6, 7, 8, 9]


def test_futures(node: Node, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    called: list[Any] = []
    futures = [passes.remote(gate, i).future() for i in range(5)]
    futures[0].add_done_callback(lambda future: called.append(future.result()))
    with away(node):
        futures += [passes.remote(gate, i).future() for i in range(5, 8)]
        gate.open()
    assert [future.result(TIMEOUT) for future in futures] == list(range(8))
    assert called == [0]
