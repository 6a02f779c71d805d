"""Floods in both directions, and tasks that wait for each other: nothing hangs, and memory stays bounded."""

from __future__ import annotations

import fcntl
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.wait import wait_for

import noded
from noded.client.runtime import current

SECONDS = 60.0
KB90 = 90_000
MB = 1 << 20


@pytest.fixture
def start() -> Iterator[Callable[..., None]]:
    """init() of a private cluster; it ends with the test."""

    def init(num_cpus: int, **more: Any) -> None:
        noded.init(num_cpus=num_cpus, address="local", log_to_driver=False, **more)

    try:
        yield init
    finally:
        noded.shutdown()


def anonymous_mb() -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) >> 10


# ------------------------------------------------------------ floods


def flood(count: int, submit: Callable[[bytes], Any], seconds: float) -> None:
    """All submitted before anything is read, so both directions are full at once."""
    argument = b"a" * KB90
    refs = [submit(argument) for _ in range(count)]
    results = noded.get(refs, timeout=seconds)
    assert all(len(result) == KB90 and result[:1] == b"r" for result in results)


FULL = pytest.param(10_000, 400.0, marks=[pytest.mark.slow, pytest.mark.timeout(900)])


@pytest.mark.parametrize(("count", "seconds"), [(1500, SECONDS), FULL])
def test_both_sides_flood_by_tasks(start: Callable[..., None], count: int, seconds: float) -> None:
    start(2)

    @noded.remote
    def swap(data: bytes) -> bytes:
        return b"r" * len(data)

    flood(count, swap.remote, seconds)


@pytest.mark.parametrize(("count", "seconds"), [(1500, SECONDS), FULL])
def test_both_sides_flood_by_an_actor(start: Callable[..., None], count: int, seconds: float) -> None:
    start(2)

    @noded.remote
    class Swap:
        def swap(self, data: bytes) -> bytes:
            return b"r" * len(data)

    flood(count, Swap.remote().swap.remote, seconds)


def test_an_actor_floods_its_caller_while_a_worker_floods_it(start: Callable[..., None]) -> None:
    """Three processes in a circle, each with its buffers full: driver, worker, actor."""
    start(3)

    @noded.remote
    class Echo:
        def echo(self, data: bytes) -> bytes:
            return b"r" * len(data)

    @noded.remote
    def push(echo: Any, count: int, data: bytes) -> bytes:
        results = noded.get([echo.echo.remote(data) for _ in range(count)], timeout=SECONDS)
        assert len(results) == count
        return b"r" * len(data)

    echo = Echo.remote()
    workers = [push.remote(echo, 150, b"w" * KB90) for _ in range(4)]
    flood(300, echo.echo.remote, SECONDS)
    assert len(noded.get(workers, timeout=SECONDS)) == 4


def test_a_driver_that_does_not_read_is_no_harm(start: Callable[..., None]) -> None:
    """It submits, then computes: neither its memory nor that of others grows without bound, and all is there after."""
    start(2)

    @noded.remote
    def one(number: int) -> bytes:
        return b"r" * 50_000

    refs = [one.remote(i) for i in range(600)]
    end = time.thread_time() + 0.5
    while time.thread_time() < end:  # holds the interpreter: the helper gets its share, no more
        sum(range(1000))
    assert sum(len(part) for part in noded.get(refs, timeout=SECONDS)) == 600 * 50_000


def test_memory_of_the_driver_is_bounded_while_it_floods(start: Callable[..., None]) -> None:
    """Queued arguments are the driver's own; beyond them it keeps no second copy in buffers, nor after the end."""
    start(2)

    @noded.remote
    def size(data: bytes) -> int:
        return len(data)

    noded.get(size.remote(b""), timeout=SECONDS)
    before, peak = anonymous_mb(), 0
    refs = []
    for number in range(1200):
        refs.append(size.remote(os.urandom(1000) * 90))
        if number % 50 == 0:
            peak = max(peak, anonymous_mb())
    queued = 1200 * KB90 // MB
    assert sum(noded.get(refs, timeout=SECONDS)) == 1200 * KB90
    peak = max(peak, anonymous_mb())
    assert peak < before + 2 * queued + 60, f"{peak - before} MB for {queued} MB of arguments"
    del refs
    assert anonymous_mb() < before + queued // 2 + 60, "what was sent is let go"


