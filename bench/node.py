"""Rows about a node at rest: time to start a head, idle memory, idle CPU, import time.

A head is started by its own command in directories of its own, found by the tree of processes, and ended with
everything it started. This process is the driver that keeps one worker warm; it is not counted. Shared memory
that holds objects is shown apart.
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import proctree, systems
from bench.calls import no_op_task
from bench.systems import Context
from bench.timing import Measurement, durations

STARTS = 3
IMPORTS = 10
COMMAND_SECONDS = 60
SETTLED_SECONDS = 3.0
SETTLE_DEADLINE = 30.0
IDLE_SECONDS = 10.0


def head_start(context: Context) -> Measurement:
    """Seconds until the start command returns, which both systems do when the head is ready."""
    samples = []
    for number in range(STARTS):
        with _head(context, number) as (seconds, _):
            samples.append(seconds)
    return Measurement(statistics.median(samples), samples)


def idle_memory(context: Context) -> Measurement:
    with _warm_head(context):
        report = proctree.memory(proctree.descendants())
    return Measurement(report["pss_mb"], extra=report)


def idle_cpu(context: Context) -> Measurement:
    """Percent of one core over ten seconds, summed over all processes of the head."""
    with _warm_head(context):
        pids = proctree.descendants()
        before = proctree.cpu_seconds(pids)
        start = time.monotonic()
        time.sleep(IDLE_SECONDS)
        after = proctree.cpu_seconds(pids | proctree.descendants())
        elapsed = time.monotonic() - start
    used = sum(after.values()) - sum(before.values())
    return Measurement(100 * used / elapsed, extra={"processes": float(len(pids))})


def import_time(context: Context) -> Measurement:
    """Milliseconds of a fresh interpreter that imports the system, less those of one that imports nothing."""
    modules = {"noded": "import noded", "ray": "import ray", "futures": "import concurrent.futures.process"}
    run_bare = [sys.executable, "-c", "pass"]
    run_import = [sys.executable, "-c", modules[context.system]]
    subprocess.run(run_import, check=True)  # compiles what has no bytecode yet
    bare = durations(lambda: subprocess.run(run_bare, check=True), IMPORTS, scale=1000)
    full = durations(lambda: subprocess.run(run_import, check=True), IMPORTS, scale=1000)
    return Measurement(full.value - bare.value, extra={"bare_interpreter_ms": bare.value})


@contextmanager
def _head(context: Context, number: int = 0, cpus: int = 1) -> Iterator[tuple[float, int]]:
    """A head of its own: seconds it took to start, and its port. Ended with all its processes afterwards."""
    home = context.home / f"head-{number}"
    home.mkdir()
    systems.isolate(context.system, home)
    port = _free_port()
    try:
        start = time.perf_counter()
        _command(systems.start_command(context.system, port, cpus), home / "start.log")
        yield time.perf_counter() - start, port
    finally:
        _end_head(context, home)


def _end_head(context: Context, home: Path) -> None:
    try:
        if stop := systems.stop_command(context.system):
            _command(stop, home / "stop.log")
        else:
            proctree.terminate(proctree.descendants())
    finally:
        proctree.end_descendants(grace=10)


@contextmanager
def _warm_head(context: Context) -> Iterator[None]:
    """A head with one CPU on which one task has run, after its processes have stopped coming and going."""
    with _head(context) as (_, port):
        api = context.api
        api.init(address=systems.address(context.system, port))
        try:
            api.get(no_op_task(api).remote())
            _settle()
            yield
        finally:
            api.shutdown()


def _settle() -> None:
    deadline = time.monotonic() + SETTLE_DEADLINE
    known, since = proctree.descendants(), time.monotonic()
    while time.monotonic() - since < SETTLED_SECONDS:
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes came and went for {SETTLE_DEADLINE:.0f} s after the first task: not idle")
        time.sleep(0.1)
        if (now := proctree.descendants()) != known:
            known, since = now, time.monotonic()


def _command(command: list[str], log: Path) -> None:
    """Run a command to its end. Output goes to a file: the daemons it leaves would keep a pipe open."""
    with log.open("wb") as output:
        finished = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=COMMAND_SECONDS,
            check=False,
        )
    if finished.returncode:
        said = log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{' '.join(command)} ended with status {finished.returncode} and said:\n{said}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
