"""Arrow, pandas and PyTorch values share the store's memory where they arrive; what is not installed is skipped.

That nothing was copied is seen by addresses: two readers of one object in one process have the same. NumPy's own
arrays are in test_objects.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import noded

pytestmark = pytest.mark.usefixtures("cluster")
TIMEOUT = 60
COUNT = 100_000


def get(ref: Any) -> Any:
    return noded.get(ref, timeout=TIMEOUT)


@noded.remote
def apply(function: Callable[[Any], Any], value: Any) -> Any:
    return function(value)


def shares(ref: Any, address: Callable[[Any], int]) -> bool:
    """Whether two values of one ref lie at one address."""
    first, second = get(ref), get(ref)
    assert first is not second
    return address(first) == address(second)


def of_array(array: Any) -> int:
    at: int = array.__array_interface__["data"][0]
    return at


# ---------------------------------------------------------------- Arrow


def test_arrow_tables_are_not_copied() -> None:
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table({"n": np.arange(COUNT), "text": [f"row {i}" for i in range(COUNT)]})
    ref = noded.put(table)
    assert get(ref).equals(table)
    for column in ("n", "text"):
        assert shares(ref, lambda found, column=column: found[column].chunk(0).buffers()[-1].address)
    assert get(apply.remote(lambda found: (found.num_rows, found["text"][7].as_py()), ref)) == (COUNT, "row 7")


def test_arrow_tables_of_tasks_come_without_a_copy() -> None:
    arrow = pytest.importorskip("pyarrow")
    ref = apply.remote(lambda count: arrow.table({"n": range(count)}), COUNT)
    assert shares(ref, lambda found: found["n"].chunk(0).buffers()[1].address)


# ---------------------------------------------------------------- pandas


def test_pandas_columns_of_numbers_are_not_copied_and_read_only() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": np.arange(COUNT), "b": np.linspace(0, 1, COUNT), "c": np.arange(COUNT)})
    ref = noded.put(frame)
    pandas.testing.assert_frame_equal(get(ref), frame)
    for column in frame:
        assert shares(ref, lambda found, column=column: of_array(found[column].to_numpy()))
        assert not get(ref)[column].to_numpy().flags.writeable
    assert get(apply.remote(lambda found: int(found["a"].sum()), ref)) == COUNT * (COUNT - 1) // 2


def test_pandas_frames_can_be_changed_after_a_copy() -> None:
    pandas = pytest.importorskip("pandas")
    ref = noded.put(pandas.DataFrame({"a": np.zeros(COUNT)}))
    own = get(ref).copy()
    own.loc[0, "a"] = 5.0
    own["more"] = 1  # a new column needs no copy of the others
    assert own["a"].sum() == 5.0
    assert get(ref)["a"].sum() == 0.0


def test_pandas_frames_with_text_come_back_equal() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {"text": [f"row {i}" for i in range(1000)], "when": pandas.date_range("2020", periods=1000)}
    )
    pandas.testing.assert_frame_equal(get(apply.remote(lambda found: found, noded.put(frame))), frame)


# ---------------------------------------------------------------- PyTorch


def test_tensors_on_the_cpu_are_not_copied() -> None:
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool):
        tensor = torch.arange(COUNT).view(100, -1).to(dtype)
        ref = noded.put(tensor)
        found = get(ref)
        assert found.dtype == dtype and torch.equal(found, tensor)
        assert shares(ref, lambda found: found.data_ptr())
    assert get(apply.remote(lambda found: float(found.double().sum()), noded.put(torch.ones(COUNT)))) == COUNT


def test_tensors_inside_other_values_are_not_copied() -> None:
    torch = pytest.importorskip("torch")
    ref = apply.remote(lambda count: {"weights": [torch.ones(count)]}, COUNT)
    assert shares(ref, lambda found: found["weights"][0].data_ptr())


def test_tensors_of_every_kind_come_back_equal() -> None:
    torch = pytest.importorskip("torch")
    base = torch.arange(COUNT, dtype=torch.float32).view(100, -1)
    # Not sparse ones: torch keeps each that it unpickles until the next torch.load.
    for tensor in (base.T, base[::2, ::3], base.to(torch.complex64).conj(), torch.tensor(3.5), torch.zeros(0, 4)):
        found = get(apply.remote(lambda same: same, noded.put(tensor)))
        assert found.shape == tensor.shape and torch.equal(found, tensor)


def test_tensors_with_gradients_keep_them() -> None:
    torch = pytest.importorskip("torch")
    found = get(noded.put(torch.ones(COUNT, requires_grad=True)))
    found.sum().backward()
    assert found.requires_grad and float(found.grad.sum()) == COUNT


def test_modules_travel_with_their_weights() -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(300, 100)
    given = torch.ones(300)
    found = get(apply.remote(lambda model: model(given).detach(), noded.put(model)))
    assert torch.allclose(found, model(given).detach(), atol=1e-5)
