"""Rows for large puts in gigabytes (10^9 bytes) a second, and the memcpy they are held against.

The source is a fresh zeros array, as in Ray's rows: its pages are never written, so reading them is cheap for
every system alike. The baseline has the same program shape (one process, or ten at once) and copies into a
warm shared memfd that it uses again and again, which is the best a store can do. It holds nothing, counts
nothing and frees nothing.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from bench.systems import Context
from bench.timing import Measurement, Timing, rate

BIG = 800_000_000
SMALL = 80_000_000
CLIENTS = 10
PUTS = 10
GIGA = 1e9
WARMUP = 4.0  # seconds, at least: a store's first pass over fresh pages is ten times slower, and not what is asked


def put_gigabytes(context: Context) -> Measurement:
    array = np.zeros(BIG, dtype=np.uint8)
    put = context.api.put
    return rate(lambda: put(array), BIG / GIGA, _warmer(context.timing))


def put_and_get(context: Context, size: int) -> Measurement:
    """One array, which is dropped before the next: its pages are warm."""
    array = np.ones(size, dtype=np.uint8)
    put, get = context.api.put, context.api.get

    def step() -> None:
        get(put(array))

    return rate(step, size / GIGA, _warmer(context.timing))


def memcpy_of(context: Context, size: int) -> Measurement:
    array = np.ones(size, dtype=np.uint8)
    with _shared_mapping(size) as target:
        return rate(lambda: ctypes.memmove(target, array.ctypes.data, size), size / GIGA, _warmer(context.timing))


def multi_client_put_gigabytes(context: Context) -> Measurement:
    api = context.api
    puts, size = PUTS, SMALL

    def put_many() -> None:
        import numpy

        for _ in range(puts):
            api.put(numpy.zeros(size, dtype=numpy.uint8))

    client = api.remote(num_cpus=0)(put_many)

    def step() -> None:
        api.get([client.remote() for _ in range(CLIENTS)])

    return rate(step, CLIENTS * puts * size / GIGA, _warmer(context.timing))


def memcpy_gigabytes(context: Context) -> Measurement:
    array = np.zeros(BIG, dtype=np.uint8)
    with _shared_mapping(BIG) as target:
        return rate(lambda: ctypes.memmove(target, array.ctypes.data, BIG), BIG / GIGA, _warmer(context.timing))


def multi_client_memcpy_gigabytes(context: Context) -> Measurement:
    """Ten forked processes, each with its own part of one mapping, told over a socket to copy ten times."""
    with _shared_mapping(CLIENTS * SMALL) as target:
        links = [_copying_child(target + index * SMALL) for index in range(CLIENTS)]

        def step() -> None:
            for link in links:
                link.send(b"g")
            for link in links:
                if not link.recv(1):
                    raise RuntimeError("a copying child ended early: look at its error above")

        try:
            return rate(step, CLIENTS * PUTS * SMALL / GIGA, _warmer(context.timing))
        finally:
            for link in links:
                link.close()
            for _ in links:
                os.wait()


def _warmer(timing: Timing) -> Timing:
    return replace(timing, warmup=max(WARMUP, timing.warmup))


@contextmanager
def _shared_mapping(size: int) -> Iterator[int]:
    """Address of `size` writable bytes of a memfd, shared with children."""
    descriptor = os.memfd_create("bench")
    os.ftruncate(descriptor, size)
    mapping = mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED)
    os.close(descriptor)
    view = ctypes.c_char.from_buffer(mapping)
    yield ctypes.addressof(view)
    del view
    mapping.close()


def _copying_child(target: int) -> socket.socket:
    ours, theirs = socket.socketpair()
    if os.fork():
        theirs.close()
        return ours
    ours.close()
    try:
        while theirs.recv(1):
            for _ in range(PUTS):
                array = np.zeros(SMALL, dtype=np.uint8)
                ctypes.memmove(target, array.ctypes.data, SMALL)
            theirs.send(b"d")
    finally:
        os._exit(0)
