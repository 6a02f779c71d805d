"""Figures of the node's GPUs, as a collector: a helper process asks NVML (``gpu_detector.py``).

What NVML does not tell of a GPU is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from noded.metrics.family import Family, gauge
from noded.node import gpu_detector

DEADLINE = 10.0
_HELPER_SECONDS = 8.0


class GpuFigures:
    """``ids()``: the GPUs that are the node's, as CUDA_VISIBLE_DEVICES names them; nobody is asked while there are
    none.
    """

    def __init__(self, environ: Mapping[str, str], ids: Callable[[], list[str]]):
        self._environ = environ
        self._ids = ids

    def collect(self) -> list[Family]:
        """Raises RuntimeError when NVML does not tell."""
        if not self._ids():
            return []
        loads = gpu_detector.loads(self._environ, _HELPER_SECONDS)
        used = gauge("noded_node_gpu_memory_used_bytes", "Memory of the GPU in use, by whatever program")
        size = gauge("noded_node_gpu_memory_size_bytes", "Memory of the GPU")
        busy = gauge("noded_node_gpu_utilization_ratio", "Part of the last moment in which the GPU was at work, 0 to 1")
        heat = gauge("noded_node_gpu_temperature_celsius", "Temperature of the GPU")
        for load in loads:
            labels = {"gpu": str(load.index), "uuid": load.uuid, "name": load.name}
            if load.memory:
                size.samples.append((labels, load.memory))
            if load.used is not None:
                used.samples.append((labels, load.used))
            if load.utilization is not None:
                busy.samples.append((labels, load.utilization / 100))
            if load.temperature is not None:
                heat.samples.append((labels, load.temperature))
        return [used, size, busy, heat]
