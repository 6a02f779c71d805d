"""`why` on one node, of things that wait for a process, a gate or a fault. Also: test_why_pending.py,
test_why_deaths.py, test_why_later.py.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.ends import Worker, end, get, hang, pid_of
from harness.gates import Gate, Notes
from harness.processes import all_processes, mentioning
from harness.wait import wait_for

import noded
from noded.client.explain import explain as explain_here
from noded.client.runtime import current
from noded.policy import deaths, reasons
from noded.util.placement_group import placement_group, remove_placement_group
from noded.util.state import explain

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "notes")


def becomes(thing: Any, *kinds: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def right() -> bool:
        nonlocal found
        found = explain(thing)
        return found["kind"] in kinds

    wait_for(right, lambda: f"not {kinds}: {found}", 15)
    return found


def test_a_stream_that_is_ahead() -> None:
    @noded.remote(num_cpus=0)
    def count() -> Iterator[int]:
        yield from range(100)

    stream = count.options(num_returns="streaming", _generator_backpressure_num_objects=3).remote()
    get(next(stream))
    told = becomes(stream, reasons.BACKPRESSURE)
    assert (told["items"], told["taken"]) == (4, 1) and "3 ahead" in told["reason"]
    for _ in stream:
        pass


def test_a_cancel_that_is_not_heeded(notes: Notes, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")

    @noded.remote(num_cpus=0)
    def stubborn() -> None:
        notes.add()
        while not gate.is_open():
            try:
                time.sleep(0.01)
            except KeyboardInterrupt:
                continue

    ref = stubborn.remote()
    notes.wait(1)
    noded.cancel(ref)
    assert "cancelled" in becomes(ref, reasons.CANCELLING)["reason"]
    gate.open()
    becomes(ref, reasons.FAILED, reasons.DONE_OR_DROPPED, reasons.READY)


def test_as_many_as_may_run_at_once(tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")

    @noded.remote(num_cpus=0)
    def wait() -> None:
        gate.wait()

    refs = [wait.remote() for _ in range(18)]
    assert "16 tasks" in becomes(refs[-1], reasons.LIMIT_REACHED)["reason"]
    gate.open()
    get(refs)


def test_a_retry_that_waits_for_room(notes: Notes, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")

    @noded.remote(max_retries=1, num_cpus=2)
    def once_more() -> None:
        if notes.add(os.getpid()) == 1:
            gate.wait()

    ref = once_more.remote()
    first = pid_of(notes)
    others = [Worker.options(num_cpus=1).remote() for _ in range(2)]
    becomes(others[0], reasons.RESOURCES_BUSY)
    os.kill(first, signal.SIGKILL)
    told = becomes(ref, reasons.RESOURCES_BUSY)
    assert told["last_attempt"]["kind"] == deaths.SIGNAL and told["last_attempt"]["pid"] == first
    assert told["retries_left"] == 0 and "its last attempt ended so: it was killed by SIGKILL" in told["reason"]
    for actor in others:
        noded.kill(actor)
    get(ref)


def test_an_actor_that_restarts_and_one_that_is_made(notes: Notes, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")

    @noded.remote(num_cpus=0, max_restarts=2)
    class Slow:
        def __init__(self) -> None:
            notes.add(os.getpid())
            if len(notes.all()) > 1:
                gate.wait()

        def pid(self) -> int:
            return os.getpid()

    actor = Slow.remote()
    first = get(actor.pid.remote())
    os.kill(first, signal.SIGKILL)
    told = becomes(actor, reasons.CONSTRUCTOR)
    assert "this is restart 1 of 2" in told["reason"] and told["restarts"] == 1
    call = actor.pid.remote()
    gate.open()
    assert get(call) != first
    assert explain(actor)["kind"] == reasons.RUNNING
    noded.kill(actor)


def test_who_made_it_is_busy_or_stopped(notes: Notes, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")

    @noded.remote(num_cpus=0)
    def submit(seconds: float) -> None:
        refs = [hang.options(num_cpus=num).remote(notes) for num in (1, 2)]
        notes.add(" ".join(ref.hex() for ref in refs))
        gate.wait()
        ctypes.PyDLL(None).usleep(int(seconds * 1e6))
        for ref in refs:
            noded.cancel(ref, force=True)

    parent = submit.remote(1.5)
    lines = notes.wait(2)
    running, waiting = next(line for line in lines if " " in line).split()
    pid = explain(parent)["pid"]
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    told = explain(waiting)
    assert time.monotonic() - began < 0.5 and told["kind"] == reasons.OWNER_BUSY, told
    assert f"kill -CONT {pid}" in told["reason"] and told["waiting"][0]["kind"] == reasons.RESOURCES_BUSY
    told = explain(running)
    assert told["kind"] == reasons.RUNNING and told["pid"] in map(int, (x for x in lines if " " not in x)), told
    os.kill(pid, signal.SIGCONT)
    gate.open()
    wait_for(lambda: "Python's lock" in explain(waiting)["reason"], lambda: f"{explain(waiting)}", 10)
    get(parent)


def test_one_of_many_queued_tasks_is_not_searched_for() -> None:
    runtime = current()
    assert runtime is not None
    actors = [Worker.options(num_cpus=1).remote() for _ in range(2)]
    get([actor.pid.remote() for actor in actors])
    refs = [end.options(num_cpus=2).remote(int) for _ in range(30_000)]
    calls = [actors[0].hang.remote(refs[0]), *(actors[0].pid.remote() for _ in range(30_000))]

    def quickest(what: Callable[[], Any]) -> float:
        times = []
        for _ in range(5):
            with runtime.lock:
                began = time.perf_counter()
                what()
                times.append(time.perf_counter() - began)
        return min(times)

    looking = quickest(lambda: [task for task in runtime.tasks.open_tasks() if task.seq < 0])
    for thing, kind in ((refs[20_000], reasons.LEASE_PENDING), (calls[20_000], reasons.BEHIND_CALLS)):
        id_ = thing.binary()
        asked = explain_here(runtime, id_)
        assert asked["kind"] == kind, asked
        assert quickest(lambda id_=id_: explain_here(runtime, id_)) < looking / 4
    assert asked["calls_before"] == 20_000
    [queue] = [queue for queue in runtime.tasks.queues.values() if len(queue.ready) == len(refs)]
    with runtime.lock:
        queue.ready.rotate(10_000)  # as those that came back, and those that had to wait for arguments
    assert explain_here(runtime, refs[25_000].binary())["kind"] == reasons.LEASE_PENDING
    for ref in refs:
        noded.cancel(ref)
    for actor in actors:
        noded.kill(actor)


def test_a_worker_that_cannot_start_yet(tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    wait = noded.remote(num_cpus=0)(gate.wait)
    running = all_processes().values()
    runtime = current()
    assert runtime is not None
    template = next(p for p in mentioning(running, [runtime.run_dir]) if "noded.template" in p.command)
    os.kill(template.pid, signal.SIGSTOP)
    try:
        refs = [wait.remote() for _ in range(12)]  # more than there are workers that wait for work
        words = "workers are starting on this node"
        wait_for(
            lambda: (told := explain(refs[-1]))["kind"] == reasons.WORKER_STARTING and words in told["reason"],
            lambda: f"{explain(refs[-1])}",
        )
    finally:
        os.kill(template.pid, signal.SIGCONT)
    for ref in refs:
        noded.cancel(ref, force=True)


def test_things_of_other_sorts() -> None:
    context = noded.get_runtime_context()
    told = explain(context.get_node_id())
    assert (told["kind"], told["state"], told["total"]["CPU"]) == (reasons.RUNNING, "alive", 2)
    assert explain("head")["node"] == told["node"]
    assert explain(context.get_job_id())["kind"] == reasons.RUNNING
    assert "driver of job" in explain(context.get_worker_id())["reason"]
    group = placement_group([{"CPU": 1}])
    assert get(group.ready())
    assert explain(group)["kind"] == reasons.READY
    remove_placement_group(group)
    assert becomes(group, reasons.GROUP_REMOVED)["reason"]
    for word in ("f" * 32, "f" * 16, "f" * 8):
        assert explain(word)["kind"] == reasons.NO_SUCH_ID
    with pytest.raises(ValueError, match="is no id: give the 32 hexadecimal digits"):
        explain("nonsense")
