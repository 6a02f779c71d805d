"""An object store smaller than what is put into it: objects go to disk and come back, and nothing waits for ever."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import memory_group
from harness.cluster import Node
from harness.drivers import Driver
from harness.members import Members
from harness.wait import wait_for

import noded
from noded.exceptions import ObjectLostError, OutOfDiskError

MB = 1 << 20
STORE = 32 * MB
TIMEOUT = 60


@contextmanager
def connected(*flags: str, disk: Path, num_cpus: float = 2, store: int = STORE) -> Iterator[Node]:
    """A node with this process as its driver."""
    flags = ("--object-store-memory", str(store), "--object-spilling-directory", str(disk), *flags)
    with Node(*flags, num_cpus=num_cpus) as node:
        noded.init(address=node.address, log_to_driver=False)
        try:
            yield node
        finally:
            noded.shutdown()
        node.settle()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with connected(disk=tmp_path) as node:
        yield node
        node_files = files(tmp_path)
    assert not files(tmp_path), f"left behind: {node_files}"


def files(disk: Path) -> list[Path]:
    return [path for path in disk.glob("noded-spill-*/*/*") if path.suffix == ".spill"]


def get(refs: Any) -> Any:
    return noded.get(refs, timeout=TIMEOUT)


def content(k: int, size: int) -> Any:
    return np.random.default_rng(k).integers(0, 256, size, dtype=np.uint8)


def functions() -> dict[str, Any]:
    @noded.remote
    def crc(array: Any) -> int:
        return zlib.crc32(array)

    @noded.remote
    def make(k: int, size: int) -> Any:
        return np.random.default_rng(k).integers(0, 256, size, dtype=np.uint8)

    @noded.remote
    def crc_inside(refs: Any) -> list[int]:
        return [zlib.crc32(noded.get(ref)) for ref in refs]

    @noded.remote
    class Keeper:
        def keep(self, array: Any) -> None:
            self.array = array

        def crc(self) -> int:
            return zlib.crc32(self.array)

    return dict(locals())


def store(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = node.status()["store"]
    return found


# ---------------------------------------------------------------- out and back


def test_what_finds_no_room_goes_to_disk_and_comes_back(node: Node, tmp_path: Path) -> None:
    make = functions()
    sizes = [3 * MB if k % 2 else 200_000 for k in range(60)]
    refs = [noded.put(content(k, size)) for k, size in enumerate(sizes)]
    assert store(node)["spilled_bytes"] > 2 * STORE and files(tmp_path)
    crcs = [zlib.crc32(content(k, size)) for k, size in enumerate(sizes)]
    assert [zlib.crc32(get(ref)) for ref in refs] == crcs
    assert get([make["crc"].remote(ref) for ref in refs]) == crcs
    made = [make["make"].remote(k, size) for k, size in enumerate(sizes)]
    assert get([make["crc"].remote(ref) for ref in made]) == crcs
    assert get(make["crc_inside"].remote(refs)) == crcs
    del refs, made
    wait_for(lambda: not files(tmp_path), lambda: f"files are left: {files(tmp_path)}")


def test_what_somebody_looks_at_stays(node: Node) -> None:
    make = functions()
    keeper = make["Keeper"].remote()
    kept = [content(k, 4 * MB) for k in range(3)]
    get(keeper.keep.remote(noded.put(kept[0])))
    view = get(noded.put(kept[1]))
    mine = noded.put(kept[2])
    others = [noded.put(content(k, 4 * MB)) for k in range(10, 30)]
    assert zlib.crc32(view) == zlib.crc32(kept[1])
    assert get(keeper.crc.remote()) == zlib.crc32(kept[0])
    assert np.array_equal(get(mine), kept[2])
    assert [zlib.crc32(get(ref)) for ref in others] == [zlib.crc32(content(k, 4 * MB)) for k in range(10, 30)]


def test_an_object_larger_than_the_store(node: Node) -> None:
    make = functions()
    size = STORE + 8 * MB
    wanted = zlib.crc32(content(1, size))
    ref = noded.put(content(1, size))
    assert store(node)["on_disk"] >= size
    assert zlib.crc32(get(ref)) == wanted
    assert get(make["crc"].remote(ref)) == wanted
    assert get(make["crc"].remote(content(1, size))) == wanted, "as an argument by value"
    assert zlib.crc32(get(make["make"].remote(1, size))) == wanted
    assert zlib.crc32(get(get(noded.put([ref]))[0])) == wanted


def test_refs_inside_what_lies_on_disk_hold(node: Node) -> None:
    inner = [noded.put(content(k, 2 * MB)) for k in range(3)]
    outer = noded.put([*inner, content(9, 3 * MB)])
    del inner
    others = [noded.put(content(k, 4 * MB)) for k in range(20)]
    del others
    *refs, _ = get(outer)
    assert [zlib.crc32(get(ref)) for ref in refs] == [zlib.crc32(content(k, 2 * MB)) for k in range(3)]


def test_a_store_full_of_views_takes_more_on_disk(node: Node) -> None:
    make = functions()
    views = [get(noded.put(content(k, 4 * MB))) for k in range(7)]
    began = time.monotonic()
    more = [noded.put(content(k, 4 * MB)) for k in range(10, 14)]
    small = [noded.put([content(k, 120_000), k]) for k in range(20, 60)]
    assert [zlib.crc32(get(ref)) for ref in more] == [zlib.crc32(content(k, 4 * MB)) for k in range(10, 14)]
    assert [zlib.crc32(get(ref)[0]) for ref in small] == [zlib.crc32(content(k, 120_000)) for k in range(20, 60)]
    assert get(make["crc"].remote(more[0])) == zlib.crc32(content(10, 4 * MB))
    assert time.monotonic() - began < 45
    assert [zlib.crc32(view) for view in views] == [zlib.crc32(content(k, 4 * MB)) for k in range(7)]


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_scattered_free_room_is_enough(tmp_path: Path, count: int) -> None:
    """At 90 % full of mixed sizes nothing that fits into the free bytes is refused, nor takes long."""
    with connected(disk=tmp_path):
        rng = random.Random(5)
        kept: list[tuple[Any, int, int]] = []
        full = 0
        for k in range(count):
            size = rng.choice([60_000, 150_000, 400_000, 1_200_000, 3_000_000])
            while full + size > STORE * 0.9:
                _, _, gone = kept.pop(rng.randrange(len(kept)))
                full -= gone
            began = time.monotonic()
            kept.append((noded.put(content(k, size)), k, size))
            assert time.monotonic() - began < 10
            full += size
        assert all(zlib.crc32(get(ref)) == zlib.crc32(content(k, size)) for ref, k, size in kept)
        del kept


@pytest.mark.parametrize("module", ["noded", "noded.compat.ray"])
def test_init_says_where(module: str, tmp_path: Path) -> None:
    """Ray's argument, for a private cluster."""
    import importlib

    api = importlib.import_module(module)
    api.init(num_cpus=1, object_store_memory=STORE, object_spilling_directory=str(tmp_path), log_to_driver=False)
    try:
        refs = [api.put(content(k, 4 * MB)) for k in range(16)]
        assert files(tmp_path)
        assert all(zlib.crc32(api.get(ref)) == zlib.crc32(content(k, 4 * MB)) for k, ref in enumerate(refs))
        del refs
    finally:
        api.shutdown()
    wait_for(lambda: not files(tmp_path), lambda: f"files are left: {files(tmp_path)}")


