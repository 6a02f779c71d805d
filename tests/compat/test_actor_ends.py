"""How actors end: exit_actor, kill, crashes, and what is cancelled. And the methods that all of them have."""

from __future__ import annotations

import os
from typing import Any

import pytest
import ray
from harness.wait import wait_for
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, TaskCancelledError

pytestmark = pytest.mark.usefixtures("cluster")


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=60)


def crasher_class() -> Any:
    @ray.remote
    class Crasher:
        def __init__(self, start: int = 0) -> None:
            self.value = start

        def add(self, amount: int = 1) -> int:
            self.value += amount
            return self.value

        def crash(self) -> None:
            os._exit(1)

        def crash_once(self, notes: Any) -> int:
            if notes.add() == 1:
                os._exit(1)
            return len(notes.all())

        def pid(self) -> int:
            return os.getpid()

        def was_restarted(self) -> bool:
            return ray.get_runtime_context().was_current_actor_reconstructed

    return Crasher


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def works_again(actor: Any) -> Any:
    """What add() answers once the actor is back."""

    def attempt() -> Any:
        try:
            return get(actor.add.remote())
        except ActorUnavailableError:
            return None

    return wait_for(attempt, "the actor does not come back", 30)


def ends(actor: Any) -> bool:
    """Waits until a call fails for good."""

    def attempt() -> bool:
        try:
            get(actor.add.remote())
        except ActorDiedError:
            return True
        return False

    return wait_for(attempt, "the actor does not end", 30)


# ---------------------------------------------------------------- exit_actor


def test_exit_actor_ends_the_actor() -> None:
    @ray.remote
    class Quitter:
        def quit(self) -> None:
            ray.actor.exit_actor()

        def pid(self) -> int:
            return os.getpid()

    quitter = Quitter.remote()
    pid = get(quitter.pid.remote())
    with pytest.raises(ActorDiedError):
        get(quitter.quit.remote())
    with pytest.raises(ActorDiedError):
        get(quitter.pid.remote())
    wait_for(lambda: not is_alive(pid), "the process of the actor lives on", 30)


def test_exit_actor_in_an_async_actor() -> None:
    @ray.remote
    class Quitter:
        async def quit(self) -> None:
            ray.actor.exit_actor()

        async def pid(self) -> int:
            return os.getpid()

    quitter = Quitter.remote()
    pid = get(quitter.pid.remote())
    with pytest.raises(ActorDiedError):
        get(quitter.quit.remote())
    wait_for(lambda: not is_alive(pid), "the process of the actor lives on", 30)


def test_exit_actor_in_a_nested_function_runs_finally_blocks(notes: Any) -> None:
    @ray.remote
    class Quitter:
        def quit(self, notes: Any) -> None:
            try:
                self._deep()
            finally:
                notes.add("cleaned")

        def _deep(self) -> None:
            ray.actor.exit_actor()

    with pytest.raises(ActorDiedError):
        get(Quitter.remote().quit.remote(notes))
    assert notes.all() == ["cleaned"]


def test_exit_actor_is_final_even_with_restarts() -> None:
    @ray.remote(max_restarts=-1, max_task_retries=-1)
    class Quitter:
        def quit(self) -> None:
            ray.actor.exit_actor()

    quitter = Quitter.remote()
    with pytest.raises(ActorDiedError):
        get(quitter.quit.remote())
    with pytest.raises(ActorDiedError):
        get(quitter.quit.remote())


def test_exit_actor_outside_of_an_actor_is_a_type_error() -> None:
    @ray.remote
    def outside() -> None:
        ray.actor.exit_actor()

    with pytest.raises(TypeError):
        ray.actor.exit_actor()
    with pytest.raises(TypeError):
        get(outside.remote())


# ---------------------------------------------------------------- kill


def test_kill_ends_the_actor_and_its_process() -> None:
    actor = crasher_class().remote()
    pid = get(actor.pid.remote())

    ray.kill(actor)
    assert ends(actor)
    wait_for(lambda: not is_alive(pid), "the process of the killed actor lives on", 30)


