"""A head whose state is in a real Redis: it goes on through outages, starts again elsewhere, and is purged."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.cluster import REPOSITORY, Node, noded_command
from harness.drivers import Driver
from harness.members import Members
from harness.redis import SentinelTrio, Server
from harness.wait import wait_for

PASSWORD = "correct-horse-battery"
# Makes something of everything that the head keeps, each time it is told a name; uses what was made before.
PROGRAM = """
    import noded.util

    @noded.remote
    def task(x): return x + 1

    @noded.remote(num_cpus=0, max_restarts=1)
    class Counter:
        def __init__(self): self.n = 0
        def increment(self): self.n += 1; return self.n

    made = {}
    say("ready")
    while name := hear():
        assert noded.get(task.remote(1)) == 2
        actor = Counter.options(name=name, lifetime="detached", namespace="default_namespace").remote()
        group = noded.util.placement_group([{"CPU": 0.01}], name=name, lifetime="detached")
        noded.get(group.ready())
        made[name] = actor
        for each in made.values():
            noded.get(each.increment.remote())
        say("made", name)
"""
COUNTER = """
    import sys
    @noded.remote(num_cpus=0)
    class Counter:
        def __init__(self): self.n = 0
        def increment(self): self.n += 1; return self.n
    if sys.argv[1:] == ["create"]:
        Counter.options(name="counter_actor", lifetime="detached", namespace="default_namespace").remote()
    counter = noded.get_actor("counter_actor", namespace="default_namespace")
    say("count", noded.get(counter.increment.remote()))
