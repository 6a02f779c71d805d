"""What a node's /metrics says: over kills of workers and of the daemon, with too many series, and with collectors that
raise, hang or take all memory beside a machine full of work.
"""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from harness.cluster import Node, noded_command
from harness.faulty import FaultyNode
from harness.prometheus import ask, scrape
from harness.wait import wait_for

import noded
from noded.util.metrics import Counter, Gauge, Histogram

TIMEOUT = 60
COUNTED = ("_total", "_bucket", "_count", "_sum")


@noded.remote
def record(number: int) -> int:
    Counter("things", tag_keys=("kind",)).inc(2, tags={"kind": "a"})
    Histogram("sizes", boundaries=[1, 10]).observe(number)
    Gauge("last").set(number)
    return os.getpid()


@noded.remote(num_cpus=0)
class Recorder:
    def record(self, count: int) -> int:
        for number in range(count):
            Counter("many", tag_keys=("number",)).inc(tags={"number": str(number)})
        Gauge("level").set(count)
        Counter("noded_store_used_bytes").inc()
        return os.getpid()


def counters(found: dict[str, float]) -> dict[str, float]:
    """What must never be less, also in another daemon."""
    own = ("process_", "noded_loop_cpu", "noded_collector", "noded_node_")
    return {
        name: value
        for name, value in found.items()
        if name.partition("{")[0].endswith(COUNTED) and not name.startswith(own)
    }


def test_counts_go_on_and_gauges_of_the_dead_do_not() -> None:
    with Node() as node:
        noded.init(address=node.address, log_to_driver=False)
        try:
            Counter("things", tag_keys=("kind",)).inc(tags={"kind": "a"})
            Gauge("mine").set(5)
            noded.get([record.remote(number) for number in range(1, 12)], timeout=TIMEOUT)
            recorder = Recorder.remote()
            pid = noded.get(recorder.record.remote(3), timeout=TIMEOUT)
            first = scrape(node.address)
            assert first['things_total{kind="a"}'] == 23 and first['many_total{number="2"}'] == 1
            assert first['sizes_bucket{le="1.0"}'] == 1 and first['sizes_bucket{le="+Inf"}'] == 11
            assert first["user_noded_store_used_bytes_total"] == 1
            (mine,) = [value for name, value in first.items() if name.startswith('mine{WorkerId="driver-')]
            assert mine == 5 and [v for n, v in first.items() if n.startswith("level{")] == [3]
            assert first['noded_tasks_finished_total{name="record",type="NORMAL_TASK"}'] == 11
            assert first['noded_scheduler_grant_seconds_count{kind="task"}'] >= 1

            os.kill(pid, signal.SIGKILL)
            wait_for(
                lambda: not any(name.startswith("level{") for name in scrape(node.address)),
                "the gauge of a process that was killed is still there",
            )
            noded.get([record.remote(number) for number in range(2)], timeout=TIMEOUT)
            before = scrape(node.address)
            assert before['many_total{number="2"}'] == 1, "what it had counted went with it"
            node.restart()
            after = scrape(node.address)
            less = {n: (v, after.get(n)) for n, v in counters(before).items() if after.get(n, -1.0) < v}
            assert not less, f"less than before the daemon was killed: {less}"
            assert after['things_total{kind="a"}'] == 27
            noded.shutdown()
            wait_for(
                lambda: not any(name.startswith("mine{") for name in scrape(node.address)),
                "the gauge of a driver that has left is still there",
            )
            node.restart()
            assert scrape(node.address)['things_total{kind="a"}'] == 27, "something counts twice"
        finally:
            noded.shutdown()


def test_too_many_series_and_forms_of_the_answer() -> None:
    with Node() as node:
        noded.init(address=node.address, log_to_driver=False)
        try:
            recorders = [Recorder.remote() for _ in range(2)]
            noded.get([recorder.record.remote(50_000) for recorder in recorders], timeout=TIMEOUT)
            begun = time.monotonic()
            found = scrape(node.address)
            took = time.monotonic() - begun
            assert len(found) < 2000, "too many series"
            assert found['many_total{number="0"}'] == 2
            assert found["noded_user_series_dropped_total"] >= 49_000
            assert took < 5, "it takes for ever"
            again = scrape(node.address)
            assert {n for n in found if n.startswith("many")} == {n for n in again if n.startswith("many")}
        finally:
            noded.shutdown()
        assert ask(node.address, "/metrics", token=False).status == 401 == ask(node.address, "/sd", token=False).status
        plain = ask(node.address, "/metrics")
        assert plain.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        families = [line.split()[2] for line in plain.body.decode().splitlines() if line.startswith("# HELP")]
        assert len(families) == len(set(families)) > 60
        helpless = [f for f in families if f"# HELP {f} \n" in plain.body.decode()]
        assert not helpless, f"without a word of help: {helpless}"
        packed = ask(node.address, "/metrics", Accept="application/openmetrics-text", Accept_Encoding="gzip")
        assert packed.headers["Content-Type"].startswith("application/openmetrics-text")
        assert packed.headers["Content-Encoding"] == "gzip" and gzip.decompress(packed.body).endswith(b"# EOF\n")


