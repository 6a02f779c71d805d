"""PyTorch tensors without copies: one on the CPU shares its memory with the NumPy array that travels for it.

As all big values they are read-only where they arrive; a tensor cannot say so, so writing to one is the user's mistake:
clone it first.
"""

from __future__ import annotations

import sys
from typing import Any

from noded.client import codec

_registered = False


def register_once() -> None:
    """Once torch is imported."""
    global _registered
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    if not _registered and tensor is not None:
        _registered = True
        codec.register(tensor, _reduce)


def _reduce(tensor: Any) -> Any:
    import torch

    plain = (
        tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and not tensor.requires_grad
        and not tensor.is_conj()
        and not tensor.is_neg()
        and not tensor.is_quantized
    )
    if not plain or not tensor.numel():
        return tensor.__reduce_ex__(2)
    dtype = tensor.dtype
    try:
        # By its bytes: NumPy does not know every type that torch has.
        array = tensor.contiguous().view(-1).view(torch.uint8).numpy()
    except (RuntimeError, TypeError):
        return tensor.__reduce_ex__(2)
    return _rebuild, (array, dtype, tuple(tensor.shape))


def _rebuild(array: Any, dtype: Any, shape: tuple[int, ...]) -> Any:
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the memory is read-only: see the module's first lines
        return torch.from_numpy(array).view(dtype).view(shape)