"""


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "redis") as server:
        yield server


def head(server: Server | SentinelTrio, *flags: str, **more: Any) -> Node:
    return Node("--redis", server.url, "--storage-namespace", "here", *flags, **more)


def storage(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = node.status()["storage"]
    return found


def keys(server: Server, table: str) -> set[str]:
    return set(server.call("HKEYS", f"noded:{{here}}:t:{table}"))


def make(driver: Driver, name: str) -> None:
    driver.tell(name)
    driver.expect("made")


def noded(*arguments: str, env: dict[str, str] | None = None, code: int = 0) -> str:
    done = subprocess.run(
        [*noded_command(), *arguments],
        env={**os.environ, **(env or {})},
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def is_well(node: Node) -> None:
    wait_for(lambda: storage(node)["state"] == "ok", lambda: f"it does not recover: {storage(node)}", 20)


def test_a_head_through_all_kinds_of_outages(redis: Server) -> None:
    with head(redis) as node, Driver(node.address, PROGRAM) as driver:
        pid = node.pid
        driver.expect("ready")
        make(driver, "before")
        assert storage(node) == {"kind": "redis", "state": "ok"}

        redis.call("CONFIG", "SET", "timeout", 1)
        for n in range(5):
            redis.call("CLIENT", "KILL", "TYPE", "normal")
            make(driver, f"killed-{n}")

        redis.signal(signal.SIGSTOP)
        make(driver, "stopped")
        # What was killed before may be noticed first.
        wait_for(lambda: "does not answer" in storage(node).get("why", ""), lambda: f"not noticed: {storage(node)}")
        state = storage(node)
        assert state["state"] == "degraded" and state["journalled"] > 0, state
        shown = " ".join(noded("status", "--cluster", node.cluster).split())
        assert "degraded (redis) since" in shown and "writes journalled" in shown
        redis.signal(signal.SIGCONT)
        is_well(node)

        for empty in (False, True):
            redis.kill9()
            make(driver, f"gone-{empty}")
            redis.restart(empty=empty)
            is_well(node)
            make(driver, f"back-{empty}")

        assert node.pid == pid and node.running
        assert len(keys(redis, "actors")) == len(keys(redis, "placement_groups")) == 11
        assert "degraded" in node.output() and node.output().count("is well again") == node.output().count("degraded:")
        node.restart()
        make(driver, "after a restart")
        driver.kill()


def test_members_of_a_head_without_redis(redis: Server) -> None:
    """A node joins, works and is lost while Redis is away."""
    with Members("--redis", redis.url, "--storage-namespace", "here") as cluster:
        redis.kill9()
        member = cluster.add()
        with Driver(member.address, PROGRAM) as driver:
            driver.expect("ready")
            make(driver, "one")
            driver.kill()
        redis.restart()
        is_well(cluster.head)
        assert len(keys(redis, "nodes")) == 2


@pytest.mark.slow
def test_a_failover_of_sentinels(tmp_path: Path) -> None:
    with SentinelTrio(tmp_path / "trio") as trio, head(trio) as node, Driver(node.address, PROGRAM) as driver:
        pid = node.pid
        driver.expect("ready")
        make(driver, "before")
        trio.primary.kill9()
        make(driver, "during")
        wait_for(lambda: trio.leader() == trio.replica.port, "the sentinels do not fail over", 30)
        is_well(node)
        make(driver, "after")
        assert (node.pid, node.running) == (pid, True)
        assert len(keys(trio.replica, "actors")) == 3
        driver.kill()


def test_a_head_that_waits_for_redis_can_be_stopped(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(20)
        command = [*noded_command(), "--head", "--port", "0", "--redis", f"127.0.0.1:{silent.getsockname()[1]}"]
        with (tmp_path / "said").open("w+b") as said:
            daemon = subprocess.Popen([*command, "--cluster", "waits"], cwd=REPOSITORY, stdout=said, stderr=said)
            try:
                silent.accept()[0].close()
                daemon.terminate()
                assert daemon.wait(20) == 1
            finally:
                daemon.kill()
                daemon.wait()
            assert "stopped while waiting for the head's storage" in (tmp_path / "said").read_text()


def test_two_heads_the_older_one_ends(redis: Server, tmp_path: Path) -> None:
    other = {"NODED_HOME": str(tmp_path / "home"), "NODED_RUN_DIR": str(tmp_path / "run")}
    with head(redis) as old:
        (tmp_path / "home").mkdir(mode=0o700)
        token = tmp_path / "home" / "token"
        token.write_bytes((Path(os.environ["NODED_HOME"]) / "token").read_bytes())
        token.chmod(0o600)
        with head(redis, cluster=old.cluster, env=other) as new:
            wait_for(lambda: not old.running, "the older head does not end", 20)
            assert old._process is not None and old._process.returncode == 3
            assert old.output().count("superseded by epoch 2: another head has taken over this cluster") == 1
            wait_for(lambda: not old.processes(), lambda: f"left of it: {old.processes()}")
            assert storage(new)["state"] == "ok"


def test_a_counter_that_outlives_its_head_and_a_purge(redis: Server) -> None:
    node = head(redis)
    with node:
        assert count(node, "create") == 1
        assert keys(redis, "actors")
        node.restart()
        assert count(node) == 2
        text = noded("purge", "--yes", "--redis", redis.url, "--storage-namespace", "here", env=node.env, code=1)
        assert "still runs" in text and "noded stop it, or --force" in text
    assert not keys(redis, "actors"), "a clean stop ends what is detached"
    redis.call("SET", "noded:{there}:meta", "1")
    again = ("purge", "--yes", "--redis", redis.url, "--storage-namespace", "here")
    assert "removed" in noded(*again)
    assert "removed 0 keys of namespace here" in noded(*again)
    assert redis.call("KEYS", "*") == ["noded:{there}:meta"]


def count(node: Node, *arguments: str) -> int:
    with Driver(node.address, COUNTER, *arguments) as driver:
        found = int(driver.expect("count"))
        driver.end()
        return found


def test_sqlite_is_purged_too() -> None:
    with Node() as node:
        pass
    purge = ("purge", "--yes", "--cluster", node.cluster)
    assert "removed 0 records" not in noded(*purge)
    assert "removed 0 records" in noded(*purge)


def test_the_password_is_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n")
    file.chmod(0o600)
    with Server(tmp_path / "redis", password=PASSWORD) as server:
        for flags, env in (
            ((), {"NODED_REDIS_PASSWORD": PASSWORD, "NODED_REDIS": server.url}),
            (("--redis", server.url, "--redis-password-file", str(file)), {}),
        ):
            with Node(*flags, "--log-level", "debug", env=env) as node:
                namespaces = {key.partition("}")[0].partition("{")[2] for key in server.call("KEYS", "*")}
                assert any(name.startswith(node.cluster + "-") for name in namespaces), "it follows from the token"
                with Driver(node.address, PROGRAM) as driver:
                    driver.expect("ready")
                    make(driver, "one")
                    driver.kill()
                processes = node.processes()
                assert len(processes) >= 4
                for process in processes:
                    assert PASSWORD not in process.command
                    if process.pid != node.pid:
                        assert PASSWORD.encode() not in process.started_with, process
                server.signal(signal.SIGSTOP)
                wait_for(lambda: storage(node)["state"] == "degraded", "it does not notice")
                assert PASSWORD not in json.dumps(node.status())
                server.signal(signal.SIGCONT)
                is_well(node)
                assert PASSWORD not in node.output()
    for word in (f"redis://:{PASSWORD}@127.0.0.1:1", f"redis://me:{PASSWORD}@127.0.0.1:1"):
        text = noded("--head", "--redis", word, code=2)
        assert PASSWORD not in text and "holds a password" in text
    file.chmod(0o644)
    text = noded("--head", "--redis", "127.0.0.1:1", "--redis-password-file", str(file), code=1)
    assert "is open to other users" in text


@pytest.mark.slow
def test_a_long_silence(redis: Server) -> None:
    with head(redis) as node, Driver(node.address, PROGRAM) as driver:
        driver.expect("ready")
        redis.signal(signal.SIGSTOP)
        make(driver, "early")
        wait_for(
            lambda: storage(node).get("since", 1e18) < time.time() - 20,
            "20 s of silence do not pass",
            40,
        )
        make(driver, "late")
        redis.signal(signal.SIGCONT)
        is_well(node)
        assert len(keys(redis, "actors")) == 2
        driver.kill()
