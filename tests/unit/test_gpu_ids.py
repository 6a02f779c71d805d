"""CUDA_VISIBLE_DEVICES read and written, and the short names of GPU models."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noded.node import gpu_ids
from noded.node.gpu_detector import accelerator_type
from noded.util import accelerators

HEX = st.text("0123456789abcdef-/", max_size=12)
IDS = st.one_of(st.integers(0, 99).map(str), HEX.map("GPU-".__add__), HEX.map("MIG-".__add__))


def read(text: str) -> list[str] | None:
    return gpu_ids.visible_ids({"CUDA_VISIBLE_DEVICES": text})


@given(st.lists(IDS, unique=True, max_size=16))
def test_what_is_written_is_read(ids: list[str]) -> None:
    assert read(gpu_ids.visible(ids)) == ids


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("2,3", ["2", "3"]),
        (" 2 ,3 ", ["2", "3"]),
        ("02", ["2"]),
        ("0,0,1", ["0", "1"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0,,1", ["0"]),
        ("0,-1,1", ["0"]),
        ("0,x,1", ["0"]),
        ("²", []),
        ("MIG-GPU-5/1/0", ["MIG-GPU-5/1/0"]),
    ],
)
def test_what_cuda_would_see(text: str, ids: list[str]) -> None:
    assert read(text) == ids


def test_an_environment_that_does_not_say_does_not_restrict() -> None:
    assert gpu_ids.visible_ids({"PATH": "/bin"}) is None


def test_a_node_that_is_told_its_gpus_numbers_them_or_takes_the_users_ids() -> None:
    assert gpu_ids.ids_for({}, 3) == ["0", "1", "2"]
    assert gpu_ids.ids_for({"CUDA_VISIBLE_DEVICES": "5,GPU-1,7"}, 2) == ["5", "GPU-1"]
    assert gpu_ids.ids_for({"CUDA_VISIBLE_DEVICES": ""}, 0) == []
    with pytest.raises(ValueError, match="3 GPUs were asked for, but CUDA_VISIBLE_DEVICES='2,3' allows 2"):
        gpu_ids.ids_for({"CUDA_VISIBLE_DEVICES": "2,3"}, 3)


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("NVIDIA H100 80GB HBM3", accelerators.NVIDIA_H100),
        ("NVIDIA A100-SXM4-40GB", accelerators.NVIDIA_A100),
        ("NVIDIA A100 80GB PCIe", accelerators.NVIDIA_TESLA_A100),
        ("Tesla V100-SXM2-16GB", accelerators.NVIDIA_TESLA_V100),
        ("Tesla P100-PCIE-16GB", accelerators.NVIDIA_TESLA_P100),
        ("Tesla T4", accelerators.NVIDIA_TESLA_T4),
        ("Tesla P4", accelerators.NVIDIA_TESLA_P4),
        ("Tesla K80", accelerators.NVIDIA_TESLA_K80),
        ("NVIDIA A10G", accelerators.NVIDIA_TESLA_A10G),
        ("NVIDIA L4", accelerators.NVIDIA_L4),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA GeForce RTX 4090", "GeForce-RTX-4090"),
        ("GeForce GTX 1080 Ti", "GTX-1080"),
        ("Quadro RTX 8000", "RTX-8000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX-6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX-PRO-6000"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "A100"),
        ("NVIDIA TITAN V", "TITAN-V"),
        ("NVIDIA", "NVIDIA"),
        ("", ""),
    ],
)
def test_short_names_of_models(name: str, short: str) -> None:
    assert accelerator_type(name) == short