def test_a_worker_does_not_pile_up_results_nobody_reads(start: Callable[..., None]) -> None:
    start(1)

    @noded.remote
    class Source:
        def data(self) -> bytes:
            return b"r" * KB90

        def memory(self) -> int:
            return anonymous_mb()

    source = Source.remote()
    before = noded.get(source.memory.remote(), timeout=SECONDS)
    refs = [source.data.remote() for _ in range(1000)]
    assert noded.get(source.memory.remote(), timeout=SECONDS) < before + 60
    assert len(noded.get(refs, timeout=SECONDS)) == 1000


# ------------------------------------------------------------ tasks that wait for each other


def warm(function: Any, *args: Any) -> None:
    """Let the driver believe that the function is fast: then it pushes many at once to one worker."""
    for _ in range(3):
        noded.get([function.remote(*args) for _ in range(20)], timeout=SECONDS)


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_task_gets_the_ref_of_one_behind_it(start: Callable[..., None], cpus: int) -> None:
    """The first waits, through an actor, for the ref of a task that was pushed behind it in one burst."""
    start(cpus)

    @noded.remote(num_cpus=0)
    class Box:
        def __init__(self) -> None:
            self.refs: list[Any] = []

        def put(self, ref: list[Any]) -> None:
            self.refs.append(ref[0])

        def take(self) -> list[Any]:
            return [self.refs.pop()] if self.refs else []

    @noded.remote
    def step(box: Any, waits: bool) -> int:
        if not waits:
            return 7
        while not (found := noded.get(box.take.remote(), timeout=SECONDS)):
            pass
        return int(noded.get(found[0], timeout=SECONDS)) + 1

    box = Box.remote()
    warm(step, box, False)
    for _ in range(5):
        first = step.remote(box, True)
        others = [step.remote(box, False) for _ in range(5)]
        second = step.remote(box, False)
        noded.get(box.put.remote([second]), timeout=SECONDS)
        assert noded.get([first, second, *others], timeout=SECONDS) == [8, 7] + [7] * 5


@pytest.mark.parametrize("cpus", [1, 2])
def test_nested_gets_in_one_burst(start: Callable[..., None], cpus: int) -> None:
    """Every task waits for children of the same class; there are never enough CPUs for all that wait."""
    start(cpus)

    @noded.remote
    def tree(depth: int) -> int:
        if depth == 0:
            return 1
        return sum(noded.get([tree.remote(depth - 1) for _ in range(2)], timeout=SECONDS))

    warm(tree, 0)
    assert noded.get([tree.remote(3) for _ in range(3)], timeout=SECONDS) == [8] * 3


