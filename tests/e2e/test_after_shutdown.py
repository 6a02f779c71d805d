"""What a shutdown leaves behind in the process: loops and futures that waited, refs, and the next cluster."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.gates import Gate
from harness.wait import wait_for

import noded
from noded.exceptions import LocalDaemonDiedError, ObjectLostError


@noded.remote
def passes(gate: Gate, value: Any = None) -> Any:
    gate.wait()
    return value


@noded.remote
def items(gate: Gate) -> Iterator[int]:
    yield 1
    gate.wait()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """Nobody opens it before the end."""
    noded.init("local", num_cpus=2)
    gate = Gate(tmp_path / "gate")
    try:
        yield gate
    finally:
        gate.open()
        noded.shutdown()


def in_thread(call: Any) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize("from_thread", [False, True])
def test_a_loop_that_waits_is_told_and_goes_on(gate: Gate, from_thread: bool) -> None:
    async def main() -> None:
        async def wait() -> None:
            await passes.remote(gate)

        async def take() -> None:
            async for ref in items.remote(gate):
                await ref

        waiting = [asyncio.ensure_future(wait()), asyncio.ensure_future(take())]
        await asyncio.sleep(0.05)
        if from_thread:
            await asyncio.to_thread(noded.shutdown)
        else:
            noded.shutdown()
        found = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 20)
        assert all(isinstance(one, noded.exceptions.NodedError) for one in found), found
        read_end, write_end = os.pipe()  # may get the number of a descriptor that was ours
        try:
            came = asyncio.Event()
            asyncio.get_running_loop().add_reader(read_end, came.set)
            os.write(write_end, b"x")
            await asyncio.wait_for(came.wait(), 20)
            asyncio.get_running_loop().remove_reader(read_end)
        finally:
            os.close(read_end)
            os.close(write_end)

    asyncio.run(main())


def test_a_loop_that_begins_to_wait_too_late(gate: Gate, tmp_path: Path) -> None:
    late: list[BaseException] = []

    async def main() -> None:
        ref, coroutine = passes.remote(gate), asyncio.Event()

        async def wait() -> None:
            await coroutine.wait()
            await ref

        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        noded.shutdown()
        coroutine.set()
        with pytest.raises((LocalDaemonDiedError, RuntimeError)) as caught:
            await asyncio.wait_for(task, 20)
        late.append(caught.value)

    asyncio.run(main())
    assert late


def test_loops_that_gave_up_leave_no_descriptors(gate: Gate) -> None:
    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(wait(), 0.01)

    async def wait() -> None:
        await passes.remote(gate)

    asyncio.run(main())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        asyncio.run(main())
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # of the last loop, until the next one


def test_futures_get_their_value_or_the_end(gate: Gate) -> None:
    raised: list[Any] = []
    hook, threading.excepthook = threading.excepthook, lambda args: raised.append(args.exc_type)

    def leave(future: Future[Any]) -> None:
        raise SystemExit

    try:
        first = noded.put(1).future()
        first.add_done_callback(leave)
        refs = [noded.put(i) for i in range(20)]
        for ref in refs:  # some of them have a callback that raises what ends threads
            future = ref.future()
            if not future.done():
                try:
                    future.add_done_callback(leave)
                except SystemExit:
                    pass
        assert [ref.future().result(20) for ref in refs] == list(range(20))
    except SystemExit:
        pass
    finally:
        threading.excepthook = hook
    assert set(raised) <= {SystemExit}
    pending = passes.remote(gate).future()
    in_thread(noded.shutdown)
    with pytest.raises(LocalDaemonDiedError):
        pending.result(20)


def test_refs_of_before_are_never_taken_for_others(gate: Gate) -> None:
    @noded.remote
    def same(value: Any) -> Any:
        return noded.get(value[0]) if isinstance(value, list) else value

    @noded.remote
    def child(gate: Gate) -> list[Any]:
        return [passes.remote(gate)]

    big, small, plain = noded.put(np.arange(300_000)), noded.put({1, 2}), noded.put(7)
    result, pending = same.remote(5), passes.remote(gate)
    (borrowed,) = noded.get(child.remote(gate))
    assert noded.get(result) == 5
    view = noded.get(big)
    noded.shutdown()
    with pytest.raises(RuntimeError, match=r"noded\.init"):
        small.future()
    with pytest.raises(RuntimeError, match=r"noded\.init"):
        pickle.dumps(small)
    noded.init("local", num_cpus=2)
    mine = [noded.put([i]) for i in range(30)]  # their numbers may not be those of before
    others = [noded.put(np.full(200_000, i)) for i in range(5)]
    assert noded.get([small, plain, result]) == [{1, 2}, 7, 5]
    for ref in (big, borrowed):
        with pytest.raises(ObjectLostError, match=r"noded\.shutdown"):
            noded.get(ref, timeout=20)
        with pytest.raises(ObjectLostError, match=r"noded\.shutdown"):
            noded.get(same.remote(ref), timeout=20)
        with pytest.raises(ObjectLostError, match=r"noded\.shutdown"):
            ref.future().result(20)
    with pytest.raises(noded.exceptions.NodedError):
        noded.get(pending)
    assert noded.get(same.remote(small), timeout=20) == {1, 2}
    try:
        assert noded.get(same.remote([small]), timeout=20) == {1, 2}
    except ObjectLostError:  # one that had left its process before is not known in this cluster
        pass
    assert noded.get([same.remote([ref]) for ref in mine]) == [[i] for i in range(30)]
    assert [int(noded.get(same.remote([ref]))[0]) for ref in others] == list(range(5))
    assert view.sum() == sum(range(300_000)), "a view of before has changed"
    del view, big
    gc.collect()


@pytest.mark.slow
def test_a_process_that_connects_again_and_again_leaves_no_space_taken(tmp_path: Path) -> None:
    from harness.cluster import Node

    with Node(num_cpus=1) as node:
        for _ in range(5):
            noded.init(address=node.address, log_to_driver=False)
            assert noded.get(noded.put([noded.put(1)]))  # small, and in the store
            gc.collect()
            noded.shutdown()
        wait_for(lambda: not node.status()["store"]["used"], lambda: f"left: {node.status()['store']}")
