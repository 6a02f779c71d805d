"""Cancelling: tasks that wait, that run, that have children, that are done; and calls of actors."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from harness.wait import wait_for

import noded
from noded.exceptions import NodedError, TaskCancelledError, WorkerCrashedError

pytestmark = pytest.mark.usefixtures("cluster")
TIMEOUT = 30


def get(refs: Any) -> Any:
    return noded.get(refs, timeout=TIMEOUT)


@noded.remote
def sleep(started: Path) -> None:
    started.touch()
    time.sleep(999)


@noded.remote
def stubborn(started: Path) -> None:
    """Goes on whatever happens in Python."""
    started.touch()
    while True:
        try:
            time.sleep(999)
        except BaseException:
            continue


@noded.remote
def same(value: Any, path: Path | None = None) -> Any:
    if path is not None:
        path.touch()
    return value


def start(task: Any, path: Path) -> Any:
    ref = task.remote(path)
    wait_for(path.exists, f"the task never began ({path.name})")
    return ref


def assert_cancelled(ref: Any) -> None:
    with pytest.raises(TaskCancelledError) as caught:
        get(ref)
    assert isinstance(caught.value, NodedError)


def test_a_sleeping_task_is_cancelled_and_its_worker_goes_on(tmp_path: Path) -> None:
    ref = start(sleep, tmp_path / "started")
    noded.cancel(ref)

    with pytest.raises(TaskCancelledError, match=r"task sleep .* was cancelled"):
        get(ref)
    assert get([same.remote(i) for i in range(20)]) == list(range(20))


def test_a_running_loop_is_cancelled(tmp_path: Path) -> None:
    @noded.remote
    def spin(path: Path) -> None:
        path.touch()
        while True:
            sum(range(1000))

    ref = start(spin, tmp_path / "started")
    noded.cancel(ref)

    assert_cancelled(ref)


def test_a_queued_task_never_runs(tmp_path: Path) -> None:
    running = [start(sleep, tmp_path / f"started{i}") for i in range(2)]
    queued = [same.remote(i, tmp_path / f"ran{i}") for i in range(20)]
    for ref in queued[1:]:
        noded.cancel(ref)

    for ref in queued[1:]:
        assert_cancelled(ref)
    for ref in running:
        noded.cancel(ref)
        assert_cancelled(ref)
    assert get(queued[0]) == 0
    assert [path.name for path in tmp_path.glob("ran*")] == ["ran0"]


def test_a_task_that_waits_for_its_argument_never_runs(tmp_path: Path) -> None:
    slow = start(sleep, tmp_path / "started")
    waiting = same.remote(slow, tmp_path / "ran")
    noded.cancel(waiting)
    assert_cancelled(waiting)
    noded.cancel(slow)

    assert_cancelled(slow)
    assert not (tmp_path / "ran").exists()


def test_dependents_of_a_cancelled_task_are_told(tmp_path: Path) -> None:
    slow = start(sleep, tmp_path / "started")
    dependent = same.remote(slow)
    noded.cancel(slow)

    assert_cancelled(dependent)


class SlowToLoad:
    """An argument that the test holds up while a worker unpickles it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __reduce__(self) -> Any:
        return _load_slowly, (self.directory,)


def _load_slowly(directory: Path) -> str:
    (directory / "loading").touch()
    wait_for((directory / "gate").exists, "the test did not open the gate")
    return "loaded"


def test_a_cancel_while_the_arguments_are_loaded_is_not_lost(tmp_path: Path) -> None:
    @noded.remote
    def use(value: str) -> None:
        time.sleep(999)

    ref = use.remote(SlowToLoad(tmp_path))
    wait_for((tmp_path / "loading").exists, "the argument was never loaded")
    noded.cancel(ref)
    (tmp_path / "gate").touch()

    assert_cancelled(ref)


def test_a_finished_task_keeps_its_value() -> None:
    ref = same.remote("kept")
    assert get(ref) == "kept"
    noded.cancel(ref)
    noded.cancel(ref, force=True)

    assert get(ref) == "kept"
    assert get(same.remote(1)) == 1


def test_cancel_twice_and_at_once(tmp_path: Path) -> None:
    refs = [sleep.remote(tmp_path / f"s{i}") for i in range(30)]
    for ref in refs * 2:
        noded.cancel(ref)

    for ref in refs:
        assert_cancelled(ref)
    assert get(same.remote(1)) == 1


def test_a_task_may_clean_up(tmp_path: Path) -> None:
    @noded.remote
    def tidy(started: Path, cleaned: Path) -> None:
        try:
            started.touch()
            time.sleep(999)
        finally:
            cleaned.touch()

    ref = tidy.remote(tmp_path / "started", tmp_path / "cleaned")
    wait_for((tmp_path / "started").exists, "the task never began")
    noded.cancel(ref)

    assert_cancelled(ref)
    assert (tmp_path / "cleaned").exists()


def test_force_ends_a_task_that_resists(tmp_path: Path) -> None:
    ref = start(stubborn, tmp_path / "started")
    noded.cancel(ref, force=True)

    assert_cancelled(ref)
    assert get([same.remote(i) for i in range(5)]) == list(range(5))


