"""Lists of more tasks that wait than a process tells at once."""

from __future__ import annotations

import os
from pathlib import Path

from harness.cluster import Node

import noded
from noded.node.task_table import MOST_OPEN
from noded.util import state


@noded.remote
def waits(path: str) -> None:
    with open(path) as pipe:
        pipe.read()


@noded.remote
def quick() -> None:
    pass


@noded.remote
def last() -> None:
    pass


def test_any_of_very_many_that_wait_is_found(tmp_path: Path) -> None:
    path, count = str(tmp_path / "pipe"), 2 * MOST_OPEN
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR)
    with Node(num_cpus=1) as node:
        noded.init(address=node.address, log_to_driver=False)
        try:
            refs = [waits.remote(path), *(quick.remote() for _ in range(count)), last.remote()]
            found = state.list_tasks(filters=[("name", "=", "last")])
            assert [t.state for t in found] == ["PENDING_NODE_ASSIGNMENT"] and found.matched == 1
            for ref in refs[-2:]:
                known = state.get_task(ref)
                assert known is not None and not isinstance(known, list)
                assert (known.task_id, known.state) == (ref.task_id().hex(), "PENDING_NODE_ASSIGNMENT")
            everything = state.list_tasks(limit=2 * count)
            assert [t.task_id for t in everything] == sorted(ref.task_id().hex() for ref in refs)
            assert everything.matched == len(refs) and not everything.notes
            others = state.list_tasks(filters=[("name", "!=", "quick")])
            assert ({t.name for t in others}, others.matched) == ({"waits", "last"}, 2)
            del refs
        finally:
            noded.shutdown()
            os.close(fd)
