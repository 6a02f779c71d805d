"""`noded memory`: who holds what, how, where and since when."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.cluster import Node, noded_command
from harness.drivers import Driver
from harness.members import Members
from harness.wait import wait_for

import noded
from noded.cli.control import request
from noded.client import sites
from noded.config import node_in
from noded.util import state
from noded.util.scheduling_strategies import NodeAffinitySchedulingStrategy

MB = 1 << 20
Rows = list[dict[str, Any]]


def ask(cluster: str, *flags: str, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        [*noded_command(), "memory", "--cluster", cluster, *flags],
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows_of(ref: Any) -> Rows:
    """The rows of this object, by the connection of this driver: quicker than a command."""
    return [row for row in state.held(limit=1000)["rows"] if row["id"] == ref.hex()]


def wait_rows(ref: Any, condition: Callable[[Rows], Any]) -> Rows:
    def look() -> Rows | None:
        found = rows_of(ref)
        return found if condition(found) else None

    return wait_for(look, lambda: f"not so: {rows_of(ref)}", 20)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    flags = ("--object-store-memory", str(32 * MB), "--object-spilling-directory", str(tmp_path))
    with Node(*flags) as node:
        noded.init(address=node.address, log_to_driver=False)
        try:
            yield node
        finally:
            noded.shutdown()
        node.settle()


@noded.remote
class Keeper:
    def keep(self, held: Any) -> int:
        self.held = held
        return os.getpid()

    def forever(self, path: str, *_: Any) -> None:
        with open(path) as pipe:
            pipe.read()


def test_the_ways_to_hold_an_object(node: Node, tmp_path: Path) -> None:
    plain = noded.put(np.zeros(3 * MB, np.uint8))
    row = wait_rows(plain, lambda found: len(found) == 1)[0]
    assert (row["kind"], row["pid"], row["hold"], row["where"]) == ("driver", os.getpid(), "local reference", "memory")
    assert 3 * MB <= row["size"] < 3 * MB + 4096 and 0 <= row["age_s"] < 60 and row["copies"] == ["head"]

    view = noded.get(plain)
    assert wait_rows(plain, lambda found: found)[0]["hold"] == "local reference + view"
    id_ = plain.hex()
    del plain
    gc.collect()
    wait_for(lambda: [r["hold"] for r in state.held()["rows"] if r["id"] == id_] == ["view"], state.held, 20)
    del view
    gc.collect()

    inner = noded.put(np.zeros(1 * MB, np.uint8))
    outer = noded.put([inner])
    wait_rows(inner, lambda found: any(r["inside"] == [outer.hex()] for r in found))
    keeper = Keeper.remote()
    pid = noded.get(keeper.keep.remote([inner]), timeout=30)
    found = wait_rows(inner, lambda found: any(r["kind"] == "actor" for r in found))
    actor = next(r for r in found if r["kind"] == "actor")
    assert actor["pid"] == pid and actor["holder"] == f"actor Keeper pid {pid}"

    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    argument = noded.put(np.zeros(2 * MB, np.uint8))
    busy = keeper.forever.remote(pipe)
    waiting = keeper.forever.remote(os.devnull, argument)
    of_call = "argument of the pending call Keeper.forever"
    wait_rows(argument, lambda found: any(of_call in row["hold"] for row in found))

    os.kill(pid, signal.SIGSTOP)
    try:
        silent = next(r for r in rows_of(inner) if r["kind"] == "actor")
        assert silent["hold"] == "held; does not answer"
        shown = ask(node.cluster)
        assert f"actor Keeper pid {pid} (does not answer)" in shown
    finally:
        os.kill(pid, signal.SIGCONT)
    summary, _, table = shown.partition("OBJECT ")
    assert summary.splitlines()[0].split() == "NODE STORE USED OF ON DISK OBJECTS THEIR BYTES".split()
    assert f"driver pid {os.getpid()}" in summary and argument.hex() in table and f": {outer.hex()}" in table
    assert "not recorded" in ask(node.cluster, "--group-by", "site")

    os.kill(pid, signal.SIGKILL)
    wait_rows(inner, lambda found: all(r["kind"] != "actor" for r in found))
    for ref in (busy, waiting):
        with pytest.raises(noded.exceptions.ActorDiedError):
            noded.get(ref, timeout=30)


def test_pending_and_on_disk(node: Node, tmp_path: Path) -> None:
    refs = [noded.put(np.zeros(4 * MB, np.uint8)) for _ in range(12)]
    rows = state.held(limit=1000)["rows"]
    disk = {row["where"] for row in rows}
    assert "disk" in disk and len({row["id"] for row in rows}) == 12
    told = json.loads(ask(node.cluster, "--stats-only", "--json"))
    assert told["rows"] == [] and told["rows_in_all"] == 12
    (here,) = told["nodes"]
    assert here["store"]["on_disk"] > 0 and here["objects"] == 12 and here["bytes"] >= 12 * 4 * MB
    assert here["biggest"][0]["pid"] == os.getpid()
    assert "HELD MOST BY" in ask(node.cluster, "--stats-only")
    by_age = json.loads(ask(node.cluster, "--sort-by", "age", "-n", "3", "--json"))
    assert [row["id"] for row in by_age["rows"]] == [ref.hex() for ref in refs[:3]]
    assert len(json.loads(ask(node.cluster, "--group-by", "node", "--json"))["groups"]) == 1
    del refs

    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)

    @noded.remote
    def slow(path: str) -> int:
        with open(path) as pipe:
            return len(pipe.read())

    coming = slow.remote(pipe)
    outer = noded.put([coming])
    found = wait_rows(coming, lambda found: len(found) == 2)
    assert {row["where"] for row in found} == {"pending"}
    with open(pipe, "w"):
        pass
    assert noded.get(coming, timeout=30) == 0
    wait_rows(coming, lambda found: all(row["where"] == "memory" for row in found))
    del outer


def test_lines_are_recorded_on_request(node: Node) -> None:
    here = Path(__file__).name
    assert state.held()["recording"] is False
    source = """
        import numpy as np
        def make(): return noded.put(np.zeros(1 << 20, np.uint8))
        ref, again = make(), make()
        @noded.remote
        class Keeper:
            def keep(self):
                self.mine = noded.put(np.zeros(1 << 20, np.uint8))
        keeper = Keeper.remote()
        noded.get(keeper.keep.remote())
        say("made", ref.hex())
        hear()
        del ref, again
        say("dropped", len(noded.client.runtime.current().sites))
        hear()
    """
    with Driver(node.address, source, env={sites.VARIABLE: "1"}) as driver:
        id_ = driver.expect("made")

        def by_actor() -> Any:
            told = state.held(group_by="site")
            kept = [row for row in told["rows"] if row["kind"] == "actor" and row["site"].endswith("Keeper.keep")]
            return told if kept else None

        told = wait_for(by_actor, lambda: f"{state.held()}", 20)
        (row,) = [row for row in told["rows"] if row["id"] == id_]
        assert row["site"].endswith(" in make") and "<string>:" in row["site"]
        made = next(group for group in told["groups"] if group["site"] == row["site"])
        assert made["objects"] == 2 and made["bytes"] > 2 * MB
        assert "CREATED AT" in ask(node.cluster) and row["site"] in ask(node.cluster, "--group-by", "site")
        driver.tell("go on")
        assert int(driver.expect("dropped")) <= 2, "what is gone is forgotten"
        mine = noded.put(np.zeros(1 * MB, np.uint8))
        assert wait_rows(mine, lambda found: found)[0]["site"] == "", f"{here} does not record"
        driver.tell("end")


def test_forked_children_and_programs_that_have_left(node: Node) -> None:
    source = """
        import numpy as np
        view = noded.get(noded.put(np.zeros(1 << 20, np.uint8)))
        read_end, write_end = os.pipe()
        child = os.fork()
        if not child:
            os.close(write_end)
            os.read(read_end, 1)
            os._exit(0)
        say("forked")
        hear()
        os.close(write_end)
        os.waitpid(child, 0)
        noded.shutdown()
        say("left")
        hear()
    """

    def look() -> list[tuple[str, str, str]]:
        return sorted((row["kind"], row["holder"], row["hold"]) for row in state.held()["rows"])

    with Driver(node.address, source) as driver:
        driver.expect("forked")
        pid = driver.pid
        both = [
            ("driver", f"driver pid {pid}", "view"),
            ("forked child", f"forked children of pid {pid}", "forked child"),
        ]
        wait_for(lambda: look() == both, lambda: f"not so: {look()}", 20)
        driver.tell("leave")
        driver.expect("left")
        left = [("driver", f"driver pid {pid}, which has left", "detached program")]
        wait_for(lambda: look() == left, lambda: f"not so: {look()}", 20)
        driver.tell("end")
        wait_for(lambda: not look(), lambda: f"still held: {look()}", 20)


def test_two_nodes() -> None:
    with Members() as cluster:
        cluster.add(name="n1")
        noded.init(address=cluster.head.address, log_to_driver=False)
        try:
            ids = {n["NodeName"]: n["NodeID"] for n in noded.nodes()}
            there = NodeAffinitySchedulingStrategy(ids["n1"], soft=False)
            keeper = Keeper.options(scheduling_strategy=there).remote()
            ref = noded.put(np.zeros(3 * MB, np.uint8))
            noded.get(keeper.keep.remote([ref]), timeout=30)
            found = wait_rows(ref, lambda found: {r["kind"] for r in found} == {"driver", "node", "actor"})
            rows = {row["kind"]: row for row in found}
            assert rows["node"]["holder"] == "node n1" and rows["node"]["hold"] == "held by another node"
            assert rows["actor"]["node"] == "n1" and rows["actor"]["size"] == rows["driver"]["size"] > 0
            shown = ask(cluster.head.cluster)
            assert shown.count(ref.hex()) == 3
            member = cluster["n1"]
            there_is = node_in(Path(member.dir))
            assert there_is is not None
            assert {node["name"] for node in request(there_is, "memory", {}, 8)["nodes"]} == {"head", "n1"}
            member.signal(signal.SIGSTOP)
            try:
                told = {node["name"]: node for node in state.held()["nodes"]}
                assert told["n1"]["problem"].startswith("it has not answered") and told["head"]["objects"]
            finally:
                member.signal(signal.SIGCONT)
            cluster.head.kill9()
            told = request(there_is, "memory", {}, 8)
            assert told["problem"].startswith("the head does not answer")
            assert [node["name"] for node in told["nodes"]] == ["n1"] and told["rows"]
            cluster.head.restart()
        finally:
            noded.shutdown()