def test_a_task_waits_for_a_file_lock_that_one_behind_it_frees(start: Callable[..., None], tmp_path: Path) -> None:
    """Blocked in the kernel, where nobody tells the daemon: what was pushed behind it runs elsewhere."""
    start(2)
    path = str(tmp_path / "lock")

    @noded.remote
    def step(what: str) -> str:
        if what == "wait":  # until "free" has run
            with open(path, "w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
        elif what == "free":
            Path(path + ".free").touch()
        return what

    warm(step, "nothing")
    for _ in range(4):
        free = Path(path + ".free")
        holder = open(path, "w")
        fcntl.flock(holder, fcntl.LOCK_EX)
        try:
            burst = [step.remote("wait"), *[step.remote("nothing") for _ in range(10)], step.remote("free")]
            deadline = time.monotonic() + SECONDS
            while not free.exists():  # only "free" does this, and it was pushed behind "wait"
                assert time.monotonic() < deadline, "what was pushed behind a blocked task has not run"
                noded.wait(burst, num_returns=len(burst), timeout=0.05)
        finally:
            holder.close()
        assert noded.get(burst, timeout=SECONDS) == ["wait", *["nothing"] * 10, "free"]
        free.unlink()


@pytest.mark.parametrize("cpus", [1, 2])
def test_tasks_wait_for_an_actor_that_tasks_behind_them_feed(start: Callable[..., None], cpus: int) -> None:
    start(cpus)

    @noded.remote(num_cpus=0)
    class Gate:
        def __init__(self) -> None:
            self.opened = 0

        def open(self) -> None:
            self.opened += 1

        def count(self) -> int:
            return self.opened

    @noded.remote
    def step(gate: Any, until: int) -> int:
        if until == 0:
            return 0
        if until < 0:
            noded.get(gate.open.remote(), timeout=SECONDS)
            return -1
        while noded.get(gate.count.remote(), timeout=SECONDS) < until:
            pass
        return until

    gate = Gate.remote()
    warm(step, gate, 0)
    for number in range(1, 6):
        burst = [step.remote(gate, number), step.remote(gate, number), step.remote(gate, -1), step.remote(gate, 0)]
        assert noded.get(burst, timeout=SECONDS) == [number, number, -1, 0]


# ------------------------------------------------------------ many at once


def test_many_threads_of_one_driver(start: Callable[..., None]) -> None:
    start(2)

    @noded.remote
    def double(number: int) -> int:
        return 2 * number

    @noded.remote
    class Adder:
        def __init__(self) -> None:
            self.sum = 0

        def add(self, number: int) -> int:
            self.sum += number
            return self.sum

    adder = Adder.remote()
    failures: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            for turn in range(15):
                numbers = [thread * 1000 + turn * 10 + i for i in range(10)]
                refs = [double.remote(n) for n in numbers]
                added = [adder.add.remote(1) for _ in range(3)]
                ready, rest = noded.wait(refs, num_returns=5, timeout=SECONDS)
                assert len(ready) == 5 and len(rest) == 5
                assert noded.get(refs, timeout=SECONDS) == [2 * n for n in numbers]
                sums = noded.get(added, timeout=SECONDS)
                assert sums == sorted(sums)
                big = noded.put(b"x" * 200_000)
                assert len(noded.get(big, timeout=SECONDS)) == 200_000
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive(), "a thread hangs"
    assert not failures, failures[0]
    assert noded.get(adder.add.remote(0), timeout=SECONDS) == 16 * 15 * 3


def test_many_threads_get_one_ref(start: Callable[..., None], tmp_path: Path) -> None:
    start(2)
    go = tmp_path / "go"

    @noded.remote
    def when(path: str) -> int:
        while not os.path.exists(path):
            time.sleep(0.005)
        return 5

    ref = when.remote(str(go))
    got: list[Any] = []
    threads = [threading.Thread(target=lambda: got.append(noded.get(ref, timeout=SECONDS))) for _ in range(20)]
    for thread in threads:
        thread.start()
    go.touch()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()
    assert got == [5] * 20


def test_workers_flood_with_submissions_of_their_own(start: Callable[..., None]) -> None:
    start(2)

    @noded.remote
    def leaf(number: int, data: bytes) -> tuple[int, bytes]:
        return number, data

    @noded.remote
    def branch(number: int) -> int:
        refs = [leaf.remote(i, b"x" * 20_000) for i in range(150)]
        return sum(n for n, _ in noded.get(refs, timeout=SECONDS)) + number

    @noded.remote
    def leaves(count: int) -> list[Any]:
        """Refs that leave their submitter before they have values."""
        return [leaf.remote(i, b"") for i in range(count)]

    branches = [branch.remote(n) for n in range(6)]
    lists = [leaves.remote(100) for _ in range(4)]
    assert noded.get(branches, timeout=SECONDS) == [11175 + n for n in range(6)]
    for refs in noded.get(lists, timeout=SECONDS):
        assert [n for n, _ in noded.get(refs, timeout=SECONDS)] == list(range(100))


def test_what_is_dropped_while_it_waits_for_room_is_freed(start: Callable[..., None]) -> None:
    """More small values than a region takes: the last are written when nobody holds them any more."""
    start(2, object_store_memory=128 * MB)
    noded.put([noded.put([i]) for i in range(60_000)])
    runtime = current()
    assert runtime is not None
    wait_for(
        lambda: runtime.ask("status")["store"]["ids"] == 0,
        lambda: f"the store still knows of ids: {runtime.ask('status')['store']}",
    )
