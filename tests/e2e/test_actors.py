"""Actors as a user meets them: state, order, handles, names, and every way in which they end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness.wait import wait_for

import noded
from noded.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ActorUnschedulableError,
    TaskError,
)

pytestmark = pytest.mark.usefixtures("cluster")
TIMEOUT = 30


def get(refs: Any) -> Any:
    return noded.get(refs, timeout=TIMEOUT)


@noded.remote
class Counter:
    """Counts, and remembers what it was given."""

    def __init__(self, start: int = 0) -> None:
        self.value = start
        self.seen: list[Any] = []

    def add(self, amount: int = 1) -> int:
        self.value += amount
        return self.value

    def see(self, thing: Any) -> None:
        self.seen.append(thing)

    def all_seen(self) -> list[Any]:
        return self.seen

    def pid(self) -> int:
        return os.getpid()

    def fail(self) -> None:
        raise KeyError("user error")

    def end(self, code: int = 3) -> None:
        os._exit(code)


@noded.remote
def when(path: Path, value: Any = None) -> Any:
    wait_for(path.exists, f"the test never made {path}")
    return value


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# ---------------------------------------------------------------- state and calls


def test_state_lives_in_one_process() -> None:
    counter = Counter.remote(10)

    assert get([counter.add.remote() for _ in range(5)]) == [11, 12, 13, 14, 15]
    assert get(counter.add.remote(amount=5)) == 20
    assert len(set(get([counter.pid.remote() for _ in range(3)]))) == 1


def test_constructor_arguments_refs_and_keywords() -> None:
    big = noded.put(b"x" * 300_000)

    @noded.remote
    class Holder:
        def __init__(self, a: int, *, b: bytes, nested: list[Any]) -> None:
            self.all = a, len(b), noded.get(nested)

        def everything(self) -> Any:
            return self.all

    @noded.remote
    def one() -> int:
        return 1

    holder = Holder.remote(one.remote(), b=big, nested=[noded.put("n")])

    assert get(holder.everything.remote()) == (1, 300_000, ["n"])


def test_calls_of_one_caller_run_in_order() -> None:
    counter = Counter.remote()
    for i in range(500):
        counter.see.remote(i)

    assert get(counter.all_seen.remote()) == list(range(500))


def test_a_call_with_an_unresolved_argument_holds_back_the_later_ones(tmp_path: Path) -> None:
    counter = Counter.remote()
    slow = when.remote(tmp_path / "gate", "first")
    calls = [counter.see.remote(slow), *[counter.see.remote(i) for i in range(20)]]
    ready, _ = noded.wait(calls, num_returns=1, timeout=0)
    (tmp_path / "gate").touch()

    assert not ready
    assert get(counter.all_seen.remote()) == ["first", *range(20)]


def test_calls_queue_behind_a_slow_constructor(tmp_path: Path) -> None:
    @noded.remote
    class Slow:
        def __init__(self, path: Path) -> None:
            wait_for(path.exists, "the test did not open the gate")
            self.calls = 0

        def call(self) -> int:
            self.calls += 1
            return self.calls

    slow = Slow.remote(tmp_path / "gate")
    calls = [slow.call.remote() for _ in range(10)]
    (tmp_path / "gate").touch()

    assert get(calls) == list(range(1, 11))


def test_an_error_in_a_method_leaves_the_actor_alive() -> None:
    counter = Counter.remote(1)

    with pytest.raises(KeyError, match="user error") as caught:
        get(counter.fail.remote())
    assert isinstance(caught.value, TaskError)
    assert get(counter.add.remote()) == 2


def test_methods_with_several_returns_and_with_none() -> None:
    @noded.remote
    class Many:
        @noded.method(num_returns=2)
        def two(self) -> Any:
            return "a", b"b" * 200_000

        def plain(self) -> Any:
            return [1, 2, 3]

    many = Many.remote()
    a, b = many.two.remote()

    assert get(a) == "a" and len(get(b)) == 200_000
    assert get(many.plain.options(num_returns=3).remote()) == [1, 2, 3]
    assert many.plain.options(num_returns=0).remote() is None


def test_inherited_static_and_class_methods() -> None:
    class Base:
        def inherited(self) -> str:
            return type(self).__name__

    @noded.remote
    class Derived(Base):
        @staticmethod
        def static(x: int) -> int:
            return x

        @classmethod
        def made_by(cls) -> str:
            return cls.__name__

        def __call__(self) -> str:
            return "called"

    derived = Derived.remote()

    assert get([derived.inherited.remote(), derived.static.remote(2), derived.made_by.remote()]) == [
        "Derived",
        2,
        "Derived",
    ]
    assert get(derived.__call__.remote()) == "called"


def test_an_actor_makes_tasks_and_actors() -> None:
    @noded.remote
    class Parent:
        def __init__(self) -> None:
            self.child = Counter.remote(100)

        def work(self) -> int:
            return int(sum(noded.get([self.child.add.remote() for _ in range(3)])))

    parent = Parent.remote()

    assert get(parent.work.remote()) == 101 + 102 + 103


def test_many_actors_at_once() -> None:
    """More than there are CPUs: an actor takes none while it lives."""
    counters = [Counter.remote(i) for i in range(12)]

    assert get([counter.add.remote() for counter in counters]) == list(range(1, 13))
    assert len(set(get([counter.pid.remote() for counter in counters]))) == 12


def test_an_actor_with_cpus_keeps_them_while_it_lives() -> None:
    counter = Counter.options(num_cpus=2).remote()
    get(counter.add.remote())

    assert noded.available_resources().get("CPU", 0) == 0
    noded.kill(counter)
    wait_for(lambda: noded.available_resources().get("CPU") == 2, "a killed actor kept its CPUs")


def test_an_actor_that_can_never_be_placed_says_so() -> None:
    counter = Counter.options(resources={"unobtainium": 1}).remote()

    with pytest.raises(ActorUnschedulableError, match=r"Counter .*unobtainium: asks 1, the node has 0"):
        noded.get(counter.add.remote(), timeout=10)


# ---------------------------------------------------------------- handles


def test_handles_travel_in_arguments_results_and_structures() -> None:
    @noded.remote
    def use(counter: Any) -> int:
        return int(noded.get(counter.add.remote()))

    @noded.remote
    def give_back(box: dict[str, Any]) -> Any:
        return {"again": [box["counter"]]}

    @noded.remote
    class Registry:
        def __init__(self) -> None:
            self.known: dict[str, Any] = {}

        def keep(self, name: str, nested: list[Any]) -> None:
            self.known[name] = nested[0]

        def give(self, name: str) -> Any:
            return self.known[name]

    counter, registry = Counter.remote(), Registry.remote()

    assert sorted(get([use.remote(counter) for _ in range(4)])) == [1, 2, 3, 4]
    same = get(give_back.remote({"counter": counter}))["again"][0]
    assert same == counter and get(same.add.remote()) == 5
    get(registry.keep.remote("c", [counter]))
    assert get(get(registry.give.remote("c")).add.remote()) == 6
    assert get(get(noded.put([counter]))[0].add.remote()) == 7


def test_a_handle_elsewhere_keeps_the_actor_alive() -> None:
    keeper = Counter.remote()
    counter = Counter.remote(41)
    get(keeper.see.remote([counter]))
    pid = get(counter.pid.remote())
    del counter
    [[again]] = get(keeper.all_seen.remote())

    assert get(again.add.remote()) == 42
    assert get(again.pid.remote()) == pid


def test_out_of_scope_ends_the_process_after_its_calls(tmp_path: Path) -> None:
    counter = Counter.remote()
    pid = get(counter.pid.remote())
    last = [counter.add.remote() for _ in range(50)]
    del counter

    assert get(last) == list(range(1, 51))
    wait_for(lambda: not is_running(pid), f"the actor's process {pid} outlives its handles")


def test_a_dropped_actors_queued_calls_still_run() -> None:
    ref = Counter.remote(1).add.remote()

    assert get(ref) == 2


def test_an_actor_knows_itself() -> None:
    @noded.remote
    class Self:
        def handle(self) -> Any:
            return noded.get_runtime_context().current_actor

        def ids(self) -> Any:
            context = noded.get_runtime_context()
            return context.get_actor_id(), context.get_actor_name(), context.was_current_actor_reconstructed

    me = Self.remote()

    assert get(me.handle.remote()) == me
    assert get(me.ids.remote()) == (me._actor_id, "", False)


# ---------------------------------------------------------------- names


def test_named_actors_and_namespaces() -> None:
    counter = Counter.options(name="known", namespace="here").remote(1)

    assert noded.get_actor("known", namespace="here") == counter
    assert get(noded.get_actor("known", namespace="here").add.remote()) == 2
    with pytest.raises(ValueError, match=r"no actor named 'known' in namespace 'elsewhere'"):
        noded.get_actor("known", namespace="elsewhere")
    with pytest.raises(ValueError, match="no actor named 'known'"):
        noded.get_actor("known")
    with pytest.raises(ValueError, match=r"'known' is taken in namespace 'here'"):
        Counter.options(name="known", namespace="here").remote()


def test_a_name_is_free_again_when_its_actor_has_ended() -> None:
    first = Counter.options(name="again").remote(1)
    noded.kill(first)
    with pytest.raises(ActorDiedError):
        get(first.add.remote())
    second = Counter.options(name="again").remote(10)

    assert get(noded.get_actor("again").add.remote()) == 11
    assert second != first


def test_the_name_is_known_in_tasks_of_the_same_program() -> None:
    keep = Counter.options(name="shared").remote()

    @noded.remote
    def use() -> int:
        return int(noded.get(noded.get_actor("shared").add.remote()))

    assert sorted(get([use.remote() for _ in range(3)])) == [1, 2, 3]
    assert get(keep.add.remote()) == 4


def test_get_if_exists_also_when_many_race() -> None:
    @noded.remote
    def join(gate: Path, n: int) -> Any:
        return Counter.options(name="raced", namespace="race", get_if_exists=True).remote()

    handles = get([join.remote(Path("."), i) for i in range(6)])

    assert len(set(handles)) == 1
    again = Counter.options(name="raced", namespace="race", get_if_exists=True).remote(100)
    assert get(again.add.remote()) == 1


# ---------------------------------------------------------------- ends


def test_kill_fails_pending_and_later_calls(tmp_path: Path) -> None:
    counter = Counter.remote()
    pid = get(counter.pid.remote())
    pending = counter.see.remote(when.remote(tmp_path / "gate"))
    noded.kill(counter)

    with pytest.raises(ActorDiedError, match=r"Counter .*kill"):
        get(pending)
    with pytest.raises(ActorDiedError):
        get(counter.add.remote())
    wait_for(lambda: not is_running(pid), f"the killed actor's process {pid} runs")
    (tmp_path / "gate").touch()


def test_kill_before_the_actor_runs() -> None:
    counter = Counter.remote()
    noded.kill(counter)

    with pytest.raises(ActorDiedError):
        get(counter.add.remote())


def test_a_failed_constructor_tells_its_error() -> None:
    @noded.remote
    class Broken:
        def __init__(self) -> None:
            raise ValueError("no luck today")

        def call(self) -> None:
            pass

    broken = Broken.remote()

    for _ in range(2):  # the calls that waited, and those that come later
        with pytest.raises(ActorDiedError, match=r"(?s)constructor .*no luck today") as caught:
            get(broken.call.remote())
        assert isinstance(caught.value.__cause__, ValueError)
        assert "__init__" in str(caught.value)


def test_a_constructor_whose_argument_failed() -> None:
    @noded.remote
    def bad() -> None:
        raise LookupError("root cause")

    with pytest.raises(ActorDiedError, match="root cause"):
        get(Counter.remote(bad.remote()).add.remote())


def test_the_error_of_a_dead_actor_tells_how_it_ended() -> None:
    @noded.remote
    class Loud:
        def end(self) -> None:
            import sys

            print("last words", file=sys.stderr, flush=True)
            os._exit(9)

        def pid(self) -> int:
            return os.getpid()

    loud = Loud.remote()
    pid = get(loud.pid.remote())
    ref = loud.end.remote()
    with pytest.raises(ActorDiedError, match=r"(?s)Loud .*pid \d+.* exited with code 9.*last words") as caught:
        get(ref)
    error = caught.value
    assert (error.exit_code, error.pid, error.actor_id) == (9, pid, loud._actor_id)
    assert error.stderr_tail == ["last words"]

    second = Loud.remote()
    os.kill(get(second.pid.remote()), signal.SIGKILL)
    with pytest.raises(ActorDiedError, match="SIGKILL"):
        get([second.pid.remote() for _ in range(100)])


def test_system_exit_ends_the_actor() -> None:
    @noded.remote
    class Leaves:
        def leave(self) -> None:
            raise SystemExit(0)

        def call(self) -> None:
            pass

    leaves = Leaves.remote()
    leaves.leave.remote()

    with pytest.raises(ActorDiedError):
        get([leaves.call.remote() for _ in range(3)])


def test_max_restarts_runs_the_constructor_again() -> None:
    counter = Counter.options(max_restarts=1).remote(5)
    get(counter.add.remote(10))
    with pytest.raises(ActorUnavailableError, match=r"exited with code 3.*"):
        get(counter.end.remote())

    assert get(counter.add.remote()) == 6
    with pytest.raises(ActorDiedError, match="exited with code 3"):
        get(counter.end.remote())
    with pytest.raises(ActorDiedError):
        get(counter.add.remote())


@noded.remote
class Dies:
    """Ends its process at the first call, but not at the next."""

    def once(self, path: Path) -> str:
        if not path.exists():
            path.touch()
            os._exit(1)
        return "second time"

    @noded.method(max_task_retries=0)
    def never_again(self, path: Path) -> str:
        return str(self.once(path))


def test_max_task_retries_repeats_the_call(tmp_path: Path) -> None:
    dies = Dies.options(max_restarts=-1, max_task_retries=1).remote()

    assert get(dies.once.remote(tmp_path / "a")) == "second time"
    with pytest.raises(ActorUnavailableError):
        get(dies.never_again.remote(tmp_path / "b"))
    plain = Dies.options(max_restarts=-1).remote()
    assert get(plain.once.options(max_task_retries=-1).remote(tmp_path / "c")) == "second time"


def test_retried_calls_keep_their_order_and_arguments(tmp_path: Path) -> None:
    @noded.remote(max_restarts=1, max_task_retries=3)
    class Log:
        def write(self, path: Path, n: int, gate: Path) -> int:
            if n == 5 and not gate.exists():
                gate.touch()
                os._exit(1)
            with path.open("a") as file:
                file.write(f"{n}\n")
            return n

    log, path = Log.remote(), tmp_path / "log"

    @noded.remote
    def number(n: int) -> int:
        return n

    assert get([log.write.remote(path, number.remote(n), tmp_path / "gate") for n in range(10)]) == list(range(10))
    written = [int(line) for line in path.read_text().split()]
    assert written[-5:] == [5, 6, 7, 8, 9] and sorted(set(written)) == list(range(10))


def test_kill_with_restart() -> None:
    counter = Counter.options(max_restarts=1).remote()
    pid = get(counter.pid.remote())
    noded.kill(counter, no_restart=False)
    wait_for(lambda: not is_running(pid), "kill(no_restart=False) did not end the process")

    def other() -> bool:
        try:
            return bool(get(counter.pid.remote()) != pid)
        except ActorUnavailableError:
            return False

    wait_for(other, "the actor did not come back")


def test_a_handle_after_shutdown_says_what_to_do(run_program: Callable[..., str]) -> None:
    output = run_program(
        """
        import noded
        noded.init(address="local", num_cpus=1)

        @noded.remote
        class A:
            def f(self): return 1

        a = A.remote()
        print(noded.get(a.f.remote()))
        noded.shutdown()
        try:
            a.f.remote()
        except noded.exceptions.ActorHandleNotFoundError as error:
            print("shut down" in str(error), "noded.init()" in str(error))
        """
    )

    assert output == "1\nTrue True\n"
