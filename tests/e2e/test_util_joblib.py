"""The joblib backend: joblib.Parallel over tasks, with big arguments shared."""

from __future__ import annotations

import builtins
from typing import Any

import joblib
import numpy as np
import pytest

from noded.util.joblib import register_noded, register_ray

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.slow]
register_noded()
register_ray()


def square(x: int) -> int:
    return x * x


def run(function: Any, items: Any, **options: Any) -> Any:
    parallel = joblib.Parallel(**{"n_jobs": 2, "backend": "noded", **options})
    return parallel(joblib.delayed(function)(item) for item in items)


def test_results_come_in_order() -> None:
    assert run(square, range(50)) == [x * x for x in range(50)]
    assert list(run(square, range(9), return_as="generator")) == [x * x for x in range(9)]
    assert sorted(run(square, range(9), return_as="generator_unordered")) == [x * x for x in range(9)]


@pytest.mark.parametrize("name", ["noded", "ray"])
def test_it_is_chosen_by_name_and_takes_task_options(name: str) -> None:
    with joblib.parallel_config(name, n_jobs=-1, ray_remote_args={"num_cpus": 2}):
        assert joblib.Parallel()(joblib.delayed(square)(x) for x in range(5)) == [0, 1, 4, 9, 16]
        assert [joblib.effective_n_jobs(n) for n in (-1, 1, 100, -2)] == [2, 1, 100, 1]


def test_the_users_own_exception_is_raised() -> None:
    def fail(x: int) -> None:
        raise KeyError(x)

    with pytest.raises(KeyError):
        run(fail, range(4))
    assert run(square, range(4)) == [0, 1, 4, 9]


def test_big_arguments_are_stored_once() -> None:
    data = np.arange(200_000)

    def look(pair: Any) -> Any:
        raise AssertionError("called with two arguments below")

    del look

    def place(values: Any, number: int, *, again: Any) -> tuple[int, int, bool, bool]:
        return int(values.sum()) + number, values.ctypes.data, values.flags.writeable, again is values

    parallel = joblib.Parallel(n_jobs=2, backend="noded", batch_size=1)
    found = parallel(joblib.delayed(place)(data, number, again=data) for number in range(6))
    assert [total - number for number, (total, *_) in enumerate(found)] == [int(data.sum())] * 6
    assert {(writeable, same) for *_, writeable, same in found} == {(False, True)}


def test_calls_within_calls() -> None:
    def inner(count: int) -> int:
        return sum(joblib.Parallel(n_jobs=2)(joblib.delayed(square)(x) for x in range(count)))

    assert run(inner, range(5)) == [sum(x * x for x in range(count)) for count in range(5)]


def test_without_joblib_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("joblib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install joblib"):
        register_noded()
