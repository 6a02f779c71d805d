"""Options of remote functions: what is accepted, what is refused and with which type of error, and when."""

from __future__ import annotations

from typing import Any

import pytest
import ray

WRONG: list[tuple[str, Any, type[Exception]]] = [
    ("num_cpus", "1", TypeError),
    ("num_cpus", -1, ValueError),
    ("num_cpus", float("nan"), ValueError),
    ("num_cpus", 0.00001, ValueError),  # finer than 0.0001
    ("num_gpus", "1", TypeError),
    ("num_gpus", -0.5, ValueError),
    ("memory", "1", TypeError),
    ("memory", -1, ValueError),
    ("resources", 1, TypeError),
    ("resources", {"CPU": 1}, ValueError),
    ("resources", {"GPU": 1}, ValueError),
    ("resources", {"thing": -1}, ValueError),
    ("resources", {"thing": "a"}, TypeError),
    ("num_returns", -1, ValueError),
    ("num_returns", 1.5, TypeError),
    ("num_returns", [2], TypeError),
    ("max_retries", -2, ValueError),
    ("max_retries", "1", TypeError),
    ("max_retries", 1.5, TypeError),
    ("retry_exceptions", 1, TypeError),
    ("retry_exceptions", "ValueError", TypeError),
    ("retry_exceptions", ["ValueError"], ValueError),
    ("retry_exceptions", [int], ValueError),
    ("max_calls", -1, ValueError),
    ("max_calls", "1", TypeError),
    ("name", 1, TypeError),
    ("scheduling_strategy", 3, TypeError),
    ("runtime_env", 3, TypeError),
    ("accelerator_type", 3, TypeError),
    ("enable_task_events", "yes", TypeError),
    ("_generator_backpressure_num_objects", 0, ValueError),
    ("_generator_backpressure_num_objects", "2", TypeError),
    ("object_store_memory", 1, ValueError),  # not for tasks
    ("no_such_option", 1, ValueError),
    # of actors, not of tasks
    ("max_restarts", 1, ValueError),
    ("max_concurrency", 2, ValueError),
    ("lifetime", "detached", ValueError),
]


@pytest.mark.parametrize(("option", "value", "error"), WRONG, ids=[f"{name}={value!r}" for name, value, _ in WRONG])
def test_wrong_options_are_refused_where_they_are_given(option: str, value: Any, error: type[Exception]) -> None:
    def function() -> None: ...

    with pytest.raises(error):
        ray.remote(**{option: value})(function)
    with pytest.raises(error):
        ray.remote(function).options(**{option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_cpus", 0),
        ("num_cpus", 0.5),
        ("num_cpus", None),
        ("num_gpus", 0),
        ("memory", 1 << 20),
        ("memory", 0),
        ("resources", {}),
        ("resources", None),
        ("num_returns", None),
        ("max_retries", -1),
        ("retry_exceptions", True),
        ("retry_exceptions", [ValueError, KeyError]),
        ("name", None),
        ("scheduling_strategy", None),
        ("scheduling_strategy", "DEFAULT"),
        ("scheduling_strategy", "SPREAD"),
        ("runtime_env", None),
        ("runtime_env", {}),
        ("enable_task_events", False),
        ("_labels", {}),
    ],
    ids=lambda value: repr(value),
)
def test_right_options_are_taken(cluster: None, option: str, value: Any) -> None:
    @ray.remote(**{option: value})
    def decorated() -> int:
        return 1

    @ray.remote
    def plain() -> int:
        return 2

    assert ray.get(decorated.remote()) == 1
    assert ray.get(plain.options(**{option: value}).remote()) == 2


@pytest.mark.improves("a name that is no known word is a ValueError, as other wrong values are; Ray fails comparing it")
def test_unknown_words_for_num_returns_are_value_errors() -> None:
    def function() -> None: ...

    with pytest.raises(ValueError, match="num_returns"):
        ray.remote(num_returns="all")(function)


@pytest.mark.improves("a scheduling strategy that does not exist is refused where it is given, not ignored")
def test_unknown_scheduling_strategies_are_refused() -> None:
    def function() -> None: ...

    with pytest.raises(ValueError, match="scheduling_strategy"):
        ray.remote(scheduling_strategy="SPRAED")(function)


def test_options_have_names() -> None:
    with pytest.raises((AssertionError, TypeError)):
        ray.remote(2)
    with pytest.raises((AssertionError, TypeError)):
        ray.remote()


def test_options_do_not_change_the_function_they_are_called_on(cluster: None) -> None:
    @ray.remote(num_returns=2)
    def pair() -> tuple[int, int]:
        return 1, 2

    single = pair.options(num_returns=1)

    assert ray.get(single.remote()) == (1, 2)
    assert ray.get(pair.remote()) == [1, 2]


def test_options_add_to_those_of_the_decorator(cluster: None) -> None:
    @ray.remote(num_returns=2, name="first")
    def names() -> tuple[str, str]:
        name = ray.get_runtime_context().get_task_name()
        return name, name

    assert ray.get(names.remote()) == ["first", "first"]
    assert ray.get(names.options(name="second").remote()) == ["second", "second"]


def test_a_task_may_be_bound_to_a_node(cluster: None) -> None:
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )

    @ray.remote(scheduling_strategy=strategy)
    def where() -> str:
        return ray.get_runtime_context().get_node_id()

    assert ray.get(where.remote()) == ray.get_runtime_context().get_node_id()
