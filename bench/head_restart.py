"""How long a cluster is without its head, and what that costs meanwhile: SQLite and Redis.

    python bench/head_restart.py              7 rounds each; about two minutes
    python bench/head_restart.py --rounds 3 --storage redis

Rows, of a head and one member on this machine, with a program at the member that stays connected all the time:

- restart: SIGKILL of the head's daemon, and started again. From that start command to the answer of the first actor
  made after the kill.
- elsewhere: all of the head's node is killed and its directory removed; another head starts from another directory,
  with the same storage and address. Likewise.
- calls: calls a second of an actor on the member, one after the other, in 3 s without a head against 3 s before.
- registering: 2,000 actors at the head's own table and storage, the nodes faked: for each of them the time until it is
  durable, with the others under way, and CPU of the head's thread.

Redis is a redis-server of this script's that writes at every acknowledgement (appendfsync always).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "tests"))

from harness.drivers import Driver
from harness.members import Members
from harness.redis import Server

from noded import ids
from noded.config import redis_url
from noded.head.actors import ActorTable
from noded.head.storage import Storage
from noded.head.storage.redis import RedisStorage
from noded.head.storage.redis_link import Access
from noded.head.storage.sqlite import SqliteStorage
from noded.wire import messages as m

ACTORS = 2_000
CALLS_SECONDS = 3.0

PROGRAM = """
@noded.remote(num_cpus=0)
class Echo:
    def echo(self, value):
        return value
old = Echo.remote()
noded.get(old.echo.remote(0))
say("ready")
while word := hear():
    if word == "actor":
        one = Echo.options(max_restarts=1).remote()
        noded.get(one.echo.remote(1))
        say("answered", time.monotonic())
    else:
        end, count = time.monotonic() + float(word), 0
        while time.monotonic() < end:
            noded.get(old.echo.remote(count))
            count += 1
        say("calls", count / float(word))
"""


@contextmanager
def flags(storage: str, place: Path) -> Iterator[list[str]]:
    if storage == "sqlite":
        yield []
    else:
        with Server(place / "redis") as server:
            yield ["--redis", server.url]


def restart(storage: str, place: Path, *, elsewhere: bool) -> float:
    with flags(storage, place) as more, Members(*more, num_cpus=0) as cluster:
        member = cluster.add(num_cpus=1)
        with Driver(member.address, PROGRAM) as driver:
            driver.expect("ready", 60)
            driver.tell("actor")  # so that the member has a worker that waits
            driver.expect("answered", 60)
            if elsewhere:
                cluster.head.crash()
                shutil.rmtree(cluster.head.dir)
            else:
                cluster.head.kill9()
            driver.tell("actor")  # asked for while there is no head
            time.sleep(0.5)
            began = time.monotonic()
            if elsewhere:
                cluster.move_head(name="head2")
            else:
                cluster.head.start()
            answered = float(driver.expect("answered", 120))
            driver.process.stdin.close()  # type: ignore[union-attr]
            return answered - began


def calls(storage: str, place: Path) -> float:
    """Calls without a head, as a part of those with one."""
    with flags(storage, place) as more, Members(*more, num_cpus=0) as cluster:
        member = cluster.add(num_cpus=1)
        with Driver(member.address, PROGRAM) as driver:
            driver.expect("ready", 60)
            rates = []
            for there in (True, False):
                if not there:
                    cluster.head.kill9()
                driver.tell(str(CALLS_SECONDS))
                rates.append(float(driver.expect("calls", 60)))
            cluster.head.start()
            driver.process.stdin.close()  # type: ignore[union-attr]
            return rates[1] / rates[0]


class Nodes:
    """Every actor has a worker at once."""

    def __init__(self) -> None:
        self.table: ActorTable
        self.placed = 0
        self.all_there = asyncio.Event()

    def place(self, record: Any) -> None:
        record.node, record.instance = 1, record.instance + 1
        self.table.started(record, "0" * 16, 1)
        self.placed += 1
        if self.placed == ACTORS:
            self.all_there.set()

    place_unless_hosted = place

    def reserved(self, id_: bytes) -> bool:
        return False


async def _register(storage: Storage) -> tuple[float, float]:
    await storage.open()
    nodes = Nodes()
    table = nodes.table = ActorTable(storage, lambda prefix, at, payload: None)
    table.host = nodes  # type: ignore[assignment]
    maker = ids.new_prefix(1)
    began, cpu = time.perf_counter(), time.thread_time()
    for seq in range(ACTORS):
        spec = m.ActorSpec(ids.actor_id(maker, seq), "Echo", b"h" * 16, 500, {}, {}, {}, name=f"a{seq}", detached=True)
        table.create(maker, spec, b"x" * 600)
        if seq % 50 == 49:  # as they come: some in each turn of the loop
            await asyncio.sleep(0)
    await nodes.all_there.wait()
    await table.stop(end_detached=False)
    spent, cpu = time.perf_counter() - began, time.thread_time() - cpu
    await storage.close()
    return spent / ACTORS * 1000, cpu / ACTORS * 1000


def register(storage: str, place: Path) -> tuple[float, float]:
    """Milliseconds for each: until it is durable, with the others under way; and CPU of the loop's thread."""
    if storage == "sqlite":
        return asyncio.run(_register(SqliteStorage(place / "head.db")))
    with Server(place / "redis") as server:
        return asyncio.run(_register(RedisStorage(Access(redis_url.parse(server.url)), "bench", place / "journal")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--storage", choices=["sqlite", "redis"], action="append")
    asked = parser.parse_args()
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    print("| storage | restart | elsewhere | calls without a head | registering: time, CPU |")
    print("| --- | --: | --: | --: | --: |")
    for storage in asked.storage or ["sqlite", "redis"]:
        found: dict[str, list[float]] = {"restart": [], "elsewhere": [], "calls": [], "time": [], "cpu": []}
        for _ in range(asked.rounds):
            with tempfile.TemporaryDirectory(prefix="nd-") as directory:
                place = Path(directory)
                os.environ["NODED_HOME"], os.environ["NODED_RUN_DIR"] = str(place / "home"), str(place / "run")
                found["restart"].append(restart(storage, place / "1", elsewhere=False))
                found["elsewhere"].append(restart(storage, place / "2", elsewhere=True))
                found["calls"].append(calls(storage, place / "3"))
                (place / "4").mkdir()
                spent, cpu = register(storage, place / "4")
                found["time"].append(spent)
                found["cpu"].append(cpu)
        middle = {name: statistics.median(values) for name, values in found.items()}
        spans = [
            f"{middle[name]:.2f} s ({min(found[name]):.2f} to {max(found[name]):.2f})"
            for name in ("restart", "elsewhere")
        ]
        print(
            f"| {storage} | {spans[0]} | {spans[1]} | {100 * middle['calls']:.0f} % "
            f"| {middle['time']:.2f} ms, {middle['cpu']:.2f} ms |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
