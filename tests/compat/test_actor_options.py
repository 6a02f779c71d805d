"""Options of actors: their errors, and the resources they ask for."""

from __future__ import annotations

from typing import Any

import pytest
import ray

pytestmark = pytest.mark.usefixtures("cluster")


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=60)


# ---------------------------------------------------------------- options


class Plain:
    pass


@pytest.mark.parametrize(
    "option",
    [
        {"num_cpus": -1},
        {"num_gpus": -1},
        {"memory": -1},
        {"resources": {"CPU": 1}},
        {"resources": {"GPU": 1}},
        {"resources": {"custom": -1}},
        {"max_concurrency": -1},
        {"max_restarts": -2},
        {"max_task_retries": -2},
        {"lifetime": "weekly"},
        {"unknown_option": 1},
        {"num_returns": 2},  # of tasks and methods
        {"max_retries": 2},
        {"max_calls": 1},
        {"retry_exceptions": True},
    ],
    ids=lambda option: next(iter(option)) + "=" + str(next(iter(option.values()))),
)
def test_wrong_value_of_an_option_is_a_value_error(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        ray.remote(Plain).options(**option).remote()
    with pytest.raises(ValueError):
        ray.remote(**option)(Plain)


@pytest.mark.parametrize(
    "option",
    [
        {"num_cpus": "1"},
        {"num_gpus": "1"},
        {"memory": "1"},
        {"resources": [1]},
        {"max_concurrency": "2"},
        {"max_concurrency": 1.5},
        {"max_restarts": 1.5},
        {"get_if_exists": "yes"},
        {"name": 1},
        {"namespace": 1},
        {"concurrency_groups": 3},
        {"scheduling_strategy": 3},
        {"runtime_env": 3},
    ],
    ids=lambda option: next(iter(option)) + "=" + str(next(iter(option.values()))),
)
def test_wrong_type_of_an_option_is_a_type_error(option: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        ray.remote(**option)(Plain).remote()


def test_remote_takes_only_keywords_as_options() -> None:
    with pytest.raises((AssertionError, TypeError)):
        ray.remote(5)
    with pytest.raises((AssertionError, TypeError)):
        ray.remote("x", num_cpus=1)


def test_options_of_methods_are_checked() -> None:
    @ray.remote
    class Hello:
        def hello(self) -> None: ...

    hello = Hello.remote()
    with pytest.raises((TypeError, ValueError)):
        hello.hello.options(unknown=1).remote()
    with pytest.raises((TypeError, ValueError)):
        hello.hello.options(num_returns="many").remote()


def test_resources_of_actors() -> None:
    @ray.remote
    class Sized:
        def resources(self) -> Any:
            return ray.get_runtime_context().get_assigned_resources()

    assert get(Sized.options(num_cpus=2).remote().resources.remote()) == {"CPU": 2.0}
    assert get(Sized.options(num_cpus=0.5).remote().resources.remote()) == {"CPU": 0.5}
    assert get(Sized.remote().resources.remote()) == {}


def test_actor_without_num_cpus_needs_one_to_start_and_none_to_live() -> None:
    @ray.remote
    class Idle:
        def hello(self) -> str:
            return "hello"

    actors = [Idle.remote() for _ in range(6)]  # more than there are CPUs
    assert get([actor.hello.remote() for actor in actors]) == ["hello"] * 6


def test_an_actor_that_does_not_fit_now_waits() -> None:
    @ray.remote(num_cpus=3)
    class Wide:
        def hello(self) -> str:
            return "hello"

    first = Wide.remote()
    get(first.hello.remote())
    second = Wide.remote()
    ref = second.hello.remote()
    assert ray.wait([ref], timeout=0.3) == ([], [ref])
    del first
    assert get(ref) == "hello"
