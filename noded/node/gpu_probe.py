"""Asks NVML what GPUs there are. A program of its own, because NVML may hang or crash: see `gpu_detector.py`.

    python gpu_probe.py SECONDS

It prints one line of JSON, `{"devices": [...], "failed": "", "reason": ""}`, and ends after SECONDS in any case. A
device comes with what it does now: memory in use, percent of the time at work, degrees; null where NVML does not tell.
`failed` says what went wrong: "library" (it does not load), "driver" (it is not there), "other".
Standard library and pynvml only; nothing of noded.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any


def main() -> None:
    # Should the daemon be killed meanwhile, nobody else would end this process.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.setitimer(signal.ITIMER_REAL, float(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Libraries print to stdout as well (CUDA's stub of NVML does): only the answer goes there.
    with open(os.dup(1), "w", encoding="utf-8") as answer:
        os.dup2(2, 1)
        print(json.dumps(ask()), file=answer)
    os._exit(0)  # without the library's destructors, which may hang too


def ask() -> dict[str, Any]:
    try:
        import pynvml
    except ImportError as error:
        return failure("other", f"nvidia-ml-py cannot be imported ({error}): install it")
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError_LibraryNotFound:
        return failure("library", why_not_loaded())
    except pynvml.NVMLError_DriverNotLoaded as error:
        return failure("driver", f"NVML: {error}")
    except pynvml.NVMLError as error:
        return failure("other", f"NVML: {error}")
    devices, lost = [], []
    for index in range(count):
        try:
            devices.append(describe(pynvml, index))
        except pynvml.NVMLError as error:
            lost.append(f"GPU {index} is left out, NVML says of it: {error}")
    return {"devices": devices, "failed": "", "reason": "; ".join(lost)}


def describe(nvml: Any, index: int) -> dict[str, Any]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    uuid = nvml.nvmlDeviceGetUUID(handle)
    return {
        "index": index,
        "uuid": uuid,
        "name": optional(nvml, lambda: nvml.nvmlDeviceGetName(handle), ""),
        # GPUs that share the machine's memory have none to tell of.
        "memory": optional(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total, 0),
        "used": optional(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used, None),
        "utilization": optional(nvml, lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu, None),
        "temperature": optional(nvml, lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU), None),
    }


def optional(nvml: Any, ask_it: Callable[[], Any], default: Any) -> Any:
    try:
        return ask_it()
    except nvml.NVMLError:
        return default


def why_not_loaded() -> str:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError as error:
        return str(error)
    return "libnvidia-ml.so.1 did not load at first"


def failure(failed: str, reason: str) -> dict[str, Any]:
    return {"devices": [], "failed": failed, "reason": reason}


if __name__ == "__main__":
    main()
