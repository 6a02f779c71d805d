"""The deadline after which workers must stand still, kept by the real spawner: whatever becomes of the daemon.

Between a deadline and its look at the clock the spawner has a few milliseconds; the tests allow it a good deal more.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from component.test_spawner import Daemon, Node, alive, ended, new_wid, node
from harness.wait import wait_for

__all__ = ["node"]

SOON = 0.3

# A daemon of its own: two workers, of which the first is guarded; then it does nothing more.
DAEMON = """
import json, signal, socket, sys, time
path, plan, wids, seconds = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:5], float(sys.argv[5])
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect(path)
say = lambda **packet: sock.send(json.dumps(packet).encode())
say(t="hello", protocol=2)
say(**plan["template"])
for wid, args in zip(wids, plan["args"]):
    say(t="fork", key="default", wid=wid, args=args)
pids = {}
while len(pids) < 2:
    packet = json.loads(sock.recv(65536))
    if packet["t"] == "forked":
        pids[packet["wid"]] = packet["pid"]
say(t="guard", until=time.monotonic() + seconds, wids=wids[:1])
print(json.dumps([pids[wid] for wid in wids]), flush=True)
signal.pause()
"""


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def stopped(*pids: int) -> bool:
    return all(state(pid) == "T" for pid in pids)


def running(*pids: int) -> bool:
    return all(state(pid) in "SR" for pid in pids)


def guard(daemon: Daemon, seconds: float, *wids: str) -> float:
    """Their deadline is in so many seconds from now."""
    until = time.monotonic() + seconds
    daemon.send(t="guard", until=max(0.0, until), wids=list(wids))
    return until


def settled(daemon: Daemon) -> None:
    """All that was sent has been handled."""
    daemon.expect("fork_failed", wid=daemon.fork("wait", key="none"))


def waiting(daemon: Daemon) -> tuple[str, int]:
    wid, pid = daemon.forked("wait")
    wait_for(lambda: state(pid) == "S", "the worker does not wait")
    return wid, pid


def test_workers_stop_when_the_deadline_passes_and_not_before(node: Node) -> None:
    node.start()
    daemon = node.daemon()
    daemon.template()
    (one, first), (two, second), (_, other) = (waiting(daemon) for _ in range(3))
    until = guard(daemon, SOON, one, two)
    while time.monotonic() < until - 0.05:
        assert running(first, second)
        time.sleep(0.01)
    wait_for(lambda: stopped(first, second), "they go on after their deadline")
    assert time.monotonic() < until + 1.0
    assert running(other), "one that is not guarded was stopped"
    guard(daemon, 60, one, two)
    wait_for(lambda: running(first, second), "they do not go on")


def test_a_deadline_that_moves_in_time_stops_nobody(node: Node) -> None:
    node.start()
    daemon = node.daemon()
    daemon.template()
    wid, pid = waiting(daemon)
    end = time.monotonic() + 5 * SOON
    while time.monotonic() < end:
        guard(daemon, SOON, wid)
        assert running(pid)
        time.sleep(0.02)
    wait_for(lambda: stopped(pid), "it goes on after its deadline")


@pytest.mark.parametrize("how", ["SIGSTOP", "SIGKILL"])
def test_they_stop_also_when_the_daemon_is_stopped_or_gone(node: Node, how: str) -> None:
    node.start()
    wids = [new_wid(), new_wid()]
    plan = {"template": node.template(), "args": [node.args(wid, "wait") for wid in wids]}
    command = [sys.executable, "-c", DAEMON, str(node.dir / "spawner.sock"), json.dumps(plan), *wids, str(SOON)]
    process = node.popen(command)
    assert process.stdout
    guarded, other = json.loads(process.stdout.readline())
    os.kill(process.pid, signal.Signals[how])
    if how == "SIGKILL":
        process.wait()
    assert not stopped(guarded)
    wait_for(lambda: stopped(guarded), "it goes on after its deadline")
    assert not stopped(other)

    daemon = node.daemon()
    until = daemon.welcome.guard_until
    assert until is not None and time.monotonic() - 30 < until < time.monotonic()
    assert stopped(guarded), "a daemon that has come has not yet heard of its head"
    guard(daemon, 60, wids[0])
    wait_for(lambda: not stopped(guarded), "it does not go on")
    assert alive(guarded)
    if how == "SIGSTOP":
        assert ended(process, "the stopped daemon was not killed") == -signal.SIGKILL


def test_the_next_daemon_is_told_the_deadline(node: Node) -> None:
    node.start()
    assert node.daemon().welcome.guard_until is None
    daemon = node.daemon()
    until = guard(daemon, 1000)
    settled(daemon)
    assert node.daemon().welcome.guard_until == until


def test_one_that_is_added_after_the_deadline_stops_at_once(node: Node) -> None:
    node.start()
    daemon = node.daemon()
    daemon.template()
    (one, first), (two, second) = waiting(daemon), waiting(daemon)
    until = guard(daemon, 0, one)
    wait_for(lambda: stopped(first), "it goes on after its deadline")
    assert running(second)
    daemon.send(t="guard", until=until, wids=[one, two])
    settled(daemon)
    wait_for(lambda: stopped(second), "it was added when the deadline had passed, and goes on")
    assert stopped(first)


def test_one_that_is_not_guarded_any_more_goes_on(node: Node) -> None:
    node.start()
    daemon = node.daemon()
    daemon.template()
    (one, first), (two, second) = waiting(daemon), waiting(daemon)
    until = guard(daemon, 0, one, two)
    wait_for(lambda: stopped(first, second), "they go on after their deadline")
    daemon.send(t="guard", until=until, wids=[two])
    wait_for(lambda: running(first), "it does not go on")
    assert stopped(second)


def test_its_process_group_stands_still_as_well(node: Node) -> None:
    node.start()
    daemon = node.daemon()
    daemon.template()
    wid, pid = daemon.forked("descend")
    for name in ("plain", "daemonized", "group"):
        wait_for((node.dir / name).exists, f"the descendant {name} did not start")
    child = int((node.dir / "plain").read_text())
    assert os.getpgid(child) == pid
    guard(daemon, 0, wid)
    wait_for(lambda: stopped(pid, child), "worker or child go on")
    guard(daemon, 60, wid)
    wait_for(lambda: running(pid, child), "worker or child stand still for good")


def test_one_that_stands_still_can_be_ended(node: Node) -> None:
    node.start()
    daemon = node.daemon()
    daemon.template()
    wid, pid = waiting(daemon)
    guard(daemon, 0, wid)
    wait_for(lambda: stopped(pid), "it goes on after its deadline")
    daemon.send(t="kill", wid=wid, signal=9)
    assert daemon.expect("exit", wid=wid)["signal"] == 9
    guard(daemon, 0, wid)
    guard(daemon, 60, wid)
    settled(daemon)
    daemon.send(t="stop")
    daemon.wait_for_end()


def test_unknown_workers_are_nobodys_harm(node: Node) -> None:
    spawner = node.start()
    daemon = node.daemon()
    daemon.template()
    guard(daemon, 0, new_wid(), "")
    settled(daemon)
    assert spawner.poll() is None and not stopped(spawner.pid)


def test_one_that_is_guarded_before_it_exists_stops_as_soon_as_it_does(node: Node) -> None:
    node.start()
    daemon = node.daemon()
    daemon.template()
    waiting(daemon)  # so that the template is there
    wid = daemon.fork("wait")
    guard(daemon, 0, wid)
    pid = daemon.expect("forked", wid=wid)["pid"]
    wait_for(lambda: stopped(pid), "it runs although its deadline has passed")


@pytest.mark.parametrize(
    "packet",
    [{"until": 1}, {"wids": []}, {"until": -1, "wids": []}, {"until": "x", "wids": []}, {"until": 1, "wids": [1]}],
)
def test_what_is_no_guard_is_refused(node: Node, packet: dict[str, Any]) -> None:
    node.start()
    daemon = node.daemon()
    daemon.send(t="guard", **packet)
    assert "guard" in daemon.expect("refused")["reason"]
    assert node.daemon().welcome.guard_until is None
