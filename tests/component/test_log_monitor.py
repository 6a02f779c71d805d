"""The log monitor on real files: what is lost to nobody, what is bounded, what others do to the files meanwhile."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from noded.logs import files as log_files
from noded.logs.files import Cursor
from noded.logs.marks import Mark
from noded.node import log_caps
from noded.node.collectors import Collectors
from noded.node.log_caps import Limits, LogCaps
from noded.node.log_monitor import LogMonitor
from noded.node.log_offsets import Offsets
from noded.wire import messages as m

MB = 1 << 20
WIDE = Limits(100 * MB, 1000 * MB, 7.0)


class Bench:
    """A monitor with workers that the test plays."""

    def __init__(self, directory: Path, limits: Limits = WIDE):
        self.directory = directory
        self.workers: dict[str, tuple[str, int]] = {}
        self.away: set[str] = set()
        self.got: list[m.LogLines] = []
        self.collectors = Collectors(pauses=(0.05, 0.2))
        self.caps = LogCaps(str(directory), limits, lambda worker: worker in self.workers)
        self.monitor = LogMonitor(
            str(directory),
            lambda worker: self.workers.get(worker),
            lambda job, message: self.got.append(message),
            self.caps,
            Offsets(str(directory / "followed")),
            ready=lambda job: job not in self.away,
            living=lambda: list(self.workers),
            ip="10.0.0.1",
        )

    def worker(self, number: int, job: str = "j") -> Path:
        wid = f"{number:016x}"
        self.workers[wid] = job, number
        return self.directory / f"worker-{wid}.out"

    def end(self, number: int) -> None:
        wid = f"{number:016x}"
        job, pid = self.workers.pop(wid)
        self.monitor.ended(wid, job, pid)

    def lines(self) -> list[str]:
        return [line for message in self.got for _, _, _, lines in message.batches for line in lines]

    def skipped(self) -> int:
        return sum(one.bytes for message in self.got for one in message.skipped)

    async def until(self, condition: Any, what: str, seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what}; there were {len(self.got)} messages"
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[Bench]:
    bench.monitor.start(bench.collectors)
    try:
        yield bench
    finally:
        bench.collectors.stop()
        await bench.monitor.last_round([], ended=True)
        bench.monitor.close()


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


async def test_lines_come_with_who_wrote_them_and_the_last_one_at_the_end(tmp_path: Path) -> None:
    async with running(Bench(tmp_path)) as bench:
        path = bench.worker(7)
        append(
            path, Mark("f", "aa" * 16, job="j").line().encode() + b"one\n" + Mark().line().encode() + b"from C\nhalf"
        )
        await bench.until(lambda: bench.lines() == ["one", "from C"], "the whole lines are to come at once")
        assert bench.got[0].batches[0][:3] == ("f", 7, False) and bench.got[0].ip == "10.0.0.1"
        bench.end(7)
        await bench.until(
            lambda: bench.lines() == ["one", "from C", "half"], "the unfinished line is to come at the end"
        )
        assert path.exists(), "its file stays"
        append(bench.worker(8), b"")
        bench.end(8)
        await bench.until(lambda: not (tmp_path / f"worker-{8:016x}.out").exists(), "an empty file is to go")


async def test_a_driver_that_leaves_gets_what_was_written_before(tmp_path: Path) -> None:
    async with running(Bench(tmp_path)) as bench:
        for number in range(100):
            append(bench.worker(number), b"line %d\n" % number)
        await bench.monitor.catch_up([(wid, *who) for wid, who in bench.workers.items()])
        assert sorted(bench.lines()) == sorted(f"line {number}" for number in range(100))


async def test_lines_wait_for_a_driver_that_is_away(tmp_path: Path) -> None:
    async with running(Bench(tmp_path)) as bench:
        bench.away.add("j")
        append(bench.worker(1), b"one\n")
        append(bench.worker(2, "other"), b"other\n")
        append(bench.worker(3), b"last words\n")
        bench.end(3)
        await bench.until(lambda: bench.lines() == ["other"], "another job's lines are to come")
        bench.away.clear()
        await bench.until(
            lambda: sorted(bench.lines()) == ["last words", "one", "other"], "those of the first are missing"
        )


async def test_the_next_daemon_goes_on_where_this_one_was(tmp_path: Path) -> None:
    async with running(Bench(tmp_path)) as bench:
        path = bench.worker(1)
        append(path, b"one\n")
        await bench.until(lambda: bench.lines() == ["one"], "the line is missing")
    append(path, b"two\n")
    again = Bench(tmp_path)
    again.worker(1)
    async with running(again):
        await again.until(lambda: again.lines() == ["two"], "only what was not passed on is to come")


async def test_who_writes_much_is_skipped_ahead_and_the_driver_is_told(tmp_path: Path) -> None:
    async with running(Bench(tmp_path)) as bench:
        fast, slow = bench.worker(1), bench.worker(2)
        written = 0
        with fast.open("ab") as file:
            for number in range(60):
                file.write(b"".join(b"%07d %s\n" % (number, b"x" * 91) for _ in range(10_000)))
                written += 1_000_000
                if number % 10 == 0:
                    append(slow, b"slow %d\n" % number)
                    await asyncio.sleep(0.02)
        append(fast, b"the end\n")
        await bench.until(lambda: bench.skipped() > 40 * MB, "most is to be skipped")
        await bench.until(lambda: "the end" in bench.lines(), "the newest lines are to come")
        of_slow = [line for line in bench.lines() if line.startswith("slow")]
        assert of_slow == [f"slow {number}" for number in range(0, 60, 10)], "others' lines all come"
        shown = sum(len(line) + 1 for line in bench.lines() if not line.startswith("slow"))
        await bench.until(
            lambda: shown + bench.skipped() == written + len(b"the end\n"), "each byte is shown or counted"
        )
        assert all(len(line) in (99, 7) for line in bench.lines() if not line.startswith("slow")), "no half lines"


async def test_a_file_is_cut_at_its_start_while_it_is_written(tmp_path: Path) -> None:
    cap = 2 * MB
    async with running(Bench(tmp_path, Limits(cap, 100 * MB, 7.0))) as bench:
        path = bench.worker(1)
        append(path, Mark("f", "aa" * 16, job="j", pid="7").line().encode())
        for number in range(200):
            append(path, b"".join(b"%07d %s\n" % (number, b"x" * 91) for _ in range(1000)))
        await bench.until(lambda: path.stat().st_blocks * 512 <= cap, "it is to be within its cap")
        size = path.stat().st_size
        assert size > 20_000_000, "whoever reads finds every byte where it was"
        got, cursor, dropped = b"", Cursor(), 0
        while True:
            chunk = log_files.read(str(path), cursor)
            got, cursor, dropped = got + chunk.data, chunk.cursor, dropped + chunk.dropped
            if chunk.at_end:
                break
        lines = got.splitlines()
        assert lines[-1].startswith(b"0000199") and len(got) > cap // 2, "the newest are kept"
        assert all(len(line) == 99 for line in lines[60:]), "no line is half"
        assert len(got) + dropped + len(Mark("f", "aa" * 16, job="j", pid="7").line()) == size
        assert log_files.whose(str(path)).job == "j", "the start says whose it is"
        assert log_files.read(str(path), log_files.tail(str(path), 1)).data == lines[-1] + b"\n"


async def test_what_comes_after_a_truncation_is_not_lost(tmp_path: Path) -> None:
    async with running(Bench(tmp_path)) as bench:
        path = bench.worker(1)
        append(path, b"old line\n" * 10)
        await bench.until(lambda: len(bench.lines()) == 10, "the lines are missing")
        bench.away.add("j")  # nothing is read until both have been done
        os.truncate(path, 0)
        append(path, b"new 1\nnew 2\n")
        bench.away.clear()
        await bench.until(lambda: bench.lines()[10:] == ["new 1", "new 2"], "what was written after it is missing")


async def test_what_goes_where_files_have_no_holes_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fallocate(*args: int) -> int:
        ctypes.set_errno(errno.EOPNOTSUPP)
        return -1

    monkeypatch.setattr(log_caps, "_libc", SimpleNamespace(fallocate=fallocate))
    async with running(Bench(tmp_path, Limits(MB, 100 * MB, 7.0))) as bench:
        path = bench.worker(1)
        append(path, b"seen\n")
        await bench.until(lambda: bench.lines() == ["seen"], "the line is missing")
        bench.away.add("j")
        for _ in range(2):
            append(path, b"x" * (2 * MB - 1) + b"\n")
            await bench.until(lambda: not path.stat().st_size, "it is to be emptied")
        append(path, b"after\n")
        bench.away.clear()
        await bench.until(lambda: bench.lines() == ["seen", "after"], "what was written after it is missing")
        await bench.until(lambda: bench.skipped() == 4 * MB, "what nobody has seen is to be counted")


async def test_a_node_s_files_are_bounded_and_old_ones_go(tmp_path: Path) -> None:
    for number in range(40):
        path = tmp_path / f"worker-{number:016x}.err"
        path.write_bytes(b"x" * MB)
        os.utime(path, (time.time() - 60 * (100 - number),) * 2)
    ancient = tmp_path / f"worker-{99:016x}.out"
    ancient.write_bytes(b"x\n")
    os.utime(ancient, (time.time() - 8 * 86400,) * 2)
    theirs = tmp_path / "notes.txt"
    theirs.write_bytes(b"x" * MB)
    os.utime(theirs, (0, 0))
    async with running(Bench(tmp_path, Limits(100 * MB, 10 * MB, 7.0))) as bench:
        path = bench.worker(50)
        for _ in range(20):
            append(path, b"y" * MB + b"\n")

        def used() -> int:
            return sum(each.stat().st_blocks * 512 for each in tmp_path.glob("worker-*"))

        await bench.until(lambda: used() <= 10 * MB, "all together are to be within the node's limit")
        assert path.exists() and theirs.exists() and not ancient.exists()


@pytest.mark.parametrize("without_inotify", [False, True])
async def test_whatever_is_done_to_the_files_nothing_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_inotify: bool
) -> None:
    rng = random.Random(7)
    if without_inotify:
        import asyncinotify

        def refuse(*args: Any) -> None:
            raise OSError(24, "too many inotify instances")

        monkeypatch.setattr(asyncinotify, "Inotify", refuse)
    async with running(Bench(tmp_path)) as bench:
        paths = [bench.worker(number) for number in range(20)]
        for step in range(300):
            path = rng.choice(paths)
            deed = rng.randrange(10)
            if deed == 0:
                path.unlink(missing_ok=True)
            elif deed == 1 and path.is_file() and not path.is_symlink():
                os.truncate(path, rng.randrange(200))
            elif deed == 2 and os.path.lexists(path):
                path.rename(rng.choice(paths))
            elif deed == 3:
                path.unlink(missing_ok=True)
                path.symlink_to("/dev/zero")
            elif deed == 4:
                path.unlink(missing_ok=True)
                os.mkfifo(path)
            else:
                if path.is_symlink() or path.is_fifo():
                    path.unlink()
                append(path, b"\x1e\x1f\n" * rng.randrange(2) + os.urandom(rng.randrange(300)) + b"\n")
            if step % 20 == 0:
                await asyncio.sleep(0.01)
        last = bench.worker(50)
        append(last, b"still here\n")
        await bench.until(lambda: "still here" in bench.lines(), "the monitor has stopped")
        (figures,) = bench.collectors.figures()
        assert (figures["state"], figures["failures"]) == ("OK", 0), figures


async def test_a_round_that_raises_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Bench(tmp_path)) as bench:
        bad = f"{1:016x}"

        def who(worker: str) -> tuple[str, int] | None:
            if worker == bad and len(faults) < 3:
                faults.append(worker)
                raise RuntimeError("made to raise")
            return bench.workers.get(worker)

        faults: list[str] = []
        monkeypatch.setattr(bench.monitor, "_who", who)
        append(bench.worker(1), b"one\n")
        append(bench.worker(2), b"two\n")
        await bench.until(lambda: "two" in bench.lines(), "the other file's lines are to come")
        await bench.until(lambda: bench.collectors.figures()[0]["failures"], "the failure is to be seen")
        while "one" not in bench.lines():
            append(tmp_path / f"worker-{bad}.out", b".\n")
            await asyncio.sleep(0.05)
        assert bench.lines().count("one") == 1
        await bench.until(lambda: bench.collectors.figures()[0]["state"] == "OK", "it is to be well again")


async def test_dead_files_cost_nothing(tmp_path: Path) -> None:
    for number in range(1000, 6000):
        (tmp_path / f"worker-{number:016x}.out").write_bytes(b"said\n")
    async with running(Bench(tmp_path)) as bench:
        append(bench.worker(1), b"one\n")
        await bench.until(lambda: bench.lines() == ["one"], "the living one's line is missing")
        await bench.monitor.catch_up([])
        before, begun = bench.collectors.figures()[0]["cpu_s"], time.monotonic()
        descriptors = len(os.listdir("/proc/self/fd"))
        for number in range(10):
            append(tmp_path / f"worker-{1:016x}.out", b"%d\n" % number)
            await asyncio.sleep(0.1)
        spent = bench.collectors.figures()[0]["cpu_s"] - before
        assert spent < 0.01 * (time.monotonic() - begun) + 0.02, f"{spent * 1e3:.1f} ms of CPU in a second"
        assert descriptors < 64
        assert len(bench.lines()) == 11
