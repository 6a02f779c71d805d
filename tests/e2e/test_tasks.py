"""Tasks as a user meets them: arguments, returns, nesting, retries, and where and as what they run."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from harness.wait import wait_for

import noded
from noded.exceptions import TaskUnschedulableError, WorkerCrashedError

pytestmark = pytest.mark.usefixtures("cluster")
TIMEOUT = 30


def get(refs: Any) -> Any:
    return noded.get(refs, timeout=TIMEOUT)


@noded.remote
def echo(*args: Any, **kwargs: Any) -> Any:
    return (args, kwargs) if kwargs else args


@noded.remote
def add(a: int, b: int = 1) -> int:
    return a + b


# ---------------------------------------------------------------- arguments and returns


def test_values_of_every_kind_come_back_equal() -> None:
    values = [None, True, 0, -(2**70), 1.5, 1j, "ü", b"\0", (1, [2, {"x": {3}}]), frozenset({1}), range(3), int]

    assert list(get(echo.remote(*values))) == values
    assert get(echo.remote(1, key="word")) == ((1,), {"key": "word"})


def test_top_level_refs_are_resolved_also_as_keywords() -> None:
    one, two = add.remote(0), noded.put(2)

    assert get(add.remote(one, b=two)) == 3
    assert get(add.remote(one, one)) == 2


def test_nested_refs_are_passed_as_refs() -> None:
    @noded.remote
    def kinds(nested: list[Any], box: dict[str, Any]) -> Any:
        return [type(nested[0]).__name__, type(box["ref"]).__name__, noded.get([*nested, box["ref"]])]

    assert get(kinds.remote([noded.put(1), add.remote(1)], {"ref": noded.put("x" * 200_000)})) == [
        "ObjectRef",
        "ObjectRef",
        [1, 2, "x" * 200_000],
    ]


def test_a_ref_returned_by_a_task_can_be_got() -> None:
    @noded.remote
    def outer() -> Any:
        return [add.remote(41), noded.put("small"), noded.put(b"b" * 300_000)]

    refs = get(outer.remote())

    assert get(refs) == [42, "small", b"b" * 300_000]


def test_num_returns() -> None:
    @noded.remote(num_returns=3)
    def three() -> Any:
        return 1, b"x" * 200_000, [noded.put(3)]

    @noded.remote(num_returns=0)
    def none(path: str) -> None:
        Path(path).touch()

    first, second, third = three.remote()

    assert get(first) == 1 and len(get(second)) == 200_000 and get(get(third)[0]) == 3
    assert get(echo.options(num_returns=2).remote("a", "b")) == ["a", "b"]
    with pytest.raises(ValueError, match=r"must return 2 values .* returned 1"):
        get(echo.options(num_returns=2).remote("a"))


def test_a_task_without_returns_runs(tmp_path: Path) -> None:
    @noded.remote(num_returns=0)
    def touch(path: Path) -> str:
        path.touch()
        return "nobody sees this"

    assert touch.remote(tmp_path / "it ran") is None
    wait_for((tmp_path / "it ran").exists, "a task with num_returns=0 did not run")


def test_many_small_tasks_keep_their_answers_apart() -> None:
    assert get([add.remote(i) for i in range(3000)]) == list(range(1, 3001))


def test_chain_of_dependents_and_wide_fan_in() -> None:
    ref = add.remote(0)
    for _ in range(199):
        ref = add.remote(ref)

    assert get(ref) == 200
    assert sum(get(echo.remote(*[add.remote(i) for i in range(100)]))) == 5050


def test_a_task_submitted_before_its_argument_exists_waits_for_it(tmp_path: Path) -> None:
    @noded.remote
    def until(path: Path) -> str:
        wait_for(path.exists, "the test did not open the gate")
        return "open"

    gate = tmp_path / "gate"
    after = echo.remote(until.remote(gate))
    ready, _ = noded.wait([after], timeout=0)
    gate.touch()

    assert not ready
    assert get(after) == ("open",)


# ---------------------------------------------------------------- nesting


def test_deep_nesting_does_not_deadlock() -> None:
    """Each level waits for the one below it, on 2 CPUs."""

    @noded.remote
    def depth(n: int) -> int:
        return 0 if n == 0 else 1 + noded.get(depth.remote(n - 1))

    assert get(depth.remote(8)) == 8


def test_a_tree_of_waiting_tasks() -> None:
    @noded.remote
    def tree(n: int) -> int:
        return 1 if n == 0 else sum(noded.get([tree.remote(n - 1), tree.remote(n - 1)]))

    assert get(tree.remote(4)) == 16


def test_a_task_waits_with_wait_for_its_children() -> None:
    @noded.remote
    def parent() -> Any:
        left = [add.remote(i) for i in range(5)]
        found = []
        while left:
            ready, left = noded.wait(left)
            found += noded.get(ready)
        return sorted(found)

    assert get([parent.remote() for _ in range(4)]) == [[1, 2, 3, 4, 5]] * 4


# ---------------------------------------------------------------- functions


def test_closures_lambdas_and_defaults() -> None:
    factor = 3

    def times(x: int, more: int = 10) -> int:
        return x * factor + more

    assert get(noded.remote(times).remote(2)) == 16
    assert get(noded.remote(lambda x: x + factor).remote(1)) == 4


def test_a_redefined_function_is_the_new_one() -> None:
    for version in range(3):

        @noded.remote
        def which() -> int:
            return version  # noqa: B023 - as in a notebook, each definition closes over its own value

        assert get(which.remote()) == version


def test_a_global_is_taken_when_the_function_is_first_called() -> None:
    scope: dict[str, Any] = {"value": 1}
    exec("def read(): return value", scope)
    read = noded.remote(scope["read"])
    scope["value"] = 2

    assert get(read.remote()) == 2


def test_a_remote_function_calls_itself_and_others() -> None:
    @noded.remote
    def fib(n: int) -> int:
        return n if n < 2 else sum(noded.get([fib.remote(n - 1), fib.remote(n - 2)]))

    assert get(fib.remote(5)) == 5


def test_options_change_a_copy() -> None:
    two = add.options(num_returns=1, name="two")

    assert get([two.remote(1), add.remote(1)]) == [2, 2]
    assert two is not add


def test_submitting_from_many_threads() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as threads:
        sums = list(threads.map(lambda i: sum(get([add.remote(i, j) for j in range(50)])), range(16)))

    assert sums == [50 * i + 1225 for i in range(16)]


# ---------------------------------------------------------------- dying workers


@noded.remote
def die_until(path: Path, times: int) -> int:
    """End the process `times` times, then return how often this has run."""
    with path.open("a") as file:
        file.write("x")
    runs = path.stat().st_size
    if runs <= times:
        os._exit(7)
    return runs


def test_retries_after_a_dead_worker(tmp_path: Path) -> None:
    assert get(die_until.remote(tmp_path / "a", 3)) == 4
    assert get(die_until.options(max_retries=-1).remote(tmp_path / "b", 4)) == 5


def test_no_more_than_max_retries(tmp_path: Path) -> None:
    with pytest.raises(WorkerCrashedError, match="exited with code 7"):
        get(die_until.options(max_retries=1).remote(tmp_path / "a", 9))
    assert (tmp_path / "a").stat().st_size == 2

    with pytest.raises(WorkerCrashedError):
        get(die_until.options(max_retries=0).remote(tmp_path / "b", 9))
    assert (tmp_path / "b").stat().st_size == 1


def test_user_errors_are_not_retried(tmp_path: Path) -> None:
    @noded.remote
    def fail(path: Path) -> None:
        with path.open("a") as file:
            file.write("x")
        raise ValueError("once")

    with pytest.raises(ValueError, match="once"):
        get(fail.remote(tmp_path / "runs"))
    assert (tmp_path / "runs").stat().st_size == 1


# ---------------------------------------------------------------- where a task runs


def test_workers_have_the_drivers_path_and_directory() -> None:
    assert get(noded.remote(os.getcwd).remote()) == os.getcwd()
    assert set(sys.path) - {""} <= set(get(noded.remote(lambda: sys.path).remote()))


def test_omp_num_threads_is_the_tasks_cpus() -> None:
    """As Ray sets it: the CPUs that were asked for, one by default, whatever ran in the worker before."""
    if "OMP_NUM_THREADS" in os.environ:
        pytest.skip("the user's own OMP_NUM_THREADS stays")

    @noded.remote
    def threads() -> str | None:
        return os.environ.get("OMP_NUM_THREADS")

    @noded.remote(num_cpus=2)
    class Two:
        def threads(self) -> str | None:
            return os.environ.get("OMP_NUM_THREADS")

    two, half = threads.options(num_cpus=2), threads.options(num_cpus=0.5)
    for _ in range(3):
        assert get([threads.remote(), two.remote(), half.remote()]) == ["1", "2", "1"]
    actor = Two.remote()
    assert get(actor.threads.remote()) == "2"


def test_tasks_run_on_the_main_thread_in_other_processes() -> None:
    @noded.remote
    def where() -> tuple[int, bool]:
        import threading

        return os.getpid(), threading.current_thread() is threading.main_thread()

    pid, on_main = get(where.remote())

    assert pid != os.getpid() and on_main


def test_two_tasks_run_at_the_same_time(tmp_path: Path) -> None:
    @noded.remote
    def meet(mine: Path, other: Path) -> bool:
        mine.touch()
        return bool(wait_for(other.exists, "the two tasks do not run side by side"))

    assert get([meet.remote(tmp_path / "a", tmp_path / "b"), meet.remote(tmp_path / "b", tmp_path / "a")]) == [True] * 2


def test_the_runtime_context_of_a_task() -> None:
    @noded.remote
    def context() -> Any:
        c = noded.get_runtime_context()
        return c.get_job_id(), c.get_node_id(), c.get_task_id(), c.get_actor_id(), c.get_worker_id(), c.namespace

    mine = noded.get_runtime_context()
    ref = context.remote()
    job, node, task, actor, worker, namespace = get(ref)

    assert (job, node, namespace) == (mine.get_job_id(), mine.get_node_id(), mine.namespace)
    assert task == ref.task_id() and actor is None and worker != mine.get_worker_id()
    assert mine.get_task_id() is None


def test_infeasible_tasks_are_refused_soon_with_the_reason() -> None:
    cpus = echo.options(num_cpus=64).remote()
    custom = echo.options(resources={"unobtainium": 1}).remote()

    with pytest.raises(TaskUnschedulableError, match=r"CPU: asks 64, the node has 2"):
        noded.get(cpus, timeout=10)
    with pytest.raises(TaskUnschedulableError, match=r"unobtainium: asks 1, the node has 0"):
        noded.get(custom, timeout=10)