def test_force_does_not_retry(tmp_path: Path) -> None:
    @noded.remote(max_retries=-1)
    def count(path: Path) -> None:
        with path.open("a") as file:
            file.write("x")
        time.sleep(999)

    ref = start(count, tmp_path / "runs")
    noded.cancel(ref, force=True)

    assert_cancelled(ref)
    assert (tmp_path / "runs").read_text() == "x"


def test_recursive_cancels_the_children(tmp_path: Path) -> None:
    @noded.remote(num_cpus=0)
    def parent(directory: Path) -> Any:
        children = [child.remote(directory / f"child{i}") for i in range(2)]
        return noded.get(children)

    @noded.remote
    def child(path: Path) -> None:
        try:
            path.touch()
            time.sleep(999)
        finally:
            path.with_suffix(".ended").touch()

    ref = parent.remote(tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("child?"))) == 2, "the children never began")
    noded.cancel(ref)

    assert_cancelled(ref)
    wait_for(lambda: len(list(tmp_path.glob("*.ended"))) == 2, "the children of a cancelled task run on")


def test_without_recursive_the_children_run_on(tmp_path: Path) -> None:
    @noded.remote(num_cpus=0)
    def parent(directory: Path) -> None:
        noded.get(child.remote(directory))

    @noded.remote
    def child(directory: Path) -> None:
        (directory / "began").touch()
        wait_for((directory / "gate").exists, "the test did not open the gate")
        (directory / "finished").touch()

    ref = parent.remote(tmp_path)
    wait_for((tmp_path / "began").exists, "the child never began")
    noded.cancel(ref, recursive=False)
    assert_cancelled(ref)
    (tmp_path / "gate").touch()

    wait_for((tmp_path / "finished").exists, "the child was ended, or never came to its end")


def test_a_task_cancels_its_own_child(tmp_path: Path) -> None:
    @noded.remote
    def parent(path: Path) -> str:
        ref = sleep.remote(path)
        wait_for(path.exists, "the child never began")
        noded.cancel(ref)
        try:
            noded.get(ref)
        except TaskCancelledError:
            return "cancelled"
        return "it ended"

    assert get(parent.remote(tmp_path / "started")) == "cancelled"


def test_a_task_that_waits_in_get_is_cancelled(tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    @noded.remote
    def waits(box: list[Any], path: Path) -> None:
        path.touch()
        noded.get(box[0])

    slow = start(sleep, tmp_path / "slow")
    ref = waits.remote([slow], tmp_path / "began")
    wait_for((tmp_path / "began").exists, "the task never began")
    noded.cancel(ref)

    assert_cancelled(ref)
    assert not gate.exists()
    noded.cancel(slow)
    assert_cancelled(slow)


def test_queued_and_running_calls_of_an_actor(tmp_path: Path) -> None:
    @noded.remote
    class Worker:
        def __init__(self) -> None:
            self.ran: list[int] = []

        def work(self, gate: Path) -> str:
            gate.with_suffix(".began").touch()
            wait_for(gate.exists, "the test did not open the gate")
            return "done"

        def note(self, n: int) -> None:
            self.ran.append(n)

        def noted(self) -> list[int]:
            return self.ran

    worker = Worker.remote()
    running = worker.work.remote(tmp_path / "gate")
    wait_for((tmp_path / "gate.began").exists, "the call never began")
    queued = [worker.note.remote(n) for n in range(5)]
    for ref in queued[1::2]:
        noded.cancel(ref)
    for ref in queued[1::2]:
        assert_cancelled(ref)
    (tmp_path / "gate").touch()

    assert get(running) == "done"
    assert get(worker.noted.remote()) == [0, 2, 4]
    again = worker.work.remote(tmp_path / "closed")
    with pytest.raises(ValueError, match=r"noded.kill"):
        noded.cancel(again, force=True)
    noded.kill(worker)


def test_cancelling_a_running_call_keeps_the_actor(tmp_path: Path) -> None:
    @noded.remote
    class Sleeper:
        def sleep(self, path: Path) -> None:
            path.touch()
            time.sleep(999)

        def pid(self) -> int:
            return os.getpid()

    sleeper = Sleeper.remote()
    pid = get(sleeper.pid.remote())
    ref = start(sleeper.sleep, tmp_path / "started")
    noded.cancel(ref)

    assert_cancelled(ref)
    assert get(sleeper.pid.remote()) == pid


def test_a_cancelled_crash_is_a_cancel(tmp_path: Path) -> None:
    """Whatever the task does about it, a cancelled one is not a crashed worker."""

    @noded.remote
    def die(path: Path) -> None:
        path.touch()
        try:
            time.sleep(999)
        finally:
            os._exit(1)

    ref = start(die, tmp_path / "started")
    noded.cancel(ref)

    with pytest.raises((TaskCancelledError, WorkerCrashedError)):
        get(ref)
    assert get(same.remote(1)) == 1


def test_whoever_has_the_ref_can_cancel(tmp_path: Path) -> None:
    @noded.remote
    def other(box: list[Any]) -> None:
        noded.cancel(box[0])

    slow = start(sleep, tmp_path / "started")

    get(other.remote([slow]))
    assert_cancelled(slow)