# ---------------------------------------------------------------- faults


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.getuid():
        pytest.skip("only root may mount a tmpfs")
    path = tmp_path / "disk"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=50m", "none", str(path)], capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk_is_an_error_that_says_so_and_passes(small_disk: Path) -> None:
    with connected(disk=small_disk) as node:
        before = len(node.output().splitlines())
        kept: list[Any] = []
        with pytest.raises(OutOfDiskError) as told:
            for k in range(40):
                began = time.monotonic()
                kept.append(noded.put(content(k, 4 * MB)))
        assert time.monotonic() - began < 5
        text = str(told.value)
        assert str(small_disk) in text and "bytes are free" in text and f"held by driver pid {os.getpid()}" in text
        assert len(node.output().splitlines()) - before < 5, node.output()
        assert store(node)["directories"][0]["used"] > 20 * MB
        assert [zlib.crc32(get(ref)) for ref in kept] == [zlib.crc32(content(k, 4 * MB)) for k in range(len(kept))]
        with pytest.raises(OutOfDiskError, match="fits neither"):
            noded.put(content(99, 60 * MB))
        del kept[: len(kept) // 2]
        assert zlib.crc32(get(noded.put(content(77, 4 * MB)))) == zlib.crc32(content(77, 4 * MB))
        del kept


def test_files_that_cannot_be_read(node: Node, tmp_path: Path) -> None:
    """What a task has made is made again; what was put is lost, and the error says why."""
    make = functions()
    made = make["make"].remote(1, 4 * MB)
    put = noded.put(content(2, 4 * MB))
    noded.wait([made], timeout=TIMEOUT)
    others = [noded.put(content(k, 4 * MB)) for k in range(10, 30)]
    assert files(tmp_path)
    for path in files(tmp_path):
        path.unlink()
    with pytest.raises(ObjectLostError, match="cannot be read"):
        get(put)
    assert zlib.crc32(get(made)) == zlib.crc32(content(1, 4 * MB))
    del others


def test_daemon_and_workers_are_killed_while_it_writes(node: Node, tmp_path: Path) -> None:
    make = functions()
    refs: list[Any] = []
    view = get(noded.put(content(1000, MB)))
    for k in range(60):
        refs.append(noded.put(content(k, MB)) if k % 3 else make["make"].remote(k, MB))
        if k in (15, 30, 45):
            node.kill9()
            node.restart()
        if k in (22, 37):
            for worker in node.workers():
                os.kill(worker.pid, signal.SIGKILL)
    assert [zlib.crc32(get(ref)) for ref in refs] == [zlib.crc32(content(k, MB)) for k in range(60)]
    assert zlib.crc32(view) == zlib.crc32(content(1000, MB))
    del refs, view
    wait_for(lambda: not files(tmp_path), lambda: f"files are left: {files(tmp_path)}")


PUTS = """
import numpy as np
rng = np.random.default_rng(1)
refs = [noded.put(rng.integers(0, 256, 1 << 20, dtype=np.uint8)) for _ in range(80)]
say("full")
while True: refs.append(noded.put(rng.integers(0, 256, 1 << 20, dtype=np.uint8))); refs.pop(0)
"""


def test_a_driver_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    flags = ("--object-store-memory", str(STORE), "--object-spilling-directory", str(tmp_path))
    with Node(*flags, num_cpus=1) as node:
        with Driver(node.address, PUTS) as driver:
            driver.expect("full", TIMEOUT)
            driver.signal(signal.SIGKILL)
            wait_for(lambda: not files(tmp_path), lambda: f"files are left: {files(tmp_path)}", 10)
        node.settle()


def test_what_a_dead_node_has_left_goes_at_the_next_start(tmp_path: Path) -> None:
    with connected(disk=tmp_path) as node:
        refs = [noded.put(content(k, 4 * MB)) for k in range(20)]
        assert files(tmp_path)
        for process in node.spawners():
            os.kill(process.pid, signal.SIGSTOP)
        node.kill9()
        for process in node.processes():
            os.kill(process.pid, signal.SIGKILL)
        wait_for(lambda: not node.processes(), "processes are left")
        assert files(tmp_path)
        with Node("--object-spilling-directory", str(tmp_path), num_cpus=1):
            wait_for(lambda: not files(tmp_path), lambda: f"files are left: {files(tmp_path)}", 10)
        node.start()
        with pytest.raises(ObjectLostError):
            get(refs[0])
        del refs


# ---------------------------------------------------------------- two nodes


def test_pulled_copies_make_way_and_disks_are_read_from_afar(tmp_path: Path) -> None:
    flags = ("--object-store-memory", str(64 * MB), "--object-spilling-directory", str(tmp_path))
    with Members(*flags, num_cpus=1) as cluster:
        cluster.add(name="n1")
        noded.init(address=cluster.address, log_to_driver=False)
        try:
            make = functions()
            here, there = ({"scheduling_strategy": on(name)} for name in ("head", "n1"))
            far = [make["make"].options(**there).remote(k, 6 * MB) for k in range(18)]
            near = [make["make"].options(**here).remote(100 + k, 6 * MB) for k in range(18)]
            crcs = [zlib.crc32(content(k, 6 * MB)) for k in (*range(18), *range(100, 118))]
            both = [*far, *near]
            # Each node's store is full of the other's, and its own lie partly on its disk.
            assert get([make["crc"].options(**here).remote(ref) for ref in both]) == crcs
            assert get([make["crc"].options(**there).remote(ref) for ref in both]) == crcs
            began = time.monotonic()
            several = crc_of_several().options(**there)
            assert get(several.remote(*near[:8])) == crcs[18:26]
            assert time.monotonic() - began < 10
            del far, near, both
        finally:
            noded.shutdown()
        cluster.settle()


def on(name: str) -> Any:
    from noded.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    (node,) = (each for each in noded.nodes() if each["NodeName"] == name)
    return NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)


