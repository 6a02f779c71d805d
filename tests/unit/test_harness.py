"""The harness finds what a test leaves behind, and only that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness.leaks import LeakCheck
from harness.processes import all_processes, descendants, mentioning
from harness.wait import wait_for

SLEEPER = "import sys; print(flush=True); sys.stdin.read()"


def test_wait_for_returns_the_value_or_says_the_reason() -> None:
    values = iter([0, None, "there"])
    assert wait_for(lambda: next(values), "never") == "there"
    with pytest.raises(AssertionError, match=r"waited 0\.01 s in vain: the moon did not rise"):
        wait_for(lambda: False, lambda: "the moon did not rise", timeout=0.01)


def test_a_process_that_left_our_tree_is_found_by_its_directory(tmp_path: Path) -> None:
    check = LeakCheck([str(tmp_path)], patience=0.05)
    before = check.take()
    hiding = "import os, subprocess, sys\nsubprocess.Popen([sys.executable, '-c', sys.argv[1]])\nos._exit(0)"
    with subprocess.Popen(
        [sys.executable, "-c", hiding, SLEEPER],
        env={**os.environ, "WHERE": f"{tmp_path}/run"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as parent:
        parent.wait()
        assert parent.stdout is not None
        parent.stdout.readline()
        orphans = [p for p in mentioning(all_processes().values(), [str(tmp_path)]) if p.state != "Z"]
        assert len(orphans) == 1
        assert orphans[0] not in descendants(all_processes(), os.getpid())
        left = check.left_since(before)
        assert any(f"process pid {orphans[0].pid}: " in text for text in left)
        assert LeakCheck([str(tmp_path) + "0"]).processes() == [], "a longer name is another directory"
        check.end_all(before)
        wait_for(lambda: orphans[0].pid not in all_processes(), "the orphan outlived SIGKILL")
    assert check.left_since(before) == []


def test_a_child_not_waited_for_is_found(tmp_path: Path) -> None:
    check = LeakCheck([str(tmp_path)], patience=0.05)
    before = check.take()
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    wait_for(lambda: all_processes()[child.pid].state == "Z", "the child did not end")
    left = check.left_since(before)
    assert any(text.startswith(f"process pid {child.pid}, ended but not waited for") for text in left)
    child.wait()
    assert check.left_since(before) == []


def test_descriptors_and_segments_are_found(tmp_path: Path) -> None:
    check = LeakCheck([str(tmp_path)], patience=0.05)
    before = check.take()
    segment = Path(f"/dev/shm/noded-test-{os.getpid()}")
    with open(segment, "w") as file:
        left = check.left_since(before)
        assert left == [f"descriptor {file.fileno()} -> {segment}", f"segment {segment}"]
    segment.unlink()
    assert check.left_since(before) == []
