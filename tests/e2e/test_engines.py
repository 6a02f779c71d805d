"""What runs an actor's calls, at the points where two things happen at once: reading and waiting, cancelling and
beginning, ending and running. What users may rely on is in tests/compat.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from harness.gates import Gate, Notes
from harness.wait import wait_for

import noded
from noded.client.exits import exit_actor
from noded.exceptions import ActorDiedError, TaskCancelledError

pytestmark = pytest.mark.usefixtures("cluster")


@noded.remote(num_cpus=0)
def passes(gate: Gate) -> str:
    gate.wait()
    return "passed"


@noded.remote(max_concurrency=2)
class Threads:
    def get(self, refs: list[Any]) -> Any:
        return noded.get(refs[0])

    def open(self, gate: Gate) -> None:
        gate.open()


@noded.remote
class Loop:
    async def get(self, refs: list[Any]) -> Any:
        return await asyncio.to_thread(noded.get, refs[0])

    async def open(self, gate: Gate) -> None:
        await asyncio.sleep(0.01)  # the loop's clock, too
        gate.open()

    async def block(self, started: Gate, gate: Gate) -> None:
        started.open()
        gate.wait()

    def child(self) -> Any:
        return passes.remote(Gate(Path("/")))

    async def achild(self) -> Any:
        return passes.remote(Gate(Path("/")))


@pytest.mark.parametrize("actor_class", [Threads, Loop])
def test_a_thread_that_waits_does_not_hold_up_other_calls(actor_class: Any, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    actor = actor_class.remote()
    waiting = actor.get.remote([passes.remote(gate)])
    noded.get(actor.open.remote(Gate(tmp_path / "other")), timeout=20)
    noded.get(actor.open.remote(gate), timeout=20)
    assert noded.get(waiting, timeout=20) == "passed"


def test_a_thread_that_a_task_left_behind_does_not_hold_up_its_worker(tmp_path: Path) -> None:
    @noded.remote
    def leave_a_thread(refs: list[Any], done: Gate) -> int:
        def wait() -> None:
            noded.get(refs[0])
            done.open()

        threading.Thread(target=wait, daemon=True).start()
        return os.getpid()

    @noded.remote
    def pid() -> int:
        return os.getpid()

    gate, done = Gate(tmp_path / "gate"), Gate(tmp_path / "done")
    worker = noded.get(leave_a_thread.remote([passes.remote(gate)], done), timeout=20)
    wait_for(lambda: noded.get(pid.remote(), timeout=20) == worker, "the worker got no task any more")
    gate.open()
    done.wait(20)


def test_a_ref_that_a_plain_method_of_an_async_actor_returns_stays_a_ref() -> None:
    actor = Loop.remote()
    for ref in noded.get([actor.child.remote(), actor.achild.remote()], timeout=20):
        assert noded.get(ref, timeout=20) == "passed"


def test_a_loop_that_is_blocked_answers_what_is_done_and_lets_waiting_calls_be_cancelled(tmp_path: Path) -> None:
    started, gate = Gate(tmp_path / "started"), Gate(tmp_path / "gate")
    actor = Loop.remote()
    noded.get(actor.__ray_ready__.remote())
    quick = [actor.open.remote(Gate(tmp_path / str(i))) for i in range(3)]
    blocking = actor.block.remote(started, gate)
    started.wait()
    waiting = actor.open.remote(Gate(tmp_path / "never"))
    noded.cancel(waiting)
    with pytest.raises(TaskCancelledError):
        noded.get(waiting, timeout=20)
    gate.open()
    noded.get([blocking, *quick], timeout=20)
    assert not (tmp_path / "never").exists()


def test_the_steward_rests_while_the_loop_is_blocked_and_something_of_its_is_ready() -> None:
    @noded.remote
    class Busy:
        async def seconds_used(self) -> float:
            loop = asyncio.get_running_loop()
            read_end, write_end = os.pipe()
            try:
                loop.add_reader(read_end, lambda: None)
                os.write(write_end, b"x")
                await asyncio.sleep(0)
                before = time.process_time()
                time.sleep(1)
                return time.process_time() - before
            finally:
                loop.remove_reader(read_end)
                os.close(read_end)
                os.close(write_end)

    assert noded.get(Busy.remote().seconds_used.remote(), timeout=20) < 0.5


def test_an_async_actor_sees_all_that_its_sockets_bring() -> None:
    """Readiness is told once: what one look leaves over has to be found by the next."""

    @noded.remote
    class Pipes:
        async def run(self, count: int) -> int:
            loop = asyncio.get_running_loop()
            got = 0
            pairs = [os.pipe() for _ in range(8)]
            done = loop.create_future()

            def read(fd: int) -> None:
                nonlocal got
                got += len(os.read(fd, 1))  # leaves the rest
                if got == count * len(pairs):
                    done.set_result(got)

            for read_end, _ in pairs:
                loop.add_reader(read_end, read, read_end)
            try:
                for _, write_end in pairs:
                    await loop.run_in_executor(None, os.write, write_end, b"x" * (count // 2))
                    os.write(write_end, b"x" * (count - count // 2))
                return await asyncio.wait_for(done, 20)
            finally:
                for read_end, write_end in pairs:
                    loop.remove_reader(read_end)
                    os.close(read_end)
                    os.close(write_end)

    assert noded.get(Pipes.remote().run.remote(200), timeout=30) == 1600


def test_what_the_steward_reads_wakes_the_loop() -> None:
    """Answers of the daemon come in another thread, just before or after the loop goes to sleep."""

    @noded.remote
    class Reader:
        async def total(self, refs: list[Any]) -> int:
            return sum([await ref for ref in refs])

    reader = Reader.remote()
    for _ in range(5):
        refs = [noded.put(i) for i in range(60)]
        assert noded.get(reader.total.remote(refs), timeout=20) == sum(range(60))


def test_an_async_actor_that_exits_lets_its_own_tasks_clean_up_and_starts_nothing_more(tmp_path: Path) -> None:
    @noded.remote(max_concurrency=2)
    class Leaver:
        def __init__(self, notes: Notes) -> None:
            self.notes = notes

        async def begin(self) -> None:
            self.task = asyncio.create_task(self.background())

        async def background(self) -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                await asyncio.sleep(0.01)
                self.notes.add("cleaned")

        async def stay(self, started: Gate) -> None:
            started.open()
            await asyncio.sleep(1000)

        async def leave(self, gate: Gate) -> None:
            await asyncio.to_thread(gate.wait)
            exit_actor()

        async def note(self) -> None:
            self.notes.add("ran")

    notes, started, gate = Notes(tmp_path / "notes"), Gate(tmp_path / "started"), Gate(tmp_path / "gate")
    actor = Leaver.remote(notes)
    noded.get(actor.begin.remote())
    refs = [actor.stay.remote(started), actor.leave.remote(gate), *(actor.note.remote() for _ in range(3))]
    started.wait()
    gate.open()
    for ref in refs:
        with pytest.raises(ActorDiedError, match=r"exit_actor\(\).*exited with code 0"):
            noded.get(ref, timeout=20)
    assert notes.all() == ["cleaned"]


@noded.remote(num_cpus=1)
def sleep() -> None:
    time.sleep(1000)


def test_a_cancel_is_never_too_early_nor_too_late() -> None:
    """Whatever the call does just then; one that is missed would not end."""

    @noded.remote
    class Sleeper:
        async def sleep(self) -> None:
            await asyncio.sleep(1000)

        async def ping(self) -> None:
            pass

    actors = [Sleeper.remote(), Sleeper.options(max_concurrency=1).remote()]
    noded.get([actor.ping.remote() for actor in actors])
    for turn in range(60):
        refs = [actor.sleep.remote() for actor in actors for _ in range(3)] + [sleep.remote() for _ in range(3)]
        time.sleep(turn % 10 * 0.0005)  # the moment is the point
        for ref in refs:
            noded.cancel(ref)
        for ref in refs:
            with pytest.raises(TaskCancelledError):
                noded.get(ref, timeout=20)
    noded.get([actor.ping.remote() for actor in actors], timeout=20)