def crc_of_several() -> Any:
    @noded.remote
    def several(*arrays: Any) -> list[int]:
        return [zlib.crc32(array) for array in arrays]

    return several


# ---------------------------------------------------------------- a container with less memory than the store


def test_a_container_with_less_memory_than_the_store(tmp_path: Path) -> None:
    """The store stays as small as it must, what does not fit goes to disk, and nobody is ended for want of memory."""
    if reason := memory_group.unavailable():
        pytest.skip(reason)
    flags = ("--object-store-memory", str(700 * MB), "--object-spilling-directory", str(tmp_path))
    with memory_group.MemoryGroup(512 * MB) as group:
        node = memory_group.LimitedNode(group, num_cpus=1)
        node.flags = [*node.flags, *flags]
        with node:
            noded.init(address=node.address, log_to_driver=False)
            try:
                make = functions()
                refs = [make["make"].remote(k, 10 * MB) for k in range(70)]
                wanted = [zlib.crc32(content(k, 10 * MB)) for k in range(70)]
                assert get([make["crc"].remote(ref) for ref in refs]) == wanted
                figures = store(node)
                assert figures["withheld"] and figures["spilled_bytes"] > 100 * MB, figures
                assert "start the node with a smaller --object-store-memory" in node.output()
                kills = [
                    line for line in (group.path / "memory.oom_control").read_text().splitlines() if "kill " in line
                ]
                assert kills == ["oom_kill 0"], kills
                del refs
            finally:
                noded.shutdown()
            node.settle()
