"""Who may be interrupted for its stack: real processes that run Python, in one thread and in several."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from noded import stack_dump

PROGRAM = """
import sys, threading
from noded import stack_dump
stack_dump.install(sys.argv[1])
def deep(left):
    return deep(left - 1) + 1 if left else 0
def turn():
    while True:
        deep(90)
for _ in range(int(sys.argv[2]) - 1):
    threading.Thread(target=turn, daemon=True).start()
print("ready", flush=True)
if int(sys.argv[2]):
    turn()
threading.Event().wait()
"""


@contextmanager
def process(path: Path, threads: int) -> Iterator[int]:
    command = [sys.executable, "-c", PROGRAM, str(path), str(threads)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        yield child.pid
        assert child.poll() is None, f"it has ended with {child.returncode}"
    finally:
        child.kill()
        child.communicate()


def test_one_thread_in_python_is_interrupted_itself(tmp_path: Path) -> None:
    with process(tmp_path / "stack", 1) as pid:
        dump = stack_dump.take(pid, str(tmp_path / "stack"), lambda: True)
    assert "in turn\n" in dump.text and not dump.problem


def test_one_that_waits_is_interrupted(tmp_path: Path) -> None:
    with process(tmp_path / "stack", 0) as pid:
        dump = stack_dump.take(pid, str(tmp_path / "stack"), lambda: True)
    assert "in wait\n" in dump.text and not dump.problem


def test_threads_that_take_turns_are_left_alone(tmp_path: Path) -> None:
    with process(tmp_path / "stack", 3) as pid:
        for _ in range(2):
            dump = stack_dump.take(pid, str(tmp_path / "stack"), lambda: True, deadline=time.monotonic() + 0.8)
            assert not dump.text and f"pid {pid} has not told its stack within 0.8 s" in dump.problem


def test_who_has_told_it_otherwise_is_left_alone(tmp_path: Path) -> None:
    told = threading.Event()
    told.set()
    with process(tmp_path / "stack", 0) as pid:
        assert stack_dump.take(pid, str(tmp_path / "stack"), lambda: True, told=told) == stack_dump.Dump("")
