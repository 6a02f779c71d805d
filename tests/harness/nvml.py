"""A stand-in for libnvidia-ml.so.1, compiled from C, that tells of GPUs which are not there.

The environment of the process that loads it says how it behaves (`StandIn.env`). It has what pynvml asks for a
count, handles, names, UUIDs, memory, utilisation and temperature; everything else is missing from it, as from an old
driver.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

SOURCE = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, GPU_IS_LOST = 15 };

static const char *option(const char *name) {
    const char *value = getenv(name);
    return value ? value : "";
}

static int number(const char *name) { return atoi(option(name)); }

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    const char *mood = option("STANDIN_NVML_MOOD");
    const char *file = option("STANDIN_NVML_CALLS");
    int first = 1;
    if (*file) {  /* for tests that count how often it was asked */
        FILE *calls = fopen(file, "a");
        if (calls) { first = ftell(calls) == 0; fprintf(calls, "%d\n", (int)getpid()); fclose(calls); }
    }
    if (!strcmp(mood, "hang") || (first && !strcmp(mood, "hang at first"))) for (;;) pause();
    if (!strcmp(mood, "crash")) *(volatile int *)0 = 1;
    if (!strcmp(mood, "abort")) abort();
    if (!strcmp(mood, "exit")) exit(3);
    if (!strcmp(mood, "chatter")) { fputs("WARNING: this is a stub! ", stdout); fflush(stdout); }
    return number("STANDIN_NVML_ERROR");
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return SUCCESS; }

/* A handle is an index plus one, so that none is a null pointer. */
int nvmlDeviceGetCount_v2(unsigned *count) { *count = number("STANDIN_NVML_COUNT"); return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    const char *lost = option("STANDIN_NVML_LOST");
    if (*lost && (unsigned)atoi(lost) == index) return GPU_IS_LOST;
    if (index >= (unsigned)number("STANDIN_NVML_COUNT")) return INVALID_ARGUMENT;
    *device = (void *)(size_t)(index + 1);
    return SUCCESS;
}

int nvmlDeviceGetName(void *device, char *name, unsigned size) {
    /* Names are separated by ';'; the last one goes for all further devices. */
    const char *names = option("STANDIN_NVML_NAMES");
    for (size_t skip = (size_t)device - 1; skip && strchr(names, ';'); skip--) names = strchr(names, ';') + 1;
    snprintf(name, size, "%.*s", (int)strcspn(names, ";"), names);
    return SUCCESS;
}

int nvmlDeviceGetUUID(void *device, char *uuid, unsigned size) {
    snprintf(uuid, size, "GPU-%08d-0000-4000-8000-000000000000", (int)(size_t)device - 1);
    return SUCCESS;
}

struct memory { unsigned long long total, available, used; };
int nvmlDeviceGetMemoryInfo(void *device, struct memory *memory) {
    (void)device;
    memory->total = strtoull(option("STANDIN_NVML_MEMORY"), NULL, 10);
    memory->used = strtoull(option("STANDIN_NVML_USED"), NULL, 10);
    memory->available = memory->total - memory->used;
    return SUCCESS;
}

struct rates { unsigned gpu, memory; };
int nvmlDeviceGetUtilizationRates(void *device, struct rates *rates) {
    (void)device;
    rates->gpu = number("STANDIN_NVML_BUSY");
    rates->memory = 0;
    return SUCCESS;
}

int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *degrees) {
    (void)device; (void)sensor;
    *degrees = 41;
    return SUCCESS;
}
"""


class StandIn:
    """The library, in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def build(cls, directory: Path) -> StandIn:
        """Compile it into `directory`; skips the test where there is no C compiler."""
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            pytest.skip("there is no C compiler (cc) to build the stand-in for NVML with")
        source = directory / "nvml.c"
        source.write_text(SOURCE)
        command = [compiler, "-shared", "-fPIC", "-o", str(directory / "libnvidia-ml.so.1"), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return cls(directory)

    def env(
        self,
        count: int = 2,
        names: Sequence[str] = ("NVIDIA H100 80GB HBM3",),
        *,
        memory: int = 80 << 30,
        mood: str = "",
        error: int = 0,
        lost: int | None = None,
        calls: Path | None = None,
        used: int = 0,
        busy: int = 0,
    ) -> dict[str, str]:
        """What to add to the environment of a process, so that it finds `count` GPUs of these names.

        `mood`: "hang", "hang at first" (needs `calls`), "crash" (SIGSEGV), "abort", "exit", "chatter" (prints to
        stdout). `error`: nvmlInit's return code. `lost`: the index of a GPU that fails. `calls`: a file that gets a
        line per nvmlInit. `used`: bytes of memory in use; `busy`: percent of the time at work.
        """
        settings: Mapping[str, object] = {
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [str(self.directory), os.environ.get("LD_LIBRARY_PATH")])),
            "STANDIN_NVML_COUNT": count,
            "STANDIN_NVML_NAMES": ";".join(names),
            "STANDIN_NVML_MEMORY": memory,
            "STANDIN_NVML_MOOD": mood,
            "STANDIN_NVML_ERROR": error,
            "STANDIN_NVML_LOST": "" if lost is None else lost,
            "STANDIN_NVML_CALLS": calls or "",
            "STANDIN_NVML_USED": used,
            "STANDIN_NVML_BUSY": busy,
        }
        return {name: str(value) for name, value in settings.items()}
