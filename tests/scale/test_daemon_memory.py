"""The daemon's memory after much has come and gone: what one percent of it has left is all that is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psutil
import pytest
from harness.cluster import Node

import noded

MB = 1 << 20
ALLOWED = 50 * MB

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def node() -> Iterator[Node]:
    with Node("--object-store-memory", str(512 * MB), num_cpus=2) as node:
        noded.init(address=node.address, log_to_driver=False)
        try:
            yield node
        finally:
            noded.shutdown()
        node.settle()


def grown(node: Node, count: int, batch: int, step: Callable[[int], None]) -> int:
    """Bytes of the daemon's own memory, without pages of the arena, from after the first percent to the end."""

    def own() -> int:
        info = psutil.Process(node.pid).memory_info()
        return int(info.rss - info.shared)

    start = 0
    began = time.monotonic()
    for done in range(0, count, batch):
        step(batch)
        if not start and done + batch >= count // 100:
            start = own()
    print(f"{count} in {time.monotonic() - began:.0f} s: from {start >> 20} to {own() >> 20} MB")
    return own() - start


def test_objects_that_come_and_go(node: Node) -> None:
    array = np.ones(100 * MB, dtype=np.uint8)

    def step(count: int) -> None:
        for _ in range(count):
            ref = noded.put(array)
            assert noded.get(ref)[-1] == 1
            del ref

    assert grown(node, 300, 1, step) < ALLOWED


def test_tasks_that_come_and_go(node: Node) -> None:
    @noded.remote
    def nothing(k: int) -> int:
        return k

    def step(count: int) -> None:
        assert noded.get([nothing.remote(k) for k in range(count)]) == list(range(count))

    assert grown(node, 100_000, 1000, step) < ALLOWED


def test_actors_that_come_and_go(node: Node) -> None:
    @noded.remote(num_cpus=0)
    class Nothing:
        def call(self) -> int:
            return 1

    def step(count: int) -> None:
        actors: list[Any] = [Nothing.remote() for _ in range(count)]
        assert noded.get([actor.call.remote() for actor in actors], timeout=120) == [1] * count

    assert grown(node, 5_000, 20, step) < ALLOWED