def test_kill_fails_running_and_queued_calls(gate: Any, notes: Any) -> None:
    @ray.remote
    class Waiter:
        def wait(self, gate: Any, notes: Any) -> None:
            notes.add("started")
            gate.wait()

        def next(self) -> None: ...

    waiter = Waiter.remote()
    refs = [waiter.wait.remote(gate, notes), waiter.next.remote()]
    notes.wait(1)
    ray.kill(waiter)
    for ref in refs:
        with pytest.raises(RayActorError):
            get(ref)


def test_kill_is_final_by_default_even_with_restarts() -> None:
    actor = crasher_class().options(max_restarts=5).remote()
    get(actor.add.remote())

    ray.kill(actor)
    assert ends(actor)


@pytest.mark.improves("no call that was made after kill() still runs")
def test_calls_made_after_kill_fail() -> None:
    for _ in range(5):
        actor = crasher_class().remote()
        get(actor.add.remote())
        ray.kill(actor)
        with pytest.raises(ActorDiedError):
            get(actor.add.remote())


def test_kill_with_no_restart_false_restarts_with_fresh_state() -> None:
    actor = crasher_class().options(max_restarts=1).remote(10)
    assert get(actor.add.remote()) == 11
    pid = get(actor.pid.remote())

    ray.kill(actor, no_restart=False)
    wait_for(lambda: not is_alive(pid), "the process of the killed actor lives on", 30)
    assert works_again(actor) == 11
    assert get(actor.pid.remote()) != pid


def test_kill_with_no_restart_false_ends_an_actor_without_restarts() -> None:
    actor = crasher_class().remote()
    get(actor.add.remote())

    ray.kill(actor, no_restart=False)
    assert ends(actor)


def test_kill_takes_only_handles() -> None:
    with pytest.raises(ValueError):
        ray.kill("an actor")
    with pytest.raises(ValueError):
        ray.kill(ray.put(1))


def test_kill_twice_is_harmless() -> None:
    actor = crasher_class().remote()
    get(actor.add.remote())
    ray.kill(actor)
    ray.kill(actor)
    assert ends(actor)


def test_actors_and_tasks_can_kill_actors() -> None:
    @ray.remote
    def kill(handle: Any) -> None:
        ray.kill(handle)

    actor = crasher_class().remote()
    get(actor.add.remote())
    get(kill.remote(actor))
    assert ends(actor)


# ---------------------------------------------------------------- the methods every actor has


def test_ray_ready_waits_for_the_constructor(gate: Any) -> None:
    @ray.remote
    class Slow:
        def __init__(self, gate: Any) -> None:
            gate.wait()

    slow = Slow.remote(gate)
    ready = slow.__ray_ready__.remote()
    assert ray.wait([ready], timeout=0.2) == ([], [ready])
    gate.open()
    assert get(ready) is True


def test_ray_call_runs_a_function_on_the_instance() -> None:
    actor = crasher_class().remote(5)

    def twice(self: Any, factor: int, *, plus: int = 0) -> int:
        return self.value * factor + plus

    assert get(actor.__ray_call__.remote(twice, 2, plus=1)) == 11


def test_ray_terminate_ends_the_actor_after_earlier_calls() -> None:
    actor = crasher_class().remote()
    before = actor.add.remote()
    actor.__ray_terminate__.remote()

    assert get(before) == 1
    with pytest.raises(ActorDiedError):
        get(actor.add.remote())


# ---------------------------------------------------------------- cancel


def test_cancel_of_a_queued_call(gate: Any) -> None:
    @ray.remote
    class Waiter:
        def wait(self, gate: Any) -> str:
            gate.wait()
            return "waited"

    waiter = Waiter.remote()
    first, second = waiter.wait.remote(gate), waiter.wait.remote(gate)
    ray.cancel(second)
    gate.open()
    assert get(first) == "waited"
    with pytest.raises(TaskCancelledError):
        get(second)


def test_forced_cancel_of_an_actor_call_is_a_value_error() -> None:
    actor = crasher_class().remote()
    ref = actor.add.remote()
    with pytest.raises(ValueError):
        ray.cancel(ref, force=True)
    assert get(ref) == 1
