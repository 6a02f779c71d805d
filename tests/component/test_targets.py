"""Where Prometheus finds the nodes: what /sd tells, and a file that follows it, also after it could not be written."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from noded.node.cluster_view import ClusterView
from noded.node.collectors import Collectors
from noded.node.targets import Targets
from noded.wire import cluster_messages as c


def entry(number: int, state: str = "ALIVE", address: str | None = None) -> c.NodeEntry:
    where = f"10.0.0.{number}:70" if address is None else address
    return c.NodeEntry(number, f"id{number}", f"n{number}", where, state, {}, {}, {}, "10.0.0.1", "")


def target(number: int, **more: str) -> dict[str, Any]:
    labels = {"cluster": "one", "node": f"n{number}", "node_id": f"id{number}", **more}
    return {"targets": [f"10.0.0.{number}:70"], "labels": labels}


class Node:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.view = ClusterView(1)
        self.collectors = Collectors((0.05, 0.1))
        self.targets = Targets(self.view, self.collectors, cluster="one", tls=False, path=path, quiet=0.02)
        self.view.on_change = self.targets.on_change

    def written(self) -> Any:
        return json.loads(self.path.read_text()) if self.path.exists() else None

    async def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, f"{self.written()}, {self.collectors.figures()}"
            await asyncio.sleep(0.005)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    made = Node(tmp_path / "sd" / "nodes.json")
    yield made
    made.targets.stop()
    made.collectors.stop()


async def test_all_that_are_not_dead_are_told(node: Node) -> None:
    node.view.update([entry(1), entry(2, "AWAY"), entry(3, "DEAD"), entry(4, "DRAINING"), entry(5, address="")], True)
    tls = Targets(node.view, node.collectors, cluster="one", tls=True, path=None)

    assert node.targets.targets() == [target(1), target(2), target(4)]
    assert tls.targets()[0] == target(1, __scheme__="https")


async def test_the_file_follows_the_nodes(node: Node) -> None:
    node.path.parent.mkdir()
    node.view.update([entry(1), entry(2)], True)
    await node.until(lambda: node.written() == [target(1), target(2)])
    first = node.path.open()
    node.view.update([entry(2)], False)  # a report that changes nothing
    node.view.update([entry(3)], False)
    await node.until(lambda: node.written() == [target(1), target(2), target(3)])
    node.view.update([entry(2, "DEAD")], False)
    await node.until(lambda: node.written() == [target(1), target(3)])

    with first:
        assert json.load(first) == [target(1), target(2)], "it is written in place: a reader may see half of it"
    assert node.path.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in node.path.parent.iterdir()] == ["nodes.json"]


async def test_a_file_that_cannot_be_written_is_said_and_comes_by_itself(node: Node) -> None:
    node.view.update([entry(1)], True)
    await node.until(lambda: node.collectors.figures()[0]["state"] == "FAILED")
    assert "FileNotFoundError" in node.collectors.figures()[0]["problem"]

    node.path.parent.mkdir()
    await node.until(lambda: node.written() == [target(1)])
    assert node.collectors.figures()[0]["state"] == "OK"
