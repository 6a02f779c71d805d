"""The kernel's counts of kills for want of memory, read from stand-ins for /proc and /sys in both versions; the real
ones are in e2e/test_deaths_of_nodes.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from noded.node.oom import Kills, OomWatch

LIMIT = 100 << 20
PID = 77


class Kernel:
    """Files as the kernel has them, under `root`."""

    def __init__(self, root: Path, version: int, path: str = "/a/b"):
        self.root = root
        self.version = version
        top = root / "sys/fs/cgroup" / ("memory" if version == 1 else "")
        self.group = top / path.lstrip("/")
        for pid in ("self", str(PID)):
            self.belongs(pid, path)
        self.write(top / "cgroup.procs", "")

    def belongs(self, pid: str, path: str) -> None:
        lines = f"9:memory:{path}\n8:pids:/\n0::/\n" if self.version == 1 else f"0::{path}\n"
        self.write(self.root / "proc" / pid / "cgroup", lines)

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def killed(self, count: int, group: Path | None = None) -> None:
        group = group or self.group
        if self.version == 1:
            self.write(group / "memory.oom_control", f"oom_kill_disable 0\nunder_oom 0\noom_kill {count}\n")
        else:
            self.write(group / "memory.events", f"low 0\nmax 812\noom 3\noom_kill {count}\noom_group_kill 0\n")

    def limit(self, text: str, group: Path | None = None) -> None:
        name = "memory.limit_in_bytes" if self.version == 1 else "memory.max"
        self.write((group or self.group) / name, text)


@pytest.fixture(params=[1, 2])
def kernel(request: pytest.FixtureRequest, tmp_path: Path) -> Kernel:
    kernel = Kernel(tmp_path, request.param)
    kernel.killed(3)
    kernel.limit("9223372036854771712\n" if kernel.version == 1 else "max\n")
    return kernel


def test_each_kill_explains_one_death(kernel: Kernel) -> None:
    watch = OomWatch(kernel.root)
    file = watch.of(PID)

    assert watch.died(file) == Kills(3, 3, None)
    kernel.killed(5)
    assert watch.died(file) == Kills(3, 5, None)
    assert watch.died(file) == Kills(4, 5, None)
    assert watch.died(file) == Kills(5, 5, None)


def test_the_least_limit_on_the_way_up_counts(kernel: Kernel) -> None:
    watch = OomWatch(kernel.root)
    kernel.limit(f"{LIMIT}\n", kernel.group.parent)
    assert watch.died(watch.of(PID)).limit == LIMIT
    kernel.limit(f"{LIMIT // 2}\n")
    assert watch.died(watch.of(PID)).limit == LIMIT // 2


def test_a_kill_of_somebody_else_is_forgotten_but_not_at_once(kernel: Kernel) -> None:
    watch = OomWatch(kernel.root)
    file = watch.of(PID)

    kernel.killed(4)
    watch.look()  # a worker's death may be on its way
    assert watch.died(file) == Kills(3, 4, None)

    kernel.killed(5)
    watch.look()
    watch.look()
    assert watch.died(file) == Kills(5, 5, None)


def test_a_worker_in_a_group_of_its_own(kernel: Kernel) -> None:
    inner = kernel.group / "worker"
    kernel.belongs("78", "/a/b/worker")
    kernel.killed(0, inner)
    kernel.limit(f"{LIMIT}\n", inner)
    watch = OomWatch(kernel.root)
    outer_file, inner_file = watch.of(PID), watch.of(78)

    kernel.killed(1, inner)
    assert watch.died(outer_file) == Kills(3, 3, None)
    assert watch.died(inner_file) == Kills(0, 1, LIMIT)


def test_in_a_container_the_path_is_the_hosts(kernel: Kernel) -> None:
    for pid in ("self", str(PID)):
        kernel.belongs(pid, "/system.slice/docker-1234.scope")
    top = kernel.root / "sys/fs/cgroup" / ("memory" if kernel.version == 1 else "")
    kernel.killed(1, top)
    watch = OomWatch(kernel.root)
    file = watch.of(PID)

    kernel.killed(2, top)
    assert watch.died(file) == Kills(1, 2, None)


def test_one_that_has_ended_is_taken_to_be_where_we_are(kernel: Kernel) -> None:
    watch = OomWatch(kernel.root)

    assert watch.of(4711) == watch.of("self")


def test_a_group_that_is_gone_tells_nothing(kernel: Kernel) -> None:
    watch = OomWatch(kernel.root)
    file = watch.of(PID)
    for path in list(kernel.group.iterdir()):
        path.unlink()

    assert watch.died(file) == Kills(None, None, None)
    watch.look()
    assert watch.died(file) == Kills(None, None, None)


def test_without_groups_the_machine_counts(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    vmstat = tmp_path / "proc/vmstat"
    vmstat.write_text("nr_free_pages 5\noom_kill 1\n")
    watch = OomWatch(tmp_path)
    file = watch.of(PID)

    assert watch.died(file) == Kills(1, 1, None)
    vmstat.write_text("nr_free_pages 5\noom_kill 2\n")
    assert watch.died(file) == Kills(1, 2, None)


def test_where_nothing_can_be_read_nothing_is_claimed(tmp_path: Path) -> None:
    watch = OomWatch(tmp_path)

    assert watch.died(watch.of(PID)) == Kills(None, None, None)
    assert watch.died(None) == Kills(None, None, None)
