"""Reading memory and writing limits, on stand-ins for /proc and /sys in both versions of control groups. The real ones,
of version 1 where these tests run, are in e2e/test_memory_limits.py.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from harness.wait import wait_for

from noded.node import memory_usage as usage
from noded.node.memory_groups import MemoryGroups, kernel_limit
from noded.node.memory_look import Looker, Plan, Watched

MIB = 1 << 20
PAGES = MIB // os.sysconf("SC_PAGE_SIZE")
TAG = "0123456789abcdef"
SPAWNER, WORKER = 10, 20
WID, OTHER = "00000000000000aa", "00000000000000bb"


class Machine:
    """Files as the kernel has them, under `root`: 1,000 MiB of memory, and a group for the node."""

    def __init__(self, root: Path, version: int = 1, path: str = "/node"):
        self.root = root
        self.version = version
        self.path = path
        self.top = root / "sys/fs/cgroup" / ("memory" if version == 1 else "")
        self.group = self.top / path.lstrip("/")
        self.meminfo(700)
        for pid in ("self", str(SPAWNER)):
            self.write(f"proc/{pid}/cgroup", f"4:memory:{path}\n" if version == 1 else f"0::{path}\n")
        self.process(SPAWNER, parent=1)
        if version == 1:
            for group in (self.top, self.group):
                self.limit(None, group)
        else:
            self.write(self.top / "cgroup.controllers", "cpu memory\n")
            self.write(self.top / "cgroup.subtree_control", "cpu memory\n")
            self.write(self.group / "cgroup.controllers", "memory\n")
            self.write(self.group / "cgroup.type", "domain\n")
            self.write(self.group / "cgroup.subtree_control", "\n")
            self.write(self.group / "cgroup.procs", f"{SPAWNER}\n")
            self.limit(None, self.group)

    def write(self, path: str | Path, text: str) -> None:
        path = self.root / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def meminfo(self, available: int, swap: int = 0) -> None:
        text = f"MemTotal: {1000 << 10} kB\nMemFree: 5 kB\nMemAvailable: {available << 10} kB\nSwapTotal: {swap} kB\n"
        self.write("proc/meminfo", text)

    def process(
        self, pid: int, own: int = 5, *, parent: int = SPAWNER, session: int = 0, mark: str = "", shared: int = 900
    ) -> None:
        """`own` MiB of its own, and `shared` of the arena and of files."""
        self.write(f"proc/{pid}/statm", f"999999 {(own + shared) * PAGES} {shared * PAGES} 5 0 7 0\n")
        self.write(f"proc/{pid}/stat", f"{pid} (a) name) S {parent} {session} {session or pid} 0 -1\n")
        self.write(f"proc/{pid}/environ", f"A=1\0NODED_MARK={mark}\0B=2\0" if mark else "A=1\0")
        self.write(f"proc/{pid}/comm", "python\n")
        self.write(f"proc/{pid}/status", f"Name: x\nRssAnon: {own << 10} kB\nVmSwap: {3 << 10} kB\n")

    def ends(self, pid: int) -> None:
        for path in (self.root / f"proc/{pid}").iterdir():
            path.unlink()
        (self.root / f"proc/{pid}").rmdir()

    def limit(self, limit: int | None, group: Path, used: int = 0, cache: int = 0) -> None:
        unlimited = str((1 << 63) - 4096) if self.version == 1 else "max"
        text = unlimited if limit is None else str(limit * MIB)
        half = cache * MIB // 2
        if self.version == 1:
            self.write(group / "memory.limit_in_bytes", text)
            self.write(group / "memory.memsw.limit_in_bytes", unlimited)
            self.write(group / "memory.usage_in_bytes", str(used * MIB))
            self.write(
                group / "memory.stat", f"total_inactive_file {half}\ntotal_active_file {half}\ninactive_file 1\n"
            )
        else:
            self.write(group / "memory.max", text)
            self.write(group / "memory.current", str(used * MIB))
            self.write(group / "memory.stat", f"anon 5\ninactive_file {half}\nactive_file {half}\nslab_reclaimable 0\n")

    def worker_group(self, wid: str = WID) -> Path:
        """With the files that the kernel makes in a new one."""
        tree = self.group / f"noded-{TAG}"
        self.write(tree / "cgroup.subtree_control", "")
        group = tree / wid
        self.write(group / "cgroup.procs", "")
        self.limit(None, group)
        self.write(group / "memory.oom.group", "0")
        self.kills(group, 0)
        return group

    def kills(self, group: Path, count: int) -> None:
        self.write(group / "memory.oom_control", f"oom_kill_disable 0\nunder_oom 0\noom_kill {count}\n")
        self.write(group / "memory.events", f"max 3\noom {count}\noom_kill {count}\n")

    def told(self, group: Path) -> str:
        return (group / ("memory.limit_in_bytes" if self.version == 1 else "memory.max")).read_text()


@pytest.fixture(params=[1, 2])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    return Machine(tmp_path, request.param)


def node(machine: Machine) -> usage.Usage:
    return usage.node_usage(machine.root, ("self",))


class TestTheNode:
    def test_the_machine_without_page_cache(self, machine: Machine) -> None:
        assert node(machine) == usage.Usage(300 * MIB, 1000 * MIB, "the machine")

    def test_a_container_that_is_nearer_to_its_end(self, machine: Machine) -> None:
        machine.limit(400, machine.group, used=390, cache=300)
        found = node(machine)
        assert (found.used, found.limit) == (300 * MIB, 1000 * MIB), "most of what it uses is cache"

        machine.limit(400, machine.group, used=390, cache=40)
        found = node(machine)
        assert (found.used, found.limit) == (350 * MIB, 400 * MIB)
        assert found.where.startswith("the control group sys/fs/cgroup/") and found.where.endswith("node")

    def test_a_limit_that_the_machine_has_not(self, machine: Machine) -> None:
        machine.limit(5000, machine.group, used=999)
        assert node(machine).where == "the machine"

    def test_a_group_above(self, tmp_path: Path) -> None:
        machine = Machine(tmp_path, 1, "/outer/node")
        machine.limit(500, machine.group.parent, used=499)
        assert node(machine) == usage.Usage(499 * MIB, 500 * MIB, "the control group sys/fs/cgroup/memory/outer")

    def test_where_nothing_can_be_read(self, tmp_path: Path) -> None:
        assert usage.node_usage(tmp_path, ("self",)).part == 0


class TestProcesses:
    def test_own_pages(self, tmp_path: Path) -> None:
        machine = Machine(tmp_path)
        machine.process(WORKER, own=70)

        assert usage.own_pages(tmp_path, WORKER, swap=False) == 70 * MIB, "the arena and files do not count"
        assert usage.own_pages(tmp_path, WORKER, swap=True) == 73 * MIB
        assert usage.own_pages(tmp_path, 4711, swap=False) == usage.own_pages(tmp_path, 4711, swap=True) == 0
        assert usage.own_part(tmp_path, WORKER) is None
        machine.write(f"proc/{WORKER}/smaps_rollup", "00-7f ---p [rollup]\nPss_Anon: 2048 kB\nSwapPss: 1024 kB\n")
        assert usage.own_part(tmp_path, WORKER) == 3 * MIB
        assert not usage.has_swap(tmp_path)
        machine.meminfo(700, swap=5)
        assert usage.has_swap(tmp_path)

    def test_the_largest(self, tmp_path: Path) -> None:
        machine = Machine(tmp_path)
        for pid, own in ((21, 7), (22, 90), (23, 8)):
            machine.process(pid, own)
        assert usage.largest(tmp_path, 2) == [(90 * MIB, 22, "python"), (8 * MIB, 23, "python")]

    def test_descendants_by_session_parent_and_mark(self, tmp_path: Path) -> None:
        machine = Machine(tmp_path)
        machine.process(WORKER, mark=f"{TAG}:{WID}", session=WORKER)
        machine.process(21, parent=WORKER, session=WORKER)
        machine.process(22, parent=1, session=WORKER)
        machine.process(23, parent=1, mark=f"{TAG}:{WID}")
        machine.process(24, parent=23)
        machine.process(30, mark=f"{TAG}:{OTHER}", session=30)
        for stranger, mark in ((40, ""), (41, f"fedcba9876543210:{WID}"), (42, f"{TAG}:00000000000000cc")):
            machine.process(stranger, parent=1, mark=mark)
        families = usage.Families(tmp_path, TAG)
        workers = {WORKER: WID, 30: OTHER}

        assert families.look(workers) == {WID: [WORKER, 21, 22, 23, 24], OTHER: [30]}

        # Its parent has ended, and it is nobody's child: it is known from before.
        machine.ends(23)
        machine.process(24, parent=1)
        machine.process(43, parent=24)
        assert families.look(workers) == {WID: [WORKER, 21, 22, 24, 43], OTHER: [30]}
        assert families.look({30: OTHER}) == {OTHER: [30]}


class TestGroups:
    def open(self, machine: Machine) -> MemoryGroups:
        groups = MemoryGroups(machine.root, TAG)
        groups.open(SPAWNER, lambda pid: pid == SPAWNER)
        return groups

    def prepare(self, machine: Machine) -> Path:
        if machine.version == 2:
            machine.write(machine.group / "noded-rest/cgroup.procs", "")
        return machine.worker_group()

    def test_a_limit_is_set_and_lifted(self, machine: Machine) -> None:
        group = self.prepare(machine)
        tree = group.parent
        (tree / WID).rename(machine.root / "aside")  # there is none yet
        groups = self.open(machine)
        assert groups.usable and groups.why_not == ""
        (machine.root / "aside").rename(group)

        assert groups.limit(WID, WORKER, 200 * MIB)
        assert (group / "cgroup.procs").read_text() == str(WORKER)
        assert machine.told(group) == str(kernel_limit(200 * MIB)) == str(264 * MIB)
        assert not groups.limit(WID, WORKER, 200 * MIB)
        assert not groups.limit(WID, WORKER, 1000 * MIB)
        assert machine.told(group) == str(1125 * MIB)
        if machine.version == 1:
            assert (group / "memory.memsw.limit_in_bytes").read_text() == str(1125 * MIB)
        else:
            assert (group / "memory.oom.group").read_text() == "1"
            assert (tree / "cgroup.subtree_control").read_text() == "+memory"

        assert groups.kills(WID) == 0
        machine.kills(group, 2)
        assert groups.kills(WID) == 2
        groups.limit(WID, WORKER, 0)
        assert machine.told(group) == ("-1" if machine.version == 1 else "max")
        assert not groups.limit(OTHER, 21, 0), "who has no limit needs no group"

    def test_after_a_restart_limits_are_written_again(self, machine: Machine) -> None:
        group = self.prepare(machine)
        groups = MemoryGroups(machine.root, TAG)
        assert groups.left_behind(SPAWNER)
        groups.open(SPAWNER, lambda pid: pid == SPAWNER)
        machine.write(group / "memory.limit_in_bytes", "5")
        machine.write(group / "memory.max", "5")

        assert not groups.limit(WID, WORKER, 0)
        assert machine.told(group) == ("-1" if machine.version == 1 else "max")

    def test_in_version_2_the_nodes_processes_make_way(self, tmp_path: Path) -> None:
        machine = Machine(tmp_path, 2)
        self.prepare(machine)
        assert self.open(machine).usable
        assert (machine.group / "noded-rest/cgroup.procs").read_text() == str(SPAWNER)
        assert (machine.group / "cgroup.subtree_control").read_text() == "+memory"

        # The next daemon finds the spawner there.
        machine.write(f"proc/{SPAWNER}/cgroup", f"0::{machine.path}/noded-rest\n")
        machine.write(machine.group / "noded-rest/cgroup.controllers", "memory\n")
        machine.write(machine.group / "cgroup.subtree_control", "memory\n")
        groups = self.open(machine)
        assert groups.usable and groups.left_behind(SPAWNER)

    def test_in_version_2_nobody_elses_processes_do(self, tmp_path: Path) -> None:
        machine = Machine(tmp_path, 2)
        self.prepare(machine)
        machine.write(machine.group / "cgroup.procs", f"{SPAWNER}\n4711\n")
        groups = self.open(machine)

        assert not groups.usable and "processes of others are in it, as 4711" in groups.why_not
        assert not groups.limit(WID, WORKER, 200 * MIB)
        assert (machine.group / "noded-rest/cgroup.procs").read_text() == ""

    def test_in_version_2_no_limit_below_what_is_there(self, tmp_path: Path) -> None:
        machine = Machine(tmp_path, 2)
        group = self.prepare(machine)
        groups = self.open(machine)
        machine.write(group / "memory.current", str(900 * MIB))

        groups.limit(WID, WORKER, 200 * MIB)
        assert machine.told(group) == "max", "the kernel would end it for what others have kept there"

    def test_where_nothing_may_be_made(self, machine: Machine) -> None:
        groups = MemoryGroups(machine.root, TAG)
        (machine.group / f"noded-{TAG}").write_text("in the way")
        groups.open(SPAWNER, lambda pid: True)
        assert not groups.usable and "cannot be made" in groups.why_not

    def test_where_there_are_no_groups(self, tmp_path: Path) -> None:
        groups = MemoryGroups(tmp_path, TAG)
        groups.open(SPAWNER, lambda pid: True)
        assert not groups.usable and groups.why_not == "there is no control group for memory here"


class TestLooks:
    def plan(self, *, limit: int = 0, wanted: tuple[str, ...] = (), part: float = 0.95) -> Plan:
        return Plan((Watched(WID, WORKER, "lease", limit * MIB), Watched(OTHER, 30)), part, SPAWNER, wanted)

    @pytest.fixture
    def machine(self, tmp_path: Path) -> Machine:
        machine = Machine(tmp_path)
        machine.process(WORKER, own=80, session=WORKER)
        machine.process(21, own=60, parent=WORKER, session=WORKER)
        machine.process(30, own=40, session=30)
        machine.worker_group()
        return machine

    def test_nobody_is_looked_at_without_need(self, machine: Machine) -> None:
        seen = Looker(machine.root, TAG).look(self.plan())
        assert (seen.pressed, seen.over, seen.uses) == (False, [], {})
        assert Looker(machine.root, TAG).look(self.plan(wanted=(OTHER,))).uses == {OTHER: 40 * MIB}

    def test_who_is_above_its_limit(self, machine: Machine) -> None:
        looker = Looker(machine.root, TAG)
        assert not looker.look(self.plan(limit=140)).over

        [over] = looker.look(self.plan(limit=139)).over
        assert over.watched.worker == WID and over.used == 140 * MIB
        assert over.processes == [(80 * MIB, WORKER, "python"), (60 * MIB, 21, "python")]

    def test_pages_that_a_fork_shares_count_once(self, machine: Machine) -> None:
        for pid, own in ((WORKER, 50), (21, 30)):
            text = f"00-7f ---p [rollup]\nPss_Anon: {own << 10} kB\nSwapPss: 0 kB\n"
            machine.write(f"proc/{pid}/smaps_rollup", text)

        assert not Looker(machine.root, TAG).look(self.plan(limit=81)).over
        [over] = Looker(machine.root, TAG).look(self.plan(limit=79)).over
        assert over.used == 80 * MIB

    def test_under_pressure_everybody_is_looked_at(self, machine: Machine) -> None:
        machine.meminfo(40)
        seen = Looker(machine.root, TAG).look(self.plan())

        assert seen.pressed and seen.threshold == 950 * MIB
        assert seen.uses == {WID: 140 * MIB, OTHER: 40 * MIB}
        assert seen.largest[0] == (80 * MIB, WORKER, "python")
        assert not Looker(machine.root, TAG).look(self.plan(part=1.0)).pressed

    def test_what_the_kernel_has_ended_in_a_group(self, machine: Machine) -> None:
        group = machine.group / f"noded-{TAG}" / WID
        (machine.root / "proc/self").mkdir(exist_ok=True)
        looker = Looker(machine.root, TAG)
        assert not looker.look(self.plan(limit=900)).killed
        assert machine.told(group) == str(kernel_limit(900 * MIB))

        machine.kills(group, 1)
        assert [each.worker for each in looker.look(self.plan(limit=900)).killed] == [WID]
        assert not looker.look(self.plan(limit=900)).killed


def test_a_process_that_keeps_us_waiting_is_left_alone(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.process(WORKER, own=80, session=WORKER)
    machine.process(21, own=60, parent=WORKER, session=WORKER)
    for path in ("40/environ", "21/smaps_rollup"):
        (tmp_path / "proc" / path).parent.mkdir(exist_ok=True)
        os.mkfifo(tmp_path / "proc" / path)  # nobody writes: who reads it waits for ever
    plan = Plan((Watched(WID, WORKER, "lease", 100 * MIB),), 0.95, SPAWNER)
    avoid: set[int] = set()
    for stuck_at in (40, 21):
        looker = Looker(tmp_path, TAG, avoid)
        thread = threading.Thread(target=looker.look, args=(plan,), daemon=True)
        thread.start()
        wait_for(lambda at=stuck_at, it=looker: it.waits.pid == at, "it does not get stuck")  # type: ignore[misc]
        avoid.add(stuck_at)

    [over] = Looker(tmp_path, TAG, avoid).look(plan).over
    assert over.used == 140 * MIB
    for name in ("40/environ", "21/smaps_rollup"):
        os.close(os.open(tmp_path / "proc" / name, os.O_RDWR))  # let the threads go