# ------------------------------------------------------------ collectors at fault


@noded.remote(num_cpus=1, max_retries=0)
def spin(seconds: float) -> int:
    end = time.monotonic() + seconds
    turns = 0
    while time.monotonic() < end:
        turns += 1
    return turns


class Watch:
    """Eight workers that spin, and how long the node takes to say that it is well."""

    def __init__(self, node: FaultyNode) -> None:
        self.node = node
        self.took: list[float] = []
        self.running: list[Any] = []
        self.done = 0

    def turn(self) -> None:
        if len(self.running) < 8:
            self.running.append(spin.remote(0.5))
        ended, self.running = noded.wait(self.running, num_returns=len(self.running), timeout=0.0)
        assert all(turns > 0 for turns in noded.get(ended, timeout=TIMEOUT))
        self.done += len(ended)
        begun = time.monotonic()
        page = ask(self.node.address, "/healthz", token=False)
        self.took.append(time.monotonic() - begun)
        assert page.status == 200, page
        time.sleep(0.01)

    def until(self, condition: Any, reason: str, seconds: float) -> None:
        def tried() -> Any:
            self.turn()
            return condition()

        wait_for(tried, lambda: f"{reason}: {self.node.states()}; {self.node.output()}", seconds)

    def finish(self) -> None:
        self.done += len(noded.get(self.running, timeout=TIMEOUT))
        self.running = []

    @property
    def p99(self) -> float:
        return sorted(self.took)[int(len(self.took) * 0.99)]


@noded.remote(num_cpus=0, max_calls=1)
def ends() -> None:
    """Its worker ends with it."""


def suffer(node: FaultyNode, watch: Watch, faults: dict[str, str], bad: set[str], seconds: float, hold: float) -> None:
    """The collectors `bad` get into trouble, which is said, for `hold` seconds; and out of it by themselves."""
    node.set(faults)

    def in_trouble() -> bool:
        ask(node.address, "/metrics")
        noded.get(ends.remote(), timeout=TIMEOUT)  # so that there is a page to be counted in
        states = node.states()
        return all(states[name] != "OK" for name in bad)

    watch.until(in_trouble, f"{faults} is not seen", seconds)
    told = subprocess.run(
        [*noded_command(), "status", "--cluster", node.cluster], capture_output=True, text=True, timeout=TIMEOUT
    ).stdout
    missing = [name for name in bad if f"{name}: LATE" not in told and f"{name}: FAILED" not in told]
    assert not missing, f"noded status does not tell of {missing}: {told}"
    until = time.monotonic() + hold
    watch.until(lambda: time.monotonic() >= until, "it is not over", hold + 10)
    node.set({})
    watch.until(lambda: set(node.states().values()) == {"OK"}, f"not all have recovered from {faults}", seconds)


def with_faults(file: Path, each: bool, modes: list[str], seconds: float, hold: float = 0) -> Watch:
    """All collectors at once, or each for itself."""
    with FaultyNode(file, num_cpus=8) as node:
        noded.init(address=node.address, log_to_driver=False)
        try:
            watch = Watch(node)
            names = set(node.states())
            assert names >= {"machine", "tasks", "gpus", "user-metrics"}
            for mode in modes:
                for bad in [{name} for name in sorted(names)] if each else [names]:
                    suffer(node, watch, dict.fromkeys(bad, mode), bad, seconds, hold)
            watch.finish()
            (alive,) = noded.nodes()
            assert alive["Alive"] and node.status()["state"] == "READY"
        finally:
            noded.shutdown()
    return watch


def test_collectors_at_fault_harm_nobody(tmp_path: Path) -> None:
    watch = with_faults(tmp_path / "faults", each=False, modes=["raise"], seconds=30)
    assert watch.done >= 8 and watch.p99 < 1.0, f"/healthz: {sorted(watch.took)[-5:]}"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_each_collector_at_fault_harms_nobody(tmp_path: Path) -> None:
    """At full size: each raises, hangs and takes 1 GB, then all of them hang for a minute."""
    for each, modes, hold in ((True, ["raise", "hang", "allocate"], 0), (False, ["hang"], 60)):
        watch = with_faults(tmp_path / "faults", each, modes, seconds=120, hold=hold)
        print(f"{watch.done} tasks; /healthz {len(watch.took)} times, p99 {watch.p99 * 1000:.1f} ms")
        assert watch.p99 < 0.1, f"/healthz: {sorted(watch.took)[-5:]}"
