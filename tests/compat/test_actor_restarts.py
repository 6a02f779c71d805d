"""Actors that come back: max_restarts, max_task_retries, retry_exceptions."""

from __future__ import annotations

import os
from typing import Any

import pytest
import ray
from harness.wait import wait_for
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError

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


# ---------------------------------------------------------------- restarts


def test_a_crash_without_restarts_is_final() -> None:
    actor = crasher_class().remote()

    with pytest.raises(ActorDiedError):
        get(actor.crash.remote())
    with pytest.raises(ActorDiedError):
        get(actor.add.remote())


def test_a_crash_with_restarts_fails_the_call_and_gives_a_fresh_actor() -> None:
    actor = crasher_class().options(max_restarts=1).remote(10)
    assert get(actor.add.remote(5)) == 15

    with pytest.raises(RayActorError):
        get(actor.crash.remote())
    assert works_again(actor) == 11


def test_error_of_a_call_to_an_actor_that_comes_back_is_unavailable() -> None:
    actor = crasher_class().options(max_restarts=1).remote()
    get(actor.add.remote())

    with pytest.raises(ActorUnavailableError):
        get(actor.crash.remote())
    works_again(actor)


def test_restarts_are_counted() -> None:
    actor = crasher_class().options(max_restarts=1).remote()

    with pytest.raises(RayActorError):
        get(actor.crash.remote())
    works_again(actor)
    with pytest.raises(ActorDiedError):
        get(actor.crash.remote())
    with pytest.raises(ActorDiedError):
        get(actor.add.remote())


def test_restarts_without_limit() -> None:
    actor = crasher_class().options(max_restarts=-1).remote()

    for _ in range(3):
        with pytest.raises(RayActorError):
            get(actor.crash.remote())
        works_again(actor)


def test_was_current_actor_reconstructed() -> None:
    actor = crasher_class().options(max_restarts=1, max_task_retries=-1).remote()
    assert get(actor.was_restarted.remote()) is False

    ray.kill(actor, no_restart=False)
    wait_for(lambda: get(actor.was_restarted.remote()), "the restarted actor does not know it", 30)


def test_the_name_outlives_a_restart() -> None:
    actor = crasher_class().options(name="phoenix", max_restarts=1).remote(1)
    with pytest.raises(RayActorError):
        get(actor.crash.remote())
    works_again(actor)
    assert ray.get_actor("phoenix") == actor


def test_restart_options_are_checked() -> None:
    Crasher = crasher_class()
    for option in ("max_restarts", "max_task_retries"):
        with pytest.raises(ValueError):
            Crasher.options(**{option: -2}).remote()
        with pytest.raises(TypeError):
            Crasher.options(**{option: "many"}).remote()


# ---------------------------------------------------------------- retries of calls


def test_max_task_retries_repeats_the_call_on_the_restarted_actor(notes: Any) -> None:
    actor = crasher_class().options(max_restarts=1, max_task_retries=1).remote()

    assert get(actor.crash_once.remote(notes)) == 2
    assert len(notes.all()) == 2


def test_max_task_retries_of_one_method(notes: Any) -> None:
    @ray.remote(max_restarts=1)
    class Crasher:
        @ray.method(max_task_retries=1)
        def crash_once(self, notes: Any) -> int:
            if notes.add() == 1:
                os._exit(1)
            return len(notes.all())

    assert get(Crasher.remote().crash_once.remote(notes)) == 2


def test_max_task_retries_of_one_call(notes: Any) -> None:
    actor = crasher_class().options(max_restarts=1).remote()
    assert get(actor.crash_once.options(max_task_retries=1).remote(notes)) == 2


def test_max_task_retries_needs_restarts(notes: Any) -> None:
    actor = crasher_class().options(max_task_retries=3).remote()
    with pytest.raises(ActorDiedError):
        get(actor.crash_once.remote(notes))
    assert len(notes.all()) == 1


def test_calls_queued_at_a_crash_are_done_after_it_when_retried(notes: Any) -> None:
    actor = crasher_class().options(max_restarts=1, max_task_retries=-1).remote()
    get(actor.add.remote())  # has been answered: it is not done again
    refs = [actor.crash_once.remote(notes), *(actor.add.remote() for _ in range(5))]
    assert sorted(get(refs)[1:]) == [1, 2, 3, 4, 5]


@pytest.mark.improves("calls that are repeated after a restart run in the order in which they were made")
def test_calls_queued_at_a_crash_keep_their_order(notes: Any) -> None:
    actor = crasher_class().options(max_restarts=1, max_task_retries=-1).remote()
    get(actor.add.remote())
    refs = [actor.crash_once.remote(notes), *(actor.add.remote() for _ in range(5))]
    assert get(refs)[1:] == [1, 2, 3, 4, 5]


def failing_class() -> Any:
    @ray.remote(max_task_retries=3)
    class Failing:
        @ray.method(retry_exceptions=True)
        def retried(self, notes: Any, times: int) -> int:
            if notes.add() <= times:
                raise ValueError("not yet")
            return len(notes.all())

        @ray.method(retry_exceptions=[KeyError])
        def only_key_errors(self, notes: Any, error: type[Exception]) -> int:
            if notes.add() == 1:
                raise error("not yet")
            return len(notes.all())

        def plain(self, notes: Any) -> None:
            notes.add()
            raise ValueError("never")

    return Failing


def test_retry_exceptions_repeats_a_method_that_raised(notes: Any) -> None:
    assert get(failing_class().remote().retried.remote(notes, 2)) == 3


def test_retry_exceptions_gives_up_after_max_task_retries(notes: Any) -> None:
    with pytest.raises(ValueError, match="not yet"):
        get(failing_class().remote().retried.remote(notes, 100))
    assert len(notes.all()) == 4


def test_retry_exceptions_with_a_list_repeats_only_those(notes: Any) -> None:
    failing = failing_class().remote()
    assert get(failing.only_key_errors.remote(notes, KeyError)) == 2


def test_retry_exceptions_with_a_list_raises_others_at_once(notes: Any) -> None:
    failing = failing_class().remote()
    with pytest.raises(OSError):
        get(failing.only_key_errors.remote(notes, OSError))
    assert len(notes.all()) == 1


def test_errors_are_not_retried_by_max_task_retries_alone(notes: Any) -> None:
    with pytest.raises(ValueError, match="never"):
        get(failing_class().remote().plain.remote(notes))
    assert len(notes.all()) == 1


def test_retry_exceptions_of_one_call(notes: Any) -> None:
    failing = failing_class().remote()
    with pytest.raises(ValueError, match="never"):
        get(failing.plain.options(retry_exceptions=True, max_task_retries=1).remote(notes))
    assert len(notes.all()) == 2
