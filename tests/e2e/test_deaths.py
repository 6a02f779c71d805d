"""Every end of a worker names its cause: to the caller, and to who asks why. With real processes, signals and kills.

Ends of whole nodes, and what needs a node of its own: test_deaths_of_nodes.py.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness.ends import Worker, end, fails, get, hang, pid_of
from harness.gates import Notes
from harness.wait import wait_for

import noded
from noded.exceptions import ActorDiedError, RuntimeEnvSetupError, TaskCancelledError, WorkerCrashedError
from noded.util.state import explain

pytestmark = pytest.mark.usefixtures("cluster")
MIB = 1 << 20


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "notes")


class TestTasks:
    def test_an_exit_code(self) -> None:
        def how() -> None:
            print("the last words", file=sys.stderr)
            os._exit(13)

        ref = end.remote(how)
        error = fails(WorkerCrashedError, ref)

        assert (error.kind, error.exit_code, error.signal) == ("exit", 13, "")
        assert error.node == noded.get_runtime_context().get_node_id() and error.node in str(error)
        assert error.pid > 0 and error.max_rss > MIB and error.stderr_tail == ["the last words"]
        assert "exited by itself with code 13" in str(error) and f"pid {error.pid}" in str(error)
        told = explain(ref)
        assert (told["kind"], told["cause"], told["error"]) == ("failed", "exit", "WorkerCrashedError")
        assert "exited by itself with code 13" in told["reason"]
        for name in ("pid", "node", "exit_code", "max_rss", "stderr_tail"):
            assert told[name] == getattr(error, name), name

    def test_sys_exit_is_the_tasks_own_error(self) -> None:
        error = fails(noded.exceptions.TaskError, end.remote(lambda: sys.exit(3)))

        assert "SystemExit: 3" in str(error)

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1])
    def test_a_signal_of_somebody_else(self, number: signal.Signals, notes: Notes) -> None:
        ref = hang.remote(notes)
        os.kill(pid_of(notes), number)
        error = fails(WorkerCrashedError, ref)

        assert (error.kind, error.signal, error.exit_code) == ("signal", number.name, None)
        assert f"killed by {number.name}, not by noded" in str(error) and error.pid == pid_of(notes)
        assert explain(ref)["cause"] == "signal"

    @pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
    def test_a_crash_tells_the_python_lines(self, number: signal.Signals) -> None:
        def deep_in_native_code() -> None:
            os.kill(os.getpid(), number)

        error = fails(WorkerCrashedError, end.remote(deep_in_native_code))

        assert (error.kind, error.signal) == ("crash", number.name)
        assert any(line.startswith("Fatal Python error") for line in error.stderr_tail)
        assert any("in deep_in_native_code" in line for line in error.stderr_tail)

    def test_the_last_words_are_those_of_this_task(self) -> None:
        @noded.remote(max_retries=0)
        def work(last: bool) -> int:
            if last:
                print("mine", file=sys.stderr)
                os._exit(1)
            print("of another task", file=sys.stderr)
            return os.getpid()

        @noded.remote(max_retries=0)
        def quiet() -> None:
            os._exit(1)

        for other, words in ((work.options(), ["mine"]), (quiet, [])):
            pids = set()
            for _ in range(20):
                pids.add(get(work.remote(False)))
            error = fails(WorkerCrashedError, other.remote(True) if words else other.remote())
            assert error.pid in pids, "it ran in a worker of its own, where it could not be mixed up"
            assert error.stderr_tail == words

    def test_cancelled_with_force(self, notes: Notes) -> None:
        ref = hang.remote(notes)
        pid_of(notes)
        noded.cancel(ref, force=True)

        error = fails(TaskCancelledError, ref)
        assert "was cancelled, by ending its worker" in str(error)
        assert explain(ref)["error"] == "TaskCancelledError"

    def test_a_crash_after_max_calls_is_a_crash(self) -> None:
        @noded.remote(max_calls=1, max_retries=0)
        def once(how: Callable[[], Any] | None) -> int:
            if how is not None:
                how()
            return os.getpid()

        first, second = get(once.remote(None)), get(once.remote(None))
        assert first != second
        assert fails(WorkerCrashedError, once.remote(lambda: os._exit(4))).kind == "exit"

    def test_an_environment_whose_hook_raises(self) -> None:
        def hook() -> None:
            raise RuntimeError("no licence")

        task = end.options(runtime_env={"worker_process_setup_hook": hook})
        error = fails(RuntimeEnvSetupError, task.remote(int))

        assert "no licence" in str(error) and "hook" in str(error)

    def test_an_environment_whose_hook_ends_the_process(self) -> None:
        def hook() -> None:
            print("the licence server said no", file=sys.stderr)
            os._exit(21)

        environment = {"worker_process_setup_hook": hook}
        error = fails(RuntimeEnvSetupError, end.options(runtime_env=environment).remote(int))
        assert "3 workers in a row ended" in str(error) and "code 21" in str(error)
        assert "the licence server said no" in str(error)

        actor = Worker.options(runtime_env=environment).remote()
        assert "code 21" in str(fails(RuntimeEnvSetupError, actor.pid.remote()))


class TestActors:
    def died(self, actor: Any, ref: Any = None) -> ActorDiedError:
        """What callers get; each later one the same, and so who asks why."""
        if ref is not None:
            fails(ActorDiedError, ref)
        error: ActorDiedError = fails(ActorDiedError, actor.pid.remote())
        told = explain(actor)
        assert (told["state"], told["kind"]) == ("dead", error.kind)
        assert told["reason"] and told["reason"] in str(error)
        return error

    def test_an_exit_code(self) -> None:
        def how() -> None:
            print("the last words", file=sys.stderr)
            os._exit(13)

        actor = Worker.remote()
        error = self.died(actor, actor.do.remote(how))

        assert (error.kind, error.exit_code, error.stderr_tail) == ("exit", 13, ["the last words"])
        assert error.node == noded.get_runtime_context().get_node_id() and error.max_rss

    def test_a_signal_of_somebody_else(self, notes: Notes) -> None:
        actor = Worker.remote()
        ref = actor.hang.remote(notes)
        os.kill(pid_of(notes), signal.SIGKILL)
        error = self.died(actor, ref)

        assert (error.kind, error.signal, error.pid) == ("signal", "SIGKILL", pid_of(notes))
        assert "killed by SIGKILL, not by noded" in str(error)

    def test_a_crash(self) -> None:
        actor = Worker.remote()
        error = self.died(actor, actor.do.remote(lambda: os.kill(os.getpid(), signal.SIGSEGV)))

        assert error.kind == "crash" and any("Fatal Python error" in line for line in error.stderr_tail)

    def test_killed(self) -> None:
        actor = Worker.remote()
        get(actor.pid.remote())
        noded.kill(actor)

        error = self.died(actor)
        assert error.kind == "killed" and "noded.kill() was called" in str(error)

    def test_a_kill_that_let_it_restart_is_not_the_cause_of_its_later_end(self, notes: Notes) -> None:
        actor = Worker.options(max_restarts=1, max_task_retries=-1).remote()
        first = get(actor.pid.remote())
        noded.kill(actor, no_restart=False)
        wait_for(lambda: get(actor.pid.remote()) != first, "it was not restarted")
        actor.hang.remote(notes)
        os.kill(pid_of(notes), signal.SIGKILL)

        error = self.died(actor)
        assert error.kind == "signal" and "noded.kill()" not in str(error)

    def test_exit_actor(self) -> None:
        actor = Worker.remote()
        error = self.died(actor, actor.do.remote(noded.exit_actor))

        assert error.kind == "left" and "exit_actor()" in str(error)

    def test_sys_exit(self) -> None:
        actor = Worker.remote()
        fails(noded.exceptions.TaskError, actor.do.remote(lambda: sys.exit(5)))
        error = self.died(actor)

        assert error.kind == "exit" and "SystemExit(5)" in str(error)

    def test_its_constructor(self) -> None:
        @noded.remote
        class Broken:
            def __init__(self) -> None:
                raise ValueError("no such file")

            def pid(self) -> int:
                return 0

        error = self.died(Broken.remote())
        assert error.kind == "constructor" and "no such file" in str(error)
