"""Random steps on two nodes with small stores and one thread for the disk: none takes long, and all contents are right.

NODED_STEPS=1000 .venv/bin/pytest -m slow tests/chaos/test_store_steps.py
"""

from __future__ import annotations

import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from harness.members import Members
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import noded
from noded.util.scheduling_strategies import NodeAffinitySchedulingStrategy

pytestmark = pytest.mark.slow

MB = 1 << 20
STORE = 24 * MB
MOST = 3 * STORE
"""Bytes that are kept at once."""
LONGEST = 10.0
SIZES = st.sampled_from([20_000, 150_000, 600_000, 1_500_000, 6_000_000])
INDEX = st.integers(0, 1 << 20)


def content(k: int, size: int) -> Any:
    return np.random.default_rng(k).integers(0, 256, size, dtype=np.uint8)


def functions() -> tuple[Any, Any, Any]:
    @noded.remote(num_cpus=0.5)
    def make(k: int, size: int) -> Any:
        return np.random.default_rng(k).integers(0, 256, size, dtype=np.uint8)

    @noded.remote(num_cpus=0.5)
    def crcs(*arrays: Any) -> list[int]:
        return [zlib.crc32(array) for array in arrays]

    @noded.remote(num_cpus=0)
    class Keeper:
        def __init__(self) -> None:
            self.kept: dict[int, Any] = {}

        def keep(self, k: int, array: Any) -> None:
            self.kept[k] = array

        def crc(self, k: int) -> int:
            return zlib.crc32(self.kept[k])

        def drop(self, k: int) -> None:
            del self.kept[k]

    return make, crcs, Keeper


def in_time(step: Callable[..., None]) -> Callable[..., None]:
    def timed(self: Steps, *arguments: Any, **named: Any) -> None:
        Steps.all_done += 1
        began = time.monotonic()
        step(self, *arguments, **named)
        took = time.monotonic() - began
        assert took < LONGEST, f"{step.__name__} took {took:.1f} s: {self.figures()}"

    timed.__name__ = step.__name__
    return timed


class Steps(RuleBasedStateMachine):
    """`kept`: (ref, k, size). Views are checked as long as they are kept."""

    all_done = 0

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self._k = 0
        self.kept: list[tuple[Any, int, int]] = []
        self.views: list[tuple[Any, int]] = []
        self.far: dict[int, int] = {}
        """Kept by an actor on the other node: k -> crc."""

    @initialize()
    def start(self) -> None:
        disk = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="noded-test-spill-", dir="/tmp"))
        flags = ("--object-store-memory", str(STORE), "--object-spilling-directory", disk)
        self.cluster = self._stack.enter_context(Members(*flags, "--object-spilling-threads", "1", num_cpus=2))
        self.cluster.add(name="n1")
        noded.init(address=self.cluster.address, log_to_driver=False)
        self._stack.callback(noded.shutdown)
        self.make, self.crcs, keeper = functions()
        self.on = [
            NodeAffinitySchedulingStrategy(each["NodeID"], soft=False)
            for each in sorted(noded.nodes(), key=lambda each: str(each["NodeName"]))
        ]
        self.keeper = keeper.options(scheduling_strategy=self.on[1]).remote()

    @rule(size=SIZES)
    @in_time
    def put(self, size: int) -> None:
        self._make_room(size)
        k = self._next()
        self.kept.append((noded.put(content(k, size)), k, size))

    @rule(size=SIZES, node=st.integers(0, 1))
    @in_time
    def make_there(self, size: int, node: int) -> None:
        self._make_room(size)
        k = self._next()
        ref = self.make.options(scheduling_strategy=self.on[node]).remote(k, size)
        self.kept.append((ref, k, size))

    @precondition(lambda self: self.kept)
    @rule(index=INDEX)
    @in_time
    def get(self, index: int) -> None:
        ref, k, size = self._pick(index)
        assert np.array_equal(noded.get(ref, timeout=60), content(k, size))

    @precondition(lambda self: self.kept)
    @rule(indices=st.lists(INDEX, min_size=1, max_size=4), node=st.integers(0, 1))
    @in_time
    def pull(self, indices: list[int], node: int) -> None:
        picked = [self._pick(index) for index in indices]
        crcs = self.crcs.options(scheduling_strategy=self.on[node]).remote(*(ref for ref, _, _ in picked))
        assert noded.get(crcs, timeout=60) == [zlib.crc32(content(k, size)) for _, k, size in picked]

    @precondition(lambda self: self.kept and len(self.views) < 4)
    @rule(index=INDEX)
    @in_time
    def pin(self, index: int) -> None:
        ref, k, size = self._pick(index)
        self.views.append((noded.get(ref, timeout=60), zlib.crc32(content(k, size))))

    @precondition(lambda self: self.views)
    @rule(index=INDEX)
    def unpin(self, index: int) -> None:
        del self.views[index % len(self.views)]

    @precondition(lambda self: self.kept and len(self.far) < 3)
    @rule(index=INDEX)
    @in_time
    def pin_far(self, index: int) -> None:
        ref, k, size = self._pick(index)
        noded.get(self.keeper.keep.remote(k, ref), timeout=60)
        self.far[k] = zlib.crc32(content(k, size))

    @precondition(lambda self: self.far)
    @rule()
    @in_time
    def unpin_far(self) -> None:
        k, crc = self.far.popitem()
        assert noded.get(self.keeper.crc.remote(k), timeout=60) == crc
        noded.get(self.keeper.drop.remote(k), timeout=60)

    @precondition(lambda self: self.kept)
    @rule(index=INDEX)
    def delete(self, index: int) -> None:
        self._delete(index)

    @invariant()
    def views_are_as_they_were(self) -> None:
        for view, crc in self.views:
            assert zlib.crc32(view) == crc

    def figures(self) -> dict[str, Any]:
        return {name: member.status()["store"] for name, member in self.cluster.all.items()}

    def _next(self) -> int:
        self._k += 1
        return self._k

    def _pick(self, index: int) -> tuple[Any, int, int]:
        return self.kept[index % len(self.kept)]

    def _delete(self, index: int) -> None:
        del self.kept[index % len(self.kept)]

    def _make_room(self, size: int) -> None:
        while sum(each for _, _, each in self.kept) + size > MOST:
            self._delete(self._k)

    def teardown(self) -> None:
        try:
            for ref, k, size in self.kept:
                assert zlib.crc32(noded.get(ref, timeout=60)) == zlib.crc32(content(k, size))
            self.kept.clear()
            self.views.clear()
            del self.keeper
        finally:
            with self._stack:
                noded.shutdown()
                self.cluster.settle()


def steps(count: int) -> None:
    """At least so many, over as many clusters as hypothesis needs for them."""
    Steps.all_done = 0
    while Steps.all_done < count:
        run_state_machine_as_test(
            Steps,
            settings=settings(
                max_examples=1,
                stateful_step_count=count,
                deadline=None,
                phases=[Phase.generate],  # a cluster for each try: a failure is told as it is
                suppress_health_check=list(HealthCheck),
                database=None,
            ),
        )


@pytest.fixture
def count(outer_environment: dict[str, str]) -> Iterator[int]:
    yield int(outer_environment.get("NODED_STEPS", 1000))


def test_steps() -> None:
    steps(60)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_steps(count: int) -> None:
    steps(count)
