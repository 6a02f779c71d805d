"""Rows about memory: more than the object store holds, a shuffle through a small one, and what a live ref costs.

Each brings a cluster of its own, with an object store of 512 MB. The plain side of the first row writes and reads a
file of the same size on the same disk, in the same process just before; as with the systems, what is written may still
be in the kernel's cache when it is read.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.proctree import resident_bytes
from bench.systems import Context
from bench.timing import Measurement

STORE = 512 << 20
OBJECT = 100 * 10**6
OBJECTS = 40
PARTS = 64
BLOCK = 512 << 10
LIVE = {"noded": 1_000_000, "ray": 100_000}
GIGA = 1e9


def through_a_small_store(context: Context) -> Measurement:
    """Gigabytes a second, over 4 GB put and then read."""
    array = np.random.default_rng(1).integers(0, 256, OBJECT, dtype=np.uint8)
    plain_write, plain_read = _plain(context.home / "plain", array)
    api = context.api
    api.init(num_cpus=context.cores, object_store_memory=STORE)
    start = time.perf_counter()
    refs = [api.put(array) for _ in range(OBJECTS)]
    write = time.perf_counter() - start
    start = time.perf_counter()
    for ref in refs:
        _touch(api.get(ref))
    read = time.perf_counter() - start
    api.shutdown()
    amount = OBJECT * OBJECTS / GIGA
    extra = {
        "write GB/s": amount / write,
        "read GB/s": amount / read,
        "plain write GB/s": amount / plain_write,
        "plain read GB/s": amount / plain_read,
    }
    return Measurement(2 * amount / (write + read), extra=extra)


def shuffle(context: Context) -> Measurement:
    """Seconds: 64 tasks make 64 blocks each, 64 others take one of each; 2 GB in all."""
    api = context.api
    api.init(num_cpus=context.cores, object_store_memory=STORE)
    parts, block = PARTS, BLOCK

    def split(seed: int) -> Any:
        import numpy

        made = numpy.random.default_rng(seed).integers(0, 256, parts * block, dtype=numpy.uint8)
        return tuple(made.reshape(parts, block))

    def join(*blocks: Any) -> int:
        return sum(int(each[0]) for each in blocks)

    start = time.perf_counter()
    made = [api.remote(num_returns=parts)(split).remote(seed) for seed in range(parts)]
    joined = api.remote(join)
    api.get([joined.remote(*(of_one[part] for of_one in made)) for part in range(parts)])
    took = time.perf_counter() - start
    api.shutdown()
    return Measurement(took)


def live_refs(context: Context) -> Measurement:
    """Bytes of this process for each ref of a small value that it holds."""
    api = context.api
    api.init(num_cpus=1, object_store_memory=STORE)
    api.put(0)
    before = resident_bytes()
    count = LIVE[context.system]
    refs = [api.put(number) for number in range(count)]
    used = resident_bytes() - before
    del refs
    api.shutdown()
    return Measurement(used / count)


def _plain(path: Path, array: Any) -> tuple[float, float]:
    """Seconds to write so much into one file, and to read it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        view, size = memoryview(array), array.nbytes
        start = time.perf_counter()
        for number in range(OBJECTS):
            _whole(os.pwrite, fd, view, number * size)
        write = time.perf_counter() - start
        target = memoryview(bytearray(size))
        start = time.perf_counter()
        for number in range(OBJECTS):
            _whole(lambda fd, view, at: os.preadv(fd, [view], at), fd, target, number * size)
        return write, time.perf_counter() - start
    finally:
        os.close(fd)
        path.unlink()


def _whole(call: Any, fd: int, view: memoryview, at: int) -> None:
    while view:
        count = call(fd, view, at)
        view, at = view[count:], at + count


def _touch(array: Any) -> None:
    assert int(array[0]) + int(array[-1]) >= 0
